"""Forces, stress, Hessian-vector products and the Hessian of any per-atom energy function, by reverse-mode differentiation.

One backward pass over positions and strain gives all forces and stresses of a batch, whatever their number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from mlff.graph import Graph, Prediction

EnergyFunction = Callable[[Graph], Array]  #: Graph -> (N,) eV per atom, 0 for padding


def unrounded(function: Callable) -> Callable:
    """Matrix products within in the precision of their factors; by default an accelerator rounds those of float32 to 10 bits (TF32)."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        with jax.default_matmul_precision("float32"):
            return function(*args, **kwargs)

    return call


def structure_energies(energies: Array, graph: Graph) -> Array:
    """Sum per-atom energies (N,) over each structure: (B,), eV."""
    return jax.ops.segment_sum(energies, graph.structure, graph.n_atoms.shape[0], indices_are_sorted=True)


@unrounded
def predict(energy_function: EnergyFunction, graph: Graph, forces: bool = True, stress: bool = False) -> Prediction:
    """Energy, forces -dE/dR and, if asked, stress +(1/V) dE/dε with V = abs(det cell), from one reverse pass.

    Without `forces` no derivative is taken: forces are zeros, and there is no stress. Where there is no cell the stress is
    zero.
    """
    if not forces:
        energies = energy_function(graph)
        return Prediction(structure_energies(energies, graph), jnp.zeros_like(graph.positions), None, energies)

    if stress:
        energies, forces, virial = with_virial(energy_function, graph)
        return Prediction(structure_energies(energies, graph), forces, stresses(graph, virial), energies)

    def total(positions: Array) -> tuple[Array, Array]:
        energies = energy_function(graph._replace(positions=positions))
        return jnp.sum(energies), energies

    (_, energies), gradient = jax.value_and_grad(total, has_aux=True)(graph.positions)
    return Prediction(structure_energies(energies, graph), -gradient, None, energies)


@unrounded
def with_virial(energy_function: EnergyFunction, graph: Graph) -> tuple[Array, Array, Array]:
    """Energies of the atoms (N,), eV, forces -dE/dR (N, 3), eV/Å, and dE/dε (B, 3, 3), eV, from one reverse pass."""

    def total(positions: Array, strain: Array) -> tuple[Array, Array]:
        energies = energy_function(_deform(graph, positions, strain))
        return jnp.sum(energies), energies

    strain = jnp.zeros_like(graph.cell)
    (_, energies), (gradient, virial) = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(graph.positions, strain)
    return energies, -gradient, virial


def stresses(graph: Graph, virial: Array) -> Array:
    """(B, 3, 3), eV/Å³, from dE/dε (B, 3, 3), eV; zero where there is no cell."""
    volume = jnp.abs(jnp.linalg.det(graph.cell))[:, None, None]
    has_volume = volume > 0
    return jnp.where(has_volume, virial / jnp.where(has_volume, volume, 1.0), 0.0)


@unrounded
def pair_gradient(energy_function: EnergyFunction, graph: Graph) -> tuple[Array, Array]:
    """Energies of the atoms (N,), eV, and dE/dr_ij (N, K, 3), eV/Å, of the sum of all energies; zero in empty slots.

    For an engine that owns the neighbour list. The force on atom i is the sum over its slots of dE/dr_ij less that of the
    same pairs seen from the neighbours, -dE/dε the sum of -r_ij dE/dr_ij over all slots.
    """

    def total(vectors: Array) -> tuple[Array, Array]:
        energies = energy_function(graph._replace(vectors=vectors))
        return jnp.sum(energies), energies

    (_, energies), gradient = jax.value_and_grad(total, has_aux=True)(graph.pair_vectors)
    return energies, gradient


@unrounded
def hessian_vector_product(energy_function: EnergyFunction, graph: Graph, vector: Array) -> Array:
    """H v for v (N, 3): reverse-over-reverse (H is symmetric), the cost of a few gradients; eV/Å² times the unit of v."""
    (product,) = jax.vjp(lambda positions: _gradient(energy_function, graph, positions), graph.positions)[1](vector)
    return product


@unrounded
def hessian(energy_function: EnergyFunction, graph: Graph) -> Array:
    """d²E/dR² (N, 3, N, 3) in eV/Å², row by row (memory of one Hessian-vector product at a time)."""
    shape = graph.positions.shape
    count = shape[0] * 3
    basis = jnp.eye(count, dtype=graph.positions.dtype).reshape(count, *shape)
    rows = jax.lax.map(lambda vector: hessian_vector_product(energy_function, graph, vector), basis)
    return rows.reshape(*shape, *shape)


def _gradient(energy_function: EnergyFunction, graph: Graph, positions: Array) -> Array:
    return jax.grad(lambda r: jnp.sum(energy_function(graph._replace(positions=r))))(positions)


def _deform(graph: Graph, positions: Array, strain: Array) -> Graph:
    symmetric = 0.5 * (strain + jnp.swapaxes(strain, 1, 2))
    deformation = jnp.eye(3, dtype=positions.dtype) + symmetric
    positions = jnp.einsum("na,nab->nb", positions, deformation[graph.structure])
    return graph._replace(positions=positions, cell=graph.cell @ deformation)
