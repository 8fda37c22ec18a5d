"""Optimisers by name and the learning rate as a function of progress.

Progress is the share of training that is over, 0 to 1: of the steps, or of the time when hours are given. It reaches
the compiled step as a number, so neither a schedule nor a change of plan recompiles anything.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from optax import contrib

from mlff.config.options import Optimizer, Schedule


def learning_rate(config: Optimizer, progress: Array | float) -> Array:
    """The learning rate at `progress` (0 to 1), before the run's own factor (plateau, back-off)."""
    return config.learning_rate * schedule(config.schedule, progress)


def schedule(config: Schedule, progress: Array | float) -> Array:
    """The share of the full learning rate at `progress`: linear warm-up, then the decay over what is left."""
    progress = jnp.clip(jnp.asarray(progress), 0.0, 1.0)
    rest = (progress - config.warmup_fraction) / (1.0 - config.warmup_fraction)
    decay = _decay(config, jnp.clip(rest, 0.0, 1.0))
    if config.warmup_fraction == 0:
        return decay
    return jnp.where(progress < config.warmup_fraction, progress / config.warmup_fraction, decay)


def _decay(config: Schedule, rest: Array) -> Array:
    if config.kind == "cosine":
        return _cosine(config.final_fraction, rest)
    if config.kind == "exponential":
        return config.final_fraction**rest
    if config.kind == "restarts":
        return _cosine(config.final_fraction, _cycle(config, rest)[1])
    return jnp.ones_like(rest)  # constant; plateau works through the run's factor


def cycle(config: Schedule, progress: float) -> int:
    """Which cosine `restarts` is in at `progress`, from 0; other schedules have one."""
    if config.kind != "restarts":
        return 0
    rest = (progress - config.warmup_fraction) / (1.0 - config.warmup_fraction)
    return int(_cycle(config, np.clip(rest, 0.0, 1.0), np)[0])


def _cycle(config: Schedule, rest: Array | float, xp: Any = jnp) -> tuple[Array, Array]:
    """Number of the cosine, and the share of it that is over; number i is 2^i times as long as the first."""
    place = 1.0 + rest * (2.0**config.cycles - 1.0)
    number = xp.clip(xp.floor(xp.log2(place)), 0.0, config.cycles - 1.0)
    return number, place / 2.0**number - 1.0


def _cosine(final: float, share: Array) -> Array:
    return final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * share))


def make_optimizer(config: Optimizer, learning_rate: Array | float) -> optax.GradientTransformation:
    """The transformation of the gradient for one learning rate, which may be traced: the state does not depend on it.

    Weight decay acts on arrays of two and more dimensions. Clipping is the step's business (it needs the norm anyway).
    """
    rate, beta1, beta2 = learning_rate, config.beta1, config.beta2
    decay: dict[str, Any] = {"weight_decay": config.weight_decay, "mask": _matrices}
    match config.name:
        case "sgd":
            return optax.sgd(rate)
        case "momentum":
            return optax.sgd(rate, momentum=config.momentum)
        case "adagrad":
            return optax.adagrad(rate)
        case "rmsprop":
            return optax.rmsprop(rate, decay=beta2)
        case "adam":
            return optax.adam(rate, b1=beta1, b2=beta2)
        case "adamw":
            return optax.adamw(rate, b1=beta1, b2=beta2, **decay)
        case "muon":
            return stacked(
                contrib.muon(
                    rate,
                    weight_decay=config.weight_decay,
                    adam_b1=beta1,
                    adam_b2=beta2,
                    consistent_rms=0.2,  # steps as large as Adam's
                    muon_weight_dimension_numbers=_stacked_matrices,
                )
            )
    raise AssertionError(config.name)


def stacked(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on parameters of equal shape as one array with an axis more in front: a few large operations, not many small.

    For transformations that treat each entry of that axis by itself (element by element, or matrix by matrix).
    """

    def stack(tree: Any) -> dict[str, Array]:
        groups: dict[str, list[Array]] = {}
        for leaf in jax.tree.leaves(tree):
            groups.setdefault(_shape(leaf), []).append(leaf)
        return {shape: jnp.stack(leaves) for shape, leaves in groups.items()}

    def init(params: Any) -> optax.OptState:
        return inner.init(stack(params))

    def update(gradient: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        leaves, tree = jax.tree.flatten(gradient)
        stacks, state = inner.update(stack(gradient), state, None if params is None else stack(params))
        parts = {shape: iter(stack) for shape, stack in stacks.items()}
        return jax.tree.unflatten(tree, [next(parts[_shape(leaf)]) for leaf in leaves]), state

    return optax.GradientTransformation(init, update)


def clip(gradient: Any, norm: Array, largest: float | None) -> Any:
    """Scale the gradient down to a global norm of `largest`."""
    if largest is None:
        return gradient
    factor = jnp.minimum(1.0, largest / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), gradient)


def _shape(leaf: Array) -> str:
    return "x".join(map(str, leaf.shape))


def _stacked_matrices(stacks: dict[str, Any]) -> dict[str, contrib.MuonDimensionNumbers | None]:
    return {shape: contrib.MuonDimensionNumbers(1, 2) if shape.count("x") == 1 else None for shape in stacks}


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim >= 2, params)
