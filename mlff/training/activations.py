"""The share of saturated activations of a network, on one batch: what is saturated passes no gradient on."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import Array

from mlff.basics import compiler
from mlff.graph import Graph
from mlff.models.activation import SATURATED
from mlff.training.objectives import Params


@functools.lru_cache(maxsize=8)  # a second run of the same model compiles nothing
def shares(model) -> Callable[[Params, Graph], dict[str, Array]]:
    """`look(params, graph) -> {"layer/name": share}` for each activation function of a model (0 to 1), compiled.

    Over atoms, or pairs of atoms, and channels; padding does not count. {} for a model that has none.
    """

    def look(params: Params, graph: Graph) -> dict[str, Array]:
        _, found = model.apply(params, graph, mutable=[SATURATED])
        flat = traverse_util.flatten_dict(found.get(SATURATED, {}), sep="/")
        return {name: _share(values, graph) for name, (values,) in flat.items()}

    return jax.jit(look, compiler_options=compiler.quick())


def _share(values: Array, graph: Graph) -> Array:
    """Of values (N, F) of atoms or (N, K, F) of pairs."""
    mask = (graph.atom_mask if values.ndim == 2 else graph.neighbor_mask)[..., None]
    return jnp.sum(values & mask) / jnp.maximum(jnp.sum(mask) * values.shape[-1], 1)
