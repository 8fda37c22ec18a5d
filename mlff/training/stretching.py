"""A term of the loss without labels: a bond stretched beyond the data must pull back.

Along the stretch of `mlff.data.stretched` the slope of the energy is dE/dr = -F·dR/dr. The term is the mean of what it
lacks to a margin: the RMS force of the training data, at most 2 eV/Å. GFN2-xTB gives 1.5 eV/Å or more for all of 1,500 structures
of 14 pairs of elements (S-S 2.0).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics.errors import ConfigError
from mlff.config.options import Config, Loss
from mlff.data.batching import Sample
from mlff.data.stretched import stretched
from mlff.graph import Graph, Labels, Prediction
from mlff.training import losses

WEIGHT = 0.1  #: where none is said and forces are learned
SHARE = 0.03  #: of the structures of an epoch; 0.1 teaches no more and costs 4 % in forces
MARGIN = 2.0  #: eV/Å, at most
_FEW, _MANY = 500, 4000  #: in the pool: as many as training structures, but up to the first four times as many
_SEED = 7_000_003  # beside those of the run, so that its order stays what it is


def weight(config: Loss) -> float:
    """Of the term in the loss."""
    if config.stretched is None:
        return WEIGHT if losses.terms(config)[0] else 0.0
    return config.stretched


def pool(config: Config, samples: list[Sample]) -> list[Sample]:
    """Stretched structures from which those of an epoch are drawn; none where the term is off. Raises ConfigError: it is asked for, and forces are not learned."""
    if config.loss.stretched and not losses.terms(config.loss)[0]:
        raise ConfigError("loss.stretched: needs a weight of the forces in the loss (loss.forces); leave it out")
    if not weight(config.loss):
        return []
    rng = np.random.default_rng([config.seed, config.member, _SEED])
    count = min(max(len(samples), min(_FEW, 4 * len(samples))), _MANY)
    return stretched(samples, count, config.model.cutoff, rng)


def compare(prediction: Prediction, labels: Labels, graph: Graph, config: Loss, scale: float) -> tuple[Array, Array]:
    """The sum over the stretched structures of a batch of what their slopes lack, as a penalty, and their number.

    `scale` is the force RMS of the training data, eV/Å; both are zero where no structure is stretched.
    """
    if labels.direction is None:
        return jnp.zeros(()), jnp.zeros(())
    along = jnp.stack([-jnp.sum(prediction.forces * labels.direction, axis=1), jnp.sum(labels.direction**2, axis=1)], axis=1)
    slope, moved = jax.ops.segment_sum(along, graph.structure, graph.n_atoms.shape[0], indices_are_sorted=True).T
    lacking = jnp.maximum(min(scale, MARGIN) - slope, 0.0) / scale
    is_stretched = moved > 0
    return jnp.sum(jnp.where(is_stretched, losses.penalty(lacking, config), 0.0)), jnp.sum(is_stretched)
