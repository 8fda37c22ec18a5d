"""Claims about any model: nothing leaks through padding, from one structure of a batch to another, or from a skin."""

from __future__ import annotations

import functools

import jax
import numpy as np

from mlff.data.batching import Sizes, make_graph, make_sample
from mlff.data.structure import Structure
from mlff.potential.derivatives import predict
from tests.conftest import SATURATED, over_models

each_model = over_models()


@each_model
def test_padding_and_neighbours_in_the_batch_change_nothing(name, potentials, ethanol, silicon):
    potential = potentials(name)
    samples = [make_sample(Structure.from_atoms(a), potential.cutoff) for a in (ethanol, silicon)]
    sizes = Sizes(2, 11, max(s.sizes.neighbors for s in samples))
    loose = Sizes(5, 23, sizes.neighbors + 7)
    tight = potential.compute(make_graph(samples, sizes, np.float64), stress=True)
    padded = potential.compute(make_graph(samples, loose, np.float64), stress=True)
    swapped = potential.compute(make_graph(samples[::-1], loose, np.float64), stress=True)
    np.testing.assert_allclose(padded.energy[:2], tight.energy, rtol=1e-13)
    np.testing.assert_allclose(padded.forces[:11], tight.forces, atol=1e-11)
    np.testing.assert_allclose(padded.stress[:2], tight.stress, atol=1e-12)
    np.testing.assert_allclose(swapped.energy[:2], tight.energy[::-1], rtol=1e-13)
    for array in (padded.energy[2:], padded.forces[11:], padded.stress[2:], padded.energies[11:]):
        assert np.all(np.asarray(array) == 0)


@each_model
def test_gradients_do_not_cross_structures(name, potentials, ethanol):
    potential = potentials(name)
    sample = make_sample(Structure.from_atoms(ethanol), potential.cutoff)
    graph = make_graph([sample, sample], Sizes(2, 18, sample.sizes.neighbors), np.float64, shifts=False)
    with potential.scope():
        energy = functools.partial(potential.model.apply, potential.device_params)
        first = jax.jit(jax.grad(lambda r: energy(graph._replace(positions=r))[:9].sum()))(graph.positions)
    assert np.all(np.asarray(first[9:]) == 0) and np.abs(first[:9]).max() > 0


@over_models(also=(SATURATED,))
def test_parameter_gradients_of_a_force_loss_are_finite_with_padding(name, potentials, ethanol):
    potential = potentials(name)
    sample = make_sample(Structure.from_atoms(ethanol), potential.cutoff)
    graph = make_graph([sample], Sizes(3, 20, sample.sizes.neighbors + 3), np.float64)

    def loss(params):
        prediction = predict(functools.partial(potential.model.apply, params), graph, stress=True)
        return (prediction.forces**2).sum() + (prediction.stress**2).sum() + prediction.energy.sum()

    with potential.scope():
        gradient = jax.jit(jax.grad(loss))(potential.device_params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@each_model
def test_pairs_beyond_the_cutoff_in_the_list_change_nothing(name, potentials, silicon):
    potential = potentials(name)
    structure = Structure.from_atoms(silicon)
    results = []
    for radius in (potential.cutoff, potential.cutoff + 1.0):
        sample = make_sample(structure, radius)
        results.append(potential.compute(make_graph([sample], Sizes(1, 2, sample.sizes.neighbors), np.float64), stress=True))
    np.testing.assert_allclose(results[1].energy, results[0].energy, rtol=1e-12)
    np.testing.assert_allclose(results[1].forces, results[0].forces, atol=1e-10)
    np.testing.assert_allclose(results[1].stress, results[0].stress, atol=1e-12)
