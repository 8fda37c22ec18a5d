"""The certificate of a potential: every check, one line each, kept in the model file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import ase
import numpy as np
from rich.table import Table

from mlff.basics.errors import DataError
from mlff.certificate import checks, displaced, hot, scans
from mlff.certificate.line import Line
from mlff.certificate.probe import Probe
from mlff.certificate.scans import Scan
from mlff.data.structure import Structure
from mlff.potential.potential import Potential

_LARGEST = 300  #: atoms: larger structures are left to the user's own tests
_SHOWN = 24  #: scans that are drawn and kept


@dataclass(frozen=True)
class Certificate:
    """What was measured; `scans` are the curves behind the lines, `full` the lines of the long tests."""

    lines: tuple[Line, ...]
    scans: tuple[Scan, ...] = ()
    errors: dict[str, dict] = field(default_factory=dict)  #: name of a labelled set -> `Metrics.to_dict()`
    full: tuple[Line, ...] = ()

    @property
    def failed(self) -> list[Line]:
        """The lines that do not keep their limit."""
        return [line for line in (*self.lines, *self.full) if not line.passed]

    @property
    def shown_scans(self) -> list[Scan]:
        """The scans to draw and to keep, at most _SHOWN: those with kinks, then bonds, then dimers."""
        order = sorted(range(len(self.scans)), key=lambda k: (not self.scans[k].kinks, -k))
        return [self.scans[k] for k in sorted(order[:_SHOWN])]

    def to_dict(self) -> dict:
        """Plain values, for JSON and the model file; the scans that are drawn, thinned out."""
        lines, full = ([asdict(line) | {"passed": line.passed} for line in part] for part in (self.lines, self.full))
        scans = [scan.to_dict() for scan in self.shown_scans if np.isfinite(scan.energies).all()]
        return {"lines": lines, "errors": self.errors, "scans": scans} | ({"full": full} if full else {})

    @classmethod
    def from_dict(cls, values: dict) -> Certificate:
        """What `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        lines, full = (tuple(map(Line.from_dict, values.get(name, ()))) for name in ("lines", "full"))
        return cls(lines, tuple(map(Scan.from_dict, values.get("scans", ()))), dict(values.get("errors", {})), full)

    def table(self, title: str | None = None) -> Table:
        """A rich table of the lines; what was measured stands below for those that failed."""
        caption = "\n".join(f"[bold red]{line.name}[/bold red]: {line.note}" for line in self.failed)
        table = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
        for heading in ("", "figure", "limit"):
            table.add_column(heading, justify="left" if not heading else "right")
        for heading in ("unit", "passed"):
            table.add_column(heading)
        for line in (*self.lines, *self.full):
            value = "-" if line.value is None else f"{line.value:.3g}"
            verdict = "" if line.limit is None else "yes" if line.passed else "[bold red]NO[/bold red]"
            limit = "" if line.limit is None else f"{'≥ ' if line.least else ''}{line.limit:.3g}"
            table.add_row(line.name, value, limit, line.unit, verdict)
        return table


def suitable(potential: Potential, structures: Sequence[Structure | ase.Atoms]) -> list[ase.Atoms]:
    """The structures to measure on, by default those that travel in the potential's file.

    Cells of one atom are taken twice along each periodic vector. Raises DataError: none.
    """
    frames = [s if isinstance(s, ase.Atoms) else s.to_atoms() for s in structures or potential.reference_structures]
    frames = [atoms.repeat(np.where(atoms.pbc, 2, 1)) if len(atoms) == 1 else atoms for atoms in frames]
    frames = [atoms for atoms in frames if 1 < len(atoms) <= _LARGEST]
    if not frames:
        raise DataError(f"nothing to certify the potential on: give structures of 2 to {_LARGEST} atoms")
    return frames


def certify(
    potential: Potential,
    structures: Sequence[Structure | ase.Atoms] = (),
    on_check: Callable[[str], None] = lambda name: None,
    errors: dict[str, dict] | None = None,
) -> Certificate:
    """Measure `potential` on `structures` (by default those that travel in its file); 15 to 30 seconds.

    `on_check` is told the name of each check before it starts; `errors` (name of a set -> `Metrics.to_dict()`) are listed
    with those of the model file. Raises DataError: no structure to measure on.
    """
    frames = suitable(potential, structures)
    ask, rng = Probe(potential, frames), np.random.default_rng(0)
    other = Probe(potential.with_precision("float32" if potential.precision == "float64" else "float64"), frames)
    single, double = (other, ask) if potential.precision == "float64" else (ask, other)
    errors = (potential.metadata.get("errors") or {}) | (errors or {})
    lines = checks.errors(errors)
    on_check("symmetries")
    lines += checks.symmetries(ask, frames, rng)
    on_check("derivatives")
    lines += checks.derivatives(double, frames, rng)
    on_check("cutoff")
    lines += checks.cutoff(double, frames)
    on_check("dimers and bonds")
    pairs, bonds = scans.dimers(double), scans.bonds(double, frames)
    lines += checks.smoothness(pairs, bonds)
    on_check("size and rounding")
    lines += checks.extensivity(ask, frames) + checks.precision(single, double, frames)
    on_check("displaced structures")
    lines += displaced.energies_and_forces(displaced.displacements(ask, frames, rng))
    on_check("hot runs")
    lines += hot.survival(potential, frames, rng)
    on_check("dynamics")
    lines += checks.drift(potential, frames)
    return Certificate(tuple(lines), (*pairs, *bonds), errors)
