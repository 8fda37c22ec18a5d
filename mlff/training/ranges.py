"""How large the densities inside a model become on its data: beyond that it saturates (`mlff.models.saturation`)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mlff.basics import compiler
from mlff.data.batching import Batches
from mlff.models.parameters import range_shapes

NAME = "ranges"  #: of the collection beside the parameters
_LEAST = 1e-3  #: times the largest of all channels: a channel that the data do not use


def measure(module, params, batches: Sequence[Batches], known: dict | None = None) -> dict:
    """{"ranges": {layer: {name: (elements, channels)}}}, the largest norms on these structures; {} for a model that needs none.

    An element that the structures lack takes the largest of the others. `known`: the ranges of the potential that training
    started from; what it has seen before still counts, so of both the larger one is taken.
    """
    if not range_shapes(module):
        return {}
    elements = jnp.asarray(module.elements)

    def largest(params, graph):
        _, found = module.apply(params, graph, mutable=["intermediates"])
        mine = (graph.atomic_numbers == elements[:, None])[:, :, None]  # (elements, N, 1)
        layers = traverse_util.flatten_dict(found["intermediates"])
        return {name: jnp.max(jnp.where(mine, norms, 0.0), axis=1) for name, (norms,) in layers.items()}

    compiled = jax.jit(largest, compiler_options=compiler.quick())
    result: dict[tuple[str, ...], np.ndarray] = {}
    before = traverse_util.flatten_dict(known or {})
    for part, (sizes, indices) in ((b, planned) for b in batches for planned in b.plan(None)):
        graph, _ = part.build(sizes, indices)
        for name, values in jax.device_get(compiled(params, graph)).items():
            result[name] = np.maximum(values, result.get(name, 0.0))
    for name, values in result.items():
        values = np.where(values > 0, values, values.max(axis=0))
        values = np.maximum(values, _LEAST * values.max())
        result[name] = np.maximum(values, np.asarray(before.get(name, 0.0), values.dtype))
    return {NAME: traverse_util.unflatten_dict(result)}
