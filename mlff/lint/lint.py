"""What a dataset holds and what is suspicious in it: findings with a code, a place and what to do."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from mlff.basics.errors import DataError
from mlff.basics.properties import PROPERTIES
from mlff.basics.statistics import rms
from mlff.data import baseline, duplicates, outliers
from mlff.data.composition import element_counts
from mlff.data.dataset import Dataset
from mlff.data.facts import UNCONVERGED
from mlff.data.structure import Structure, label_numbers
from mlff.lint import consistency, contacts, stress_order, unit_guess
from mlff.lint.close_pairs import Pairs, find_pairs
from mlff.lint.comparison import Comparison

_MOST_STRUCTURES, _MOST_ATOMS = 3000, 40_000  # that distances are measured in; of more, an even selection
_TOO_NEAR = 0.55  # of the sum of the covalent radii
_NET = 0.2  # relative net force and torque
_SHARED = 4  # structures, and half of all, that may not have one and the same energy
_COPY = 0.01  # Å, RMS displacement of a near copy
_LARGE = {"forces": 30.0, "stress": 1.0}  # eV/Å, eV/Å³, RMS of the median structure: hints at another unit
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Something to know, to look at (warning) or that cannot be right (error)."""

    severity: str  #: error, warning or note
    code: str  #: stable, for programs
    what: str
    do: str = ""
    where: tuple[str, ...] = ()  #: sources of the structures meant: "file.xyz, structure 12"

    def to_dict(self) -> dict:
        """For JSON: where is a list of {file, index}."""
        places = []
        for source in self.where:
            file, found, index = source.rpartition(", structure ")
            places.append({"file": file if found else source, "index": int(index) if found else None})
        return {**dataclasses.asdict(self), "where": places}

    def line(self, examples: int = 1) -> str:
        """One line: what, where (so many examples) and what to do."""
        more = f" and {len(self.where) - examples} more" if len(self.where) > examples else ""
        where = f" ({'; '.join(self.where[:examples])}{more})" if self.where and examples else ""
        return f"{self.what}{where}" + (f"; {self.do}" if self.do else "")


@dataclass(frozen=True)
class Lint:
    """The report. Energies in eV, lengths in Å, forces in eV/Å, stresses in eV/Å³."""

    census: str
    structures: int
    looked_at: int  #: structures that distances were measured in
    elements: dict[str, int]  #: symbol -> atoms
    ranges: dict[str, dict[str, float]]  #: energy_per_atom, forces, stress: count, min, max, mean, rms
    distances: dict[str, contacts.PairDistances]
    neighbors: dict[float, float]  #: mean number within a radius
    groups: dict[str, int]  #: structures per group (keys.group) or config_type
    cutoff: float  #: suggested, Å
    cutoff_reason: str
    reference: dict  #: kind, rank, elements, isolated (symbol -> eV), energies (symbol -> eV), zero (of the energies)
    comparisons: tuple[Comparison, ...]
    findings: tuple[Finding, ...]  #: errors first

    def of(self, severity: str) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def to_dict(self) -> dict:
        """For JSON; `version` changes with the keys."""
        plain = {name: getattr(self, name) for name in ("census", "structures", "looked_at", "elements", "ranges")}
        return {
            "version": 1,
            **plain,
            "distances": {pair: dataclasses.asdict(item) for pair, item in self.distances.items()},
            "distance_bin": contacts.BIN,
            "neighbors": {f"{radius:g}": count for radius, count in self.neighbors.items()},
            "groups": self.groups,
            "cutoff": {"suggested": self.cutoff, "reason": self.cutoff_reason},
            "reference": self.reference,
            "comparisons": [item.to_dict() for item in self.comparisons],
            "findings": [item.to_dict() for item in self.findings],
        }


def lint(
    data: Dataset, held_out: Mapping[str, Dataset] | None = None, reference_energies: str | Mapping[str, float] = "auto"
) -> Lint:
    """Look at `data`, and for copies of it in the held-out sets. Deterministic; large sets are sampled evenly."""
    structures = data.structures
    origins = dict(data.census.origins)
    some = _sample(structures)
    measured = contacts.measure([structures[k] for k in some])
    pairs = find_pairs(structures)
    comparisons = tuple(consistency.compare(structures, pairs, origins))
    reference, findings = _reference(data, reference_energies)
    findings += _contradictions(comparisons)
    findings += _units(data, measured)
    findings += _labels(structures, {item.code for item in comparisons})
    findings += _skipped(data)
    findings += _remarks(data)
    findings += _balance(structures)
    findings += _outliers(structures)
    findings += _copies(structures, some, measured, pairs)
    findings += _leaks(structures, some, measured, held_out or {})
    findings += _distances(structures, some, measured)
    if len(some) < len(structures):
        findings.append(
            Finding("note", "sampled", f"distances were measured in {len(some):,} of {len(structures):,} structures")
        )
    cutoff, reason = _cutoff(structures, measured)
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


def _sample(structures: Sequence[Structure]) -> np.ndarray:
    count, atoms = len(structures), sum(map(len, structures))
    most = min(count, _MOST_STRUCTURES, max(int(count * _MOST_ATOMS / max(atoms, 1)), 1))
    return np.unique(np.linspace(0, count - 1, most).round().astype(int)) if count else np.zeros(0, int)


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


def _contradictions(comparisons) -> list[Finding]:
    severities = {"contradiction": "error", "doubtful": "warning"}
    found = [c for c in comparisons if c.verdict in severities]
    findings = [Finding(severities[c.verdict], c.code, c.what, c.do) for c in found]
    for c in comparisons:
        if c.verdict == "untested" and c.labels in ("energies and forces", "energies and stresses"):
            findings.append(Finding("note", "untested", f"whether {c.labels} belong together cannot be tested: {c.what}"))
    return findings


def _units(data: Dataset, measured: contacts.Contacts) -> list[Finding]:
    """Units that the labels cannot contradict each other about."""
    origins = dict(data.census.origins)
    found = [
        unit_guess.energy_unit(data.structures, origins.get("energy", "")),
        unit_guess.length_unit(measured, origins.get("positions", "")),
    ]
    return [Finding("error" if item.sure else "warning", f"{item.label}-unit", item.what, item.do) for item in found if item]


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


def _labels(structures, known: set[str]) -> list[Finding]:
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


def _shared_energies(structures) -> list[Finding]:
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


def _balance(structures) -> list[Finding]:
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


def _outliers(structures) -> list[Finding]:
    findings = []
    for item in outliers.find(structures):
        values = f"{item.name} {item.value:.4g} {item.unit}, median {item.median:.4g}"
        what = f"{len(item.indices)} structures lie far from the rest: {values}"
        do = "look whether the calculation converged, or data.skip: outliers"
        where = tuple(structures[k].source for k in item.indices)
        findings.append(Finding("warning", f"outlier-{item.label}", what, do, where))
    return findings


def _copies(structures, some, measured, pairs: Pairs) -> list[Finding]:
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


def _constant(structures, pairs) -> str:
    """That labels of copies differ by one and the same factor, as those of two conversions do."""
    both = [(structures[a].energy, structures[b].energy) for a, b in pairs]
    ratios = np.array([b / a for a, b in both if a and b])
    if len(ratios) < 3 or np.ptp(ratios) > 0.05 * abs(np.median(ratios) - 1):
        return ""
    return f" (energies by a factor of {np.median(ratios):.6g}: another conversion of units?)"


def _leaks(structures, some, measured, held_out: Mapping[str, Dataset]) -> list[Finding]:
    findings = []
    for name, other in held_out.items():
        together = [*structures, *other.structures]
        own = len(structures)
        same = [(a, b) for a, b in duplicates.identical(together) if a < own <= b]
        if same:
            what = f"{len(same)} structures of the {name} set are in the training set too"
            findings.append(
                Finding("warning", "duplicate-held-out", what, "remove them from one of the two", _both(together, same))
            )
        theirs = _sample(other.structures)
        indices = np.concatenate([some, theirs + own])
        prints = contacts.measure([together[k] for k in indices]).fingerprints
        known = {b for _, b in same}
        alike = [(a, b) for a, b in duplicates.equivalent(together, indices, prints) if a < own <= b and b not in known]
        if alike:
            what = f"{len(alike)} structures of the {name} set are equivalent to ones in the training set"
            findings.append(Finding("note", "equivalent-held-out", what, where=_both(together, alike)))
    return findings


def _distances(structures, some, measured: contacts.Contacts) -> list[Finding]:
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


def _cutoff(structures, measured: contacts.Contacts) -> tuple[float, str]:
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


def _file(structure: Structure) -> str:
    return structure.source.rpartition(", structure ")[0]


def _both(structures, pairs) -> tuple[str, ...]:
    """The sources of pairs, later one first."""
    return tuple(dict.fromkeys(structures[k].source for a, b in pairs for k in (b, a)))
