"""What the user wants left out of the training data: copies and outliers, named and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mlff.data import duplicates, outliers
from mlff.data.structure import Structure


class Skipped(NamedTuple):
    """One structure that was left out."""

    kind: str  #: unreadable, unconverged, duplicate or outlier
    source: str  #: "file.xyz, structure 12"
    why: str


def choose(structures: Sequence[Structure], skip: Sequence[str]) -> tuple[list[int], list[Skipped]]:
    """Indices of what stays, and what is dropped: "duplicates" and "outliers", as far as `skip` names them.

    Of identical geometries the first stays; none does where their labels contradict each other.
    """
    dropped: dict[int, Skipped] = {}
    if "duplicates" in skip:
        for first, later in duplicates.identical(structures):
            a, b = structures[first], structures[later]
            if duplicates.contradict(a, b):
                dropped[first] = Skipped("duplicate", a.source, f"the geometry of {b.source}, but other labels")
                dropped[later] = Skipped("duplicate", b.source, f"the geometry of {a.source}, but other labels")
            else:
                dropped.setdefault(later, Skipped("duplicate", b.source, f"a copy of {a.source}"))
    if "outliers" in skip:
        for found in outliers.find(structures):
            for k in found.indices:
                dropped.setdefault(k, Skipped("outlier", structures[k].source, f"{found.name} far from the rest"))
    return [k for k in range(len(structures)) if k not in dropped], [dropped[k] for k in sorted(dropped)]
