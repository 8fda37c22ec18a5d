"""Molecules with one bond stretched beyond the data: structures without labels that still teach something.

Where the fragments of a molecule are drawn apart along a covalent bond, and no new bond forms, the energy rises by some eV/Å: true
of every molecule. Training asks that of a model for bonds longer than any in the data (`mlff.training.stretching`). Between
metal atoms it rises less (0.15 to 0.75 eV/Å in clusters of copper, silver and gold): their bonds are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import covalent_radii
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order
from scipy.spatial.transform import Rotation

from mlff.basics.errors import StructureError
from mlff.data.batching import Sample
from mlff.data.pairs import find_pairs

LONGEST = 1.5  #: times its length a bond is stretched at most
_SHORTEST = 1.15  #: times its length at least: a bond that happens to be compressed pushes at less
_BONDED = 1.2  #: of the sum of the covalent radii: nearer is a bond
_NEAR = 1.3, 1.2  #: a new bond may form below so many sums of radii, or below the stretched bond's, times the second
_BIN = 0.05  #: Å: a distance is known where the data have one of the same two elements in its bin
_BOTH = 0.5  #: share of the structures in which a second bond is stretched, too
_TURN = 0.3  #: rad, standard deviation about each axis: what is drawn away is also turned
_TRIES = 10  #: for each structure that is wanted
_COVALENT = np.isin(
    np.arange(119), [1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 32, 33, 34, 35, 52, 53]
)  #: elements between which bonds are stretched


def far_side(n: int, i: np.ndarray, j: np.ndarray, a: int, b: int) -> list[int]:
    """The atoms of n that hang on b once the bond a-b is cut; b alone if that cuts nothing (a ring). i, j: the bonds, both ways."""
    kept = ~(((i == a) & (j == b)) | ((i == b) & (j == a)))
    bonds = coo_array((np.ones(kept.sum(), np.int8), (i[kept], j[kept])), (n, n)).tocsr()
    reached = breadth_first_order(bonds, b, return_predecessors=False).tolist()
    return [b] if a in reached else sorted(reached)


def stretched(samples: Sequence[Sample], count: int, cutoff: float, rng: np.random.Generator) -> list[Sample]:
    """At most `count` samples with one bond stretched, without labels; `Sample.direction` says along what.

    Bonds and lengths are drawn by chance: longer than any bond of the two elements in the data, 1.15 to 1.5 times what it
    was, and nowhere where the data have that distance between the two elements. Left out are periodic structures, in
    which an atom that leaves one neighbour comes near to another, bonds of metals, structures in which a new bond may form,
    and those in which an atom has more neighbours than any has in the data. Fewer, also none, where the data leave no such
    lengths. `cutoff`: Å.
    """
    molecules = [s for s in samples if len(s.numbers) > 1 and not s.pbc.any()]
    if not molecules:
        return []
    known, most = _Known(molecules), max(sample.sizes.neighbors for sample in molecules)
    found: list[Sample] = []
    for _ in range(_TRIES * count):
        made = _stretch(molecules[rng.integers(len(molecules))], known, cutoff, rng)
        if made is not None and made.sizes.neighbors <= most:
            found.append(made)
        if len(found) == count:
            break
    return found


class _Known:
    """The distances between atoms of each two elements that there are in the data."""

    def __init__(self, samples: Sequence[Sample]):
        kinds = np.unique(np.concatenate([s.numbers for s in samples]))
        self._index = np.zeros(119, int)
        self._index[kinds] = np.arange(len(kinds))
        radii = covalent_radii[kinds]
        bins = int(np.ceil(LONGEST * _BONDED * 2 * radii.max() / _BIN))
        self._there = np.zeros((len(kinds), len(kinds), bins + 1), bool)
        for sample in samples:
            i, j, lengths = pairs_of(sample)
            places = np.minimum(lengths / _BIN, bins).astype(int)
            self._there[self._index[sample.numbers[i]], self._index[sample.numbers[j]], places] = True
        edge = _BONDED * (radii[:, None] + radii)
        self._bonds = self._there & (np.arange(bins + 1) * _BIN < edge[:, :, None])

    def free(self, a: int, b: int, shortest: float, longest: float) -> np.ndarray:
        """(n,) Å: lower ends of the bins between these lengths beyond all bonds of elements a and b that are in no structure."""
        there, bonds = (array[self._index[a], self._index[b]] for array in (self._there, self._bonds))
        bins = np.arange(len(there) - 1)
        first = max(np.flatnonzero(bonds).max(initial=-1) + 1, shortest / _BIN)
        return _BIN * bins[(bins >= first) & ((bins + 1) * _BIN <= longest) & ~there[:-1]]


def pairs_of(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """i, j and lengths (Å) of the pairs of a molecule, both ways."""
    i, slots = np.nonzero(sample.mask)
    j = sample.neighbors[i, slots]
    return i, j, np.linalg.norm(sample.positions[j] - sample.positions[i], axis=1)


def _stretch(sample: Sample, known: _Known, cutoff: float, rng: np.random.Generator) -> Sample | None:
    """One bond of a sample stretched; None where there is none, no length for it, or a new bond may form."""
    radii = covalent_radii[sample.numbers]
    i, j, lengths = pairs_of(sample)
    bonded = lengths < _BONDED * (radii[i] + radii[j])
    bonds = i[bonded], j[bonded]
    covalent = np.flatnonzero(_COVALENT[sample.numbers[bonds[0]]] & _COVALENT[sample.numbers[bonds[1]]])
    if not len(covalent):
        return None
    first, second = rng.choice(covalent), rng.integers(len(bonds[0]))
    a, b = (int(ends[first]) for ends in bonds)
    length = lengths[bonded][first]
    free = known.free(sample.numbers[a], sample.numbers[b], _SHORTEST * length, LONGEST * length)
    if not len(free):
        return None
    positions = sample.positions.copy()
    other, end = (int(ends[second]) for ends in bonds)
    if rng.random() < _BOTH and {other, end} != {a, b}:
        _draw_apart(positions, bonds, other, end, rng.uniform(1.0, LONGEST) * lengths[bonded][second])
    moved = far_side(len(radii), *bonds, a, b)
    turn = Rotation.from_rotvec(_TURN * rng.normal(size=3)).as_matrix()
    positions[moved] = (positions[moved] - positions[b]) @ turn.T + positions[b]
    wanted = rng.choice(free) + _BIN * rng.random()
    direction = _draw_apart(positions, bonds, a, b, wanted)
    try:
        pairs = find_pairs(positions, sample.cell, sample.pbc, cutoff)
    except StructureError:  # atoms met
        return None
    arrays = {"positions": pairs.positions, "neighbors": pairs.neighbors, "mask": pairs.mask, "reverse": pairs.reverse}
    made = sample._replace(**arrays, shifts=None, labels={}, weight=1.0, direction=direction)
    return None if _crowded(sample, made, wanted / (radii[a] + radii[b])) else made


def _draw_apart(positions: np.ndarray, bonds: tuple[np.ndarray, np.ndarray], a: int, b: int, wanted: float) -> np.ndarray:
    """Move what hangs on b away from a until the bond has the length wanted, Å, in place; (n, 3) dR/dr."""
    bond = positions[b] - positions[a]
    length = np.linalg.norm(bond)
    direction = np.zeros_like(positions)
    direction[far_side(len(positions), *bonds, a, b)] = bond / length
    positions += (wanted - length) * direction
    return direction


def _crowded(before: Sample, after: Sample, stretch: float) -> bool:
    """Whether two atoms that were no bond have come so near that they may become one."""
    radii = covalent_radii[after.numbers]
    i, j, lengths = pairs_of(after)
    were = np.linalg.norm(before.positions[j] - before.positions[i], axis=1)
    sums = radii[i] + radii[j]
    near = (lengths < were) & (lengths < _NEAR[1] * max(_NEAR[0], stretch) * sums)
    return bool((near & (were > _BONDED * sums)).any())
