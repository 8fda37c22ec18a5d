"""Sums over neighbours, harmonics and channels: values, and derivatives of them in any order, as JAX's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlff.models.contraction import sum_channels, sum_harmonics, sum_neighbors

SUMS = {"nmk,nkc->nmc": sum_neighbors, "nmk,nmc->nkc": sum_harmonics, "nmc,nkc->nmk": sum_channels}
SIZES = {"n": 3, "m": 4, "k": 5, "c": 2}


@pytest.mark.parametrize("formula", SUMS)
def test_values_and_derivatives(formula):
    rng = np.random.default_rng(0)
    inputs, result = formula.split("->")
    with jax.enable_x64(True):
        shapes = [[SIZES[axis] for axis in axes] for axes in (*inputs.split(","), result)]
        a, b, weights = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)

        def first(product):
            return jax.grad(lambda a, b: jnp.sum(weights * jnp.sin(product(a, b))), argnums=(0, 1))

        def second(product):
            return jax.grad(lambda a, b: sum(jnp.sum(jnp.cos(g)) for g in first(product)(a, b)), argnums=(0, 1))

        def third(product):
            return jax.grad(lambda a, b: sum(jnp.sum(jnp.cos(g)) for g in second(product)(a, b)), argnums=(0, 1))

        ours, plain = SUMS[formula], lambda a, b: jnp.einsum(formula, a, b)
        np.testing.assert_allclose(ours(a, b), plain(a, b), rtol=1e-13)
        for order in (first, second, third):
            both = jax.jit(lambda a, b, order=order: (order(ours)(a, b), order(plain)(a, b)))(a, b)
            for found, expected in zip(*both, strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("formula", SUMS)
def test_forward_mode_and_many_at_once(formula):
    """jvp, linearize of a gradient, and vmap over one factor or both, along any axis."""
    rng = np.random.default_rng(1)
    left, right = formula.split("->")[0].split(",")
    ours, plain = SUMS[formula], lambda a, b: jnp.einsum(formula, a, b)
    with jax.enable_x64(True):
        a, b, da, db = (jnp.asarray(rng.normal(size=[SIZES[axis] for axis in axes])) for axes in (left, right, left, right))

        def total(product):
            return lambda a, b: jnp.sum(jnp.sin(product(a, b)))

        def transformed(f, a, b, da, db):
            return (
                jax.jvp(f, (a, b), (da, db)),
                jax.jvp(jax.grad(total(f), argnums=(0, 1)), (a, b), (da, db)),
                jax.linearize(jax.grad(total(f), argnums=(0, 1)), a, b)[1](da, db),
                jax.vmap(f)(jnp.stack([a, da]), jnp.stack([b, db])),
                jax.vmap(f, (None, 1))(a, jnp.stack([b, db], axis=1)),
                jax.vmap(jax.grad(total(f)), (0, None))(jnp.stack([a, da]), b),
                jax.hessian(total(f))(a, b),
            )

        one, other = (jax.jit(transformed, static_argnums=0)(f, a, b, da, db) for f in (ours, plain))
        for found, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
