"""What a dataset holds and what is suspicious in it: findings with a code, a place and what to do."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping

import numpy as np
from ase.data import chemical_symbols

from mlff.basics.errors import DataError
from mlff.basics.properties import PROPERTIES
from mlff.basics.statistics import rms
from mlff.data import baseline
from mlff.data.composition import element_counts
from mlff.data.dataset import Dataset
from mlff.data.facts import UNCONVERGED
from mlff.data.structure import label_numbers
from mlff.lint import consistency, contacts, copies, distances, labels, stress_order, unit_guess
from mlff.lint.close_pairs import find_pairs
from mlff.lint.findings import SEVERITIES, Finding, Lint


def lint(
    data: Dataset, held_out: Mapping[str, Dataset] | None = None, reference_energies: str | Mapping[str, float] = "auto"
) -> Lint:
    """Look at `data`, and for copies of it in the held-out sets. Deterministic; large sets are sampled evenly."""
    structures = data.structures
    origins = dict(data.census.origins)
    some = contacts.select(structures)
    measured = contacts.measure([structures[k] for k in some])
    pairs = find_pairs(structures)
    comparisons = tuple(consistency.compare(structures, pairs, origins))
    reference, findings = _reference(data, reference_energies)
    findings += labels.contradictions(comparisons)
    findings += labels.units(data, measured)
    findings += labels.unusual(structures, {item.code for item in comparisons})
    findings += _skipped(data)
    findings += _remarks(data)
    findings += labels.balance(structures)
    findings += labels.far_values(structures)
    findings += copies.inside(structures, some, measured, pairs)
    findings += copies.held_out(structures, some, measured, held_out or {})
    findings += distances.unusual(structures, some, measured)
    if len(some) < len(structures):
        findings.append(
            Finding("note", "sampled", f"distances were measured in {len(some):,} of {len(structures):,} structures")
        )
    cutoff, reason = distances.suggest_cutoff(structures, measured)
    return Lint(
        census=str(data.census),
        structures=len(structures),
        looked_at=len(some),
        elements=_atoms(structures),
        ranges=_ranges(structures),
        distances={
            pair: dataclasses.replace(item, structure=int(some[item.structure])) for pair, item in measured.pairs.items()
        },
        neighbors=measured.neighbors,
        groups=_groups(structures),
        cutoff=cutoff,
        cutoff_reason=reason,
        reference=reference,
        comparisons=comparisons,
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
    )


def _atoms(structures) -> dict[str, int]:
    counts: Counter[int] = Counter()
    for structure in structures:
        counts.update(structure.numbers.tolist())
    return {chemical_symbols[z]: counts[z] for z in sorted(counts)}


def _ranges(structures) -> dict[str, dict[str, float]]:
    ranges = {}
    for name, known in PROPERTIES.items():
        parts = label_numbers(structures, name)
        if parts:
            x = np.concatenate(parts)
            numbers = {"min": x.min(), "max": x.max(), "mean": x.mean(), "rms": rms(x)}
            ranges[known.shown] = {"count": len(parts), **{key: float(value) for key, value in numbers.items()}}
    return ranges


def _groups(structures) -> dict[str, int]:
    names = map(stress_order.group_of, structures)
    return dict(Counter(name for name in names if name is not None).most_common())


def _reference(data: Dataset, how) -> tuple[dict, list[Finding]]:
    """Reference energies as training would take them, and the rank of the compositions."""
    elements = data.elements
    isolated = {chemical_symbols[z]: energy for z, energy in data.isolated_atoms.items()}
    counts = {tuple(element_counts(s.numbers, elements) / len(s)) for s in data if s.energy is not None}
    rank = int(np.linalg.matrix_rank(np.array(sorted(counts)))) if counts else 0
    zero = unit_guess.energy_zero(data.structures)
    summary = {"kind": "none", "rank": rank, "elements": len(elements), "isolated": isolated, "energies": {}, "zero": zero}
    if not counts:
        return summary, []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            energies = baseline.fit(data, how)
    except DataError as error:
        return summary, [Finding("error", "reference-energies", str(error))]
    summary["energies"] = {chemical_symbols[z]: energy for z, energy in energies.items()}
    complete = set(elements) <= set(data.isolated_atoms)
    auto = "isolated" if complete else "least_squares"
    summary["kind"] = "given" if isinstance(how, Mapping) else auto if how == "auto" else how
    findings = []
    if rank < len(elements) and summary["kind"] == "least_squares":
        what = f"the compositions tell {rank} of {len(elements)} reference energies apart"
        do = "give isolated atoms or data.reference_energies if energies of other compositions matter"
        findings.append(Finding("note", "composition-rank", what, do))
    if isolated and not complete:
        missing = ", ".join(chemical_symbols[z] for z in elements if z not in data.isolated_atoms)
        findings.append(Finding("note", "isolated-atoms-missing", f"there are isolated atoms, but none of {missing}"))
    if zero.startswith("atoms") and not isolated and how == "auto":
        per_atom = np.median([s.energy / len(s) for s in data if s.energy is not None])
        what = f"energies of {per_atom:.2f} eV per atom are counted from {zero}"
        findings.append(Finding("note", "energy-zero", what, "only isolated atoms of the same method belong to them"))
    return summary, findings


def _remarks(data: Dataset) -> list[Finding]:
    """What the readers must say, e.g. of calculations that did not converge."""
    findings = []
    for item in dict.fromkeys(item for _, item in data.census.remarks):
        where = tuple(source for source, other in data.census.remarks if other == item)
        do = "leave them out with data.skip: unconverged" if item == UNCONVERGED else ""
        findings.append(Finding("warning", item.code, f"{len(where)} structures: {item.text}", do, where))
    return findings


def _skipped(data: Dataset) -> list[Finding]:
    """What the user wanted left out."""
    findings = []
    for kind in dict.fromkeys(item.kind for item in data.census.skipped):
        some = [item for item in data.census.skipped if item.kind == kind]
        what = f"{len(some)} structures are left out: {kind} (the first: {some[0].why})"
        findings.append(Finding("note", f"skipped-{kind}", what, where=tuple(item.source for item in some)))
    return findings
