"""Structure files in and out of the commands."""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import sys
import tempfile
import warnings
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io.formats import UnknownFileTypeError, filetype, ioformats
from ase.stress import voigt_6_to_full_3x3_stress
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mlff.basics.errors import DataError, StructureError
from mlff.basics.files import COMPRESSED, EXTXYZ, check_output, replacing
from mlff.data.formats import read_atoms
from mlff.data.structure import Structure
from mlff.data.writing import tell_left_out, write_frames
from mlff.potential.potential import Potential

_GOOD = ", e.g. relaxed.xyz, relaxed.cif or POSCAR"
_RELAXED = "mlff_energy", "mlff_forces", "mlff_stress", "converged"  #: what relaxed structures carry
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
    committee's mlff_energy_std and mlff_forces_std say how far its members lie apart. One warning names what extended XYZ
    does not hold.

    Works chunk by chunk, so files may be larger than memory. Returns how many. Raises DataError, StructureError.
    """
    check_output(out, EXTXYZ)
    columns = TextColumn("predict"), MofNCompleteColumn(), TimeElapsedColumn()
    bar = Progress(*columns, console=Console(stderr=True), disable=not progress or not sys.stderr.isatty())
    frames = read_atoms(path, length=length)
    count, left_out = 0, set()
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
                left_out |= write_frames(file, [atoms])
            count += len(chunk)
            bar.update(task, completed=count)
        if count == 0:
            raise DataError(f"{path}: no structures")
    tell_left_out(out, left_out)
    return count


def read_structures(path: str | Path, length: str | None = None) -> list[ase.Atoms]:
    """All structures of a file with lengths in this unit. Raises DataError: there are none, or one without atoms."""
    found = list(read_atoms(path, length=length))
    if not found:
        raise DataError(f"{path}: no structures")
    for index, atoms in enumerate(found):
        if len(atoms) == 0:
            raise DataError(f"{path}: structure {index} has no atoms")
        Structure.from_atoms(atoms, source=f"{path}, structure {index}")
    return found


def check_relaxed(atoms: ase.Atoms, out: Path) -> None:
    """Try before the work whether the structure can be written to `out`, and read again. Raises DataError, FileError."""
    check_output(out, (out.suffix,))
    form = _format(out)
    zeros = {"mlff_energy": 0.0} | ({"mlff_stress": np.zeros((3, 3))} if atoms.pbc.all() else {})
    trial = _unlabelled(atoms, zeros, np.zeros((len(atoms), 3)))
    with tempfile.TemporaryDirectory(prefix="mlff-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = Path(folder) / out.name
        try:
            _write(there, trial, form)
            again = ase.io.read(there, format=form) if form != "extxyz" else next(read_atoms(there))
        except Exception as error:  # noqa: BLE001  ASE's writers and readers raise anything
            text = " ".join(str(error).split())[:120] or type(error).__name__
            raise DataError(f"{out}: {form} does not hold this structure ({text}); choose another name{_GOOD}") from None
    same_cell = not atoms.pbc.any() or np.allclose(again.cell.cellpar(), atoms.cell.cellpar(), atol=0.01)
    if sorted(again.numbers) != sorted(atoms.numbers) or not same_cell:
        raise DataError(
            f"{out}: {form} does not hold this structure (it is read back as another); choose another name{_GOOD}"
        )


def write_relaxed(atoms: ase.Atoms, out: Path) -> None:
    """The structure with mlff_energy and mlff_forces (extended XYZ), or in the format of the suffix.

    One warning names what extended XYZ does not hold. Raises DataError.
    """
    info = {"mlff_energy": float(atoms.get_potential_energy())}
    try:
        info["mlff_stress"] = atoms.get_stress(voigt=False)
    except PropertyNotImplementedError:
        pass
    clean = _unlabelled(atoms, info, atoms.get_forces(apply_constraint=False))
    with replacing(out) as temporary:
        try:
            tell_left_out(out, _write(temporary, clean, _format(out)))
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  ASE's writers raise anything
            raise DataError(f"{out}: cannot be written: {error}") from None


def write_many_relaxed(structures: list[ase.Atoms], converged: list[bool], out: Path) -> None:
    """Structures in their order with mlff_energy, mlff_forces and mlff_stress, as far as their calculators know them.

    `converged` goes into the info of each. One warning names what extended XYZ does not hold. Raises DataError.
    """
    frames = []
    for atoms, done in zip(structures, converged, strict=True):
        results = getattr(atoms.calc, "results", {})
        info = {"mlff_energy": results["energy"]} if "energy" in results else {}
        if "stress" in results:
            info["mlff_stress"] = voigt_6_to_full_3x3_stress(results["stress"])
        frames.append(_unlabelled(atoms, info | {"converged": bool(done)}, results.get("forces")))
    with replacing(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        tell_left_out(out, write_frames(file, frames))


def _unlabelled(atoms: ase.Atoms, info: dict, forces: np.ndarray | None) -> ase.Atoms:
    """A copy without the labels of its file, with results of a potential."""
    clean = atoms.copy()
    clean.calc = None
    for name in _RELAXED:  # of an earlier relaxation
        clean.info.pop(name, None)
        clean.arrays.pop(name, None)
    clean.info |= info
    if forces is not None:
        clean.arrays["mlff_forces"] = forces
    return clean


def _format(out: Path) -> str:
    """ASE's name for the format that the name of a file says. Raises DataError: none that can be written and read."""
    name = out.with_suffix("").name if out.suffix in COMPRESSED else out.name
    if name.endswith(EXTXYZ):
        return "extxyz"
    try:
        form = filetype(name, read=False)
    except UnknownFileTypeError:
        form = None
    known = form in ioformats and ioformats[form].can_write and ioformats[form].can_read
    if not known or form == "bundletrajectory":
        raise DataError(f"{out}: the name tells no format that ASE writes and reads; choose another{_GOOD}")
    return form


def _write(path: Path, atoms: ase.Atoms, form: str) -> set[str]:
    """Write one structure; the name tells the compression. What was left out."""
    if form != "extxyz":
        ase.io.write(path, atoms, format=form)
        return set()
    opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as file:
        return write_frames(file, [atoms])


def _need_cells(structures: list[Structure]) -> None:
    for structure in structures:
        if not structure.pbc.all():
            raise StructureError(
                f"{structure.source}: a stress needs a cell that is periodic in three directions; leave --stress out"
            )
