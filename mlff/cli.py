"""The command line: `mlff train | evaluate | predict | md | relax | lint | info | schema`.

Errors are one line on stderr (with --debug a traceback). Exit code 0 only on success, 1 on an error, 2 on wrong
usage, 130 after Ctrl-C. Heavy imports happen inside the commands, so that --help is quick.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.core import TyperGroup

from mlff.errors import ConfigError, DataError, MLFFError, StructureError
from mlff.files import keep_inputs, write_text

if TYPE_CHECKING:
    import ase

    from mlff.potential import Potential

_ClickError = typer.BadParameter.__mro__[2]  # ClickException: typer carries its own copy of click from some version on


class _Commands(TyperGroup):
    """Turns exceptions into one line and an exit code."""

    def main(self, args=None, prog_name=None, standalone_mode: bool = True, **extra):
        args = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in args
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_: _say("warning", str(message))
                code = super().main([arg for arg in args if arg != "--debug"], prog_name, standalone_mode=False, **extra)
            if code == 130:
                raise KeyboardInterrupt
        except _ClickError as error:
            code = _fail(error.format_message().replace("Value error, ", "").rstrip() + " (see --help)", 2)
        except (KeyboardInterrupt, typer.Abort):
            code = _fail("interrupted", 130)
        except BrokenPipeError:
            sys.stderr.close()
            code = 1
        except MLFFError as error:
            if debug:
                raise
            code = _fail(str(error), 1)
        except OSError as error:
            if debug:
                raise
            code = _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
        except Exception as error:
            if debug:
                raise
            code = _fail(f"unexpected {type(error).__name__}: {error} (the same command with --debug shows where)", 1)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    _say("error", message)
    return code


def _say(what: str, message: str) -> None:
    print(f"{what}: {' '.join(message.split())}", file=sys.stderr)


app = typer.Typer(
    cls=_Commands,
    name="mlff",
    help="Learn force fields from quantum-mechanical reference data and simulate with them. Units: eV, Å, fs, K, GPa.",
    epilog="Any command takes --debug: show the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Precision = Literal["float32", "float64"]
Model = Annotated[
    Path, typer.Argument(help="trained model, e.g. runs/si/model.safetensors, or the run's directory", show_default=False)
]
DataFile = Annotated[
    Path, typer.Argument(help="reference data, e.g. test.xyz (energies eV, forces eV/Å unless --unit)", show_default=False)
]
StructureFile = Annotated[Path, typer.Argument(help="structure file, any format ASE reads", show_default=False)]
Frame = Annotated[int, typer.Option("--frame", help="which structure of the file: 0 is the first, -1 the last")]
Keys = Annotated[list[str] | None, typer.Option("--key", help="where labels stand, e.g. energy=REF_energy (repeatable)")]
UnitOptions = Annotated[
    list[str] | None, typer.Option("--unit", help="units of the file, e.g. energy=kcal/mol (repeatable)")
]
AsPrecision = Annotated[Precision | None, typer.Option(help="override the model's precision", show_default="the model's")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")]
Force = Annotated[bool, typer.Option("--force", help="overwrite an existing trajectory")]


@app.command(epilog="Example: mlff train configs/silicon.yaml --out runs/si --set training.epochs=50")
def train(
    config: Annotated[Path, typer.Argument(help="training configuration (YAML)", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="directory of the run; resumes if it exists", show_default="runs/<name>")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="override a key: key=value, e.g. optimizer.learning_rate=0.005")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check config and data, print what would happen, train nothing")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a potential from a config file; the model is OUT/model.safetensors. Run again, it resumes."""
    from mlff.config import load_config

    settings = load_config(config, set_ or [])
    out = Path("runs") / config.stem if out is None else out
    if dry_run:
        from mlff.report.plan import print_plan

        print_plan(settings, out)
        return
    from mlff.runtime import use_compilation_cache
    from mlff.training.loop import train as run_training

    use_compilation_cache()
    run_training(settings, out, progress=not quiet)
    if (out / "metrics.jsonl").exists():
        from mlff.report import plots

        plots.learning_curve(out / "metrics.jsonl", out / "learning_curve.png", title=config.stem)
    print(out / "model.safetensors")


@app.command(epilog="Example: mlff evaluate runs/si/model.safetensors test.xyz --json errors.json --plot parity.png")
def evaluate(
    model: Model,
    data: DataFile,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the errors (meV, meV/Å, meV/Å³) to this file")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="write parity plots to this PNG file")] = None,
    key: Keys = None,
    unit: UnitOptions = None,
    precision: AsPrecision = None,
    quiet: Quiet = False,
) -> None:
    """Errors of a model on labelled data: energies in meV, forces in meV/Å, stresses in meV/Å³."""
    keep_inputs([json_file, plot], [model, data])
    from rich.console import Console

    from mlff.report import plots
    from mlff.training.metrics import compare

    potential = _load(model, precision)
    dataset = _read_data(data, key, unit, progress=not quiet)
    structures = list(dataset)
    if not structures:
        raise DataError(f"{data}: no structures to evaluate")
    stress = any(structure.stress is not None for structure in structures)
    results = potential.predict(structures, stress=stress, progress=not quiet)
    metrics = compare(structures, results)
    Console().print(metrics.table(f"{model} on {data}"))
    if json_file is not None:
        content = {"model": str(model), "data": str(data), "fingerprint": dataset.fingerprint, **metrics.to_dict()}
        write_text(json_file, json.dumps(content, indent=2) + "\n")
    if plot is not None:
        plots.parity(structures, results, plot, title=data.name)


@app.command(epilog="Example: mlff predict runs/si/model.safetensors candidates.xyz predicted.xyz --stress")
def predict(
    model: Model,
    structures: Annotated[Path, typer.Argument(metavar="IN", help="structures, any format ASE reads", show_default=False)],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="extended XYZ file to write (.xyz, .extxyz)", show_default=False)
    ],
    stress: Annotated[bool, typer.Option("--stress", help="stresses too (eV/Å³; three-dimensional cells only)")] = False,
    precision: AsPrecision = None,
    quiet: Quiet = False,
) -> None:
    """Write structures with mlff_energy (eV), mlff_forces (eV/Å) and mlff_stress (eV/Å³); what IN holds stays as it is."""
    keep_inputs([out], [model, structures])
    from mlff.report.structures import write_predictions

    count = write_predictions(_load(model, precision), structures, out, stress=stress, progress=not quiet)
    print(f"{out}: {count:,} structures")


@app.command(
    epilog="Example: mlff md runs/si/model.safetensors si.xyz --ensemble npt --temperature 300 --steps 20000 --out npt.traj"
)
def md(
    model: Model,
    structure: StructureFile,
    out: Annotated[Path, typer.Option(help="trajectory to write: .traj, .xyz or .extxyz", show_default=False)],
    ensemble: Annotated[
        Literal["nve", "nvt", "npt"], typer.Option(help="what is kept: energy, temperature, or temperature and pressure")
    ] = "nvt",
    temperature: Annotated[float, typer.Option(help="K; the initial velocities' and the thermostat's")] = 300.0,
    timestep: Annotated[float, typer.Option(help="time step, fs")] = 0.5,
    steps: Annotated[int, typer.Option(help="number of time steps in all")] = 1000,
    pressure: Annotated[float, typer.Option(help="GPa, for npt")] = 0.0,
    thermostat: Annotated[Literal["langevin", "bussi"], typer.Option(help="for nvt")] = "langevin",
    tau: Annotated[float, typer.Option(help="relaxation time of the thermostat, fs (Langevin: 1/friction)")] = 100.0,
    tau_pressure: Annotated[float, typer.Option(help="relaxation time of the barostat, fs")] = 1000.0,
    interval: Annotated[int, typer.Option(help="steps between frames and log lines")] = 10,
    log: Annotated[Path | None, typer.Option(help="log: .jsonl, or .csv", show_default="OUT with .jsonl")] = None,
    plot: Annotated[Path | None, typer.Option(help="write temperature and energy over time to this PNG file")] = None,
    seed: Annotated[int, typer.Option(help="seed of velocities and thermostat")] = 0,
    keep_velocities: Annotated[
        bool, typer.Option("--keep-velocities", help="start with the velocities of the file")
    ] = False,
    frame: Frame = -1,
    restart: Annotated[
        bool, typer.Option("--restart", help="continue the run that wrote OUT, up to --steps steps in all")
    ] = False,
    skin: Annotated[float, typer.Option(help="skin of the neighbour list, Å")] = 0.5,
    max_force: Annotated[float, typer.Option(help="stop when a force gets larger, eV/Å")] = 300.0,
    max_temperature: Annotated[
        float | None, typer.Option(help="stop when it gets hotter, K", show_default="10 x, 5000 or more")
    ] = None,
    precision: AsPrecision = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Molecular dynamics with a trajectory, a log and a state to restart from; stops when the run blows up."""
    log = out.with_suffix(".jsonl") if log is None else log
    keep_inputs([out, log, plot], [model, structure])
    from mlff.simulation.guard import Limits
    from mlff.simulation.md import run_md
    from mlff.simulation.record import check_trajectory_name

    check_trajectory_name(out)
    if out.exists() and not (restart or force):
        raise DataError(f"{out}: exists; --restart continues it, --force overwrites it")
    atoms = _read_structure(structure, frame)
    calculator = _calculator(model, precision, skin)
    with _about(structure):
        summary = run_md(
            atoms,
            calculator,
            ensemble=ensemble,
            temperature=temperature,
            timestep=timestep,
            steps=steps,
            pressure=pressure,
            thermostat=thermostat,
            tau=tau,
            tau_pressure=tau_pressure,
            trajectory=out,
            log=log,
            interval=interval,
            seed=seed,
            keep_velocities=keep_velocities,
            restart=restart,
            limits=Limits(force=max_force, temperature=max_temperature),
            progress=not quiet,
        )
    from mlff.report import plots, tables

    if plot is not None:
        plots.md(log, plot, title=f"{structure.name}, {ensemble.upper()}, {temperature:g} K")
    print(tables.md(summary))
    print(f"{out}, {log}")


@app.command(epilog="Example: mlff relax runs/si/model.safetensors si.xyz --cell --out relaxed.xyz")
def relax(
    model: Model,
    structure: StructureFile,
    out: Annotated[
        Path | None, typer.Option(help="relaxed structure, any format ASE writes", show_default="NAME.relaxed.xyz")
    ] = None,
    cell: Annotated[bool, typer.Option("--cell", help="relax the cell too")] = False,
    fmax: Annotated[float, typer.Option(help="stop when no force is larger, eV/Å")] = 0.01,
    pressure: Annotated[float, typer.Option(help="GPa, with --cell")] = 0.0,
    steps: Annotated[int, typer.Option(help="give up after so many steps")] = 500,
    optimizer: Annotated[
        Literal["auto", "bfgs", "fire"], typer.Option(help="auto: BFGS up to 200 atoms, FIRE beyond")
    ] = "auto",
    trajectory: Annotated[Path | None, typer.Option(help="write all steps: .traj, .xyz or .extxyz")] = None,
    frame: Frame = -1,
    precision: AsPrecision = None,
    quiet: Quiet = False,
) -> None:
    """Relax a structure, with --cell also its cell. Exit code 1 if it does not converge (the last structure is written)."""
    out = structure.with_suffix(".relaxed.xyz") if out is None else out
    keep_inputs([out, trajectory], [model, structure])
    from mlff.report.structures import write_relaxed
    from mlff.simulation.relax import relax as run_relaxation

    atoms = _read_structure(structure, frame)
    calculator = _calculator(model, precision)
    with _about(structure):
        result = run_relaxation(
            atoms,
            calculator,
            fmax=fmax,
            cell=cell,
            pressure=pressure,
            steps=steps,
            optimizer=optimizer,
            trajectory=trajectory,
            progress=not quiet,
        )
    write_relaxed(atoms, out)
    change = f"{result.energy:.6f} eV ({result.energy_change:+.6f})"
    print(f"{result.steps} steps: {change}, largest force {result.forces_max:.2g} eV/Å")
    if cell:
        lengths, angles = atoms.cell.lengths(), atoms.cell.angles()
        print(f"cell {_join(lengths, '.4f')} Å, {_join(angles, '.2f')} degrees, volume {result.volume:.3f} Å³")
    print(out)
    if not result.converged:
        raise DataError(result.warning or f"not converged after {steps} steps")
    if result.warning:
        _say("warning", result.warning)


@app.command(epilog="Example: mlff lint train.xyz test.xyz --unit forces=Hartree/Bohr --plot lint.png")
def lint(
    data: Annotated[list[Path], typer.Argument(help="reference data, one or several files", show_default=False)],
    key: Keys = None,
    unit: UnitOptions = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the report to this file")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw labels, distances and comparisons in this PNG file")] = None,
    max_examples: Annotated[int, typer.Option(min=0, help="structures named per finding")] = 3,
    quiet: Quiet = False,
) -> None:
    """What data hold and what is suspicious in them: units, signs, copies, outliers. Exit code 1 on a contradiction."""
    keep_inputs([json_file, plot], data)
    from rich.console import Console

    from mlff.data.lint import lint as look
    from mlff.report import plots, tables

    dataset = _read_data(data, key, unit, progress=not quiet)
    report = look(dataset)
    Console().print(tables.lint(report, ", ".join(map(str, data)), max_examples))
    if json_file is not None:
        write_text(json_file, json.dumps(report.to_dict(), indent=2) + "\n")
    if plot is not None:
        plots.lint(dataset.structures, report, plot, title=", ".join(file.name for file in data))
    if errors := report.of("error"):
        raise DataError(f"{data[0]}: {errors[0].line()}" + (f"; and {len(errors) - 1} more" if len(errors) > 1 else ""))


@app.command(epilog="Examples: mlff info runs/si/model.safetensors; mlff info data/silicon/train.xyz")
def info(
    file: Annotated[
        Path,
        typer.Argument(metavar="MODEL|DATA", help="a model file, a run directory or reference data", show_default=False),
    ],
    key: Keys = None,
    unit: UnitOptions = None,
) -> None:
    """What a model was trained on and how well, or what a data file holds."""
    from rich.console import Console

    from mlff.report import tables

    if file.is_dir() or file.suffix == ".safetensors":
        Console().print(tables.model(_load(file), file))
    else:
        Console().print(tables.data(_read_data(file, key, unit, progress=True), file))


@app.command(
    epilog="Example: mlff schema > mlff.schema.json, and in the config: # yaml-language-server: $schema=mlff.schema.json"
)
def schema() -> None:
    """The JSON schema of the training configuration, for completion and checks in editors."""
    from mlff.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False))


def main() -> None:
    """Entry point of the `mlff` command."""
    app()


def _load(path: Path, precision: Precision | None = None) -> Potential:
    from mlff.potential import Potential
    from mlff.runtime import use_compilation_cache

    use_compilation_cache()
    potential = Potential.load(path / "model.safetensors" if path.is_dir() else path)
    return potential if precision is None else potential.with_precision(precision)


def _calculator(model: Path, precision: Precision | None, skin: float = 0.5):
    from mlff.calculator import MLFFCalculator

    return MLFFCalculator(_load(model, precision), skin=skin)


def _read_data(path: Path | list[Path], key: list[str] | None, unit: list[str] | None, progress: bool):
    from mlff.config import KeyNames, Units
    from mlff.data.dataset import read_dataset

    return read_dataset(path, keys=_pairs(KeyNames, "--key", key), units=_pairs(Units, "--unit", unit), progress=progress)


def _pairs(section, option: str, texts: list[str] | None):
    """An options section of the config from name=value texts; None without any."""
    if not texts:
        return None
    import pydantic

    values = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or name not in section.model_fields:
            raise ConfigError(f"{option} {text}: expected name=value with name one of {', '.join(section.model_fields)}")
        values[name] = value
    try:
        return section(**values)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{option} {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}") from None


def _read_structure(path: Path, frame: int) -> ase.Atoms:
    from mlff.report.structures import read_structure

    return read_structure(path, frame)


@contextmanager
def _about(structure: Path) -> Iterator[None]:
    """Errors inside name the file that the structure is from."""
    from mlff.simulation.guard import SimulationError

    try:
        yield
    except (SimulationError, StructureError) as error:
        raise type(error)(f"{structure}: {error}") from error


def _join(values, form: str) -> str:
    return " ".join(format(value, form) for value in values)
