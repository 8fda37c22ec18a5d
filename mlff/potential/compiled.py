"""The compiled programs of one potential: one per derivative and padded shape, kept on disk for the next process.

A small structure's first energies and forces come from a program that compiles in half a second instead of three to five;
when it has been used so often that its slowness would cost about as much, the one that optimises in full follows. Which of
the two a call gets depends on the number of calls before it alone. The two differ by rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mlff.basics import compiler
from mlff.basics.errors import StructureError
from mlff.basics.runtime import compilation_cache, free_memory
from mlff.graph import Graph, Prediction
from mlff.potential import derivatives

_LARGE = 500_000  #: padded pairs from which on a program's memory is looked at before it runs
_EARLY = 100_000  #: padded pairs in all calls of a shape together: as long as there are fewer the hasty program will do
_OFTEN = "forces", "stress"  #: what is computed again and again, so that the number of calls decides
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
        self._jitted: dict[tuple[str, bool], Callable] = {}
        self._ready: dict[tuple, Callable] = {}
        self._hasty: dict[tuple, Callable] = {}
        self._calls: dict[tuple, int] = {}
        self._large = 0
        #: never a hasty program: every call of a shape computes the same bits (a simulation and its restart)
        self.steady = False

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
        hasty = self._early(key, graph)
        if hasty and key in self._hasty:
            return self._hasty[key](params, graph, *arguments)
        compiler.check()
        program = self.jitted(name, hasty)
        with compilation_cache():
            if graph.neighbors.size >= _LARGE:
                program = program.lower(params, graph, *arguments).compile()
                check_memory(program, *graph.neighbors.shape)
                self._large += 1
            result = program(params, graph, *arguments)
        (self._hasty if hasty else self._ready)[key] = program
        return result

    def _early(self, key: tuple, graph: Graph) -> bool:
        """Whether this call of a shape is among its first few, for which a hasty program will do."""
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        few = _EARLY // (graph.neighbors.size * self._members)
        wanted = few > 1 and calls <= few and not self.steady and key[0] in _OFTEN
        return wanted and jax.default_backend() == "cpu" and bool(compiler.hasty())

    def jitted(self, name: str, hasty: bool = False) -> Callable:
        """The function that JAX compiles for each shape."""
        if (name, hasty) not in self._jitted:

            def program(params, *arguments):
                def derive(member):
                    return _DERIVATIVES[name](functools.partial(self._apply, member), *arguments)

                return derive(params) if self._members == 1 else _mean(jax.lax.map(derive, params))

            options = compiler.hasty() if hasty else compiler.quick()
            self._jitted[name, hasty] = jax.jit(program, compiler_options=options)
        return self._jitted[name, hasty]


def _mean(results):
    """Results of all members, stacked, to their mean; a prediction also says how far they lie apart."""
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), results)
    if not isinstance(results, Prediction):
        return mean
    return mean._replace(
        energy_std=jnp.std(results.energy, axis=0, ddof=1), forces_std=jnp.std(results.forces, axis=0, ddof=1)
    )


def check_memory(program, atoms: int, neighbors: int) -> None:
    """Raise StructureError if a compiled program, of so many atoms and neighbours, needs more memory than there is."""
    sizes = program.memory_analysis()
    needed = 0 if sizes is None else sizes.temp_size_in_bytes + sizes.output_size_in_bytes
    device = jax.local_devices()[0].memory_stats()
    free = device["bytes_limit"] - device["bytes_in_use"] if device else free_memory()
    if needed > free:
        raise StructureError(
            f"{atoms:,} atoms x {neighbors} neighbours need {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are "
            "free: take fewer atoms at once, a smaller model or cutoff, or a machine with more"
        )
