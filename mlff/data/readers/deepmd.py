"""DeePMD systems: a folder with type.raw, type_map.raw, perhaps nopbc, and set.*/{coord,box,energy,force,virial}.npy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np

from mlff.basics.errors import DataError
from mlff.data.facts import Facts, Reading
from mlff.data.readers.arrays import elements

_FACTS = Facts(by_format={"energy": "eV", "length": "Angstrom", "virial_sign": "minus_stress"})


def is_deepmd(folder: Path) -> bool:
    """A folder that holds one system."""
    return folder.is_dir() and (folder / "type.raw").is_file()


def read_deepmd(folder: Path) -> Reading:
    """Sets in alphabetical order; eV, Å, and virial = -stress * volume. Files of mixed types are read too."""
    names = elements(_words(folder / "type_map.raw"), "type_map.raw")
    try:
        types = np.array([int(word) for word in _words(folder / "type.raw")])
    except ValueError:
        raise DataError("type.raw: whole numbers are expected, one per atom") from None
    if not len(types):
        raise DataError("type.raw: names no atoms")
    sets = sorted(folder.glob("set.*/"))
    if not sets:
        raise DataError("has no set.* folders with npy files; convert the raw files with dpdata or raw_to_set.sh")
    return Reading(_frames(sets, types, names, periodic=not (folder / "nopbc").exists()), _FACTS)


def _frames(sets, types, names, periodic) -> Iterator[ase.Atoms]:
    for folder in sets:
        coord = _load(folder / "coord.npy", 3 * len(types))
        if coord is None:
            raise DataError(f"{folder.name}/coord.npy is missing")
        labels = {key: _load(folder / f"{key}.npy", width, len(coord)) for key, width in _widths(len(types)).items()}
        box = labels.pop("box")
        mixed = labels.pop("real_atom_types")
        if periodic and box is None:
            raise DataError(f"{folder.name}/box.npy is missing; a system without cells is marked by an empty file nopbc")
        for index, row in enumerate(coord):
            kinds = types if mixed is None else mixed[index].astype(int)
            real = kinds >= 0 if mixed is not None else np.ones(len(kinds), dtype=bool)
            if (kinds[real] < 0).any() or (kinds[real] >= len(names)).any():
                raise DataError(f"type {kinds[real].max()} does not stand in type_map.raw, which names {len(names)} types")
            atoms = ase.Atoms(names[kinds[real]], positions=row.reshape(-1, 3)[real])
            if periodic:
                atoms.cell, atoms.pbc = box[index].reshape(3, 3), True
            for key, rows in labels.items():
                if rows is not None and key == "force":
                    atoms.arrays[key] = rows[index].reshape(-1, 3)[real]
                elif rows is not None:
                    atoms.info[key] = np.array(rows[index])
            yield atoms


def _widths(atoms: int) -> dict[str, int]:
    return {"box": 9, "energy": 1, "force": 3 * atoms, "virial": 9, "real_atom_types": atoms}


def _load(file: Path, width: int, count: int | None = None) -> np.ndarray | None:
    """An array (count, width), mapped from the file; None if there is no file."""
    name = f"{file.parent.name}/{file.name}"
    if not file.exists():
        return None
    try:
        array = np.lib.format.open_memmap(file, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: is no whole npy file of numbers ({' '.join(str(error).split())[:100]})") from None
    if array.dtype.kind not in "iuf":
        raise DataError(f"{name}: holds {array.dtype}, not numbers")
    rows = len(array) if array.ndim and count is None else count
    if array.size != (rows or 0) * width or array.ndim == 0:
        raise DataError(
            f"{name}: has the shape {array.shape} where {('structures' if count is None else count, width)} is expected"
        )
    return array.reshape(rows, width)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except OSError as error:
        raise DataError(f"{file.name}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    except UnicodeDecodeError:
        raise DataError(f"{file.name}: is no text") from None
