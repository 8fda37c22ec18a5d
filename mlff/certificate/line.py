"""One line of a certificate: a figure, and the limit it has to keep."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """`value` None: it could not be measured, which fails where there is a limit. `limit` None: for information only."""

    name: str
    value: float | None
    unit: str
    limit: float | None  #: largest absolute value that passes
    note: str  #: on what it was measured, and what a failure means
    least: bool = False  #: the limit is the smallest value that passes

    @property
    def passed(self) -> bool:
        if self.limit is None or self.value is None:
            return self.limit is None
        return bool(self.value >= self.limit if self.least else abs(self.value) <= self.limit)

    @classmethod
    def from_dict(cls, values: dict) -> Line:
        """The line of plain values (its fields; `passed` is looked at anew). Raises TypeError or ValueError: of no line."""
        line = cls(**{name: value for name, value in values.items() if name != "passed"})
        texts, figures = (line.name, line.unit, line.note), [x for x in (line.value, line.limit) if x is not None]
        numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in figures)
        if not (all(isinstance(text, str) for text in texts) and numbers and isinstance(line.least, bool)):
            raise ValueError("a line has values of other types")
        return line

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.3g} {self.unit}".rstrip()
        return f"{self.name}: {value}" + ("" if self.limit is None else f" (limit {self.limit:g})") + f"; {self.note}"


def shortened(name: str, length: float, standard: float) -> str:
    """A test that is shorter than usual, in ps, says so wherever its name stands."""
    return name if length >= standard else f"{name} ({length:g} of {standard:g} ps)"
