"""The compiled functions of training: one optimisation step, and the errors of one batch.

Both are pure: everything a run changes is in `State`. What differs from step to step without changing a shape
(progress, learning-rate factor) comes in as numbers, so there is one compilation per padded size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mlff.basics import compiler
from mlff.config.options import Config
from mlff.graph import Graph, Labels
from mlff.potential.derivatives import predict
from mlff.training import losses, optimizer, plasticity
from mlff.training.losses import Sums
from mlff.training.objectives import Apply, Objective, Params
from mlff.training.plasticity import Factors


class State(NamedTuple):
    """What a step changes."""

    params: Params
    average: Params  #: moving average of the parameters: what is validated and saved
    optimizer: optax.OptState
    updates: Array  #: () int32, steps taken (skipped ones not counted)


class Report(NamedTuple):
    """What a step or a batch of validation says, one vector on the device."""

    loss: float
    gradient_norm: float
    skipped: float  #: 1 if the loss or the gradient was not finite, so that nothing was changed
    sums: Sums

    @classmethod
    def unpack(cls, vector: Array) -> Report:
        loss, norm, skipped, *sums = np.asarray(vector, np.float64)
        return cls(loss, norm, skipped, Sums(*sums))


def initial_state(config: Config, params: Params) -> State:
    """The state before the first step; it owns its arrays, for a step consumes them."""
    optimizer_state = jax.jit(optimizer.make_optimizer(config.optimizer, 0.0).init)(params)
    return copied(State(params, params, optimizer_state, np.zeros((), np.int32)))


@jax.jit
def copied(tree):
    """The same values in arrays of their own, by one program for all of them."""
    return jax.tree.map(jnp.copy, tree)


def make_step(
    objective: Objective, config: Config, factors: Factors | None = None
) -> Callable[[State, Array, Graph, Labels], tuple[State, Array]]:
    """`step(state, controls, graph, labels) -> (state, report vector)`, compiled; the state passed in is consumed.

    controls: (2,) progress of training (0 to 1) and the run's factor on the learning rate. The objective's random key is
    another in every step, and the same when a run is repeated. `factors`: of each parameter (`mlff.training.plasticity`).
    """

    def step(state: State, controls: Array, graph: Graph, labels: Labels) -> tuple[State, Array]:
        progress, factor = controls
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), config.member), state.updates)
        derive = jax.value_and_grad(objective, has_aux=True)
        (loss, sums), gradient = derive(state.params, graph, labels, progress, key)
        norm = optax.tree.norm(gradient)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        rate = factor * optimizer.learning_rate(config.optimizer, progress)
        plastic = None if factors is None else factors(progress)
        updated = _update(state, optimizer.clip(gradient, norm, config.optimizer.clip), rate, config, plastic)
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), updated, state)
        return state, _pack(loss, norm, ~good, sums)

    return jax.jit(step, donate_argnums=0, compiler_options=compiler.quick())


def make_eval_step(apply: Apply, config: Config, scale: float, stress: bool) -> Callable[[Params, Graph, Labels], Array]:
    """`measure(params, graph, labels) -> report vector` of one batch, compiled: energies and forces, stress if asked."""

    def measure(params: Params, graph: Graph, labels: Labels) -> Array:
        prediction = predict(lambda g: apply(params, g), graph, forces=True, stress=stress)
        sums = losses.compare(prediction, labels, graph, config.loss, scale)
        return _pack(losses.combine(sums, losses.weights(config.loss, 1.0)), 0.0, False, sums)

    return jax.jit(measure, compiler_options=compiler.quick())


def _update(state: State, gradient: Params, rate: Array, config: Config, plastic: Params | None) -> State:
    updates, inner = optimizer.make_optimizer(config.optimizer, rate).update(gradient, state.optimizer, state.params)
    if plastic is not None:
        updates = plasticity.scaled(updates, plastic)
    params = optax.apply_updates(state.params, updates)
    count = state.updates.astype(rate.dtype)
    decay = jnp.minimum(config.training.ema_decay, (1.0 + count) / (10.0 + count)) if config.training.ema_decay else 0.0
    average = jax.tree.map(lambda a, p: (decay * a + (1.0 - decay) * p).astype(a.dtype), state.average, params)
    return State(params, average, inner, state.updates + 1)


def _pack(loss: Array, norm: Array, skipped: Array, sums: Sums) -> Array:
    return jnp.stack([jnp.asarray(value, loss.dtype) for value in (loss, norm, skipped, *sums)])
