"""A batch divided among devices: parts of equal padded shapes, as equal in atoms as structures allow."""

from __future__ import annotations

from collections.abc import Sequence

from mlff.data.batching import Batches, Sizes


class Division:
    """How `count` devices share each batch of a plan.

    Structures go, largest first, each to the device with the fewest atoms so far (Graham, SIAM J. Appl. Math. 17, 416
    (1969)). Two padded shapes serve a size class: one into which the batches in their fixed order divide, and a larger one
    into which any does.
    """

    def __init__(self, batches: Batches, count: int):
        self._atoms = [sample.sizes.atoms for sample in batches.samples]
        self.count = count
        self._usual: dict[Sizes, Sizes] = {}
        for sizes, indices in batches.plan(None):
            parts = self.divide(indices)
            before = self._usual.get(sizes, Sizes(1, 1, sizes.neighbors))
            self._usual[sizes] = Sizes(
                max(before.structures, *map(len, parts)), max(before.atoms, *map(self._total, parts)), sizes.neighbors
            )

    def divide(self, indices: Sequence[int]) -> list[list[int]]:
        """The structures of each device, `count` lists; some are empty where a batch has fewer structures."""
        parts: list[list[int]] = [[] for _ in range(self.count)]
        for index in sorted(indices, key=lambda index: -self._atoms[index]):
            min(parts, key=self._total).append(index)
        return parts

    def parts(self, sizes: Sizes, indices: Sequence[int]) -> tuple[Sizes, list[list[int]]]:
        """The padded shape of every device's part of a batch of a plan, and the parts."""
        parts = self.divide(indices)
        atoms = max(map(self._total, parts))
        usual = self._usual.get(sizes)
        if usual is not None and atoms <= usual.atoms and max(map(len, parts)) <= usual.structures:
            return usual, parts
        largest = max(self._atoms)  # no part has more than its share of the atoms and one structure more
        return Sizes(sizes.structures, min(sizes.atoms, -(-sizes.atoms // self.count) + largest), sizes.neighbors), parts

    def _total(self, part: Sequence[int]) -> int:
        return sum(self._atoms[index] for index in part)
