"""What was found in a dataset: single findings, and the report of all of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mlff.lint import contacts
from mlff.lint.comparison import Comparison

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
