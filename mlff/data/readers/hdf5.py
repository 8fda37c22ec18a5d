"""HDF5 in the manner of ANI and COMP6 (coordinates, species), SPICE (conformations, atomic_numbers) and Transition1x (positions)."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import ase
import h5py
import numpy as np

from mlff.basics.errors import DataError
from mlff.data.facts import Facts, Reading
from mlff.data.readers.arrays import check_size, elements, numbers, rows

_POSITIONS = ("conformations", "coordinates", "positions")
_SPECIES = ("atomic_numbers", "species")
_PLAIN = (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID, h5py.h5t.TypeStringID, h5py.h5t.TypeEnumID)  # an enum: booleans
_T1X = "wB97x_6-31G(d)"
_SPICE = {
    "conformations": "length",
    "dft_total_energy": "energy",
    "dft_total_gradient": "forces",
}


def read_hdf5(path: Path) -> Reading:
    """Groups in alphabetical order; `info` of a frame has its group as `molecule`.

    SPICE is in Hartree and Bohr with gradients, in its own words where they stand there, Transition1x in eV and Å; the units
    of others are the user's business. What lies in other files (links, external or virtual storage) is not read. To be
    called after `check_heaps`.
    """
    with h5py.File(path, "r", locking=False) as file:
        found: dict[str, tuple[str, str]] = {}

        def collect(name, item):
            if isinstance(item, h5py.Group):
                pair = _first(item, _POSITIONS), _first(item, _SPECIES)
                if all(pair):
                    found[name] = pair

        collect("/", file)
        file.visititems(collect)
        if not found:
            known = f"{' or '.join(_POSITIONS)} with {' or '.join(_SPECIES)}"
            raise DataError(f"no group holds {known}; at the top are {', '.join(list(file)[:10])[:200] or 'nothing'}")
        sizes = [file[name][positions].nbytes for name, (positions, _) in found.items()]
        check_size(
            sum(sizes) - max(sizes), path.stat().st_size, "the sum of the groups"
        )  # many may share what is stored once
        manners = {positions for positions, _ in found.values()}
        if len(manners) > 1:
            raise DataError(f"some groups hold {' and some '.join(sorted(manners))}, which differ in units; divide the file")
        first = file[next(iter(found))]
        if "conformations" in manners:
            facts = _spice(file, found)
        elif dataset(first, f"{_T1X}.energy") is not None:
            facts = Facts(
                by_format={"energy": "eV", "length": "Angstrom"},
                keys={"energy": f"{_T1X}.energy", "forces": f"{_T1X}.forces"},
            )
        else:
            facts = Facts(keys=_ani(first))
    return Reading(_frames(path, found), facts)


def _frames(path: Path, found: dict[str, tuple[str, str]]) -> Iterator[ase.Atoms]:
    with h5py.File(path, "r", locking=False) as file:
        for name, (positions_key, species_key) in found.items():
            try:
                for atoms in _molecule(file[name], positions_key, species_key):
                    atoms.info["molecule"] = name
                    yield atoms
            except DataError as error:
                raise DataError(f"group {name!r}: {error}") from None


def _molecule(group, positions_key, species_key) -> Iterator[ase.Atoms]:
    shape = group[positions_key].shape
    if len(shape) != 3 or shape[2] != 3:
        raise DataError(f"{positions_key!r} has the shape {shape} where (structures, atoms, 3) is expected")
    n, size = shape[:2]
    if group[species_key].shape not in ((size,), (n, size)):
        raise DataError(
            f"{species_key!r} has the shape {group[species_key].shape} where {(size,)} or {(n, size)} is expected"
        )
    species = elements(values(group, species_key), repr(species_key))
    if not species.all():
        raise DataError(f"{species_key!r}: atomic numbers between 1 and 118 are expected")
    positions = numbers(values(group, positions_key), shape, repr(positions_key))
    columns = {}
    for key in group:
        data = dataset(group, key)
        if key in (positions_key, species_key) or data is None or data.dtype.kind not in "biuf":
            continue
        usual = next((kind for kind in ("energ", "forces", "gradient") if kind in key.lower()), None)
        expected = ((n,), (n, 1)) if usual == "energ" else (shape,)
        if data.shape in expected or data.shape in ((n,), (n, 1), (n, 3), (n, 6), (n, 9), (n, 3, 3), shape):
            columns[key] = values(group, key)
        elif key in ("energies", "energy", "forces", "force", *_SPICE):
            raise DataError(f"{key!r} has the shape {data.shape} where {expected[0]} is expected")
    return rows(species, positions, columns)


def _first(group: h5py.Group, keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if dataset(group, key) is not None), None)


def subgroup(group: h5py.Group, key: str) -> h5py.Group | None:
    """A group that lies in this very file."""
    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        return None
    return group[key] if isinstance(group[key], h5py.Group) else None


def dataset(group: h5py.Group, key: str) -> h5py.Dataset | None:
    """A data set that lies in this very file."""
    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        return None
    item = group[key]
    if not isinstance(item, h5py.Dataset) or item.shape is None or item.external or item.is_virtual:
        return None
    return item


def text(item: h5py.Dataset | h5py.Group | None, name: str, shape: tuple[int, ...] = ()):
    """An attribute if it is one string (or strings of this shape): what the HDF5 library reads without crashing."""
    if item is None or name not in item.attrs:
        return None
    attribute = item.attrs.get_id(name)
    if attribute.shape != shape or not isinstance(attribute.get_type(), h5py.h5t.TypeStringID):
        return None
    words = [word.decode("utf-8", "replace") if isinstance(word, bytes) else word for word in np.ravel(item.attrs[name])]
    return words if shape else words[0]


def values(group, key) -> np.ndarray:
    """All of a data set. Raises DataError: other things than numbers and strings, or more than the file can hold."""
    data = group[key]
    if not isinstance(data.id.get_type(), _PLAIN):  # the HDF5 library crashes on broken lists
        raise DataError(f"{key!r}: {data.dtype} is not an element, a number or a string")
    check_size(data.nbytes, data.file.id.get_filesize(), repr(key))
    return data[()]


def _ani(group) -> dict[str, str]:
    labels = {"energy": _first(group, ("energies", "energy")), "forces": _first(group, ("forces", "force"))}
    return {label: key for label, key in labels.items() if key is not None}


def _spice(file, found) -> Facts:
    """Hartree and Bohr by the format, or as the attributes `units` say; those of all groups must agree."""
    stated: dict[str, str] = {}
    for name in found:
        for key, unit in _SPICE.items():
            data = dataset(file[name], key)
            word = text(data, "units")
            if word is not None and stated.setdefault(unit, word) != word:
                raise DataError(f"group {name!r}: {key!r} is in {word}, in another group in {stated[unit]}")
    return Facts(
        by_format={"energy": "Hartree", "length": "Bohr", "forces_sign": "gradient"},
        in_file=stated,
        keys={"energy": "dft_total_energy", "forces": "dft_total_gradient"},
    )


def check_heaps(path: Path) -> None:
    """Raise DataError for a heap of strings in which the HDF5 library (2.0.0) would loop for ever: an entry of size 0, or of
    one that does not fit."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = -1
        while (start := content.find(b"GCOL\x01\0\0\0", start + 1)) >= 0:
            end = start + int.from_bytes(content[start + 8 : start + 16], "little")
            place = start + 16
            while place + 16 <= min(end, len(content)):
                index, _, size = struct.unpack_from("<H6sQ", content, place)
                step = size if index == 0 else 16 + -(-size // 8) * 8
                if step < 16 or place + step > end:
                    raise DataError("a heap of strings is broken; is the file damaged?")
                place += step
