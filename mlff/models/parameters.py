"""Parameters of a model before there is training: fresh ones, and the shapes that those of a file must have."""

from __future__ import annotations

import functools
from collections.abc import Callable

import ase
import jax
import numpy as np
from flax import traverse_util

from mlff.basics import compiler
from mlff.basics.runtime import on_host
from mlff.data.batching import Sizes, make_graph, make_sample
from mlff.data.structure import Structure
from mlff.graph import Graph


def initial_params(model, seed: int) -> dict:
    """Fresh parameters of a model, {"params": {name: array}}; shapes do not depend on the graph."""
    with on_host():
        return _initialise(model)(jax.random.key(seed), _pair(model))


@functools.lru_cache(maxsize=8)
def _initialise(model) -> Callable:
    """Compiled once for a model, whatever the seeds."""
    return jax.jit(model.init, compiler_options=compiler.hasty())


def range_shapes(model) -> dict[str, tuple[int, ...]]:
    """The same of what `mlff.training.ranges` adds after training; {} for models that need none."""
    shapes = model.range_shapes() if hasattr(model, "range_shapes") else {}
    return {f"ranges/{name}": shape for name, shape in shapes.items()}


def parameter_shapes(model) -> dict[str, tuple[int, ...]]:
    """Name (parts joined by "/") -> shape; nothing is computed."""
    key = jax.eval_shape(jax.random.key, 0)  # a real one would be computed, by programs compiled for it
    shapes = jax.eval_shape(model.init, key, _pair(model))
    return {"/".join(name): leaf.shape for name, leaf in traverse_util.flatten_dict(shapes).items()}


def _pair(model) -> Graph:
    """Two atoms half a cutoff apart."""
    cutoff = model.options.cutoff
    structure = Structure.from_atoms(ase.Atoms([model.elements[0]] * 2, positions=[[0, 0, 0], [0, 0, 0.5 * cutoff]]))
    return make_graph([make_sample(structure, cutoff)], Sizes(1, 2, 1), np.float32, shifts=False)
