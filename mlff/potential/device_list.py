"""A neighbour list that is searched again on the device, inside a compiled loop.

The protocol has three parts. `allocate` (host) counts neighbours and images once and chooses capacities with slack. `build`
and `update` (pure functions of JAX) search all pairs and images, the latter only when atoms have moved too far. `Demand` says
what a search would have needed: where that is more than the `Capacity`, the list lacks pairs and must not be used.

Replicas of one structure are searched together: R replicas of n atoms with K neighbour slots each. Geometry is float64
throughout, so that a pair is found from both of its ends or from none.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.data.batching import round_up
from mlff.data.neighbors import neighbor_list
from mlff.graph import Graph

SLACK = 0.1  #: spare neighbour slots, as a share of the largest count
_BLOCK = 2_000_000  #: pairs and images that are searched at once
MOST_PAIRS = 20_000_000  #: pairs and images of a search beyond which a search on the host is faster


class Capacity(NamedTuple):
    """What a list has room for: shapes of compiled programs."""

    neighbors: int  #: K
    images: tuple[int, int, int]  #: of the cell that are searched on both sides along each cell vector


class Demand(NamedTuple):
    """What a search needed."""

    neighbors: Array  #: () int32, largest number of neighbours of an atom
    images: Array  #: (3,) int32


class NeighborList(NamedTuple):
    """The neighbours of R replicas, good as long as no atom moved too far from the reference."""

    reference: Array  #: (R, n, 3) float64, Å: positions at which it was searched
    cell: Array  #: (R, 3, 3) float64, Å: the cell then
    lattice: Array  #: (R, n, 3) float64, whole cell vectors that bring each atom into the cell
    center: Array  #: (R, 3) float64, Å: of the atoms in the cell, as shares of the cell vectors
    neighbors: Array  #: (R, n, K) int32, as in `Graph`, counted within each replica
    mask: Array  #: (R, n, K) bool
    reverse: Array  #: (R, n, K) int32
    shifts: Array | None  #: (R, n, K, 3) in the precision of the model; None without periodic directions


class Search(NamedTuple):
    """What does not change in a simulation."""

    pbc: tuple[bool, bool, bool]
    cutoff: float  #: Å, of the model
    skin: float  #: Å
    dtype: type  #: of the model


def allocate(search: Search, positions: np.ndarray, cell: np.ndarray, least: Capacity | None = None) -> Capacity:
    """Capacities for positions (n, 3) and cell (3, 3), Å, with slack, not below `least`. Raises StructureError: too many pairs."""
    n, reach = len(positions), search.cutoff + search.skin
    i, _, _ = neighbor_list(positions, cell, np.array(search.pbc), reach)
    most = int(np.bincount(i, minlength=1).max(initial=1))
    return capacity(search, n, most, image_counts(search, cell), least)


def capacity(search: Search, n: int, neighbors: int, images, least: Capacity | None = None) -> Capacity:
    """Room for so many `neighbors` and `images` (3,) of n atoms, with slack for more neighbours, not below `least`."""
    width = round_up(int(np.ceil(neighbors * (1 + SLACK))), 0.0625)
    if not any(search.pbc):
        width = min(width, max(1, n - 1))
    images = tuple(int(count) for count in images)
    if least is not None:
        width = max(width, least.neighbors)
        images = tuple(max(pair) for pair in zip(images, least.images, strict=True))
    return Capacity(width, images)


def image_counts(search: Search, cell: np.ndarray) -> np.ndarray:
    """(3,) images of the cell (3, 3) that must be searched on both sides along each vector."""
    return np.asarray(_needed_images(search, np.linalg.inv(box_of(search.pbc, cell)), np))


def pairs_searched(search: Search, n: int, cell: np.ndarray) -> float:
    """How many pairs and images one search of n atoms looks at."""
    return float(n) ** 2 * float(np.prod(2.0 * image_counts(search, cell) + 1))


def box_of(pbc, cell: np.ndarray) -> np.ndarray:
    """(3, 3): the cell vectors of periodic directions, and unit vectors across them for the others."""
    pbc, box = np.array(pbc, bool), np.eye(3)
    if pbc.any():
        box[pbc] = np.asarray(cell, np.float64)[pbc]
        box[~pbc] = np.linalg.svd(box[pbc])[2][pbc.sum() :]
    return box


def build(search: Search, room: Capacity, positions: Array, cell: Array, box: Array) -> tuple[NeighborList, Demand]:
    """The lists of positions (R, n, 3), cell (R, 3, 3), Å, and `box_of` it, and what they needed.

    If that is more than `room`, pairs are missing (indices are within bounds all the same).
    """
    listed, demand = _each(lambda *replica: _build(search, room, *replica), positions, cell, box)
    return listed, jax.tree.map(lambda needed: needed.max(axis=0), demand)


def no_list(search: Search, room: Capacity, replicas: int, atoms: int) -> NeighborList:
    """A list that holds for nothing: `update` searches."""
    shape = replicas, atoms, room.neighbors
    own = np.broadcast_to(np.arange(atoms * room.neighbors, dtype=np.int32).reshape(1, *shape[1:]), shape)
    centers = np.broadcast_to(np.arange(atoms, dtype=np.int32)[None, :, None], shape)
    return NeighborList(
        reference=np.full((replicas, atoms, 3), np.nan),
        cell=np.broadcast_to(np.eye(3), (replicas, 3, 3)),
        lattice=np.zeros((replicas, atoms, 3)),
        center=np.zeros((replicas, 3)),
        neighbors=centers,
        mask=np.zeros(shape, bool),
        reverse=own,
        shifts=np.zeros((*shape, 3), search.dtype) if any(search.pbc) else None,
    )


def update(
    search: Search, room: Capacity, listed: NeighborList, positions: Array, cell: Array, box: Array
) -> tuple[NeighborList, Demand]:
    """The lists for positions (R, n, 3) and cell (R, 3, 3), Å; new ones for the replicas whose list no longer holds."""
    kept, good = Demand(jnp.int32(0), jnp.zeros(3, jnp.int32)), holds(search, listed, positions, cell)

    def one(good, listed, *replica):
        return jax.lax.cond(good, lambda: (listed, kept), lambda: _build(search, room, *replica))

    def all_of_them():
        found, demand = _each(one, good, listed, positions, cell, box)
        return found, jax.tree.map(lambda needed: needed.max(axis=0), demand)

    return jax.lax.cond(jnp.all(good), lambda: (listed, kept), all_of_them)


def fits(room: Capacity, demand: Demand) -> Array:
    """() bool: whether the list has all pairs."""
    return (demand.neighbors <= room.neighbors) & jnp.all(demand.images <= jnp.array(room.images))


def holds(search: Search, listed: NeighborList, positions: Array, cell: Array) -> Array:
    """(R,) bool: whether every pair within the cutoff is still listed; False too for positions that are not finite.

    With F = H0⁻¹ H and displacements u_i = R_i - R0_i F, lengths obey |r| >= s |r0| - |u_j - u_i|; the smallest singular
    value s of F is at least 1 - |F - 1|.
    """
    moved, shrink = positions - listed.reference, jnp.ones(len(positions))
    if all(search.pbc):
        change = inverse_cells(listed.cell) @ cell - jnp.eye(3)
        moved = moved - listed.reference @ change
        shrink = 1 - jnp.sqrt(jnp.sum(change**2, axis=(1, 2)))
    moved = moved - moved.mean(axis=1, keepdims=True)
    largest = jnp.sqrt(jnp.sum(moved**2, axis=2).max(axis=1))
    return shrink * (search.cutoff + search.skin) - 2 * largest >= search.cutoff


def graph_at(search: Search, listed: NeighborList, numbers: Array, positions: Array, cell: Array, box: Array) -> Graph:
    """The graph of R replicas at positions (R, n, 3), Å, moved to where float32 keeps its digits; numbers (n,)."""
    count, n, width = listed.neighbors.shape
    moved = positions + (listed.lattice - listed.center[:, None]) @ box
    replica = jnp.arange(count, dtype=jnp.int32)[:, None, None]
    return Graph(
        positions=moved.reshape(-1, 3).astype(search.dtype),
        atomic_numbers=jnp.tile(numbers, count),
        structure=jnp.repeat(jnp.arange(count, dtype=jnp.int32), n),
        n_atoms=jnp.full(count, n, jnp.int32),
        cell=cell.astype(search.dtype),
        pbc=jnp.broadcast_to(jnp.array(search.pbc), (count, 3)),
        neighbors=(listed.neighbors + replica * n).reshape(-1, width),
        neighbor_mask=listed.mask.reshape(-1, width),
        reverse=(listed.reverse + replica * (n * width)).reshape(-1, width),
        shifts=None if listed.shifts is None else listed.shifts.reshape(-1, width, 3),
    )


def inverse_cells(cell: Array) -> Array:
    """(R, 3, 3), by cross products: compiles in no time."""
    rows = [jnp.cross(cell[:, (k + 1) % 3], cell[:, (k + 2) % 3]) for k in range(3)]
    volume = jnp.sum(cell[:, 0] * rows[0], axis=1)
    return jnp.stack(rows, axis=2) / volume[:, None, None]


def _needed_images(search: Search, inverse, xp=jnp):
    """(..., 3) int32: with fractions rounded to [-1/2, 1/2], an image n is within reach if |n| <= reach / height + 1/2."""
    heights = 1 / xp.sqrt((inverse**2).sum(axis=-2))
    return (xp.floor((search.cutoff + search.skin) / heights + 0.5) * xp.array(search.pbc)).astype(xp.int32)


def _each(function, *replicas):
    """`function` of one replica after the other (R in front of all arrays)."""
    if len(replicas[0]) > 1:
        return jax.lax.map(lambda replica: function(*replica), replicas)
    return jax.tree.map(lambda array: array[None], function(*jax.tree.map(lambda array: array[0], replicas)))


def _build(search: Search, room: Capacity, positions: Array, cell: Array, box: Array) -> tuple[NeighborList, Demand]:
    """The list of one replica."""
    inverse = inverse_cells(box[None])[0]
    fractions = positions @ inverse
    lattice = -jnp.floor(fractions) * jnp.array(search.pbc)
    fractions = fractions + lattice
    neighbors, mask, reverse, shifts, most = _search(search, room, fractions, box)
    shifts = shifts.astype(search.dtype) if any(search.pbc) else None
    listed = NeighborList(positions, cell, lattice, fractions.mean(axis=0), neighbors, mask, reverse, shifts)
    return listed, Demand(most, _needed_images(search, inverse))


def _search(search: Search, room: Capacity, fractions: Array, box: Array):
    """neighbors, mask, reverse (n, K), shifts (n, K, 3) and the largest count, of one replica with fractions (n, 3).

    The candidates of an atom are numbered by neighbour and image; those that are near go into slots in that order.
    """
    n, width = len(fractions), room.neighbors
    pbc = jnp.array(search.pbc)
    images = np.array(list(itertools.product(*[range(-r, r + 1) for r in room.images])), np.float64)
    count = len(images)
    translations = jnp.asarray(images) @ box

    def row(center):
        """(n, images) bool: which of all atoms in all images are near."""
        steps = fractions - fractions[center]
        steps = steps - jnp.round(steps) * pbc
        squares = 0.0
        for axis in range(3):  # sums of three products: matrix products would not be fused with what comes before and after
            along = steps[:, 0] * box[0, axis] + steps[:, 1] * box[1, axis] + steps[:, 2] * box[2, axis]
            squares = squares + (along[:, None] + translations[:, axis]) ** 2
        near = squares < (search.cutoff + search.skin) ** 2
        return near.at[center, count // 2].set(False)

    near = jax.lax.map(row, jnp.arange(n), batch_size=max(1, min(n, _BLOCK // (n * count))))
    near = near & near.transpose(1, 0, 2)[:, :, ::-1]  # rounding must not list one direction of a pair only
    words, before, most = _packed(near.reshape(n, -1))
    found, mask = _nth_set(words, before, jnp.arange(width, dtype=jnp.int32))
    centers = jnp.arange(n, dtype=jnp.int32)[:, None]
    neighbors, image = jnp.where(mask, found // count, centers), found % count
    place = _rank(words, before, neighbors, centers * count + (count - 1 - image))
    own = centers * width + jnp.arange(width, dtype=jnp.int32)
    reverse = jnp.where(mask & (place < width), neighbors * width + place, own)
    steps = jnp.round(fractions[neighbors] - fractions[centers]) * pbc
    shifts = jnp.where(mask[..., None], jnp.asarray(images)[image] - steps, 0.0)
    return neighbors, mask, reverse, shifts, most


def _packed(near: Array) -> tuple[Array, Array, Array]:
    """Rows of bool (n, c) as words of 32 bits (n, w), the bits set in earlier words of the row (n, w), and the most in a row."""
    near = jnp.pad(near, [(0, 0), (0, -near.shape[1] % 32)]).reshape(len(near), -1, 32)
    words = jnp.sum(near.astype(jnp.uint32) << jnp.arange(32, dtype=jnp.uint32), axis=2, dtype=jnp.uint32)
    counts = jax.lax.population_count(words).astype(jnp.int32)
    running = jnp.cumsum(counts, axis=1, dtype=jnp.int32)
    return words, running - counts, running[:, -1].max()


def _nth_set(words: Array, before: Array, wanted: Array) -> tuple[Array, Array]:
    """(n, K) places of the bits set in each row, by their number `wanted` (K,), and whether there are so many; else 0."""
    word = (
        jax.vmap(lambda counts: jnp.searchsorted(counts, wanted, side="right", method="scan"))(before).astype(jnp.int32) - 1
    )
    bits = jnp.take_along_axis(words, word, axis=1)
    left = wanted - jnp.take_along_axis(before, word, axis=1)
    there = left < jax.lax.population_count(bits).astype(jnp.int32)
    bit = jnp.zeros_like(left)
    for size in (16, 8, 4, 2, 1):  # is it in the lower half of what is left of the word, or in the upper?
        lower = (bits >> bit.astype(jnp.uint32)) & jnp.uint32(2**size - 1)
        count = jax.lax.population_count(lower).astype(jnp.int32)
        upper = left >= count
        left, bit = left - jnp.where(upper, count, 0), bit + jnp.where(upper, size, 0)
    return jnp.where(there, word * 32 + bit, 0), there


def _rank(words: Array, before: Array, row: Array, place: Array) -> Array:
    """How many bits are set before `place` in a `row`, both (n, K) int32."""
    word, bit = place // 32, (place % 32).astype(jnp.uint32)
    lower = words[row, word] & ((jnp.uint32(1) << bit) - jnp.uint32(1))
    return before[row, word] + jax.lax.population_count(lower).astype(jnp.int32)
