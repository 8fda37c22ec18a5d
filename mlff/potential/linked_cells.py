"""Neighbours of many atoms, on the device: atoms are sorted into the cells of a grid, those of adjacent cells are compared.

A grid cell is as wide as the reach or wider, so that whatever is within reach of an atom lies in its own grid cell or in one
of the 26 around (linked cells: Hockney, Goel & Eastwood, J. Comput. Phys. 14, 148 (1974)). Shapes are fixed: so many grid cells
along each cell vector, each with room for so many atoms. Along directions that are not periodic the grid lies around the
mean position, and its outermost grid cells reach to infinity.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.potential import bits
from mlff.potential.all_pairs import Found

SPARE = (
    0.02  #: by which grid cells are at first wider than need be, so that a cell under pressure keeps its grid for a while
)
_BLOCK = 2**18  #: candidates that are looked at at once
_ROUNDING = 1e-9  #: relative: grid cells are wider than the reach by so much at least
_SPREADS = 4.0  #: standard deviations of positions that the grid spans along directions that are not periodic

ANY = 2**20  #: grid cells along a direction that is not periodic

Grid = tuple[int, int, int]  #: so many grid cells along each cell vector


def finest(pbc, reach: float, heights, xp=jnp):
    """(3,) int32: into how many grid cells a box with these heights (3,), Å, may be divided; 0 where it is too flat for one.

    Any number along directions that are not periodic.
    """
    most = xp.floor(heights / (reach * (1 + _ROUNDING)))
    return xp.where(xp.array(pbc), xp.minimum(most, ANY), ANY).astype(xp.int32)


def choose(pbc, reach: float, fractions: np.ndarray, heights: np.ndarray) -> Grid | None:
    """A grid for fractions (n, 3) of a box with these heights (3,), Å; None where a periodic direction is too short."""
    if (finest(pbc, reach, heights, np) == 0).any():
        return None
    lengths = np.where(pbc, heights, _SPREADS * fractions.std(axis=0))
    grid = np.maximum(1, lengths // (reach * (1 + SPARE))).astype(int)
    while grid.prod() > max(1, len(fractions)):  # most of them empty
        grid[grid.argmax()] -= grid.max() // 4 + 1
    return tuple(grid.tolist())


def fullest(pbc, reach: float, grid: Grid, fractions: np.ndarray) -> int:
    """How many atoms the fullest grid cell has; fractions (n, 3) are within [0, 1] along periodic directions."""
    return int(np.bincount(_numbers(_places(pbc, reach, grid, fractions, np), grid), minlength=1).max())


def candidates(grid: Grid, pbc, occupants: int) -> int:
    """How many places are looked at for each atom."""
    return len(_offsets(grid, pbc)) * occupants


def search(
    pbc: tuple[bool, bool, bool],
    reach: float,
    width: int,
    grid: Grid,
    occupants: int,
    reverse: bool,
    fractions: Array,
    box: Array,
) -> tuple[Found, Array]:
    """`Found` with K = `width`, for fractions (n, 3) of the `box` (3, 3), Å, and how many atoms the fullest grid cell has.

    Along periodic directions fractions are within [0, 1]. If a grid cell has more atoms than `occupants` some are left out.
    The candidates of an atom are numbered by grid cell and place in it; those within `reach` (Å) go into slots in that order.
    Without `reverse` that of `Found` is None.
    """
    n, total, offsets = len(fractions), int(np.prod(grid)), _offsets(grid, pbc)
    place = _places(pbc, reach, grid, fractions, jnp)
    home = jnp.where((place < 0).any(axis=1), total + 1, _numbers(place, grid))
    table, seat = _table(home, total, occupants)
    positions = fractions @ box
    seated = [jnp.append(positions[:, axis], jnp.nan)[table] for axis in range(3)]  # comparisons with NaN are False
    around, images = (jnp.asarray(array) for array in _surroundings(grid, pbc, offsets))
    middle = len(offsets) // 2

    def near(atom):
        """(w,) words: which candidates of an atom are near."""
        cells, turns = around[home[atom]], images[home[atom]]
        squares = 0.0
        for axis in range(3):
            translation = turns[:, 0] * box[0, axis] + turns[:, 1] * box[1, axis] + turns[:, 2] * box[2, axis]
            along = seated[axis][cells] - positions[atom, axis] + translation[:, None]
            squares = squares + along**2
        found = (squares < reach**2).at[middle, seat[atom]].set(False)
        return bits.pack(found.reshape(1, -1))[0]

    words = _map(near, n, _BLOCK // (len(offsets) * occupants))
    before, most = bits.count(words)
    slots = jnp.arange(width, dtype=jnp.int32)

    def fill(atom):
        """neighbors, mask, reverse (K,), shifts (K, 3) of an atom."""
        found, there = (rows[0] for rows in bits.nth_set(words[atom][None], before[atom][None], slots))
        offset, other = found // occupants, table[around[home[atom], found // occupants], found % occupants]
        other = jnp.where(there, other, atom)
        place, mutual = bits.rank(words, before, other, (len(offsets) - 1 - offset) * occupants + seat[atom])
        mask = there & mutual  # rounding must not list one direction of a pair only
        neighbors = jnp.where(mask, other, atom)
        back = jnp.where(mask & (place < width), neighbors * width + place, atom * width + slots) if reverse else None
        shifts = jnp.where(mask[:, None], images[home[atom], offset], 0)
        return neighbors, mask, back, shifts

    found = Found(*_map(fill, n, _BLOCK // width), most)
    return found, jnp.zeros(total, jnp.int32).at[home].add(1, mode="drop").max()


def _map(function, n: int, size: int):
    """`function` of each of n atoms, of so many at once."""
    size = max(1, min(n, size))
    blocks = jnp.minimum(jnp.arange(-(-n // size) * size, dtype=jnp.int32), n - 1).reshape(-1, size)
    return jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:])[:n], jax.lax.map(jax.vmap(function), blocks))


def _offsets(grid: Grid, pbc) -> np.ndarray:
    """(m, 3): steps to the grid cells around and to itself; those in opposite directions stand in opposite places."""
    reaches = [int(periodic or count > 1) for count, periodic in zip(grid, pbc, strict=True)]
    return np.array(list(itertools.product(*[range(-r, r + 1) for r in reaches])))


def _surroundings(grid: Grid, pbc, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (cells, m) int32 of the grid cells around each, that of an empty one beyond the edge, and images (cells, m, 3) int8."""
    counts = np.array(grid)
    cells = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1).reshape(-1, 1, 3) + offsets
    images = cells // counts
    outside = ((images != 0) & ~np.array(pbc, bool)).any(axis=2)
    numbers = np.where(outside, counts.prod(), _numbers(cells - images * counts, grid))
    return numbers.astype(np.int32), np.where(outside[..., None], 0, images).astype(np.int8)


def _places(pbc, reach: float, grid: Grid, fractions, xp):
    """(n, 3) int32: the grid cell of each atom; negative where a position is not finite."""
    counts = xp.array(grid, fractions.dtype)
    across = xp.maximum(reach * (1 + _ROUNDING), _SPREADS * fractions.std(axis=0) / counts)
    low = xp.where(xp.array(pbc), 0.0, fractions.mean(axis=0) - 0.5 * counts * across)
    place = xp.floor((fractions - low) / xp.where(xp.array(pbc), 1 / counts, across))
    return xp.where(xp.isfinite(place), xp.clip(place, 0, counts - 1), -1).astype(xp.int32)


def _numbers(place, grid):
    return (place[..., 0] * grid[1] + place[..., 1]) * grid[2] + place[..., 2]


def _table(home: Array, total: int, occupants: int) -> tuple[Array, Array]:
    """(cells + 1, occupants) int32 the atoms of each grid cell, n in empty places and in the last; the place of each atom (n,)."""
    n = len(home)
    order = jnp.argsort(home).astype(jnp.int32)
    first = jnp.searchsorted(home[order], jnp.arange(total, dtype=home.dtype)).astype(jnp.int32)
    seat = jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32) - first[home[order]])
    table = jnp.full((total + 1, occupants), n, jnp.int32)
    return table.at[home, seat].set(jnp.arange(n, dtype=jnp.int32), mode="drop"), jnp.minimum(seat, occupants - 1)
