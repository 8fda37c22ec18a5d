"""A neighbour list that is searched again on the device, inside a compiled loop.

The protocol has three parts. `capacity.allocate` (host) counts neighbours once and chooses the search and capacities with slack.
`build` and `update` (pure functions of JAX) search, the latter only when atoms have moved too far. `Demand` says what a search
would have needed: where that is more than the `Capacity`, the list lacks pairs and must not be used; `capacity.enlarge` helps.

Replicas of one structure are searched one after the other: R replicas of n atoms with K neighbour slots each. Geometry is
float64 throughout, so that a pair is found from both of its ends or from none.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.graph import Graph
from mlff.potential import all_pairs, linked_cells
from mlff.potential.capacity import Capacity, Demand, Search, heights_of, needed_images


class NeighborList(NamedTuple):
    """The neighbours of R replicas, good as long as no atom moved too far from the reference."""

    reference: Array  #: (R, n, 3) float64, Å: positions at which it was searched
    cell: Array  #: (R, 3, 3) float64, Å: the cell then
    lattice: Array  #: (R, n, 3) float64, whole cell vectors that bring each atom into the cell
    center: Array  #: (R, 3) float64, Å: of the atoms in the cell, as shares of the cell vectors
    neighbors: Array  #: (R, n, K) int32, as in `Graph`, counted within each replica
    mask: Array  #: (R, n, K) bool
    reverse: Array | None  #: (R, n, K) int32; None where forces are computed in chunks
    shifts: Array | None  #: (R, n, K, 3) in the precision of the model, of a grid int8; None without periodic directions


def build(search: Search, room: Capacity, positions: Array, cell: Array, box: Array) -> tuple[NeighborList, Demand]:
    """The lists of positions (R, n, 3), cell (R, 3, 3), Å, and `box_of` it, and what they needed.

    If that is more than `room`, pairs are missing (indices are within bounds all the same).
    """
    listed, demand = _each(lambda *replica: _build(search, room, *replica), positions, cell, box)
    return listed, _of_all(demand)


def no_list(search: Search, room: Capacity, replicas: int, atoms: int) -> NeighborList:
    """A list that holds for nothing: `update` searches."""
    shape = replicas, atoms, room.neighbors
    centers = np.broadcast_to(np.arange(atoms, dtype=np.int32)[None, :, None], shape)
    return NeighborList(
        reference=np.full((replicas, atoms, 3), np.nan),
        cell=np.broadcast_to(np.eye(3), (replicas, 3, 3)),
        lattice=np.zeros((replicas, atoms, 3)),
        center=np.zeros((replicas, 3)),
        neighbors=centers,
        mask=np.zeros(shape, bool),
        reverse=None
        if room.chunk
        else np.broadcast_to(np.arange(np.prod(shape[1:]), dtype=np.int32).reshape(shape[1:]), shape),
        shifts=np.zeros((*shape, 3), _shift_type(search, room)) if any(search.pbc) else None,
    )


def update(
    search: Search, room: Capacity, listed: NeighborList, positions: Array, cell: Array, box: Array
) -> tuple[NeighborList, Demand]:
    """The lists for positions (R, n, 3) and cell (R, 3, 3), Å; new ones for the replicas whose list no longer holds."""
    kept, good = no_demand(), holds(search, listed, positions, cell)

    def one(good, listed, *replica):
        return jax.lax.cond(good, lambda: (listed, kept), lambda: _build(search, room, *replica))

    def all_of_them():
        found, demand = _each(one, good, listed, positions, cell, box)
        return found, _of_all(demand)

    return jax.lax.cond(jnp.all(good), lambda: (listed, kept), all_of_them)


def no_demand() -> Demand:
    """That of a list which still holds: it fits everywhere."""
    return Demand(jnp.int32(0), jnp.zeros(3, jnp.int32), jnp.full(3, linked_cells.ANY, jnp.int32), jnp.int32(0))


def fits(room: Capacity, demand: Demand) -> Array:
    """() bool: whether the list has all pairs."""
    slots = demand.neighbors <= room.neighbors
    if room.grid is None:
        return slots & jnp.all(demand.images <= jnp.array(room.images))
    return slots & (demand.occupants <= room.occupants) & jnp.all(jnp.array(room.grid) <= demand.grid)


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
        cell=jnp.asarray(cell, search.dtype),
        pbc=jnp.broadcast_to(jnp.array(search.pbc), (count, 3)),
        neighbors=(listed.neighbors + replica * n).reshape(-1, width),
        neighbor_mask=listed.mask.reshape(-1, width),
        reverse=None if listed.reverse is None else (listed.reverse + replica * (n * width)).reshape(-1, width),
        shifts=None if listed.shifts is None else listed.shifts.reshape(-1, width, 3),
    )


def inverse_cells(cell: Array) -> Array:
    """(R, 3, 3), by cross products: compiles in no time."""
    rows = [jnp.cross(cell[:, (k + 1) % 3], cell[:, (k + 2) % 3]) for k in range(3)]
    volume = jnp.sum(cell[:, 0] * rows[0], axis=1)
    return jnp.stack(rows, axis=2) / volume[:, None, None]


def _each(function, *replicas):
    """`function` of one replica after the other (R in front of all arrays)."""
    if len(replicas[0]) > 1:
        return jax.lax.map(lambda replica: function(*replica), replicas)
    return jax.tree.map(lambda array: array[None], function(*jax.tree.map(lambda array: array[0], replicas)))


def _shift_type(search: Search, room: Capacity) -> type:
    return search.dtype if room.grid is None else np.int8


def _of_all(demand: Demand) -> Demand:
    """Of searches (R, ...) that share a capacity."""
    return Demand(
        demand.neighbors.max(axis=0), demand.images.max(axis=0), demand.grid.min(axis=0), demand.occupants.max(axis=0)
    )


def _build(search: Search, room: Capacity, positions: Array, cell: Array, box: Array) -> tuple[NeighborList, Demand]:
    """The list of one replica."""
    inverse = inverse_cells(box[None])[0]
    fractions = positions @ inverse
    lattice = -jnp.floor(fractions) * jnp.array(search.pbc)
    fractions = fractions + lattice
    reach, width, occupants = search.cutoff + search.skin, room.neighbors, jnp.int32(0)
    if room.grid is None:
        found = all_pairs.search(search.pbc, reach, width, room.images, fractions, box)
    else:
        places, wanted = (room.grid, room.occupants), not room.chunk
        found, occupants = linked_cells.search(search.pbc, reach, width, *places, wanted, fractions, box)
    listed = NeighborList(
        reference=positions,
        cell=cell,
        lattice=lattice,
        center=fractions.mean(axis=0),
        neighbors=found.neighbors,
        mask=found.mask,
        reverse=None if room.chunk else found.reverse,
        shifts=found.shifts.astype(_shift_type(search, room)) if any(search.pbc) else None,
    )
    heights = heights_of(inverse)
    finest = linked_cells.finest(search.pbc, reach, heights)
    return listed, Demand(found.most, needed_images(search, heights), finest, occupants)
