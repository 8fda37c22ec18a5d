"""An energy function in the manner of JAX MD (Schoenholz & Cubuk, NeurIPS 2020), which need not be installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics.errors import StructureError
from mlff.data.structure import Structure
from mlff.graph import Graph
from mlff.potential.derivatives import unrounded
from mlff.potential.potential import Potential


def energy_fn(potential: Potential, numbers: Sequence[int], displacement: Callable[[Array, Array], Array] | None = None):
    """`energy(R, neighbor=None, **kwargs)`: the energy of positions R (n, 3), eV, without reference energies.

    `numbers` (n,): atomic numbers. `displacement(a, b, **kwargs)`: the vector a - b, Å, of JAX MD's `space`, with the nearest
    image where there are images; by default without. `neighbor`: JAX MD's list in the format `Dense`, whose `idx` (n, K) has n
    in empty slots, with a cutoff of at least the potential's; without one, all pairs. Other arguments, such as `box`, go to
    `displacement`. If the list has overflowed the energy is NaN. JAX may differentiate, batch and compile it; call it in
    `potential.scope()`. Raises StructureError: an element that the potential does not know, positions of another shape, a
    list of another format.
    """
    numbers = np.array(numbers, np.int32)
    count = len(numbers)
    spread = np.arange(3.0 * count).reshape(-1, 3)
    potential.check(Structure(numbers, spread, np.zeros((3, 3)), np.zeros(3, bool), source="numbers"))
    if displacement is None:
        displacement = _difference
    everyone = np.array([[j for j in range(count) if j != i] or [count] for i in range(count)], np.int32)

    @unrounded
    def energy(R: Array, neighbor=None, **kwargs) -> Array:
        if R.shape != (count, 3):
            raise StructureError(f"positions have the shape {R.shape}, {count} atoms need ({count}, 3)")
        listed = everyone if neighbor is None else neighbor.idx
        if listed.shape[0] != count:
            raise StructureError(
                f"the neighbour list has the shape {listed.shape}: JAX MD's format Dense is needed, ({count}, K)"
            )
        difference = jax.vmap(jax.vmap(lambda a, b: displacement(a, b, **kwargs), (0, None)), (0, 0))
        slots = jnp.where(listed < count, listed, jnp.arange(count)[:, None])
        vectors = difference(R[slots], R)
        near = (listed < count) & (jnp.sum(vectors**2, axis=2) < potential.cutoff**2)
        total = jnp.sum(potential.energy(potential.device_params, _graph(numbers, slots, near, vectors, potential.dtype)))
        return total if neighbor is None else jnp.where(neighbor.did_buffer_overflow, jnp.nan, total)

    return energy


def _difference(a: Array, b: Array) -> Array:
    return a - b


def _graph(numbers: np.ndarray, slots: Array, near: Array, vectors: Array, dtype) -> Graph:
    """The graph of neighbours (n, K) at `vectors` (n, K, 3), each pair listed once from either end."""
    count, width = slots.shape
    centers = jnp.arange(count)[:, None]
    neighbors = jnp.where(near, slots, centers)
    back = (neighbors[slots] == centers[..., None]) & near[slots]  # (n, K, K): where the neighbour lists the center
    reverse = jnp.where(near, slots * width + jnp.argmax(back, axis=2), centers * width + jnp.arange(width))
    return Graph(
        positions=jnp.zeros((count, 3), dtype),
        atomic_numbers=jnp.asarray(numbers),
        structure=jnp.zeros(count, jnp.int32),
        n_atoms=jnp.array([count], jnp.int32),
        cell=jnp.zeros((1, 3, 3), dtype),
        pbc=jnp.zeros((1, 3), bool),
        neighbors=neighbors.astype(jnp.int32),
        neighbor_mask=near,
        reverse=reverse.astype(jnp.int32),
        shifts=None,
        vectors=jnp.where(near[..., None], vectors, 0.0).astype(dtype),
    )
