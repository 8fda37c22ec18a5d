"""Structures to padded batches of a few fixed sizes.

A `Sample` is one structure with its dense neighbour arrays; `Batches` packs samples into graphs. XLA compiles a
program per shape, so the samples are put into at most a few size classes, each with one padded shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mlff.basics.errors import StructureError
from mlff.basics.properties import PREDICTED, PROPERTIES
from mlff.data import baseline as baselines
from mlff.data.pairs import find_pairs
from mlff.data.structure import Structure
from mlff.graph import Graph, Labels

USUAL_ATOMS = (
    80  #: of a step where no batch size is given: smaller steps learn more from the same structures, and cost more overhead
)
USUAL_STRUCTURES = 5  #: of such a step at most
_OPEN = 8  #: batches that are filled at the same time


class Sizes(NamedTuple):
    """A padded shape."""

    structures: int  #: B
    atoms: int  #: N
    neighbors: int  #: K


class Sample(NamedTuple):
    """One structure, ready to be copied into a batch. float64."""

    numbers: np.ndarray  #: (n,) int32
    positions: np.ndarray  #: (n, 3) Å, wrapped into the cell along periodic directions, else centred; or see `placement`
    cell: np.ndarray  #: (3, 3) Å
    pbc: np.ndarray  #: (3,) bool
    neighbors: np.ndarray  #: (n, k) int32, empty slots hold the atom itself
    mask: np.ndarray  #: (n, k) bool
    reverse: (
        np.ndarray | None
    )  #: (n, k) int32, index into (n * k,) of the same pair in its other direction; of empty slots the slot itself; None of large structures
    shifts: np.ndarray | None  #: (n, k, 3) whole cell vectors; None when no pair crosses a cell
    labels: Mapping[str, float | np.ndarray] = {}  #: those that there are, see `Structure.labels`; baseline removed
    weight: float = 1.0
    direction: np.ndarray | None = None  #: (n, 3), dR/dr of a stretched bond, see `mlff.data.stretched`

    @property
    def sizes(self) -> Sizes:
        return Sizes(1, *self.neighbors.shape)


def make_sample(
    structure: Structure, cutoff: float, baseline: dict[int, float] | None = None, reverse: bool = True
) -> Sample:
    """Neighbour arrays of one structure; `baseline` (Z -> eV) is taken off the energy in float64; `reverse`: see `find_pairs`.

    Raises StructureError when two atoms are on top of each other, or when there are too many pairs.
    """
    positions = _wrap(structure)
    try:
        found = find_pairs(positions, structure.cell, structure.pbc, cutoff, reverse)
    except StructureError as error:
        raise StructureError(f"{structure.source}: {error}") from None
    labels = structure.labels
    if "energy" in labels and baseline is not None:
        labels["energy"] -= baselines.energy(baseline, structure.numbers)
    shifts = found.shifts if found.shifts.any() else None
    arrays = found.neighbors, found.mask, found.reverse, shifts
    return Sample(structure.numbers, found.positions, structure.cell, structure.pbc, *arrays, labels, structure.weight)


def _wrap(structure: Structure) -> np.ndarray:
    """Positions (n, 3) moved by whole cell vectors and the center to near the origin, so that float32 keeps its digits."""
    pbc = structure.pbc
    positions = structure.positions
    if pbc.any() and len(positions):
        vectors = structure.cell[pbc]  # (p, 3); lattice coordinates within the span of the periodic vectors
        positions = positions - np.floor(positions @ np.linalg.pinv(vectors)) @ vectors
    if not pbc.all() and len(positions):
        center = positions.mean(axis=0)
        if pbc.any():
            vectors = structure.cell[pbc]
            center = center - center @ np.linalg.pinv(vectors) @ vectors  # only across the periodic directions
        positions = positions - center
    return positions


def make_graph(samples: list[Sample], sizes: Sizes, dtype=np.float32, shifts: bool = True) -> Graph:
    """Copy samples into one padded graph of numpy arrays; without `shifts` no sample may cross a cell.

    A graph with a sample that has no `reverse` has none.
    """
    B, N, K = sizes
    positions = np.zeros((N, 3), dtype)
    numbers = np.zeros(N, np.int32)
    structure = np.full(N, B - 1, np.int32)
    n_atoms = np.zeros(B, np.int32)
    cell, pbc = np.zeros((B, 3, 3), dtype), np.zeros((B, 3), bool)
    neighbors = np.repeat(np.arange(N, dtype=np.int32)[:, None], K, axis=1)
    mask = np.zeros((N, K), bool)
    whole = all(sample.reverse is not None for sample in samples)
    reverse = np.arange(N * K, dtype=np.int32).reshape(N, K) if whole else None
    small = bool(samples) and all(sample.shifts is not None and sample.shifts.dtype == np.int8 for sample in samples)
    images = np.zeros((N, K, 3), np.int8 if small else dtype) if shifts else None
    start = 0
    for index, sample in enumerate(samples):
        n, k = sample.neighbors.shape
        stop = start + n
        positions[start:stop] = sample.positions
        numbers[start:stop] = sample.numbers
        structure[start:stop] = index
        n_atoms[index] = n
        cell[index], pbc[index] = sample.cell, sample.pbc
        np.add(sample.neighbors, start, out=neighbors[start:stop, :k])
        mask[start:stop, :k] = sample.mask
        if whole:
            atoms, slots = np.divmod(sample.reverse, k)
            reverse[start:stop, :k] = (atoms + start) * K + slots
        if sample.shifts is not None:
            images[start:stop, :k] = sample.shifts
        start = stop
    return Graph(positions, numbers, structure, n_atoms, cell, pbc, neighbors, mask, reverse, images)


def make_labels(
    samples: list[Sample], sizes: Sizes, dtype=np.float32, names: Sequence[str] = PREDICTED, stretched: bool = False
) -> Labels:
    """The labels of these names beside the graph of the same samples; `stretched`: some batch has directions."""
    B, N, _ = sizes
    values = {name: np.zeros(_batched(name, B, N), dtype) for name in names}
    has = {name: np.zeros(B, bool) for name in names}
    weight = np.zeros(B, dtype)
    direction = np.zeros((N, 3), dtype) if stretched else None
    start = 0
    for index, sample in enumerate(samples):
        stop = start + len(sample.numbers)
        for name, label in sample.labels.items():
            if name in has:
                has[name][index] = True
                values[name][slice(start, stop) if PROPERTIES[name].per_atom else index] = label
        weight[index] = sample.weight
        if sample.direction is not None:
            direction[start:stop] = sample.direction
        start = stop
    return Labels(values, has, weight, direction=direction)


def _batched(name: str, structures: int, atoms: int) -> tuple[int, ...]:
    """The shape of a property in a batch."""
    known = PROPERTIES[name]
    return known.shape_of(atoms) if known.per_atom else (structures, *known.shape)


def round_up(value: int, share: float = 0.125) -> int:
    """A rung of a geometric ladder at or above value: steps of about `share`, so few sizes cover all."""
    step = max(1, 2 ** int(np.floor(np.log2(max(value * share, 1)))))
    return max(1, -(-value // step) * step)


def usual_batch(sizes: Sequence[int]) -> int:
    """Structures of these sizes (atoms) to a step where nothing is said: `USUAL_ATOMS` in all, at most `USUAL_STRUCTURES`."""
    return int(np.clip(round(USUAL_ATOMS / np.mean(sizes)), 1, USUAL_STRUCTURES))


class Batches:
    """Samples packed into padded batches of a few fixed sizes.

    `batch_size` structures of mean size (by default as many as come near `USUAL_ATOMS`, at most `USUAL_STRUCTURES`) make the
    atom budget of a batch (or `max_atoms`), less up to a fifth where the samples then pack better; a structure larger than the
    budget raises it. `replayed` and `stretched` samples take part in an epoch only so far as they are drawn: each epoch others, so
    that beside `samples` they have the share `replay_share` and `stretched_share` (all of them where they are fewer);
    `mark_replayed`: labels say which ones they are. Samples that need very different numbers of neighbours go into different
    size classes: a class more (up to `max_classes`) must save the share `gain` of all padded pairs, for each is a program to compile.
    """

    def __init__(
        self,
        samples: list[Sample],
        batch_size: int | None = None,
        max_atoms: int | None = None,
        dtype=np.float32,
        max_classes: int = 3,
        gain: float = 0.06,
        replayed: list[Sample] = (),
        replay_share: float = 0.5,
        mark_replayed: bool = False,
        stretched: list[Sample] = (),
        stretched_share: float = 0.03,
    ):
        if not samples:
            raise ValueError("no samples to batch")
        self._first_replayed, self._first_stretched, self._marks = len(samples), len(samples) + len(replayed), mark_replayed
        pools = (replayed, replay_share), (stretched, stretched_share)
        self._drawn = [(len(pool), round(len(samples) * share / (1 - share))) for pool, share in pools]
        samples = [*samples, *replayed, *stretched]
        self.samples = samples
        self.dtype = dtype
        self.shifts = any(sample.shifts is not None for sample in samples)
        self.stretched = any(sample.direction is not None for sample in samples)
        there = {name for sample in samples for name in sample.labels}
        self.labels = tuple(name for name in PROPERTIES if name in PREDICTED or name in there)
        self._atoms = n = np.array([sample.sizes.atoms for sample in samples])
        k = np.array([max(1, sample.sizes.neighbors) for sample in samples])
        if batch_size is None:
            batch_size = usual_batch(n)
            batch_size = max(batch_size, int((max_atoms or 0) / n.mean()))
        budget = max_atoms or int(np.ceil(batch_size * n.mean()))
        self.classes: list[tuple[Sizes, np.ndarray]] = []
        for members in _size_classes(n, k, max_classes, gain):
            self.classes.append((self._choose(members, budget, 4 * batch_size, int(k[members].max())), members))

    def _choose(self, members: np.ndarray, budget: int, most: int, neighbors: int) -> Sizes:
        """The shape, of at most `budget` atoms and `most` structures, into which these samples go with least padding."""
        n = self._atoms[members]
        largest, smallest = int(n.max()), max(1, int(n.min()))
        budget = max(1, budget, largest)
        if largest == smallest:
            budget -= budget % largest
        structures = min(budget // smallest, most, len(n))
        budget = min(budget, max(1, int(np.sort(n)[-structures:].sum())))
        best = None
        lowest = budget if largest == smallest else max(largest, 0.8 * budget)
        for atoms in dict.fromkeys(np.linspace(budget, lowest, 9).astype(int).tolist()):
            sizes = Sizes(structures, atoms, neighbors)
            padded = atoms * len(_pack(_fixed_order(members), self._atoms, sizes))
            if best is None or padded < best[0]:
                best = padded, sizes
        return best[1]

    @property
    def sizes(self) -> list[Sizes]:
        return [sizes for sizes, _ in self.classes]

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch; a random order can need a few more when structures differ in size."""
        return len(self.plan(None))

    def plan(self, rng: np.random.Generator | None) -> list[tuple[Sizes, list[int]]]:
        """The batches of one epoch: padded size and sample indices; shuffled by `rng`, else always the same."""
        batches = []
        taken = self._taken(rng)
        for sizes, members in self.classes:
            members = members[taken[members]]
            if not len(members):
                continue
            order = _fixed_order(members) if rng is None else rng.permutation(members)
            batches += [(sizes, batch) for batch in _pack(order, self._atoms, sizes)]
        if rng is not None:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def _taken(self, rng: np.random.Generator | None) -> np.ndarray:
        """(samples,) bool, which of them take part in an epoch."""
        parts = [np.ones(self._first_replayed, bool)]
        for size, count in self._drawn:
            taken = np.arange(size) < max(1, count)
            parts.append(taken if rng is None else rng.permutation(taken))
        return np.concatenate(parts)

    def build(self, sizes: Sizes, indices: list[int]) -> tuple[Graph, Labels]:
        """The arrays of one batch of a plan."""
        chosen = [self.samples[i] for i in indices]
        labels = make_labels(chosen, sizes, self.dtype, self.labels, self.stretched)
        if self._marks:
            index, replayed = np.array(indices), np.zeros(sizes.structures, bool)
            replayed[: len(index)] = (self._first_replayed <= index) & (index < self._first_stretched)
            labels = labels._replace(replayed=replayed)
        return make_graph(chosen, sizes, self.dtype, self.shifts), labels

    def epoch(self, rng: np.random.Generator) -> Iterator[tuple[Graph, Labels]]:
        """One pass over all samples in random order."""
        for sizes, indices in self.plan(rng):
            yield self.build(sizes, indices)

    def ordered(self) -> Iterator[tuple[list[int], Graph, Labels]]:
        """One pass in a fixed order, with the indices of the samples in each batch."""
        for sizes, indices in self.plan(None):
            yield indices, *self.build(sizes, indices)


def _fixed_order(members: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).permutation(members)


def _pack(order: np.ndarray, n: np.ndarray, sizes: Sizes) -> list[list[int]]:
    """Put samples, in this order, each into the fullest open batch that has room; a batch that closes stays as it is."""
    smallest = int(n[order].min())
    batches: list[list[int]] = []
    opened: list[tuple[int, list[int]]] = []  # room in atoms, samples
    for index, atoms in zip(order.tolist(), n[order].tolist(), strict=True):
        fitting = [which for which, (room, _) in enumerate(opened) if room >= atoms]
        if fitting:
            room, batch = opened.pop(min(fitting, key=lambda which: opened[which][0]))
        else:
            if len(opened) == _OPEN:
                fullest = min(range(_OPEN), key=lambda which: opened[which][0])
                batches.append(opened.pop(fullest)[1])
            room, batch = sizes.atoms, []
        batch.append(index)
        if len(batch) == sizes.structures or room - atoms < smallest:
            batches.append(batch)
        else:
            opened.append((room - atoms, batch))
    return batches + [batch for _, batch in opened]


def _size_classes(n: np.ndarray, k: np.ndarray, max_classes: int, gain: float) -> list[np.ndarray]:
    """Samples by ascending neighbour count k, cut where the padded pairs (sum of n * largest k of a class) become least.

    One cut more as long as it saves `gain` of the pairs of a single class.
    """
    order = np.lexsort((n, k))
    widths, first = np.unique(k[order], return_index=True)
    before = np.append(0, np.cumsum(n[order]))[np.append(first, len(order))]
    # cost[i, j]: padded pairs of a class of the widths i ... j; least[j]: of the best classes of the widths 0 ... j
    cost = np.where(np.tri(len(widths), dtype=bool).T, (before[1:] - before[:-1, None]) * widths, np.inf)
    least, cuts = cost[0], []
    while len(cuts) + 1 < max_classes:
        candidates = least[:-1, None] + cost[1:]
        better = candidates.min(axis=0, initial=np.inf)
        if not least[-1] - better[-1] > gain * cost[0, -1]:
            break
        cuts.append(candidates.argmin(axis=0))
        least = better
    starts, last = [], len(widths) - 1
    for cut in reversed(cuts):
        last = int(cut[last])
        starts.insert(0, first[last + 1])
    return [np.sort(members) for members in np.split(order, starts)]
