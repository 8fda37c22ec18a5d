"""The labelled data of a refinement: the gradient of their loss on a batch, and the errors on what is kept aside."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mlff.basics import compiler
from mlff.config.refinement import Refinement
from mlff.data.batching import Batches, make_sample
from mlff.data.dataset import Dataset, Splits
from mlff.graph import Graph, Labels
from mlff.potential.derivatives import predict
from mlff.potential.potential import Potential
from mlff.training import losses
from mlff.training.losses import Sums
from mlff.training.objectives import supervised
from mlff.training.progress import errors


class DataLoss:
    """Of a potential in float64. Parameters are whole trees of `Potential.params`."""

    def __init__(self, config: Refinement, splits: Splits, potential: Potential):
        self._seed, self._potential = config.seed, potential
        self._train, self._valid = (self._batches(data, config.batch_size) for data in (splits.train, splits.valid))
        scale, loss = potential.statistics.energy_scale, config.loss
        stress = any("stress" in sample.labels for sample in self._valid.samples)
        objective = supervised(potential.model.apply, loss, scale)

        def measure(params: dict, graph: Graph, labels: Labels) -> Sums:
            said = predict(lambda g: potential.model.apply(params, g), graph, forces=True, stress=stress)
            return losses.compare(said, labels, graph, loss, scale)

        def total(params: dict, graph: Graph, labels: Labels):
            return objective(params, graph, labels, 1.0, jax.random.key(0))[0]

        self._loss = loss
        self._gradient = jax.jit(jax.grad(total), compiler_options=compiler.quick())
        self._measure = jax.jit(measure, compiler_options=compiler.quick())

    def gradient(self, params: dict, step: int) -> Any:
        """Of the loss on the batch of this step; the order is another in every epoch, and the same when it is repeated."""
        length = self._train.steps_per_epoch
        epoch, position = divmod(step, length)
        plan = self._train.plan(np.random.default_rng([self._seed, epoch]))
        return self._gradient(params, *self._train.build(*plan[min(position, len(plan) - 1)]))

    def look(self, params: dict) -> tuple[float, float | None, float | None]:
        """Loss on the validation data, RMS errors of forces (meV/Å) and of energies (meV per atom); None: no such labels."""
        totals = np.zeros(len(Sums._fields))
        for sizes, indices in self._valid.plan(None):
            totals += np.array(self._measure(params, *self._valid.build(sizes, indices)), float)
        sums = Sums(*totals)
        found = errors(sums, "valid")
        loss = float(losses.combine(sums, losses.weights(self._loss, 1.0)))
        return loss, found.get("valid_forces_rmse"), found.get("valid_energy_rmse_per_atom")

    def _batches(self, data: Dataset, size: int | None) -> Batches:
        samples = [make_sample(one, self._potential.cutoff, self._potential.baseline) for one in data]
        return Batches(samples, size, None, np.float64)
