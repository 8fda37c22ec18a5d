"""The parts of the HTML report of a model."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
import yaml
from ase.data import chemical_symbols

from mlff.certificate.certificate import Certificate
from mlff.certificate.line import Line
from mlff.potential.modelfile import CERTIFICATE
from mlff.potential.potential import Potential
from mlff.report import panels
from mlff.report.markup import Markup, details, facts, note, number, preformatted, section, table, tag
from mlff.report.svg import svg
from mlff.report.viewer import worst_structures
from mlff.training.metrics import Metrics
from mlff.training.parity import Parity

SETS = 8  #: sets whose parity plots and worst structures are shown


def header(
    name: str, potential: Potential, certificate: Certificate | None, size: int | None, runs: Sequence[dict]
) -> Markup:
    """What the model is, at a glance; `size` of its file in bytes, `runs` as in run.json."""
    metadata, options = potential.metadata, potential.config.model_dump()
    training = metadata.get("training") or {}
    date = training.get("finished") or (runs[-1].get("started") if runs else None)
    weights = sum(np.size(leaf) for leaf in jax.tree.leaves(potential.params.get("params", {})))
    shape = ", ".join(f"{options[key]} {key}" for key in ("channels", "layers") if key in options)
    rows = [
        ("elements", " ".join(chemical_symbols[z] for z in potential.elements)),
        ("trained on", _formulas(potential)),
        ("architecture", f"{options['architecture']}, {shape}" if shape else options["architecture"]),
        ("cutoff", f"{potential.cutoff:g} Å"),
        ("precision", potential.precision),
        ("size", f"{weights:,} parameters" + ("" if size is None else f", {size / 1e6:.2f} MB")),
    ]
    if potential.members > 1:
        rows.append(("committee", f"mean of {potential.members} members"))
    when = "date not recorded" if date is None else f"{str(date)[:16].replace('T', ' ')} UTC"
    long = ""
    if "seconds" in training:
        epochs = training["epochs"]
        long = f", {epochs:,} epoch{'s' * (epochs != 1)} in {training['seconds'] / 60:,.1f} min"
    rows.append(("trained", when + long))
    rows.append(("with", f"mlff {(metadata.get('versions') or {}).get('mlff', '(version not recorded)')}"))
    return tag("header", tag("h1", name), _verdict(certificate), facts(rows))


def _formulas(potential: Potential) -> str:
    formulas = potential.metadata.get("formulas")
    if formulas:
        return ", ".join(f"{formula} ({count:,})" for formula, count in formulas.items())
    known = sorted({atoms.get_chemical_formula() for atoms in potential.reference_structures})
    return f"{', '.join(known)} (of the structures in the model file)" if known else "not recorded"


def _verdict(certificate: Certificate | None) -> Markup:
    if certificate is None:
        return tag("p", "No certificate", class_="verdict none")
    limited = sum(line.limit is not None for line in (*certificate.lines, *certificate.full))
    if not certificate.failed:
        return tag("p", f"Certificate: all {limited} lines with a limit pass", class_="verdict pass")
    names = "; ".join(line.name for line in certificate.failed)
    return tag("p", f"Certificate: {len(certificate.failed)} of {limited} lines fail: {names}", class_="verdict fail")


def errors(sets: dict[str, Metrics]) -> Markup:
    """Errors on every set, and how they are spread over structures and elements."""
    if not sets:
        return section(
            "errors", "Errors", note("The model file holds no errors. `mlff evaluate MODEL DATA --html FILE` measures them.")
        )
    stress = any(m.stress_components for m in sets.values())
    headings = ["set", "structures", "energy (meV)", "energy (meV/atom)", "forces (meV/Å)"] + ["stress (meV/Å³)"] * stress
    rows = []
    for name, m in sets.items():
        pairs = [
            (m.energy_rmse, m.energy_mae),
            (m.energy_rmse_per_atom, m.energy_mae_per_atom),
            (m.forces_rmse, m.forces_mae),
        ]
        pairs += [(m.stress_rmse, m.stress_mae)] * stress
        rows.append([name, f"{m.structures:,}", *(_pair(*pair) for pair in pairs)])
    parts = [note("Root mean square / mean absolute errors."), table(headings, rows)]
    with_forces = {name: m for name, m in sets.items() if m.forces_rmse is not None}
    if with_forces:
        elements = list(dict.fromkeys(element for m in with_forces.values() for element in m.forces_rmse_by_element))
        headings = [
            "set",
            "median",
            "90 %",
            "99 %",
            "worst",
            "its number",
            *(f"on {e}" for e in elements),
            "forces themselves",
        ]
        rows = []
        for name, m in with_forces.items():
            single = m.forces_rmse_of_structures
            quantiles = [number(single.get(key)) for key in ("median", "90 %", "99 %", "worst")]
            of_elements = [number(m.forces_rmse_by_element.get(element)) for element in elements]
            index = f"{single['index']:.0f}" if "index" in single else ""
            rows.append([name, *quantiles, index, *of_elements, number(m.forces_rms)])
        explanation = (
            "Force errors of single structures, of elements, and the forces themselves (root mean squares, meV/Å). "
            "Structures are counted from 0."
        )
        parts += [note(explanation), table(headings, rows)]
    return section("errors", "Errors", *parts)


def _pair(rmse: float | None, mae: float | None) -> str:
    return "" if rmse is None else f"{number(rmse)} / {number(mae)}"


def learning_curves(lines: Sequence[dict]) -> Markup:
    """Loss and errors over the epochs, from the lines of a metrics.jsonl."""
    if not lines:
        missing = (
            "No metrics.jsonl lies beside this model: `mlff info RUN --html FILE` of its run directory shows the curves."
        )
        return section("learning", "Learning curves", note(missing))
    drawn = [
        _figure(lambda axes, curve=curve: panels.curve(axes, lines, *curve), 3.9, 3.0, f"curve {k}")
        for k, curve in enumerate(panels.curves(lines))
    ]
    return section("learning", "Learning curves", tag("div", *drawn, class_="panels"))


def parity_plots(sets: dict[str, Parity], known: Sequence[str]) -> Markup:
    """Predictions against reference for the first SETS sets; `known`: the sets whose errors are known."""
    parts: list[Markup] = []
    for k, (name, parity) in enumerate(list(sets.items())[:SETS]):
        drawn = [
            _figure(lambda axes, q=q, p=getattr(parity, q): panels.parity(axes, q, p), 3.9, 3.7, f"parity {k} {q}")
            for q in panels.quantities(parity)
        ]
        parts += [tag("h3", name), tag("div", *drawn, class_="panels")]
    if len(sets) > SETS:
        parts.append(note(f"The first {SETS} of {len(sets)} sets are drawn."))
    if missing := [name for name in known if name not in sets]:
        parts.append(note(f"Of {', '.join(missing)}: {_NOT_STORED}"))
    elif not sets:
        parts.append(note(_NOT_STORED))
    return section("parity", "Predictions against reference", *parts)


_NOT_STORED = (
    "no predictions are stored beside this model: `mlff info RUN --html FILE` of its run directory "
    "shows them, `mlff evaluate MODEL DATA --html FILE` makes them."
)


def worst(sets: dict[str, Parity]) -> Markup:
    """The structures with the largest errors of the first SETS sets."""
    parts = worst_structures(dict(list(sets.items())[:SETS]))
    return section("worst", "Worst structures", *(parts or [note(_NOT_STORED)]))


def certificate_lines(certificate: Certificate | None) -> Markup:
    """Every line, and the scans behind them."""
    if certificate is None:
        return section(
            "certificate",
            "Certificate",
            note("None is in the model file: `mlff certify MODEL` measures it (15 to 30 seconds)."),
        )
    rows = [_line(line) for line in (*certificate.lines, *certificate.full)]
    parts = [table(["line", "", "figure", "limit"], rows, texts=2, name="lines")]
    drawn = [
        _figure(lambda axes, scan=scan: panels.scan(axes, scan), 2.6, 2.0, f"scan {k}")
        for k, scan in enumerate(certificate.shown_scans)
    ]
    if drawn:
        text = "Energies of two free atoms and of stretched bonds. Dotted: minima; orange: kinks."
        parts += [tag("h3", "Scans"), note(text), tag("div", *drawn, class_="scans")]
    else:
        parts.append(note("The scans are not in the model file: `mlff certify MODEL` measures them again."))
    return section("certificate", "Certificate", *parts)


def _line(line: Line) -> list[object]:
    value = "not measured" if line.value is None else f"{line.value:.3g} {line.unit}".rstrip()
    limit = "" if line.limit is None else f"{'≥' if line.least else '≤'} {line.limit:.3g}"
    verdict = ("info", "") if line.limit is None else ("pass", "pass") if line.passed else ("fail", "FAILS")
    name = [tag("b", line.name), tag("div", line.note, class_="note")]
    return [name, tag("span", verdict[1], class_=verdict[0]), value, limit]


def distances(sets: dict[str, Metrics]) -> Markup:
    """Errors by distance from the training data."""
    binned = {name: m.by_distance for name, m in sets.items() if m.by_distance}
    if not binned:
        return section("distances", "Distance from the training data", note("The model file holds no errors by distance."))
    rows = [
        [
            name,
            row["name"],
            f"{row['atoms']:,}",
            number(row["forces_rmse"]),
            f"{row['structures']:,}",
            number(row["energy_rmse_per_atom"]),
        ]
        for name, bins in binned.items()
        for row in bins
    ]
    headings = ["set", "distance", "atoms", "forces, RMSE (meV/Å)", "structures", "energy, RMSE (meV/atom)"]
    text = (
        "An atom is inside up to a distance of 1, and beyond from 2 on: there its forces are a guess. "
        "A structure counts with its farthest atom."
    )
    parts: list[Markup] = [note(text), table(headings, rows, texts=2)]
    drawn = dict(list(binned.items())[:SETS])
    if any(row["forces_rmse"] is not None for bins in drawn.values() for row in bins):
        parts.append(_figure(lambda axes: panels.distances(axes, drawn), 6.0, 3.2, "distances"))
    return section("distances", "Distance from the training data", *parts)


def provenance(potential: Potential, runs: Sequence[dict]) -> Markup:
    """Versions, machine, fingerprints of the data, options and the config."""
    metadata = potential.metadata
    named = {"config", "data", "errors", "formulas", "references", CERTIFICATE}
    rows = [("fingerprint of the model", potential.fingerprint)]
    rows += [(f"data, {name}", value) for name, value in (metadata.get("data") or {}).items()]
    rows += [(key, _flat(value)) for key, value in metadata.items() if key not in named]
    rows += [(f"start {run.get('started', '')}", run.get("command", "")) for run in runs]
    energies = ", ".join(f"{chemical_symbols[z]} {potential.baseline[z]:.4f} eV" for z in potential.elements)
    rows.append(("reference energies", energies))
    model = yaml.safe_dump(potential.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    parts = [facts(rows), details("Options of the model", preformatted(model))]
    if "config" in metadata:
        config = yaml.safe_dump(metadata["config"], sort_keys=False, allow_unicode=True)
        parts.append(details("Config of the training", preformatted(config)))
    return section("provenance", "Provenance", *parts)


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _figure(draw, width: float, height: float, name: str) -> Markup:
    return tag("figure", Markup(svg(draw, width, height, name)))
