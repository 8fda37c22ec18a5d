"""What a search for a composition found: the mean at each composition that was looked at, and the shares that have the wanted one."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mlff.design.outcome import doubts


@dataclass(frozen=True)
class Mixture:
    """All decorations of one composition, relaxed."""

    count: int  #: sites of the second element
    share: float  #: of all sites
    mean: float  #: over the decorations, in the unit of the target
    error: float  #: of the mean, from the scatter of the decorations


@dataclass(frozen=True)
class Solution:
    """A share between two neighbouring compositions of the cell."""

    share: float
    error: float  #: what the error of the mean leaves open
    slope: float  #: change of the mean for a share of 1, around
    lower: Mixture
    upper: Mixture


@dataclass(frozen=True)
class CompositionOutcome:
    """The whole."""

    pair: tuple[str, str]  #: elements; shares are of the second
    sites: int
    name: str  #: of the property
    unit: str
    target: float
    error: float  #: of the target
    decorations: int
    mixtures: tuple[Mixture, ...]  #: all that were looked at, by composition
    solutions: tuple[Solution, ...]  #: by share
    distance: float | None  #: from the training data, of the farthest atom of the structures found; None: not known
    stress_untested: bool  #: no stress among the data of the model

    @property
    def notes(self) -> list[str]:
        """What the decorations, the cell or the data are too few for."""
        lines = []
        ends = [one for solution in self.solutions for one in (solution.lower, solution.upper)]
        if (worst := max(one.error for one in ends)) > self.error:
            lines.append(
                f"the error of a mean is {worst:.2g} {self.unit}, the error bar of the target {self.error:g}: raise decorations, or take a "
                "larger cell"
            )
        if all(abs(one.mean - self.target) > self.error for one in ends):
            lines.append("no whole number of atoms in this cell has the mean within its error bar: take a larger cell")
        if len(self.solutions) > 1:
            lines.append(f"{len(self.solutions)} shares have the mean")
        return lines + doubts("a structure", self.distance, self.stress_untested)

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)
