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
from mlff.basics.files import alone, check_output
from mlff.basics.signals import Stop
from mlff.config.bias import Bias
from mlff.simulation.bias import check_bias
from mlff.simulation.constraints import check_constraints
from mlff.simulation.driver import Run, Summary
from mlff.simulation.flagged import check_limits
from mlff.simulation.guard import Guard, Limits, SimulationError
from mlff.simulation.jax_engine import check_ensemble, obstacle
from mlff.simulation.progress import MDProgress
from mlff.simulation.record import LOGS, check_trajectory_name, lock_path, record_path
from mlff.simulation.replicas import Replicas
from mlff.simulation.restart import choose_settings, identity
from mlff.simulation.settings import Ensemble, Settings, Thermostat
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
    trajectory: str | Path | None = None,
    log: str | Path | None = None,
    interval: int = 10,
    seed: int = 0,
    limits: Limits = Limits(),
    bias: Bias | None = None,
    progress: bool = True,
) -> list[Summary | SimulationError]:
    """As `run_md` with the engine jax, `count` times at once; `temperature` in K of all or of each.

    Replica i has the seed `seed` + i and the files `replica_path`; `run_md` can go on with each by restart. One that blows
    up rests from then on, and its error stands in the list in place of a summary. Raises ConfigError: the engine cannot do it.
    """
    if count < 1 or steps < 0 or interval < 1 or seed < 0:
        raise ConfigError("replicas and interval must be positive, steps and seed not negative")
    check_constraints(atoms)
    check_limits(limits, calculator)
    if (reason := obstacle(calculator, atoms)) is not None:
        raise ConfigError(f"replicas need the engine jax, which cannot do this: {reason}")
    kelvins = [temperature] * count if temperature is None or np.ndim(temperature) == 0 else list(temperature)
    if len(kelvins) != count:
        raise ConfigError(f"{len(kelvins)} temperatures for {count} replicas")
    given = {"ensemble": ensemble, "timestep": timestep, "thermostat": thermostat, "tau": tau}
    given |= {"pressure": pressure, "tau_pressure": tau_pressure}
    settings = [choose_settings(given | {"temperature": kelvin}, Settings()) for kelvin in kelvins]
    check_ensemble(atoms, settings[0])
    if bias is not None:
        check_bias(bias, atoms, settings, steps)
    paths = [[None if path is None else replica_path(path, i) for path in (trajectory, log)] for i in range(count)]
    for path, lines in paths:
        if path is not None:
            check_trajectory_name(path)
        if lines is not None:
            check_output(lines, LOGS)
    with ExitStack() as stack:
        for path, _ in paths:
            if path is not None:
                stack.enter_context(alone(lock_path(path), f"{path}: another process writes it; choose another name"))
        runs, replicas = _start(atoms, calculator, settings, seed, interval, limits, paths, steps, bias)
        stack.callback(setattr, calculator, "always_stress", None)
        for run in runs:
            stack.enter_context(run)
        with Stop() as stop, MDProgress(progress, 0, steps, settings[0].timestep * count) as shown:
            return _until(runs, replicas, steps, interval, shown, stop)


def replica_path(path: str | Path, index: int) -> Path:
    """The file of a replica: nvt.3.traj of nvt.traj."""
    path = Path(path)
    return path.with_name(f"{path.stem}.{index}{path.suffix}")


def _start(atoms, calculator, settings, seed, interval, limits, paths, steps, bias) -> tuple[list[Run], Replicas]:
    copies, guards, freedoms, starts = [], [], [], []
    calculator.always_stress = bool(atoms.pbc.all())
    for index, chosen in enumerate(settings):
        copy = atoms.copy()
        maxwell_boltzmann(copy, chosen.temperature, np.random.default_rng(seed + index))
        copy.calc = calculator
        freedom = degrees_of_freedom(copy, chosen.keeps_rotation)
        guard = Guard(copy, limits, chosen.temperature, freedom)
        if not copies:
            _try_out(copy, guard)
        chance = {"seed": seed + index, "keep_velocities": False}
        start = identity(copy) | {name: np.array(value) for name, value in chance.items()}
        start["bias"] = np.array("" if bias is None else bias.description())
        starts.append(start | {"start_positions": copy.positions.copy(), "degrees_of_freedom": np.array(freedom)})
        copies.append(copy)
        guards.append(guard)
        freedoms.append(freedom)
    replicas = Replicas(copies, settings, guards, [seed + index for index in range(len(copies))], freedoms, bias, steps)
    runs = []
    for index, ((path, log), member) in enumerate(zip(paths, replicas.members, strict=True)):
        runs.append(Run(member, settings[index], guards[index], interval, path, log, None, starts[index]))
        if path is not None:
            facts = {"settings": asdict(settings[index]), "steps": steps, "interval": interval, "engine": "jax"}
            facts |= {"seed": seed + index, "replica": index, "formula": atoms.get_chemical_formula(), "from_step": 0}
            facts["bias"] = None if bias is None else json.loads(bias.description())
            provenance.record(record_path(path), go_on=False, model=calculator.potential.fingerprint, **facts)
    return runs, replicas


def _try_out(atoms: ase.Atoms, guard: Guard) -> None:
    try:
        guard.check_geometry(atoms)
        guard.check_step(atoms.get_forces(md=True), 0.0)
    except MLFFError as error:
        raise SimulationError(f"the starting structure cannot be simulated: {error}") from error


def _until(
    runs: list[Run], replicas: Replicas, steps: int, interval: int, shown: MDProgress, stop: Stop
) -> list[Summary | SimulationError]:
    begin, failed, step = time.perf_counter(), {}, 0
    for run in runs:
        run.record()
    while step < steps and len(failed) < len(runs) and not stop.asked:
        replicas.advance(min(steps - step, interval - step % interval))
        going = [index for index in range(len(runs)) if index not in failed]
        step = max(runs[index].step for index in going)
        for index in going:
            try:
                if replicas.members[index].error is not None:
                    raise replicas.members[index].error
                if step % interval == 0 or step == steps:
                    runs[index].record()
            except SimulationError as error:
                failed[index] = runs[index].failure(error)
                replicas.rest(index, error)
        shown.update(step, float(np.mean([runs[index].temperature for index in going])), None)
    if stop.asked:
        for index in set(range(len(runs))) - set(failed):
            runs[index].keep()
        raise stop.error()
    seconds = time.perf_counter() - begin
    return [failed[i] if i in failed else run.summary(seconds) for i, run in enumerate(runs)]
