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
            for found, expected in zip(order(ours)(a, b), order(plain)(a, b), strict=True):
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

        for transform in (
            lambda f: jax.jvp(f, (a, b), (da, db)),
            lambda f: jax.jvp(jax.grad(total(f), argnums=(0, 1)), (a, b), (da, db)),
            lambda f: jax.linearize(jax.grad(total(f), argnums=(0, 1)), a, b)[1](da, db),
            lambda f: jax.vmap(f)(jnp.stack([a, da]), jnp.stack([b, db])),
            lambda f: jax.vmap(f, (None, 1))(a, jnp.stack([b, db], axis=1)),
            lambda f: jax.vmap(jax.grad(total(f)), (0, None))(jnp.stack([a, da]), b),
            lambda f: jax.hessian(total(f))(a, b),
        ):
            for found, expected in zip(jax.tree.leaves(transform(ours)), jax.tree.leaves(transform(plain)), strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
