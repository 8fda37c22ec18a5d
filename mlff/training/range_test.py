"""The learning-rate range test: a few steps at rates that rise from far too small to far too large (Smith, WACV 2017, 464)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from mlff.training import plasticity
from mlff.training.step import Report, initial_state, make_step
from mlff.training.task import Task

LOWEST, HIGHEST = 1e-5, 1.0
STEPS = 150
_WORSE = 4.0  #: times the lowest loss: the test ends
_SMOOTH = 0.9  #: share of the old mean in a moving average of the loss
_SAFE = 5.0  #: the suggestion is the rate of the lowest loss over this; the moving average lags behind by a factor of two


@dataclass(frozen=True)
class RangeTest:
    """What the loss did at each learning rate."""

    rates: np.ndarray  #: (n,), rising
    losses: np.ndarray  #: (n,) of the batches, before the step
    smooth: np.ndarray  #: (n,) moving average of these

    @property
    def suggestion(self) -> float | None:
        """A fifth of the rate at which the smoothed loss is lowest, two digits; None where it never fell by a tenth."""
        if not len(self.smooth):
            return None
        lowest = int(np.argmin(self.smooth))
        if not self.smooth[lowest] < 0.9 * self.smooth[0]:
            return None
        return float(f"{self.rates[lowest] / _SAFE:.1e}")


def range_test(task: Task, steps: int = STEPS, lowest: float = LOWEST, highest: float = HIGHEST) -> RangeTest:
    """Train `task` anew for `steps` steps, each at a learning rate that is the same factor larger, from `lowest` to `highest`.

    Ends early where the loss is no number or four times its lowest. The task itself is left as it is.
    """
    config = task.config
    step = make_step(task.objective, config, plasticity.factors(config.optimizer, task.params))
    state = initial_state(config, task.params)
    full = config.optimizer.schedule.warmup_fraction  #: where the schedule is 1
    rng = np.random.default_rng(config.seed)
    plan: list = []
    losses, smooth, mean = [], [], 0.0
    rates = np.geomspace(lowest, highest, steps)
    for number, rate in enumerate(rates, 1):
        plan = plan or task.train.plan(rng)
        graph, labels = task.train.build(*plan.pop())
        controls = np.array([full, rate / config.optimizer.learning_rate, 0.0], graph.positions.dtype)
        state, vector = step(state, controls, graph, labels)
        report = Report.unpack(jax.device_get(vector))
        if report.skipped:
            break
        mean = _SMOOTH * mean + (1 - _SMOOTH) * report.loss
        losses.append(report.loss)
        smooth.append(mean / (1 - _SMOOTH**number))
        if smooth[-1] > _WORSE * min(smooth):
            break
    return RangeTest(rates[: len(losses)], np.array(losses), np.array(smooth))
