"""Where atoms of wide structures are put, so that float32 keeps the digits of every pair.

Energies depend on pairs within reach only: each fragment (atoms that neighbours connect) may be moved as a whole, and its
atoms by whole cell vectors. A float32 position at 1e4 Å is good to 1e-3 Å; near the origin to better than 1e-6 Å.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

WIDE = 128.0  #: Å; positions nearer to the origin are good to 4e-6 Å in float32, farther away to 8e-6 Å and worse


def recenter_fragments(positions, cell, pbc, i, j) -> tuple[np.ndarray, np.ndarray] | None:
    """Whole cell vectors (n, 3) and translations (n, 3), Å, that bring every fragment together and to the origin.

    positions (n, 3) and cell (3, 3) in Å, wrapped along periodic directions pbc (3,); i, j: a full neighbour list of them.
    Atoms go to positions + vectors @ cell + translations, shifts of pairs to shifts + vectors[i] - vectors[j]. None for
    structures that lie around the origin anyway.
    """
    n = len(positions)
    if n == 0 or np.abs(positions).max() <= WIDE:
        return None
    links = scipy.sparse.coo_matrix((np.ones(len(i), np.int8), (i, j)), shape=(n, n))
    count, fragment = scipy.sparse.csgraph.connected_components(links, directed=False)
    vectors = np.zeros((n, 3))
    if pbc.any():
        lattice = positions @ np.linalg.pinv(cell[pbc])
        for axis, share in zip(np.flatnonzero(pbc), lattice.T, strict=True):
            vectors[:, axis] = _below_largest_gap(share % 1.0, fragment, count) - np.floor(share)
    moved = positions + vectors @ cell
    sizes = np.bincount(fragment, minlength=count)
    centers = np.stack([np.bincount(fragment, moved[:, axis], count) / sizes for axis in range(3)], axis=1)
    return vectors, -centers[fragment]


def _below_largest_gap(share: np.ndarray, fragment: np.ndarray, count: int) -> np.ndarray:
    """(n,): 1 for atoms below the widest empty stretch of their fragment on the circle [0, 1), else 0."""
    order = np.lexsort((share, fragment))
    sorted_share, first = share[order], np.searchsorted(fragment[order], np.arange(count))
    before = np.roll(sorted_share, 1)
    last = np.append(first[1:], len(order)) - 1
    before[first] = sorted_share[last] - 1.0  # around the circle
    gaps = sorted_share - before
    widest = np.maximum.reduceat(gaps, first)
    found = np.flatnonzero(gaps == widest[fragment[order]])
    begins = np.zeros(count)
    begins[fragment[order][found]] = sorted_share[found]
    return (share < begins[fragment]).astype(float)
