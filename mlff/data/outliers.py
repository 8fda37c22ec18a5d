"""Structures far from all others in energy per atom, largest force or stress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlff.basics.properties import PROPERTIES
from mlff.data.composition import element_counts, elements_of
from mlff.data.structure import Structure

_FEWEST = 20  # structures with a label, to call one of them an outlier
_SCORE, _APART = 10.0, 3.0  # robust z-score, and how many times that of the 99 % of the structures


class Outliers(NamedTuple):
    """Of one label."""

    label: str  #: energy, forces or stress
    name: str  #: of the number that is far off
    unit: str
    indices: tuple[int, ...]  #: of structures, the farthest first; at most 1 % (of 100 or fewer: one)
    value: float  #: of the farthest
    median: float  #: of all


def find(structures: Sequence[Structure]) -> list[Outliers]:
    """Outliers of each label that 20 structures or more have; none of labels that scatter widely."""
    found = []
    labelled = [k for k, s in enumerate(structures) if s.energy is not None]
    elements = elements_of(structures)
    if labelled:
        counts = np.array([element_counts(structures[k].numbers, elements) / len(structures[k]) for k in labelled])
        energies = np.array([structures[k].energy / len(structures[k]) for k in labelled])
        keep = np.ones(len(labelled), bool)
        for _ in range(3):  # robust: what lies far off does not take part in the next fit
            solution = np.linalg.lstsq(counts[keep], energies[keep], rcond=1e-8)[0]
            rest = energies - counts @ solution
            scores = np.abs(rest - np.median(rest[keep])) / _spread(rest)
            keep = scores < max(_SCORE, np.median(scores))
        found += _far("energy", "energy per atom", "eV less that of its composition", labelled, rest)
    for name in ("forces", "stress"):
        labelled = [k for k, s in enumerate(structures) if getattr(s, name) is not None]
        sizes = np.array([np.abs(getattr(structures[k], name)).max() for k in labelled])
        found += _far(name, f"largest component of the {name}", PROPERTIES[name].unit, labelled, sizes)
    return found


def _spread(values) -> float:
    low, high = np.quantile(values, [0.1, 0.9])
    return max(float(high - low) / 2.56, 1e-3 * float(np.abs(values).max()), 1e-6)


def _far(label, name, unit, labelled, values) -> list[Outliers]:
    if len(values) < _FEWEST:
        return []
    scores = np.abs(values - np.median(values)) / _spread(values)
    order = np.argsort(-scores, kind="stable")
    usual = scores[order[max(int(np.ceil(0.01 * len(values))), 1)]]
    far = [int(k) for k in order if scores[k] > max(_SCORE, _APART * usual)]
    if not far:
        return []
    indices = tuple(labelled[k] for k in far)
    return [Outliers(label, name, unit, indices, float(values[far[0]]), float(np.median(values)))]
