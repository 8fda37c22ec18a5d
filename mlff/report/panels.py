"""Single panels of plots, drawn on axes that are given. Units stand on every axis."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.ticker import LogFormatter, MaxNLocator, NullFormatter

from mlff.basics.errors import DataError
from mlff.basics.properties import PREDICTED, PROPERTIES
from mlff.certificate.line import Line
from mlff.certificate.scans import Scan
from mlff.training.parity import Parity, Points

BLUE, ORANGE, GREY, PALE = "#1f5fa8", "#d8702a", "#8a8f98", "#e6e6e6"
_DENSITY = ListedColormap(colormaps["viridis"](np.linspace(0.2, 1.0, 256)))  #: to be seen on white and on black
_SETS = (BLUE, ORANGE, "#3a9d8c", "#8f6bb3", GREY)
_MANY = 5000  #: points; beyond, a density map instead of dots
#: of the points of a `Parity`: title, unit of the axes, errors in which unit and how many of them in one of the axes
_QUANTITIES = {
    "energy": ("energy per atom less the mean", "meV/atom", "meV/atom", 1),
    "forces": ("force components", "eV/Å", "meV/Å", 1000),
    "stress": ("stress components", "GPa", "GPa", 1),
}
#: of the lines of metrics: name without train_ and valid_, label, unit
_ERRORS = tuple((PROPERTIES[name].rmse, f"{name} RMSE", PROPERTIES[name].rmse_unit) for name in PREDICTED)


def plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def quantities(parity: Parity) -> list[str]:
    """Those of `parity` (energy, forces, stress) that have points."""
    return [name for name in _QUANTITIES if getattr(parity, name) is not None]


def parity(axes: Axes, quantity: str, points: Points) -> None:
    """Predictions against reference, dots or for many points their density, and the errors."""
    title, unit, error_unit, scale = _QUANTITIES[quantity]
    reference, predicted = points.reference, points.predicted
    low, high = min(reference.min(), predicted.min()), max(reference.max(), predicted.max())
    margin = 0.04 * (high - low) or 1e-3
    low, high = low - margin, high + margin
    axes.plot([low, high], [low, high], color=GREY, lw=1, zorder=3, ls=(0, (4, 3)))
    if len(reference) > _MANY:
        counts, x, y = np.histogram2d(reference, predicted, bins=120, range=[[low, high]] * 2)
        image = axes.pcolormesh(x, y, np.ma.masked_equal(counts.T, 0), norm=LogNorm(), cmap=_DENSITY, rasterized=True)
        axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label="count")
    else:
        axes.plot(reference, predicted, "o", ms=3.5, color=BLUE, alpha=0.5, mew=0, rasterized=len(reference) > 500)
    errors = f"RMSE {scale * points.rmse:.3g} {error_unit}\nMAE  {scale * points.mae:.3g} {error_unit}\nn = {points.count:,}"
    axes.text(0.04, 0.96, errors, transform=axes.transAxes, va="top", fontsize=9)
    axes.set(xlim=(low, high), ylim=(low, high), title=title)
    axes.set_box_aspect(1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    axes.set(xlabel=f"reference ({unit})", ylabel=f"predicted ({unit})")
    clean(axes)


def curves(lines: Sequence[dict]) -> list[tuple[str, str | None, str]]:
    """(key of training, key of validation, label of the axis) of the curves in the lines of a metrics.jsonl."""
    found: list[tuple[str, str | None, str]] = [("train_loss", None, "loss")]
    for name, label, unit in _ERRORS:
        if any(line.get(f"valid_{name}") is not None for line in lines):
            found.append((f"train_{name}", f"valid_{name}", f"{label} ({unit})"))
    return found


def curve(axes: Axes, lines: Sequence[dict], train: str, valid: str | None, label: str) -> None:
    """A loss or an error over the epochs; the least of validation is marked. Of several starts the loss of each."""
    unit = label.partition("(")[2].rstrip(")")
    for key, color, name in ((train, GREY, "training"), (valid, BLUE, "validation")):
        points = [(line["epoch"], line[key]) for line in lines if key and line.get(key) is not None and line[key] > 0]
        if points:
            epochs, values = np.array(points, float).T
            axes.plot(epochs, values, color=color, lw=1.6, marker="o" if len(points) < 30 else None, ms=3, label=name)
            if key == valid:
                best = int(values.argmin())
                axes.plot(epochs[best], values[best], "o", color=ORANGE, ms=6, label=f"best: {values[best]:.3g} {unit}")
    if valid is None:
        for name, points in series(lines, "valid_loss/").items():
            axes.plot(*zip(*points, strict=True), lw=1, label=f"validation, start {name}")
    axes.set_yscale("log")
    _plain_log(axes)
    axes.set(xlabel="epoch", ylabel=label)
    axes.legend(frameon=False, fontsize=8)
    clean(axes)


def series(lines: Sequence[dict], prefix: str) -> dict[str, list[tuple[int, float]]]:
    """(epoch, value) of each key of metrics that begins so, by what follows; a key without values is left out."""
    names = {key: None for line in lines for key in line if key.startswith(prefix)}
    found = {key: [(line["epoch"], line[key]) for line in lines if line.get(key) is not None] for key in names}
    return {key.removeprefix(prefix): points for key, points in found.items() if points}


def layers(axes: Axes, found: dict[str, list[tuple[int, float]]], label: str) -> None:
    """A line for each layer over the epochs."""
    for name, points in found.items():
        axes.plot(*zip(*points, strict=True), lw=1.4, label=name)
    axes.set(xlabel="epoch", ylabel=label)
    clean(axes)


def certificate_lines(axes: Axes, lines: Sequence[Line]) -> None:
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
    clean(axes)


def scan(axes: Axes, curve: Scan) -> None:
    """An energy along a distance, with its minima (dotted) and kinks (orange)."""
    axes.plot(curve.distances, curve.energies, color=BLUE, lw=1.2)
    for r in curve.minima:
        axes.axvline(r, color=GREY, lw=0.8, ls=":")
    for r in curve.kinks:
        axes.axvline(r, color=ORANGE, lw=1.2)
    depth = max(1.0, -float(np.nanquantile(curve.energies, 0.1)))
    axes.set_ylim(-1.4 * depth, 3 * depth)
    axes.set(title=plain(curve.name), xlabel="distance (Å)", ylabel="energy (eV)")
    clean(axes)
    axes.title.set_fontsize(8)


def distances(axes: Axes, binned: dict[str, list[dict]]) -> None:
    """Force errors of sets by the distance of the atoms from the training data; `binned`: name -> `Metrics.by_distance`."""
    names = list(dict.fromkeys(row["name"] for rows in binned.values() for row in rows))
    width = 0.8 / len(binned)
    for number, (name, rows) in enumerate(binned.items()):
        found = [(names.index(row["name"]), row["forces_rmse"]) for row in rows if row["forces_rmse"] is not None]
        if found:
            at, values = np.array(found, float).T
            axes.bar(
                at + (number - (len(binned) - 1) / 2) * width,
                values,
                width,
                label=plain(name),
                color=_SETS[number % len(_SETS)],
            )
    axes.set_xticks(range(len(names)), names)
    axes.set(yscale="log", ylabel="force RMSE (meV/Å)", title="distance from the training data")
    _plain_log(axes)
    axes.legend(frameon=False, fontsize=7)
    clean(axes)


def clean(axes: Axes) -> None:
    """A pale grid behind, no frame above and on the right."""
    axes.grid(color=PALE, lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.title.set_fontsize(11)


def read_log(path: str | Path) -> list[dict]:
    """The records of a metrics.jsonl or of a log of molecular dynamics (.jsonl, .csv). Raises DataError."""
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
