"""Energy, forces and stress of a large graph in bounded memory: computed in chunks of atoms.

A model is a few stages, each of which needs of an atom's neighbours only what the stage before made of them
(`mlff.models.common.State`). That is kept for all atoms. What belongs to pairs takes a hundred times more; it is there for one
chunk at a time, and computed again in the reverse pass, which goes through the stages backward and adds the derivatives of
each chunk to those of its neighbours (rematerialisation: Griewank, Optim. Methods Softw. 1, 35 (1992)).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.graph import Graph, Prediction, difference
from mlff.models.common import State
from mlff.potential.derivatives import stresses, unrounded

SMALLEST = 32  #: atoms of a chunk; fewer save no memory that counts
_LARGEST = 512  #: on a CPU; more gain nothing
_CACHES = 2**25  #: bytes; 512 atoms of 16 channels, 64 of 64 channels with quadrupoles
_COPIES = 4  #: of what neighbours pass that a program makes, about
Stage = Callable[[Graph, State | None, Array | None], State | Array]  #: see `mlff.models.common.State`


class _Gradient(NamedTuple):
    """Derivatives of the energy that are added up chunk by chunk."""

    atoms: Array  #: (N, 3 + F): by positions, eV/Å, and by what the atoms pass to their neighbours
    kept: Array  #: (N, G)
    virial: Array  #: (B, 3, 3) eV: by strain


class _Chunk(NamedTuple):
    """Some of the atoms of a graph."""

    start: Array  #: () int: the first of them
    fresh: Array  #: (n,) bool: no chunk before has this atom; the last chunk is as long as the others and reaches back
    graph: Graph  #: of these atoms; neighbours may be any
    own: State | None
    sent: Array | None  #: (n, K, F)


@unrounded
def predict(model: nn.Module, params: dict, graph: Graph, size: int, stress: bool = False) -> Prediction:
    """As `derivatives.predict`, in chunks of `size` atoms (at most N); the two agree to rounding. `graph.reverse` is not used.

    The memory for pairs is that of one chunk, whatever the number of atoms. Positions must count: `graph.vectors` is None.
    """
    stages = [_stage(model, params, index) for index in range(model.stages)]
    size = min(size, len(graph.positions))
    states: list[State | None] = [None]
    for stage in stages[:-1]:
        states.append(_forward(stage, graph, states[-1], size))
    energies, total, gradient = _last(stages[-1], graph, states[-1], size, stress)
    slopes, virial = gradient.atoms[:, :3], gradient.virial
    for stage, state in zip(stages[-2::-1], states[-2::-1], strict=True):
        gradient = _backward(stage, graph, state, gradient, size, stress)
        slopes, virial = slopes + gradient.atoms[:, :3], virial + gradient.virial
    symmetric = 0.5 * (virial + jnp.swapaxes(virial, 1, 2))
    return Prediction(total, -slopes, stresses(graph, symmetric) if stress else None, energies)


def cached_size(model: nn.Module, params: dict, graph: Graph) -> int:
    """Atoms of a chunk whose pairs stay in the caches of a CPU: a power of 2, estimated from what neighbours pass."""

    state, width = None, 0
    for index in range(model.stages - 1):

        def stage(params, graph, state, index=index):
            return _stage(model, params, index)(*_chunk(graph, state, jnp.int32(0), 1)[2:])

        new = jax.eval_shape(stage, params, graph, state)
        state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((len(graph.positions), *leaf.shape[1:]), leaf.dtype), new)
        width = max(width, state.passed.shape[1])
    pairs = _COPIES * graph.neighbors.shape[1] * max(width, 1) * graph.positions.dtype.itemsize
    return int(2 ** np.clip(np.floor(np.log2(_CACHES / pairs)), np.log2(SMALLEST), np.log2(_LARGEST)))


def _stage(model: nn.Module, params: dict, index: int) -> Stage:
    return lambda graph, own, sent: model.apply(params, index, graph, own, sent, method="stage")


def _forward(stage: Stage, graph: Graph, state: State | None, size: int) -> State:
    """What a stage makes of the state of all atoms."""

    def step(number: Array, whole: State) -> State:
        chunk = _chunk(graph, state, number, size)
        new = stage(chunk.graph, chunk.own, chunk.sent)
        return jax.tree.map(lambda array, rows: _put(array, rows, chunk.start), whole, new)

    first = jax.eval_shape(lambda: stage(*_chunk(graph, state, jnp.int32(0), size)[2:]))
    whole = jax.tree.map(lambda leaf: jnp.zeros((len(graph.positions), *leaf.shape[1:]), leaf.dtype), first)
    return jax.lax.fori_loop(0, _count(graph, size), step, whole)


def _last(stage: Stage, graph: Graph, state: State | None, size: int, stress: bool) -> tuple[Array, Array, _Gradient]:
    """Energies of the atoms (N,) and of the structures (B,), eV, and the gradient of their sum by the state before."""
    dtype, count = graph.positions.dtype, len(graph.n_atoms)

    def step(number: Array, carry):
        energies, total, gradient = carry
        chunk = _chunk(graph, state, number, size)
        said, slopes = _pull(stage, chunk, chunk.fresh.astype(dtype))
        total = total + _by_structure(chunk, jnp.where(chunk.fresh, said, 0))
        return _put(energies, said, chunk.start), total, _add(gradient, chunk, *slopes, stress)

    start = jnp.zeros(len(graph.positions), dtype), jnp.zeros(count, dtype), _nothing(graph, state)
    return jax.lax.fori_loop(0, _count(graph, size), step, start)


def _backward(stage: Stage, graph: Graph, state: State | None, above: _Gradient, size: int, stress: bool) -> _Gradient:
    """The gradient by the state before a stage, from that by the state after it."""

    def step(number: Array, gradient: _Gradient) -> _Gradient:
        chunk = _chunk(graph, state, number, size)
        passed, kept = _rows((above.atoms, above.kept), chunk.start, size)
        seed = jax.tree.map(lambda rows: jnp.where(chunk.fresh[:, None], rows, 0), State(passed[:, 3:], kept))
        _, slopes = _pull(stage, chunk, seed)
        return _add(gradient, chunk, *slopes, stress)

    return jax.lax.fori_loop(0, _count(graph, size), step, _nothing(graph, state))


def _pull(stage: Stage, chunk: _Chunk, seed: State | Array) -> tuple[State | Array, tuple]:
    """What a stage says of a chunk, and from the derivatives by that (`seed`) those by vectors, own state and what was sent."""

    def of_vectors(vectors: Array, own: State | None, sent: Array | None):
        return stage(chunk.graph._replace(vectors=vectors), own, sent)

    said, pull = jax.vjp(of_vectors, chunk.graph.vectors, chunk.own, chunk.sent)
    return said, pull(seed)


def _nothing(graph: Graph, state: State | None) -> _Gradient:
    passed, kept = (0, 0) if state is None else (state.passed.shape[1], state.kept.shape[1])
    atoms, dtype = len(graph.positions), graph.positions.dtype
    return _Gradient(jnp.zeros((atoms, 3 + passed), dtype), jnp.zeros((atoms, kept), dtype), jnp.zeros_like(graph.cell))


def _add(gradient: _Gradient, chunk: _Chunk, by_vectors: Array, by_own: State | None, by_sent: Array | None, stress: bool):
    """The gradient with a chunk's share: to its own atoms, and to their neighbours."""
    atoms, kept, virial = gradient
    here, there = -jnp.sum(by_vectors, axis=1), by_vectors
    if by_own is not None:
        here, there = jnp.concatenate([here, by_own.passed], axis=1), jnp.concatenate([there, by_sent], axis=2)
        kept = _put(kept, _rows(kept, chunk.start, len(here)) + by_own.kept, chunk.start)
    atoms = _put(atoms, _rows(atoms, chunk.start, len(here)) + here, chunk.start)
    neighbors = chunk.graph.neighbors.reshape(-1)
    atoms = atoms.at[neighbors].add(there.reshape(len(neighbors), -1), mode="promise_in_bounds")
    if stress:
        strain = jnp.sum(chunk.graph.vectors[..., :, None] * by_vectors[..., None, :], axis=1)
        virial = virial + _by_structure(chunk, strain)
    return _Gradient(atoms, kept, virial)


def _by_structure(chunk: _Chunk, rows: Array) -> Array:
    """(B, ...) sums of a chunk, to be added to those of others: added one by one, a million float32 lose their last digits."""
    return jax.ops.segment_sum(rows, chunk.graph.structure, len(chunk.graph.n_atoms), indices_are_sorted=True)


def _count(graph: Graph, size: int) -> int:
    return -(-len(graph.positions) // size)


def _chunk(graph: Graph, state: State | None, number: Array, size: int) -> _Chunk:
    """Chunk `number` of `size` atoms."""
    start = jnp.minimum(number * size, len(graph.positions) - size)
    arrays = graph.positions, graph.atomic_numbers, graph.structure, graph.neighbors, graph.neighbor_mask, graph.shifts
    positions, numbers, structure, neighbors, mask, shifts = _rows(arrays, start, size)
    part = Graph(
        positions=positions,
        atomic_numbers=numbers,
        structure=structure,
        n_atoms=graph.n_atoms,
        cell=graph.cell,
        pbc=graph.pbc,
        neighbors=neighbors,
        neighbor_mask=mask,
        reverse=None,
        shifts=None,
        vectors=difference(graph.positions[neighbors], positions, graph.cell[structure], shifts),
        numbers_around=graph.atomic_numbers[neighbors],
    )
    own, sent = (None, None) if state is None else (_rows(state, start, size), state.passed[neighbors])
    return _Chunk(start, start + jnp.arange(size, dtype=jnp.int32) >= number * size, part, own, sent)


def _rows(arrays, start: Array, size: int):
    return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, start, size), arrays)


def _put(whole: Array, rows: Array, start: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, rows, start, 0)
