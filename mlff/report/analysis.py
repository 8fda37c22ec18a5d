"""The analysis of a trajectory as tables and a PNG plot."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table

from mlff.properties.analysis import Analysis
from mlff.properties.motion import wavenumber
from mlff.report.panels import BLUE, clean
from mlff.report.plots import save

_UNITS = {"ev": "eV", "k": "K", "a3": "Å³", "gpa": "GPa", "ps": "ps"}  #: by the end of a column's name


def tables(found: Analysis) -> Group:
    """Means, shells, bonds and angles, diffusion and vibrations."""
    parts = [_averages(found)] if found.averages else []
    parts += [_radial(found)] if found.radial else []
    parts += [_internal(found)] if found.bonds else []
    parts += [_motion(found)] if found.diffusion or found.vibrations else []
    return Group(*parts)


def plot(found: Analysis, path: Path, title: str) -> None:
    """Radial distribution functions, mean-square displacements, vibrations, bonds and angles, as far as they are there."""
    panels = [
        panel
        for panel, there in (
            (_draw_radial, found.radial),
            (_draw_bonds, found.bonds),
            (_draw_angles, found.angles),
            (_draw_displacements, found.diffusion),
            (_draw_correlation, found.vibrations),
            (_draw_vibrations, found.vibrations),
        )
        if there
    ]
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(12, 3.4 * max(1, rows)), layout="constrained")
    grid = figure.subplots(max(1, rows), 3, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid, panels, strict=False):
        panel(axes, found)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=7)
        clean(axes)
    save(figure, path, title)


def _averages(found: Analysis) -> Table:
    columns = "column", "unit", "mean", "error", "std", "g", "left out", ""
    table = _table(f"means; {found.spacing * 1e3:g} fs between values, g of which count as one", *columns)
    for name, item in found.averages.items():
        stem, _, end = name.rpartition("_")
        name, unit = (stem, _UNITS[end]) if end in _UNITS else (name, "")
        digits = max(0, 1 - math.floor(math.log10(item.error or abs(item.mean) * 1e-4 or 1.0)))
        error = "?" if item.error is None else f"{item.error:.{digits}f}"
        numbers = f"{item.mean:.{digits}f}", error, f"{item.std:.{digits}f}"
        left_out = f"{item.discarded * found.spacing:.3g} ps"
        table.add_row(name, unit, *numbers, f"{item.inefficiency:.1f}", left_out, "" if item.settled else "drifts")
    return table


def _radial(found: Analysis) -> Table:
    table = _table("radial distribution functions", "pair", "first maximum", "first minimum", "neighbours up to it")
    for item in found.radial:
        cells = [_length(item.peak), _length(item.minimum), "-" if item.neighbors is None else f"{item.neighbors:.2f}"]
        table.add_row(item.pair, *cells)
    return table


def _internal(found: Analysis) -> Table:
    table = _table("bonds and angles", "kind", "number", "mean", "std", "from", "to")
    for items, unit, form in ((found.bonds, "Å", ".4f"), (found.angles, "°", ".2f")):
        for item in items:
            values = (f"{value:{form}} {unit}" for value in (item.mean, item.std, item.low, item.high))
            table.add_row(item.name, f"{item.count:,}", *values)
    return table


def _motion(found: Analysis) -> Table:
    table = _table(
        f"motion; {found.frames:,} frames, {found.interval * 1e3:g} fs apart, the first {found.skipped:.3g} ps left out",
        "",
        "",
    )
    for item in found.diffusion:
        if item.exponent is None:
            text = "too few frames for a diffusion coefficient"
        elif item.coefficient is None:
            text = f"no diffusion coefficient: the mean-square displacement grows as t^{item.exponent:.2f}, not as t"
        else:
            value, error = item.coefficient, item.error
            text = f"{value:.3g} ± {error:.1g} Å²/ps ({10 * value:.3g} ± {10 * error:.1g} 1e-5 cm²/s); grows as t^{item.exponent:.2f}"
        low, high = item.window
        table.add_row(f"D {item.element}", f"{text}, {low:.3g} to {high:.3g} ps")
    if found.vibrations is not None:
        peaks = ", ".join(f"{peak:.2f} THz ({wavenumber(peak):.0f} cm⁻¹)" for peak in found.vibrations.peaks[:8])
        table.add_row(
            "vibrations",
            f"{peaks or 'no peaks'}; up to {found.vibrations.highest:.1f} THz "
            f"({wavenumber(found.vibrations.highest):.0f} cm⁻¹), what is faster appears at a lower frequency",
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for number, name in enumerate(columns):
        table.add_column(
            name, justify="left" if number == 0 or not any(columns) else "right", overflow="fold", no_wrap=number == 0
        )
    return table


def _length(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} Å"


def _draw_radial(axes, found: Analysis) -> None:
    for item in found.radial:
        axes.plot(item.r, item.g, lw=1, label=item.pair)
    axes.set(title="radial distribution", xlabel="distance (Å)", ylabel="g(r)")


def _draw_bonds(axes, found: Analysis) -> None:
    _draw_histograms(axes, found.bonds)
    axes.set(title="bonds of the first frame", xlabel="length (Å)", ylabel="density (1/Å)")


def _draw_angles(axes, found: Analysis) -> None:
    _draw_histograms(axes, found.angles)
    axes.set(title="angles between them", xlabel="angle (degrees)", ylabel="density (1/degree)")


def _draw_histograms(axes, items) -> None:
    for item in items:
        axes.stairs(item.density, item.edges, label=item.name)


def _draw_displacements(axes, found: Analysis) -> None:
    for item in found.diffusion:
        axes.plot(item.time, item.msd, lw=1, label=item.element)
    axes.axvspan(*found.diffusion[0].window, color="0.93")
    axes.set(title="mean-square displacement (grey: fitted)", xlabel="time (ps)", ylabel="displacement² (Å²)")


def _draw_correlation(axes, found: Analysis) -> None:
    seen = found.vibrations
    axes.plot(seen.time, seen.correlation, lw=0.8, color=BLUE)
    axes.set(
        title="velocity autocorrelation", xlabel="time (ps)", ylabel="share of its start", xlim=(0, min(1.0, seen.time[-1]))
    )


def _draw_vibrations(axes, found: Analysis) -> None:
    seen = found.vibrations
    at = wavenumber(seen.frequency)
    axes.plot(at, seen.density, lw=1, color=BLUE, label="all atoms")
    if len(seen.by_element) > 1:
        for symbol, density in seen.by_element.items():
            axes.plot(at, density, lw=0.8, label=symbol)
    last = np.flatnonzero(seen.density > 0.005 * seen.density.max())[-1]
    axes.set(
        title="vibrational density of states", xlabel="wavenumber (cm⁻¹)", ylabel="density (1/THz)", xlim=(0, 1.1 * at[last])
    )
