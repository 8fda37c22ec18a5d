"""The search from one start: the least energy at which the properties are as wanted, reached by way of goals in between.

The goal moves from the values at the minimum to those wanted. For each goal in between the energy is minimised under the
condition that the values are there, by the method of multipliers (augmented Lagrangian; Hestenes, J. Optim. Theory Appl. 4,
303 (1969)) with L-BFGS, from where the last one ended: the structure never leaves the least energy for its values far behind.
Where a goal cannot be reached, or costs more than the limit, the way there is halved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from mlff.basics.errors import StructureError
from mlff.design.problem import Problem, Pull
from mlff.simulation.guard import SimulationError

_SHARE = 0.25  #: of the way, at first
_SHORTEST = 1 / 256  #: of the way: then it ends
_NEAR = 0.95  #: of the limit of the energy: the search ends there too
_ROUNDS = 12  #: of the method of multipliers
_CLOSE = 0.1  #: error bars: a goal is reached
_SLOW = 0.25  #: where more than this share of the deviation is left after a round, it is drawn more strongly
_STIFFER = 5.0
_FORCE = 2e-5  #: eV: largest component of the gradient by x at which a minimisation ends; 1e-4 eV/Å
_STUCK = 3  #: rounds that leave more than 0.9 of the deviation, in spite of that: then no structure has the values
_ITERATIONS = 300  #: of one minimisation

#: why a search ended
REACHED, LIMIT, FLAT, BOUND, LOST = "reached", "limit", "flat", "bound", "lost"


@dataclass(frozen=True, eq=False)
class Found:
    """Where a search ended."""

    x: np.ndarray  #: of `Space`
    followed: np.ndarray  #: (n, 3) Å, see `Space`
    end: str  #: one of the reasons
    evaluations: int  #: of energy, properties and gradient
    stopped: np.ndarray  #: (m,) values where the search could not go on
    stopped_energy: float  #: eV, there
    slopes: np.ndarray  #: (m,) of the values there, for a change of all coordinates of 0.2 Å


class Search:
    """Of one problem: the minimum, and from it or from elsewhere to what is wanted."""

    def __init__(self, problem: Problem, note: Callable[[str], None] = lambda text: None):
        """`note` is told how far a search is."""
        self.problem, self._note = problem, note
        self._count = 0
        space = problem.space
        free = Pull(*np.zeros((2, len(problem.errors))), 0.0)
        x = self._minimise(np.zeros(space.size), free)
        point = problem.at(x, free)
        self.minimum, self.energy, self.values = x, point.energy, point.values  #: of the least energy nearby
        self.rest = space.followed.copy()  #: `followed` there

    def run(self, wanted: np.ndarray, limit: float, start: tuple[np.ndarray, np.ndarray] | None = None) -> Found:
        """Towards `wanted` (m,), at most `limit` eV above the minimum; `start`: x and `followed` less those of the minimum."""
        problem, space = self.problem, self.problem.space
        self._count = 0
        moved, follow = (0.0, 0.0) if start is None else start
        x, space.followed = self.minimum + moved, self.rest + follow
        best = self.minimum.copy(), self.rest.copy()
        whole = (wanted - self.values) / problem.errors
        pull = Pull(self.values, np.zeros_like(whole), 20 * limit / max(whole @ whole, 1.0))
        done, failed, height = 0.0, None, 0.0
        end, values, energy, slopes = REACHED, self.values, 0.0, np.zeros_like(whole)
        while done < 1.0:
            goal = min(1.0, done + _SHARE) if failed is None else 0.5 * (done + failed)
            pull = pull._replace(wanted=self.values + goal * (wanted - self.values))
            self._note(f"{100 * goal:.3g} % of the way, {self._count} evaluations")
            there, reason, after, high = self._reach(x, pull, limit)
            if reason == REACHED:
                x, pull, done, height, best = there, after, goal, high, (there, space.followed.copy())
                continue
            end, (values, energy, slopes) = reason, self._seen(there, pull)
            x, space.followed = best[0], best[1].copy()
            if done == 0.0 and start is not None:  # from the minimum then
                start = None
                continue
            failed = goal
            if failed - done < _SHORTEST or (end == LIMIT and height > _NEAR * limit):
                break
        reason = REACHED if done == 1.0 else end
        return Found(best[0], best[1], reason, self._count, values, energy, slopes)

    def _reach(self, x: np.ndarray, pull: Pull, limit: float) -> tuple[np.ndarray, str, Pull, float]:
        """The least energy with the values wanted: x, how it ended, how they were drawn there, eV above the minimum."""
        before = high = np.inf
        stuck = 0
        try:
            for _ in range(_ROUNDS):
                x = self._minimise(x, pull)
                point = self.problem.at(x, pull)
                away = (point.values - pull.wanted) / self.problem.errors
                deviation, high = np.abs(away).max(), point.energy - self.energy
                pull = pull._replace(multipliers=pull.multipliers + pull.strength * away)
                if deviation <= _CLOSE:
                    return x, REACHED if high <= limit else LIMIT, pull, high
                stuck += deviation > 0.9 * before
                if not np.isfinite(deviation) or high > 2 * limit or stuck == _STUCK:
                    break
                if deviation > _SLOW * before:
                    pull = pull._replace(strength=_STIFFER * pull.strength)
                before = deviation
        except (StructureError, SimulationError):  # atoms on top of each other, or no minimum in this cell
            return x, LOST, pull, high
        if self.problem.space.at_bound(x):
            return x, BOUND, pull, high
        return x, LIMIT if high > limit else FLAT, pull, high

    def _minimise(self, x: np.ndarray, pull: Pull) -> np.ndarray:
        if not len(x):
            return x

        def ask(x: np.ndarray) -> tuple[float, np.ndarray]:
            self._count += 1
            point = self.problem.at(x, pull)
            return point.objective, point.gradient

        options = {"maxcor": 30, "gtol": _FORCE, "ftol": 1e-13, "maxiter": _ITERATIONS}
        return minimize(ask, x, jac=True, method="L-BFGS-B", bounds=self.problem.space.bounds, options=options).x

    def _seen(self, x: np.ndarray, pull: Pull) -> tuple[np.ndarray, float, np.ndarray]:
        try:
            point = self.problem.at(x, pull)
            return point.values, point.energy - self.energy, self.problem.slopes(x)
        except (StructureError, SimulationError):
            nothing = np.full(len(self.problem.errors), np.nan)
            return nothing, np.nan, nothing
