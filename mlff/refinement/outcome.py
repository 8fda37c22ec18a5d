"""What came of a refinement: each target before and after, errors on the data before and after, and what was not reached and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from mlff.refinement.observables import Goal

_NOTHING = 0.9  #: of the deviation at the start that is left: it has hardly changed
_ROSE = 0.02  #: share by which errors of the data rose: more than chance


@dataclass(frozen=True)
class Look:
    """One look at the validation data."""

    step: int
    deviations: tuple[float, ...]  #: of the targets, in error bars (root mean square)
    forces: float | None  #: meV/Å, root mean square; None: no forces in the data
    energy: float | None  #: meV per atom, root mean square
    loss: float  #: of the validation data over what it was at the start

    def rise(self, start: Look) -> float:
        """Share by which the error of forces (without any, of energies) is above that at the start."""
        here, there = (self.forces, start.forces) if start.forces is not None else (self.energy, start.energy)
        return here / max(there, 1e-12) - 1.0


@dataclass(frozen=True)
class Row:
    """One target."""

    name: str
    unit: str
    target: list[float]
    error_bars: list[float]
    before: list[float]
    after: list[float]
    statistical_errors: list[float] | None  #: of `after`; None: exact
    deviation_before: float  #: root mean square, in error bars
    deviation_after: float

    @property
    def reached(self) -> bool:
        """Within its error bars."""
        return self.deviation_after <= 1.0


@dataclass(frozen=True)
class Outcome:
    """The whole."""

    steps: int  #: done
    kept: int  #: step whose parameters were kept
    targets: tuple[Row, ...]
    data: dict[
        str, dict[str, dict[str, float | None]]
    ]  #: set -> before and after -> forces_rmse (meV/Å), energy_rmse_per_atom (meV)
    verdicts: tuple[str, ...]  #: one line for each target that was not reached, or whose value is not known well enough

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict) -> Outcome:
        """What `to_dict` wrote."""
        rows = tuple(Row(**row) for row in content["targets"])
        return cls(**content | {"targets": rows, "verdicts": tuple(content["verdicts"])})


def row(goal: Goal, before: np.ndarray, after: np.ndarray, errors: np.ndarray | None) -> Row:
    """Of one target."""
    return Row(
        goal.name,
        goal.unit,
        goal.values.tolist(),
        goal.errors.tolist(),
        before.tolist(),
        after.tolist(),
        None if errors is None else errors.tolist(),
        goal.deviation(before),
        goal.deviation(after),
    )


def verdicts(rows: list[Row], looks: list[Look], limit: float) -> tuple[str, ...]:
    """A line for each target that was not reached: whether the data forbid it, or what else; `limit` of the rise of force errors."""
    lines = []
    for number, one in enumerate(rows):
        if one.statistical_errors is not None and np.median(np.array(one.statistical_errors) / one.error_bars) > 1:
            lines.append(f"{one.name}: the run knows it less well than its error bars; take more frames (sampling.frames)")
        if not one.reached:
            lines.append(f"{one.name}: {_why(number, one, looks, limit)}")
    return tuple(lines)


def _why(number: int, one: Row, looks: list[Look], limit: float) -> str:
    start = looks[0]
    left = f"{one.deviation_after:.3g} error bars from its target ({one.deviation_before:.3g} before)"
    closest = min(looks, key=lambda look: look.deviations[number])
    rise, near = closest.rise(start), closest.deviations[number]
    if rise > limit:
        return (
            f"not reached, {left}; the data contradict it: at step {closest.step} it was {near:.3g} error bars away, but "
            f"errors on the validation data {100 * rise:.0f} % higher (allowed: {100 * limit:.0f} %)"
        )
    if one.deviation_after > _NOTHING * one.deviation_before:
        return (
            f"not reached, {left}; it hardly moves: more steps or a larger optimizer.learning_rate, or no parameters of this "
            "model give it"
        )
    if closest.loss > 1 + _ROSE:
        return (
            f"not reached, {left}; the data pull the other way: their loss rose by {100 * (closest.loss - 1):.0f} % as it came nearer; "
            "more steps (--set steps=N), or a larger weight"
        )
    return f"not reached, {left}, at no cost for the data: more steps (--set steps=N) may do"
