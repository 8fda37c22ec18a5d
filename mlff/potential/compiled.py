"""The compiled programs of one potential: one per derivative and padded shape, kept on disk for the next process.

A small structure's first energies and forces come from a program that compiles in half a second instead of three to five;
when it has been used so often that its slowness would cost about as much, the one that optimises in full follows. Which of
the two a call gets depends on the number of calls before it alone. The two differ by rounding. Large graphs are computed in
chunks of atoms (`mlff.potential.chunks`), smaller ones where memory runs out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import flax.linen as nn
import jax
import jax.numpy as jnp

from mlff.basics import compiler
from mlff.basics.errors import StructureError
from mlff.basics.runtime import compilation_cache, free_memory
from mlff.graph import Graph, Prediction
from mlff.potential import chunks, derivatives

_LARGE = 500_000  #: padded pairs from which on energies and forces are computed in chunks, and a program's memory is looked at before it runs
_LARGEST_CHUNK = 2**16  #: atoms of a chunk on other devices than a CPU, which first try all atoms at once
_MARGIN = 0.9  #: of the free memory that a chunked program may take
_SHARE = 0.5  #: of the free memory that a batch may take by the account of smaller ones
_EARLY = 100_000  #: padded pairs in all calls of a shape together: as long as there are fewer the hasty program will do
_OFTEN = "forces", "stress"  #: what is computed again and again, so that the number of calls decides
_LOCAL = "local"  #: `chunks.derive_local`
_ADVICE = "take fewer atoms at once, a smaller model or cutoff, or a machine with more"
_DERIVATIVES = {
    "forces": derivatives.predict,
    "stress": functools.partial(derivatives.predict, stress=True),
    "hessian": derivatives.hessian,
    "hessian_vector_product": derivatives.hessian_vector_product,
}


class OutOfMemory(StructureError):
    """A graph needs more memory than there is."""


@contextmanager
def memory_errors(atoms: int, neighbors: int) -> Iterator[None]:
    """What runs out of memory in the block, also after the call of a program that goes on by itself, becomes OutOfMemory."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(f"{_size(atoms, neighbors)} need more memory than there is: {_ADVICE}") from error


class Programs:
    """`run(name, params, graph, ...)` for the names `forces`, `stress`, `hessian`, `hessian_vector_product` and `local`."""

    def __init__(self, model: nn.Module, members: int = 1):
        """Of `members` above 1 the parameters have an axis in front."""
        self._model = model
        self._members = members
        self._jitted: dict[tuple, Callable] = {}
        self._ready: dict[tuple, Callable] = {}
        self._hasty: dict[tuple, Callable] = {}
        self._calls: dict[tuple, int] = {}
        self._chunks: dict[tuple, int] = {}
        self._measured = 0
        self._slot_bytes: dict[str, float] = {}
        #: never a hasty program: every call of a shape computes the same bits (a simulation and its restart)
        self.steady = False

    @property
    def compilations(self) -> int:
        """How many were compiled so far."""
        return self._measured + sum(program._cache_size() for program in self._jitted.values())

    def run(self, name: str, params: dict, graph: Graph, *arguments):
        """Compiled the first time a shape is met. Raises OutOfMemory: the graph needs more memory than there is."""
        with memory_errors(*graph.neighbors.shape):
            return self._run(name, params, graph, *arguments)

    def chunk_of(self, params: dict, graph: Graph) -> int:
        """Atoms at once for a program that computes a graph with `reverse` (arrays, or their shapes) again and again; 0: all."""
        if graph.neighbors.size < _LARGE:
            return 0
        size = self._first_chunk(params, graph)
        return size if size < len(graph.positions) else 0

    def predict_in_chunks(self, params: dict, graph: Graph, size: int, stress: bool) -> Prediction:
        """Energies, forces (and stress) in chunks of `size` atoms, of a committee the mean; a pure function of `params` and `graph`."""
        return self._of_all(lambda member: chunks.predict(self._model, member, graph, size, stress=stress), params)

    def slots(self, name: str) -> float | None:
        """Padded pairs that half of the free memory holds, by the account of the program measured last; None before one was."""
        return _SHARE * _free() / self._slot_bytes[name] if name in self._slot_bytes else None

    def _run(self, name: str, params: dict, graph: Graph, *arguments):
        kinds = graph.reverse is None, graph.shifts is not None and graph.shifts.dtype
        key = name, graph.neighbors.shape, graph.n_atoms.shape, kinds
        if name == _LOCAL:
            return self._in_chunks((*key, graph.positions.shape, graph.vectors is None), params, graph, *arguments)
        if name in _OFTEN and graph.vectors is None and (graph.neighbors.size >= _LARGE or graph.reverse is None):
            return self._in_chunks(key, params, graph)
        program = self._ready.get(key)
        if program is not None:
            return program(params, graph, *arguments)
        hasty = self._early(key, graph)
        if hasty and key in self._hasty:
            return self._hasty[key](params, graph, *arguments)
        compiler.check()
        program = self.jitted(name, hasty)
        with compilation_cache():
            if graph.neighbors.size >= _LARGE or jax.default_backend() != "cpu":
                program = program.lower(params, graph, *arguments).compile()
                needed = check_memory(program, *graph.neighbors.shape)
                self._slot_bytes[name] = needed / graph.neighbors.size
                self._measured += 1
            result = program(params, graph, *arguments)
        (self._hasty if hasty else self._ready)[key] = program
        return result

    def _in_chunks(self, key: tuple, params: dict, graph: Graph, *arguments) -> Prediction | chunks.Derivatives:
        """In the largest chunks, from those that are fastest on, for which there is memory."""
        atoms = len(graph.positions)
        if key not in self._chunks:
            self._chunks[key] = self._first_chunk(params, graph)
        while True:
            try:
                with memory_errors(*graph.neighbors.shape):
                    if key not in self._ready:
                        self._ready[key] = self._compile_chunks(key[0], self._chunks[key], params, graph, *arguments)
                    return jax.block_until_ready(self._ready[key](params, graph, *arguments))
            except OutOfMemory:
                size = smaller_chunk(self._chunks[key], atoms)
                if not size:
                    raise
                self._ready.pop(key, None)
                self._chunks[key] = size

    def _first_chunk(self, params: dict, graph: Graph) -> int:
        """Atoms at once if memory were no matter."""
        if jax.default_backend() == "cpu":
            member = params if self._members == 1 else jax.tree.map(lambda leaf: leaf[0], params)
            return chunks.cached_size(self._model, member, graph)
        return _LARGEST_CHUNK if graph.reverse is None else len(graph.positions)

    def _compile_chunks(self, name: str, size: int, params: dict, graph: Graph, *arguments) -> Callable:
        """A program for chunks of `size` atoms, of all atoms at once for size N. Raises OutOfMemory."""
        compiler.check()
        whole = size >= len(graph.positions) and graph.reverse is not None
        program = self.jitted(name) if whole else self.jitted(name, size=size)
        with compilation_cache():
            program = program.lower(params, graph, *arguments).compile()
        self._measured += 1
        needed = check_memory(program, *graph.neighbors.shape, _SHARE if whole else _MARGIN)
        if whole:
            self._slot_bytes[name] = needed / graph.neighbors.size
        return program

    def _early(self, key: tuple, graph: Graph) -> bool:
        """Whether this call of a shape is among its first few, for which a hasty program will do."""
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        few = _EARLY // (graph.neighbors.size * self._members)
        wanted = few > 1 and calls <= few and not self.steady and key[0] in _OFTEN
        return wanted and jax.default_backend() == "cpu" and bool(compiler.hasty())

    def jitted(self, name: str, hasty: bool = False, size: int | None = None) -> Callable:
        """The function that JAX compiles for each shape; `size`: in chunks of so many atoms."""
        if (name, hasty, size) not in self._jitted:

            def program(params, *arguments):
                def derive(member):
                    if name == _LOCAL:
                        return chunks.derive_local(self._model, member, *arguments, size)
                    return _DERIVATIVES[name](functools.partial(self._model.apply, member), *arguments)

                if size is not None and name != _LOCAL:
                    return self.predict_in_chunks(params, *arguments, size, name == "stress")
                return self._of_all(derive, params)

            options = compiler.hasty() if hasty else compiler.quick()
            self._jitted[name, hasty, size] = jax.jit(program, compiler_options=options)
        return self._jitted[name, hasty, size]

    def _of_all(self, derive: Callable, params: dict):
        """What `derive` says of the parameters of a member, of several the mean."""
        return derive(params) if self._members == 1 else _mean(jax.lax.map(derive, params))


def smaller_chunk(size: int, atoms: int) -> int:
    """Atoms of the chunk to try where one of `size` of so many atoms does not fit; 0: none, for it would save nothing."""
    size = min(_LARGEST_CHUNK, size // 2, atoms // 2)
    return size if size >= chunks.SMALLEST else 0


def _mean(results):
    """Results of all members, stacked, to their mean; a prediction also says how far they lie apart."""
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), results)
    if not isinstance(results, Prediction):
        return mean
    return mean._replace(
        energy_std=jnp.std(results.energy, axis=0, ddof=1), forces_std=jnp.std(results.forces, axis=0, ddof=1)
    )


def check_memory(program, atoms: int, neighbors: int, share: float = 1.0) -> float:
    """Bytes, at least 1, that a compiled program of so many atoms and neighbours takes.

    Raises OutOfMemory if they are more than this share of what is free.
    """
    sizes = program.memory_analysis()
    needed = 0 if sizes is None else sizes.temp_size_in_bytes + sizes.output_size_in_bytes
    free = _free()
    if needed > share * free:
        amounts = f"{needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free"
        raise OutOfMemory(f"{_size(atoms, neighbors)} need {amounts}: {_ADVICE}")
    return max(1.0, needed)


def _free() -> float:
    """Bytes that are free where programs run."""
    device = jax.local_devices()[0].memory_stats()
    return device["bytes_limit"] - device["bytes_in_use"] if device else free_memory()


def _size(atoms: int, neighbors: int) -> str:
    return f"{atoms:,} atoms x {neighbors} neighbours"
