"""`mlff evaluate`, `mlff certify`, `mlff lint` and `mlff info`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlff.basics.errors import ConfigError, DataError, ModelFileError
from mlff.basics.files import HTML, PNG, check_outputs, write_text
from mlff.basics.properties import PREDICTED
from mlff.cli.app import app, say
from mlff.cli.options import AsPrecision, DataFile, Keys, Model, Quiet, Skip, UnitOptions, load, model_file, read_data

if TYPE_CHECKING:
    from mlff.certificate.certificate import Certificate
    from mlff.data.structure import Structure
    from mlff.potential.potential import Potential


@app.command(epilog="Example: mlff evaluate runs/si/model.safetensors test.xyz --json errors.json --plot parity.png")
def evaluate(
    model: Model,
    data: DataFile,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the errors (meV, meV/Å, meV/Å³) to this file")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="write parity plots to this PNG file")] = None,
    html: Annotated[
        Path | None, typer.Option(help="write the report of the model (see `mlff info`) with these data to this HTML file")
    ] = None,
    key: Keys = None,
    unit: UnitOptions = None,
    precision: AsPrecision = None,
    quiet: Quiet = False,
) -> None:
    """Errors of a model on labelled data: energies in meV, forces in meV/Å, stresses in meV/Å³."""
    check_outputs([(json_file, ()), (plot, PNG), (html, HTML)], [model, data])
    from rich.console import Console

    from mlff.report import plots
    from mlff.training.evaluate import predict
    from mlff.training.metrics import compare

    potential = load(model, precision)
    dataset = read_data(data, key, unit, progress=not quiet)
    if not len(dataset):
        raise DataError(f"{data}: no structures to evaluate")
    structures, results = predict(potential, dataset, progress=not quiet)
    metrics = compare(structures, results, potential.environments)
    Console().print(metrics.table(f"{model} on {data}"))
    if json_file is not None:
        content = {"model": str(model), "data": str(data), "fingerprint": dataset.fingerprint, **metrics.to_dict()}
        write_text(json_file, json.dumps(content, indent=2) + "\n")
    if plot is not None:
        plots.parity(structures, results, plot, title=data.name)
    if html is not None:
        from mlff.report.html import write_report
        from mlff.training.parity import Parity

        compared = Parity.of(structures, results, potential.environments)
        write_report(potential, model_file(model), html, {data.name: (metrics, compared)})


@app.command(
    epilog="Examples: mlff certify runs/si/model.safetensors --plot certificate.png; mlff certify runs/si test.xyz --full"
)
def certify(
    model: Model,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="structures to measure on; labelled: errors too", show_default="those that travel in the model file"
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="stability, NVE, survival, heating and dimers as the field's benchmarks measure them; minutes"
        ),
    ] = False,
    length: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="ps of stability with --full; half of it each NVE run, a tenth heating", show_default="100"
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the lines to this file")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw the lines, dimers and stretched bonds into this PNG file")] = None,
    key: Keys = None,
    unit: UnitOptions = None,
    quiet: Quiet = False,
) -> None:
    """Check symmetry, forces, stress, smoothness, size, rounding, displaced structures, hot runs and NVE drift; the lines are kept in the file.

    Exit code 1 if a line fails.
    """
    check_outputs([(json_file, ()), (plot, PNG)], [model, *([] if data is None else [data])])
    if length is not None and not full:
        raise ConfigError("--length has no effect without --full: leave it out, or add --full")
    if (key or unit) and data is None:
        option = "--key" if key else "--unit"
        raise ConfigError(f"{option} has no effect without structures to measure on: leave it out, or name them")
    from mlff.potential.selfcheck import LARGEST, choose
    from mlff.training.evaluate import evaluate as measure

    path = model_file(model)
    potential, structures, errors = load(path), [], {}
    check_outputs([(path, (path.suffix,))], [])  # the lines are kept in it
    if data is not None:
        dataset = read_data(data, key, unit, progress=not quiet)
        if not (structures := choose(dataset, count=5)):
            raise DataError(f"{data}: holds no structure of up to {LARGEST} atoms to measure on")
        if any(name in structure.labels for structure in dataset for name in PREDICTED):
            errors[data.name] = measure(potential, dataset, progress=not quiet).to_dict()
        else:
            say("note", f"{data}: no labels, nothing to compare: no errors are listed; where they stand is said with --key")
    certificate = write_certificate(potential, path, structures, plot, quiet, errors, (length or 100.0) if full else None)
    if json_file is not None:
        write_text(json_file, json.dumps(certificate.to_dict(), indent=2) + "\n")
    if certificate.failed:
        raise ModelFileError(f"{path}: fails {', '.join(line.name for line in certificate.failed)}")


def write_certificate(
    potential: Potential,
    path: Path,
    structures: list[Structure],
    plot: Path | None,
    quiet: bool,
    errors: dict[str, dict] | None = None,
    length: float | None = None,
) -> Certificate:
    """Measure a potential, print the table and keep the certificate in its file `path`; with `length` (ps) the full one.

    After Ctrl-C the lines that were done are kept.
    """
    from rich.console import Console

    from mlff.certificate.certificate import certify
    from mlff.certificate.line import Line
    from mlff.certificate.stability import full
    from mlff.potential.modelfile import CERTIFICATE
    from mlff.report import plots
    from mlff.training.metrics import Metrics

    console, screen = Console(stderr=True, quiet=quiet), Console(quiet=quiet)
    with console.status("certificate") as status:
        certificate = certify(potential, structures, lambda name: status.update(f"certificate: {name}"), errors)
    lines = {}
    for line in (potential.metadata.get(CERTIFICATE) or {}).get("full", []):  # of an earlier certificate of these parameters
        lines[line["name"]] = Line.from_dict(line)
    try:
        if length is not None:
            for part in full(potential, structures, certificate.scans, length, console.print, progress=not quiet):
                lines |= {line.name: line for line in part}
    finally:
        certificate = dataclasses.replace(certificate, full=tuple(lines.values()))
        for name, figures in (errors or {}).items():
            screen.print(Metrics(**figures).table(name))
        screen.print(certificate.table(f"certificate of {path}"))
        dataclasses.replace(potential, metadata=potential.metadata | {CERTIFICATE: certificate.to_dict()}).save(path)
        if plot is not None:
            plots.certificate(certificate, plot, title=str(path))
    return certificate


@app.command(epilog="Example: mlff lint train.xyz test.xyz --unit forces=Hartree/Bohr --plot lint.png")
def lint(
    data: Annotated[list[Path], typer.Argument(help="reference data, one or several files", show_default=False)],
    key: Keys = None,
    unit: UnitOptions = None,
    skip: Skip = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the report to this file")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw labels, distances and comparisons in this PNG file")] = None,
    max_examples: Annotated[int, typer.Option(min=0, help="structures named per finding")] = 3,
    quiet: Quiet = False,
) -> None:
    """What data hold and what is suspicious in them: units, signs, copies, outliers. Exit code 1 on a contradiction."""
    check_outputs([(json_file, ()), (plot, PNG)], data)
    from rich.console import Console

    from mlff.lint.lint import lint as look
    from mlff.report import plots, tables

    dataset = read_data(data, key, unit, progress=not quiet, skip=skip)
    report = look(dataset)
    Console().print(tables.lint(report, ", ".join(map(str, data)), max_examples))
    if json_file is not None:
        write_text(json_file, json.dumps(report.to_dict(), indent=2) + "\n")
    if plot is not None:
        plots.lint(dataset.structures, report, plot, title=", ".join(file.name for file in data))
    if errors := report.of("error"):
        raise DataError(f"{data[0]}: {errors[0].line()}" + (f"; and {len(errors) - 1} more" if len(errors) > 1 else ""))


@app.command(epilog="Examples: mlff info runs/si --html report.html; mlff info data/silicon/train.xyz")
def info(
    file: Annotated[
        Path,
        typer.Argument(metavar="MODEL|DATA", help="a model file, a run directory or reference data", show_default=False),
    ],
    html: Annotated[
        Path | None,
        typer.Option(help="write the report of a model to this HTML file: errors, curves, certificate, worst structures"),
    ] = None,
    key: Keys = None,
    unit: UnitOptions = None,
) -> None:
    """What a model was trained on and how well, or what a data file holds."""
    check_outputs([(html, HTML)], [file])
    from rich.console import Console

    from mlff.report import tables

    if (file.is_dir() and not (file / "type.raw").exists()) or file.suffix == ".safetensors":
        if key or unit:
            raise ConfigError(f"{file}: {'--key' if key else '--unit'} has no effect on a model; leave it out")
        potential = load(file, verify=False, pretrained=html is None)
        Console().print(tables.model(potential, file))
        if html is not None:
            from mlff.report.html import write_report

            write_report(potential, model_file(file), html)
    else:
        if html is not None:
            raise ConfigError(f"{file}: --html has no effect on data; leave it out")
        Console().print(tables.data(read_data(file, key, unit, progress=True), file))
