"""Findings about copies: structures that are there twice, near copies, copies in held-out sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mlff.data import duplicates
from mlff.data.dataset import Dataset
from mlff.data.structure import Structure
from mlff.lint import contacts
from mlff.lint.close_pairs import Pairs
from mlff.lint.findings import Finding

_COPY = 0.01  # Å, RMS displacement of a near copy


def inside(structures: Sequence[Structure], some: np.ndarray, measured: contacts.Contacts, pairs: Pairs) -> list[Finding]:
    """Copies within the set: identical, with other labels, equivalent, near. `some`: the indices that `measured` is of."""
    findings = []
    same = duplicates.identical(structures)
    bad = [(a, b) for a, b in same if duplicates.contradict(structures[a], structures[b])]
    if bad:
        what = f"{len(bad)} structures have the geometry of another, but other labels{_constant(structures, bad)}"
        findings.append(Finding("error", "contradicting-labels", what, "keep one of each", _both(structures, bad)))
    for across in (False, True):
        part = [pair for pair in same if (_file(structures[pair[0]]) != _file(structures[pair[1]])) == across]
        if part:
            what = f"{len(part)} structures are there more than once" + (", in different files" if across else "")
            code = "duplicate-across-files" if across else "duplicate"
            do = "keep one of each, or data.skip: duplicates"
            findings.append(Finding("warning", code, what, do, _both(structures, part)))
    known = {index for _, index in same}
    alike = [p for p in duplicates.equivalent(structures, some, measured.fingerprints) if p[1] not in known]
    if alike:
        what = f"{len(alike)} structures are others, rotated, moved or with like atoms exchanged"
        findings.append(Finding("note", "equivalent", what, where=_both(structures, alike)))
    near = np.flatnonzero((pairs.distance < _COPY) & (pairs.strain < 1e-4))
    if len(near):
        what = f"{len(near)} pairs of structures differ by less than {_COPY} Å"
        close = [(int(pairs.first[k]), int(pairs.second[k])) for k in near]
        do = "validate on other trajectories: data.split: group, or data.valid"
        findings.append(Finding("note", "near-copies", what, do, _both(structures, close)))
    return findings


def _constant(structures: Sequence[Structure], pairs: Sequence[tuple[int, int]]) -> str:
    """That labels of copies differ by one and the same factor, as those of two conversions do."""
    both = [(structures[a].energy, structures[b].energy) for a, b in pairs]
    ratios = np.array([b / a for a, b in both if a and b])
    if len(ratios) < 3 or np.ptp(ratios) > 0.05 * abs(np.median(ratios) - 1):
        return ""
    return f" (energies by a factor of {np.median(ratios):.6g}: another conversion of units?)"


def held_out(
    structures: Sequence[Structure], some: np.ndarray, measured: contacts.Contacts, others: Mapping[str, Dataset]
) -> list[Finding]:
    """Structures of held-out sets that are in the training set too."""
    findings = []
    for name, other in others.items():
        together = [*structures, *other.structures]
        own = len(structures)
        same = [(a, b) for a, b in duplicates.identical(together) if a < own <= b]
        if same:
            what = f"{len(same)} structures of the {name} set are in the training set too"
            findings.append(
                Finding("warning", "duplicate-held-out", what, "remove them from one of the two", _both(together, same))
            )
        theirs = contacts.select(other.structures)
        indices = np.concatenate([some, theirs + own])
        prints = contacts.measure([together[k] for k in indices]).fingerprints
        known = {b for _, b in same}
        alike = [(a, b) for a, b in duplicates.equivalent(together, indices, prints) if a < own <= b and b not in known]
        if alike:
            what = f"{len(alike)} structures of the {name} set are equivalent to ones in the training set"
            findings.append(Finding("note", "equivalent-held-out", what, where=_both(together, alike)))
    return findings


def _file(structure: Structure) -> str:
    return structure.source.rpartition(", structure ")[0]


def _both(structures: Sequence[Structure], pairs: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """The sources of pairs, later one first."""
    return tuple(dict.fromkeys(structures[k].source for a, b in pairs for k in (b, a)))
