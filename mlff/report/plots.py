"""PNG plots: parity, learning curve, molecular dynamics, lint of a dataset. Units stand on every axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mlff.basics.errors import DataError
from mlff.basics.files import replacing
from mlff.basics.statistics import slope
from mlff.certificate.certificate import Certificate
from mlff.data.structure import Structure
from mlff.lint.contacts import BIN
from mlff.lint.findings import Lint
from mlff.report import panels
from mlff.report.panels import BLUE, GREY, ORANGE
from mlff.training.parity import Parity
from mlff.training.range_test import RangeTest


def parity(structures: Sequence[Structure], results: Sequence, path: str | Path, title: str | None = None) -> None:
    """Predictions against reference: energy per atom, forces and, where both have it, stress.

    `results` as from Potential.predict. Raises DataError if the structures carry no labels at all.
    """
    compared = Parity.of(structures, results)
    names = panels.quantities(compared)
    if not names:
        raise DataError("no labels to plot predictions against")
    figure = Figure(figsize=(4.6 * len(names), 4.5), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        panels.parity(axes, name, getattr(compared, name))
    save(figure, path, title)


def learning_curve(metrics: str | Path, path: str | Path, title: str | None = None) -> None:
    """Loss, energy and force errors over the epochs, from the metrics.jsonl of a training run. Raises DataError."""
    lines = panels.read_log(metrics)
    curves = panels.curves(lines)
    figure = Figure(figsize=(4.2 * len(curves), 3.8), layout="constrained")
    for axes, curve in zip(np.atleast_1d(figure.subplots(1, len(curves))), curves, strict=True):
        panels.curve(axes, lines, *curve)
    save(figure, path, title)


def layers(metrics: str | Path, path: str | Path, title: str | None = None) -> None:
    """Over the epochs: norms of gradient and update of each layer, update over weights, share of saturated activations.

    From a metrics.jsonl. Raises DataError: there are none in it.
    """
    lines = panels.read_log(metrics)
    kinds = {"gradient": "norm of the gradient", "update": "norm of the update", "ratio": "update over weights"}
    found = {kind: panels.series(lines, f"{kind}/") for kind in (*kinds, "saturated")}
    if not found["ratio"]:
        raise DataError(f"{metrics}: holds no norms of layers")
    count = len(kinds) + bool(found["saturated"])
    figure = Figure(figsize=(4.2 * count, 3.8), layout="constrained")
    axes = figure.subplots(1, count)
    for panel, (kind, label) in zip(axes, kinds.items(), strict=False):
        panels.layers(panel, found[kind], label)
        panel.set_yscale("log")
    axes[len(kinds) - 1].legend(frameon=False, fontsize=8)
    if found["saturated"]:
        panels.layers(axes[-1], found["saturated"], "share of saturated activations")
        axes[-1].set_ylim(-0.02, 1.02)
        axes[-1].legend(frameon=False, fontsize=8)
    save(figure, path, title)


def range_test(found: RangeTest, path: str | Path, title: str | None = None) -> None:
    """Loss over the learning rate of a range test; the suggestion is marked."""
    figure = Figure(figsize=(5.4, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color=GREY, lw=0.6, label="batches")
    axes.plot(found.rates, found.smooth, color=BLUE, lw=1.6, label="moving average")
    if found.suggestion is not None:
        axes.axvline(found.suggestion, color=ORANGE, lw=1.4, label=f"suggestion: {found.suggestion:g}")
    axes.set(xlabel="learning rate", ylabel="loss", xscale="log", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    panels.clean(axes)
    save(figure, path, title)


def md(log: str | Path, path: str | Path, title: str | None = None) -> None:
    """Temperature, energy and, if the cell moves, volume over time, from the log of `run_md`. Raises DataError."""
    lines = panels.read_log(log)
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
        drift = slope(time, shift)
        line = shift.mean() + drift * (time - time.mean())
        axes[1].plot(time, line, color=ORANGE, lw=1.4, label=f"drift {drift:+.2g} meV/atom/ps")
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
        panels.clean(panel)
    axes[-1].set_xlabel("time (ps)")
    figure.align_ylabels()
    save(figure, path, title)


def lint(structures: Sequence[Structure], report: Lint, path: str | Path, title: str | None = None) -> None:
    """Energies, forces, distances per pair of elements, and labels held against each other. Raises DataError."""
    if not len(structures):
        raise DataError("no structures to draw")
    compared = [item for item in report.comparisons if len(item.points)]
    figure = Figure(figsize=(10, 3.6 * (2 + (len(compared) > 1))), layout="constrained")
    grid = figure.subplots(2 + (len(compared) > 1), 2).ravel()
    at = [k for k, s in enumerate(structures) if s.energy is not None]
    grid[0].plot(at, [structures[k].energy / len(structures[k]) for k in at], "o", ms=2.5, color=BLUE, alpha=0.6, mew=0)
    grid[0].set(xlabel="structure", ylabel="energy (eV/atom)", title="energies")
    grid[0].ticklabel_format(axis="y", useOffset=False)
    forces = [np.linalg.norm(s.forces, axis=1) for s in structures if s.forces is not None]
    sizes = np.concatenate(forces) if forces else np.zeros(0)
    if (sizes > 1e-6).any():
        grid[1].hist(np.log10(sizes[sizes > 1e-6]), bins=80, color=BLUE)
    grid[1].set(xlabel="log10 of the force on an atom (eV/Å)", ylabel="atoms", yscale="log", title="forces")
    for pair, item in sorted(report.distances.items(), key=lambda entry: -entry[1].samples)[:8]:
        counts = np.array(item.histogram)
        edges, label = BIN * np.arange(len(counts) + 1), f"{pair} from {item.shortest:.2f}"
        grid[2].stairs(counts / max(counts.max(), 1), edges, label=label)
    grid[2].set(xlabel="distance (Å)", ylabel="relative number of pairs", title="distances")
    if report.distances:
        grid[2].legend(frameon=False, fontsize=8)
    for axes, item in zip(grid[3:], compared, strict=False):
        x, y = item.points.T
        axes.plot(x, y, "o", ms=3, color=BLUE, alpha=0.5, mew=0)
        reach = np.array([np.abs(x).max(), -np.abs(x).max()])
        axes.plot(reach, item.slope * reach, color=ORANGE, lw=1.4, label=f"slope {item.slope:.3g}, {item.verdict}")
        axes.plot(reach, reach, color=GREY, lw=1, ls=(0, (4, 3)), label="slope 1")
        margin = 1.05 * np.abs(y).max() or 1.0
        axes.set(ylim=(-margin, margin), title=item.labels, xlabel=f"from {item.labels.split()[-1]} (eV)")
        axes.set_ylabel("from energies (eV)" if item.labels.startswith("energies") else "from forces (eV)")
        axes.legend(frameon=False, fontsize=8)
    for axes in grid[3 + len(compared) :]:
        axes.set_axis_off()
    for axes in grid:
        panels.clean(axes)
    save(figure, path, title)


def certificate(measured: Certificate, path: str | Path, title: str | None = None) -> None:
    """The lines as shares of their limits, errors by distance from the training data, and the scans behind the lines.

    Kinks and minima of the scans are marked. Raises DataError: there is nothing in it.
    """
    lines = [line for line in (*measured.lines, *measured.full) if line.limit is not None]
    curves = measured.shown_scans
    if not lines and not curves:
        raise DataError("no curves and no lines to plot")
    columns, above = 4, 0.27 * len(lines) + 1.0
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.2 * columns, above + 2.3 * rows), layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=[above, max(2.3 * rows, 0.01)])
    binned = {name: figures["by_distance"] for name, figures in measured.errors.items() if figures.get("by_distance")}
    upper = np.atleast_1d(parts[0].subplots(1, 1 + bool(binned), width_ratios=[2, 1.2][: 1 + bool(binned)]))
    panels.certificate_lines(upper[0], lines)
    if binned:
        panels.distances(upper[1], binned)
    grid = parts[1].subplots(rows, columns, squeeze=False).ravel() if curves else ()
    for axes in grid[len(curves) :]:
        axes.set_visible(False)
    for axes, curve in zip(grid, curves, strict=False):
        panels.scan(axes, curve)
    save(figure, path, title)


def save(figure: Figure, path: str | Path, title: str | None) -> None:
    """Write a PNG file, whole or not at all."""
    if title:
        figure.suptitle(title, fontsize=12)
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
