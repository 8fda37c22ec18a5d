"""What two labels say of each other: the result of holding one against the other, and the slope it rests on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True)
class Comparison:
    """One label held against another."""

    labels: str  #: what is compared, e.g. "energies and forces"
    method: str  #: how
    verdict: str  #: consistent, contradiction, doubtful or untested
    what: str  #: in words
    code: str = ""  #: of the finding, where there is one
    do: str = ""
    slope: float | None = None  #: of what the one label says on what the other says; 1 is agreement
    correlation: float | None = None
    number: int = 0  #: of pairs of structures, or of components
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)), repr=False, compare=False)  #: (k, 2), eV

    def to_dict(self) -> dict:
        """For JSON, without the points."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "points"}


def robust_slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of a line through the origin (least absolute deviations, mean of both directions) and rank correlation."""
    there = (x != 0) & (y != 0)
    if there.sum() < 2:
        return 0.0, 0.0
    ahead = _weighted_median(y[there] / x[there], abs(x[there]))
    rest = abs(y - ahead * x)
    near = there & (rest <= max(10 * np.median(rest[there]), 1e-3 * np.median(abs(y[there]))))
    back = _weighted_median(x[near] / y[near], abs(y[near]))
    ranks = rankdata(np.concatenate([x, -x])), rankdata(np.concatenate([y, -y]))
    correlation = float(np.corrcoef(*ranks)[0, 1])
    return (float(np.sign(ahead) * np.sqrt(ahead / back)) if ahead * back > 0 else 0.0), correlation


def _weighted_median(values, weights):
    order = np.argsort(values)
    sums = np.cumsum(weights[order])
    return values[order][np.searchsorted(sums, sums[-1] / 2)]
