"""Molecular dynamics with any ASE calculator: NVE, NVT and NPT, watched over, logged, and restartable."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import ase
import numpy as np

from mlff.basics import provenance
from mlff.basics.errors import ConfigError, DataError, FileError, MLFFError, StructureError
from mlff.basics.files import alone, check_output, writing
from mlff.basics.signals import Stop
from mlff.basics.statistics import slope
from mlff.basics.units import KB, STRESS
from mlff.simulation.constraints import check_constraints, fix_lengths
from mlff.simulation.guard import Guard, Limits, SimulationError
from mlff.simulation.integrators import Ensemble, Integrator, Settings, Thermostat, make_integrator
from mlff.simulation.progress import MDProgress
from mlff.simulation.reach import Reach
from mlff.simulation.record import (
    LOGS,
    Log,
    Trajectory,
    check_state,
    check_trajectory_name,
    load_state,
    lock_path,
    record_path,
    save_state,
    state_path,
    truncate_trajectory,
)
from mlff.simulation.restart import check_chance, choose_settings, earlier_settings, identity, place
from mlff.simulation.velocities import degrees_of_freedom, kinetic_energy, maxwell_boltzmann, take_velocities

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
    settings: Settings  #: as simulated, after a restart those of the earlier run where nothing else was said


def run_md(
    atoms: ase.Atoms,
    calculator,
    *,
    ensemble: Ensemble | None = None,
    temperature: float | None = None,
    timestep: float | None = None,
    steps: int = 1000,
    pressure: float | None = None,
    thermostat: Thermostat | None = None,
    tau: float | None = None,
    tau_pressure: float | None = None,
    trajectory: str | Path | None = None,
    log: str | Path | None = None,
    interval: int | None = None,
    seed: int | None = None,
    keep_velocities: bool = False,
    restart: bool = False,
    limits: Limits = Limits(),
    progress: bool = True,
) -> Summary:
    """Simulate `steps` steps of `timestep` fs; `atoms` are left in the last state.

    temperature K, pressure GPa, tau and tau_pressure fs: by default those of `Settings`, with `restart` those of the earlier
    run. Every `interval` steps (10) a frame goes to `trajectory` (.traj or .xyz) and a line to `log` (JSON lines, or .csv).
    Momenta are drawn at `temperature` with `seed` (0), or with `keep_velocities` taken from the atoms (`take_velocities`).
    With `restart`, `atoms` are only the starting structure of the earlier run: the state beside `trajectory` is taken up
    (bitwise for NVE and Langevin on the same machine) until `steps` steps are done in all.
    Raises, before anything is computed, ConfigError: an option that has no effect; StructureError: a constraint that
    dynamics cannot keep, no velocities to keep; DataError: no state, or a structure whose elements, masses, charges,
    magnetic moments, tags, constraints, cell or periodicity are not those of the earlier run.
    Raises SimulationError when the run blows up, FileError where nothing can be written; Ctrl-C (SIGTERM) ends it after
    the current step with KeyboardInterrupt (Terminated). The trajectory and the state of the last good record are then
    on disk, beside a record of versions, machine and settings (.run.json).
    """
    if steps < 0 or (interval is not None and interval < 1):
        raise ConfigError(f"steps must not be negative and interval must be positive, found {steps} and {interval}")
    if seed is not None and seed < 0:
        raise ConfigError(f"seed must not be negative, found {seed}")
    if len(atoms) == 0:
        raise ConfigError("there are no atoms to simulate")
    if restart and trajectory is None:
        raise ConfigError("a restart needs the trajectory of the earlier run")
    if trajectory is not None:
        check_trajectory_name(trajectory)
    if log is not None:
        check_output(Path(log), LOGS)
    check_constraints(atoms)
    given = {"ensemble": ensemble, "temperature": temperature, "timestep": timestep, "thermostat": thermostat}
    given |= {"tau": tau, "pressure": pressure, "tau_pressure": tau_pressure}
    constraints = list(atoms.constraints)
    with _sole_writer(trajectory):
        state = load_state(state_path(trajectory)) if restart else None
        if state is None:
            settings = choose_settings(given, Settings())
            check_chance(settings, temperature, seed, keep_velocities)
            interval, seed = interval or 10, seed or 0
            fix_lengths(atoms)
        else:
            path = state_path(trajectory)
            settings = earlier_settings(state, path, given, steps, seed, keep_velocities)
            place(atoms, state, settings, path)
            _warm_up(calculator, state, path)
            interval, seed = interval or int(state["interval"]), int(state["seed"])
            keep_velocities = bool(state["keep_velocities"])
        rng = np.random.default_rng(seed)
        hottest = settings.temperature
        if state is None and keep_velocities:
            hottest = max(hottest, take_velocities(atoms, settings.keeps_rotation)[1])
        elif state is None:
            maxwell_boltzmann(atoms, settings.temperature, rng)
        _prepare(calculator, stress=settings.ensemble == "npt", steady=True)
        atoms.calc = calculator
        try:
            guard = Guard(atoms, limits, hottest)
            _try_out(atoms, guard, settings.ensemble)
            chance = {"seed": seed, "keep_velocities": keep_velocities}
            start = identity(atoms) | {name: np.array(value) for name, value in chance.items()}
            if state is None:
                start["start_positions"] = atoms.positions.copy()
                freedom = degrees_of_freedom(atoms, settings.keeps_rotation)
            else:
                start["start_positions"], freedom = state["start_positions"], int(state["degrees_of_freedom"])
            start["degrees_of_freedom"] = np.array(freedom)
            integrator = make_integrator(atoms, settings, rng, freedom)  # may add a constraint
            if state is not None:
                integrator.restore(state, state_path(trajectory))
            run = _Run(atoms, integrator, settings, guard, interval, trajectory, log, state, start)
            if trajectory is not None:
                facts = {"settings": asdict(settings), "steps": steps, "interval": interval, **chance}
                facts |= {"formula": atoms.get_chemical_formula(), "from_step": run.step}
                potential = getattr(calculator, "potential", None)
                facts["model"] = None if potential is None else potential.fingerprint
                provenance.record(record_path(trajectory), go_on=restart, **facts)
            with run, Stop() as stop, MDProgress(progress, run.step, steps, settings.timestep) as shown:
                return run.until(steps, shown, stop)
        finally:
            atoms.set_constraint(constraints)
            _prepare(calculator, stress=None, steady=False)


class _Run:
    """One run in progress: the atoms, and what is written about them."""

    def __init__(
        self, atoms, integrator: Integrator, settings: Settings, guard: Guard, interval: int, trajectory, log, state, start
    ):
        """`state`: None, or what is restarted from; `start`: arrays of the first start that every state carries on."""
        self.atoms = atoms
        self.integrator = integrator
        self.settings = settings
        self.guard = guard
        self.interval = interval
        self.start = start
        self.step = 0 if state is None else int(state["step"])
        self.masses = atoms.get_masses()[:, None]
        self.freedom = int(start["degrees_of_freedom"])
        self.state_file = None if trajectory is None else state_path(trajectory)
        if state is None and self.state_file is not None:  # that of an earlier run; never to be taken for this one's
            with writing(self.state_file):
                self.state_file.unlink(missing_ok=True)
        if state is not None:
            truncate_trajectory(Path(trajectory), int(state["frames"]))
        self.trajectory = None if trajectory is None else Trajectory(trajectory, append=state is not None)
        self.log = None if log is None else Log(log, keep_until=None if state is None else self.step)
        self.records: list[dict] = []
        self.good: dict[str, np.ndarray] | None = state
        self.saved_at = float("-inf")
        self.first_step = self.step
        self.reach = Reach(atoms.calc)

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if self.good is not None:
                self._save()
        except FileError:
            if kind is None:  # else the first error is the one to tell
                raise
        finally:
            for file in (self.trajectory, self.log):
                if file is not None:
                    file.close()

    def until(self, steps: int, shown: MDProgress, stop: Stop) -> Summary:
        begin = time.perf_counter()
        try:
            self.record(write=self.good is None)  # the frame of a state that is restarted from is there already
            while self.step < steps and not stop.asked:
                self.integrator.step()
                self.step += 1
                self.guard.check_step(self.atoms.get_forces(md=True), self.temperature)
                if self.step % self.interval == 0 or self.step == steps:
                    self.record()
                    shown.update(self.step, self.temperature, self.drift())
            if stop.asked:
                self.record(write=self.step % self.interval == 0)
                raise stop.error()
        except FileError:
            raise
        except MLFFError as error:
            raise SimulationError(f"stopped at step {self.step}: {error}; {self._last_good()}") from error
        return self.summary(time.perf_counter() - begin)

    @property
    def temperature(self) -> float:
        """K."""
        return 2 * kinetic_energy(self.atoms.get_momenta(), self.masses) / (self.freedom * KB)

    def record(self, write: bool = True) -> None:
        """Check the geometry, then write a frame and a line, and remember the state as good."""
        self.guard.check_geometry(self.atoms)
        self.reach.look(self.atoms)
        potential = float(self.atoms.get_potential_energy())
        kinetic = kinetic_energy(self.atoms.get_momenta(), self.masses)
        periodic = bool(self.atoms.pbc.all())
        time_ps = self.step * self.settings.timestep * 1e-3
        line = {
            "step": self.step,
            "time_ps": round(time_ps, 9),
            "atoms": len(self.atoms),
            "epot_ev": potential,
            "ekin_ev": kinetic,
            "etot_ev": potential + kinetic,
            "conserved_ev": self.integrator.conserved(),
            "temperature_k": self.temperature,
            "volume_a3": float(self.atoms.get_volume()) if periodic else None,
            "pressure_gpa": self._pressure() if periodic else None,
        }
        self.records.append(line)
        if write:
            if self.log is not None:
                self.log.write(line)
            if self.trajectory is not None:
                forces = self.atoms.get_forces(apply_constraint=False)
                self.trajectory.write(self.atoms, potential, forces, step=self.step, time_ps=time_ps)
        self.good = self.capture()
        if time.monotonic() - self.saved_at > SAVE_EVERY:
            self._save()

    def capture(self) -> dict[str, np.ndarray]:
        """All that a restart needs, as arrays."""
        settings = {f"setting_{name}": np.array(value) for name, value in asdict(self.settings).items()}
        neighbors = getattr(self.atoms.calc, "neighbor_state", dict)()
        return {
            "step": np.array(self.step),
            "frames": np.array(0 if self.trajectory is None else self.trajectory.frames),
            "numbers": self.atoms.numbers.copy(),
            "positions": self.atoms.positions.copy(),
            "momenta": self.atoms.get_momenta(),
            "cell": self.atoms.cell.array.copy(),
            "interval": np.array(self.interval),
            **self.start,
            **settings,
            **{f"neighbors_{name}": value for name, value in neighbors.items()},
            **self.integrator.state(),
        }

    def drift(self) -> float | None:
        """meV/atom/ps: slope of a straight line through the conserved energy; None without one or with few records."""
        if len(self.records) < 3 or self.records[0]["conserved_ev"] is None:
            return None
        times = np.array([line["time_ps"] for line in self.records])
        energies = np.array([line["conserved_ev"] for line in self.records])
        return slope(times, energies) * 1000 / len(self.atoms)

    def summary(self, seconds: float) -> Summary:
        def mean(name: str) -> float | None:
            values = [line[name] for line in self.records if line[name] is not None]
            return float(np.mean(values)) if values else None

        temperatures = [line["temperature_k"] for line in self.records]
        done_ns = (self.step - self.first_step) * self.settings.timestep * 1e-6
        return Summary(
            steps=self.step,
            time_ps=self.step * self.settings.timestep * 1e-3,
            temperature_mean=float(np.mean(temperatures)),
            temperature_std=float(np.std(temperatures)),
            drift=self.drift(),
            volume_mean=mean("volume_a3"),
            pressure_mean=mean("pressure_gpa"),
            ns_per_day=done_ns / max(seconds, 1e-9) * 86400,
            seconds=seconds,
            distance_max=self.reach.largest,
            distance_beyond=self.reach.beyond,
            settings=self.settings,
        )

    def _pressure(self) -> float | None:
        """GPa, kinetic part included; None if the calculator has no stress."""
        if "stress" not in getattr(self.atoms.calc, "implemented_properties", ("stress",)):
            return None
        stress = self.atoms.get_stress(voigt=False, include_ideal_gas=True, apply_constraint=False)
        return float(-np.trace(stress) / 3 / STRESS["GPa"])

    def _save(self) -> None:
        if self.state_file is not None:
            for file in (self.trajectory, self.log):
                if file is not None:
                    file.sync()  # a state on disk never knows of frames that are not
            save_state(self.state_file, self.good)
            self.saved_at = time.monotonic()

    def _last_good(self) -> str:
        if self.good is None:
            return "there is no good frame"
        where = "not saved: no trajectory was asked for" if self.trajectory is None else f"in {self.trajectory.path}"
        return f"last good frame: step {int(self.good['step'])}, {where}"


def _sole_writer(trajectory: str | Path | None):
    """Nobody else writes this trajectory in the block. Raises ConfigError if somebody does."""
    if trajectory is None:
        return nullcontext()
    return alone(lock_path(trajectory), f"{trajectory}: another process writes it; wait for it or choose another name")


def _try_out(atoms: ase.Atoms, guard: Guard, ensemble: Ensemble) -> None:
    """The first forces, before any file is opened. Raises SimulationError."""
    try:
        guard.check_geometry(atoms)
        if ensemble == "npt" and atoms.pbc.all():
            atoms.get_stress()
        guard.check_step(atoms.get_forces(md=True), 0.0)
    except MLFFError as error:
        raise SimulationError(f"the starting structure cannot be simulated: {error}") from error


def _warm_up(calculator, state: dict[str, np.ndarray], path: Path) -> None:
    """Give the calculator back the neighbour list of the earlier run, so that sums run in the same order."""
    held = {name.removeprefix("neighbors_"): value for name, value in state.items() if name.startswith("neighbors_")}
    if held and hasattr(calculator, "restore_neighbors"):
        check_state(held, ("sizes",), path)
        if not np.array_equal(held["numbers"], state["numbers"]):
            raise DataError(f"{path}: the neighbour list belongs to other atoms")
        try:
            calculator.restore_neighbors(held)
        except StructureError as error:
            raise DataError(f"{path}: its neighbour list cannot be built again ({error})") from None


def _prepare(calculator, stress: bool | None, steady: bool) -> None:
    """Tell a calculator of ours whether each step needs the stress, and that all steps are to be computed alike."""
    if hasattr(calculator, "always_stress"):
        calculator.always_stress = stress
        calculator.potential.programs.steady = steady
