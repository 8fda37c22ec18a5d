"""The gradient of a run by its adjoint: the run is taken back step by step, and frames are not kept.

Positions and momenta are whole numbers (`fixed_point`). Backwards every step is undone to the last bit, and the vector-Jacobian
product of that step carries the gradient with respect to its end over to its beginning (the discrete adjoint; of neural
networks, backpropagation through time). Noise is made again from its key, in one place of one compiled loop for both
directions, so that it is the same bits whatever the compiler fuses. What friction loses is kept: 64 bits a coordinate for some
thousand steps.

On the way back the forces and their derivatives come from one evaluation, which shares the network's inner values. It may round
otherwise than the forward run did, so of each step's kicks the last 16 bits are kept (`Plan.digits`); the forces give the others.
Where that would take too much memory the forces are computed for themselves, in the same place as forwards.

A state is left between the first half of a kick and the drift; an iteration has the forces at one step's positions.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from mlff.basics.units import FEMTOSECOND
from mlff.simulation import fixed_point, thermostats
from mlff.simulation.differentiable import Frame, Inputs, Objective, System
from mlff.simulation.fixed_point import real, scaled, whole
from mlff.simulation.state import Conditions

NORMS = 200  #: of the gradient along the way back that are recorded at most


class Plan(NamedTuple):
    """What a loop is compiled for, besides its system and objective."""

    remainders: int  #: how many there is room for
    wanted: tuple[str, ...]  #: names of `Inputs`
    coarse: int  #: multiples of the quantum, a power of two, in which kicks are counted
    digits: int = 0  #: steps whose last bits there is room for; 0: forces are computed for themselves on the way back
    backward: bool = True  #: False: the forward run alone


class Draw(NamedTuple):
    """The random numbers of a run."""

    key: Array  #: (2,) uint32
    lifetime: Array  #: () int64, steps after which a remainder of the friction is put aside


class Numbers(NamedTuple):
    """What the steps add, computed in one place for both directions, so that it is the same bits."""

    half: Array  #: () half a time step
    forces: Array  #: (n, 3) eV/Å at the positions; on the way back zeros where `pull_forces` gives them in time
    rate: Array  #: (n, 1) positions per momentum in half a time step
    factors: Array  #: (3,) of the friction (`fixed_point`)
    drawn: Array  #: (n, 3) what the noise of the friction adds to the momenta
    noise: Array  #: (n, 3) int64, the same


class Loop(NamedTuple):
    """The state of the loop; integers as in `fixed_point`."""

    back: Array  #: () bool: on the way back
    index: Array  #: () int64, the step whose positions these are
    sound: Array  #: () bool: the neighbour list holds, numbers are finite
    done: Array  #: () bool
    positions: Array  #: (n, 3) int64
    momenta: Array  #: (n, 3) int64
    remainder: Array  #: (n, 3) int64, of the friction
    kept: Array  #: (W, n, 3) int64, remainders that were put aside
    digits: Array  #: (D, n, 3) int16, the last bits of the kicks of each step
    mean: Array  #: of the observable
    adjoint: Frame  #: the gradient with respect to the state
    gradient: Inputs  #: what has come together so far
    norms: Array  #: (NORMS,)


class Outcome(NamedTuple):
    """What a run gives."""

    value: Array  #: () the loss of the mean
    mean: Array  #: of the observable
    gradient: Inputs  #: zeros for what was not wanted
    norms: Array  #: (NORMS,) lengths of the gradient with respect to the positions, from the end; NaN where there is none
    sound: Array  #: () bool: False where the list lost pairs or a number was not finite
    reached: Array  #: () the last step
    exact: Array  #: () bool: whether the way back has led to the very bits of the start


def run(system: System, objective: Objective, plan: Plan, inputs: Inputs, draw: Draw, steps: Array, cut: Array) -> Outcome:
    """The gradient of an objective over `steps` steps; pure, for JAX to compile.

    `cut`: after each so many steps of the way back the gradient with respect to the state is forgotten.
    """
    frame, to_inputs = jax.vjp(system.start, inputs)
    walk = _Walk(system, objective, plan, inputs, draw, steps, cut)
    begin = walk.begin(frame)
    loop = jax.lax.while_loop(lambda loop: loop.sound & ~loop.done, walk.iterate, begin)
    exact = jnp.array_equal(loop.positions, begin.positions) & jnp.array_equal(loop.momenta, begin.momenta)
    (of_start,) = to_inputs(loop.adjoint)
    gradient = jax.tree.map(jnp.add, of_start, loop.gradient)
    return Outcome(objective.loss(loop.mean), loop.mean, gradient, loop.norms, loop.sound, loop.index, exact)


class _Walk(NamedTuple):
    """One run, there and back."""

    system: System
    objective: Objective
    plan: Plan
    inputs: Inputs
    draw: Draw
    steps: Array
    cut: Array

    def begin(self, frame: Frame) -> Loop:
        """At step 0; the momenta have not been kicked."""
        zeros = jax.tree.map(lambda array: jnp.zeros(jnp.shape(array)), (frame, self.inputs))
        shape = jax.eval_shape(self.objective.observable, frame).shape
        return Loop(
            back=jnp.bool_(False),
            index=jnp.int64(0),
            sound=jnp.bool_(True),
            done=jnp.bool_(False),
            positions=whole(frame.positions),
            momenta=whole(frame.momenta),
            remainder=jnp.zeros(frame.positions.shape, jnp.int64),
            kept=jnp.zeros((self.plan.remainders, *frame.positions.shape), jnp.int64),
            digits=jnp.zeros((self.plan.digits, *frame.positions.shape), jnp.int16),
            mean=jnp.zeros(shape),
            adjoint=zeros[0],
            gradient=zeros[1],
            norms=jnp.full(NORMS, jnp.nan),
        )

    def iterate(self, loop: Loop) -> Loop:
        """Go on by one step, in the direction that the loop has."""
        at = self.system.conditions(self.inputs.temperature, self.inputs.timestep, self.draw.key)
        positions, cell = real(loop.positions), self.inputs.cell
        half, k = 0.5 * at.timestep, loop.index
        needed = jnp.bool_(not self.plan.digits) | ~loop.back | self.objective.counts(k, self.steps)
        forces = jax.lax.cond(
            needed, lambda: self.system.forces(self.inputs.params, positions, cell), lambda: jnp.zeros(positions.shape)
        )
        kept, drawn = self._friction(at, jnp.where(loop.back, k - 1, k))
        numbers = Numbers(half, forces, half / at.masses, fixed_point.factors(kept), drawn, whole(drawn))
        sound = self.system.listed(positions, cell)
        sound &= jnp.all(jnp.abs(loop.positions) < whole(fixed_point.LARGEST))
        sound &= jnp.all(jnp.abs(loop.momenta) < whole(fixed_point.LARGEST))
        digits, loop = loop.digits, loop._replace(sound=sound, digits=loop.digits[:0])
        row = jnp.zeros(digits.shape[1:], jnp.int16)
        if self.plan.digits:
            row = jax.lax.dynamic_index_in_dim(digits, k, keepdims=False)
        if not self.plan.backward:
            return self._forward(loop, row, numbers)[0]
        loop, row = jax.lax.cond(loop.back, self._backward, self._forward, loop, row, numbers)
        if self.plan.digits:  # here, where it stays in place
            digits = jax.lax.dynamic_update_index_in_dim(digits, row, k, 0)
        return loop._replace(digits=digits)

    def _forward(self, loop: Loop, row: Array, numbers: Numbers) -> tuple[Loop, Array]:
        k, last = loop.index, loop.index == self.steps
        kick = self._kick(numbers, numbers.forces)
        row = fixed_point.low(kick, self.plan.coarse)
        momenta = loop.momenta + jnp.where(k > 0, kick, 0)
        frame = Frame(real(loop.positions), real(momenta), self.inputs.cell)
        mean = self.objective.add(loop.mean, frame, k, self.steps)
        loop = loop._replace(momenta=momenta, mean=mean, sound=loop.sound & jnp.all(jnp.isfinite(numbers.forces)))

        def on() -> Loop:
            return self._middle(loop._replace(momenta=momenta + kick), numbers)._replace(index=k + 1)

        return jax.lax.cond(last, lambda: loop._replace(back=last, done=jnp.bool_(not self.plan.backward)), on), row

    def _backward(self, loop: Loop, row: Array, numbers: Numbers) -> tuple[Loop, Array]:
        k, unit = loop.index, 0.5 * FEMTOSECOND  # of half a time step by the time step
        first, later = k == 0, k < self.steps
        forgotten = later & ~first & ((self.steps - k) % self.cut == 0)
        adjoint = loop.adjoint._replace(
            positions=jnp.where(forgotten, 0.0, loop.adjoint.positions),
            momenta=jnp.where(forgotten, 0.0, loop.adjoint.momenta),
        )
        push = loop.adjoint.momenta, adjoint.momenta
        adjoint = jax.tree.map(jnp.add, adjoint, self._observed(loop, numbers, later))
        before = jnp.where(first, 0.0, adjoint.momenta)
        vector, by_all = numbers.half * (push[1] + before), bool({"params", "cell"} & set(self.plan.wanted))
        forces, (params, positions, cell) = self.system.pull_forces(self.inputs, real(loop.positions), vector, by_all)
        kick = self._kick(numbers, forces if self.plan.digits else numbers.forces)
        if self.plan.digits:
            kick = fixed_point.restored(kick, row, self.plan.coarse)
        adjoint = Frame(adjoint.positions + positions, adjoint.momenta, adjoint.cell + cell)
        gradient = loop.gradient._replace(
            params=jax.tree.map(jnp.add, loop.gradient.params, params),
            timestep=loop.gradient.timestep + unit * jnp.sum((push[0] + before) * forces),
        )
        stride = -(-(self.steps + 1) // NORMS)
        norms = loop.norms.at[(self.steps - k) // stride].set(jnp.sqrt(jnp.sum(adjoint.positions**2)))
        momenta = loop.momenta - jnp.where(later, kick, 0)
        loop = loop._replace(momenta=momenta, adjoint=adjoint, gradient=gradient, norms=norms)

        def on() -> Loop:
            undone = self._undo_middle(loop._replace(momenta=momenta - kick, index=k - 1), numbers)
            return self._pull_middle(undone, numbers)

        return jax.lax.cond(first, lambda: loop._replace(done=first), on), row

    def _observed(self, loop: Loop, numbers: Numbers, later: Array) -> Frame:
        """The gradient of the loss by the frame of this step, whose momenta need the kick before `pull_forces` gives forces."""

        def seen() -> Frame:
            kick = jnp.where(later, self._kick(numbers, numbers.forces), 0)
            frame = Frame(real(loop.positions), real(loop.momenta - kick), self.inputs.cell)
            return self.objective.pull(loop.mean, frame, loop.index, self.steps)

        counts = self.objective.counts(loop.index, self.steps)
        return jax.lax.cond(counts, seen, lambda: jax.tree.map(jnp.zeros_like, loop.adjoint))

    def _kick(self, numbers: Numbers, forces: Array) -> Array:
        """(n, 3) int64: half a time step of the forces."""
        return whole(numbers.half * forces, self.plan.coarse)

    def _friction(self, at: Conditions, step: Array) -> tuple[Array, Array]:
        if self.system.integrator == "nve":
            return jnp.float64(1.0), jnp.zeros((len(at.masses), 3))
        kept, noise = thermostats.friction(at, step)
        return kept, thermostats.at_rest(at, noise)

    def _middle(self, loop: Loop, numbers: Numbers) -> Loop:
        """Between the two kicks of a step: half a drift, friction, half a drift."""
        positions = loop.positions + scaled(numbers.rate, loop.momenta)
        if self.system.integrator == "nve":
            return loop._replace(positions=positions + scaled(numbers.rate, loop.momenta))
        momenta, remainder = fixed_point.squeeze(numbers.factors, loop.momenta, loop.remainder)
        momenta = momenta + numbers.noise
        positions = positions + scaled(numbers.rate, momenta)
        full, slot = self._slot(loop.index)
        aside = loop.kept.at[slot].set(jnp.where(full, remainder, loop.kept[slot]))
        return loop._replace(positions=positions, momenta=momenta, remainder=jnp.where(full, 0, remainder), kept=aside)

    def _undo_middle(self, loop: Loop, numbers: Numbers) -> Loop:
        """From the positions after `_middle` of the step `loop.index`, and momenta without the kick, to those before it."""
        positions = loop.positions - scaled(numbers.rate, loop.momenta)
        if self.system.integrator == "nve":
            return loop._replace(positions=positions - scaled(numbers.rate, loop.momenta))
        full, slot = self._slot(loop.index)
        remainder = jnp.where(full, loop.kept[slot], loop.remainder)
        momenta, remainder = fixed_point.stretch(numbers.factors, loop.momenta - numbers.noise, remainder)
        positions = positions - scaled(numbers.rate, momenta)
        return loop._replace(positions=positions, momenta=momenta, remainder=remainder)

    def _slot(self, step: Array) -> tuple[Array, Array]:
        """Whether the remainder is put aside after this step, and where."""
        return (step + 1) % self.draw.lifetime == 0, (step + 1) // self.draw.lifetime - 1

    def _pull_middle(self, loop: Loop, numbers: Numbers) -> Loop:
        """The adjoint before `_middle`, whose state the loop has."""

        def middle(temperature: Array, timestep: Array, positions: Array, momenta: Array) -> tuple[Array, Array]:
            at = self.system.conditions(temperature, timestep, self.draw.key)
            positions = positions + 0.5 * at.timestep * momenta / at.masses
            if self.system.integrator != "nve":
                kept = thermostats.share_kept(at)
                size = jnp.sqrt(at.temperature * (1 - kept**2))  # what the noise is proportional to
                momenta = kept * momenta + numbers.drawn * (size / jax.lax.stop_gradient(size))
            return positions + 0.5 * at.timestep * momenta / at.masses, momenta

        state = self.inputs.temperature, self.inputs.timestep, real(loop.positions), real(loop.momenta)
        temperature, timestep, positions, momenta = jax.vjp(middle, *state)[1](tuple(loop.adjoint[:2]))
        gradient = loop.gradient._replace(
            temperature=loop.gradient.temperature + temperature, timestep=loop.gradient.timestep + timestep
        )
        return loop._replace(adjoint=loop.adjoint._replace(positions=positions, momenta=momenta), gradient=gradient)
