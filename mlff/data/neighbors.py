"""Positions, cell and periodicity to a list of neighbours (through vesin)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import scipy.spatial
import vesin

from mlff.basics.errors import StructureError
from mlff.basics.runtime import free_memory

# Below so many atoms without periodicity all distances in numpy are faster than building cells.
_ALL_PAIRS = 48
# vesin 0.6 makes at most 1e5 cells; on long or flat systems above that it divides by zero and takes the process along.
_MOST_CELLS, _FEWEST_ACROSS = 5e4, 2.0
_PAIR_BYTES = 100.0  # a pair while it is searched and sorted in
_CROWD = 1e5  # neighbours of one atom that no real structure has
# 50 along each direction: in cells smaller or flatter than any crystal's the search would hardly end.
_MOST_IMAGES = 1.25e5


def neighbor_list(positions, cell, pbc, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The full neighbour list, sorted by center: pairs with |r_j - r_i + shifts @ cell| < cutoff.

    positions (n, 3) and cell (3, 3) in Å, pbc (3,) bool, cutoff in Å. Returns centers (P,), neighbors (P,) and shifts
    (P, 3), all int32 and C-contiguous. Both directions of each pair are listed and periodic images of an atom are its
    neighbours; an atom is never its own neighbour in the home cell. Cell vectors of directions that are not periodic
    are ignored; atoms may lie anywhere. The order is the same from call to call.

    Raises StructureError: a position or periodic cell vector that is not finite, a periodic direction without extent, a cell
    with more than 125,000 images within the cutoff, more pairs than there can be, or than memory holds.
    """
    positions = np.ascontiguousarray(positions, dtype=np.float64)
    pbc = np.asarray(pbc, dtype=bool)
    if positions.ndim != 2 or positions.shape[1] != 3 or pbc.shape != (3,):
        raise ValueError(f"positions (n, 3) and pbc (3,) expected, found {positions.shape} and {pbc.shape}")
    if not 0 < cutoff < math.inf:
        raise ValueError(f"the cutoff must be a positive length, found {cutoff}")
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise StructureError(f"position of atom {atom} is not finite; no neighbours can be found")
    if len(positions) == 0 or not pbc.any() and len(positions) <= _ALL_PAIRS:
        return _all_pairs(positions, cutoff)
    box, inverse, heights = _box(positions, cell, pbc)
    free = np.prod((heights + cutoff)[~pbc])  # across directions that are not periodic
    _refuse_crowd(len(positions), free * (abs(np.linalg.det(box)) if pbc.any() else 1.0), cutoff)
    home = np.floor(positions @ inverse) * pbc
    wrapped = positions - home @ box
    _check_images(heights[pbc], cutoff)
    cells = np.maximum(heights / cutoff, 1.0)
    if cells.prod() > _MOST_CELLS and cells.min() * np.cbrt(1e5 / cells.prod()) < _FEWEST_ACROSS:
        i, j, shifts = _by_tree(wrapped, box, inverse, pbc, heights, cutoff)
        return i, j, _unwrap(shifts, home, i, j)
    calculator = vesin.NeighborList(cutoff=float(cutoff), full_list=True, sorted=True, n_threads=1)
    i, j, shifts = calculator.compute(points=wrapped, box=box, periodic=pbc, quantities="ijS", copy=False)
    i, j = i.astype(np.int32), j.astype(np.int32)
    return i, j, _unwrap(shifts, home, i, j)


def neighbor_slabs(positions, cell, pbc, cutoff: float, atoms: int = 2**16) -> Iterator[tuple[np.ndarray, ...]]:
    """The same pairs in parts, so that large systems need little memory: slab by slab of up to so many atoms.

    Yields atoms (m,), the centers of a slab; the pairs' centers (P,) as places among those, ascending; neighbors (P,) and
    shifts (P, 3) as `neighbor_list` does. Every atom is in one slab.
    """
    positions, pbc = np.ascontiguousarray(positions, dtype=np.float64), np.asarray(pbc, dtype=bool)
    box, inverse, heights = _box(positions, cell, pbc)
    if not pbc.any():
        box = inverse = np.eye(3)
    axis = int(heights.argmax())
    others = pbc & (np.arange(3) != axis)
    along = positions @ inverse[:, axis]
    turns = np.floor(along).astype(np.int64) * pbc[axis]
    order = np.argsort(along - turns, kind="stable")
    along = (along - turns)[order]
    margin = (1 + 1e-9) * cutoff * np.linalg.norm(inverse[:, axis]) + 1e-12
    for first in range(0, len(positions), atoms):
        last = min(first + atoms, len(positions))
        low, high = along[first] - margin, along[last - 1] + margin
        members, images = [order[first:last]], [np.zeros(last - first, np.int64)]
        for image in range(math.floor(low), math.floor(high) + 1) if pbc[axis] else (0,):
            begin, end = np.searchsorted(along, low - image), np.searchsorted(along, high - image, side="right")
            parts = ((begin, min(end, first)), (max(begin, last), end)) if image == 0 else ((begin, end),)
            for a, b in parts:
                members.append(order[a:b] if a < b else order[:0])
                images.append(np.full(len(members[-1]), image, np.int64))
        member = np.concatenate(members)
        image = np.concatenate(images) - turns[member]
        i, j, shifts = neighbor_list(positions[member] + image[:, None] * box[axis], cell, others, cutoff)
        count = int(np.searchsorted(i, last - first))
        i, j, shifts = i[:count], j[:count], shifts[:count]
        shifts[:, axis] += (image[j] - image[i]).astype(np.int32)
        yield order[first:last], i, member[j].astype(np.int32), shifts


def pair_vectors(positions, cell, i, j, shifts) -> np.ndarray:
    """r_j - r_i + shifts @ cell (P, 3) of a list of pairs, Å; not by BLAS, whose threads take longer to meet than to multiply."""
    return np.take(positions, j, axis=0) - np.take(positions, i, axis=0) + np.einsum("pa,ab->pb", shifts, cell)


def check_cell(cell, pbc, cutoff: float = 5.0) -> None:
    """Raise StructureError for a cell (3, 3), Å, with so many images within `cutoff` that no neighbours can be listed."""
    pbc = np.asarray(pbc, dtype=bool)
    _, _, heights = _box(np.zeros((1, 3)), cell, pbc)
    _check_images(heights[pbc], cutoff)


def coincident_pair(positions, cell, pbc, distance: float) -> tuple[int, int] | None:
    """The first two atoms (or an atom and an image, then i == j) nearer than `distance` (Å, small), or None."""
    positions = np.ascontiguousarray(positions, dtype=np.float64)
    if not np.asarray(pbc, dtype=bool).any():
        pairs = scipy.spatial.cKDTree(positions).query_pairs(distance) if len(positions) > 1 else ()
        return min(pairs) if pairs else None
    if len(positions) == 0:
        return None
    cell = np.asarray(cell, dtype=np.float64)
    spacing = np.cbrt(abs(np.linalg.det(cell)) / len(positions))
    reach = max(distance, min(max(spacing, 1.5), 5.0))
    i, j, shifts = neighbor_list(positions, cell, pbc, reach)
    vectors = pair_vectors(positions, cell, i, j, shifts)
    close = np.flatnonzero(np.einsum("pk,pk->p", vectors, vectors) < distance**2)
    return (int(i[close[0]]), int(j[close[0]])) if len(close) else None


def _refuse_crowd(n: int, volume: float, cutoff: float) -> None:
    """Raise StructureError where n atoms in this volume (Å³) make more pairs than real ones can, or than memory holds."""
    around = n / max(volume, 1e-300) * 4 / 3 * math.pi * cutoff**3
    needed = n * around * _PAIR_BYTES
    if around > _CROWD or needed > 1e8 and needed > free_memory():
        found = f"about {around:,.0f} neighbours per atom within {cutoff:g} Å"
        raise StructureError(f"{found}: too many; are cell and positions in Å?")


def _check_images(heights, cutoff) -> None:
    images = math.prod((2 * (cutoff // heights) + 1).tolist())
    if images > _MOST_IMAGES:
        near = f"{images:.0e} of its images lie within {cutoff:g} Å"
        raise StructureError(f"the cell is so small or flat that {near}; are cell and positions in Å?")


def _all_pairs(positions, cutoff):
    vectors = positions[None] - positions[:, None]
    near = np.einsum("ijk,ijk->ij", vectors, vectors) < cutoff * cutoff
    near.flat[:: len(positions) + 1] = False
    i, j = near.nonzero()
    return i.astype(np.int32), j.astype(np.int32), np.zeros((len(i), 3), dtype=np.int32)


def _unwrap(shifts, home, i, j):
    """Shifts between wrapped atoms to shifts between the atoms as given."""
    if home.any():
        home = home.astype(np.int64)
        shifts = shifts + np.take(home, i, axis=0) - np.take(home, j, axis=0)
    return np.array(shifts, dtype=np.int32, order="C")


def _box(positions, cell, pbc):
    """The cell (unit vectors where it is not periodic), its inverse, and the extent of the system along each vector, Å."""
    box = np.zeros((3, 3))
    if not pbc.any():
        return box, box, np.ptp(positions, axis=0)
    box[pbc] = np.asarray(cell, dtype=np.float64)[pbc]
    if not np.isfinite(box).all():
        raise StructureError("the cell is not finite; no neighbours can be found")
    lengths = np.linalg.norm(box[pbc], axis=1)
    if (lengths == 0).any():
        axis = "abc"[np.flatnonzero(pbc)[lengths == 0][0]]
        raise StructureError(f"periodic along {axis}, but the cell vector {axis} is zero; set the cell or pbc")
    _, singular, directions = np.linalg.svd(box[pbc] / lengths[:, None])
    if singular[-1] < 1e-9:
        raise StructureError("the periodic cell vectors lie in one plane or line; the cell has no volume")
    box[~pbc] = directions[pbc.sum() :]
    inverse = np.linalg.inv(box)
    heights = 1 / np.linalg.norm(inverse, axis=0)
    if not pbc.all():
        heights[~pbc] = np.ptp(positions @ box[~pbc].T, axis=0)
    return box, inverse, heights


def _by_tree(positions, box, inverse, pbc, heights, cutoff):
    """The same list of wrapped atoms through a k-d tree of atoms and images: slower, for any shape of system."""
    fractional = positions @ inverse
    margin = np.where(pbc, cutoff / np.maximum(heights, 1e-300), np.inf)
    reach = np.where(pbc, np.ceil(margin), 0).astype(int)
    atoms, images = [], []
    for image in itertools.product(*[range(-r, r + 1) for r in reach]):
        moved = fractional + image
        (near,) = ((moved >= -margin) & (moved <= 1 + margin)).all(axis=1).nonzero()
        atoms.append(near)
        images.append(np.broadcast_to(image, (len(near), 3)))
    atoms, images = np.concatenate(atoms), np.concatenate(images)
    tree, ghosts = scipy.spatial.cKDTree(positions), scipy.spatial.cKDTree(positions[atoms] + images @ box)
    pairs = tree.sparse_distance_matrix(ghosts, cutoff, output_type="ndarray")
    i, j, shifts = pairs["i"], atoms[pairs["j"]], images[pairs["j"]]
    keep = (pairs["v"] < cutoff) & ((i != j) | shifts.any(axis=1))
    order = np.lexsort((*shifts.T, j, i))
    order = order[keep[order]]
    return i[order].astype(np.int32), j[order].astype(np.int32), shifts[order]
