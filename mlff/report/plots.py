"""PNG plots: parity, learning curve, molecular dynamics, lint of a dataset. Units stand on every axis."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, NullFormatter

from mlff.basics.errors import DataError
from mlff.basics.files import replacing
from mlff.basics.units import STRESS
from mlff.certificate.certificate import Certificate
from mlff.certificate.line import Line
from mlff.data.structure import Structure
from mlff.lint.contacts import BIN
from mlff.lint.lint import Lint

BLUE, ORANGE, GREY = "#1f5fa8", "#d8702a", "#8a8f98"
_MANY = 5000  #: points; beyond, a density map instead of dots


def parity(structures: Sequence[Structure], results: Sequence, path: str | Path, title: str | None = None) -> None:
    """Predictions against reference: energy per atom, forces and, where both have it, stress.

    `results` as from Potential.predict. Raises DataError if the structures carry no labels at all.
    """
    panels = []
    with_energy = [
        (s.energy / len(s), r.energy / len(s)) for s, r in zip(structures, results, strict=True) if s.energy is not None
    ]
    if with_energy:
        reference, predicted = np.array(with_energy).T
        middle = reference.mean()
        panels.append(
            (
                "energy per atom less the mean",
                "meV/atom",
                1,
                "meV/atom",
                *(1000 * (x - middle) for x in (reference, predicted)),
            )
        )
    forces = [
        (s.forces.ravel(), np.asarray(r.forces).ravel())
        for s, r in zip(structures, results, strict=True)
        if s.forces is not None
    ]
    if forces:
        panels.append(
            ("force components", "eV/Å", 1000, "meV/Å", *(np.concatenate(side) for side in zip(*forces, strict=True)))
        )
    stresses = [
        (s.stress.ravel(), np.asarray(r.stress).ravel())
        for s, r in zip(structures, results, strict=True)
        if s.stress is not None and r.stress is not None
    ]
    if stresses:
        sides = (np.concatenate(side) / STRESS["GPa"] for side in zip(*stresses, strict=True))
        panels.append(("stress components", "GPa", 1, "GPa", *sides))
    if not panels:
        raise DataError("no labels to plot predictions against")
    figure = Figure(figsize=(4.6 * len(panels), 4.5), layout="constrained")
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        _parity_panel(figure, axes, *panel)
    _save(figure, path, title)


def learning_curve(metrics: str | Path, path: str | Path, title: str | None = None) -> None:
    """Loss, energy and force errors over the epochs, from the metrics.jsonl of a training run. Raises DataError."""
    lines = _read_lines(metrics)
    panels = [("train_loss", None, "loss", "")]
    panels += [
        (f"train_{name}", f"valid_{name}", f"{label} RMSE", unit)
        for name, label, unit in (
            ("energy_rmse_per_atom", "energy", "meV/atom"),
            ("forces_rmse", "force", "meV/Å"),
            ("stress_rmse", "stress", "meV/Å³"),
        )
        if any(line.get(f"valid_{name}") is not None for line in lines)
    ]
    figure = Figure(figsize=(4.2 * len(panels), 3.8), layout="constrained")
    for axes, (train, valid, label, unit) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        for key, color, name in ((train, GREY, "training"), (valid, BLUE, "validation")):
            points = [(line["epoch"], line[key]) for line in lines if key and line.get(key) is not None and line[key] > 0]
            if points:
                epochs, values = np.array(points, float).T
                axes.plot(epochs, values, color=color, lw=1.6, marker="o" if len(points) < 30 else None, ms=3, label=name)
                if key == valid:
                    best = int(values.argmin())
                    axes.plot(epochs[best], values[best], "o", color=ORANGE, ms=6, label=f"best: {values[best]:.3g} {unit}")
        axes.set_yscale("log")
        _plain_log(axes)
        axes.set(xlabel="epoch", ylabel=f"{label} ({unit})" if unit else label)
        axes.legend(frameon=False, fontsize=8)
        _clean(axes)
    _save(figure, path, title)


def md(log: str | Path, path: str | Path, title: str | None = None) -> None:
    """Temperature, energy and, if the cell moves, volume over time, from the log of `run_md`. Raises DataError."""
    lines = _read_lines(log)
    time, temperature = (np.array([line[key] for line in lines], float) for key in ("time_ps", "temperature_k"))
    atoms = float(lines[0]["atoms"])
    kept = all(line["conserved_ev"] is not None for line in lines)
    energy = np.array([line["conserved_ev" if kept else "etot_ev"] for line in lines], float)
    volumes = np.array([np.nan if line["volume_a3"] is None else line["volume_a3"] for line in lines], float)
    moving = bool(np.isfinite(volumes).all() and np.ptp(volumes) > 1e-9)
    figure = Figure(figsize=(7.5, 2.3 * (2 + moving) + 0.4), layout="constrained")
    axes = figure.subplots(2 + moving, 1, sharex=True)
    axes[0].plot(time, temperature, color=BLUE, lw=0.8, alpha=0.8)
    axes[0].axhline(temperature.mean(), color=ORANGE, lw=1.4, label=f"mean {temperature.mean():.0f} K")
    axes[0].set_ylabel("temperature (K)")
    shift = 1000 * (energy - energy[0]) / atoms
    axes[1].plot(time, shift, color=BLUE, lw=0.8)
    if kept and len(time) > 2:
        slope, offset = np.polyfit(time, shift, 1)
        axes[1].plot(time, slope * time + offset, color=ORANGE, lw=1.4, label=f"drift {slope:+.2g} meV/atom/ps")
    axes[1].set_ylabel(("conserved" if kept else "total") + " energy\nless the first (meV/atom)")
    if moving:
        axes[2].plot(time, volumes, color=BLUE, lw=0.8)
        axes[2].axhline(volumes.mean(), color=ORANGE, lw=1.4, label=f"mean {volumes.mean():.1f} Å³")
        axes[2].set_ylabel("volume (Å³)")
    for panel in axes:
        panel.ticklabel_format(axis="y", useOffset=False)
        panel.margins(x=0.01)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False, fontsize=9, loc="best")
        _clean(panel)
    axes[-1].set_xlabel("time (ps)")
    figure.align_ylabels()
    _save(figure, path, title)


def lint(structures: Sequence[Structure], report: Lint, path: str | Path, title: str | None = None) -> None:
    """Energies, forces, distances per pair of elements, and labels held against each other. Raises DataError."""
    if not len(structures):
        raise DataError("no structures to draw")
    compared = [item for item in report.comparisons if len(item.points)]
    figure = Figure(figsize=(10, 3.6 * (2 + (len(compared) > 1))), layout="constrained")
    panels = figure.subplots(2 + (len(compared) > 1), 2).ravel()
    at = [k for k, s in enumerate(structures) if s.energy is not None]
    panels[0].plot(at, [structures[k].energy / len(structures[k]) for k in at], "o", ms=2.5, color=BLUE, alpha=0.6, mew=0)
    panels[0].set(xlabel="structure", ylabel="energy (eV/atom)", title="energies")
    panels[0].ticklabel_format(axis="y", useOffset=False)
    forces = [np.linalg.norm(s.forces, axis=1) for s in structures if s.forces is not None]
    sizes = np.concatenate(forces) if forces else np.zeros(0)
    if (sizes > 1e-6).any():
        panels[1].hist(np.log10(sizes[sizes > 1e-6]), bins=80, color=BLUE)
    panels[1].set(xlabel="log10 of the force on an atom (eV/Å)", ylabel="atoms", yscale="log", title="forces")
    for pair, item in sorted(report.distances.items(), key=lambda entry: -entry[1].samples)[:8]:
        counts = np.array(item.histogram)
        edges, label = BIN * np.arange(len(counts) + 1), f"{pair} from {item.shortest:.2f}"
        panels[2].stairs(counts / max(counts.max(), 1), edges, label=label)
    panels[2].set(xlabel="distance (Å)", ylabel="relative number of pairs", title="distances")
    if report.distances:
        panels[2].legend(frameon=False, fontsize=8)
    for axes, item in zip(panels[3:], compared, strict=False):
        x, y = item.points.T
        axes.plot(x, y, "o", ms=3, color=BLUE, alpha=0.5, mew=0)
        reach = np.array([np.abs(x).max(), -np.abs(x).max()])
        axes.plot(reach, item.slope * reach, color=ORANGE, lw=1.4, label=f"slope {item.slope:.3g}, {item.verdict}")
        axes.plot(reach, reach, color=GREY, lw=1, ls=(0, (4, 3)), label="slope 1")
        margin = 1.05 * np.abs(y).max() or 1.0
        axes.set(ylim=(-margin, margin), title=item.labels, xlabel=f"from {item.labels.split()[-1]} (eV)")
        axes.set_ylabel("from energies (eV)" if item.labels.startswith("energies") else "from forces (eV)")
        axes.legend(frameon=False, fontsize=8)
    for axes in panels[3 + len(compared) :]:
        axes.set_axis_off()
    for axes in panels:
        _clean(axes)
    _save(figure, path, title)


def _parity_panel(figure: Figure, axes, name: str, unit: str, scale: float, error_unit: str, reference, predicted) -> None:
    low, high = min(reference.min(), predicted.min()), max(reference.max(), predicted.max())
    margin = 0.04 * (high - low) or 1e-3
    low, high = low - margin, high + margin
    axes.plot([low, high], [low, high], color=GREY, lw=1, zorder=3, ls=(0, (4, 3)))
    if len(reference) > _MANY:
        limits = [[low, high]] * 2
        counts, x, y = np.histogram2d(reference, predicted, bins=180, range=limits)
        image = axes.pcolormesh(x, y, np.ma.masked_equal(counts.T, 0), norm=LogNorm(), cmap="viridis", rasterized=True)
        figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label="count")
    else:
        axes.plot(reference, predicted, "o", ms=3.5, color=BLUE, alpha=0.5, mew=0)
    error = scale * (predicted - reference)
    rmse, mae = np.sqrt(np.mean(error**2)), np.mean(np.abs(error))
    text = f"RMSE {rmse:.3g} {error_unit}\nMAE  {mae:.3g} {error_unit}\nn = {len(error):,}"
    axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top", fontsize=9)
    axes.set(xlim=(low, high), ylim=(low, high), title=name)
    axes.set_box_aspect(1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    axes.set(xlabel=f"reference ({unit})", ylabel=f"predicted ({unit})")
    _clean(axes)


def _read_lines(path: str | Path) -> list[dict]:
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__})") from None
    try:
        if path.suffix == ".csv":
            lines = [
                {key: float(value) if value else None for key, value in row.items()}
                for row in csv.DictReader(text.splitlines())
            ]
        else:
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, TypeError):
        raise DataError(f"{path}: not a log of numbers, one record per line") from None
    if not lines:
        raise DataError(f"{path}: holds no records yet")
    return lines


class _PlainLog(LogFormatter):
    def _num_to_string(self, x, vmin, vmax):
        return f"{x:g}"


def _plain_log(axes) -> None:
    """Ticks like 20 and 50 instead of 2x10^1 where an axis spans little."""
    low, high = axes.get_ylim()
    if high / low < 100:
        axes.yaxis.set_minor_formatter(_PlainLog(labelOnlyBase=False, minor_thresholds=(3, 1)))
        axes.yaxis.set_major_formatter(_PlainLog())
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())


def certificate(measured: Certificate, path: str | Path, title: str | None = None) -> None:
    """The lines as shares of their limits, errors by distance from the training data, and the scans behind the lines.

    Kinks and minima of the scans are marked. Raises DataError: there is nothing in it.
    """
    lines = [line for line in (*measured.lines, *measured.full) if line.limit is not None]
    curves = measured.scans
    if not lines and not curves:
        raise DataError("no curves and no lines to plot")
    columns, above = 4, 0.27 * len(lines) + 1.0
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.2 * columns, above + 2.3 * rows), layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=[above, max(2.3 * rows, 0.01)])
    binned = {name: figures["by_distance"] for name, figures in measured.errors.items() if figures.get("by_distance")}
    panels = np.atleast_1d(parts[0].subplots(1, 1 + bool(binned), width_ratios=[2, 1.2][: 1 + bool(binned)]))
    _lines_panel(panels[0], lines)
    if binned:
        _distance_panel(panels[1], binned)
    grid = parts[1].subplots(rows, columns, squeeze=False).ravel() if curves else ()
    for axes in grid[len(curves) :]:
        axes.set_visible(False)
    for axes, curve in zip(grid, curves, strict=False):
        axes.plot(curve.distances, curve.energies, color=BLUE, lw=1.2)
        for r in curve.minima:
            axes.axvline(r, color=GREY, lw=0.8, ls=":")
        for r in curve.kinks:
            axes.axvline(r, color=ORANGE, lw=1.2)
        depth = max(1.0, -float(np.nanquantile(curve.energies, 0.1)))
        axes.set_ylim(-1.4 * depth, 3 * depth)
        axes.set(title=curve.name, xlabel="distance (Å)", ylabel="energy (eV)")
        _clean(axes)
        axes.title.set_fontsize(8)
    _save(figure, path, title)


def _lines_panel(axes, lines: Sequence[Line]) -> None:
    """A bar for each line: the figure over its limit, the other way round where the limit is a least one."""
    shares = []
    for line in lines:
        figure = np.inf if line.value is None else abs(line.value)
        share = line.limit / max(figure, 1e-300) if line.least else figure / line.limit if line.limit else figure and np.inf
        shares.append(float(np.clip(share if line.value is not None else np.inf, 1e-6, 1e3)))
    colors = [BLUE if line.passed else ORANGE for line in lines]
    axes.barh(range(len(lines)), [np.log10(share) + 6 for share in shares], left=-6, color=colors, height=0.7)
    axes.axvline(0, color=GREY, lw=1.2)
    texts = ["not measured" if line.value is None else f"{line.value:.3g} {line.unit}" for line in lines]
    names = [f"{line.name}: {text}" for line, text in zip(lines, texts, strict=True)]
    axes.set_yticks(range(len(lines)), names, fontsize=8)
    axes.set(xlim=(-6, 3), ylim=(len(lines) - 0.4, -0.6), title="lines with a limit")
    axes.set_xticks([-6, -3, 0, 3], ["≤ 1e-6", "1e-3", "limit", "≥ 1000"])
    _clean(axes)


def _distance_panel(axes, binned: dict[str, list[dict]]) -> None:
    names = list(dict.fromkeys(row["name"] for rows in binned.values() for row in rows))
    width = 0.8 / len(binned)
    for number, (name, rows) in enumerate(binned.items()):
        found = [(names.index(row["name"]), row["forces_rmse"]) for row in rows if row["forces_rmse"] is not None]
        if found:
            at, values = np.array(found, float).T
            axes.bar(at + (number - (len(binned) - 1) / 2) * width, values, width, label=name)
    axes.set_xticks(range(len(names)), names)
    axes.set(yscale="log", ylabel="force RMSE (meV/Å)", title="distance from the training data")
    axes.legend(frameon=False, fontsize=7)
    _clean(axes)


def _clean(axes) -> None:
    axes.grid(color="0.9", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.title.set_fontsize(11)


def _save(figure: Figure, path: str | Path, title: str | None) -> None:
    if title:
        figure.suptitle(title, fontsize=12)
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
