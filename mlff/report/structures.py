"""Structure files in and out of the commands."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io.extxyz import write_extxyz
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mlff.data.formats import read_atoms
from mlff.data.structure import Structure
from mlff.errors import DataError, StructureError
from mlff.files import replacing
from mlff.potential import Potential

_CHUNK = 256  #: structures predicted, and held in memory, at a time


def read_structure(path: str | Path, frame: int = -1, length: str | None = None) -> ase.Atoms:
    """One structure of a file (frame 0 is the first, -1 the last) with lengths in this unit. Raises DataError."""
    path = Path(path)
    atoms = next(read_atoms(path, frame, length), None)
    if atoms is None:
        raise DataError(f"{path}: has no structure number {frame}")
    if len(atoms) == 0:
        raise DataError(f"{path}: the structure has no atoms")
    Structure.from_atoms(atoms, source=f"{path}, structure {frame}")
    return atoms


def write_predictions(
    potential: Potential, path: Path, out: Path, stress: bool = False, length: str | None = None, progress: bool = True
) -> int:
    """Copy the structures of `path` to `out` (extended XYZ) with mlff_energy, mlff_forces and, if asked, mlff_stress.

    Where the potential knows its training data, mlff_distance says how far each atom is from them (`Environments`); a
    committee's mlff_energy_std and mlff_forces_std say how far its members lie apart.

    Works chunk by chunk, so files may be larger than memory. Returns how many. Raises DataError, StructureError.
    """
    if out.suffix not in (".xyz", ".extxyz"):
        raise DataError(f"{out}: predictions go into extended XYZ; the name must end in .xyz or .extxyz")
    columns = TextColumn("predict"), MofNCompleteColumn(), TimeElapsedColumn()
    bar = Progress(*columns, console=Console(stderr=True), disable=not progress or not sys.stderr.isatty())
    frames = read_atoms(path, length=length)
    count = 0
    with replacing(out) as temporary, open(temporary, "w", encoding="utf-8") as file, bar:
        task = bar.add_task("", total=None)
        while chunk := list(itertools.islice(frames, _CHUNK)):
            structures = [
                Structure.from_atoms(atoms, source=f"{path}, structure {count + k}") for k, atoms in enumerate(chunk)
            ]
            if stress:
                _need_cells(structures)
            for atoms, result in zip(chunk, potential.predict(structures, stress=stress), strict=True):
                atoms.info["mlff_energy"] = result.energy
                atoms.arrays["mlff_forces"] = np.asarray(result.forces, np.float64)
                if potential.environments is not None:
                    atoms.arrays["mlff_distance"] = potential.environments.distances(Structure.from_atoms(atoms))
                if potential.members > 1:
                    atoms.info["mlff_energy_std"] = result.energy_std
                    atoms.arrays["mlff_forces_std"] = result.forces_std
                if stress:
                    atoms.info["mlff_stress"] = np.asarray(result.stress, np.float64)
                write_extxyz(file, [atoms])
            count += len(chunk)
            bar.update(task, completed=count)
        if count == 0:
            raise DataError(f"{path}: no structures")
    return count


def write_relaxed(atoms: ase.Atoms, out: Path) -> None:
    """The structure with mlff_energy and mlff_forces (extended XYZ), or in the format of the suffix. Raises DataError."""
    clean = atoms.copy()
    clean.calc = None
    clean.info["mlff_energy"] = float(atoms.get_potential_energy())
    clean.arrays["mlff_forces"] = atoms.get_forces(apply_constraint=False)
    try:
        clean.info["mlff_stress"] = atoms.get_stress(voigt=False)
    except PropertyNotImplementedError:
        pass
    with replacing(out) as temporary:
        try:
            ase.io.write(temporary, clean, format="extxyz" if out.suffix == ".xyz" else None)
        except OSError:
            raise
        except Exception as error:
            raise DataError(f"{out}: cannot be written: {error}") from None


def _need_cells(structures: list[Structure]) -> None:
    for structure in structures:
        if not structure.pbc.all():
            raise StructureError(
                f"{structure.source}: a stress needs a cell that is periodic in three directions; leave --stress out"
            )
