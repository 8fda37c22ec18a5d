"""Molecular dynamics: NVE, NVT and NPT, watched over, logged, and restartable; compiled, or with any ASE calculator."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import ase
import numpy as np

from mlff.basics import provenance
from mlff.basics.errors import ConfigError, DataError, MLFFError, StructureError
from mlff.basics.files import alone, check_output
from mlff.basics.signals import Stop
from mlff.config.bias import Bias
from mlff.simulation.ase_engine import make_engine
from mlff.simulation.bias import check_bias
from mlff.simulation.constraints import check_constraints, fix_lengths
from mlff.simulation.driver import Run, Summary
from mlff.simulation.flagged import check_limits
from mlff.simulation.guard import Guard, Limits, SimulationError
from mlff.simulation.jax_engine import JaxEngine, check_barostat
from mlff.simulation.progress import MDProgress
from mlff.simulation.record import LOGS, check_state, check_trajectory_name, load_state, lock_path, record_path, state_path
from mlff.simulation.restart import (
    Engine,
    check_chance,
    check_engine,
    check_ensemble,
    choose_engine,
    choose_settings,
    describe_bias,
    earlier_settings,
    identity,
    place,
    with_ramp,
)
from mlff.simulation.settings import Barostat, Ensemble, Settings, Thermostat
from mlff.simulation.velocities import degrees_of_freedom, maxwell_boltzmann, take_velocities


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
    barostat: Barostat | None = None,
    temperature_end: float | None = None,
    pressure_end: float | None = None,
    trajectory: str | Path | None = None,
    log: str | Path | None = None,
    interval: int | None = None,
    seed: int | None = None,
    keep_velocities: bool = False,
    restart: bool = False,
    limits: Limits = Limits(),
    engine: Engine = "auto",
    bias: Bias | None = None,
    progress: bool = True,
) -> Summary:
    """Simulate `steps` steps of `timestep` fs; `atoms` are left in the last state.

    temperature K, pressure GPa, tau and tau_pressure fs: by default those of `Settings`, with `restart` those of the earlier
    run. With `temperature_end` or `pressure_end` they go there in a straight line over `steps`. Every `interval` steps (10) a frame goes to `trajectory` (.traj or .xyz) and a line to `log` (JSON lines, or .csv).
    `engine`: "jax" compiles the dynamics with a potential of mlff, "ase" is ASE's loop for any calculator; "auto" takes jax where
    it can do what is asked. `bias` (engine jax): restraints and metadynamics, whose columns go to the log and whose hills go to a
    file beside `trajectory` (.hills). Momenta are drawn at `temperature` with `seed` (0), or with `keep_velocities` taken from the atoms (`take_velocities`).
    With `restart`, `atoms` are only the starting structure of the earlier run: the state beside `trajectory` is taken up
    (bitwise for NVE and Langevin on the same machine) until `steps` steps are done in all.
    Raises, before anything is computed, ConfigError: an option that has no effect; StructureError: a constraint that
    dynamics cannot keep, no velocities to keep; DataError: no state, or a structure whose elements, masses, charges,
    magnetic moments, tags, constraints, cell or periodicity are not those of the earlier run.
    Raises SimulationError when the run blows up, FileError where nothing can be written; Ctrl-C (SIGTERM) ends it after
    the current step with KeyboardInterrupt (Terminated). The trajectory and the state of the last good record are then
    on disk, beside a record of versions, machine and settings (.run.json), and what broke a limit in .flagged.xyz.
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
    check_limits(limits, calculator)
    given = {"ensemble": ensemble, "temperature": temperature, "timestep": timestep, "thermostat": thermostat}
    given |= {"tau": tau, "pressure": pressure, "tau_pressure": tau_pressure, "barostat": barostat}
    given |= {"temperature_end": temperature_end, "pressure_end": pressure_end, "ramp_steps": None}
    constraints = list(atoms.constraints)
    with _sole_writer(trajectory):
        path = None if trajectory is None else state_path(trajectory)
        state = load_state(path) if restart else None
        if state is None:
            settings = choose_settings(with_ramp(given, steps), Settings())
            check_chance(settings, temperature, seed, keep_velocities)
            interval, seed = interval or 10, seed or 0
            fix_lengths(atoms)
        else:
            settings = earlier_settings(state, path, given, steps, seed, keep_velocities)
            place(atoms, state, settings, path)
            interval, seed = interval or int(state["interval"]), int(state["seed"])
            keep_velocities = bool(state["keep_velocities"])
        check_ensemble(atoms, settings)
        chosen, reason = choose_engine(engine, calculator, atoms, state, path)
        check_engine(chosen, reason, settings)
        if chosen == "jax":
            check_barostat(settings)
        described = describe_bias(bias, state, path, chosen, reason)
        if bias is not None:
            check_bias(bias, atoms, [settings], steps)
        if chosen == "ase" and state is not None:
            _warm_up(calculator, state, path)
        rng = np.random.default_rng(seed)
        hottest = max(settings.temperature, settings.temperature_end)
        if state is None and keep_velocities:
            hottest = max(hottest, take_velocities(atoms, settings.keeps_rotation)[1])
        elif state is None:
            maxwell_boltzmann(atoms, settings.temperature, rng)
        stress = settings.ensemble == "npt" or (chosen == "jax" and bool(atoms.pbc.all()))
        _prepare(calculator, stress=stress, steady=chosen == "ase")
        atoms.calc = calculator
        try:
            rotates = settings.keeps_rotation
            freedom = degrees_of_freedom(atoms, rotates) if state is None else int(state["degrees_of_freedom"])
            guard = Guard(atoms, limits, hottest, freedom)
            _try_out(atoms, guard, stress)
            chance = {"seed": seed, "keep_velocities": keep_velocities}
            start = identity(atoms) | {name: np.array(value) for name, value in chance.items()}
            start["start_positions"] = atoms.positions.copy() if state is None else state["start_positions"]
            start |= {"degrees_of_freedom": np.array(freedom), "bias": described}
            if chosen == "jax":
                taking = JaxEngine(atoms, settings, guard, seed, freedom, bias, steps)
            else:
                taking = make_engine(atoms, settings, guard, rng, freedom)  # may add a constraint
            if state is not None:
                taking.restore(int(state["step"]), state, path)
            run = Run(taking, settings, guard, interval, trajectory, log, state, start)
            if trajectory is not None:
                facts = {"settings": asdict(settings), "steps": steps, "interval": interval, "engine": chosen, **chance}
                facts["bias"] = None if bias is None else json.loads(bias.description())
                facts |= {"formula": atoms.get_chemical_formula(), "from_step": run.step}
                potential = getattr(calculator, "potential", None)
                facts["model"] = None if potential is None else potential.fingerprint
                provenance.record(record_path(trajectory), go_on=restart, **facts)
            with run, Stop() as stop, MDProgress(progress, run.step, steps, settings.timestep) as shown:
                return replace(run.until(steps, shown, stop), engine_reason=reason)
        finally:
            atoms.set_constraint(constraints)
            _prepare(calculator, stress=None, steady=False)


def _sole_writer(trajectory: str | Path | None):
    """Nobody else writes this trajectory in the block. Raises ConfigError if somebody does."""
    if trajectory is None:
        return nullcontext()
    return alone(lock_path(trajectory), f"{trajectory}: another process writes it; wait for it or choose another name")


def _try_out(atoms: ase.Atoms, guard: Guard, stress: bool) -> None:
    """The first forces, before any file is opened. Raises SimulationError."""
    try:
        guard.check_geometry(atoms)
        if stress and atoms.pbc.all():
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
