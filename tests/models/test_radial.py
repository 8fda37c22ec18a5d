"""Envelope and radial bases against their formulas, and smooth where they must be."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlff.models.radial import bond_coordinate, chebyshev_basis, envelope, gaussian_basis

CUTOFF = 4.3


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_envelope_falls_from_one_to_zero():
    r = jnp.linspace(0, CUTOFF, 200)
    values = np.asarray(envelope(r, CUTOFF))
    assert values[0] == 1 and abs(values[-1]) < 1e-13 and np.all(np.diff(values) <= 1e-15)
    assert np.all(np.asarray(envelope(jnp.array([CUTOFF, CUTOFF + 1e-9, 100.0]), CUTOFF)) == 0)


def test_envelope_has_two_continuous_derivatives_at_the_cutoff():
    h = 1e-3
    inside = np.asarray(envelope(CUTOFF - h * jnp.arange(0, 4), CUTOFF))
    first, second = (inside[1] - inside[0]) / -h, (inside[2] - 2 * inside[1] + inside[0]) / h**2
    scale = 6 * 7 * 8 / CUTOFF**3  # the third derivative jumps there: -p (p + 1) (p + 2) / rc^3
    assert abs(first) < scale * h**2 and abs(second) < 2 * scale * h
    third = (inside[3] - 3 * inside[2] + 3 * inside[1] - inside[0]) / -(h**3)
    assert abs(third) == pytest.approx(scale, rel=0.05)
    for order in (1, 2):
        derivative = envelope
        for _ in range(order):
            derivative = jax.grad(derivative)
        assert float(derivative(CUTOFF + 1e-12, CUTOFF)) == 0 and abs(float(derivative(CUTOFF * (1 - 1e-9), CUTOFF))) < 1e-6
        assert float(derivative(0.0, CUTOFF)) == 0


def test_chebyshev_recurrence_against_cosines():
    t = np.linspace(0, 1, 101)
    n = np.arange(12)
    expected = 2 / (n + 1) * np.cos(n * np.arccos(2 * t[:, None] - 1))
    np.testing.assert_allclose(chebyshev_basis(jnp.asarray(t), 12), expected, atol=1e-12)
    single = chebyshev_basis(jnp.asarray(t, jnp.float32), 12)
    assert single.dtype == jnp.float32 and single.shape == (101, 12)
    np.testing.assert_allclose(single, expected, atol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 16])
def test_derivatives_of_chebyshev_polynomials_against_numpy(size):
    """They have a rule of their own; here to the third, at the ends of the range too."""
    t = np.linspace(0.0, 1.0, 23)
    weights = np.random.default_rng(0).normal(size=size)

    def derivative(x):
        return chebyshev_basis(x, size) @ weights

    series = np.polynomial.Chebyshev(2 / np.arange(1, size + 1) * weights, domain=[0, 1])
    for _ in range(3):
        derivative, series = jax.grad(derivative), series.deriv()
        expected = series(t)
        np.testing.assert_allclose(
            jax.jit(jax.vmap(derivative))(jnp.asarray(t)), expected, atol=1e-12 * (1 + np.abs(expected).max())
        )


def test_bond_coordinate_falls_from_one_to_zero_and_resolves_the_bond():
    r = np.linspace(1e-6, 100, 200_001)
    t = np.asarray(bond_coordinate(jnp.asarray(r), jnp.full(r.shape, 1.5)))
    slope = np.gradient(t, r)
    assert t[0] == pytest.approx(1) and 0 < t[-1] < 0.03 and np.all(np.diff(t) <= 0)
    assert 0.6 < r[np.argmin(slope)] / 1.5 < 1.0  # steepest at a bond, or a little nearer
    other = bond_coordinate(jnp.asarray(r) * 2, jnp.full(r.shape, 3.0))
    np.testing.assert_allclose(other, t, atol=1e-12)  # of r over the bond length alone


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_bond_coordinate_is_finite_with_three_derivatives(dtype):
    r = jnp.asarray([0.0, 1e-30, 1e-8, 1e-3, 0.5, 3.0, 100.0], dtype)
    f = lambda r: sum(bond_coordinate(r, jnp.asarray(length, dtype)) for length in (0.4, 5.0))  # noqa: E731
    for _ in range(4):
        values = jax.jit(jax.vmap(f))(r)
        assert np.isfinite(values).all() and values.dtype == dtype
        f = jax.grad(f)


def test_gaussians_are_finite_with_their_derivatives_in_empty_slots():
    r = jnp.array([0.0, 1.0])
    total = lambda x: gaussian_basis(x, CUTOFF, 2).sum()  # noqa: E731
    for function in (total, jax.grad(total), jax.hessian(total)):
        assert np.isfinite(jax.jit(function)(r)).all()


def test_gaussians_stand_on_an_even_grid():
    r = jnp.linspace(0, CUTOFF, 7)
    basis = np.asarray(gaussian_basis(r, CUTOFF, 7))
    np.testing.assert_allclose(np.diag(basis), 1)
    np.testing.assert_allclose(np.diag(basis, 1), np.exp(-0.5))
    assert gaussian_basis(r.astype(jnp.float32), CUTOFF, 7).dtype == jnp.float32
