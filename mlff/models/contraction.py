"""Sums over neighbours, harmonics and channels, each with the other two as its derivatives.

A: (N, M, C) of atoms and their harmonics, D: (N, M, K) of harmonics of pairs, R: (N, K, C) of pairs. So that in derivatives
of any order, forward and reverse, each is computed in the one way that is fast. XLA on the CPU has a fast product of small
matrices, one for each atom, where the axis summed over is the last of the left matrix; JAX's own derivatives sum over the
middle axis of D, which takes two to seven times as long, in one thread. Each sum is a primitive of JAX that is linear in
both factors; they are traced where the derivative is taken, so each says by itself that its factors are not to be rounded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def sum_neighbors(directions: Array, pairs: Array) -> Array:
    """A, the sum over neighbours of D times R."""
    with jax.named_scope("contraction"):
        return _sum_neighbors.bind(directions, pairs)


def sum_harmonics(directions: Array, atoms: Array) -> Array:
    """R, the sum over harmonics of D times A: there are few, so a sum of products that become one loop with what follows."""
    with jax.named_scope("contraction"):
        return _sum_harmonics.bind(directions, atoms)


def sum_channels(atoms: Array, pairs: Array) -> Array:
    """D, the sum over channels of A times R."""
    with jax.named_scope("contraction"):
        return _sum_channels.bind(atoms, pairs)


def _sum_of_products(directions: Array, atoms: Array) -> Array:
    return sum(directions[:, m, :, None] * atoms[:, m, None, :] for m in range(atoms.shape[1]))


def _primitive(name: str, compute: Callable[[Array, Array], Array]) -> Primitive:
    """A primitive (x, y) -> array that is computed by `compute` for each entry of the first axis, vmap included."""
    primitive = Primitive(name)
    primitive.def_impl(compute)

    def abstract(x, y):
        result = jax.eval_shape(compute, jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(y.shape, y.dtype))
        return ShapedArray(result.shape, result.dtype)

    def batched(factors, axes):
        (size,) = {factor.shape[axis] for factor, axis in zip(factors, axes, strict=True) if axis is not None}
        moved = [
            jnp.broadcast_to(factor, (size, *factor.shape)) if axis is None else jnp.moveaxis(factor, axis, 0)
            for factor, axis in zip(factors, axes, strict=True)
        ]
        result = primitive.bind(*(factor.reshape(-1, *factor.shape[2:]) for factor in moved))
        return result.reshape(size, -1, *result.shape[1:]), 0

    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))
    batching.primitive_batchers[primitive] = batched
    return primitive


_sum_neighbors = _primitive("sum_neighbors", functools.partial(_einsum, "nmk,nkc->nmc"))
_sum_harmonics = _primitive("sum_harmonics", _sum_of_products)
_sum_channels = _primitive("sum_channels", functools.partial(_einsum, "nmc,nkc->nmk"))

ad.defbilinear(_sum_neighbors, lambda a, d, r: sum_channels(a, r), lambda a, d, r: sum_harmonics(d, a))
ad.defbilinear(_sum_harmonics, lambda r, d, a: sum_channels(a, r), lambda r, d, a: sum_neighbors(d, r))
ad.defbilinear(_sum_channels, lambda d, a, r: sum_neighbors(d, r), lambda d, a, r: sum_harmonics(d, a))
