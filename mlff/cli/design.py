"""`mlff design`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mlff.basics.files import EXTXYZ, check_outputs, replacing, write_text
from mlff.cli.app import app, say
from mlff.cli.learn import Set
from mlff.cli.options import JsonFile, Quiet


@app.command(epilog="Example: mlff design configs/design/malonaldehyde.yaml --out designed.xyz --json design.json")
def design(
    config: Annotated[Path, typer.Argument(help="model, structure, what is free, and targets (YAML)", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            help="extended XYZ: the minimum, then the structures found, the best first; of a condition the last frame of the run there; of a composition all decorations",
            show_default=False,
        ),
    ],
    json_file: JsonFile = None,
    set_: Set = None,
    quiet: Quiet = False,
) -> None:
    """Find structures that have a wanted property, each of the least energy nearby; or the condition of a run, or the composition of a
    mixture, with a wanted mean.

    Properties: gap of the energies of two models, energy difference of two structures, pressure, stress. Conditions: temperature or
    volume, for a mean pressure. Compositions: share of an element, for a volume, a density or an energy of mixing.
    """
    from rich.console import Console

    from mlff.basics.runtime import use_compilation_cache
    from mlff.config.composition import Composition
    from mlff.config.condition import Condition
    from mlff.config.design import Design, load_design
    from mlff.data.writing import write_frames
    from mlff.design.composition import find_composition
    from mlff.design.condition import find_condition
    from mlff.design.design import design as find_structures
    from mlff.report import designs

    settings = load_design(config, set_ or [])
    find, table = {
        Design: (find_structures, designs.structures),
        Condition: (find_condition, designs.condition),
        Composition: (find_composition, designs.composition),
    }[type(settings)]
    sections = (settings, *settings.targets) if isinstance(settings, Design) else (settings,)
    named = [one for section in sections for one in section.files()]
    inputs = [Path(one) for one in named]
    check_outputs([(out, EXTXYZ), (json_file, ())], [config, *inputs])
    use_compilation_cache()
    frames, outcome = find(settings, progress=not quiet)
    with replacing(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        write_frames(file, frames)
    if json_file is not None:
        write_text(json_file, json.dumps(outcome.to_dict(), indent=2))
    Console(stderr=True).print(table(outcome))
    for line in outcome.notes:
        say("note", line)
    print(out)
