"""Trajectories in H5MD (https://h5md.nongnu.org), as mlff and other programs write them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase
import h5py
import numpy as np

from mlff.basics.errors import DataError
from mlff.basics.units import FEMTOSECOND, KJ_PER_MOL
from mlff.data.facts import ASE, Reading
from mlff.data.readers.arrays import elements
from mlff.data.readers.hdf5 import dataset, subgroup, text, values

_LENGTHS = {"Angstrom": 1.0, "angstrom": 1.0, "A": 1.0, "nm": 10.0, "pm": 0.01}
_TIMES = {"ps": 1.0, "fs": 1e-3, "ns": 1e3}
_VELOCITIES = {f"{length} {time}-1": _LENGTHS[length] / _TIMES[time] for length in _LENGTHS for time in _TIMES}
_FORCES = {"kJ mol-1 Angstrom-1": KJ_PER_MOL, "kJ mol-1 nm-1": 0.1 * KJ_PER_MOL, "eV Angstrom-1": 1.0}


def read_h5md(path: Path) -> Reading:
    """The only group of particles. Energies and forces, where there are any, become mlff_energy and mlff_forces: no labels.

    What lies in other files is not read. To be called after `check_heaps`. Raises DataError: no positions, species that are
    no atomic numbers, an unknown unit.
    """
    return Reading(_frames(path), ASE)


def is_h5md(path: Path) -> bool:
    """Of an HDF5 file."""
    with opened(path) as file:
        return subgroup(file, "h5md") is not None and subgroup(file, "particles") is not None


def opened(path: Path) -> h5py.File:
    """A file to read, also one that is being written, or whose writer was killed."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "already open" not in str(error):
            raise
    return h5py.File(path, "r", locking=False, libver="latest", swmr=True)


def _frames(path: Path) -> Iterator[ase.Atoms]:
    with opened(path) as file:
        names = [name for name in file["particles"] if subgroup(file["particles"], name) is not None]
        if len(names) != 1:
            raise DataError(f"{len(names)} groups of particles ({', '.join(names)[:100]}), where one is expected")
        group = file["particles"][names[0]]
        positions = _series(group, "position", _LENGTHS)
        if positions is None or positions.ndim != 3 or positions.shape[2] != 3:
            raise DataError("'position' is missing, or not of the shape (frames, atoms, 3)")
        n = positions.shape[1]
        numbers = elements(_fixed(group, "species", n), "'species'")
        if not numbers.all():
            raise DataError("'species': atomic numbers between 1 and 118 are expected")
        masses = _fixed(group, "mass", n) if "mass" in group else None
        cells, pbc = _box(group, len(positions))
        series = {
            "velocity": _series(group, "velocity", _VELOCITIES, (n, 3)),
            "force": _series(group, "force", _FORCES, (n, 3)),
            "time": _times(subgroup(group, "position")),
            "energy": _series(subgroup(file, "observables"), "potential_energy", {"eV": 1.0}, ()),
        }
        series = {name: values for name, values in series.items() if values is not None}
        for k in range(min(len(values) for values in (positions, cells, *series.values()))):
            atoms = ase.Atoms(numbers, positions=positions[k], cell=cells[k], pbc=pbc)
            if masses is not None:
                atoms.set_masses(masses)
            if "velocity" in series:
                atoms.set_velocities(series["velocity"][k] / (1e3 * FEMTOSECOND))
            if "time" in series:
                atoms.info["time_ps"] = float(series["time"][k])
            if "energy" in series:
                atoms.info["mlff_energy"] = float(series["energy"][k])
            if "force" in series:
                atoms.arrays["mlff_forces"] = series["force"][k]
            yield atoms


def _series(group: h5py.Group | None, name: str, units: dict[str, float], shape: tuple[int, ...] | None = None):
    """Values over time in Å, ps, eV, of this shape at each time; None where the group has none."""
    inner = None if group is None else subgroup(group, name)
    if inner is None:
        return None
    data = dataset(inner, "value")
    if data is None or (shape is not None and data.shape[1:] != shape) or not data.shape or data.dtype.kind != "f":
        raise DataError(f"{name!r} holds no values of the expected shape")
    return np.asarray(values(inner, "value"), np.float64) * _unit(data, name, units)


def _unit(data: h5py.Dataset, name: str, units: dict[str, float]) -> float:
    unit = text(data, "unit") if "unit" in data.attrs else next(iter(units))
    if unit not in units:
        raise DataError(f"{name!r} is in {str(unit)[:40]!r}; known: {', '.join(units)}")
    return units[unit]


def _fixed(group: h5py.Group, name: str, n: int) -> np.ndarray:
    """Values (n,) that do not change; where they stand for every frame, those of the first."""
    place, key = (group, name) if subgroup(group, name) is None else (group[name], "value")
    data = dataset(place, key)
    if data is None or data.shape[-1:] != (n,) or data.ndim > 2 or data.dtype.kind not in "iuf" or not data.size:
        raise DataError(f"{name!r} is missing, or not one number for each atom")
    return values(place, key).reshape(-1, n)[0]


def _times(group: h5py.Group) -> np.ndarray | None:
    data = dataset(group, "time")
    if data is None or data.ndim != 1 or data.dtype.kind not in "iuf":
        return None
    return np.asarray(values(group, "time"), np.float64) * _unit(data, "time", _TIMES)


def _box(group: h5py.Group, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells (length, 3, 3) in Å, and which directions are periodic."""
    box = subgroup(group, "box")
    if box is None:
        return np.zeros((length, 3, 3)), np.zeros(3, bool)
    boundary = text(box, "boundary", (3,))
    if boundary is None:
        raise DataError("the box has no 'boundary' of three directions")
    pbc = np.array([word == "periodic" for word in boundary])
    edges = _series(box, "edges", _LENGTHS)
    data = dataset(box, "edges")
    if edges is None and data is not None and data.dtype.kind == "f":  # the same at all times
        edges = np.asarray(values(box, "edges"), np.float64)[None].repeat(length, axis=0) * _unit(data, "edges", _LENGTHS)
    if edges is None and not pbc.any():
        edges = np.zeros((length, 3, 3))
    if edges is None or edges.shape[1:] not in ((3,), (3, 3)):
        raise DataError("the box has no 'edges' of the shape (3,) or (3, 3)")
    return edges[:, :, None] * np.eye(3) if edges.ndim == 2 else edges, pbc
