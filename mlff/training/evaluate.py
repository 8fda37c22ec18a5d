"""Errors of a potential on a set of labelled structures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mlff.basics.errors import DataError
from mlff.basics.properties import PREDICTED
from mlff.data.dataset import Dataset
from mlff.data.structure import Structure
from mlff.training.metrics import Metrics, compare

if TYPE_CHECKING:
    from mlff.potential.potential import Potential
    from mlff.potential.result import Result


def evaluate(potential: Potential, data: Iterable[Structure], progress: bool = False) -> Metrics:
    """Predict every structure of `data` (a `Dataset` or structures) and compare with its labels, in float64.

    Stress is computed where a structure has one to compare with. Raises DataError for an empty set or one without labels,
    StructureError for a structure that the potential cannot take.
    """
    return compare(*predict(potential, data, progress), potential.environments)


def predict(potential: Potential, data: Iterable[Structure], progress: bool = False) -> tuple[list[Structure], list[Result]]:
    """The structures of `data` and what the potential says of them; raises as `evaluate`."""
    structures = list(data)
    if not structures:
        raise DataError("nothing to evaluate: no structures")
    if isinstance(data, Dataset):
        data.require_labels()
    elif not any(name in structure.labels for structure in structures for name in PREDICTED):
        raise DataError(f"{structures[0].source}: no structure has energy, forces or stress: nothing to compare with")
    stress = any(structure.stress is not None for structure in structures)
    return structures, potential.predict(structures, stress=stress, progress=progress)
