"""`mlff refine`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlff.cli.app import app, say
from mlff.cli.learn import Certify, Set
from mlff.cli.measure import write_certificate
from mlff.cli.options import Quiet


@app.command(epilog="Example: mlff refine configs/refine/malonaldehyde.yaml --out runs/refined")
def refine(
    config: Annotated[Path, typer.Argument(help="model, data and targets (YAML)", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="directory of the result; resumes if it exists", show_default="runs/<name>_refined")
    ] = None,
    set_: Set = None,
    certify: Certify = True,
    quiet: Quiet = False,
) -> None:
    """Correct a trained model so that it gives observables, without losing energies and forces of the data.

    Observables: vibrational frequencies, elastic constants, volumes, energy and free energy differences, radial distribution functions,
    pressures, densities, diffusion. The model is OUT/model.safetensors.
    """
    from rich.console import Console

    from mlff.basics.runtime import use_compilation_cache
    from mlff.config.refinement import load_refinement
    from mlff.refinement.refine import MODEL
    from mlff.refinement.refine import refine as run
    from mlff.report.tables import refinement

    settings = load_refinement(config, set_ or [])
    out = Path("runs") / f"{config.stem}_refined" if out is None else out
    use_compilation_cache()
    potential, outcome = run(settings, out, progress=not quiet)
    model = out / MODEL
    console = Console(stderr=True)
    for table in refinement(outcome):
        console.print(table)
    for line in outcome.verdicts:
        say("note", line)
    if certify:
        for line in write_certificate(potential, model, [], out / "certificate.png", quiet).failed:
            say("warning", f"the potential fails a check: {line}")
    print(model)
