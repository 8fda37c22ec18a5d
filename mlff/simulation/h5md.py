"""Trajectories in H5MD, the layout of HDF5 for molecular dynamics (de Buyl, Colberg & Höfling, Comput. Phys. Commun. 185,
1546 (2014); https://h5md.nongnu.org).

Positions, velocities and forces in single precision; cell, energy and time in double. Units stand in the file: Å, ps, Å/ps,
kJ/mol/Å as the readers of H5MD know them, and eV for the energy. The file is written in HDF5's mode for one writer and many
readers, so that a process that is killed leaves a file that can be read.
"""

from __future__ import annotations

from pathlib import Path

import ase
import h5py
import numpy as np

from mlff import __version__
from mlff.basics.files import replacing
from mlff.basics.units import FEMTOSECOND, KJ_PER_MOL
from mlff.data.readers.h5md import opened

_CHUNK = 16384  #: bytes of positions that are stored together
_VELOCITY = 1e3 * FEMTOSECOND  #: Å/ps of one of ASE's units
_GROUP = "particles/all"
_ELEMENTS = (f"{_GROUP}/position", f"{_GROUP}/velocity", f"{_GROUP}/force", "observables/potential_energy")
_EDGES = f"{_GROUP}/box/edges"
_FIXED = (f"{_GROUP}/species", f"{_GROUP}/mass")


class H5MDWriter:
    """Frames appended to a file."""

    def __init__(self, path: Path, append: bool):
        """A new file, or with `append` one that `truncate` has left."""
        self._file = h5py.File(path, "r+" if append else "w", libver="latest", locking=False)
        if append:
            self._file.swmr_mode = True

    def write(self, atoms: ase.Atoms, energy: float, forces: np.ndarray, step: int, time_ps: float) -> None:
        """One frame: energy in eV, forces (n, 3) in eV/Å."""
        if not self._file.swmr_mode:
            _lay_out(self._file, atoms.numbers, atoms.get_masses(), atoms.pbc)
            self._file.swmr_mode = True
        velocities = atoms.get_velocities() * _VELOCITY
        values = dict(zip(_ELEMENTS, (atoms.positions, velocities, forces / KJ_PER_MOL, energy), strict=True))
        if atoms.pbc.any():
            values[_EDGES] = atoms.cell.array
        series = {f"{name}/value": value for name, value in values.items()}
        for name, value in (series | _times(step, time_ps)).items():
            data = self._file[name]
            data.resize(len(data) + 1, axis=0)
            data[-1] = value

    def flush(self) -> None:
        """Hand over to the system what was written."""
        self._file.flush()

    def close(self) -> None:
        """Raises OSError where the last frames cannot be written."""
        self._file.close()


def count(path: Path) -> int:
    """Frames that are whole."""
    with opened(path) as file:
        return _count(file)


def truncate(path: Path, frames: int) -> None:
    """Keep the first `frames` frames, in a file that can be appended to whatever became of the process that wrote it."""
    with opened(path) as file, replacing(path) as kept, h5py.File(kept, "w", libver="latest", locking=False) as copy:
        if frames == 0:
            return
        periodic = [boundary == "periodic" for boundary in file[f"{_GROUP}/box"].attrs["boundary"]]
        _lay_out(copy, *(file[name][()] for name in _FIXED), np.array(periodic))
        names = [f"{name}/value" for name in (*_ELEMENTS, _EDGES) if name in file]
        for name in (*names, *_times(0, 0.0)):
            data = copy[name]
            data.resize(frames, axis=0)
            for first in range(0, frames, data.chunks[0]):
                last = min(first + data.chunks[0], frames)
                data[first:last] = file[name][first:last]


def _times(step: int, time_ps: float) -> dict[str, float]:
    return {f"{_GROUP}/position/step": step, f"{_GROUP}/position/time": time_ps}


def _count(file: h5py.File) -> int:
    if f"{_GROUP}/position" not in file:
        return 0  # nothing was written yet
    names = [f"{name}/value" for name in (*_ELEMENTS, _EDGES) if name in file]
    return min(len(file[name]) for name in (*names, *_times(0, 0.0)))


def _lay_out(file: h5py.File, numbers: np.ndarray, masses: np.ndarray, pbc: np.ndarray) -> None:
    """Groups and empty arrays: they cannot be made once readers are let in."""
    n = len(numbers)
    head = file.create_group("h5md")
    head.attrs["version"] = np.array([1, 1], np.int32)
    head.create_group("author").attrs["name"] = "unknown"
    creator = head.create_group("creator")
    creator.attrs["name"], creator.attrs["version"] = "mlff", __version__
    head.create_group("modules/units").attrs["version"] = np.array([1, 0], np.int32)
    box = file.create_group(f"{_GROUP}/box")
    box.attrs["dimension"] = 3
    box.attrs["boundary"] = ["periodic" if each else "none" for each in pbc]
    file[f"{_GROUP}/species"], file[f"{_GROUP}/mass"] = np.asarray(numbers, np.int32), np.asarray(masses, np.float64)
    file[f"{_GROUP}/mass"].attrs["unit"] = "u"
    rows = max(1, _CHUNK // (12 * n))

    def series(name: str, shape: tuple[int, ...], kind, unit: str | None = None) -> None:
        data = file.create_dataset(name, (0, *shape), kind, chunks=(rows, *shape), maxshape=(None, *shape))
        if unit is not None:
            data.attrs["unit"] = unit

    elements = [(name, (n, 3), np.float32) for name in _ELEMENTS[:3]] + [(_ELEMENTS[3], (), np.float64)]
    units = ["Angstrom", "Angstrom ps-1", "kJ mol-1 Angstrom-1", "eV"]
    if pbc.any():
        elements, units = [*elements, (_EDGES, (3, 3), np.float64)], [*units, "Angstrom"]
    for (name, shape, kind), unit in zip(elements, units, strict=True):
        series(f"{name}/value", shape, kind, unit)
    series(f"{_GROUP}/position/step", (), np.int64)
    series(f"{_GROUP}/position/time", (), np.float64, "ps")
    for name, _, _ in elements[1:]:
        for axis in ("step", "time"):
            file[f"{name}/{axis}"] = file[f"{_GROUP}/position/{axis}"]
