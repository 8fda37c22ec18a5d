"""Structures that are there more than once: to the bit, or but for rotation, translation and exchange of like atoms."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from mlff.basics.statistics import rms
from mlff.data.structure import Structure

_SAME = 1e-6  # of fingerprints
_ENERGY, _FORCES = 0.005, 0.1  # eV per atom and eV/Å (RMS): labels of one geometry may differ so much


def digest(structure: Structure, labels: bool = False) -> bytes:
    """SHA-256 of the geometry, with `labels` of what a loss sees too; positions count as they are given, to the bit."""
    cell = structure.cell * structure.pbc[:, None]
    arrays = [structure.numbers, structure.positions + 0.0, cell + 0.0, structure.pbc]
    text = ""
    if labels:
        arrays += [getattr(structure, name) for name in ("forces", "stress")]
        text = repr((structure.energy, structure.weight, structure.group))
    total = hashlib.sha256(text.encode())
    for array in arrays:
        total.update(b"-" if array is None else str(array.shape).encode() + array.tobytes())
    return total.digest()


def first_copies(structures: Sequence[Structure]) -> np.ndarray:
    """For every structure the index of the first with its geometry, bit by bit: its own where there is none before."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(digest(structure), index) for index, structure in enumerate(structures)], dtype=int)


def identical(structures: Sequence[Structure]) -> list[tuple[int, int]]:
    """(first, later) for every geometry that is there again, bit by bit."""
    first = first_copies(structures)
    return [(int(first[index]), int(index)) for index in np.flatnonzero(first != np.arange(len(first)))]


def equivalent(structures: Sequence[Structure], indices: Sequence[int], fingerprints: np.ndarray) -> list[tuple[int, int]]:
    """(first, later) of structures[indices] whose fingerprints (rows in the order of `indices`) are the same."""
    groups: dict[tuple, list[int]] = {}
    for row, index in enumerate(indices):
        s = structures[index]
        if len(s) > 1:
            groups.setdefault((np.sort(s.numbers).tobytes(), s.pbc.tobytes()), []).append(row)
    pairs = []
    for rows in groups.values():
        if len(rows) > 1:
            near = cKDTree(fingerprints[rows]).query_pairs(_SAME, output_type="ndarray")
            later, where = np.unique(near[:, 1], return_index=True)
            pairs += [(int(indices[rows[a]]), int(indices[rows[b]])) for a, b in zip(near[where, 0], later, strict=True)]
    return sorted(pairs)


def contradict(a: Structure, b: Structure) -> bool:
    """Do the labels of two structures with the same geometry differ by more than a tight calculation does?"""
    if a.energy is not None and b.energy is not None and abs(a.energy - b.energy) > _ENERGY * len(a):
        return True
    if a.forces is None or b.forces is None:
        return False
    return rms(a.forces - b.forces) > _FORCES
