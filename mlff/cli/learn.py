"""`mlff train`, `mlff finetune`, `mlff plot`, `mlff plasticity`, `mlff committee` and `mlff schema`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlff.basics.files import check_outputs, write_text
from mlff.cli.app import app, say
from mlff.cli.measure import write_certificate
from mlff.cli.options import Length, Model, Quiet, load, model_file, read_data

if TYPE_CHECKING:
    from mlff.config.options import Config
    from mlff.data.dataset import Splits
    from mlff.potential.potential import Potential


ConfigFile = Annotated[Path, typer.Argument(help="training configuration (YAML)", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="directory of the run; resumes if it exists", show_default="runs/<name>")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="override a key: key=value, e.g. optimizer.learning_rate=0.005")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check config and data, print what would happen, train nothing")]
Certify = Annotated[
    bool, typer.Option("--certify/--no-certify", help="check the potential at the end, as `mlff certify` does")
]


@app.command(epilog="Example: mlff train configs/silicon.yaml --out runs/si --set training.epochs=50")
def train(
    config: ConfigFile,
    out: Out = None,
    set_: Set = None,
    dry_run: DryRun = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="try learning rates for 150 steps, draw OUT/learning_rate.png, train nothing")
    ] = False,
    certify: Certify = True,
    quiet: Quiet = False,
) -> None:
    """Train a potential from a config file; the model is OUT/model.safetensors. Run again, it resumes."""
    from mlff.config.load import load_config

    settings = load_config(config, set_ or [])
    out = Path("runs") / config.stem if out is None else out
    if dry_run:
        from mlff.report.plan import print_plan

        print_plan(settings, out)
        return
    if find_lr:
        _find_learning_rate(settings, out, config.stem)
        return
    if _run(settings, out, config.stem, None, certify, quiet) is not None:
        print(out / "model.safetensors")


@app.command(epilog="Example: mlff finetune runs/xtb configs/malonaldehyde.yaml --set 'optimizer.plasticity={layer_0/*: 0}'")
def finetune(
    model: Model,
    config: ConfigFile,
    out: Out = None,
    set_: Set = None,
    dry_run: DryRun = False,
    certify: Certify = True,
    quiet: Quiet = False,
) -> None:
    """Train on from a model with the data of a config, of another method or on other structures; errors before and after.

    optimizer.plasticity gives parameters their own learning rates, data.replay keeps old data in mind.
    """
    from mlff.config.load import load_config

    settings = load_config(config, set_ or []).model_copy(update={"finetune_from": str(model_file(model))})
    out = Path("runs") / f"{config.stem}_fine" if out is None else out
    if dry_run:
        from mlff.report.plan import print_plan

        print_plan(settings, out)
        return
    from mlff.data.dataset import load_data
    from mlff.training import second_readout
    from mlff.training.start import before_and_after

    splits = load_data(settings.data, settings.seed, settings.loss, not quiet)
    potential = _run(settings, out, config.stem, splits, certify, quiet)
    if potential is None:
        return
    own = splits.replay is not None and settings.data.replay_readout == "own"
    replayed = load(out / second_readout.FILE) if own else None
    rows = before_and_after(load(model, pretrained=True), potential, splits, replayed)
    write_text(out / "finetuning.json", json.dumps(rows, indent=2))
    if not quiet:
        from rich.console import Console

        from mlff.report.tables import finetuning

        Console(stderr=True).print(finetuning(rows))
    print(out / "model.safetensors")


@app.command(epilog="Example: mlff plasticity runs/xtb xtb.xyz --out factors.safetensors")
def plasticity(
    model: Model,
    data: Annotated[Path, typer.Argument(help="structures that the model was trained on", show_default=False)],
    out: Annotated[Path, typer.Option(help="file to write, for optimizer.plasticity_map")],
    count: Annotated[int, typer.Option(min=1, help="structures to look at, at most")] = 200,
    length: Length = None,
    quiet: Quiet = False,
) -> None:
    """Factors on the learning rate of every parameter: small where the results on these data depend on it much."""
    check_outputs([(out, (".safetensors",))], [model, data])
    import numpy as np

    from mlff.training.plasticity import describe_map, importance, save

    potential = load(model)
    dataset = read_data(data, None, None if length is None else [f"length={length}"], not quiet)
    chosen = np.random.default_rng(0).permutation(len(dataset))[:count]
    values = importance(potential, dataset.subset(np.sort(chosen)))
    save(out, values)
    for line in describe_map(values):
        say("note", line)
    print(out)


def _run(settings: Config, out: Path, title: str, splits: Splits | None, certify: bool, quiet: bool) -> Potential | None:
    """Train, with learning curve, certificate and report beside the model; None in all processes but the first."""
    import jax

    from mlff.basics.runtime import use_compilation_cache
    from mlff.potential.modelfile import CERTIFICATE
    from mlff.training.train import train as run_training

    use_compilation_cache()
    potential = run_training(settings, out, progress=not quiet, data=splits)
    if jax.process_index() > 0:
        return None
    if (out / "metrics.jsonl").exists():
        plot_run(out, title)
    model = out / "model.safetensors"
    if certify and CERTIFICATE not in potential.metadata:
        certificate = write_certificate(potential, model, [], out / "certificate.png", quiet)
        for line in certificate.failed:
            say("warning", f"the potential fails a check: {line}")
        potential = replace(potential, metadata=potential.metadata | {CERTIFICATE: certificate.to_dict()})
    _write_report(potential, model)
    return potential


def _find_learning_rate(settings: Config, out: Path, title: str) -> None:
    from mlff.basics.files import writing
    from mlff.basics.runtime import use_compilation_cache
    from mlff.report import plots
    from mlff.training.train import find_learning_rate

    use_compilation_cache()
    found = find_learning_rate(settings)
    picture = out / "learning_rate.png"
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    plots.range_test(found, picture, title)
    if found.suggestion is None:
        say("warning", f"the loss fell at no learning rate up to {found.rates[-1]:.2g}: look at the data and at {picture}")
    else:
        chosen = settings.optimizer.learning_rate
        print(f"optimizer.learning_rate: {found.suggestion:g} (now {chosen:g}); {picture}")


@app.command(epilog="Example: mlff plot runs/malonaldehyde")
def plot(
    run: Annotated[Path, typer.Argument(help="directory of a training, finished or at work", show_default=False)],
) -> None:
    """Draw errors, and gradients, updates and saturation of the layers, over the epochs: RUN/learning_curve.png, RUN/layers.png."""
    for path in plot_run(run, run.name):
        print(path)


def plot_run(out: Path, title: str) -> list[Path]:
    """Learning curve and layers of a run; the files that were written."""
    from mlff.basics.errors import DataError
    from mlff.report import plots

    drawn = [out / "learning_curve.png"]
    plots.learning_curve(out / "metrics.jsonl", drawn[0], title=title)
    try:
        plots.layers(out / "metrics.jsonl", out / "layers.png", title=title)
        drawn.append(out / "layers.png")
    except DataError as error:  # a training of an earlier version, or shorter than an epoch
        say("note", str(error))
    return drawn


def _write_report(potential: Potential, model: Path) -> None:
    """The report beside the model, which is saved: that one cannot be written is a warning."""
    from mlff.report.html import FILE, write_report

    try:
        write_report(potential, model, model.with_name(FILE))
    except Exception as error:  # noqa: BLE001  of plots too
        say("warning", f"no report: {error}; with mlff info {model.parent} --html FILE it can be written later")


@app.command(
    epilog="Example: for i in 0 1 2; do mlff train si.yaml --set member=$i --out runs/si_$i; done; "
    "mlff committee runs/si_0 runs/si_1 runs/si_2 --out runs/si.safetensors"
)
def committee(
    models: Annotated[
        list[Path], typer.Argument(help="trained models or directories of runs, two or more", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="model file to write")],
    certify: Annotated[bool, typer.Option("--certify/--no-certify", help="check it, as `mlff certify` does")] = True,
    quiet: Quiet = False,
) -> None:
    """Join models that differ by `member` alone: their mean is more accurate, their spread says where not to trust it."""
    check_outputs([(out, (".safetensors",))], models)
    from mlff.potential.committee import committee as join

    potential = join([load(model) for model in models], [str(model) for model in models])
    potential.save(out)
    if certify:
        for line in write_certificate(potential, out, [], None, quiet).failed:
            say("warning", f"the potential fails a check: {line}")
    print(out)


@app.command(
    epilog="Example: mlff schema > mlff.schema.json, and in the config: # yaml-language-server: $schema=mlff.schema.json"
)
def schema() -> None:
    """The JSON schema of the training configuration, for completion and checks in editors."""
    from mlff.config.options import Config

    print(json.dumps(Config.model_json_schema(), indent=2))
