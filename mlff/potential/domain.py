"""How far the surroundings of an atom are from those of the training data.

Fingerprint of an atom: its neighbours' density, split by element (or by four fixed random mixtures of the elements where
there are more), is expanded in six Gaussians of the distance and in spherical harmonics up to degree 3; the lengths of the
parts of each degree are what is kept. They do not change under rotation, reflection, translation and exchange of like
atoms, are smooth at the cutoff, and know two- and three-body geometry (they are the square roots of the diagonal of the
power spectrum: Bartók, Kondor & Csányi, Phys. Rev. B 87, 184115 (2013); random mixtures of elements: Darby et al., Phys.
Rev. Lett. 131, 028001 (2023)).

The distance of two fingerprints of the same central element is Euclidean. Of the training data a fixed number per element
travels with the potential, each as far as possible from those chosen before it (farthest-point sampling). The unit of
distance is what 99 % of the training atoms keep from the nearest of those chosen, themselves left out: 1 is the rim of the
data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlff.data.neighbors import neighbor_list, pair_vectors
from mlff.data.structure import Structure
from mlff.models.angular import spherical_harmonics
from mlff.potential.coverage import Coverage, cover

_REACH = 5.0  #: Å, or the cutoff of the potential if that is less
_GAUSSIANS, _DEGREE, _MIXTURES = 6, 3, 4
_KEPT = 256  #: fingerprints per element that travel with a potential; fewer if there are more than twelve elements
_POOL = 10_000  #: fingerprints per element that they are chosen among
_RIM = 0.99  #: share of the training atoms within distance 1
_COVERAGE = "environments/coverage/"  #: before the names of its arrays
BINS = (1.0, 2.0)  #: edges between "inside", "to twice" and "beyond"
NAMES = ("inside", "up to twice", "beyond")


@dataclass(frozen=True, eq=False)
class Environments:
    """A summary of the surroundings of the atoms in the training data; small enough to travel in the model file."""

    reach: float  #: Å
    elements: tuple[int, ...]  #: atomic numbers, ascending
    chosen: dict[int, np.ndarray]  #: Z -> (m, d) float32 fingerprints
    units: dict[int, float]  #: Z -> distance of fingerprints that counts as 1
    coverage: Coverage | None = None  #: of bond lengths, contacts and angles; None: from an older file

    def distances(self, structure: Structure) -> np.ndarray:
        """(n,) distance of each atom from the training data, in units of their rim: up to 1 is inside.

        Infinite for an element that the training data do not have.
        """
        prints = fingerprints(structure, self.elements, self.reach)
        result = np.full(len(structure), np.inf)
        for z in set(structure.numbers.tolist()) & set(self.chosen):
            mine = structure.numbers == z
            result[mine] = _distances(prints[mine], self.chosen[z].astype(np.float64)).min(axis=1) / self.units[z]
        return result if self.coverage is None else np.maximum(result, self.coverage.distances(structure))

    def pack(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Plain values for a header, and arrays by name."""
        header = {"reach": self.reach, "elements": list(self.elements), "units": {str(z): u for z, u in self.units.items()}}
        arrays = {f"environments/{z}": np.ascontiguousarray(prints) for z, prints in self.chosen.items()}
        if self.coverage is not None:
            header["coverage"], more = self.coverage.pack()
            arrays |= {_COVERAGE + name: array for name, array in more.items()}
        return header, arrays

    @classmethod
    def unpack(cls, header: dict, arrays: dict[str, np.ndarray]) -> Environments:
        """What `pack` gave. Raises KeyError, TypeError or ValueError for anything else."""
        reach, elements = float(header["reach"]), tuple(int(z) for z in header["elements"])
        units = {int(z): float(unit) for z, unit in header["units"].items()}
        chosen = {z: arrays[f"environments/{z}"] for z in units}
        width = _weights(elements).shape[1] * _GAUSSIANS * (_DEGREE + 1)
        more = {name.removeprefix(_COVERAGE): array for name, array in arrays.items() if name.startswith(_COVERAGE)}
        coverage = Coverage.unpack(header["coverage"], more) if more or "coverage" in header else None
        if (
            len(arrays) - len(more) != len(chosen)
            or not set(units) <= set(elements)
            or not all(1 <= z <= 118 for z in elements)
        ):
            raise ValueError("the training environments are not those of its elements")
        for prints in chosen.values():
            if prints.dtype != np.float32 or prints.ndim != 2 or prints.shape[1] != width or not len(prints):
                raise ValueError(f"the training environments have shape {prints.shape}, expected (m, {width}) in float32")
        finite = all(np.isfinite(prints).all() for prints in chosen.values())
        if not finite or not (np.isfinite(reach) and reach > 0) or not all(0 < unit < np.inf for unit in units.values()):
            raise ValueError("the training environments hold values that make no sense")
        return cls(reach, elements, chosen, units, coverage)


def summarise(structures: Sequence[Structure], elements: tuple[int, ...], cutoff: float, seed: int = 0) -> Environments:
    """The summary of a training set, for a potential with this cutoff (Å)."""
    reach = min(_REACH, cutoff)
    kept = min(_KEPT, max(32, 12 * _KEPT // max(1, len(elements))))
    counts = {z: sum(int(np.count_nonzero(s.numbers == z)) for s in structures) for z in elements}
    rng, pools = np.random.default_rng(seed), {z: [] for z in elements}
    chances = {z: min(1.0, _POOL / max(1, counts[z])) for z in elements}
    for structure in structures:
        taken = rng.random(len(structure)) < np.array([chances[z] for z in structure.numbers.tolist()])
        if taken.any():
            prints = fingerprints(structure, elements, reach)
            for z in set(structure.numbers[taken].tolist()):
                pools[z].append(prints[taken & (structure.numbers == z)])
    chosen, units = {}, {}
    for z, parts in pools.items():
        if parts:
            chosen[z], units[z] = _choose(np.concatenate(parts), kept)
    return Environments(reach, elements, chosen, units, cover(structures, elements, seed))


def fingerprints(structure: Structure, elements: tuple[int, ...], reach: float) -> np.ndarray:
    """(n, d) float64, d = 24 times the number of elements (at most four)."""
    n, weights = len(structure), _weights(elements)
    i, j, shifts = neighbor_list(structure.positions, structure.cell, structure.pbc, reach)
    vectors = pair_vectors(structure.positions, structure.cell, i, j, shifts)
    r = np.linalg.norm(vectors, axis=1)
    width = reach / (_GAUSSIANS + 1)
    radial = np.exp(-0.5 * (r[:, None] / width - np.arange(1, _GAUSSIANS + 1)) ** 2)
    radial *= 0.5 + 0.5 * np.cos(np.pi * r / reach)[:, None]
    table = np.zeros((119, weights.shape[1]))
    table[list(elements)] = weights
    radial = (radial[:, :, None] * table[structure.numbers[j]][:, None]).reshape(len(r), _GAUSSIANS * weights.shape[1])
    parts, starts = [], np.searchsorted(i, np.arange(n))
    alone = np.bincount(i, minlength=n) == 0
    for l, harmonics in enumerate(spherical_harmonics(_DEGREE, vectors / np.maximum(r, 1e-12)[:, None])):
        squares = np.zeros((n, radial.shape[1]))
        for component in harmonics:
            squares += _sums(radial * component[:, None], starts, alone) ** 2
        parts.append(np.sqrt(squares / (2 * l + 1)))
    return np.concatenate(parts, axis=1)


def _sums(values: np.ndarray, starts: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """Sums (n, d) of rows (p, d) over the pairs of each center; `starts` (n,) where its pairs begin."""
    if not len(values):
        return np.zeros((len(starts), values.shape[1]))
    sums = np.add.reduceat(values, np.minimum(starts, len(values) - 1))
    sums[alone] = 0.0
    return sums


def _weights(elements: tuple[int, ...]) -> np.ndarray:
    """(elements, channels): each element its own channel, or fixed random mixtures where there are more than four."""
    if len(elements) <= _MIXTURES:
        return np.eye(len(elements))
    # drawn by atomic number, so that a mixture does not depend on which other elements there are
    rows = [np.random.default_rng(z).standard_normal(_MIXTURES) for z in elements]
    return np.array(rows) / np.sqrt(_MIXTURES)


def _choose(pool: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Farthest-point sampling: (m, d) float32, and the distance that the _RIM of the pool keeps from the nearest other."""
    picked = [int(np.linalg.norm(pool - pool.mean(axis=0), axis=1).argmax())]
    away = np.linalg.norm(pool - pool[picked[0]], axis=1)
    while len(picked) < min(count, len(pool)) and away.max() > 0:
        picked.append(int(away.argmax()))
        away = np.minimum(away, np.linalg.norm(pool - pool[picked[-1]], axis=1))
    chosen = pool[picked]
    if len(picked) > 1:
        apart = _distances(chosen, chosen)
        np.fill_diagonal(apart, np.inf)
        away[picked] = apart.min(axis=1)
    unit = float(np.quantile(away, _RIM))
    size = float(np.sqrt(np.mean(np.sum(pool**2, axis=1))))
    return chosen.astype(np.float32), max(unit, 1e-3 * size, 1e-6)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) between rows of a (n, d) and b (m, d)."""
    squares = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0.0))
