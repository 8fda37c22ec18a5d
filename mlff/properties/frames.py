"""A trajectory in memory: unwrapped positions, velocities and times, checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import ase
import numpy as np
from ase.cell import Cell

from mlff.basics.errors import ConfigError, DataError
from mlff.basics.units import FEMTOSECOND, KB
from mlff.data.formats import read_atoms
from mlff.simulation.velocities import degrees_of_freedom, kinetic_energy

_JUMP = 0.4  #: of a cell vector; an atom that moves farther between two frames may have gone the other way round
_UNEVEN = 1e-3  #: of the interval


@dataclass(frozen=True, eq=False)
class Frames:
    """t frames of the same n atoms, evenly spaced in time."""

    source: str
    numbers: np.ndarray  #: (n,)
    masses: np.ndarray  #: (n,) amu
    pbc: np.ndarray  #: (3,) bool
    cells: np.ndarray  #: (t, 3, 3) Å
    positions: np.ndarray  #: (t, n, 3) Å, without jumps at the boundaries of the cell
    velocities: np.ndarray | None  #: (t, n, 3) Å/ps; None: the file has none
    interval: float  #: ps
    columns: dict[str, np.ndarray]  #: (t,) epot_ev, temperature_k and volume_a3, as far as the file has them

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def duration(self) -> float:
        """ps."""
        return self.interval * (len(self) - 1)

    def without(self, first: int) -> Frames:
        """The same less the first frames."""
        velocities = None if self.velocities is None else self.velocities[first:]
        columns = {name: values[first:] for name, values in self.columns.items()}
        cells, positions = self.cells[first:], self.positions[first:]
        return replace(self, cells=cells, positions=positions, velocities=velocities, columns=columns)

    def displacements(self) -> np.ndarray:
        """(t, n, 3) Å from the first frame, in the mean cell, less the motion of the center of mass."""
        cells = _complete(self.cells, self.pbc)
        scaled = np.einsum("tna,tab->tnb", self.positions, np.linalg.inv(cells))
        moved = (scaled - scaled[0]) @ cells.mean(axis=0)
        return moved - np.average(moved, axis=1, weights=self.masses)[:, None]


def read_frames(path: str | Path, interval_fs: float | None = None, length: str | None = None) -> Frames:
    """Read a trajectory; times from `time_ps` of its frames, or `interval_fs` (fs) between them.

    A last frame that follows sooner than the others is left out. Raises DataError: fewer than two frames, other atoms or
    another periodicity in one of them, frames unevenly spaced, atoms that jump between frames; ConfigError: no interval, or
    another one than that of the file.
    """
    images = list(read_atoms(path, length=length))
    if len(images) < 2:
        raise DataError(f"{path}: has {len(images)} frame; a trajectory has two or more")
    for index, atoms in enumerate(images):
        if not np.array_equal(atoms.numbers, images[0].numbers) or not np.array_equal(atoms.pbc, images[0].pbc):
            raise DataError(f"{path}, structure {index}: has other atoms, or another periodicity, than the first frame")
        if not np.isfinite(atoms.positions).all() or not np.isfinite(atoms.cell.array).all():
            raise DataError(f"{path}, structure {index}: positions or cell are not finite")
        if abs(np.linalg.det(_complete(atoms.cell.array[None], atoms.pbc)[0])) < 1e-6:
            raise DataError(f"{path}, structure {index}: the cell has no volume; set the cell or pbc")
    interval, images = _interval(images, interval_fs, path)
    first = images[0]
    cells = np.array([atoms.cell.array for atoms in images])
    positions = _unwrapped(np.array([atoms.positions for atoms in images]), _complete(cells, first.pbc), first.pbc, path)
    moving = all(atoms.has("momenta") for atoms in images) and any(atoms.get_momenta().any() for atoms in images)
    velocities = np.array([atoms.get_velocities() for atoms in images]) * FEMTOSECOND * 1e3 if moving else None
    return Frames(
        str(path),
        first.numbers,
        first.get_masses(),
        first.pbc,
        cells,
        positions,
        velocities,
        interval,
        _columns(images, moving),
    )


def _interval(images: list[ase.Atoms], given_fs: float | None, path) -> tuple[float, list[ase.Atoms]]:
    """ps between frames, and the frames that are evenly spaced."""
    if given_fs is not None and not (given_fs > 0 and np.isfinite(given_fs)):
        raise ConfigError(f"--interval-fs must be a positive time, not {given_fs:g}")
    if any("time_ps" not in atoms.info for atoms in images):
        if given_fs is None:
            raise ConfigError(f"{path}: does not say how far its frames are apart in time: give --interval-fs")
        return given_fs * 1e-3, images
    times = np.array([float(atoms.info["time_ps"]) for atoms in images])
    steps = np.diff(times)
    interval = float(steps[0])
    if len(steps) > 1 and 0 < steps[-1] < interval * (1 - _UNEVEN):
        steps, images = steps[:-1], images[:-1]
    odd = np.flatnonzero(~(np.abs(steps - interval) <= _UNEVEN * interval))
    if not interval > 0 or len(odd):
        k = int(odd[0]) if len(odd) else 0
        raise DataError(
            f"{path}: structures {k} and {k + 1} are {1e3 * steps[k]:g} fs apart, the first two {1e3 * interval:g} fs; "
            "frames must be evenly spaced in time"
        )
    if given_fs is not None and abs(given_fs * 1e-3 - interval) > _UNEVEN * interval:
        raise ConfigError(f"{path}: its frames are {1e3 * interval:g} fs apart, not {given_fs:g}: leave --interval-fs out")
    return interval, images


def _complete(cells: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Cells (t, 3, 3) with unit vectors in place of vectors of directions that are not periodic."""
    return np.array([Cell(cell * pbc[:, None]).complete().array for cell in cells])


def _unwrapped(positions: np.ndarray, cells: np.ndarray, pbc: np.ndarray, path) -> np.ndarray:
    """Positions (t, n, 3) that move from frame to frame by the nearest image."""
    if not pbc.any():
        return positions
    scaled = np.einsum("tna,tab->tnb", positions, np.linalg.inv(cells))
    steps = np.diff(scaled, axis=0)
    steps -= np.round(steps) * pbc
    jumps = np.argwhere((np.abs(steps) * pbc).max(axis=2) > _JUMP)
    if len(jumps):
        frame, atom = (int(k) for k in jumps[0])
        share = float((np.abs(steps[frame, atom]) * pbc).max())
        raise DataError(
            f"{path}: atom {atom} moves by {share:.2f} of a cell vector between structures {frame} and {frame + 1}, so that it "
            "cannot be followed across the boundary (up to 0.4 it can, beyond half a cell it is wrong): write frames more often"
        )
    scaled[1:] = scaled[0] + np.cumsum(steps, axis=0)
    return np.einsum("tna,tab->tnb", scaled, cells)


def _columns(images: list[ase.Atoms], moving: bool) -> dict[str, np.ndarray]:
    columns = {}
    energies = [_energy(atoms) for atoms in images]
    if None not in energies:
        columns["epot_ev"] = np.array(energies)
    if moving:
        columns["temperature_k"] = np.array([_temperature(atoms) for atoms in images])
    if images[0].pbc.all():
        columns["volume_a3"] = np.array([atoms.get_volume() for atoms in images])
    return columns


def _temperature(atoms: ase.Atoms) -> float:
    """K, as in the log of `mlff md` where the center of mass is at rest and a molecule may turn."""
    kinetic = kinetic_energy(atoms.get_momenta(), atoms.get_masses()[:, None])
    return 2 * kinetic / (degrees_of_freedom(atoms, rotation_is_kept=False) * KB)


def _energy(atoms: ase.Atoms) -> float | None:
    """eV, as `mlff md` or ASE wrote it."""
    if "mlff_energy" in atoms.info:
        return float(atoms.info["mlff_energy"])
    return None if atoms.calc is None else atoms.calc.results.get("energy")
