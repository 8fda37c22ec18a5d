"""The gradient-safe primitives: values and derivatives up to the second, also where the plain formula is 0/0."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from mlff.basics.numerics import dense, safe_divide, safe_norm, smooth_silu


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_norm_against_its_formulas():
    v = jnp.array([0.3, -1.2, 0.7])
    r = np.linalg.norm(v)
    unit = np.asarray(v) / r
    assert float(safe_norm(v)) == pytest.approx(r, rel=1e-15)
    np.testing.assert_allclose(jax.grad(safe_norm)(v), unit, rtol=1e-14)
    np.testing.assert_allclose(jax.hessian(safe_norm)(v), (np.eye(3) - np.outer(unit, unit)) / r, atol=1e-14)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-200])
def test_norm_is_finite_to_the_second_derivative_at_zero(scale):
    v = scale * jnp.array([1.0, -2.0, 0.5])
    for function in (safe_norm, jax.grad(safe_norm), lambda x: safe_norm(x) ** 2, jax.grad(lambda x: safe_norm(x) ** 3)):
        assert np.isfinite(function(v)).all()
    if scale == 0:
        assert np.all(np.asarray(jax.grad(safe_norm)(v)) == 0) and np.all(np.asarray(jax.hessian(safe_norm)(v)) == 0)


def test_masked_vectors_have_neither_length_nor_gradient():
    v = jnp.array([[1.0, 2.0, 2.0], [3.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    mask = jnp.array([True, False, True])
    np.testing.assert_allclose(safe_norm(v, mask), [3, 0, 0])
    gradient = jax.grad(lambda x: safe_norm(x, mask).sum())(v)
    np.testing.assert_allclose(gradient, [[1 / 3, 2 / 3, 2 / 3], [0, 0, 0], [0, 0, 0]])


def test_division_against_its_formulas_and_at_zero():
    a, b = jnp.array([1.5, 2.0, 0.0]), jnp.array([0.5, 0.0, 0.0])
    np.testing.assert_allclose(safe_divide(a, b), [3, 0, 0])
    by_a, by_b = jax.grad(lambda x, y: safe_divide(x, y).sum(), argnums=(0, 1))(a, b)
    np.testing.assert_allclose(by_a, [2, 0, 0])
    np.testing.assert_allclose(by_b, [-6, 0, 0])
    second = jax.hessian(lambda y: safe_divide(a, y).sum())(b)
    np.testing.assert_allclose(second, np.diag([24.0, 0, 0]))


def test_flat_matrix_product_is_the_matrix_product():
    x, w = np.random.default_rng(0).normal(size=(2, 3, 4)), np.random.default_rng(1).normal(size=(4, 5))
    np.testing.assert_allclose(dense(jnp.asarray(x), jnp.asarray(w)), x @ w, rtol=1e-13)
    assert dense(jnp.zeros((0, 3, 4)), jnp.asarray(w)).shape == (0, 3, 5)


def test_silu_keeps_the_scale_of_a_normal_input():
    gauss = lambda x: np.exp(-x * x / 2) / np.sqrt(2 * np.pi)  # noqa: E731
    square = quad(lambda x: float(smooth_silu(x)) ** 2 * gauss(x), -8, 8, limit=40, epsabs=1e-5)[0]
    assert square == pytest.approx(1, abs=5e-3)
