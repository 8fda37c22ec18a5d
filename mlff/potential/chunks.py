"""Energy, forces and stress of a large graph in bounded memory: computed in chunks of atoms.

A model is a few stages, each of which needs of an atom's neighbours only what the stage before made of them
(`mlff.models.common.State`). That is kept for all atoms. What belongs to pairs takes a hundred times more; it is there for one
chunk at a time, and computed again in the reverse pass, which goes through the stages backward and adds the derivatives of
each chunk to those of its neighbours (rematerialisation: Griewank, Optim. Methods Softw. 1, 35 (1992)).

Where one process has a part of the atoms only and copies of those around them (`mlff.potential.local_atoms`), each stage is
computed for the atoms that the next one asks about; how many these are is not known to the compiled program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

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
Strain = (
    Literal["structure", "atom"] | None
)  #: the derivative by strain: of structures, with the share of each atom, or none


class Derivatives(NamedTuple):
    """Energies of the atoms that are computed and the derivatives of their sum."""

    energies: Array  #: (M,) eV, of the atoms that have rows of neighbours; those of the last stage count
    positions: Array  #: (N, 3) dE/dR, eV/Å; zeros where the graph has vectors
    pairs: Array | None  #: (M, K, 3) dE/dr_ij, eV/Å, where the graph has vectors
    virials: Array  #: (M, 3, 3) eV: the sum of r_ij dE/dr_ij over the slots of an atom


class _Gradient(NamedTuple):
    """Derivatives of the energy that are added up chunk by chunk."""

    atoms: Array  #: (N, 3 + F): by positions, eV/Å, and by what the atoms pass to their neighbours
    kept: Array  #: (N, G)
    virial: Array  #: (B, 3, 3) eV: by strain; or (M, 3, 3), the share of each atom
    pairs: Array | None  #: (M, K, 3) eV/Å: by vectors, where the graph has them


class _Chunk(NamedTuple):
    """Some of the atoms of a graph."""

    start: Array  #: () int: the first of them
    fresh: (
        Array  #: (n,) bool: it counts, and no chunk before has it; the last chunk is as long as the others and reaches back
    )
    graph: Graph  #: of these atoms; neighbours may be any
    own: State | None
    sent: Array | None  #: (n, K, F)


@unrounded
def predict(model: nn.Module, params: dict, graph: Graph, size: int, stress: bool = False) -> Prediction:
    """As `derivatives.predict`, in chunks of `size` atoms (at most N); the two agree to rounding. `graph.reverse` is not used.

    The memory for pairs is that of one chunk, whatever the number of atoms. Positions must count: `graph.vectors` is None.
    """
    energies, total, gradient = _derive(model, params, graph, size, "structure" if stress else None)
    symmetric = 0.5 * (gradient.virial + jnp.swapaxes(gradient.virial, 1, 2))
    return Prediction(total, -gradient.atoms[:, :3], stresses(graph, symmetric) if stress else None, energies)


@unrounded
def derive_local(model: nn.Module, params: dict, graph: Graph, rows: Array, size: int) -> Derivatives:
    """Derivatives of the energy of the first atoms of a graph, which has one structure and neighbours of M of its N atoms only.

    `rows` (stages,) int32: for how many atoms, from the first on, each stage is computed, at most M; the energies of
    the last of these are summed. All within a cutoff of the atoms of one stage must be among those of the stage before.
    """
    energies, _, gradient = _derive(model, params, graph, size, "atom", rows)
    return Derivatives(energies, gradient.atoms[:, :3], gradient.pairs, gradient.virial)


def _derive(model: nn.Module, params: dict, graph: Graph, size: int, strain: Strain, rows: Array | None = None):
    """Energies of the atoms (M,), of the structures (B,), eV, and the gradient by positions, vectors and strain."""
    stages = [_stage(model, params, index) for index in range(model.stages)]
    size = min(size, len(graph.neighbors))
    counts = [len(graph.neighbors)] * model.stages if rows is None else list(rows)
    states: list[State | None] = [None]
    for stage, count in zip(stages[:-1], counts, strict=False):
        states.append(_forward(stage, graph, states[-1], count, size))
    energies, total, gradient = _last(stages[-1], graph, states[-1], counts[-1], size, strain)
    found = gradient
    for stage, state, count in zip(stages[-2::-1], states[-2::-1], counts[-2::-1], strict=True):
        gradient = _backward(stage, graph, state, gradient, count, size, strain)
        found = found._replace(
            atoms=found.atoms[:, :3] + gradient.atoms[:, :3],
            virial=found.virial + gradient.virial,
            pairs=None if found.pairs is None else found.pairs + gradient.pairs,
        )
    return energies, total, found


def cached_size(model: nn.Module, params: dict, graph: Graph) -> int:
    """Atoms of a chunk whose pairs stay in the caches of a CPU: a power of 2, estimated from what neighbours pass."""

    state, width = None, 0
    for index in range(model.stages - 1):

        def stage(params, graph, state, index=index):
            return _stage(model, params, index)(*_chunk(graph, state, jnp.int32(0), 1, 1)[2:])

        new = jax.eval_shape(stage, params, graph, state)
        state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((len(graph.positions), *leaf.shape[1:]), leaf.dtype), new)
        width = max(width, state.passed.shape[1])
    pairs = _COPIES * graph.neighbors.shape[1] * max(width, 1) * graph.positions.dtype.itemsize
    return int(2 ** np.clip(np.floor(np.log2(_CACHES / pairs)), np.log2(SMALLEST), np.log2(_LARGEST)))


def _stage(model: nn.Module, params: dict, index: int) -> Stage:
    return lambda graph, own, sent: model.apply(params, index, graph, own, sent, method="stage")


def _forward(stage: Stage, graph: Graph, state: State | None, count: int | Array, size: int) -> State:
    """What a stage makes of the states of the first `count` atoms and their neighbours."""

    def step(number: Array, whole: State) -> State:
        chunk = _chunk(graph, state, number, count, size)
        new = stage(chunk.graph, chunk.own, chunk.sent)
        return jax.tree.map(lambda array, rows: _put(array, rows, chunk.start), whole, new)

    first = jax.eval_shape(lambda: stage(*_chunk(graph, state, jnp.int32(0), count, size)[2:]))
    whole = jax.tree.map(lambda leaf: jnp.zeros((len(graph.positions), *leaf.shape[1:]), leaf.dtype), first)
    return jax.lax.fori_loop(0, -(-count // size), step, whole)


def _last(stage: Stage, graph: Graph, state: State | None, count: int | Array, size: int, strain: Strain):
    """Energies of the atoms (M,) and of the structures (B,), eV, and the gradient of their sum by the state before."""
    dtype = graph.positions.dtype

    def step(number: Array, carry):
        energies, total, gradient = carry
        chunk = _chunk(graph, state, number, count, size)
        said, slopes = _pull(stage, chunk, chunk.fresh.astype(dtype))
        total = total + _by_structure(chunk, jnp.where(chunk.fresh, said, 0))
        return _put(energies, said, chunk.start), total, _add(gradient, chunk, *slopes, strain)

    start = jnp.zeros(len(graph.neighbors), dtype), jnp.zeros(len(graph.n_atoms), dtype), _nothing(graph, state, strain)
    return jax.lax.fori_loop(0, -(-count // size), step, start)


def _backward(
    stage: Stage, graph: Graph, state: State | None, above: _Gradient, count: int | Array, size: int, strain: Strain
) -> _Gradient:
    """The gradient by the state before a stage, from that by the state after it."""

    def step(number: Array, gradient: _Gradient) -> _Gradient:
        chunk = _chunk(graph, state, number, count, size)
        passed, kept = _rows((above.atoms, above.kept), chunk.start, size)
        seed = jax.tree.map(lambda rows: jnp.where(chunk.fresh[:, None], rows, 0), State(passed[:, 3:], kept))
        _, slopes = _pull(stage, chunk, seed)
        return _add(gradient, chunk, *slopes, strain)

    return jax.lax.fori_loop(0, -(-count // size), step, _nothing(graph, state, strain))


def _pull(stage: Stage, chunk: _Chunk, seed: State | Array) -> tuple[State | Array, tuple]:
    """What a stage says of a chunk, and from the derivatives by that (`seed`) those by vectors, own state and what was sent."""

    def of_vectors(vectors: Array, own: State | None, sent: Array | None):
        return stage(chunk.graph._replace(vectors=vectors), own, sent)

    said, pull = jax.vjp(of_vectors, chunk.graph.vectors, chunk.own, chunk.sent)
    return said, pull(seed)


def _nothing(graph: Graph, state: State | None, strain: Strain) -> _Gradient:
    passed, kept = (0, 0) if state is None else (state.passed.shape[1], state.kept.shape[1])
    atoms, dtype = len(graph.positions), graph.positions.dtype
    virial = jnp.zeros((len(graph.neighbors), 3, 3), dtype) if strain == "atom" else jnp.zeros_like(graph.cell)
    pairs = None if graph.vectors is None else jnp.zeros_like(graph.vectors)
    return _Gradient(jnp.zeros((atoms, 3 + passed), dtype), jnp.zeros((atoms, kept), dtype), virial, pairs)


def _add(gradient: _Gradient, chunk: _Chunk, by_vectors: Array, by_own: State | None, by_sent: Array | None, strain: Strain):
    """The gradient with a chunk's share: to its own atoms, and to their neighbours."""
    atoms, kept, virial, pairs = gradient
    here, there = -jnp.sum(by_vectors, axis=1), by_vectors
    if by_own is not None:
        here, there = jnp.concatenate([here, by_own.passed], axis=1), jnp.concatenate([there, by_sent], axis=2)
        kept = _plus(kept, by_own.kept, chunk.start)
    atoms = _plus(atoms, here, chunk.start)
    neighbors = chunk.graph.neighbors.reshape(-1)
    atoms = atoms.at[neighbors].add(there.reshape(len(neighbors), -1), mode="promise_in_bounds")
    if strain is not None:
        shares = jnp.sum(chunk.graph.vectors[..., :, None] * by_vectors[..., None, :], axis=1)
        virial = _plus(virial, shares, chunk.start) if strain == "atom" else virial + _by_structure(chunk, shares)
    if pairs is not None:
        pairs = _plus(pairs, by_vectors, chunk.start)
    return _Gradient(atoms, kept, virial, pairs)


def _by_structure(chunk: _Chunk, rows: Array) -> Array:
    """(B, ...) sums of a chunk, to be added to those of others: added one by one, a million float32 lose their last digits."""
    return jax.ops.segment_sum(rows, chunk.graph.structure, len(chunk.graph.n_atoms), indices_are_sorted=True)


def _chunk(graph: Graph, state: State | None, number: Array, count: int | Array, size: int) -> _Chunk:
    """Chunk `number` of `size` atoms, of which those before `count` matter."""
    start = jnp.minimum(number * size, len(graph.neighbors) - size)
    arrays = graph.positions, graph.atomic_numbers, graph.structure, graph.neighbors, graph.neighbor_mask
    positions, numbers, structure, neighbors, mask = _rows(arrays, start, size)
    vectors, shifts = _rows((graph.vectors, graph.shifts), start, size)
    if vectors is None:
        vectors = difference(graph.positions[neighbors], positions, graph.cell[structure], shifts)
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
        vectors=vectors,
        numbers_around=graph.atomic_numbers[neighbors],
    )
    own, sent = (None, None) if state is None else (_rows(state, start, size), state.passed[neighbors])
    place = start + jnp.arange(size, dtype=jnp.int32)
    return _Chunk(start, (place >= number * size) & (place < count), part, own, sent)


def _rows(arrays, start: Array, size: int):
    return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, start, size), arrays)


def _put(whole: Array, rows: Array, start: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, rows, start, 0)


def _plus(whole: Array, rows: Array, start: Array) -> Array:
    """`whole` with these added to its rows from `start` on."""
    return _put(whole, _rows(whole, start, len(rows)) + rows, start)
