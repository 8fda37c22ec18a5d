"""Which elements there are in structures, and how many atoms of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def elements_of(structures: Iterable) -> tuple[int, ...]:
    """The atomic numbers in structures, ascending."""
    return tuple(sorted({int(z) for structure in structures for z in set(structure.numbers.tolist())}))


def element_counts(numbers: np.ndarray, elements: Sequence[int]) -> np.ndarray:
    """Atoms of each of these elements among the atomic numbers (n,): (len(elements),) int."""
    return np.array([np.count_nonzero(numbers == element) for element in elements], int)
