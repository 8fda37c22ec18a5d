"""A panel of a plot as SVG that stands in an HTML page and takes its colours from the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mlff.report.panels import BLUE, GREY, ORANGE, PALE

_INK = "#0f1011"  #: stands for the page's own colour of text
_COLOURS = {_INK: "currentColor", BLUE: "var(--blue)", ORANGE: "var(--orange)", GREY: "var(--grey)", PALE: "var(--pale)"}
_STYLE = {name: _INK for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")}
_STYLE |= {"svg.fonttype": "none", "axes.facecolor": "none", "axes.linewidth": 0.6}
_NOTHING = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def svg(draw: Callable[[Axes], None], width: float, height: float, name: str) -> str:
    """An <svg> element of what `draw` puts on the axes, `width` by `height` (inches).

    `name` is unique on the page; the element refers to nothing outside it.
    """
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of letters that matplotlib's fonts lack: the page has its own
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        draw(figure.subplots())
        FigureCanvasSVG(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", dpi=144, metadata=_NOTHING)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)  # of groups, to which nothing refers
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)  # of the whole page: see report.css
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for there, here in _COLOURS.items():
        text = text.replace(there, here)
    size = r'<svg width="[\d.]+pt" height="[\d.]+pt"'
    return re.sub(size, f'<svg role="img" style="max-width: {width * 72 * 1.25:.0f}px"', text, count=1)
