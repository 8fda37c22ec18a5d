"""What a search for a condition found: its runs, the mean pressure of each, and why the target was not reached."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Run:
    """What one run said."""

    condition: float  #: K or Å³
    mean: float  #: in the unit of the target
    error: float | None  #: of the mean, from blocks; None: too few frames
    slope: float  #: change of the mean for 1 K or 1 Å³, by reweighting


@dataclass(frozen=True)
class ConditionOutcome:
    """The whole. The last run is the one at the condition that was found."""

    free: str  #: temperature or volume
    free_unit: str
    target: float
    unit: str
    error: float  #: of the target
    runs: tuple[Run, ...]
    stress_untested: bool  #: no stress among the data of the model
    why: str | None = None  #: it was not reached

    @property
    def reached(self) -> bool:
        """Whether the mean of the last run is within one error bar of the target."""
        return self.why is None

    @property
    def uncertainty(self) -> float | None:
        """Of the condition, K or Å³: error of the mean over the slope; None where one is not known."""
        last = self.runs[-1]
        return None if last.error is None or last.slope == 0 else abs(last.error / last.slope)

    @property
    def notes(self) -> list[str]:
        """Why it was not reached, and what the data and the runs are too few for."""
        lines = [] if self.why is None else [f"not reached: {self.why}"]
        error = self.runs[-1].error
        if error is None or error > self.error:
            known = "is not known" if error is None else f"is {error:.2g} {self.unit}"
            lines.append(f"the error of the mean {known}, the error bar of the target {self.error:g}: raise sampling.frames")
        if self.stress_untested:
            lines.append("the data of the model have no stresses: how good its stress is, nobody has tested")
        return lines

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self) | {
            "condition": self.runs[-1].condition,
            "uncertainty": self.uncertainty,
            "reached": self.reached,
        }
