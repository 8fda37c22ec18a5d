"""`mlff pretrain` and `mlff map`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mlff.basics.files import PNG, check_outputs, write_text
from mlff.cli.app import app
from mlff.cli.learn import ConfigFile, Out, Set, plot_run
from mlff.cli.options import JsonFile, Keys, Model, Quiet, UnitOptions, load, read_data


@app.command(
    epilog="Example: mlff pretrain configs/malonaldehyde.yaml --set pretraining.method=denoising --out runs/denoised"
)
def pretrain(config: ConfigFile, out: Out = None, set_: Set = None, quiet: Quiet = False) -> None:
    """Learn from structures without labels, for `mlff finetune OUT CONFIG` to start from. Run again, it resumes.

    The section pretraining of the config says how. The model has no energies before it was fine-tuned.
    """
    from mlff.basics.runtime import use_compilation_cache
    from mlff.config.load import load_config
    from mlff.training.pretrain import pretrain as run

    settings = load_config(config, set_ or [])
    out = Path("runs") / f"{config.stem}_pretrained" if out is None else out
    use_compilation_cache()
    run(settings, out, progress=not quiet)
    if (out / "metrics.jsonl").exists():
        plot_run(out, config.stem)
    print(out / "model.safetensors")


@app.command("map", epilog="Example: mlff map runs/si_pretrained trajectory.xyz --color phase --out map.png")
def map_(
    model: Model,
    data: Annotated[Path, typer.Argument(help="structures or a trajectory", show_default=False)],
    out: Annotated[Path, typer.Option(help="PNG file to write")],
    color: Annotated[
        str | None,
        typer.Option(help="energy (per atom), element (with --atoms), or an info key", show_default="place in the file"),
    ] = None,
    atoms: Annotated[bool, typer.Option("--atoms", help="a point for each atom instead of each structure")] = False,
    neighbors: Annotated[int, typer.Option(min=1, help="nearest points that vote where an info key names kinds")] = 5,
    json_file: JsonFile = None,
    key: Keys = None,
    unit: UnitOptions = None,
    quiet: Quiet = False,
) -> None:
    """Draw structures, or their atoms, as points: the two principal components of a model's features, like near like.

    Where the info key of --color names kinds (a phase), each point is also classified by those nearest to it.
    """
    check_outputs([(out, PNG), (json_file, ())], [model, data])
    from mlff.properties.feature_map import feature_map
    from mlff.report.feature_map import plot

    potential = load(model, pretrained=True)
    found = feature_map(potential, read_data(data, key, unit, not quiet), color, atoms, neighbors)
    print(found.text())
    plot(found, out, data.name)
    if json_file is not None:
        content = {"model": str(model), "data": str(data), **found.to_dict()}
        write_text(json_file, json.dumps(content, indent=2) + "\n")
