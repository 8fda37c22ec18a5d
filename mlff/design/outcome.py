"""What a search for structures found: energies, values, distances from the training data, and what was not reached and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import ase
import numpy as np

from mlff.design.search import BOUND, FLAT, LIMIT, LOST, REACHED, Found
from mlff.design.space import LARGEST_STRAIN, STRAIN_UNIT, UNIT
from mlff.design.targets import Property

_INSIDE = 1.0  #: distance from the training data of their rim
_SAME_ENERGY, _SAME_VALUE = 1e-3, 0.1  #: eV and error bars: two structures closer than this count as one


@dataclass(frozen=True)
class Goal:
    """One target."""

    name: str
    unit: str
    wanted: list[float]
    error: float
    at_minimum: list[float]


@dataclass(frozen=True)
class Candidate:
    """One structure that was found."""

    reached: bool  #: every value within one error bar
    starts: list[int]  #: that came to it; 0 is the minimum
    energy: float  #: eV above the minimum
    values: list[list[float]]  #: of each target, computed anew
    deviations: list[float]  #: of each target, the largest of its values, in error bars
    distance: (
        float | None
    )  #: from the training data of the first model and the others, of the farthest atom; None: not known
    why: str | None  #: it was not reached


@dataclass(frozen=True)
class Outcome:
    """The whole. Candidates: those that reached the target first, by energy."""

    energy_limit: float  #: eV above the minimum
    evaluations: int  #: of energy, properties and their gradient
    stress_untested: bool  #: no stress among the data of the model, though a target needs one
    goals: tuple[Goal, ...]
    candidates: tuple[Candidate, ...]

    @property
    def reached(self) -> bool:
        """Whether there is a structure with all that is wanted."""
        return self.candidates[0].reached

    @property
    def notes(self) -> list[str]:
        """What to know: why nothing was reached, and whether the best structure is one that the data cover."""
        best, lines = self.candidates[0], []
        if not best.reached:
            lines.append(f"not reached: {best.why}")
        if min(one.energy for one in self.candidates) < -_SAME_ENERGY:
            lines.append("a start found a structure of less energy than the minimum: relax it, and start from there")
        return lines + doubts("the best structure", best.distance, self.stress_untested)

    def to_dict(self) -> dict:
        """Plain values for JSON: energies in eV."""
        return asdict(self)


def merged(candidates: list[tuple[Candidate, ase.Atoms]], goals: list[Goal]) -> list[tuple[Candidate, ase.Atoms]]:
    """Sorted, and those that are alike in energy and values as one."""
    kept: list[tuple[Candidate, ase.Atoms]] = []
    for one, atoms in sorted(candidates, key=lambda pair: (not pair[0].reached, *_order(pair[0]))):
        for other, _ in kept:
            if one.reached == other.reached and _alike(one, other, goals):
                other.starts.extend(one.starts)
                break
        else:
            kept.append((one, atoms))
    return kept


def _order(one: Candidate) -> tuple[float, ...]:
    return (one.energy,) if one.reached else (max(one.deviations), one.energy)


def _alike(one: Candidate, other: Candidate, goals: list[Goal]) -> bool:
    apart = [
        np.abs(np.subtract(a, b)).max() / goal.error for a, b, goal in zip(one.values, other.values, goals, strict=True)
    ]
    return abs(one.energy - other.energy) < _SAME_ENERGY and max(apart) < _SAME_VALUE


def explain(found: Found, properties: list[Property], goals: list[Goal], limit: float) -> str | None:
    """Why a search ended before its goal."""
    if found.end == REACHED:
        return None
    places = np.cumsum([0, *(len(one.wanted) for one in properties)])
    said = [
        f"{one.name} {_numbers(found.stopped[a:b])} {one.unit}"
        for one, a, b in zip(properties, places[:-1], places[1:], strict=True)
    ]
    stop = " and ".join(said)
    there = f"the search stopped at {stop}, {found.stopped_energy:.3g} eV above the minimum"
    if found.end == LOST:
        return (
            "on the way atoms came onto each other, or found no rest in a cell; take other starts (seed) or a nearer target"
        )
    if found.end == BOUND:
        return f"a strain of {100 * LARGEST_STRAIN:.0f} % is the largest that is tried; {there}"
    if found.end == LIMIT:
        return (
            f"the energy limit of {limit:.3g} eV forbids it: {stop} takes {found.stopped_energy:.3g} eV; "
            "raise energy_limit if such structures are acceptable"
        )
    assert found.end == FLAT
    slopes = [
        f"{slope:.2g} {one.unit}"
        for one, a, b in zip(properties, places[:-1], places[1:], strict=True)
        for slope in [found.slopes[a:b].max()]
    ]
    more = ", or the targets exclude each other" if len(goals) > 1 else ""
    return (
        f"nothing that is free brings it nearer{more}; {there}, where {UNIT:g} Å and a strain of "
        f"{100 * STRAIN_UNIT:g} % change it by {' and '.join(slopes)} at most"
    )


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.5g}" for value in values)


def doubts(what: str, distance: float | None, stress_untested: bool) -> list[str]:
    """Where the training data do not reach: a line each; `distance` of `what` from them, None: not known."""
    lines = []
    if stress_untested:
        lines.append("the data of the model have no stresses: how good its stress is, nobody has tested")
    if distance is None:
        lines.append("distance from the training data not known: no model knows its own")
    elif distance > _INSIDE:
        lines.append(
            f"{what} is outside the training data (distance {distance:.2g}, their rim is 1): check it with the reference method, "
            "and train on it"
        )
    return lines
