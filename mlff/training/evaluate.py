"""Errors of a potential on a set of labelled structures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mlff.data.structure import Structure
from mlff.errors import DataError
from mlff.training.metrics import Metrics, compare

if TYPE_CHECKING:
    from mlff.potential import Potential


def evaluate(potential: Potential, data: Iterable[Structure], progress: bool = False) -> Metrics:
    """Predict every structure of `data` (a `Dataset` or structures) and compare with its labels, in float64.

    Stress is computed where a structure has one to compare with. Raises DataError for an empty set, StructureError for a
    structure that the potential cannot take.
    """
    structures = list(data)
    if not structures:
        raise DataError("nothing to evaluate: no structures")
    stress = any(structure.stress is not None for structure in structures)
    return compare(structures, potential.predict(structures, stress=stress, progress=progress), potential.environments)
