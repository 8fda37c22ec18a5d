"""Distances in a set of structures: shortest and usual per pair of elements, neighbours, atoms and parts alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mlff.data.neighbors import neighbor_list, pair_vectors
from mlff.data.structure import Structure

REACH = 6.0  #: Å, how far is looked
BIN = 0.1  #: Å, of the histogram
_MOST_STRUCTURES, _MOST_ATOMS = 3000, 40_000  # that distances are measured in; of more, an even selection
_MOST_NEIGHBORS = 2000  # 90 are usual within REACH; in a cell in nm that is taken for Å it would be 90,000
_RARE_GASES = (2, 10, 18, 36, 54, 86)
_POWERS = 6  # functions in the fingerprint: (1 - (r/REACH)²) to the powers 2, 4, 8, ...


@dataclass(frozen=True)
class PairDistances:
    """Of one pair of elements; all lengths in Å."""

    samples: int  #: atoms that have such a neighbour within REACH, from either side
    shortest: float
    low: float  #: 1 % quantile of the distance to the nearest such neighbour
    median: float
    structure: int  #: index of the one with the shortest distance
    covalent: float  #: sum of the covalent radii
    histogram: tuple[int, ...]  #: all distances below REACH, in bins of BIN

    def empty(self) -> float:
        """Share of the bins between the shortest distance and REACH that hold no distance."""
        bins = self.histogram[int(self.shortest / BIN) :]
        return sum(count == 0 for count in bins) / max(len(bins), 1)


@dataclass(frozen=True, eq=False)
class Contacts:
    """Of the structures given, by their indices."""

    pairs: dict[str, PairDistances]  #: "H-O" and so on
    neighbors: dict[float, float]  #: mean number of neighbours within 3, 4, 5 and 6 Å
    nearest: float  #: 99 % quantile of the distance to an atom's nearest neighbour, Å
    bonds: tuple[
        float, float, float
    ]  #: an atom's shortest distance over the sum of covalent radii: quantiles of 10, 50, 90 %
    bonded: int  #: atoms that `bonds` is of: those with a neighbour, rare gases apart
    alone: tuple[tuple[int, int], ...]  #: (structure, atom) without a neighbour within REACH
    fragments: tuple[int, ...]  #: structures in parts farther than REACH from each other
    fingerprints: (
        np.ndarray
    )  #: (s, f), the same for structures that differ by rotation, translation or exchange of like atoms


def select(structures: Sequence[Structure]) -> np.ndarray:
    """Indices of the structures to measure: all, or of very many an even selection."""
    count, atoms = len(structures), sum(map(len, structures))
    most = min(count, _MOST_STRUCTURES, max(int(count * _MOST_ATOMS / max(atoms, 1)), 1))
    return np.unique(np.linspace(0, count - 1, most).round().astype(int)) if count else np.zeros(0, int)


def crowd(structure: Structure, radius: float) -> float:
    """About how many neighbours an atom of a cell has within `radius`, Å; 1 without a cell."""
    if not structure.pbc.all():
        return 1.0
    return max(4 / 3 * np.pi * radius**3 * len(structure) / structure.volume, 1.0)


def measure(structures: Sequence[Structure]) -> Contacts:
    """One neighbour list per structure."""
    elements = np.unique(np.concatenate([s.numbers for s in structures])) if len(structures) else np.zeros(0, int)
    kinds = len(elements)
    histogram = np.zeros((kinds**2, round(REACH / BIN)), np.int64)
    nearest: list[list[np.ndarray]] = [[] for _ in range(kinds**2)]
    shortest = np.full((kinds**2, len(structures)), np.inf)
    fingerprints = np.zeros((len(structures), kinds**2 * _POWERS))
    within = np.zeros(4)
    alone, fragments, firsts, bonds, atoms = [], [], [], [np.zeros(0)], 0
    radii = covalent_radii[elements]
    for index, s in enumerate(structures):
        n, atoms = len(s), atoms + len(s)
        i, j, shifts = neighbor_list(
            s.positions, s.cell, s.pbc, REACH * min(1.0, (_MOST_NEIGHBORS / crowd(s, REACH)) ** (1 / 3))
        )
        r = np.linalg.norm(pair_vectors(s.positions, s.cell, i, j, shifts), axis=1)
        species = np.searchsorted(elements, s.numbers)
        kind = species[i] * kinds + species[j]
        bins = kind * histogram.shape[1] + np.minimum((r / BIN).astype(int), histogram.shape[1] - 1)
        histogram += np.bincount(bins, minlength=histogram.size).reshape(histogram.shape)
        closest = np.full((n, kinds), np.inf)
        np.minimum.at(closest.reshape(-1), i * kinds + species[j], r)
        for a in np.unique(species):
            for b in range(kinds):
                found = closest[species == a, b]
                found = found[np.isfinite(found)]
                if len(found):
                    nearest[a * kinds + b].append(found)
                    shortest[a * kinds + b, index] = found.min()
        first = closest.min(axis=1)
        firsts.append(first[np.isfinite(first)])
        shortness = (closest / (radii[species][:, None] + radii)).min(axis=1)
        bonds.append(shortness[np.isfinite(shortness) & ~np.isin(s.numbers, _RARE_GASES)])
        within += [(r < radius).sum() for radius in (3, 4, 5, 6)]
        if n > 1:
            alone += [(index, int(atom)) for atom in np.flatnonzero(np.isinf(first))]
            if connected_components(coo_array((np.ones(len(i)), (i, j)), shape=(n, n)), directed=False)[0] > 1:
                fragments.append(index)
        shape = 1 - (r / REACH) ** 2
        for k in range(_POWERS):
            shape = shape * shape
            fingerprints[index, k * kinds**2 : (k + 1) * kinds**2] = np.bincount(kind, shape, kinds**2) / n
    pairs = {}
    for a in range(kinds):
        for b in range(a, kinds):
            both = nearest[a * kinds + b] + (nearest[b * kinds + a] if a != b else [])
            if both:
                distances, least = np.concatenate(both), shortest[a * kinds + b]
                low, median = np.quantile(distances, [0.01, 0.5])
                pairs[f"{chemical_symbols[elements[a]]}-{chemical_symbols[elements[b]]}"] = PairDistances(
                    samples=len(distances),
                    shortest=float(distances.min()),
                    low=float(low),
                    median=float(median),
                    structure=int(least.argmin()),
                    covalent=float(covalent_radii[elements[a]] + covalent_radii[elements[b]]),
                    histogram=tuple((histogram[a * kinds + b] // (2 if a == b else 1)).tolist()),
                )
    every = np.concatenate(firsts) if firsts else np.zeros(0)
    short = np.concatenate(bonds)
    return Contacts(
        pairs,
        {float(radius): float(count) / max(atoms, 1) for radius, count in zip((3, 4, 5, 6), within, strict=True)},
        float(np.quantile(every, 0.99)) if len(every) else 0.0,
        tuple(np.quantile(short, [0.1, 0.5, 0.9]).tolist()) if len(short) else (0.0, 0.0, 0.0),
        len(short),
        tuple(alone),
        tuple(fragments),
        fingerprints,
    )
