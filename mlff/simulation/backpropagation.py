"""The gradient of a run by backpropagation through time: the steps of the compiled engine, with checkpoints.

Of N steps the states of each sqrt(N)th are kept, and the others of a stretch are computed again when the way back comes to it:
memory grows as the square root of N, time by one more run (Griewank & Walther, ACM Trans. Math. Softw. 26, 19 (2000)). Any
integrator will do. At the beginning of each stretch neighbours are searched anew, so that liquids may diffuse.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mlff.simulation import integrators
from mlff.simulation.differentiable import Frame, Inputs, Objective, System
from mlff.simulation.state import CHAIN, Conditions, Outcome, State


class RunGradient(NamedTuple):
    """What a run gives."""

    value: Array  #: () the loss of the mean
    mean: Array  #: of the observable
    gradient: Inputs
    sound: Array  #: () bool: False where the list lost pairs or a number was not finite


def run(system: System, objective: Objective, steps: int, inputs: Inputs, key: Array, cut: Array) -> RunGradient:
    """The gradient of an objective over `steps` steps with random numbers of `key`; pure, for JAX to compile.

    `cut`: after each so many steps of the way back the gradient with respect to the state is forgotten.
    """

    def value(inputs: Inputs) -> tuple[Array, tuple[Array, Array]]:
        mean, sound = _walk(system, objective, steps, inputs, key, cut)
        return objective.loss(mean), (mean, sound)

    (found, (mean, sound)), gradient = jax.value_and_grad(value, has_aux=True)(inputs)
    return RunGradient(found, mean, gradient, sound)


def stretch_of(steps: int) -> int:
    """Steps of a stretch, whose states are kept on the way back, and for which one neighbour list serves."""
    return max(1, math.isqrt(steps))


def begin(system: System, inputs: Inputs) -> tuple[State, Array]:
    """The state at step 0, and () bool: whether the list has its pairs."""
    frame = system.start(inputs)
    said = _outcome(system, inputs, frame.positions)
    nothing = said.stress, jnp.float64(0.0), jnp.zeros((2, CHAIN)), jnp.zeros((3, 3))
    state = State(jnp.int64(0), *frame, said.forces, said.energy, *nothing)
    return state, system.listed(frame.positions, frame.cell)


def step(system: System, at: Conditions, inputs: Inputs, state: State, sound: Array) -> tuple[State, Array]:
    """A step of the compiled engine; `sound` becomes False where the list has lost pairs or a number is not finite."""
    moved = integrators.begin(system.integrator, at, state)
    said = _outcome(system, inputs, moved.positions)
    state = integrators.end(system.integrator, at, moved, said)
    return state, sound & system.listed(state.positions, state.cell) & jnp.all(jnp.isfinite(said.forces))


def _outcome(system: System, inputs: Inputs, positions: Array) -> Outcome:
    energy, slope = jax.value_and_grad(system.energy, argnums=1)(inputs.params, positions, inputs.cell)
    return Outcome(energy, -slope, jnp.zeros((3, 3)))


def _walk(system: System, objective: Objective, steps: int, inputs: Inputs, key: Array, cut: Array) -> tuple[Array, Array]:
    """The mean of the observable, and whether the run was sound."""
    at = system.conditions(inputs.temperature, inputs.timestep, key)
    length = stretch_of(steps)

    def one(followed: System, carry: tuple) -> tuple:
        state, sound, mean = carry
        state, sound = step(followed, at, inputs, state, sound)
        mean = objective.add(mean, Frame(state.positions, state.momenta, state.cell), state.step, steps)
        forgotten = (state.step < steps) & ((steps - state.step) % cut == 0)
        cell = state.cell  # an input, not a result of the steps
        state = jax.tree.map(lambda array: jnp.where(forgotten, jax.lax.stop_gradient(array), array), state)
        return state._replace(cell=cell), sound, mean

    def stretch(carry: tuple, _) -> tuple[tuple, None]:
        state, sound, mean = carry
        followed, complete = system.followed(state.positions, state.cell)

        def if_left(carry: tuple, _) -> tuple[tuple, None]:
            return jax.lax.cond(carry[0].step < steps, lambda carry: one(followed, carry), lambda carry: carry, carry), None

        return jax.lax.scan(if_left, (state, sound & complete, mean), None, length=length)[0], None

    frame = system.start(inputs)
    followed, complete = system.followed(frame.positions, frame.cell)
    state, sound = begin(followed, inputs)
    mean = jnp.zeros(jax.eval_shape(objective.observable, Frame(*state[1:4])).shape)
    start = state, sound & complete, mean
    _, sound, mean = jax.lax.scan(jax.checkpoint(stretch), start, None, length=-(-steps // length))[0]
    return mean, sound
