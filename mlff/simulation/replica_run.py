"""Molecular dynamics of several replicas of one structure in one compiled call, each with its own files, seed and guard."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import ase
import numpy as np

from mlff.basics import provenance
from mlff.basics.errors import ConfigError, MLFFError
from mlff.basics.files import alone, check_output, writing
from mlff.basics.signals import Stop
from mlff.config.bias import Bias
from mlff.simulation import driver
from mlff.simulation.bias import check_bias
from mlff.simulation.constraints import check_constraints, fix_lengths
from mlff.simulation.driver import Run, Summary
from mlff.simulation.flagged import check_limits
from mlff.simulation.guard import Guard, Limits, SimulationError
from mlff.simulation.jax_engine import check_barostat, obstacle
from mlff.simulation.joint_state import load_joint, save_joint
from mlff.simulation.progress import MDProgress
from mlff.simulation.record import LOGS, check_trajectory_name, lock_path, record_path, state_path
from mlff.simulation.replicas import Replicas
from mlff.simulation.restart import check_ensemble, choose_settings, earlier_settings, identity, place, with_ramp
from mlff.simulation.settings import Barostat, Ensemble, Settings, Thermostat
from mlff.simulation.tempering import Tempering
from mlff.simulation.velocities import degrees_of_freedom, maxwell_boltzmann


def run_replicas(
    atoms: ase.Atoms,
    calculator,
    count: int,
    *,
    ensemble: Ensemble | None = None,
    temperature: float | Sequence[float] | None = None,
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
    restart: bool = False,
    limits: Limits = Limits(),
    bias: Bias | None = None,
    tempering: Tempering | None = None,
    progress: bool = True,
) -> list[Summary | SimulationError]:
    """As `run_md` with the engine jax, `count` times at once; `temperature` in K of all or of each.

    Replica i has the seed `seed` + i and the files `replica_path`; `run_md` can go on with each by restart. One that blows
    up rests from then on, and its error stands in the list in place of a summary. With `tempering` they exchange their
    geometries; the files stay those of one temperature. With `restart` all go on from the state beside `trajectory`, with
    the same exchanges. Raises ConfigError: the engine cannot do it; DataError: no state to restart from.
    """
    if count < 1 or steps < 0 or (interval is not None and interval < 1) or (seed is not None and seed < 0):
        raise ConfigError("replicas and interval must be positive, steps and seed not negative")
    check_constraints(atoms)
    fix_lengths(atoms)
    check_limits(limits, calculator)
    if (reason := obstacle(calculator, atoms)) is not None:
        raise ConfigError(f"replicas need the engine jax, which cannot do this: {reason}")
    kelvins = [temperature] * count if temperature is None or np.ndim(temperature) == 0 else list(temperature)
    if len(kelvins) != count:
        raise ConfigError(f"{len(kelvins)} temperatures for {count} replicas")
    given = {"ensemble": ensemble, "timestep": timestep, "thermostat": thermostat, "tau": tau}
    given |= {"pressure": pressure, "tau_pressure": tau_pressure, "barostat": barostat}
    given |= {"temperature_end": temperature_end, "pressure_end": pressure_end, "ramp_steps": None}
    if restart and trajectory is None:
        raise ConfigError("a restart needs the trajectory of the earlier run")
    whole = None if trajectory is None else state_path(check_trajectory_name(trajectory))
    states, counted = load_joint(whole, count) if restart else ([None] * count, {})
    settings = []
    for index, (state, kelvin) in enumerate(zip(states, kelvins, strict=True)):
        told = given | {"temperature": kelvin}
        if state is None:
            settings.append(choose_settings(with_ramp(told, steps), Settings()))
        else:
            settings.append(earlier_settings(state, whole, told, steps, None if seed is None else seed + index, False))
    if restart:
        interval, seed = interval or int(states[0]["interval"]), int(states[0]["seed"])
    interval, seed = interval or 10, seed or 0
    check_ensemble(atoms, settings[0])
    if bias is not None:
        check_bias(bias, atoms, settings, steps)
        if tempering is not None or restart:
            what = "parallel tempering" if tempering is not None else "a restart of all replicas"
            raise ConfigError(f"a bias does not go with {what}; leave one of them out")
    check_barostat(settings[0])
    _prepare_tempering(tempering, settings, counted if restart else None, whole)
    paths = [[None if path is None else replica_path(path, i) for path in (trajectory, log)] for i in range(count)]
    for _, lines in paths:
        if lines is not None:
            check_output(lines, LOGS)
    with ExitStack() as stack:
        for path, _ in paths:
            if path is not None:
                stack.enter_context(alone(lock_path(path), f"{path}: another process writes it; choose another name"))
        runs, replicas = _start(atoms, calculator, settings, seed, interval, limits, paths, steps, states, whole, bias)
        stack.callback(setattr, calculator, "always_stress", None)
        for run in runs:
            stack.enter_context(run)
        with Stop() as stop, MDProgress(progress, runs[0].step, steps, settings[0].timestep * count) as shown:
            return _until(runs, replicas, steps, interval, tempering, whole, shown, stop)


def replica_path(path: str | Path, index: int) -> Path:
    """The file of a replica: nvt.3.traj of nvt.traj."""
    path = Path(path)
    return path.with_name(f"{path.stem}.{index}{path.suffix}")


def _prepare_tempering(tempering: Tempering | None, settings: Sequence[Settings], counted, path: Path | None) -> None:
    """`counted`: None, or what parallel tempering had counted in the earlier run. Raises ConfigError, DataError."""
    if counted is not None and bool(counted) != (tempering is not None):
        raise ConfigError(f"{path}: the earlier run had {'' if counted else 'no '}parallel tempering; ask for the same")
    if tempering is None:
        return
    if settings[0].ensemble == "nve" or settings[0].ramped:
        raise ConfigError("parallel tempering needs the ensemble nvt or npt, and temperatures that stay")
    tempering.start([chosen.temperature for chosen in settings])
    if counted is not None:
        tempering.restore(counted, path)


def _start(
    atoms, calculator, settings, seed, interval, limits, paths, steps, states, whole, bias
) -> tuple[list[Run], Replicas]:
    copies, guards, freedoms, starts = [], [], [], []
    calculator.always_stress = bool(atoms.pbc.all())
    for index, (chosen, state) in enumerate(zip(settings, states, strict=True)):
        copy = atoms.copy()
        if state is None:
            maxwell_boltzmann(copy, chosen.temperature, np.random.default_rng(seed + index))
            freedom = degrees_of_freedom(copy, chosen.keeps_rotation)
        else:
            place(copy, state, chosen, whole)
            freedom = int(state["degrees_of_freedom"])
        copy.calc = calculator
        guard = Guard(copy, limits, max(chosen.temperature, chosen.temperature_end), freedom)
        if not copies:
            _try_out(copy, guard)
        chance = {"seed": seed + index, "keep_velocities": False}
        start = identity(copy) | {name: np.array(value) for name, value in chance.items()}
        start["bias"] = np.array("" if bias is None else bias.description())
        places = copy.positions.copy() if state is None else state["start_positions"]
        starts.append(start | {"start_positions": places, "degrees_of_freedom": np.array(freedom)})
        copies.append(copy)
        guards.append(guard)
        freedoms.append(freedom)
    replicas = Replicas(copies, settings, guards, [seed + index for index in range(len(copies))], freedoms, bias, steps)
    if states[0] is not None:
        replicas.restore([int(state["step"]) for state in states], states, [whole] * len(states))
    elif whole is not None:
        with writing(whole):
            whole.unlink(missing_ok=True)
    runs = []
    for index, ((path, log), member) in enumerate(zip(paths, replicas.members, strict=True)):
        runs.append(Run(member, settings[index], guards[index], interval, path, log, states[index], starts[index]))
        if path is not None:
            facts = {"settings": asdict(settings[index]), "steps": steps, "interval": interval, "engine": "jax"}
            facts |= {
                "seed": seed + index,
                "replica": index,
                "formula": atoms.get_chemical_formula(),
                "from_step": runs[index].step,
            }
            facts["bias"] = None if bias is None else json.loads(bias.description())
            again = states[index] is not None
            provenance.record(record_path(path), go_on=again, model=calculator.potential.fingerprint, **facts)
    return runs, replicas


def _most(step: int, steps: int, interval: int, tempering: Tempering | None) -> int:
    """Steps until something is to be done."""
    left = min(steps - step, interval - step % interval)
    return left if tempering is None else min(left, tempering.every - step % tempering.every)


def _exchange(replicas: Replicas, tempering: Tempering, step: int, going: list[bool]) -> None:
    if pairs := tempering.exchanges(step, replicas.enthalpies(), going):
        replicas.exchange(pairs)


def _try_out(atoms: ase.Atoms, guard: Guard) -> None:
    try:
        guard.check_geometry(atoms)
        guard.check_step(atoms.get_forces(md=True), 0.0)
    except MLFFError as error:
        raise SimulationError(f"the starting structure cannot be simulated: {error}") from error


def _until(
    runs: list[Run],
    replicas: Replicas,
    steps: int,
    interval: int,
    tempering: Tempering | None,
    whole: Path | None,
    shown: MDProgress,
    stop: Stop,
) -> list[Summary | SimulationError]:
    begin, failed, step, saved_at = time.perf_counter(), {}, runs[0].step, float("-inf")
    for run in runs:
        run.record(write=run.good is None)
    while step < steps and len(failed) < len(runs) and not stop.asked:
        if tempering is not None and step and step % tempering.every == 0:
            _exchange(replicas, tempering, step, [index not in failed for index in range(len(runs))])
        replicas.advance(_most(step, steps, interval, tempering))
        going = [index for index in range(len(runs)) if index not in failed]
        step = max(runs[index].step for index in going)
        if step < steps and step % interval == 0 and (tempering is None or step % tempering.every):
            replicas.begin(_most(step, steps, interval, tempering))
        for index in going:
            try:
                if replicas.members[index].error is not None:
                    raise replicas.members[index].error
                if step % interval == 0 or step == steps:
                    runs[index].record()
            except SimulationError as error:
                failed[index] = runs[index].failure(error)
                replicas.rest(index, error)
        recorded = not failed and (step % interval == 0 or step == steps)
        if whole is not None and recorded and (step == steps or time.monotonic() - saved_at > driver.SAVE_EVERY):
            save_joint(whole, runs, tempering)
            saved_at = time.monotonic()
        shown.update(step, float(np.mean([runs[index].temperature for index in going])), None)
    if stop.asked:
        for index in set(range(len(runs))) - set(failed):
            runs[index].keep()
        if whole is not None and not failed:
            save_joint(whole, runs, tempering)
        raise stop.error()
    seconds = time.perf_counter() - begin
    return [failed[i] if i in failed else run.summary(seconds) for i, run in enumerate(runs)]
