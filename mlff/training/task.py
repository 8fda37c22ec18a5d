"""What one training is of: options, data, model and first weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import jax

from mlff.basics.runtime import on_host
from mlff.config.options import Config
from mlff.data.batching import Batches
from mlff.graph import Graph, Labels
from mlff.models.common import Statistics
from mlff.training import losses, starts
from mlff.training.devices import Devices
from mlff.training.losses import Sums
from mlff.training.objectives import Apply, Objective, Params, supervised
from mlff.training.step import State, initial_state, make_eval_step


@dataclass(frozen=True)
class Task:
    """What stays fixed in the course of a run."""

    config: Config
    elements: tuple[int, ...]
    baseline: dict[int, float]  #: Z -> eV
    statistics: Statistics
    apply: Apply
    params: Params  #: initial ones
    train: Batches
    valid: Batches
    ranges: dict = field(default_factory=dict)  #: of the potential to start from, see `mlff.training.ranges`
    devices: Devices = field(default_factory=Devices)  #: that share each step
    activations: Callable[[Params, Graph], dict] | None = None  #: see `mlff.training.activations`
    others: tuple[Params, ...] = ()  #: initial parameters of further starts (`mlff.training.starts`)

    @property
    def starts(self) -> int:
        """How many."""
        return 1 + len(self.others)

    def initial_state(self) -> State:
        """Before the first step, of all starts."""
        return starts.side_by_side([initial_state(self.config, params) for params in (self.params, *self.others)])

    @property
    def objective(self) -> Objective:
        """What its training minimises."""
        return supervised(self.apply, self.config.loss, self.statistics.energy_scale, self.devices.summed)

    def measure(self) -> Callable[[Params, Graph, Labels], jax.Array]:
        """`measure(params, graph, labels) -> report vector` of a batch of the validation set, compiled."""
        stress = any("stress" in sample.labels for sample in self.valid.samples)
        scale, summed = self.statistics.energy_scale, self.devices.summed
        return make_eval_step(self.apply, self.config, scale, stress, summed, self.starts)

    def score(self, sums: Sums, loss: float) -> float:
        """What decides which epoch is best: the loss with the final weights, from sums over the validation set.

        `loss`: the mean over its structures of the loss of their batch.
        """
        with on_host():
            return float(losses.combine(sums, losses.weights(self.config.loss, 1.0)))

    def describe(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        shapes = ", ".join(f"{s.structures} x {s.atoms} atoms x {s.neighbors} neighbours" for s in self.train.sizes)
        stretched = sum(sample.direction is not None for sample in self.train.samples)
        more = f", {stretched:,} more with stretched bonds" if stretched else ""
        return (
            f"{len(self.train.samples) - stretched:,} training and {len(self.valid.samples):,} validation structures{more}, "
            f"{count:,} parameters{f', {self.starts} starts' if self.others else ''}, {self.train.steps_per_epoch:,} steps per epoch ({shapes})"
        )
