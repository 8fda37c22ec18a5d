import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlff.config.options import Loss, WeightStage
from mlff.data.batching import Sizes, make_graph, make_labels, make_sample
from mlff.data.structure import Structure
from mlff.graph import Prediction
from mlff.training import losses


def structure(n, seed, **absent):
    rng = np.random.default_rng(seed)
    labels = {"energy": rng.normal(), "forces": rng.normal(size=(n, 3)), "stress": rng.normal(size=(3, 3))} | absent
    positions = rng.uniform(0, 4, size=(n, 3))
    return Structure(np.full(n, 6, np.int32), positions, 10 * np.eye(3), np.ones(3, bool), **labels)


def sums(structures, sizes, config=Loss(stress=1.0), scale=2.0, garbage=0.0):
    """Sums for the prediction 0; `garbage` stands where padding is."""
    samples = [make_sample(s, 3.0) for s in structures]
    graph, labels = make_graph(samples, sizes, np.float64), make_labels(samples, sizes, np.float64)
    padding = jnp.where(graph.structure_mask, 0.0, garbage)
    forces = jnp.where(graph.atom_mask, 0.0, garbage)[:, None] * jnp.ones(3)
    stress = padding[:, None, None] * jnp.ones((3, 3))
    prediction = Prediction(padding, forces, stress, jnp.zeros(sizes.atoms))
    return losses.compare(prediction, labels, jax.tree.map(jnp.asarray, graph), config, scale)


def value(sums, **weights):
    return float(losses.combine(sums, losses.Weights(**({"energy": 0.0, "forces": 0.0, "stress": 0.0} | weights))))


@pytest.mark.parametrize(("kind", "size"), [("mse", np.square), ("mae", np.abs)])
def test_terms_are_means_in_units_of_the_data(kind, size):
    a, b = structure(3, 0), structure(5, 1)
    total = sums([a, b], Sizes(2, 8, 16), Loss(error=kind, stress=1.0))
    assert value(total, energy=1.0) == pytest.approx((size(a.energy / 3 / 2) + size(b.energy / 5 / 2)) / 2, rel=1e-5)
    assert value(total, forces=1.0) == pytest.approx(np.mean(size(np.concatenate([a.forces, b.forces]) / 2)), rel=1e-5)
    assert value(total, stress=3.0) == pytest.approx(3 * np.mean(size(np.stack([a.stress, b.stress]) / 2)), rel=1e-5)


def test_padding_contributes_nothing():
    structures = [structure(3, 0), structure(5, 1)]
    tight = sums(structures, Sizes(2, 8, 16))
    loose = sums(structures, Sizes(6, 20, 30), garbage=1e6)
    np.testing.assert_allclose(tight, loose, rtol=1e-6)


def test_absent_labels_contribute_nothing():
    full = structure(3, 0)
    bare = structure(5, 1, energy=None, forces=None, stress=None)
    for kind in ("mse", "mae"):
        config = Loss(error=kind, stress=1.0)
        with_bare, without = sums([full, bare], Sizes(2, 8, 16), config), sums([full], Sizes(2, 8, 16), config)
        np.testing.assert_allclose(with_bare, without, rtol=1e-6)


def test_a_batch_without_a_label_has_no_such_term_and_a_finite_gradient():
    total = sums([structure(3, 0, forces=None)], Sizes(1, 3, 8))
    assert value(total, forces=1.0) == 0.0
    gradient = jax.grad(lambda s: losses.combine(total._replace(forces=s), losses.Weights(1.0, 1.0, 1.0)))(0.0)
    assert gradient == 0.0


def test_weight_of_a_structure():
    heavy = sums([structure(3, 0, weight=4.0)], Sizes(1, 3, 8))
    light = sums([structure(3, 0)], Sizes(1, 3, 8))
    for term in ("energy", "forces", "stress"):
        assert value(heavy, **{term: 1.0}) == pytest.approx(4 * value(light, **{term: 1.0}))
    assert heavy.forces_squares == light.forces_squares


def test_schedule_of_weights():
    stages = [WeightStage(start=0.8, energy=50.0), WeightStage(start=0.5, energy=5.0, forces=2.0)]
    config = Loss(energy=1.0, forces=10.0, schedule=stages)
    got = [tuple(map(float, losses.weights(config, p))) for p in (0.0, 0.5, 0.79, 0.8, 1.0)]
    assert got == [(1, 10, 0), (5, 2, 0), (5, 2, 0), (50, 2, 0), (50, 2, 0)]


def test_the_weights_of_the_config_are_those_of_the_loss():
    stages = [WeightStage(start=0.8, energy=50.0), WeightStage(start=0.5, energy=5.0, forces=0.0)]
    config = Loss(energy=1.0, forces=10.0, schedule=stages)
    for progress in (0.0, 0.5, 0.79, 0.8, 1.0):
        assert tuple(config.at(progress).values()) == tuple(map(float, losses.weights(config, progress)))
    assert losses.learned(config) == ("energy", "forces")


def test_terms_that_ever_have_a_weight():
    assert losses.terms(Loss(forces=0.0)) == (False, False)
    assert losses.terms(Loss(forces=0.0, schedule=[WeightStage(start=0.5, forces=1.0)])) == (True, False)
    assert losses.terms(Loss(stress=0.1)) == (True, True)
