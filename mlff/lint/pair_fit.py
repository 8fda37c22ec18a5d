"""A smooth pair potential fitted to forces alone: what energies and virials would belong to these forces.

It is no force field. It knows nothing of angles or densities, but its shear stresses have the right sign, size and order,
which is what a label is compared with where no energy difference can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlff.data.composition import elements_of
from mlff.data.neighbors import neighbor_list, pair_vectors
from mlff.data.structure import Structure
from mlff.lint.contacts import crowd

CUTOFF = 5.0  #: Å
_FUNCTIONS = 10  # per pair of elements
_MOST = 3_000_000  # entries of the design matrix
_RIDGE = 1e-3
_CROWDED = 1000  # neighbours: no matter is that dense, the unit of length is wrong
_SMALL = 0.02  # eV/Å; perfect crystals say nothing


class Fitted(NamedTuple):
    """Of the structures looked at, in order."""

    structures: tuple[Structure, ...]
    energies: np.ndarray  #: (s,) eV, less an unknown constant per composition
    virials: np.ndarray  #: (s, 3, 3) eV, +stress times volume
    correlation: float  #: of fitted and labelled force components

    def where(self, chosen: Sequence[bool]) -> Fitted:
        """Some of the structures, by the same potential."""
        kept = [k for k, is_one in enumerate(chosen) if is_one]
        return Fitted(tuple(self.structures[k] for k in kept), self.energies[kept], self.virials[kept], self.correlation)


def fit_pairs(structures: Sequence[Structure]) -> Fitted | None:
    """Least squares on the forces of (at most some 3,000) atoms; None if there are none worth it."""
    there = [s for s in structures if s.forces is not None and np.abs(s.forces).max() > _SMALL]
    chosen = _sample([s for s in there if crowd(s, CUTOFF) < _CROWDED])
    if not chosen:
        return None
    elements = np.unique(np.concatenate([s.numbers for s in chosen]))
    types = len(elements) * (len(elements) + 1) // 2
    columns, atoms = types * _FUNCTIONS, sum(map(len, chosen))
    design = np.zeros((columns, 3, atoms))
    energies, virials = np.zeros((columns, len(chosen))), np.zeros((columns, len(chosen), 3, 3))
    begin = 0
    for number, s in enumerate(chosen):
        i, j, shifts = neighbor_list(s.positions, s.cell, s.pbc, CUTOFF)
        vectors = pair_vectors(s.positions, s.cell, i, j, shifts)
        r = np.linalg.norm(vectors, axis=1)
        units = vectors / r[:, None]
        kinds = np.searchsorted(elements, s.numbers)
        low, high = np.sort([kinds[i], kinds[j]], axis=0)
        kind = high * (high + 1) // 2 + low
        tensors = (units[:, :, None] * vectors[:, None, :]).reshape(-1, 9)
        value, slope = _radial(r)
        for k in range(_FUNCTIONS):
            rows = np.arange(types) * _FUNCTIONS + k
            for axis in range(3):
                sums = np.bincount(kind * len(s) + i, slope[k] * units[:, axis], types * len(s))
                design[rows, axis, begin : begin + len(s)] = sums.reshape(types, len(s))
            energies[rows, number] = np.bincount(kind, value[k], types) / 2
            for entry in range(9):
                sums = np.bincount(kind, slope[k] * tensors[:, entry], types) / 2
                virials[rows, number, entry // 3, entry % 3] = sums
        begin += len(s)
    forces = np.concatenate([s.forces for s in chosen]).T
    sizes = np.array([np.mean(s.forces**2) for s in chosen]) ** 0.5
    weights = np.repeat(1 / np.maximum(sizes, np.median(sizes)), [len(s) for s in chosen])
    matrix, labels = (design * weights).reshape(columns, -1), (forces * weights).ravel()
    used = matrix.any(axis=1)
    scale = np.linalg.norm(matrix[used], axis=1)
    matrix = matrix[used] / scale[:, None]
    solution = np.linalg.solve(matrix @ matrix.T + _RIDGE * np.eye(len(matrix)), matrix @ labels)
    weight = np.zeros(columns)
    weight[used] = solution / scale
    return Fitted(
        tuple(chosen),
        weight @ energies,
        np.einsum("c,cnij->nij", weight, virials),
        float(np.corrcoef(solution @ matrix, labels)[0, 1]),
    )


def _radial(r):
    """Functions of the distance and their derivatives, (functions, pairs) each: sin(kπx)/r times (1 - x²)², x = r/cutoff."""
    k = np.pi * np.arange(1, _FUNCTIONS + 1)[:, None]
    x = r / CUTOFF
    wave, its_slope = np.sin(k * x) / r, k / CUTOFF * np.cos(k * x) / r - np.sin(k * x) / r**2
    envelope = (1 - x**2) ** 2
    return wave * envelope, its_slope * envelope - wave * 4 * x * (1 - x**2) / CUTOFF


def _sample(structures: list[Structure]) -> list[Structure]:
    """As many as the design matrix may hold, evenly from the whole; those with a stress first."""
    structures = [s for s in structures if s.stress is not None] or structures
    if not structures:
        return []
    elements = len(elements_of(structures))
    columns = elements * (elements + 1) // 2 * _FUNCTIONS
    share = min(3000, _MOST / (3 * columns)) / sum(map(len, structures))
    if share >= 1:
        return structures
    count = max(int(share * len(structures)), 1)
    return [structures[k] for k in np.unique(np.linspace(0, len(structures) - 1, count).round().astype(int))]
