"""Gradients of canonical averages by reweighting: no derivative goes through the dynamics, so nothing explodes.

Frames of one run stand for the canonical ensemble at other parameters of the potential, another temperature or cell too, if
each has the weight exp(-H/kT + H0/kT0): a smooth function, whose derivative is the covariance formula. The farther the
parameters go, the fewer frames carry the weight; then a new run is due (DiffTRe: Thaler & Zavadlav, Nat. Commun. 12, 6884
(2021)).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mlff.basics.units import KB
from mlff.simulation import backpropagation
from mlff.simulation.differentiable import Frame, Inputs, Objective, System


class Frames(NamedTuple):
    """M frames of a canonical run."""

    positions: Array  #: (M, n, 3) Å
    momenta: Array  #: (M, n, 3) in ASE's unit
    exponents: Array  #: (M,) H/kT of the run itself, without reference energies
    sound: Array  #: () bool: False where the list lost pairs or a number was not finite


class Outcome(NamedTuple):
    """What the frames say."""

    value: Array  #: () the loss of the mean
    mean: Array  #: of the observable
    gradient: Inputs  #: zeros for the initial state and the time step
    effective: Array  #: () effective number of frames, exp(-sum w ln w): M with equal weights


def sample(system: System, count: int, every: int, inputs: Inputs, key: Array) -> Frames:
    """`count` frames, `every` steps apart; pure, for JAX to compile."""
    at = system.conditions(inputs.temperature, inputs.timestep, key)
    begin = backpropagation.begin(system, inputs)

    def one(carry: tuple, _) -> tuple:
        state, sound = carry

        def step(_, carry: tuple) -> tuple:
            return backpropagation.step(system, at, inputs, *carry)

        state, sound = jax.lax.fori_loop(0, every, step, (state, sound))
        return (state, sound), (state.positions, state.momenta)

    (_, sound), (positions, momenta) = jax.lax.scan(one, begin, None, length=count)
    frames = Frames(positions, momenta, jnp.zeros(count), sound)
    return frames._replace(exponents=_exponents(system, inputs, frames, inputs.cell))


def average(system: System, objective: Objective, frames: Frames, cell: Array, inputs: Inputs) -> Outcome:
    """The gradient of an objective at other `inputs` than the frames were sampled at, in the `cell` (3, 3); pure."""

    def value(inputs: Inputs) -> tuple[Array, tuple[Array, Array]]:
        log = jax.nn.log_softmax(frames.exponents - _exponents(system, inputs, frames, cell))
        weights = jnp.exp(log)

        def of_one(frame: tuple[Array, Array]) -> Array:
            moved = system.carried(frame[0], cell, inputs.cell)
            return objective.observable(Frame(moved, frame[1], inputs.cell)).astype(jnp.float64)

        seen = jax.lax.map(jax.checkpoint(of_one), frames[:2])
        mean = jnp.tensordot(weights, seen, axes=1)
        return objective.loss(mean), (mean, jnp.exp(-jnp.sum(weights * log)))

    (found, (mean, effective)), gradient = jax.value_and_grad(value, has_aux=True)(inputs)
    return Outcome(found, mean, gradient, effective)


def _exponents(system: System, inputs: Inputs, frames: Frames, cell: Array) -> Array:
    """(M,) H/kT of frames that were sampled in the `cell` (3, 3)."""

    def of_one(frame: tuple[Array, Array]) -> Array:
        moved = system.carried(frame[0], cell, inputs.cell)
        return system.energy(inputs.params, moved, inputs.cell) + system.kinetic_energy(frame[1])

    return jax.lax.map(jax.checkpoint(of_one), frames[:2]) / (KB * inputs.temperature)
