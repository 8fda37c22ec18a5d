"""A simulation in progress: an engine takes the steps, here they are watched over and written down.

An engine has `name`, `atoms` (which hold the geometry after every `advance`), `step` (done in all), `advance(steps)` (at least
one step and at most so many; SimulationError where a limit is broken), `begin(steps)` (so many come next: it may start on them
while those before are written down), `forces()`, `energy()`, `conserved()`, `pressure()`, `bias()` and `hills()` (what a bias
adds to the log, and the hills of metadynamics), and for restarts `state()` and `restore(step, state, source)`. There are two:
`jax_engine` and `ase_engine`.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mlff.basics.errors import FileError, MLFFError
from mlff.basics.files import writing
from mlff.basics.signals import Stop
from mlff.basics.statistics import RunningMean, RunningSlope
from mlff.simulation.flagged import FlaggedFrames, flagged_path, objection
from mlff.simulation.guard import Guard, SimulationError
from mlff.simulation.hills import HillsFile, hills_path
from mlff.simulation.progress import MDProgress
from mlff.simulation.reach import Reach
from mlff.simulation.record import Log, Trajectory, save_state, state_path, truncate_trajectory
from mlff.simulation.settings import Settings
from mlff.simulation.velocities import kinetic_energy

SAVE_EVERY = 30.0  #: seconds between states on disk (and one at the end)


@dataclass(frozen=True)
class Summary:
    """What came out of a run. Means and drift are over the records of this run (after a restart: since then)."""

    steps: int  #: steps done in all
    time_ps: float  #: simulated in all
    temperature_mean: float  #: K
    temperature_std: float  #: K
    drift: float | None  #: meV/atom/ps: slope of the total (NVE) or conserved energy; None for Langevin and short runs
    volume_mean: float | None  #: Å³; None without a periodic cell
    pressure_mean: float | None  #: GPa
    ns_per_day: float
    seconds: float
    distance_max: float | None  #: from the training data, of the farthest atom in the frames looked at; None: not known
    distance_beyond: float | None  #: share of these frames with an atom beyond 2
    marked: int  #: frames beyond a limit at which the run went on
    settings: Settings  #: as simulated, after a restart those of the earlier run where nothing else was said
    engine: str  #: jax or ase
    engine_reason: str | None = None  #: why it is ase where nothing was said


class Run:
    """One run in progress: the atoms, and what is written about them."""

    def __init__(self, engine, settings: Settings, guard: Guard, interval: int, trajectory, log, state, start):
        """`state`: None, or what is restarted from; `start`: arrays of the first start that every state carries on."""
        self.atoms = engine.atoms
        self.engine = engine
        self.settings = settings
        self._settings = {f"setting_{name}": np.array(value) for name, value in asdict(settings).items()}
        self.guard = guard
        self.interval = interval
        self.start = start
        self.state_file = None if trajectory is None else state_path(trajectory)
        if state is None and self.state_file is not None:  # that of an earlier run; never to be taken for this one's
            with writing(self.state_file):
                self.state_file.unlink(missing_ok=True)
        if state is not None:
            truncate_trajectory(Path(trajectory), int(state["frames"]))
        self.trajectory = None if trajectory is None else Trajectory(trajectory, append=state is not None)
        self.log = None if log is None else Log(log, keep_until=None if state is None else self.step)
        self.hills = None
        if trajectory is not None and engine.hills() is not None:
            self.hills = HillsFile(hills_path(trajectory), engine.bias_options, settings.timestep)
        self._temperatures, self._volumes, self._pressures = RunningMean(), RunningMean(), RunningMean()
        self._conserved = RunningSlope()
        self.good: dict[str, np.ndarray] | None = state
        self.saved_at = float("-inf")
        self.first_step = self.step
        self.reach = Reach(self.atoms.calc, always=guard.limits.distance is not None)
        flagged_until = None if state is None else self.step
        self.flagged = None if trajectory is None else FlaggedFrames(flagged_path(trajectory), flagged_until)
        self.marked = 0  #: frames beyond a limit at which the run went on
        self._conserved_at_start: float | None = None

    @property
    def step(self) -> int:
        """Steps done in all."""
        return self.engine.step

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if self.good is not None:
                self._save()
        except FileError:
            if kind is None:  # else the first error is the one to tell
                raise
        finally:
            for file in (self.trajectory, self.log, self.hills):
                if file is not None:
                    file.close()

    def until(self, steps: int, shown: MDProgress, stop: Stop) -> Summary:
        begin = time.perf_counter()
        try:
            self.record(write=self.good is None)  # the frame of a state that is restarted from is there already
            while self.step < steps and not stop.asked:
                self.engine.advance(min(steps - self.step, self.interval - self.step % self.interval))
                if self.step % self.interval == 0 or self.step == steps:
                    if self.step < steps:
                        self.engine.begin(min(steps - self.step, self.interval))
                    self.record()
                    shown.update(self.step, self.temperature, self.drift())
            if stop.asked:
                self.keep()
                raise stop.error()
        except FileError:
            raise
        except MLFFError as error:
            raise self.failure(error) from error
        return self.summary(time.perf_counter() - begin)

    def keep(self) -> None:
        """Remember the state of now as good, in the middle of an interval too."""
        if int(self.good["step"]) != self.step:
            self.record(write=False)

    def failure(self, error: MLFFError) -> SimulationError:
        """The error to raise for what stopped the run; its last frame is kept to be labelled."""
        self._flag(str(error))
        return SimulationError(f"stopped at step {self.step}: {error}; {self._last_good()}")

    @property
    def temperature(self) -> float:
        """K."""
        return self.guard.temperature(self.atoms)

    def record(self, write: bool = True) -> None:
        """Check the geometry, then write a frame and a line, and remember the state as good."""
        self.guard.check_geometry(self.atoms)
        against = objection(self.guard.limits, self.reach.look(self.atoms), self.atoms)
        if against is not None and not self.guard.limits.mark:
            raise SimulationError(against)
        if against is not None and write:
            self.marked += 1
            self._flag(against)
        self._check_drift()
        potential = self.engine.energy()
        kinetic = kinetic_energy(self.atoms.get_momenta(), self.atoms.get_masses()[:, None])
        periodic = bool(self.atoms.pbc.all())
        time_ps = self.step * self.settings.timestep * 1e-3
        line = {
            "step": self.step,
            "time_ps": round(time_ps, 9),
            "atoms": len(self.atoms),
            "epot_ev": potential,
            "ekin_ev": kinetic,
            "etot_ev": potential + kinetic,
            "conserved_ev": self.engine.conserved(),
            "temperature_k": self.temperature,
            "volume_a3": float(self.atoms.get_volume()) if periodic else None,
            "pressure_gpa": self.engine.pressure(),
            **self.engine.bias(),
        }
        if self.settings.ramped:
            line |= dict(zip(("target_k", "target_gpa"), self.settings.target(self.step), strict=True))
        self._count(line)
        if write:
            if self.log is not None:
                self.log.write(line)
            if self.trajectory is not None:
                self.trajectory.write(self.atoms, potential, self.engine.forces(), step=self.step, time_ps=time_ps)
        if self.hills is not None:
            self.hills.write(self.engine.hills())
        self.good = self.capture()
        if time.monotonic() - self.saved_at > SAVE_EVERY:
            self._save()

    def _count(self, line: dict) -> None:
        """A record more for the summary."""
        self._temperatures.add(line["temperature_k"])
        for values, name in ((self._volumes, "volume_a3"), (self._pressures, "pressure_gpa")):
            if line[name] is not None:
                values.add(line[name])
        if line["conserved_ev"] is not None:
            self._conserved.add(line["time_ps"], line["conserved_ev"])

    def _check_drift(self) -> None:
        conserved = self.engine.conserved()
        if conserved is not None:
            if self._conserved_at_start is None:
                self._conserved_at_start = conserved
            self.guard.check_drift((conserved - self._conserved_at_start) / len(self.atoms))

    def _flag(self, why: str) -> None:
        if self.flagged is not None:
            self.flagged.add(self.atoms, self.step, self.step * self.settings.timestep * 1e-3, why)

    def capture(self) -> dict[str, np.ndarray]:
        """All that a restart needs, as arrays."""
        return {
            "step": np.array(self.step),
            "frames": np.array(0 if self.trajectory is None else self.trajectory.frames),
            "numbers": self.atoms.numbers.copy(),
            "positions": self.atoms.positions.copy(),
            "momenta": self.atoms.get_momenta(),
            "cell": self.atoms.cell.array.copy(),
            "interval": np.array(self.interval),
            **self.start,
            **self._settings,
            "engine": np.array(self.engine.name),
            **self.engine.state(),
        }

    def drift(self) -> float | None:
        """meV/atom/ps: slope of a straight line through the conserved energy; None without one or with few records."""
        slope = self._conserved.slope
        return None if self._conserved.count < 3 or slope is None else slope * 1000 / len(self.atoms)

    def summary(self, seconds: float) -> Summary:
        done_ns = (self.step - self.first_step) * self.settings.timestep * 1e-6
        return Summary(
            steps=self.step,
            time_ps=self.step * self.settings.timestep * 1e-3,
            temperature_mean=self._temperatures.mean,
            temperature_std=self._temperatures.std,
            drift=self.drift(),
            volume_mean=self._volumes.mean,
            pressure_mean=self._pressures.mean,
            ns_per_day=done_ns / max(seconds, 1e-9) * 86400,
            seconds=seconds,
            distance_max=self.reach.largest,
            distance_beyond=self.reach.beyond,
            marked=self.marked,
            settings=self.settings,
            engine=self.engine.name,
        )

    def sync(self) -> None:
        """Force what was written to disk: a state there never knows of frames that are not."""
        for file in (self.trajectory, self.log):
            if file is not None:
                file.sync()

    def _save(self) -> None:
        if self.state_file is not None:
            self.sync()
            save_state(self.state_file, self.good)
            self.saved_at = time.monotonic()

    def _last_good(self) -> str:
        if self.good is None:
            return "there is no good frame"
        where = "not saved: no trajectory was asked for" if self.trajectory is None else f"in {self.trajectory.path}"
        return f"last good frame: step {int(self.good['step'])}, {where}"
