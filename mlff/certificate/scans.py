"""Energies along a path of structures, and what must not be found there: kinks and false minima."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement

import ase
import numpy as np
from ase.data import chemical_symbols, covalent_radii

from mlff.data.neighbors import neighbor_list
from mlff.potential import Potential, Result

STEP = 0.01  #: Å between points
SHORTEST = 0.4  #: Å: dimers are scanned from here to the cutoff
STRETCH = (0.75, 1.5)  #: bonds are scanned between these multiples of their length
_TOGETHER = 32  #: small structures that are evaluated at once
_DEPTH = 1e-3  #: eV: a shallower dip is not counted as a minimum
_KINK = 5e-3, 2e-3  #: a second difference of the slope is looked at from 5 meV/Å and 0.2 % of the slopes around on


@dataclass(frozen=True)
class Scan:
    """An energy along a distance."""

    name: str  #: H-O, or a bond: C 1 - H 4 of structure 0
    distances: np.ndarray  #: (n,) Å, evenly spaced
    energies: np.ndarray  #: (n,) eV
    slopes: np.ndarray  #: (n,) eV/Å, dE/dr as the forces give it

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

    @property
    def kinks(self) -> list[float]:
        """Distances (Å) where the slope jumps or bends: there its second difference does not fall to a quarter with the step.

        For a smooth curve halving the step quarters the second difference, for a bend it halves it, for a jump it stays.
        """
        g = self.slopes
        fine, coarse = np.zeros_like(g), np.zeros_like(g)
        fine[1:-1] = np.abs(g[2:] - 2 * g[1:-1] + g[:-2])
        coarse[2:-2] = np.abs(g[4:] - 2 * g[2:-2] + g[:-4])
        found: list[float] = []
        for k in range(3, len(g) - 3):
            around = np.abs(g[max(0, k - 10) : k + 11]).max()
            if fine[k] < max(_KINK[0], _KINK[1] * around) or fine[k] < fine[k - 1 : k + 2].max():
                continue
            if fine[k] > 0.4 * coarse[max(0, k - 3) : k + 4].max() and (not found or self.distances[k] - found[-1] > 5 * STEP):
                found.append(float(self.distances[k]))
        return found


def ask(potential: Potential, frames: list[ase.Atoms], stress: bool | None = None) -> list[Result]:
    """`predict`, but in groups of equal size and number, so that the checks share a few compiled programs."""
    results: dict[int, Result] = {}
    for n in {len(atoms) for atoms in frames}:
        mine = [k for k, atoms in enumerate(frames) if len(atoms) == n]
        spare = -len(mine) % (_TOGETHER if n <= _TOGETHER else 4)
        answers = potential.predict([frames[k] for k in mine] + [frames[mine[0]]] * spare, stress=stress)
        results |= dict(zip(mine, answers, strict=False))
    return [results[k] for k in range(len(frames))]


def dimers(potential: Potential) -> list[Scan]:
    """Two free atoms, for each pair of elements, from SHORTEST to the cutoff."""
    grid = np.arange(SHORTEST, potential.cutoff + 5 * STEP, STEP)
    pairs = list(combinations_with_replacement(potential.elements, 2))
    atoms = [ase.Atoms(pair, positions=[[0, 0, 0], [0, 0, r]]) for pair in pairs for r in grid]
    results = ask(potential, atoms)
    scans = []
    for k, pair in enumerate(pairs):
        mine = results[k * len(grid) : (k + 1) * len(grid)]
        name = "-".join(chemical_symbols[z] for z in pair)
        free = potential.baseline_energy(np.array(pair))
        energies = np.array([result.energy for result in mine]) - free
        scans.append(Scan(name, grid, energies, np.array([-result.forces[1, 2] for result in mine])))
    return scans


def bonds(potential: Potential, structures: list[ase.Atoms], each: int = 4) -> list[Scan]:
    """Bonds of real structures, stretched and compressed: what hangs on the one end moves along, where that is clear.

    Per structure the first `each` bonds of different pairs of elements; an atom moves alone where the bond is in a ring or
    a periodic solid.
    """
    paths = [path for number, atoms in enumerate(structures) for path in _paths(atoms, f"of structure {number}", each)]
    results = iter(ask(potential, [frame for _, _, frames, _ in paths for frame in frames]))
    scans = []
    for name, grid, frames, direction in paths:
        mine = [next(results) for _ in frames]
        energies = np.array([result.energy for result in mine])
        slopes = np.array([-np.sum(result.forces * direction) for result in mine])
        scans.append(Scan(name, grid, energies - energies.min(), slopes))
    return scans


def _paths(atoms: ase.Atoms, where: str, each: int):
    """(name, distances, frames, dR/dr (n, 3)) of some bonds."""
    i, j, shifts = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 2 * covalent_radii.max())
    vectors = atoms.positions[j] - atoms.positions[i] + shifts @ atoms.cell.array
    lengths = np.linalg.norm(vectors, axis=1)
    bonded = lengths < 1.2 * (covalent_radii[atoms.numbers[i]] + covalent_radii[atoms.numbers[j]])
    bonded &= (i != j) & (lengths > 1e-3)
    i, j, vectors, lengths = i[bonded], j[bonded], vectors[bonded], lengths[bonded]
    kinds: dict[tuple[int, int], int] = {}
    for k in range(len(i)):
        kinds.setdefault(tuple(sorted((int(atoms.numbers[i[k]]), int(atoms.numbers[j[k]])))), k)
    for k in list(kinds.values())[:each]:
        a, b, unit = int(i[k]), int(j[k]), vectors[k] / lengths[k]
        moving = _far_side(len(atoms), i, j, a, b) if not atoms.pbc.any() else [b]
        direction = np.zeros((len(atoms), 3))
        direction[moving] = unit
        grid = np.arange(STRETCH[0] * lengths[k], STRETCH[1] * lengths[k], STEP)
        frames = []
        for r in grid:
            frame = atoms.copy()
            frame.positions += (r - lengths[k]) * direction
            frames.append(frame)
        symbols = [f"{chemical_symbols[atoms.numbers[x]]} {x}" for x in (a, b)]
        yield f"{symbols[0]} - {symbols[1]} {where}", grid, frames, direction


def _far_side(n: int, i: np.ndarray, j: np.ndarray, a: int, b: int) -> list[int]:
    """The atoms that hang on b once the bond a-b is cut; b alone if that cuts nothing (a ring)."""
    reached, front = {b}, [b]
    while front:
        here = front.pop()
        for other in j[i == here].tolist():
            if other not in reached and not (here == b and other == a):
                reached.add(other)
                front.append(other)
    return [b] if a in reached else sorted(reached)
