"""The compiled programs of one potential: one per derivative and padded shape, kept on disk for the next process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlff import derivatives
from mlff.errors import StructureError
from mlff.graph import Graph, Prediction
from mlff.runtime import compilation_cache, free_memory, quick_compile

_LARGE = 500_000  #: padded pairs from which on a program's memory is looked at before it runs
_DERIVATIVES = {
    "forces": derivatives.predict,
    "stress": functools.partial(derivatives.predict, stress=True),
    "hessian": derivatives.hessian,
    "hessian_vector_product": derivatives.hessian_vector_product,
}


class Programs:
    """`run(name, params, graph, ...)` for the names `forces`, `stress`, `hessian` and `hessian_vector_product`."""

    def __init__(self, apply: Callable[[dict, Graph], Any], members: int = 1):
        """`apply`: parameters and graph to energies per atom; of `members` above 1 the parameters have an axis in front."""
        self._apply = apply
        self._members = members
        self._jitted: dict[str, Callable] = {}
        self._ready: dict[tuple, Callable] = {}
        self._large = 0

    @property
    def compilations(self) -> int:
        """How many were compiled so far."""
        return self._large + sum(program._cache_size() for program in self._jitted.values())

    def run(self, name: str, params: dict, graph: Graph, *arguments):
        """Compiled the first time a shape is met. Raises StructureError: a large graph needs more memory than there is."""
        key = name, graph.neighbors.shape, graph.n_atoms.shape, graph.shifts is None
        program = self._ready.get(key)
        if program is not None:
            return program(params, graph, *arguments)
        program = self.jitted(name)
        with compilation_cache():
            if graph.neighbors.size >= _LARGE:
                program = program.lower(params, graph, *arguments).compile()
                _check_memory(program, graph)
                self._large += 1
            result = program(params, graph, *arguments)
        self._ready[key] = program
        return result

    def jitted(self, name: str) -> Callable:
        """The function that JAX compiles for each shape."""
        if name not in self._jitted:

            def program(params, *arguments):
                def derive(member):
                    return _DERIVATIVES[name](functools.partial(self._apply, member), *arguments)

                return derive(params) if self._members == 1 else _mean(jax.lax.map(derive, params))

            self._jitted[name] = jax.jit(program, compiler_options=quick_compile())
        return self._jitted[name]


def _mean(results):
    """Results of all members, stacked, to their mean; a prediction also says how far they lie apart."""
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), results)
    if not isinstance(results, Prediction):
        return mean
    return mean._replace(energy_std=jnp.std(results.energy, axis=0, ddof=1), forces_std=jnp.std(results.forces, axis=0, ddof=1))


def _check_memory(program, graph: Graph) -> None:
    sizes = program.memory_analysis()
    needed = 0 if sizes is None else sizes.temp_size_in_bytes + sizes.output_size_in_bytes
    device = jax.local_devices()[0].memory_stats()
    free = device["bytes_limit"] - device["bytes_in_use"] if device else free_memory()
    if needed > free:
        atoms, neighbors = graph.neighbors.shape
        raise StructureError(
            f"{atoms:,} atoms x {neighbors} neighbours need {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are "
            "free: take fewer atoms at once, a smaller model or cutoff, or a machine with more"
        )
