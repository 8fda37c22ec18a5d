"""Sums over neighbours, harmonics and channels, each with the other two as its derivatives.

A: (N, M, C) of atoms and their harmonics, D: (N, M, K) of harmonics of pairs, R: (N, K, C) of pairs. So that in derivatives
of any order each is computed in the one way that is fast. XLA on the CPU has a fast product of small matrices, one for each
atom, where the axis summed over is the last of the left matrix; JAX's own derivatives sum over the middle axis of D, which
takes two to seven times as long, in one thread. Derivatives in reverse mode only; their products are traced where the
derivative is taken, so each says by itself that its factors are not to be rounded.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
@jax.named_scope("contraction")
def gathered(directions: Array, pairs: Array) -> Array:
    """A, the sum over neighbours of D times R."""
    return _einsum("nmk,nkc->nmc", directions, pairs)


@jax.custom_vjp
@jax.named_scope("contraction")
def spread(directions: Array, atoms: Array) -> Array:
    """R, the sum over harmonics of D times A: there are few, so a sum of products that become one loop with what follows."""
    return sum(directions[:, m, :, None] * atoms[:, m, None, :] for m in range(atoms.shape[1]))


@jax.custom_vjp
@jax.named_scope("contraction")
def projected(atoms: Array, pairs: Array) -> Array:
    """D, the sum over channels of A times R."""
    return _einsum("nmc,nkc->nmk", atoms, pairs)


gathered.defvjp(lambda d, r: (gathered(d, r), (d, r)), lambda s, a: (projected(a, s[1]), spread(s[0], a)))
spread.defvjp(lambda d, a: (spread(d, a), (d, a)), lambda s, r: (projected(s[1], r), gathered(s[0], r)))
projected.defvjp(lambda a, r: (projected(a, r), (a, r)), lambda s, d: (gathered(d, s[1]), spread(d, s[0])))
