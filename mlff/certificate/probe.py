"""Asking a potential for very many small structures with very few compilations."""

from __future__ import annotations

from collections.abc import Sequence

import ase
import jax

from mlff.data.batching import Sizes, make_graph, make_sample, round_up
from mlff.data.structure import Structure
from mlff.potential.potential import Potential
from mlff.potential.result import Result

_ATOMS = 256  #: of one padded batch, or twice those of the largest structure
_FEW = 4  #: neighbours: scans of dimers need no more
_PAIRS_PER_COMPILATION = 1e6  #: padded pairs evaluated in the time of one compilation


class Probe:
    """A potential, and the one padded shape (two where that pays) in which it is asked for everything.

    `probe(frames)` gives results in their order, with stresses where there are three periodic directions.
    """

    def __init__(self, potential: Potential, frames: Sequence[ase.Atoms]):
        """`frames`: what the structures that will be asked for are made of."""
        self.potential = potential
        self._atoms = max(_ATOMS, 2 * max(map(len, frames)))
        self._shifts = any(atoms.pbc.any() for atoms in frames)
        self._stress = any(atoms.pbc.all() for atoms in frames)
        self._neighbors = 1

    def __call__(self, frames: Sequence[ase.Atoms]) -> list[Result]:
        """Raises StructureError: an element that the potential does not know, atoms on top of each other."""
        structures = [Structure.from_atoms(atoms) for atoms in frames]
        for structure in structures:
            self.potential.check(structure)
        samples = [make_sample(structure, self.potential.cutoff) for structure in structures]
        most = max(sample.sizes.neighbors for sample in samples)
        if most > self._neighbors:
            self._neighbors = round_up(most + 1, 0.25)  # room for an atom more within reach
        few = [i for i, sample in enumerate(samples) if sample.sizes.neighbors <= _FEW < self._neighbors]
        if sum(len(samples[i].numbers) for i in few) * self._neighbors < _PAIRS_PER_COMPILATION:
            few = []
        rest = sorted(set(range(len(samples))) - set(few))
        results: list[Result | None] = [None] * len(samples)
        for members, neighbors in ((few, _FEW), (rest, self._neighbors)):
            for batch in self._pack(members, samples):
                self._evaluate(batch, neighbors, structures, samples, results)
        return results

    def _pack(self, members: list[int], samples) -> list[list[int]]:
        batches, room = [], (0, 0)
        for i in members:
            n = len(samples[i].numbers)
            if min(room[0] - n, room[1] - 1) < 0:
                batches.append([])
                room = self._atoms, self._atoms // 2
            batches[-1].append(i)
            room = room[0] - n, room[1] - 1
        return batches

    def _evaluate(self, batch: list[int], neighbors: int, structures, samples, results) -> None:
        potential = self.potential
        sizes = Sizes(self._atoms // 2, self._atoms, neighbors)
        graph = make_graph([samples[i] for i in batch], sizes, potential.dtype, self._shifts)
        prediction = jax.device_get(potential.compute(graph, self._stress))
        found = potential.results(prediction, [structures[i] for i in batch])
        for i, result in zip(batch, found, strict=True):
            results[i] = result
