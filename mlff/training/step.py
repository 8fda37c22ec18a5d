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
from mlff.training.objectives import Apply, Errors, Objective, Params
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
    norms: np.ndarray = np.zeros(
        (3, 0)
    )  #: (3, layers) of gradient, update and weights of each of `layers`; zeros where not asked for

    @classmethod
    def unpack(cls, vector: Array) -> Report:
        loss, norm, skipped, *rest = np.asarray(vector, np.float64)
        sums, norms = rest[: len(Sums._fields)], rest[len(Sums._fields) :]
        return cls(loss, norm, skipped, Sums(*sums), np.reshape(norms, (3, -1)))


def initial_state(config: Config, params: Params) -> State:
    """The state before the first step; it owns its arrays, for a step consumes them."""
    optimizer_state = jax.jit(optimizer.make_optimizer(config.optimizer, 0.0).init)(params)
    return copied(State(params, params, optimizer_state, np.zeros((), np.int32)))


@jax.jit
def copied(tree):
    """The same values in arrays of their own, by one program for all of them."""
    return jax.tree.map(jnp.copy, tree)


def for_each_start(function: Callable, count: int, *own: bool) -> Callable:
    """`function` for each of several starts in one program; arguments that are their `own` have an axis more in front.

    On the CPU one after another, elsewhere all at once. Products with other weights for each start are slow on the CPU: four
    starts of 64 channels took 1.6 times as long as four programs, one after another 0.9 times.
    """
    if count == 1:
        return function
    if jax.default_backend() != "cpu":
        return jax.vmap(function, in_axes=[0 if mine else None for mine in own])

    def one_after_another(*arguments):
        def one(mine):
            parts = iter(mine)
            return function(*(next(parts) if is_own else argument for argument, is_own in zip(arguments, own, strict=True)))

        return jax.lax.map(one, [argument for argument, is_own in zip(arguments, own, strict=True) if is_own])

    return one_after_another


def make_step(
    objective: Objective, config: Config, factors: Factors | None = None, starts: int = 1
) -> Callable[[State, Array, Graph, Labels], tuple[State, Array]]:
    """`step(state, controls, graph, labels) -> (state, report vector)`, compiled; the state passed in is consumed.

    controls: (3,) progress of training (0 to 1), the run's factor on the learning rate, and 1 to have the norms of the layers
    in the report. The objective's random key is another in every step, and the same when a run is repeated. `factors`: of
    each parameter (`mlff.training.plasticity`). Of several `starts` state, controls and report have an axis more in front.
    """

    def step(state: State, controls: Array, graph: Graph, labels: Labels) -> tuple[State, Array]:
        progress, factor, look = controls
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), config.member), state.updates)
        derive = jax.value_and_grad(objective, has_aux=True)
        (loss, sums), gradient = derive(state.params, graph, labels, progress, key)
        norm = optax.tree.norm(gradient)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        rate = factor * optimizer.learning_rate(config.optimizer, progress)
        plastic = None if factors is None else factors(progress)
        clipped = optimizer.clip(gradient, norm, config.optimizer.clip)
        updated, updates = _update(state, clipped, rate, config, plastic)
        parts = (gradient, updates, state.params)
        norms = jax.lax.cond(look > 0, lambda: _norms(parts), lambda: jnp.zeros_like(_norms(parts)))
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), updated, state)
        return state, _pack(loss, norm, ~good, sums, norms)

    every = for_each_start(step, starts, True, True, False, False)
    return jax.jit(every, donate_argnums=0, compiler_options=compiler.quick())


def make_eval_step(
    apply: Apply,
    config: Config,
    scale: float,
    stress: bool,
    summed: Callable[[Errors], Errors] = lambda errors: errors,
    starts: int = 1,
) -> Callable[[Params, Graph, Labels], Array]:
    """`measure(params, graph, labels) -> report vector` of one batch, compiled: energies and forces, stress if asked.

    `summed`: see `mlff.training.objectives.supervised`. Of several `starts` parameters and report have an axis more in front.
    """

    def errors(params: Params, graph: Graph, labels: Labels) -> Sums:
        prediction = predict(lambda g: apply(params, g), graph, forces=True, stress=stress)
        return losses.compare(prediction, labels, graph, config.loss, scale)

    def measure(params: Params, graph: Graph, labels: Labels) -> Array:
        sums = summed(errors)(params, graph, labels)
        return _pack(losses.combine(sums, losses.weights(config.loss, 1.0)), 0.0, False, sums)

    return jax.jit(for_each_start(measure, starts, True, False, False), compiler_options=compiler.quick())


def make_loss_step(objective: Objective) -> Callable[[Params, Graph, Labels], Array]:
    """`measure(params, graph, labels) -> report vector` of one batch: the objective at the end of training, compiled."""

    def measure(params: Params, graph: Graph, labels: Labels) -> Array:
        loss, sums = objective(params, graph, labels, jnp.ones(()), jax.random.key(0))
        return _pack(loss, 0.0, False, sums)

    return jax.jit(measure, compiler_options=compiler.quick())


def layers(params: Params) -> dict[str, list[int]]:
    """The layers of a model, the first parts of its parameters' names, and which leaves are theirs."""
    groups: dict[str, list[int]] = {}
    for index, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        names = [str(part.key) for part in path if part.key != "params"]
        groups.setdefault(names[0], []).append(index)
    return groups


def _norms(trees: tuple[Params, ...]) -> Array:
    """(trees * layers,) norms."""
    groups = layers(trees[0]).values()
    squares = [[jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)] for tree in trees]
    return jnp.sqrt(jnp.stack([sum(found[i] for i in group) for found in squares for group in groups]))


def _update(state: State, gradient: Params, rate: Array, config: Config, plastic: Params | None) -> tuple[State, Params]:
    """The state after the update, and the update."""
    updates, inner = optimizer.make_optimizer(config.optimizer, rate).update(gradient, state.optimizer, state.params)
    if plastic is not None:
        updates = plasticity.scaled(updates, plastic)
    params = optax.apply_updates(state.params, updates)
    count = state.updates.astype(rate.dtype)
    decay = jnp.minimum(config.training.ema_decay, (1.0 + count) / (10.0 + count)) if config.training.ema_decay else 0.0
    average = jax.tree.map(lambda a, p: (decay * a + (1.0 - decay) * p).astype(a.dtype), state.average, params)
    return State(params, average, inner, state.updates + 1), updates


def _pack(loss: Array, norm: Array, skipped: Array, sums: Sums, norms: Array = ()) -> Array:
    scalars = jnp.stack([jnp.asarray(value, loss.dtype) for value in (loss, norm, skipped, *sums)])
    return jnp.concatenate([scalars, jnp.asarray(norms, loss.dtype)])
