"""Runs at constant energy from the frames of an ensemble, over a window of time, and how D follows from them and the parameters."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from mlff.basics import compiler
from mlff.basics.units import FEMTOSECOND, KB
from mlff.potential.potential import Potential
from mlff.refinement.ensembles import Ensemble
from mlff.simulation import backpropagation
from mlff.simulation.differentiable import Objective, System
from mlff.simulation.guard import SimulationError
from mlff.simulation.settings import Settings
from mlff.simulation.velocities import maxwell_boltzmann

_FASTEST = 6.0  #: standard deviations of a velocity that atoms do not exceed
_ROOMIER = 3  #: times that the neighbour lists get more room
_DROWNED = 2**-0.5  #: of the length of a gradient: where its noise is more, it is more than the signal
_QUIET, _FEWEST = 0.25, 8  #: noise of a gradient that will do, and frames that it is taken of at least
_NEVER = np.int64(2**62)  #: steps


class MeanGradient(NamedTuple):
    """A gradient that is a mean over frames."""

    mean: Any  #: a tree like the parameters that are learned
    noise: float  #: its standard error (scatter over frames) over its length, both of the whole tree
    frames: int

    @property
    def drowned(self) -> bool:
        """Whether there is more noise than signal."""
        return not self.noise < _DROWNED


class ShortRuns:
    """Runs of some steps of `ensemble.options.timestep` for the atoms of an ensemble."""

    def __init__(self, ensemble: Ensemble, potential: Potential, steps: int, shares: np.ndarray):
        """With the precision of `potential`; `shares` (n,): of the atoms in the mean that D is, per Å²/ps."""
        options, atoms = ensemble.options, ensemble.atoms
        self._steps = steps
        speed = np.sqrt(KB * options.temperature / atoms.get_masses().min()) * FEMTOSECOND  # Å/fs, of one component
        skin = 2 * _FASTEST * speed * options.timestep * backpropagation.stretch_of(steps)
        self._system = System(potential, atoms, Settings(ensemble="nve", timestep=options.timestep), float(skin))
        self._factors = (1000 * FEMTOSECOND * shares / atoms.get_masses() / 3)[:, None]  # Å/ps per momentum
        self._programs: dict[str, Any] = {}  #: by kind

    def values(self, params: dict, ensemble: Ensemble) -> np.ndarray:
        """(M,) D of a run from each frame of the ensemble. Raises SimulationError."""
        rows = range(len(ensemble.positions))
        return np.array([float(value) for value, _ in self._short_runs("value", params, ensemble, rows)])

    def slope(self, params: dict, ensemble: Ensemble) -> MeanGradient:
        """The mean gradient of D through short runs, from as many frames as are needed to know it well. Raises SimulationError.

        The velocities are those of `values`, the same whenever it is called for the same run.
        """
        rows = np.random.default_rng(ensemble.runs).permutation(len(ensemble.positions))
        total, squares = None, 0.0
        part = MeanGradient(None, np.inf, 0)
        for count, (_, gradient) in enumerate(self._short_runs("gradient", params, ensemble, rows), 1):
            gradient = jax.tree.map(lambda array: np.asarray(array, float), gradient)
            total = gradient if total is None else jax.tree.map(np.add, total, gradient)
            squares += float(optax.tree.norm(gradient, squared=True))
            part = mean_gradient(total, squares, count)
            if count >= _FEWEST and part.noise <= _QUIET:
                break
        return part

    def _short_runs(self, kind: str, params: dict, ensemble: Ensemble, rows) -> Iterator[tuple[Array, Any]]:
        """D and, of the kind `gradient`, its gradient by the parameters that are learned, for these frames of the ensemble."""
        params = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), params, self._system.inputs.params)
        rng, atoms, momenta = np.random.default_rng([ensemble.seed, ensemble.runs]), ensemble.atoms.copy(), []
        for _ in ensemble.positions:
            maxwell_boltzmann(atoms, ensemble.options.temperature, rng)
            momenta.append(atoms.get_momenta())
        for row in rows:
            yield self._short_run(kind, params, ensemble.positions[row], momenta[row])

    def _short_run(self, kind: str, params: dict, positions: np.ndarray, momenta: np.ndarray) -> tuple[Array, Any]:
        for _ in range(_ROOMIER):
            if kind not in self._programs:
                one = functools.partial(_differentiated, self._system, self._steps, self._factors, kind == "gradient")
                self._programs[kind] = jax.jit(one, compiler_options=compiler.quick())
            value, gradient, sound = self._programs[kind](params, positions, momenta)
            if sound:
                return value, gradient
            self._system, self._programs = self._system.roomier(), {}
        raise SimulationError(
            f"in a run of {self._steps} steps a number is not finite, or an atom moved farther than neighbour lists reach; "
            "take a shorter sampling.timestep"
        )


def _differentiated(
    system: System, steps: int, factors: np.ndarray, wanted: bool, params: dict, positions: Array, momenta: Array
) -> tuple[Array, Any, Array]:
    """D of one run, its gradient by the parameters that are learned if `wanted`, () bool: whether it was sound."""
    objective = Objective(lambda frame: jnp.sum(factors * momenta * (frame.positions - positions)), lambda mean: mean, 0)
    inputs = system.inputs._replace(params=params, positions=positions, momenta=momenta)
    key = jnp.zeros(2, jnp.uint32)  # nothing is random
    found = backpropagation.run(system, objective, steps, inputs, key, _NEVER)
    return found.value, found.gradient.params["params"] if wanted else None, found.sound


def mean_gradient(total: Any, squares: float, count: int) -> MeanGradient:
    """From the sums over frames of gradients and of their squared lengths."""
    mean = jax.tree.map(lambda array: array / count, total)
    length = float(optax.tree.norm(mean))
    variance = max(squares / count - length**2, 0.0) / max(count - 1, 1)
    return MeanGradient(mean, float(np.sqrt(variance)) / max(length, 1e-300), count)
