"""`mlff md`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mlff.basics.errors import DataError
from mlff.basics.files import PNG, check_outputs
from mlff.basics.runtime import keep_to_one_thread
from mlff.cli.app import app, say
from mlff.cli.options import (
    AsPrecision,
    Force,
    Frame,
    Length,
    Model,
    Quiet,
    StructureFile,
    about,
    make_calculator,
    read_structure,
)

_SMALL = 64  #: atoms up to which dynamics needs no second core


@app.command(
    epilog="Example: mlff md runs/si/model.safetensors si.xyz --ensemble npt --temperature 300 --steps 20000 --out npt.traj"
)
def md(
    model: Model,
    structure: StructureFile,
    out: Annotated[Path, typer.Option(help="trajectory to write: .traj, .xyz, .extxyz or .h5md", show_default=False)],
    ensemble: Annotated[
        Literal["nve", "nvt", "npt"] | None,
        typer.Option(help="what is kept: energy, temperature, or temperature and pressure", show_default="nvt"),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="K; the initial velocities' and the thermostat's", show_default="300")
    ] = None,
    timestep: Annotated[float | None, typer.Option(help="time step, fs", show_default="0.5")] = None,
    steps: Annotated[int, typer.Option(help="number of time steps in all")] = 1000,
    pressure: Annotated[float | None, typer.Option(help="GPa, for npt", show_default="0")] = None,
    thermostat: Annotated[
        Literal["langevin", "bussi", "nose_hoover"] | None, typer.Option(help="for nvt", show_default="langevin")
    ] = None,
    tau: Annotated[
        float | None, typer.Option(help="relaxation time of the thermostat, fs (Langevin: 1/friction)", show_default="100")
    ] = None,
    tau_pressure: Annotated[
        float | None, typer.Option(help="relaxation time of the barostat, fs, for npt", show_default="1000")
    ] = None,
    barostat: Annotated[
        Literal["isotropic", "full"] | None,
        typer.Option(help="for npt: the volume changes, or all lengths and angles of the cell", show_default="isotropic"),
    ] = None,
    temperature_end: Annotated[
        float | None, typer.Option(help="K; the temperature goes there in a straight line over --steps", show_default=False)
    ] = None,
    pressure_end: Annotated[float | None, typer.Option(help="GPa, the same for npt", show_default=False)] = None,
    interval: Annotated[int | None, typer.Option(help="steps between frames and log lines", show_default="10")] = None,
    log: Annotated[Path | None, typer.Option(help="log: .jsonl, or .csv", show_default="OUT with .jsonl")] = None,
    plot: Annotated[Path | None, typer.Option(help="write temperature and energy over time to this PNG file")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="seed of velocities and thermostat", show_default="0")] = None,
    keep_velocities: Annotated[
        bool,
        typer.Option(
            "--keep-velocities", help="start with the velocities of the file: momenta, or vel, velo, velocities in Å/fs"
        ),
    ] = False,
    frame: Frame = -1,
    length: Length = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="continue the run that wrote OUT, with its settings, up to --steps steps in all"),
    ] = False,
    engine: Annotated[
        Literal["auto", "jax", "ase"],
        typer.Option(help="jax: compiled with the model; ase: ASE's loop; auto: jax where it can do what is asked"),
    ] = "auto",
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1, help="so many runs at once, compiled together; files OUT.0, OUT.1, ...; seeds SEED, SEED+1, ..."
        ),
    ] = None,
    bias: Annotated[
        Path | None,
        typer.Option(help="YAML file of collective variables, restraints and metadynamics; hills go to OUT with .hills"),
    ] = None,
    constraints: Annotated[
        Literal["h-bonds"] | None,
        typer.Option(help="h-bonds: the bonds of hydrogen stay as long as in the structure", show_default=False),
    ] = None,
    temperatures: Annotated[
        str | None,
        typer.Option(
            help="K, of replicas: 300,350,400, or 300:900 for a geometric ladder of --replicas", show_default=False
        ),
    ] = None,
    swap_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="parallel tempering: neighbours in --temperatures try to exchange every so many steps",
            show_default=False,
        ),
    ] = None,
    skin: Annotated[float, typer.Option(help="skin of the neighbour list, Å")] = 0.5,
    max_force: Annotated[float, typer.Option(help="stop when a force gets larger, eV/Å")] = 300.0,
    max_temperature: Annotated[
        float | None, typer.Option(help="stop when it gets hotter, K", show_default="10 x, 5000 or more")
    ] = None,
    max_drift: Annotated[
        float,
        typer.Option(help="stop when the conserved energy has changed by so much, eV/atom; each step in the engine jax"),
    ] = 1.0,
    max_distance: Annotated[
        float | None,
        typer.Option(help="stop at a frame with an atom farther from the training data than this (2: forces are guesses)"),
    ] = None,
    max_spread: Annotated[
        float | None, typer.Option(help="stop at a frame where the forces of a committee differ by more, eV/Å")
    ] = None,
    mark: Annotated[
        bool, typer.Option("--mark", help="go on beyond --max-distance and --max-spread: the frames go to OUT.flagged.xyz")
    ] = False,
    precision: AsPrecision = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Molecular dynamics with a trajectory, a log and a state to restart from; stops when the run blows up."""
    log = out.with_suffix(".jsonl") if log is None else log
    from mlff.config.bias import load_bias
    from mlff.simulation.bonds import to_hydrogen
    from mlff.simulation.flagged import flagged_path
    from mlff.simulation.guard import Limits
    from mlff.simulation.md import run_md
    from mlff.simulation.record import H5MD, LOGS, SUFFIXES
    from mlff.simulation.replica_run import run_replicas
    from mlff.simulation.tempering import Tempering, read_temperatures
    from mlff.simulation.velocities import take_velocities

    check_outputs(
        [(out, (*SUFFIXES, H5MD)), (log, LOGS), (plot, PNG)], [model, structure, *([] if bias is None else [bias])]
    )
    biased = None if bias is None else load_bias(bias)
    if restart and force:
        raise DataError(f"{out}: --restart continues it, --force overwrites it; leave one of them out")
    if keep_velocities and length not in (None, "Angstrom"):
        raise DataError(f"{structure}: --keep-velocities takes velocities in Å/fs, not in {length}; convert the file")
    kelvins = None
    if temperatures is not None:
        kelvins = read_temperatures(temperatures, replicas)
        replicas = len(kelvins)
    if swap_every is not None and kelvins is None:
        raise DataError(f"{out}: --swap-every needs --temperatures")
    if temperature is not None and kelvins is not None:
        raise DataError(f"{out}: --temperature does not go with --temperatures; leave one of them out")
    if replicas is not None:
        check_replicas(
            out, replicas, restart=restart, plot=plot, keep_velocities=keep_velocities, force=force, engine=engine
        )
    elif out.exists() and not (restart or force):
        raise DataError(f"{out}: exists; --restart continues it, --force overwrites it")
    atoms = read_structure(structure, frame, length)
    if len(atoms) <= _SMALL:
        keep_to_one_thread()
    with about(f"{structure}, structure {frame}"):
        if keep_velocities and not restart:
            scaled = thermostat in ("bussi", "nose_hoover")
            source, kelvin = take_velocities(atoms, rotation_is_kept=ensemble == "nve" or scaled)
            say("note", f"velocities of {structure}: {source}, {kelvin:.0f} K")
        if constraints is not None:
            atoms.set_constraint([*atoms.constraints, to_hydrogen(atoms)])
    calculator = make_calculator(model, precision, skin)
    options = {"ensemble": ensemble, "temperature": temperature, "timestep": timestep, "steps": steps, "pressure": pressure}
    options |= {"thermostat": thermostat, "tau": tau, "tau_pressure": tau_pressure, "trajectory": out, "log": log}
    options |= {"progress": not quiet, "bias": biased}
    limits = {"drift": max_drift, "distance": max_distance, "spread": max_spread, "mark": mark}
    options["limits"] = Limits(force=max_force, temperature=max_temperature, **limits)
    options |= {"barostat": barostat, "temperature_end": temperature_end, "pressure_end": pressure_end}
    with about(structure):
        if replicas is not None:
            tempering = None if swap_every is None else Tempering(swap_every, seed or 0)
            options |= {"temperature": kelvins or temperature, "tempering": tempering}
            options |= {"interval": interval, "seed": seed, "restart": restart}
            many = run_replicas(atoms, calculator, replicas, **options)
            if tempering is not None:
                print(tempering.table())
            print_replicas(out, many)
            return
        options |= {"interval": interval, "seed": seed, "keep_velocities": keep_velocities, "restart": restart}
        summary = run_md(atoms, calculator, engine=engine, **options)
    from mlff.report import plots, tables

    if plot is not None:
        settings = summary.settings
        plots.md(log, plot, title=f"{structure.name}, {settings.ensemble.upper()}, {settings.temperature:g} K")
    print(tables.md(summary))
    if summary.engine_reason is not None:
        say("note", f"engine ase, as jax does not do this: {summary.engine_reason}")
    if summary.distance_beyond:
        share = f"{100 * summary.distance_beyond:.2g} % of the frames looked at"
        say(
            "warning",
            f"{share} have atoms more than twice as far from the training data as these reach: forces there are guesses",
        )
    if summary.marked:
        say("warning", f"{summary.marked:,} frames broke a limit; to be labelled: {flagged_path(out)}")
    print(f"{out}, {log}")


def check_replicas(out: Path, count: int, *, restart, plot, keep_velocities, force: bool, engine: str) -> None:
    """Raise DataError for options that do not go with replicas, and for files that are there."""
    from mlff.simulation.replica_run import replica_path

    for name, value in (("--plot", plot), ("--keep-velocities", keep_velocities)):
        if value:
            raise DataError(f"{out}: {name} does not go with --replicas; leave one of them out")
    if engine == "ase":
        raise DataError(f"{out}: --replicas needs the engine jax; leave --engine out")
    there = [path for path in (replica_path(out, index) for index in range(count)) if path.exists()]
    if there and not (restart or force):
        raise DataError(f"{there[0]}: exists; --restart continues all of them, --force overwrites them")


def print_replicas(out: Path, results: list) -> None:
    """One line for each. Raises SimulationError if one blew up."""
    from mlff.simulation.flagged import flagged_path
    from mlff.simulation.guard import SimulationError
    from mlff.simulation.replica_run import replica_path

    for index, result in enumerate(results):
        path = replica_path(out, index)
        if isinstance(result, SimulationError):
            say("warning", f"{path}: {result}")
        else:
            drift = "" if result.drift is None else f", drift {result.drift:+.3f} meV/atom/ps"
            print(f"{path}: {result.time_ps:g} ps at {result.temperature_mean:.0f} K{drift}")
    good = [result for result in results if not isinstance(result, SimulationError)]
    if marked := sum(result.marked for result in good):
        say("warning", f"{marked:,} frames broke a limit; to be labelled: {flagged_path(replica_path(out, 0))}, ...")
    print(f"{len(good)} of {len(results)} replicas done, {sum(result.ns_per_day for result in good):.3g} ns/day together")
    if len(good) < len(results):
        raise SimulationError(f"{out}: {len(results) - len(good)} of {len(results)} replicas stopped before the end")
