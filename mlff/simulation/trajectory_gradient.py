"""How an observable of a run changes with the potential, the temperature, the initial state, the cell or the time step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics import compiler
from mlff.basics.errors import ConfigError
from mlff.basics.runtime import compilation_cache, refuse_forked
from mlff.potential.potential import Potential
from mlff.simulation import adjoint, backpropagation, reweighting
from mlff.simulation.adjoint import Draw, Plan
from mlff.simulation.differentiable import Frame, Inputs, Objective, System
from mlff.simulation.guard import SimulationError
from mlff.simulation.settings import Settings

Method = Literal["adjoint", "checkpointed", "reweighting"]
METHODS = ("adjoint", "checkpointed", "reweighting")
_NEVER = 2**62  #: steps
_DIGITS = 2**23, 2**26  #: bytes for the last digits of kicks: at least, and at most
_COARSE = {"float32": 2**14, "float64": 1}  #: by precision: kicks are counted in multiples of 2^-30 and 2^-44
_REMAINDERS = 32  #: that there is room for at least, so that runs of up to 200,000 steps share a program


@dataclass(frozen=True)
class TrajectoryGradient:
    """An observable of a run and its gradient. Units are those of the observable (or its loss), per unit of the input."""

    value: float  #: the loss of the mean; without a loss the mean itself
    mean: np.ndarray  #: of the observable
    gradient: dict[str, Any]  #: by the names of `Inputs` that were asked for; params in the form of `Potential.params`
    norms: np.ndarray | None = (
        None  #: (m, 2) of the adjoint: steps from the end, length of the gradient with respect to the positions there
    )
    effective: float | None = None  #: of reweighting: effective number of frames
    sampled: bool = False  #: of reweighting: whether a new run was made for it


class DifferentiableRun:
    """A run that is differentiated again and again; programs are compiled once."""

    def __init__(
        self,
        observable: Callable[[Frame], Array],
        potential: Potential,
        atoms: ase.Atoms,
        settings: Settings,
        every: int = 0,
        loss: Callable[[Array], Array] | None = None,
        skin: float | None = None,
    ):
        """`observable`, of JAX, of the mean over each `every`th frame (0: of the last one) the `loss`; `atoms` with momenta.

        `skin`: Å beyond the cutoff that the one neighbour list reaches; default: all pairs of a molecule, 2 Å of a cell.
        Raises ConfigError, StructureError.
        """
        if every < 0:
            raise ConfigError(f"every must be a number of steps, or 0 for the last frame alone, not {every}")
        self.system = System(potential, atoms, settings, skin)
        self.inputs = self.system.inputs  #: what the run starts from; `_replace` makes others
        self._objective = Objective(observable, loss if loss is not None else lambda mean: mean, every)
        self._programs: dict[tuple, Any] = {}
        self._frames: reweighting.Frames | None = None
        self._sampled_at: Inputs = self.inputs
        with jax.enable_x64(True):
            frame = Frame(self.inputs.positions, self.inputs.momenta, self.inputs.cell)
            seen = jax.eval_shape(observable, frame)
            of_it = jax.eval_shape(self._objective.loss, jax.ShapeDtypeStruct(seen.shape, jnp.float64))
        if of_it.shape:
            remedy = "the loss must make one number of it" if loss is None else "it must be one number"
            raise ConfigError(f"the {'observable' if loss is None else 'loss'} has the shape {of_it.shape}; {remedy}")

    def gradient(
        self,
        steps: int,
        with_respect_to: Sequence[str] = ("params",),
        method: Method = "adjoint",
        inputs: Inputs | None = None,
        seed: int = 0,
        truncate: int | None = None,
        least: float = 0.9,
    ) -> TrajectoryGradient:
        """Over `steps` steps with the random numbers of `seed`; `inputs` as `self.inputs`, which is the default.

        `truncate`: forget the gradient with respect to the state after each so many steps on the way back. `least`, of
        reweighting: the share of effective frames below which a new run is made. Raises ConfigError; SimulationError: an
        atom left the neighbour list, a number is not finite.
        """
        refuse_forked()
        self._check(steps, with_respect_to, method, truncate)
        inputs = self._checked(inputs)
        key, wanted = _key(seed), tuple(sorted(with_respect_to))
        cut = np.int64(truncate or _NEVER)
        with jax.enable_x64(True):
            if method == "adjoint":
                return self._adjoint(steps, wanted, inputs, key, cut)
            if method == "checkpointed":
                return self._checkpointed(steps, wanted, inputs, key, cut)
            return self._reweighted(steps, wanted, inputs, key, least)

    def value(self, steps: int, inputs: Inputs | None = None, seed: int = 0) -> float:
        """The number alone, of the run that the adjoint takes forwards. Raises as `gradient`."""
        self._check(steps, ("params",), "adjoint", None)
        inputs = self._checked(inputs)
        with jax.enable_x64(True):
            found = self._walked(steps, ("params",), inputs, _key(seed), np.int64(_NEVER), backward=False)
        return float(found.value)

    def _adjoint(self, steps: int, wanted: tuple[str, ...], inputs: Inputs, key: np.ndarray, cut) -> TrajectoryGradient:
        found = self._walked(steps, wanted, inputs, key, cut)
        if not found.exact:
            raise SimulationError("the run backwards did not end where it had begun; take the method checkpointed")
        stride = -(-(steps + 1) // adjoint.NORMS)
        back = np.minimum(stride * np.arange(1, adjoint.NORMS + 1) - 1, steps)
        there = np.isfinite(found.norms)
        norms = np.stack([back[there], found.norms[there]], axis=1)
        return TrajectoryGradient(*_said(found, wanted), norms=norms)

    def _walked(
        self, steps: int, wanted: tuple[str, ...], inputs: Inputs, key: np.ndarray, cut, backward: bool = True
    ) -> adjoint.Outcome:
        """There and back, or there alone."""
        lifetime = self.system.lifetime(float(inputs.timestep))
        remainders = max(_REMAINDERS, 1 << (steps // lifetime).bit_length())
        digits = self._digits(steps) if backward else 0
        plan = Plan(remainders, wanted, _COARSE[self.system.potential.precision], digits, backward)
        run = functools.partial(adjoint.run, self.system, self._objective, plan)
        arguments = inputs, Draw(key, np.int64(lifetime)), np.int64(steps), cut
        found = jax.device_get(self._program(("adjoint", plan), run, arguments)(*arguments))
        if not found.sound:
            raise self._unsound(f"step {int(found.reached)}")
        return found

    def _digits(self, steps: int) -> int:
        """Steps whose last digits there is to be room for: the same for all runs that are not long, 0 where they are too many."""
        size = 2 * self.inputs.positions.size
        least = 1 << max(0, (_DIGITS[0] // size).bit_length() - 1)
        rows = max(least, 1 << (steps + 1).bit_length())
        return rows if rows * size <= _DIGITS[1] else 0

    def _checkpointed(self, steps: int, wanted: tuple[str, ...], inputs: Inputs, key: np.ndarray, cut) -> TrajectoryGradient:
        run = functools.partial(backpropagation.run, self.system, self._objective, steps)
        found = jax.device_get(self._program(("checkpointed", steps), run, (inputs, key, cut))(inputs, key, cut))
        if not found.sound:
            raise self._unsound("a step")
        return TrajectoryGradient(*_said(found, wanted))

    def _reweighted(
        self, steps: int, wanted: tuple[str, ...], inputs: Inputs, key: np.ndarray, least: float
    ) -> TrajectoryGradient:
        count = steps // self._objective.every
        sampled = self._frames is None or len(self._frames.exponents) != count
        if sampled:
            self._sample(count, inputs, key)
        found = self._averaged(inputs)
        if not found.effective >= least * count:
            self._sample(count, inputs, key)
            found, sampled = self._averaged(inputs), True
        return TrajectoryGradient(*_said(found, wanted), effective=float(found.effective), sampled=sampled)

    def _sample(self, count: int, inputs: Inputs, key: np.ndarray) -> None:
        sample = functools.partial(reweighting.sample, self.system, count, self._objective.every)
        frames = self._program(("sample", count), sample, (inputs, key))(inputs, key)
        if not frames.sound:
            raise self._unsound("a step")
        self._frames, self._sampled_at = frames, inputs

    def _averaged(self, inputs: Inputs) -> reweighting.Outcome:
        average = functools.partial(reweighting.average, self.system, self._objective)
        arguments = self._frames, self._sampled_at.cell, inputs
        return jax.device_get(self._program(("average", len(self._frames.exponents)), average, arguments)(*arguments))

    def memory(self) -> int:
        """Bytes that the programs compiled so far need for what they compute, the largest of them."""
        sizes = [program.memory_analysis() for program in self._programs.values()]
        return max((size.temp_size_in_bytes + size.output_size_in_bytes for size in sizes if size is not None), default=0)

    def _program(self, key: tuple, function: Callable, arguments: tuple):
        if key not in self._programs:
            compiler.check()
            with compilation_cache():
                lowered = jax.jit(function, compiler_options=compiler.quick()).lower(*arguments)
                self._programs[key] = lowered.compile()
        return self._programs[key]

    def _unsound(self, where: str) -> SimulationError:
        return SimulationError(
            f"{where}: an atom has moved farther than the neighbour list reaches, or a number is not finite; take a larger skin "
            "(or fewer steps), or a shorter time step"
        )

    def _checked(self, inputs: Inputs | None) -> Inputs:
        """In the types and shapes of `self.inputs`. Raises ConfigError."""
        if inputs is None:
            return self.inputs
        for name, given, own in zip(Inputs._fields, inputs, self.inputs, strict=True):
            shapes = [jax.tree.map(np.shape, value) for value in (given, own)]
            if shapes[0] != shapes[1]:
                raise ConfigError(f"inputs: {name} has the shape {shapes[0]}, where {shapes[1]} is expected")
        return jax.tree.map(lambda given, own: np.asarray(given, own.dtype), inputs, self.inputs)

    def _check(self, steps: int, with_respect_to: Sequence[str], method: str, truncate: int | None) -> None:
        every, name = self._objective.every, self.system.integrator
        if method not in METHODS:
            raise ConfigError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
        unknown = [wanted for wanted in with_respect_to if wanted not in Inputs._fields]
        if isinstance(with_respect_to, str) or unknown or not with_respect_to:
            raise ConfigError(f"with_respect_to holds names of {', '.join(Inputs._fields)}, not {with_respect_to!r}")
        if steps < max(1, every) or (truncate is not None and truncate < 1):
            raise ConfigError(f"a run of {steps} steps, every {every}, truncate {truncate}: no frame, or nothing to go back")
        if "temperature" in with_respect_to and name == "nve":
            raise ConfigError("nve has no temperature to differentiate by; take nvt, or the momenta")
        if "cell" in with_respect_to and not self.system.periodic:
            raise ConfigError("there is no cell to differentiate by: the atoms are not periodic")
        if method == "adjoint" and name not in ("nve", "langevin"):
            raise ConfigError(f"the adjoint runs nve and langevin backwards, not {name}; take the method checkpointed")
        if method == "reweighting":
            if name == "nve":
                raise ConfigError("reweighting needs the canonical ensemble, nvt")
            lost = sorted({"positions", "momenta", "timestep"} & set(with_respect_to))
            if lost:
                raise ConfigError(f"a canonical average does not depend on {', '.join(lost)}; take another method")
            if not every or truncate is not None:
                raise ConfigError("reweighting takes the mean over each `every`th frame, above 0, and truncates nothing")


def trajectory_gradient(
    observable: Callable[[Frame], Array],
    potential: Potential,
    atoms: ase.Atoms,
    settings: Settings,
    steps: int,
    with_respect_to: Sequence[str] = ("params",),
    method: Method = "adjoint",
    every: int = 0,
    loss: Callable[[Array], Array] | None = None,
    seed: int = 0,
    truncate: int | None = None,
    skin: float | None = None,
) -> TrajectoryGradient:
    """The gradient of an observable of one run; see `DifferentiableRun`, which compiles once for many.

    `observable` is a function of JAX of a `Frame`; its mean over each `every`th frame (0: the last frame) goes through `loss`.
    `with_respect_to`: names of `Inputs`. Raises ConfigError, StructureError, SimulationError.
    """
    run = DifferentiableRun(observable, potential, atoms, settings, every, loss, skin)
    return run.gradient(steps, with_respect_to, method, seed=seed, truncate=truncate)


def _key(seed: int) -> np.ndarray:
    return np.asarray(jax.random.key_data(jax.random.key(seed % 2**63, impl="threefry2x32")))


def _said(found, wanted: tuple[str, ...]) -> tuple[float, np.ndarray, dict]:
    return float(found.value), np.asarray(found.mean), {name: getattr(found.gradient, name) for name in wanted}
