"""Activation functions of networks, and where they are saturated: the derivative is next to nothing, and nothing is learned."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

SATURATED = "saturated"  #: name of a collection beside the parameters
SHARE = 0.01  #: of the largest derivative, below which one is next to nothing
_REACH = 10.0  #: the largest derivative is looked for up to here


def activate(module: nn.Module, name: str, function: Callable[[Array], Array], x: Array) -> Array:
    """function(x). Who asks for the collection `SATURATED` gets `saturated` under this name; else it costs nothing."""
    if module.is_mutable_collection(SATURATED) and not module.is_initializing():
        module.sow(SATURATED, name, saturated(function, x))
    return function(x)


def saturated(function: Callable[[Array], Array], x: Array) -> Array:
    """Whether the derivative at x is below `SHARE` of the largest one, up or down; shape of x."""
    slopes = jax.vmap(jax.grad(function))
    largest = jnp.max(jnp.abs(slopes(jnp.linspace(-_REACH, _REACH, 1001, dtype=x.dtype))))
    return jnp.abs(slopes(x.ravel())).reshape(x.shape) < SHARE * largest
