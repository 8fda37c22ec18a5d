"""Findings about distances, and the cutoff that the numbers of neighbours suggest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlff.data.structure import Structure
from mlff.lint import contacts
from mlff.lint.findings import Finding

_TOO_NEAR = 0.55  # of the sum of the covalent radii


def unusual(structures: Sequence[Structure], some: np.ndarray, measured: contacts.Contacts) -> list[Finding]:
    """Atoms too near each other, atoms alone, parts apart. `some`: the indices that `measured` is of."""
    findings = []
    for pair, item in measured.pairs.items():
        if item.shortest < _TOO_NEAR * item.covalent:
            what = f"{pair} of {item.shortest:.3f} Å (1 % quantile {item.low:.2f}, bond about {item.covalent:.2f})"
            where = (structures[some[item.structure]].source,)
            findings.append(Finding("warning", "too-near", what, "look at the structure, or remove it", where))
    if measured.alone:
        atoms = [f"{structures[some[k]].source}" for k, _ in measured.alone]
        first = measured.alone[0][1]
        what = f"{len(atoms)} atoms have no neighbour within {contacts.REACH:g} Å (the first: atom {first})"
        findings.append(
            Finding("warning", "lone-atom", what, "a local model sees nothing there", tuple(dict.fromkeys(atoms)))
        )
    alone = {index for index, _ in measured.alone}
    fragments = tuple(structures[some[k]].source for k in measured.fragments if k not in alone)
    if fragments:
        what = f"{len(fragments)} structures have parts more than {contacts.REACH:g} Å from each other"
        findings.append(Finding("note", "fragments", what, "a local model cannot see their interaction", fragments))
    return findings


def suggest_cutoff(structures: Sequence[Structure], measured: contacts.Contacts) -> tuple[float, str]:
    """5 Å, more where few neighbours are within, less where they are many."""
    around = ", ".join(f"{count:.0f} within {radius:g}" for radius, count in measured.neighbors.items())
    cutoff, reason = 5.0, "the usual"
    if structures and any(s.pbc.any() for s in structures):
        if measured.neighbors[5.0] > 65:
            cutoff, reason = 4.0, "dense: more would cost much"
        elif measured.neighbors[5.0] < 20:
            cutoff, reason = 6.0, "open: few neighbours within 5 Å"
    first = 1.5 * measured.nearest
    if first > cutoff:
        cutoff, reason = (
            float(np.ceil(2 * first) / 2),
            f"some atoms have their nearest neighbour only at {measured.nearest:.1f} Å",
        )
    return cutoff, f"{reason}; neighbours on average: {around} Å"
