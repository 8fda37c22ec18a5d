"""Claims about any model: forces, stress and Hessian are the derivatives of the energy."""

from __future__ import annotations

import jax
import numpy as np

from mlff.data.batching import make_graph, make_sample
from mlff.data.structure import Structure
from mlff.potential.derivatives import pair_gradient, predict
from tests.conftest import SATURATED, over_models

each_model = over_models()
STEP = 1e-4


@over_models(also=("ace_l3", SATURATED))
def test_forces_against_finite_differences(name, potentials, ethanol, silicon):
    potential = potentials(name)
    for atoms in (ethanol, silicon):
        directions = np.random.default_rng(0).normal(size=(4, len(atoms), 3))
        displaced = []
        for direction in directions:
            for step in (2 * STEP, STEP, -STEP, -2 * STEP):
                moved = atoms.copy()
                moved.positions += step * direction
                displaced.append(moved)
        result, *others = potential.predict([atoms, *displaced])
        base = potential.baseline_energy(atoms.numbers)
        energies = np.array([other.energies.sum() - base for other in others]).reshape(4, 4)
        slopes = energies @ np.array([-1, 8, -8, 1]) / (12 * STEP)
        expected = -np.einsum("dna,na->d", directions, result.forces)
        np.testing.assert_allclose(slopes, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@each_model
def test_stress_against_finite_differences(name, potentials, silicon):
    potential = potentials(name)
    strained, pairs = [], [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    for a, b in pairs:
        for step in (2 * STEP, STEP, -STEP, -2 * STEP):
            strain = np.zeros((3, 3))
            strain[a, b] += step / 2
            strain[b, a] += step / 2
            other = silicon.copy()
            other.set_cell(silicon.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            strained.append(other)
    result, *others = potential.predict([silicon, *strained])
    base = potential.baseline_energy(silicon.numbers)
    energies = np.array([other.energies.sum() - base for other in others]).reshape(6, 4)
    slopes = energies @ np.array([-1, 8, -8, 1]) / (12 * STEP) / silicon.get_volume()
    expected = np.array([result.stress[pair] for pair in pairs])
    np.testing.assert_allclose(slopes, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(result.stress, result.stress.T, atol=1e-12)


@each_model
def test_hessian_against_differences_of_forces(name, potentials, silicon):
    potential = potentials(name)
    vector = np.random.default_rng(1).normal(size=(len(silicon), 3))
    plus, minus = silicon.copy(), silicon.copy()
    plus.positions += STEP * vector
    minus.positions -= STEP * vector
    up, down = potential.predict([plus, minus], stress=False)
    expected = -(up.forces - down.forces) / (2 * STEP)
    product = potential.hessian_vector_product(silicon, vector)
    np.testing.assert_allclose(product, expected, atol=1e-5 * np.abs(expected).max())
    matrix = potential.hessian(silicon)
    np.testing.assert_allclose(matrix @ vector.ravel(), product.ravel(), atol=1e-8 * np.abs(matrix).max())
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9 * np.abs(matrix).max())


@each_model
def test_products_are_not_rounded_where_the_device_would(name, potentials, ethanol):
    """JAX's default on a GPU takes float32 products with factors of 10 bits; forces would be off by a thousandth."""
    potential = potentials(name)
    sample = make_sample(Structure.from_atoms(ethanol), potential.cutoff)
    graph = make_graph([sample], sample.sizes, np.float32)

    def loss(params):
        return (predict(lambda g: potential.model.apply(params, g), graph, stress=True).forces ** 2).sum()

    found = list(products(jax.make_jaxpr(jax.grad(loss))(potential.params).jaxpr))
    assert all(precision == (jax.lax.Precision.HIGHEST,) * 2 for precision in found)
    assert found or name in ("lennard_jones", "morse")


def products(jaxpr):
    """The precision of every matrix product in a program, and in those within it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@over_models("ace")
def test_forward_mode_of_energies_and_forces(name, potentials, ethanol):
    """jvp, linearize and forward over reverse: the slope of the energy, and the Hessian times a direction."""
    potential = potentials(name)
    structure = Structure.from_atoms(ethanol)
    sample = make_sample(structure, potential.cutoff)
    with potential.scope():
        graph = make_graph([sample], sample.sizes, np.float64, sample.shifts is not None)
        direction = np.random.default_rng(0).normal(size=graph.positions.shape)

        def energy(positions):
            return potential.model.apply(potential.device_params, graph._replace(positions=positions)).sum()

        energy = jax.jit(energy)
        gradient = jax.jit(jax.grad(energy))
        _, slope = jax.jvp(energy, (graph.positions,), (direction,))
        np.testing.assert_allclose(slope, np.sum(gradient(graph.positions) * direction), rtol=1e-10)
        _, forward = jax.jvp(gradient, (graph.positions,), (direction,))
        _, linear = jax.linearize(gradient, graph.positions)
        reverse = jax.jit(jax.grad(lambda r: jax.numpy.sum(gradient(r) * direction)))(graph.positions)
        for found in (forward, linear(direction)):
            np.testing.assert_allclose(found, reverse, rtol=1e-9, atol=1e-9 * np.abs(reverse).max())


@each_model
def test_gradients_by_pair_vectors_make_forces_and_stress(name, potentials, ethanol, silicon):
    """What an engine that owns the neighbour list needs: the vectors are given, positions and cell then count nothing."""
    potential = potentials(name)
    for atoms in (ethanol, silicon):
        (result,) = potential.predict([atoms])
        graph = potential.graph_of(atoms)
        with potential.scope():
            given = graph._replace(positions=0 * graph.positions, cell=0 * graph.cell, vectors=graph.pair_vectors)
            derive = jax.jit(lambda g: pair_gradient(lambda g: potential.energy(potential.device_params, g), g))  # noqa: B023
            energies, gradient = map(np.asarray, derive(given))
        vectors = np.asarray(graph.pair_vectors)
        np.testing.assert_allclose(energies.sum() + potential.baseline_energy(atoms.numbers), result.energy, rtol=1e-12)
        assert not gradient[~np.asarray(graph.neighbor_mask)].any()
        back = gradient.reshape(-1, 3)[np.asarray(graph.reverse).reshape(-1)].reshape(gradient.shape)
        np.testing.assert_allclose((gradient - back).sum(axis=1), result.forces, atol=1e-9)
        if atoms.pbc.all():
            virial = np.einsum("nka,nkb->ab", vectors, gradient)
            np.testing.assert_allclose(virial / atoms.get_volume(), result.stress, atol=1e-10)
