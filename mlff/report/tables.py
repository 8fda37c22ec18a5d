"""What a model or a data file is, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ase.data import chemical_symbols
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mlff.basics.errors import ModelFileError, printable
from mlff.basics.properties import PROPERTIES
from mlff.basics.statistics import rms
from mlff.data.dataset import Dataset
from mlff.data.neighbors import neighbor_list, pair_vectors
from mlff.data.structure import label_numbers
from mlff.lint.findings import SEVERITIES, Lint
from mlff.potential.potential import Potential
from mlff.refinement.outcome import Outcome
from mlff.simulation.driver import Summary
from mlff.simulation.relax import Relaxation
from mlff.training.metrics import Metrics

_LOOK_AT = 200  #: structures whose distances are measured


def model(potential: Potential, path: Path) -> Group:
    """Architecture, elements, errors and origin of a potential. Raises ModelFileError: errors that are none."""
    options = potential.config.model_dump()
    metadata = potential.metadata
    rows = [
        ("architecture", options.pop("architecture")),
        ("options", ", ".join(f"{key} {value}" for key, value in options.items() if key != "cutoff")),
        ("cutoff", f"{potential.cutoff:g} Å"),
        ("parameters", f"{sum(np.size(leaf) for leaf in jax.tree.leaves(potential.params.get('params', {}))):,}"),
        *([("members", f"{potential.members}, whose mean it gives")] if potential.members > 1 else []),
        ("precision", potential.precision),
        (
            "reference energies",
            "none: trained without labels"
            if potential.pretrained
            else ", ".join(f"{chemical_symbols[z]} {potential.baseline[z]:.4f} eV" for z in potential.elements),
        ),
    ]
    rows += [
        (name, _flat(value))
        for name, value in metadata.items()
        if name not in ("config", "errors", "references", "certificate")
    ]
    tables = [_rows(str(path), rows)]
    try:
        for name, errors in (metadata.get("errors") or {}).items():
            tables.append(Metrics.from_dict(errors).table(f"errors: {escape(printable(name))}"))
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{path}: the errors in its metadata cannot be read ({error})") from None
    return Group(*tables)


def data(dataset: Dataset, path: Path) -> Group:
    """Counts, ranges and closest contacts of a dataset."""
    structures = dataset.structures
    sizes = [len(structure) for structure in structures]
    rows = [
        ("census", str(dataset.census)),
        ("structures", f"{len(structures):,}"),
        ("elements", ", ".join(chemical_symbols[z] for z in dataset.elements)),
        (
            "isolated atoms",
            ", ".join(f"{chemical_symbols[z]} {e:.4f} eV" for z, e in dataset.isolated_atoms.items()) or "none",
        ),
        ("fingerprint", dataset.fingerprint),
    ]
    if structures:
        rows.insert(2, ("atoms", f"{sum(sizes):,}; {min(sizes)} to {max(sizes)} per structure"))
        rows.insert(3, ("periodic", f"{sum(bool(s.pbc.any()) for s in structures):,} of {len(structures):,}"))
        for name, known in PROPERTIES.items():
            if parts := label_numbers(structures, name):
                x = np.concatenate(parts)
                text = (
                    f"{x.min():.4f} to {x.max():.4f}" if known.grows else f"RMS {rms(x):.4f}, largest {np.abs(x).max():.3f}"
                )
                rows.append((name, f"{text} {known.shown_unit}"))
        rows += _contacts(structures[:: max(1, len(structures) // _LOOK_AT)])
    return Group(_rows(str(path), rows))


def lint(report: Lint, title: str, examples: int = 3) -> Group:
    """Contents, distances, what was compared and the findings of a lint, with so many structures named per finding."""
    reference = ", ".join(f"{symbol} {energy:.4f}" for symbol, energy in report.reference["energies"].items())
    rows = [
        ("census", report.census),
        ("structures", f"{report.structures:,}"),
        ("atoms", ", ".join(f"{symbol} {count:,}" for symbol, count in report.elements.items())),
    ]
    units = {known.shown: known.shown_unit for known in PROPERTIES.values()}
    rows += [
        (name.replace("_", " "), f"{r['min']:.4f} to {r['max']:.4f}, RMS {r['rms']:.4f} {units[name]}")
        for name, r in report.ranges.items()
    ]
    if report.groups:
        named = ", ".join(f"{name} {count:,}" for name, count in list(report.groups.items())[:8])
        rows.append(("groups", f"{len(report.groups)}: {named}{', ...' if len(report.groups) > 8 else ''}"))
    rank = f"{report.reference['kind']}; compositions of rank {report.reference['rank']} of {report.reference['elements']}"
    rows.append(("reference energies", f"{rank}" + (f": {reference} eV" if reference else "")))
    if report.reference["zero"]:
        rows.append(("energies count from", report.reference["zero"]))
    rows.append(("cutoff", f"{report.cutoff:g} Å ({report.cutoff_reason})"))
    tables = [_rows(title, rows)]
    if report.distances:
        table = Table(title=f"distances in {report.looked_at:,} structures, Å", title_justify="left")
        for name in ("pair", "shortest", "1 %", "median", "atoms", "gaps"):
            table.add_column(name, justify="left" if name == "pair" else "right")
        for pair, item in report.distances.items():
            lengths = (f"{length:.3f}" for length in (item.shortest, item.low, item.median))
            table.add_row(pair, *lengths, f"{item.samples:,}", f"{100 * item.empty():.0f} %")
        tables.append(table)
    if report.comparisons:
        table = Table(title="do the labels belong together", title_justify="left")
        for name in ("labels", "verdict", "what was seen", "how"):
            table.add_column(name, overflow="fold")
        for item in report.comparisons:
            table.add_row(item.labels, item.verdict, item.what, item.method)
        tables.append(table)
    title = "findings" if report.findings else "nothing to complain about"
    table = Table(title=title, title_justify="left", show_header=False)
    colors = dict(zip(SEVERITIES, ("bold red", "yellow", "dim"), strict=True))
    for item in report.findings:
        table.add_row(item.severity, item.code, escape(item.line(examples)), style=colors[item.severity])
    return Group(*tables, table)


def md(summary: Summary) -> str:
    """A run of molecular dynamics in one line."""
    parts = [
        f"{summary.steps:,} steps, {summary.time_ps:g} ps",
        f"T {summary.temperature_mean:.0f} ± {summary.temperature_std:.0f} K",
    ]
    if summary.drift is not None:
        parts.append(f"drift {summary.drift:+.3g} meV/atom/ps")
    if summary.volume_mean is not None:
        parts.append(f"volume {summary.volume_mean:.2f} Å³")
    if summary.pressure_mean is not None:
        parts.append(f"pressure {summary.pressure_mean:.3f} GPa")
    if summary.distance_max is not None:
        parts.append(f"farthest from the training data {summary.distance_max:.2g}")
    return ", ".join([*parts, f"{summary.ns_per_day:.2f} ns/day"])


def relaxations(results: Sequence[Relaxation]) -> str:
    """How many structures relaxed, and how far, in one line."""
    steps = [result.steps for result in results]
    lowered = [-result.energy_change for result in results if np.isfinite(result.energy_change)]
    parts = [f"{sum(result.converged for result in results):,} of {len(results):,} structures converged"]
    parts.append(f"{min(steps):,} to {max(steps):,} steps, {np.mean(steps):.0f} on average")
    if lowered:
        parts.append(f"energies lowered by {min(lowered):.3g} to {max(lowered):.3g} eV")
    parts.append(f"atoms moved by up to {max(result.displacement for result in results):.2g} Å")
    return "; ".join(parts)


def _contacts(structures) -> list[tuple[str, str]]:
    """The shortest distance of each pair of elements in some of the structures."""
    shortest: dict[tuple[int, int], float] = {}
    for s in structures:
        i, j, shifts = neighbor_list(s.positions, s.cell, s.pbc, 4.0)
        distances = np.linalg.norm(pair_vectors(s.positions, s.cell, i, j, shifts), axis=1)
        low, high = np.sort([s.numbers[i], s.numbers[j]], axis=0)
        for pair in set(zip(low.tolist(), high.tolist(), strict=True)):
            nearest = float(distances[(low == pair[0]) & (high == pair[1])].min())
            shortest[pair] = min(nearest, shortest.get(pair, np.inf))
    text = ", ".join(f"{chemical_symbols[a]}-{chemical_symbols[b]} {d:.2f}" for (a, b), d in sorted(shortest.items()))
    return [("shortest distances", f"{text} Å ({len(structures)} structures looked at)")] if text else []


def _rows(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=Text(printable(title)), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _flat(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    return str(value)


def finetuning(rows: list[dict]) -> Table:
    """Errors before and after fine-tuning, see `mlff.training.start.before_and_after`."""
    table = Table(title="forces before and after: RMSE / worst structure, meV/Å", title_justify="left")
    for heading in ("", "structures", "before", "after", "energy after, meV/atom"):
        table.add_column(heading, justify="right" if heading else "left")

    def text(*values: float | None) -> str:
        return " / ".join("-" if value is None else f"{value:.3g}" for value in values)

    for row in rows:
        pairs = [text(row[f"forces_rmse_{when}"], row[f"forces_worst_{when}"]) for when in ("before", "after")]
        table.add_row(escape(row["data"]), f"{row['structures']:,}", *pairs, text(row["energy_rmse_per_atom_after"]))
    return table


def refinement(outcome: Outcome) -> tuple[Table, Table]:
    """Targets and errors of the data before and after a refinement."""
    targets = Table(title="targets", title_justify="left")
    for heading in ("", "target", "before", "after", "error bars away", ""):
        targets.add_column(heading, justify="right" if heading else "left")
    for row in outcome.targets:
        away = f"{row.deviation_before:.3g} → {row.deviation_after:.3g}"
        reached = "reached" if row.reached else "not reached"
        if len(row.target) > 1:
            name = f"{row.name} ({len(row.target)} values)"
            spread = [f"± {abs(np.subtract(values, row.target)).mean():.3g}" for values in (row.before, row.after)]
            targets.add_row(escape(f"{name}, mean deviation {row.unit}"), "", *spread, away, reached)
        else:
            error = "" if row.statistical_errors is None else f" ± {row.statistical_errors[0]:.2g}"
            values = f"{row.target[0]:.5g} ± {row.error_bars[0]:.2g}", f"{row.before[0]:.5g}", f"{row.after[0]:.5g}{error}"
            targets.add_row(escape(f"{row.name} {row.unit}"), *values, away, reached)
    data = Table(title=f"data (parameters of step {outcome.kept} of {outcome.steps})", title_justify="left")
    for heading in ("", "forces before, meV/Å", "after", "energy before, meV/atom", "after "):
        data.add_column(heading, justify="right" if heading else "left")
    for name, both in outcome.data.items():
        cells = [both[when][key] for key in ("forces_rmse", "energy_rmse_per_atom") for when in ("before", "after")]
        data.add_row(escape(name), *("-" if cell is None else f"{cell:.4g}" for cell in cells))
    return targets, data
