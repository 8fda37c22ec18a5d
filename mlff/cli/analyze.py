"""`mlff analyze` and `mlff free-energy`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mlff.basics.files import PNG, check_outputs, write_text
from mlff.cli.app import app, say
from mlff.cli.options import JsonFile, Length, Plot


@app.command(epilog="Example: mlff analyze nvt.traj --skip-ps 1 --json nvt.json --plot nvt.png")
def analyze(
    trajectory: Annotated[
        Path, typer.Argument(metavar="TRAJ", help="trajectory, any format that training reads", show_default=False)
    ],
    skip_ps: Annotated[
        float | None,
        typer.Option(help="leave out so many ps at the start", show_default="until energy, temperature and volume settle"),
    ] = None,
    interval_fs: Annotated[
        float | None, typer.Option(help="fs between frames", show_default="what the frames say (time_ps)")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="log of the run: .jsonl or .csv", show_default="TRAJ with .jsonl or .csv, if there")
    ] = None,
    r_max: Annotated[
        float | None,
        typer.Option(help="end of the radial distribution functions, Å", show_default="half the cell, up to 10"),
    ] = None,
    json_file: JsonFile = None,
    plot: Plot = None,
    length: Length = None,
) -> None:
    """Means with errors, radial distribution, bonds and angles, diffusion and vibrations of a trajectory."""
    beside = [trajectory.with_suffix(suffix) for suffix in (".jsonl", ".csv")]
    log = next((path for path in beside if path.is_file()), None) if log is None else log
    check_outputs([(json_file, ()), (plot, PNG)], [trajectory, *([] if log is None else [log])])
    from rich.console import Console

    from mlff.properties.analysis import analyze as compute
    from mlff.properties.analysis import read_log
    from mlff.properties.frames import read_frames
    from mlff.report import analysis as report

    columns = None if log is None else read_log(log)
    found = compute(read_frames(trajectory, interval_fs, length), columns, skip_ps=skip_ps, r_max=r_max)
    Console().print(report.tables(found))
    if json_file is not None:
        content = {"trajectory": str(trajectory), "log": None if log is None else str(log), **found.to_dict()}
        write_text(json_file, json.dumps(content, indent=2) + "\n")
    if plot is not None:
        report.plot(found, plot, trajectory.name)
    for warning in found.warnings:
        say("warning", warning)


@app.command(
    name="free-energy", epilog="Example: mlff free-energy transfer.jsonl --variable q --json profile.json --plot profile.png"
)
def free_energy(
    logs: Annotated[
        list[Path],
        typer.Argument(
            metavar="LOGS", help="log of mlff md --bias, or several of runs alike (replicas)", show_default=False
        ),
    ],
    variable: Annotated[str | None, typer.Option(help="along which variable", show_default="the first of the log")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="K", show_default="what the .run.json beside the log says")
    ] = None,
    bins: Annotated[int, typer.Option(min=2, help="number of bins")] = 40,
    skip: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.9,
            help="share of each run to leave out at the start",
            show_default="until it settles, half at most",
        ),
    ] = None,
    json_file: JsonFile = None,
    plot: Plot = None,
) -> None:
    """Free energy along a collective variable with error bars: from plain, restrained and metadynamics runs.

    Weights take the bias off. Where a file of hills (.hills) lies beside the log, their sum is shown too.
    """
    check_outputs([(json_file, ()), (plot, PNG)], logs)
    from rich.console import Console

    from mlff.properties.free_energy import free_energy as compute
    from mlff.report import free_energy as report

    found = compute(logs, variable, temperature, bins=bins, skip=skip)
    Console().print(report.table(found))
    print(f"{found.samples:,} values; the first {100 * found.skipped:.0f} % of {len(logs)} runs left out")
    if json_file is not None:
        content = {"logs": [str(path) for path in logs], **found.to_dict()}
        write_text(json_file, json.dumps(content, indent=2) + "\n")
    if plot is not None:
        report.plot(found, plot, logs[0].name)
