"""Pieces of HTML: every text that goes in is escaped here, and JSON cannot end its element."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from mlff.basics.errors import printable


@dataclass(frozen=True)
class Markup:
    """A piece of HTML that is whole; anything else is text and will be escaped."""

    html: str


def render(piece: object) -> str:
    """The HTML of a piece, of text or of a list of them."""
    if isinstance(piece, Markup):
        return piece.html
    if isinstance(piece, list | tuple):
        return "".join(map(render, piece))
    return escape(printable(str(piece)))


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """An element; attributes that are None are left out, `class_` is class, `data_set` is data-set."""
    named = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    text = "".join(f' {key}="{render(value)}"' for key, value in named)
    return Markup(f"<{name}{text}>{render(content)}</{name}>")


def preformatted(text: str) -> Markup:
    """Several lines with their indentation."""
    lines = [" " * (len(line) - len(line.lstrip(" "))) + render(line) for line in text.splitlines()]
    return tag("pre", Markup("\n".join(lines)))


def table(headings: Sequence[object], rows: Iterable[Sequence[object]], texts: int = 1, name: str | None = None) -> Markup:
    """A table whose first `texts` columns are text and whose others are numbers; `name` is its class."""
    side = ["text"] * texts + ["number"] * (len(headings) - texts)
    head = tag("tr", *(tag("th", heading, class_=kind, scope="col") for heading, kind in zip(headings, side, strict=True)))
    body = [tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, side, strict=True))) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body), class_=name), class_="scroll")


def facts(rows: Iterable[tuple[str, object]]) -> Markup:
    """Names and what belongs to them."""
    pairs = [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows]
    return tag("dl", *pairs)


def details(summary: str, *content: object) -> Markup:
    """Content that opens by a click."""
    return tag("details", tag("summary", summary), *content)


def section(name: str, title: str, *content: object) -> Markup:
    """A part of the page, to which #name leads."""
    return tag("section", tag("h2", title), *content, id=name)


def note(text: str) -> Markup:
    """A sentence that explains, or says what is missing; between ` is code."""
    parts = [tag("code", part) if k % 2 else Markup(escape(part)) for k, part in enumerate(text.split("`"))]
    return tag("p", *parts, class_="note")


def data(name: str, values: object) -> Markup:
    """JSON for a script of the page, in an element of this id."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(f'<script type="application/json" id="{escape(name)}">{text}</script>')


def number(value: float | None, sign: str = "") -> str:
    """An error with three digits; empty without one. `sign` + shows that of positive ones."""
    if value is None:
        return ""
    return (f"{value:{sign},.0f}" if 99.95 <= abs(value) < 1e9 else f"{value:{sign}#.3g}").replace("-", "\u2212")
