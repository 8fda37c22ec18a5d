"""A free-energy profile as a table and a PNG plot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from mlff.properties.free_energy import FreeEnergy
from mlff.report.panels import BLUE, ORANGE, clean
from mlff.report.plots import save


def table(found: FreeEnergy) -> Table:
    """One line for each bin."""
    result = Table(title=f"free energy at {found.temperature:g} K, meV", title_justify="left")
    hills = ["from hills"] if found.from_hills is not None else []
    for name in (found.variable, "free energy", "error", *hills):
        result.add_column(name, justify="right")
    columns = [found.energies, found.errors, *([found.from_hills] if hills else [])]
    for value, *others in zip(found.values, *columns, strict=True):
        result.add_row(f"{value:.3f}", *("?" if not np.isfinite(x) else f"{1e3 * x:.1f}" for x in others))
    return result


def plot(found: FreeEnergy, path: Path, title: str) -> None:
    """The profile with its error bars, and the sum of hills if there is one."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    errors = np.nan_to_num(1e3 * found.errors)
    axes.errorbar(found.values, 1e3 * found.energies, errors, color=BLUE, lw=1, capsize=2, label="histogram")
    if found.from_hills is not None:
        axes.plot(found.values, 1e3 * found.from_hills, color=ORANGE, lw=1, ls="--", label="sum of hills")
        axes.legend(frameon=False)
    axes.set(xlabel=found.variable, ylabel="free energy (meV)", title=f"{found.temperature:g} K")
    clean(axes)
    save(figure, path, title)
