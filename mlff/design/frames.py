"""Mean pressures at other temperatures and volumes than those of a run, from its frames.

Frames of a run at T₀ and V₀, scaled to a volume V, stand for the canonical ensemble at T and V with the weights
exp(-E(V)/kT + E₀/kT₀). So a run says how the mean changes with both, as far as enough of its frames count (Thaler & Zavadlav,
Nat. Commun. 12, 6884 (2021), there for parameters).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics import compiler
from mlff.basics.units import KB, STRESS
from mlff.design.condition_outcome import Run
from mlff.graph import Graph
from mlff.potential import derivatives
from mlff.potential.potential import Potential
from mlff.properties.averages import block_error
from mlff.refinement.ensembles import Ensemble

MARGIN = 0.3  #: Å beyond the cutoff within which neighbours of frames are searched, so that their cells may be scaled
_STEPS = 8  #: of Newton's method on one run


class Frames:
    """Energies and pressures of the frames of an ensemble at other volumes, and their means at other temperatures too."""

    def __init__(self, potential: Potential, ensemble: Ensemble, free: str, unit: str):
        self.ensemble, self._free, self._unit = ensemble, free, STRESS[unit]
        self._params = potential.device_params

        def of_frames(scale: Array, graphs: Graph) -> tuple[Array, Array]:
            def of_frame(graph: Graph) -> tuple[Array, Array]:
                graph = graph._replace(positions=graph.positions * scale, cell=graph.cell * scale)
                said = derivatives.predict(lambda g: potential.energy(self._params, g), graph, stress=True)
                return jnp.sum(said.energies), -jnp.trace(said.stress[0]) / 3

            return jax.lax.map(of_frame, graphs)

        self._compiled = jax.jit(of_frames, compiler_options=compiler.quick())
        self._known: dict[float, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def condition(self) -> float:
        """Of the run, K or Å³."""
        return self.ensemble.options.temperature if self._free == "temperature" else self.ensemble.atoms.get_volume()

    @property
    def least_volume(self) -> float:
        """Å³ down to which the neighbours of the frames are known."""
        cutoff = self.ensemble.reach - MARGIN
        return self.ensemble.atoms.get_volume() * (cutoff / self.ensemble.reach) ** 3

    def sample(self, condition: float | None = None) -> None:
        """A new run, at another condition where one is given. Raises SimulationError."""
        if condition is not None:
            self.ensemble.move(**{self._free: condition})
        self.ensemble.sample(self._params)
        self._known = {}

    def values(self, condition: float) -> tuple[np.ndarray, np.ndarray]:
        """(M,) pressures of the frames at a condition, in the unit of the target, and their weights."""
        atoms, temperature = self.ensemble.atoms, self.ensemble.options.temperature
        volume = atoms.get_volume()
        scale = 1.0 if self._free == "temperature" else (condition / volume) ** (1 / 3)
        temperature = condition if self._free == "temperature" else temperature
        if scale not in self._known:
            self._known[scale] = tuple(np.asarray(x) for x in self._compiled(scale, self.ensemble.graphs))
        energies, pressures = self._known[scale]
        kinetic = self.ensemble.kinetic_pressure_at(temperature, volume * scale**3)
        log = self.ensemble.exponents - energies / (KB * temperature)
        weights = np.exp(log - log.max())
        return (pressures + kinetic) / self._unit, weights / weights.sum()

    def mean(self, condition: float) -> float:
        """By reweighting, in the unit of the target."""
        values, weights = self.values(condition)
        return float(weights @ values)

    def enough(self, condition: float) -> bool:
        """Whether enough frames count there."""
        if self._free == "volume" and condition < self.least_volume:
            return False
        weights = self.values(condition)[1]
        return self.ensemble.enough(np.exp(-np.sum(weights * np.log(np.maximum(weights, 1e-300)))))

    def said(self, step: float) -> Run:
        """The mean of the run itself, and its slope over two steps around."""
        here = self.condition
        values, _ = self.values(here)
        slope = (self.mean(here + step) - self.mean(here - step)) / (2 * step)
        return Run(float(here), float(values.mean()), block_error(values), float(slope))

    def towards(self, run: Run, goal: float, near: float, low: float, high: float) -> float:
        """Where the reweighted mean is `goal`, within `near`, or as far towards there as enough frames count."""
        here, mean, slope = run.condition, run.mean, run.slope
        for _ in range(_STEPS):
            if abs(goal - mean) < near or slope == 0:
                break
            step = np.clip(here + (goal - mean) / slope, low, high) - here
            shortened = False
            while not self.enough(here + step):
                step, shortened = step / 2, True
            if abs(step) < 1e-9 * (high - low):
                break
            there = self.mean(here + step)
            slope = (there - mean) / step
            here, mean = here + step, there
            if shortened:
                break
        return float(here)
