"""Structures packed into the batches that a potential evaluates at once: as many atoms as the device likes and memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from mlff.data.batching import Batches, Sample, Sizes, make_graph, round_up
from mlff.data.pairs import MANY
from mlff.graph import Prediction
from mlff.potential.compiled import OutOfMemory, Programs, memory_errors

ATOMS = 512  #: evaluated at once on a CPU: enough to keep two cores busy, little enough for their caches
_MOST_ATOMS = 2**16  #: on other devices, which are full long before
_PAIRS_PER_COMPILATION = 1e6  #: padded pairs evaluated in the time of one compilation (many-body model, two cores)


def batch_atoms(programs: Programs, neighbors: int, stress: bool = False) -> int:
    """Atoms, of so many neighbours each, to evaluate at once: on a CPU always `ATOMS`.

    On another device what half of its free memory holds, by the account of the program compiled last; `ATOMS` before one was.
    """
    slots = None if jax.default_backend() == "cpu" else programs.slots("stress" if stress else "forces")
    return ATOMS if slots is None else int(np.clip(slots / max(1, neighbors), ATOMS, _MOST_ATOMS))


def pack(samples: list[Sample], atoms: int, dtype, times: float = 1.0) -> Batches:
    """Batches of up to `atoms`, to be evaluated so many times: a shape more only if it saves more than its compilation takes."""
    pairs = times * sum(len(s.numbers) for s in samples) * max(s.sizes.neighbors for s in samples)
    return Batches(samples, batch_size=32, max_atoms=atoms, dtype=dtype, gain=_PAIRS_PER_COMPILATION / max(1, pairs))


def rungs(sizes: Sizes) -> Sizes:
    """The shape, a little larger, that other sets of structures share; coarse where a call costs next to nothing."""
    share = 0.0625 if sizes.atoms >= MANY else 0.25 if sizes.atoms > 128 else 0.5
    return Sizes(round_up(sizes.structures, 1.0), round_up(sizes.atoms, share), round_up(sizes.neighbors, share))


def predictions(
    potential, samples: list[Sample], stress: bool, sources: Sequence[str]
) -> Iterator[tuple[list[int], Prediction]]:
    """Indices of the samples of a batch and what `potential.compute` says of it, on the host, until all samples are done.

    Where memory runs out batches become half as large. Raises OutOfMemory, which names its source, for a sample that does not
    fit by itself.
    """
    shifts = any(sample.shifts is not None for sample in samples)
    atoms = max(ATOMS, max(sample.sizes.atoms for sample in samples))
    waiting, may_grow = list(range(len(samples))), True
    while waiting:
        for sizes, indices in _plan(samples, waiting, atoms, potential.dtype):
            graph = make_graph([samples[k] for k in indices], rungs(sizes), potential.dtype, shifts)
            try:
                with memory_errors(*graph.neighbors.shape):
                    prediction = jax.device_get(potential.compute(graph, stress))
            except OutOfMemory as error:
                if sizes == samples[indices[0]].sizes:
                    raise OutOfMemory(f"{sources[indices[0]]}: {error}") from None
                atoms, may_grow = max(1, min(atoms, sizes.atoms) // 2), False
                break
            waiting = sorted(set(waiting) - set(indices))
            yield indices, prediction
            larger = batch_atoms(potential.programs, sizes.neighbors, stress)
            if may_grow and larger >= 2 * atoms and len(waiting) > len(indices):
                atoms, may_grow = larger, False
                break


def _plan(samples: list[Sample], waiting: list[int], atoms: int, dtype) -> list[tuple[Sizes, list[int]]]:
    """Batches of up to so many atoms; a sample that has more makes one by itself, of its own size."""
    alone = [(samples[k].sizes, [k]) for k in waiting if samples[k].sizes.atoms > atoms]
    shared = [k for k in waiting if samples[k].sizes.atoms <= atoms]
    if not shared:
        return alone
    batches = pack([samples[k] for k in shared], atoms, dtype)
    return [(sizes, [shared[k] for k in indices]) for sizes, indices in batches.plan(None)] + alone
