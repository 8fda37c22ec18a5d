"""npz archives of numpy arrays in the manner of sGDML and MD17, of rMD17, of PhysNet and of NequIP."""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlff.basics.errors import DataError
from mlff.data.facts import Facts, Reading
from mlff.data.readers.arrays import check_size, elements, numbers, rows


class _Manner(NamedTuple):
    """Keys of one convention; `count` and `cell` may be absent from an archive, and the labels too."""

    positions: str  #: (n, N, 3)
    species: str  #: (N,) or (n, N), zeros at the end being padding
    energy: str  #: (n,) or (n, 1)
    forces: str  #: (n, N, 3)
    cell: str = ""  #: (3, 3) or (n, 3, 3), rows are vectors (sGDML's lattice: columns)
    count: str = ""  #: (n,), atoms that are no padding


_MANNERS = {
    "PhysNet": _Manner("R", "Z", "E", "F", count="N"),
    "sGDML": _Manner("R", "z", "E", "F", cell="lattice"),
    "rMD17": _Manner("coords", "nuclear_charges", "energies", "forces"),
    "NequIP": _Manner("pos", "atomic_numbers", "energy", "forces", cell="cell"),
}
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path) -> Reading:
    """The units are the user's business, unless sGDML's `r_unit` and `e_unit` state them. Pickled objects are not loaded."""
    shapes = array_shapes(path)
    manner = _manner(shapes)
    shape = shapes[manner.positions]
    n, size, _ = shape
    with np.load(path, allow_pickle=False) as archive:
        load = partial(_load, archive, shapes)
        species = elements(load(manner.species, (size,), (n, size)), f"key {manner.species!r}")
        if manner.count in shapes:
            species = _padded(species, load(manner.count, (n,), (n, 1)).reshape(n), n, size, manner.count)
        positions = numbers(load(manner.positions, shape), shape, f"key {manner.positions!r}")
        cells, pbc = None, None
        if manner.cell in shapes:
            cells = np.broadcast_to(load(manner.cell, (3, 3), (n, 3, 3)), (n, 3, 3))
            cells = cells.swapaxes(1, 2) if manner.cell == "lattice" else cells
            pbc = np.broadcast_to(load("pbc", (3,), (n, 3)), (n, 3)).astype(bool) if "pbc" in shapes else None
        columns = {key: load(key, (n,), (n, 1)) for key in {manner.energy} & shapes.keys()}
        columns |= {key: load(key, shape) for key in {manner.forces} & shapes.keys()}
        used = {*manner, *columns, "pbc"}
        columns |= {key: archive[key] for key, there in shapes.items() if key not in used and there and there[0] == n}
        units = {name: load(key, ()) for name, key in (("length", "r_unit"), ("energy", "e_unit")) if key in shapes}
    stated = {name: str(text.astype(str)) for name, text in units.items()}
    facts = Facts(in_file=stated, keys={"energy": manner.energy, "forces": manner.forces})
    return Reading(rows(species, positions, columns, cells, pbc), facts)


def _manner(shapes: dict) -> _Manner:
    """The convention that the keys follow; its positions have three axes, and nothing of it is pickled."""
    manner = next((manner for manner in _MANNERS.values() if {manner.positions, manner.species} <= shapes.keys()), None)
    if manner is None:
        known = "; ".join(f"{name}: {', '.join(filter(None, manner))}" for name, manner in _MANNERS.items())
        raise DataError(f"no known set of keys, found {', '.join(shapes)[:200] or 'none'} (known are {known})")
    pickled = next((key for key in manner if shapes.get(key, ()) is None), None)
    if pickled is not None:
        raise DataError(
            f"key {pickled!r} holds Python objects, which are not loaded (they could run code); save plain numbers"
        )
    shape = shapes[manner.positions]
    if 0 in shape[:2]:
        raise DataError(f"holds no structures: key {manner.positions!r} has the shape {shape}")
    if len(shape) != 3 or shape[2] != 3:
        raise DataError(f"key {manner.positions!r} has the shape {shape} where (structures, atoms, 3) is expected")
    return manner


def _load(archive, shapes: dict, key: str, *expected: tuple[int, ...]) -> np.ndarray:
    if shapes[key] not in expected:
        raise DataError(f"key {key!r} has the shape {shapes[key]} where {' or '.join(map(str, expected))} is expected")
    return archive[key]


def array_shapes(path: Path) -> dict[str, tuple[int, ...] | None]:
    """Key -> shape from the headers of an archive's arrays, whose sizes are checked (DataError); None for pickled objects."""
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        check_size(sum(member.file_size for member in members), path.stat().st_size, "the archive")
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise DataError("the archive is packed in a way that numpy does not write; is the file damaged?")
        names = Counter(member.filename.removesuffix(".npy") for member in members)
        if names and max(names.values()) > 1:  # which one numpy takes is a matter of luck
            raise DataError(f"key {names.most_common(1)[0][0]!r} stands there twice; is the file damaged?")
        for member in members:
            if not member.filename.endswith(".npy"):
                continue
            key = member.filename.removesuffix(".npy")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version not in _HEADERS:
                    raise DataError(f"key {key!r} is an array of format {version}, which is not read")
                shape, _, dtype = _HEADERS[version](file)
                start = file.tell()
            if dtype.kind not in "biufSU" or dtype.itemsize == 0:
                shapes[key] = None
                continue
            if start + math.prod(shape) * dtype.itemsize != member.file_size:
                raise DataError(
                    f"key {key!r} promises the shape {shape}, but holds {member.file_size} bytes; is the file damaged?"
                )
            shapes[key] = shape
    return shapes


def _padded(species, count, n, size, key) -> np.ndarray:
    """Species (n, N) with zeros behind the atoms that count."""
    if count.dtype.kind not in "iu" or (count < 1).any() or (count > size).any():
        raise DataError(f"key {key!r}: numbers of atoms between 1 and {size} are expected")
    species = np.broadcast_to(species, (n, size))
    inside = np.arange(size) < count[:, None]
    holes = (inside & (species == 0)).any(axis=1)
    if holes.any():
        raise DataError(f"key {key!r}: counts more atoms than there are atomic numbers in structure {int(holes.argmax())}")
    return np.where(inside, species, 0)
