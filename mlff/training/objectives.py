"""What a training step minimises: functions of parameters and one batch, given to `mlff.training.step.make_step`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from mlff.basics.numerics import safe_divide
from mlff.config.options import Loss
from mlff.graph import Graph, Labels
from mlff.potential.derivatives import predict
from mlff.training import losses, stretching
from mlff.training.losses import Sums

Params = Any
Apply = Callable[[Params, Graph], Array]  #: parameters, graph -> per-atom energies (N,), eV
Errors = Callable[[Params, Graph, Labels], Sums]  #: of one graph
Objective = Callable[[Params, Graph, Labels, Array, Array], tuple[Array, Sums]]
"""Parameters, graph, labels, progress of training (0 to 1) and a random key of the step to the loss and sums for the report."""


def supervised(
    apply: Apply, config: Loss, scale: float, summed: Callable[[Errors], Errors] = lambda errors: errors
) -> Objective:
    """Errors of energies, forces and stresses, weighted as `config` says. `scale`: see `losses.compare`.

    `summed`: turns the errors of a graph into those of a batch that several devices share (`mlff.training.devices`).
    """
    with_forces, with_stress = losses.terms(config)

    def errors(params: Params, graph: Graph, labels: Labels) -> tuple[Sums, tuple[Array, Array]]:
        if not with_forces:
            labels = labels._replace(has=labels.has | {"forces": jnp.zeros_like(labels.has["forces"])})
        which = () if labels.replayed is None else (labels.replayed,)
        prediction = predict(
            lambda g: apply(params, g, *which), graph, forces=with_forces or with_stress, stress=with_stress
        )
        arguments = prediction, labels, graph, config, scale
        return losses.compare(*arguments), stretching.compare(*arguments)

    def objective(params: Params, graph: Graph, labels: Labels, progress: Array, key: Array) -> tuple[Array, Sums]:
        sums, lacking = summed(errors)(params, graph, labels)
        loss = losses.combine(sums, losses.weights(config, progress))
        return loss + stretching.weight(config) * safe_divide(*lacking), sums

    return objective
