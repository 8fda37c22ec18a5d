"""Findings about labels: units, contradictions, labels that are missing, shared, out of balance or far from the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlff.basics.properties import PROPERTIES
from mlff.basics.statistics import rms
from mlff.data import outliers
from mlff.data.dataset import Dataset
from mlff.data.structure import Structure
from mlff.lint import consistency, contacts, unit_guess
from mlff.lint.comparison import Comparison
from mlff.lint.findings import Finding

_NET = 0.2  # relative net force and torque
_SHARED = 4  # structures, and half of all, that may not have one and the same energy
_LARGE = {"forces": 30.0, "stress": 1.0}  # eV/Å, eV/Å³, RMS of the median structure: hints at another unit


def contradictions(comparisons: Sequence[Comparison]) -> list[Finding]:
    """Labels that cannot belong together, and those of which that cannot be tested."""
    severities = {"contradiction": "error", "doubtful": "warning"}
    found = [c for c in comparisons if c.verdict in severities]
    findings = [Finding(severities[c.verdict], c.code, c.what, c.do) for c in found]
    for c in comparisons:
        if c.verdict == "untested" and c.labels in ("energies and forces", "energies and stresses"):
            findings.append(Finding("note", "untested", f"whether {c.labels} belong together cannot be tested: {c.what}"))
    return findings


def units(data: Dataset, measured: contacts.Contacts) -> list[Finding]:
    """Units that the labels cannot contradict each other about."""
    origins = dict(data.census.origins)
    found = [
        unit_guess.energy_unit(data.structures, origins.get("energy", "")),
        unit_guess.length_unit(measured, origins.get("positions", "")),
    ]
    return [Finding("error" if item.sure else "warning", f"{item.label}-unit", item.what, item.do) for item in found if item]


def unusual(structures: Sequence[Structure], known: set[str]) -> list[Finding]:
    """Labels that are missing, shared by many structures, exactly zero or very large; `known`: codes of contradictions."""
    findings = []
    for name in ("energy", "forces"):
        missing = [s.source for s in structures if getattr(s, name) is None]
        if missing:
            some = "no structure has" if len(missing) == len(structures) else f"{len(missing)} structures lack"
            findings.append(Finding("note", f"no-{name}", f"{some} {name}", where=() if "no " in some else tuple(missing)))
    findings += _shared_energies(structures)
    zero = [s.source for s in structures if s.forces is not None and len(s) > 1 and not s.forces.any() and not s.pbc.any()]
    if zero:
        what = f"{len(zero)} molecules have forces that are exactly 0"
        findings.append(Finding("warning", "zero-forces", what, "leave out labels that were not calculated", tuple(zero)))
    for name, most in _LARGE.items():
        sizes = [rms(getattr(s, name)) for s in structures if getattr(s, name) is not None]
        usual = float(np.median(sizes)) if sizes else 0.0
        if usual > most and f"{name}-unit" not in known:
            what = f"{name} of {usual:.3g} {PROPERTIES[name].unit} (RMS of half the structures, or more)"
            findings.append(Finding("warning", f"large-{name}", what, f"check units.{name}"))
    return findings


def _shared_energies(structures: Sequence[Structure]) -> list[Finding]:
    """Different geometries have the same energy to the last digit where frames shared one dict when they were written."""
    groups: dict[tuple, list[Structure]] = {}
    for s in structures:
        if s.energy is not None and len(s) > 1:
            groups.setdefault((s.energy, len(s)), []).append(s)
    energies = sum(map(len, groups.values()))
    largest = max(groups.values(), key=len, default=[])
    shapes = [(s.positions - s.positions[0]) for s in largest]
    if len(largest) < max(_SHARED, energies / 2) or sum(np.abs(x - shapes[0]).max() > 1e-3 for x in shapes) < _SHARED - 1:
        return []
    what = f"{len(largest)} structures of different geometry have the very same energy, {largest[0].energy:.8g} eV"
    do = "was one dict or calculator shared by all frames when the file was written? leave out what was not calculated"
    severity = "error" if largest[0].energy else "warning"
    return [Finding(severity, "shared-energy", what, do, tuple(s.source for s in largest))]


def balance(structures: Sequence[Structure]) -> list[Finding]:
    """Structures with a net force or a net torque."""
    values = np.array([consistency.imbalance(s) for s in structures]).reshape(-1, 2)
    findings = []
    for column, name in enumerate(("force", "torque")):
        bad = np.flatnonzero(values[:, column] > _NET)
        if not len(bad):
            continue
        bad = bad[np.argsort(-values[bad, column], kind="stable")]
        frozen = sum(bool((structures[k].forces == 0).all(axis=1).any()) for k in bad)
        what = f"{len(bad)} structures have a net {name} (up to {100 * values[bad[0], column]:.0f} % of random forces)"
        do = {
            "force": "the forces are no derivative of an energy that is the same everywhere",
            "torque": "the forces belong to another orientation, or to a molecule in a field",
        }[name]
        if frozen and name == "force":
            do = f"{frozen} of them have atoms with forces of exactly 0: write the forces without constraints"
        findings.append(Finding("warning", f"net-{name}", what, do, tuple(structures[k].source for k in bad)))
    return findings


def far_values(structures: Sequence[Structure]) -> list[Finding]:
    """Structures whose labels lie far from the rest."""
    findings = []
    for item in outliers.find(structures):
        values = f"{item.name} {item.value:.4g} {item.unit}, median {item.median:.4g}"
        what = f"{len(item.indices)} structures lie far from the rest: {values}"
        do = "look whether the calculation converged, or data.skip: outliers"
        where = tuple(structures[k].source for k in item.indices)
        findings.append(Finding("warning", f"outlier-{item.label}", what, do, where))
    return findings
