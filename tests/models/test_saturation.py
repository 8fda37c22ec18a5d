"""Densities beyond the training data: bounded, smooth, and untouched within."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule

from mlff.models.saturation import LIMIT, norms, saturated
from tests.conftest import SATURATED, make_potential


def density(norm: float) -> list:
    """Of one atom and one channel, l up to 1."""
    return [jnp.full((1, 1, 1), norm * 0.6), jnp.array([0.0, 0.8 * norm, 0.0]).reshape(3, 1, 1)]


def test_within_the_data_nothing_changes_and_beyond_the_norm_is_bounded():
    largest = jnp.full((1, 1), 2.0)
    for norm in (0.0, 0.3, 1.99):
        for before, after in zip(density(norm), saturated(density(norm), largest), strict=True):
            np.testing.assert_array_equal(before, after)
    found = [float(norms(saturated(density(norm), largest))[0, 0]) for norm in (2.5, 3.0, 5.0, 50.0, 5e8)]
    assert found == sorted(found) and 2.4 < found[0] < 2.5 and found[-1] <= 2.0 * LIMIT * (1 + 1e-6)
    assert float(norms(density(0.0))[0, 0]) == 0.0


def test_the_direction_is_kept_and_derivatives_are_finite_and_continuous():
    largest = jnp.full((1, 1), 1.0)
    scalar, vector = saturated(density(7.0), largest)
    assert float(vector[1, 0, 0] / scalar[0, 0, 0]) == pytest.approx(0.8 / 0.6, rel=1e-6)
    with jax.enable_x64(True):

        def norm(x):
            return norms(saturated(density(x), jnp.ones((1, 1))))[0, 0]

        for order, tolerance in ((1, 1e-4), (2, 1e-3)):
            derivative = norm
            for _ in range(order):
                derivative = jax.grad(derivative)
            derivative = jax.jit(derivative)
            assert float(derivative(1 - 1e-5)) == pytest.approx(float(derivative(1 + 1e-5)), abs=tolerance)
        assert np.isfinite(float(jax.jit(jax.grad(lambda x: saturated(density(x), jnp.ones((1, 1)))[0].sum()))(0.0)))
        assert np.isfinite(float(jax.jit(jax.grad(norm))(1e12)))


def test_a_model_far_outside_its_data_stays_bounded():
    """A bond at a tenth of its length (without inner cutoff and repulsion): polynomials explode, what is saturated does not."""
    potential = make_potential(SATURATED)
    config = potential.config.model_copy(update={"zbl": False})
    potential = replace(potential, config=config, statistics=potential.statistics._replace(inner_cutoff=()))
    weights = {name: 5 * value if name.startswith("mix_") else value for name, value in potential.params["params"].items()}
    free, bound = (
        replace(potential, params={"params": weights} | more) for more in ({}, {"ranges": potential.params["ranges"]})
    )
    atoms = molecule("CH3OH")
    close = atoms.copy()
    close.positions[1] = close.positions[0] + 0.1 * (close.positions[1] - close.positions[0])
    before, after = (np.abs(p.predict([close], check=False)[0].forces).max() for p in (free, bound))
    assert after < 0.02 * before
