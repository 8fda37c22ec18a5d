"""The loss: weighted energy, force and stress terms over the labels that are present.

Errors are taken in units of the data (see `config.Loss`). `compare` gives sums that add up over batches, `combine` the
loss from them: the same two functions make the loss of a step and that of a whole validation set.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from mlff.basics.numerics import safe_divide
from mlff.config.options import Loss
from mlff.graph import Graph, Labels, Prediction


class Weights(NamedTuple):
    """Weights of the three terms, scalars."""

    energy: Array
    forces: Array
    stress: Array


class Sums(NamedTuple):
    """Sums over one or more batches. Penalties are scaled and weighted per structure, squares are plain, in eV and Å."""

    energy: Array  #: penalty of ΔE/n, over structures
    forces: Array  #: penalty of ΔF, over components
    stress: Array  #: penalty of Δσ, over components
    energy_squares: Array  #: ΔE², eV²
    energy_per_atom_squares: Array  #: (ΔE/n)², eV²
    forces_squares: Array  #: ΔF², (eV/Å)²
    stress_squares: Array  #: Δσ², (eV/Å³)²
    n_energy: Array  #: structures with an energy
    n_forces: Array  #: force components with a label
    n_stress: Array  #: stress components with a label


def learned(config: Loss) -> tuple[str, ...]:
    """The labels that ever have a weight."""
    return tuple(name for name in Weights._fields if any(weight > 0 for weight in _all(config, name)))


def terms(config: Loss) -> tuple[bool, bool]:
    """Whether forces and stress ever have a weight: what has none is never differentiated."""
    return "forces" in learned(config), "stress" in learned(config)


def weights(config: Loss, progress: Array | float) -> Weights:
    """The weights at `progress` (0 to 1)."""
    current = {name: jnp.asarray(getattr(config, name)) for name in Weights._fields}
    for stage in sorted(config.schedule, key=lambda stage: stage.start):
        for name in Weights._fields:
            value = getattr(stage, name)
            if value is not None:
                current[name] = jnp.where(progress >= stage.start, value, current[name])
    return Weights(**current)


def compare(prediction: Prediction, labels: Labels, graph: Graph, config: Loss, scale: float) -> Sums:
    """Sums of the errors of one batch; `scale` is the force RMS of the training data, eV/Å.

    What is absent (flag False) or padding contributes nothing to any of them. A prediction without stress has no
    stress term.
    """
    n = jnp.maximum(graph.n_atoms, 1)
    has, values = labels.has, labels.values
    has_energy = has["energy"] & graph.structure_mask
    energy = jnp.where(has_energy, prediction.energy - values["energy"], 0.0)
    per_atom = energy / n

    has_forces = (has["forces"][graph.structure] & graph.atom_mask)[:, None]
    forces = jnp.where(has_forces, prediction.forces - values["forces"], 0.0)

    has_stress = (has["stress"] & graph.structure_mask)[:, None, None]
    if prediction.stress is None:
        has_stress = jnp.zeros_like(has_stress)
        stress = jnp.zeros_like(values["stress"])
    else:
        stress = jnp.where(has_stress, prediction.stress - values["stress"], 0.0)

    weight = labels.weight
    return Sums(
        energy=jnp.sum(weight * penalty(per_atom / scale, config)),
        forces=jnp.sum(weight[graph.structure][:, None] * penalty(forces / scale, config)),
        stress=jnp.sum(weight[:, None, None] * penalty(stress / scale, config)),
        energy_squares=jnp.sum(energy**2),
        energy_per_atom_squares=jnp.sum(per_atom**2),
        forces_squares=jnp.sum(forces**2),
        stress_squares=jnp.sum(stress**2),
        n_energy=jnp.sum(has_energy),
        n_forces=3 * jnp.sum(has_forces),
        n_stress=9 * jnp.sum(has_stress),
    )


def combine(sums: Sums, weights: Weights) -> Array:
    """The loss: weighted means over the labels that are present; a term without any is zero."""
    means = (
        safe_divide(sums.energy, sums.n_energy),
        safe_divide(sums.forces, sums.n_forces),
        safe_divide(sums.stress, sums.n_stress),
    )
    return sum(weight * mean for weight, mean in zip(weights, means, strict=True))


def penalty(error: Array, config: Loss) -> Array:
    """Squared or absolute error."""
    return error**2 if config.error == "mse" else jnp.abs(error)


def _all(config: Loss, name: str) -> list[float]:
    changes = [getattr(stage, name) for stage in config.schedule]
    return [getattr(config, name), *(value for value in changes if value is not None)]
