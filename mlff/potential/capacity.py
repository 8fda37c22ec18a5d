"""How much room a neighbour list of the device has, and what a search needed: shapes of compiled programs.

A few atoms are searched over all pairs and images (`all_pairs`), many by a grid (`linked_cells`), whichever looks at less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.data.batching import round_up
from mlff.data.neighbors import neighbor_list, neighbor_slabs
from mlff.potential import linked_cells
from mlff.potential.linked_cells import Grid

SLACK = 0.1  #: spare neighbour slots, and spare places of a grid cell, as a share of the largest count
MOST_PAIRS = 20_000_000  #: pairs and images of a search over all of them beyond which a search on the host is faster
_GRID_PAYS = 2  #: a grid is used where it looks at so many times fewer candidates than there are pairs and images
_SLAB = 2**16  #: atoms from which on the host counts neighbours slab by slab


class Capacity(NamedTuple):
    """What a list has room for: shapes of compiled programs."""

    neighbors: int  #: K
    images: tuple[int, int, int]  #: of the cell that are searched on both sides along each cell vector, without a grid
    grid: Grid | None = None  #: of the search; None: all pairs
    occupants: int = 0  #: atoms of a grid cell
    chunk: int = 0  #: atoms whose forces are computed at once (`chunks`); 0: all, for which pairs have `reverse`


class Demand(NamedTuple):
    """What a search needed."""

    neighbors: Array  #: () int32, largest number of neighbours of an atom
    images: Array  #: (3,) int32
    grid: Array  #: (3,) int32: the finest that the cell allows
    occupants: Array  #: () int32: atoms of the fullest grid cell


class Search(NamedTuple):
    """What does not change in a simulation."""

    pbc: tuple[bool, bool, bool]
    cutoff: float  #: Å, of the model
    skin: float  #: Å
    dtype: type  #: of the model


def allocate(search: Search, positions: np.ndarray, cell: np.ndarray, least: Capacity | None = None) -> Capacity:
    """Capacities for positions (n, 3) and cell (3, 3), Å, with slack, not below `least`. Raises StructureError: too many pairs."""
    n, reach = len(positions), search.cutoff + search.skin
    grid, occupants = choose_grid(search, positions, cell) if least is None else _same_grid(search, positions, cell, least)
    most = _most_neighbors(positions, cell, np.array(search.pbc), reach)
    room = Capacity(_slots(search, n, most), tuple(image_counts(search, cell).tolist()), grid, occupants)
    if least is None:
        return room
    images = tuple(max(pair) for pair in zip(room.images, least.images, strict=True))
    occupants = max(occupants, least.occupants) if grid else 0
    return Capacity(max(room.neighbors, least.neighbors), images, grid, occupants, least.chunk)


def enlarge(search: Search, n: int, room: Capacity, demand: Demand) -> Capacity:
    """Room for what a search of n atoms needed, with slack, nowhere less than there was; with a coarser grid where it must be."""
    width = max(room.neighbors, _slots(search, n, int(demand.neighbors)))
    images = tuple(max(pair) for pair in zip(room.images, np.asarray(demand.images).tolist(), strict=True))
    grid, occupants = room.grid, room.occupants
    if grid is not None:
        grid = tuple(min(pair) for pair in zip(grid, np.asarray(demand.grid).tolist(), strict=True))
        wider = np.prod(room.grid) / max(1, np.prod(grid))
        occupants = max(occupants, _places(n, float(demand.occupants) * wider))
    if grid is not None and min(grid) < 1:
        grid, occupants = None, 0
    return Capacity(width, images, grid, occupants, room.chunk)


def largest(rooms: Sequence[Capacity]) -> Capacity:
    """Room for what fits into any of these; they have the same grid, or it is searched without one."""
    alike = len({(room.grid, room.chunk) for room in rooms}) == 1
    images = tuple(map(max, zip(*(room.images for room in rooms), strict=True)))
    grid, occupants, chunk = (
        (rooms[0].grid, max(room.occupants for room in rooms), rooms[0].chunk) if alike else (None, 0, 0)
    )
    return Capacity(max(room.neighbors for room in rooms), images, grid, occupants, chunk)


def choose_grid(search: Search, positions: np.ndarray, cell: np.ndarray) -> tuple[Grid | None, int]:
    """The grid for positions (n, 3) and cell (3, 3), Å, and room for the atoms of its cells; None and 0 if it would not pay."""
    fractions, heights = fractions_of(search, positions, cell)
    reach, n = search.cutoff + search.skin, len(positions)
    grid = linked_cells.choose(search.pbc, reach, fractions, heights)
    if grid is None:
        return None, 0
    occupants = _places(n, linked_cells.fullest(search.pbc, reach, grid, fractions))
    looked_at = n * linked_cells.candidates(grid, search.pbc, occupants)
    return (grid, occupants) if _GRID_PAYS * looked_at < pairs_searched(search, n, cell) else (None, 0)


def too_many(search: Search, positions: np.ndarray, cell: np.ndarray) -> bool:
    """Whether a search on the host is faster: there are many pairs, and a grid is of no use."""
    if pairs_searched(search, len(positions), cell) <= MOST_PAIRS:
        return False
    return choose_grid(search, positions, cell)[0] is None


def room_in_numbers(room: Capacity) -> np.ndarray:
    """(9,) int: for a file."""
    return np.array([room.neighbors, *room.images, *(room.grid or (0, 0, 0)), room.occupants, room.chunk])


def room_from_numbers(numbers: np.ndarray, n: int, replicas: int, most: int) -> Capacity | None:
    """What `room_in_numbers` gave, or its first four numbers, for n atoms of each replica; None if it makes no sense.

    `most`: neighbour slots that can be.
    """
    if numbers.shape not in ((4,), (9,)) or (numbers < 0).any():
        return None
    neighbors, a, b, c, *grid, occupants, chunk = np.pad(numbers, (0, 9 - len(numbers))).tolist()
    sane = 0 < neighbors <= most and max(a, b, c) <= 50 and chunk <= n * replicas and max(grid) < 2**20
    if not any(grid):
        return Capacity(neighbors, (a, b, c), None, 0, chunk) if sane and occupants == 0 else None
    if not sane or not 1 <= np.prod(grid) <= n or not 0 < occupants <= n:
        return None
    return Capacity(neighbors, (a, b, c), tuple(grid), occupants, chunk)


def image_counts(search: Search, cell: np.ndarray) -> np.ndarray:
    """(3,) images of the cell (3, 3) that must be searched on both sides along each vector."""
    return np.asarray(needed_images(search, heights_of(np.linalg.inv(box_of(search.pbc, cell)), np), np))


def pairs_searched(search: Search, n: int, cell: np.ndarray) -> float:
    """How many pairs and images one search of n atoms without a grid looks at."""
    return float(n) ** 2 * float(np.prod(2.0 * image_counts(search, cell) + 1))


def box_of(pbc, cell: np.ndarray) -> np.ndarray:
    """(3, 3): the cell vectors of periodic directions, and unit vectors across them for the others."""
    pbc, box = np.array(pbc, bool), np.eye(3)
    if pbc.any():
        box[pbc] = np.asarray(cell, np.float64)[pbc]
        box[~pbc] = np.linalg.svd(box[pbc])[2][pbc.sum() :]
    return box


def heights_of(inverse, xp=jnp):
    """(3,) Å: distances between the faces of the box with this inverse."""
    return 1 / xp.sqrt((inverse**2).sum(axis=0))


def needed_images(search: Search, heights, xp=jnp):
    """(3,) int32: with fractions rounded to [-1/2, 1/2], an image n is within reach if |n| <= reach / height + 1/2."""
    return (xp.floor((search.cutoff + search.skin) / heights + 0.5) * xp.array(search.pbc)).astype(xp.int32)


def fractions_of(search: Search, positions: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) shares of the box, within [0, 1] along periodic directions, and its heights (3,), Å."""
    inverse = np.linalg.inv(box_of(search.pbc, cell))
    fractions = positions @ inverse
    return fractions - np.floor(fractions) * np.array(search.pbc), heights_of(inverse, np)


def _most_neighbors(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach: float) -> int:
    if len(positions) < _SLAB:
        return int(np.bincount(neighbor_list(positions, cell, pbc, reach)[0], minlength=1).max(initial=1))
    return max(int(np.bincount(i, minlength=1).max()) for _, i, _, _ in neighbor_slabs(positions, cell, pbc, reach, _SLAB))


def _same_grid(search: Search, positions: np.ndarray, cell: np.ndarray, least: Capacity) -> tuple[Grid | None, int]:
    """A grid no finer than that of `least`, or none where that has none."""
    if least.grid is None:
        return None, 0
    fractions, heights = fractions_of(search, positions, cell)
    reach = search.cutoff + search.skin
    grid = tuple(np.minimum(least.grid, linked_cells.finest(search.pbc, reach, heights, np)).tolist())
    if 0 in grid:
        return None, 0
    return grid, _places(len(positions), linked_cells.fullest(search.pbc, reach, grid, fractions))


def _slots(search: Search, n: int, neighbors: int) -> int:
    """K for n atoms with up to so many neighbours."""
    width = round_up(int(np.ceil(neighbors * (1 + SLACK))), 0.0625)
    return width if any(search.pbc) else min(width, max(1, n - 1))


def _places(n: int, occupants: float) -> int:
    """Places of a grid cell for up to so many of n atoms."""
    return min(n, int(np.ceil(occupants * (1 + SLACK))))
