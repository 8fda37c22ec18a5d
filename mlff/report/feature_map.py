"""The map of structures or atoms as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from mlff.properties.feature_map import FeatureMap
from mlff.report import panels, plots


def plot(found: FeatureMap, path: str | Path, title: str | None = None) -> None:
    """Points, coloured by their values: a legend of kinds, or a colour bar."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    size = 14 if len(found.points) < 2000 else 4
    for number, kind in enumerate(found.kinds):
        mine = found.values == kind
        color = colormaps["tab10" if len(found.kinds) <= 10 else "tab20"](number % 20)
        axes.scatter(*found.points[mine].T, s=size, color=color, lw=0, label=panels.plain(kind), rasterized=True)
    if found.kinds:
        axes.legend(frameon=False, fontsize=8, title=panels.plain(found.color), loc="best")
    else:
        drawn = axes.scatter(*found.points.T, s=size, c=found.values, cmap="viridis", lw=0, rasterized=True)
        figure.colorbar(drawn, ax=axes, label=panels.plain(found.color))
    for name, share in zip("xy", found.shares, strict=True):
        number = "first" if name == "x" else "second"
        axes.set(**{f"{name}label": f"{number} component ({100 * share:.0f} % of the variance)"})
    panels.clean(axes)
    plots.save(figure, path, title)
