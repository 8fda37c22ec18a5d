"""Energies along a path of structures, and what must not be found there: kinks and false minima."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations_with_replacement

import ase
import numpy as np
from ase.data import chemical_symbols, covalent_radii

from mlff.certificate.probe import Probe
from mlff.data.neighbors import neighbor_list, pair_vectors
from mlff.data.stretched import LONGEST, far_side

STEP = 0.01  #: Å between points
SHORTEST = 0.4  #: Å: dimers are scanned from here to the cutoff
STRETCH = (0.75, LONGEST)  #: bonds are scanned between these multiples of their length
_DEPTH = 1e-3  #: eV: a shallower dip is not counted as a minimum
_SUSPECT = 5e-3, 2e-3  #: a second difference of the slope is looked at from 5 meV/Å and 0.2 % of the slopes around on
_FINER = 4  #: around a suspect the step is divided by this ...
_ROUNDS = 3  #: ... so many times
_SMOOTH = 0.1  #: share of the second difference that may be left at a quarter of the step: 1/16 if smooth, 1/4 if bent
BONDED = 1.3  #: of the sum of covalent radii: nearer is a bond
_PRESSED = 0.75  #: the same: nearer is no bond any more
_ROUNDING = 1e-8  #: share of the slopes that float64 makes of itself
_KEPT = 4  #: every so many points are kept in a file


@dataclass(frozen=True)
class Scan:
    """An energy along a distance."""

    name: str  #: H-O, or a bond: C 1 - H 4 of structure 0
    distances: np.ndarray  #: (n,) Å, evenly spaced
    energies: np.ndarray  #: (n,) eV
    slopes: np.ndarray  #: (n,) eV/Å, dE/dr as the forces give it
    kinks: tuple[float, ...] = ()  #: Å: where the slope jumps or bends, as `find_kinks` found
    new_bonds: dict[float, str] = field(default_factory=dict)  #: Å of a minimum -> the atoms that are bonded there instead

    @property
    def minima(self) -> list[float]:
        """Distances (Å) of minima inside that are deeper than 1 meV on both sides."""
        e, found = self.energies, []
        for k in range(1, len(e) - 1):
            if e[k] <= e[k - 1] and e[k] < e[k + 1] and self._barrier(e[: k + 1][::-1]) and self._barrier(e[k:]):
                found.append(float(self.distances[k]))
        return found

    @staticmethod
    def _barrier(away: np.ndarray) -> bool:
        """Whether the energy rises by _DEPTH before it falls below the start."""
        above, below = np.flatnonzero(away > away[0] + _DEPTH), np.flatnonzero(away < away[0])
        return len(above) > 0 and (len(below) == 0 or above[0] < below[0])

    def to_dict(self) -> dict:
        """Plain values: distances (Å) and energies (eV) of every fourth point and of all extrema, and the kinks."""
        rising = np.diff(self.energies) > 0
        turns = 1 + np.flatnonzero(rising[1:] != rising[:-1])
        kept = np.union1d(np.r_[0 : len(self.energies) : _KEPT, len(self.energies) - 1], turns).astype(int)
        points = {
            "distances": np.round(self.distances[kept], 3).tolist(),
            "energies": np.round(self.energies[kept], 5).tolist(),
        }
        return {"name": self.name, **points, "kinks": [round(float(r), 3) for r in self.kinks]}

    @classmethod
    def from_dict(cls, values: dict) -> Scan:
        """What `to_dict` wrote, with slopes by differences. Raises KeyError, TypeError or ValueError for anything else."""
        distances, energies = (np.asarray(values[name], np.float64) for name in ("distances", "energies"))
        if distances.ndim != 1 or distances.shape != energies.shape or len(distances) < 2:
            raise ValueError("distances and energies of a scan are not lists of one length")
        if not np.isfinite([distances, energies]).all() or not (np.diff(distances) > 0).all():
            raise ValueError("distances of a scan do not grow, or values are not finite")
        kinks = tuple(float(r) for r in values["kinks"])
        return cls(str(values["name"]), distances, energies, np.gradient(energies, distances), kinks)

    @property
    def suspects(self) -> list[float]:
        """Distances (Å) where the slope may jump or bend: its second difference does not fall to a quarter with the step.

        For a smooth curve halving the step quarters the second difference, for a bend it halves it, for a jump it stays. A
        curve that is steep on the scale of STEP looks like a bend too: `find_kinks` looks closer.
        """
        g = self.slopes
        fine, coarse = np.zeros_like(g), np.zeros_like(g)
        fine[1:-1] = np.abs(g[2:] - 2 * g[1:-1] + g[:-2])
        coarse[2:-2] = np.abs(g[4:] - 2 * g[2:-2] + g[:-4])
        found: list[float] = []
        for k in range(3, len(g) - 3):
            around = np.abs(g[max(0, k - 10) : k + 11]).max()
            if fine[k] < max(_SUSPECT[0], _SUSPECT[1] * around) or fine[k] < fine[k - 1 : k + 2].max():
                continue
            if fine[k] > 0.3 * coarse[max(0, k - 3) : k + 4].max() and (
                not found or self.distances[k] - found[-1] > 5 * STEP
            ):
                found.append(float(self.distances[k]))
        return found


@dataclass(frozen=True)
class Path:
    """Structures along which a distance grows while nothing else changes."""

    name: str
    start: ase.Atoms  #: at the distance `at`
    at: float  #: Å
    direction: np.ndarray  #: (n, 3) dR/dr
    distances: np.ndarray  #: (m,) Å, of the scan
    zero: float | None = None  #: eV taken off the energies; None: the lowest
    bond: tuple[int, int] | None = None  #: the atoms of the bond that is stretched

    def frame(self, distance: float) -> ase.Atoms:
        """The structure at a distance (Å)."""
        atoms = self.start.copy()
        atoms.positions += (distance - self.at) * self.direction
        return atoms


def follow(ask: Probe, paths: Sequence[Path]) -> list[Scan]:
    """Energies and slopes along paths, suspects looked at with finer steps; `ask` in float64."""
    results = iter(ask([path.frame(r) for path in paths for r in path.distances]))
    scans = []
    for path in paths:
        mine = [next(results) for _ in path.distances]
        energies = np.array([result.energy for result in mine])
        energies -= energies.min() if path.zero is None else path.zero
        scan = Scan(path.name, path.distances, energies, _slopes(path, mine))
        scans.append(replace(scan, new_bonds=_new_bonds(path, scan)))

    def slopes(which: list[int], distances: list[np.ndarray]) -> list[np.ndarray]:
        frames = [paths[k].frame(r) for k, rs in zip(which, distances, strict=True) for r in rs]
        answers = iter(ask(frames) if frames else ())
        return [_slopes(paths[k], [next(answers) for _ in rs]) for k, rs in zip(which, distances, strict=True)]

    kinks = find_kinks(scans, slopes)
    return [replace(scan, kinks=tuple(found)) for scan, found in zip(scans, kinks, strict=True)]


def _new_bonds(path: Path, scan: Scan) -> dict[float, str]:
    """Distances of minima -> the new bond; of several with the same atoms the deepest."""
    found: dict[str, float] = {}
    energy = dict(zip(scan.distances.tolist(), scan.energies.tolist(), strict=True))
    for r in scan.minima if path.bond else ():
        atoms = new_bond(path, r)
        if atoms and (atoms not in found or energy[r] < energy[found[atoms]]):
            found[atoms] = r
    return {r: atoms for atoms, r in found.items()}


def new_bond(path: Path, distance: float) -> str:
    """The atoms of a bond that is there at `distance` (Å) of a stretched bond and not at the start; "" if there is none.

    A moving and a fixed atom come nearer than 1.3 times the sum of their covalent radii, and relative to the radii nearer
    than those of the stretched bond: as a hydrogen that goes over to the acceptor of its hydrogen bond. There is none where
    atoms are pressed into each other.
    """
    a, b = path.bond
    radii, moving = covalent_radii[path.start.numbers], (path.direction != 0).any(axis=1)
    start, after = path.start, path.frame(distance)
    i, j, shifts = neighbor_list(after.positions, after.cell.array, after.pbc, BONDED * 2 * radii.max())
    across = moving[i] & ~moving[j]
    i, j, shifts = i[across], j[across], shifts[across]
    before, now = (
        np.linalg.norm(pair_vectors(x.positions, x.cell.array, i, j, shifts), axis=1) / (radii[i] + radii[j])
        for x in (start, after)
    )
    if not len(now) or now.min() < _PRESSED:
        return ""
    new = np.where((before > BONDED) & (now < min(BONDED, distance / (radii[a] + radii[b]))), now, np.inf)
    k = int(new.argmin())
    return pair_name(start.numbers, int(i[k]), int(j[k])) if np.isfinite(new[k]) else ""


def pair_name(numbers: np.ndarray, a: int, b: int) -> str:
    """C 1 - H 4."""
    return " - ".join(f"{chemical_symbols[numbers[x]]} {x}" for x in (a, b))


def _slopes(path: Path, results) -> np.ndarray:
    return np.array([-np.sum(result.forces * path.direction) for result in results])


def find_kinks(scans: Sequence[Scan], slopes: Callable) -> list[list[float]]:
    """Distances (Å) in each scan where the slope truly jumps or bends.

    `slopes(which, distances)` gives dE/dr (float64) of the scans `which` at arrays of distances. The neighbourhood of each
    suspect is scanned with a quarter of the step: where the curve is smooth the second difference falls to a sixteenth, at
    a bend to a quarter, at a jump not at all. What does not fall is looked at closer again, three times.
    """
    suspects = [(k, r) for k, scan in enumerate(scans) for r in scan.suspects]
    step = STEP
    for _ in range(_ROUNDS):
        step /= _FINER
        windows = [r + step * np.arange(-3 * _FINER, 3 * _FINER + 1) for _, r in suspects]
        left = []
        for (k, _), rs, g in zip(suspects, windows, slopes([k for k, _ in suspects], windows), strict=True):
            fine = np.abs(g[2:] - 2 * g[1:-1] + g[:-2])[_FINER - 1 : 1 - _FINER]  # between the centers of the coarse ones
            wide = g[::_FINER]
            coarse = np.abs(wide[2:] - 2 * wide[1:-1] + wide[:-2]).max()
            if not fine.max() <= max(_SMOOTH * coarse, _ROUNDING * np.abs(g).max()):
                left.append((k, float(rs[_FINER + int(fine.argmax())])))
        suspects = left
    found: list[list[float]] = [[] for _ in scans]
    for k, r in suspects:
        if not found[k] or r - found[k][-1] > 5 * STEP:
            found[k].append(r)
    return found


def dimers(ask: Probe) -> list[Scan]:
    """Two free atoms, for each pair of elements, from SHORTEST to the cutoff."""
    potential = ask.potential
    grid = np.arange(SHORTEST, potential.cutoff + 5 * STEP, STEP)
    along = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    paths = []
    for pair in combinations_with_replacement(potential.elements, 2):
        name = "-".join(chemical_symbols[z] for z in pair)
        paths.append(
            Path(name, ase.Atoms(pair, np.zeros((2, 3))), 0.0, along, grid, potential.baseline_energy(np.array(pair)))
        )
    return follow(ask, paths)


def bonds(ask: Probe, structures: list[ase.Atoms], each: int = 4) -> list[Scan]:
    """Bonds of real structures, stretched and compressed: what hangs on the one end moves along, where that is clear.

    Per structure the first `each` bonds of different pairs of elements; an atom moves alone where the bond is in a ring or
    a periodic solid.
    """
    paths = [path for number, atoms in enumerate(structures) for path in bond_paths(atoms, f"of structure {number}", each)]
    return follow(ask, paths) if paths else []


def bond_paths(atoms: ase.Atoms, where: str, each: int, repeat: bool = False) -> Iterator[Path]:
    """One bond of each pair of elements, the first `each` of them; with `repeat` further bonds where there are fewer."""
    i, j, shifts = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 2 * covalent_radii.max())
    vectors = pair_vectors(atoms.positions, atoms.cell.array, i, j, shifts)
    lengths = np.linalg.norm(vectors, axis=1)
    bonded = lengths < 1.2 * (covalent_radii[atoms.numbers[i]] + covalent_radii[atoms.numbers[j]])
    bonded &= (i != j) & (lengths > 1e-3)
    i, j, vectors, lengths = i[bonded], j[bonded], vectors[bonded], lengths[bonded]
    kinds: dict[tuple[int, int], int] = {}
    for k in range(len(i)):
        kinds.setdefault(tuple(sorted((int(atoms.numbers[i[k]]), int(atoms.numbers[j[k]])))), k)
    chosen = list(kinds.values())[:each]
    if repeat and len(chosen) < each:
        others = [k for k in range(len(i)) if i[k] < j[k] and k not in chosen]
        chosen += [others[k] for k in np.linspace(0, len(others) - 1, min(len(others), each - len(chosen))).astype(int)]
    for k in chosen:
        a, b, unit = int(i[k]), int(j[k]), vectors[k] / lengths[k]
        moving = far_side(len(atoms), i, j, a, b) if not atoms.pbc.any() else [b]
        direction = np.zeros((len(atoms), 3))
        direction[moving] = unit
        grid = np.arange(STRETCH[0] * lengths[k], STRETCH[1] * lengths[k], STEP)
        yield Path(f"{pair_name(atoms.numbers, a, b)} {where}", atoms, lengths[k], direction, grid, bond=(a, b))
