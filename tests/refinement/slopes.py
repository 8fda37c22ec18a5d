"""Slopes of a target's penalty along a direction of the parameters."""

import jax
import numpy as np

STEP = 1e-5  #: of the parameters, for finite differences


def direction(params: dict) -> dict:
    """A random one, of length 1."""
    rng = np.random.default_rng(0)
    made = jax.tree.map(lambda p: rng.normal(size=p.shape), params["params"])
    length = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(made)))
    return jax.tree.map(lambda leaf: leaf / length, made)


def moved(params: dict, along: dict, by: float) -> dict:
    return {**params, "params": jax.tree.map(lambda p, d: p + by * d, params["params"], along)}


def slope(target, params: dict, along: dict, step: float = STEP) -> tuple[float, float]:
    """Of the penalty along a direction: from the gradient, and from finite differences."""

    def penalty(by: float) -> float:
        return target.goal.weight * target.goal.deviation(target.measure(moved(params, along, by)).values) ** 2

    gradient = target.measure(params).gradient["params"]
    found = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True))
    return found, (penalty(step) - penalty(-step)) / (2 * step)
