"""Pairs of atoms as dense arrays, K neighbour slots for each atom: from a search, or from an engine that has its own list."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from mlff.basics.errors import StructureError
from mlff.data.neighbors import neighbor_list, neighbor_slabs, pair_vectors
from mlff.data.placement import recenter_fragments
from mlff.data.structure import COINCIDENT
from mlff.graph import Graph

MANY = 50_000  #: atoms from which on arrays of all pairs are not made where that can be
_SAME = 1e-3  #: Å: a pair and its reverse are as long to that; engines give vectors in float32


class Pairs(NamedTuple):
    """The neighbours of n atoms, up to k of each; empty slots hold the atom itself."""

    positions: np.ndarray  #: (n, 3) Å: as given, or moved to where float32 keeps its digits
    neighbors: np.ndarray  #: (n, k) int32
    mask: np.ndarray  #: (n, k) bool
    reverse: (
        np.ndarray | None
    )  #: (n, k) int32, index into (n * k,) of the same pair in its other direction; of empty slots the slot itself
    shifts: np.ndarray  #: (n, k, 3) whole cell vectors
    moves: tuple[np.ndarray, np.ndarray] | None  #: by which positions were moved, see `recenter_fragments`


def find_pairs(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach: float, reverse: bool = True) -> Pairs:
    """All pairs up to `reach` (Å) of positions (n, 3), Å, wrapped into the cell (3, 3) along periodic directions.

    Without `reverse`, from `MANY` atoms on they get no `Pairs.reverse`, and are searched in little memory. Raises StructureError
    when two atoms are on top of each other, or when there are too many pairs.
    """
    if not reverse and len(positions) >= MANY:
        return _find_many(positions, cell, pbc, reach)
    i, j, shifts = neighbor_list(positions, cell, pbc, reach)
    vectors = pair_vectors(positions, cell, i, j, shifts)
    refuse_coincident(i, j, vectors)
    if moves := recenter_fragments(positions, cell, pbc, i, j):
        positions = positions + moves[0] @ cell + moves[1]
        shifts = shifts + (moves[0][i] - moves[0][j]).astype(np.int32)
    return Pairs(positions, *to_dense(len(positions), i, j, shifts), moves)


def _find_many(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach: float) -> Pairs:
    """Slab by slab; shifts are int8 where that is enough."""
    n = len(positions)
    neighbors, mask, shifts = (np.zeros((n, 0, *rest), kind) for rest, kind in (((), np.int32), ((), bool), ((3,), np.int8)))
    for atoms, i, j, images in neighbor_slabs(positions, cell, pbc, reach):
        refuse_coincident(atoms[i], j, pair_vectors(positions, cell, atoms[i], j, images))
        counts = np.bincount(i, minlength=len(atoms))
        if (wider := int(counts.max(initial=0)) - mask.shape[1]) > 0:
            neighbors, mask, shifts = (_widened(array, wider) for array in (neighbors, mask, shifts))
        slots = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
        shifts = shifts if np.abs(images).max(initial=0) < 100 else shifts.astype(np.int32)
        neighbors[atoms] = atoms[:, None]
        neighbors[atoms[i], slots], mask[atoms[i], slots], shifts[atoms[i], slots] = j, True, images
    centers, slots = np.nonzero(mask & (neighbors > np.arange(n, dtype=np.int32)[:, None]))  # each pair once
    if moves := recenter_fragments(positions, cell, pbc, centers.astype(np.int32), neighbors[centers, slots]):
        positions = positions + moves[0] @ cell + moves[1]
        cells = moves[0].astype(np.int32)
        shifts = shifts if np.ptp(cells) < 27 else shifts.astype(np.int32)
        for start in range(0, n, 2**16):
            rows = slice(start, start + 2**16)
            shifts[rows] += (cells[rows, None] - cells[neighbors[rows]]).astype(shifts.dtype)
    return Pairs(positions, neighbors, mask, None, shifts, moves)


def _widened(array: np.ndarray, by: int) -> np.ndarray:
    """With more slots (n, k + by, ...), empty."""
    return np.concatenate([array, np.zeros((len(array), by, *array.shape[2:]), array.dtype)], axis=1)


def refuse_coincident(centers: np.ndarray, neighbors: np.ndarray, vectors: np.ndarray) -> None:
    """Raise StructureError for atoms on top of each other; vectors (P, 3) in Å."""
    close = np.flatnonzero(np.einsum("pa,pa->p", vectors, vectors) < COINCIDENT**2)
    if len(close):
        raise StructureError(f"atoms {centers[close[0]]} and {neighbors[close[0]]} are on top of each other")


def graph_of_vectors(
    numbers: np.ndarray, centers: np.ndarray, neighbors: np.ndarray, vectors: np.ndarray, cutoff: float, dtype=np.float32
) -> Graph:
    """The graph of one structure whose pairs someone else has found: numbers (n,), centers and neighbors (P,), vectors (P, 3), Å.

    The vectors r_j - r_i go from center to neighbour, over images where it is one. Pairs beyond the cutoff are left out; each
    of the others must be listed in both directions, in any order. Positions and cell of the graph are zeros. Raises
    StructureError: a pair without its reverse, or of atoms on top of each other; a number that is no atom's.
    """
    n = len(numbers)
    pairs = np.stack([centers, neighbors], axis=1).astype(np.int64) if len(centers) else np.zeros((0, 2), np.int64)
    vectors = np.asarray(vectors, np.float64).reshape(-1, 3)
    if len(pairs) != len(vectors) or not np.isfinite(vectors).all():
        raise StructureError(f"{len(pairs)} pairs have {len(vectors)} vectors, or some are not finite")
    if pairs.size and not (0 <= pairs.min() and pairs.max() < n):
        raise StructureError(f"a pair names atom {pairs.max() if pairs.max() >= n else pairs.min()} of {n}")
    near = np.linalg.norm(vectors, axis=1) < cutoff
    kept = np.flatnonzero(near)[np.argsort(pairs[near, 0], kind="stable")]
    pairs, vectors = pairs[kept], vectors[kept]
    refuse_coincident(*pairs.T, vectors)
    other = _reverse_by_vectors(pairs, vectors)
    neighbors, mask, reverse, shifts = _spread(n, *pairs.T, other, np.zeros((len(pairs), 3), np.int32))
    width = max(1, neighbors.shape[1])
    given = np.zeros((n, width, 3), dtype)
    given[mask] = vectors
    if not neighbors.shape[1]:
        neighbors, mask = np.arange(n, dtype=np.int32)[:, None], np.zeros((n, 1), bool)
        reverse = neighbors.copy()
    return Graph(
        positions=np.zeros((n, 3), dtype),
        atomic_numbers=np.asarray(numbers, np.int32),
        structure=np.zeros(n, np.int32),
        n_atoms=np.array([n], np.int32),
        cell=np.zeros((1, 3, 3), dtype),
        pbc=np.zeros((1, 3), bool),
        neighbors=neighbors,
        neighbor_mask=mask,
        reverse=reverse,
        shifts=None,
        vectors=given,
    )


def _reverse_by_vectors(pairs: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(P,): the place of each pair's other direction. Raises StructureError where there is none."""
    if not len(pairs):
        return np.zeros(0, np.int64)
    apart = 10 * (1 + np.abs(vectors).max())  # two pairs of other atoms are farther from each other than any vectors are
    here = np.concatenate([apart * pairs, vectors], axis=1)
    there = np.concatenate([apart * pairs[:, ::-1], -vectors], axis=1)
    distance, place = cKDTree(here).query(there)
    wrong = np.flatnonzero((distance > _SAME) | (place[place] != np.arange(len(pairs))))
    if len(wrong):
        i, j = pairs[wrong[0]]
        length = np.linalg.norm(vectors[wrong[0]])
        raise StructureError(
            f"the pair of atoms {i} and {j}, {length:.4g} Å apart, is not listed from {j} to {i} too; give a full neighbour "
            "list (of LAMMPS: newton off or a full list, with a ghost cutoff that reaches)"
        )
    return place


def to_dense(n: int, centers: np.ndarray, neighbors: np.ndarray, shifts: np.ndarray):
    """A full pair list sorted by center to dense arrays: neighbors, mask and reverse (n, k), shifts (n, k, 3); see `Sample`.

    A pair that is listed in one direction only (at the cutoff to the last digit, where it counts nothing) is left out.
    """
    other = reverse_pairs(n, centers, neighbors, shifts)
    if (single := other < 0).any():
        kept = ~single
        other = (np.cumsum(kept) - 1)[other[kept]]
        centers, neighbors, shifts = centers[kept], neighbors[kept], shifts[kept]
    return _spread(n, centers, neighbors, other, shifts)


def _spread(n: int, centers: np.ndarray, neighbors: np.ndarray, other: np.ndarray, shifts: np.ndarray):
    """The same from pairs sorted by center and the place of each pair's other direction."""
    counts = np.bincount(centers, minlength=n)
    k = int(counts.max(initial=0))
    slots = np.arange(len(centers)) - np.repeat(np.cumsum(counts) - counts, counts)
    dense = np.repeat(np.arange(n, dtype=np.int32)[:, None], k, axis=1)
    mask = np.zeros((n, k), dtype=bool)
    reverse = np.arange(n * k, dtype=np.int32).reshape(n, k)
    spread = np.zeros((n, k, 3), dtype=shifts.dtype)
    places = centers.astype(np.int64) * k + slots
    dense.reshape(-1)[places] = neighbors
    mask.reshape(-1)[places] = True
    reverse.reshape(-1)[places] = places[other]
    spread.reshape(-1, 3)[places] = shifts
    return dense, mask, reverse, spread


def reverse_pairs(n: int, centers: np.ndarray, neighbors: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """(P,): the place in the list of each pair's other direction, (j, i, -S) of (i, j, S); -1 where it is not listed."""
    reach = int(np.abs(shifts).max(initial=0))
    width = 2 * reach + 1
    if n * n * width**3 < 2**62:
        number = np.array([width * width, width, 1])
        here, there, images = (shifts + reach) @ number, (reach - shifts) @ number, width**3
    else:  # images far away: number those that there are
        codes = np.unique(np.concatenate([shifts, -shifts]), axis=0, return_inverse=True)[1].reshape(2, -1)
        here, there, images = *codes, 2 * len(shifts)
    i, j = centers.astype(np.int64), neighbors.astype(np.int64)
    listed, wanted = (i * n + j) * images + here, (j * n + i) * images + there
    order, turned = np.argsort(listed), np.argsort(wanted)
    if np.array_equal(listed[order], wanted[turned]):
        place = np.empty_like(order)
        place[turned] = order
        return place
    place = order[np.minimum(np.searchsorted(listed, wanted, sorter=order), max(len(order) - 1, 0))]
    return np.where(listed[place] == wanted, place, -1)
