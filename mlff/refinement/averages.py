"""Targets that are means over the frames of an ensemble: pressure, density, radial distribution function, free energy differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers
from jax import Array

from mlff.basics.errors import ConfigError
from mlff.basics.units import DENSITY, ENERGY, KB, STRESS
from mlff.config.bias import period
from mlff.config.observables import Density, Distribution, FreeEnergyDifference, Pressure
from mlff.graph import Graph
from mlff.potential import derivatives
from mlff.potential.potential import Potential
from mlff.properties.averages import block_error, inefficiency
from mlff.properties.distribution import pair_counts, shell_volumes
from mlff.properties.minimum import need_cell
from mlff.refinement.ensembles import Ensemble, Frames
from mlff.refinement.observables import Goal, Measured, penalised
from mlff.simulation.guard import SimulationError

_FEWEST = 5  #: independent volumes of a run, below which their scatter says nothing


class Sampled:
    """A target that needs the frames of an ensemble; `_ask` gives gradient, values and the effective number of frames."""

    ensemble: Ensemble

    def measure(self, params: dict) -> Measured:
        """At these parameters; where too few frames count, after a new run."""
        if self.ensemble.runs:
            gradient, (values, effective) = self._ask(params)
            if self.ensemble.enough(float(effective)):
                return Measured(np.asarray(values), gradient)
        self.ensemble.sample(params)
        gradient, (values, _) = self._ask(params)
        return Measured(np.asarray(values), gradient)

    def _ask(self, params: dict):
        raise NotImplementedError


class Averaged(Sampled):
    """A target that is the mean over the frames of an ensemble."""

    def __init__(self, goal: Goal, ensemble: Ensemble):
        self.goal, self.ensemble = goal, ensemble

        def observable(params: dict, frames: Frames, seen: Array) -> tuple[Array, Array]:
            mean, effective = ensemble.average(params, frames, self.of_frame, seen)
            return self.of_mean(mean), effective

        self._compiled = penalised(goal, observable)
        self._seen: tuple[int, np.ndarray] = -1, np.zeros(0)

    def fresh(self, potential: Potential) -> tuple[np.ndarray, np.ndarray | None]:
        """From a run of its own; errors from blocks, where these say nothing the scatter of single frames."""
        ensemble = self.ensemble.again()
        params = potential.with_precision("float64").device_params
        ensemble.sample(params)
        return self.estimates(params, ensemble)

    def estimates(self, params: dict, ensemble: Ensemble) -> tuple[np.ndarray, np.ndarray]:
        """Values (m,) from the frames of a run at these parameters, and their errors."""
        seen = self.look(ensemble)
        values = np.asarray(jax.lax.map(lambda frame: self.of_frame(params, *frame), (ensemble.graphs, seen)))
        weights = np.exp(ensemble.biases - ensemble.biases.max())
        weights /= weights.mean()
        mean = (weights[:, None] * values).mean(axis=0)
        slopes = np.asarray(jax.jacobian(self.of_mean)(mean))
        parts = weights[:, None] * (values - mean) @ slopes.T  # what each frame adds to the deviation of the result
        errors = [block_error(column) for column in parts.T]
        known = all(error is not None for error in errors)
        return np.asarray(self.of_mean(mean)), np.array(errors) if known else parts.std(axis=0)

    def look(self, ensemble: Ensemble) -> np.ndarray:
        """(M, k) what of the frames does not depend on the parameters."""
        return np.zeros((len(ensemble.exponents), 1))

    def of_frame(self, params: dict, graph: Graph, seen: Array) -> Array:
        """(l,) what is averaged, of one frame; pure."""
        raise NotImplementedError

    def of_mean(self, mean: Array) -> Array:
        """(m,) the values, from the mean (l,) of `of_frame`; pure."""
        return mean

    def state(self) -> dict[str, np.ndarray]:
        """Frames of the ensemble."""
        return self.ensemble.state()

    def restore(self, held: dict[str, np.ndarray]) -> None:
        self.ensemble.restore(held)

    def _ask(self, params: dict):
        if self._seen[0] != self.ensemble.runs:
            self._seen = self.ensemble.runs, self.look(self.ensemble)
        return self._compiled(params, self.ensemble.frames, self._seen[1])


class MeanPressure(Averaged):
    """N kT/V less a third of the trace of the stress."""

    def __init__(self, options: Pressure, ensemble: Ensemble, potential: Potential):
        """Raises StructureError: no periodic cell."""
        need_cell(ensemble.atoms, f"{options.sampling.structure}: pressures")
        self._potential, self._unit = potential, STRESS[options.unit]
        values, errors = np.array([options.value]), np.array([options.error])
        name = f"pressure at {options.sampling.temperature:g} K"
        super().__init__(Goal(name, options.unit, values, errors, options.weight), ensemble)

    def of_frame(self, params: dict, graph: Graph, seen: Array) -> Array:
        """(1,)"""
        said = derivatives.predict(lambda g: self._potential.energy(params, g), graph, stress=True)
        return (self.ensemble.kinetic_pressure - jnp.trace(said.stress[0]) / 3)[None] / self._unit


class MeanDensity(Averaged):
    """Mass over the mean volume of a run at constant pressure p.

    What is averaged is V + c (P - p), P the pressure of a frame with the mean kinetic part. Its mean is that of V for any
    constant c, as the mean of P is p at all parameters. With c = <(V - <V>)²>/kT, the mean of -dV/dP, the slow changes of the volume and
    those of the pressure that follow from them cancel: what is left changes as fast as the pressure, and depends on the
    parameters through P too, not through the weights of the frames only.
    """

    def __init__(self, options: Density, ensemble: Ensemble, potential: Potential):
        """Raises StructureError: no periodic cell."""
        need_cell(ensemble.atoms, f"{options.sampling.structure}: densities")
        self._potential, self._pressure = potential, options.sampling.pressure * STRESS["GPa"]
        self._mass = float(ensemble.atoms.get_masses().sum()) / DENSITY[options.unit]
        values, errors = np.array([options.value]), np.array([options.error])
        name = f"density at {options.sampling.temperature:g} K and {options.sampling.pressure:g} GPa"
        super().__init__(Goal(name, options.unit, values, errors, options.weight), ensemble)

    def look(self, ensemble: Ensemble) -> np.ndarray:
        """(M, 2) Å³, and c, Å⁶/eV. Raises SimulationError: too few of the volumes are independent."""
        volumes = np.abs(np.linalg.det(ensemble.cells))
        independent = len(volumes) / inefficiency(volumes)
        if independent < _FEWEST:
            raise SimulationError(
                f"{self.goal.name}: the volumes of {len(volumes)} frames are as good as {independent:.1f} independent ones, {_FEWEST} are "
                "needed; take longer runs (sampling.frames or every), or a shorter sampling.tau_pressure"
            )
        slope = volumes.var() / (KB * ensemble.options.temperature)
        return np.stack([volumes, np.full(len(volumes), slope)], axis=1)

    def of_frame(self, params: dict, graph: Graph, seen: Array) -> Array:
        """(1,) Å³"""
        volume, slope = seen
        said = derivatives.predict(lambda g: self._potential.energy(params, g), graph, stress=True)
        pressure = (
            self.ensemble.kinetic_pressure_at(self.ensemble.options.temperature, volume) - jnp.trace(said.stress[0]) / 3
        )
        return (volume + slope * (pressure - self._pressure))[None]

    def of_mean(self, mean: Array) -> Array:
        """(1,)"""
        return self._mass / mean


class RadialDistribution(Averaged):
    """g(r) of a pair of elements in the bins of the goal's file."""

    def __init__(self, options: Distribution, table: np.ndarray, ensemble: Ensemble):
        """`table` (m, 2 or 3): r in Å, g, error bars. Raises ConfigError: bins uneven or too far out, an element not there; StructureError: no
        periodic cell."""
        need_cell(ensemble.atoms, f"{options.sampling.structure}: distributions")
        r, g = table[:, 0], table[:, 1]
        width = float(np.diff(r).mean())
        if not (width > 0 and np.allclose(np.diff(r), width, rtol=1e-2) and r[0] > 0.49 * width):
            raise ConfigError(f"{options.file}: the first column must be evenly spaced middles of bins, ascending, in Å")
        errors = np.full(len(r), options.error) if options.error is not None else table[:, 2]
        self._edges = np.append(r - width / 2, r[-1] + width / 2).clip(min=0)
        self._pair = tuple(atomic_numbers.get(symbol, 0) for symbol in options.pair)
        for symbol, number in zip(options.pair, self._pair, strict=True):
            if number not in ensemble.atoms.numbers:
                raise ConfigError(f"{options.sampling.structure}: has no {symbol}, which the distribution is asked for")
        name = f"g(r) {'-'.join(options.pair)} at {options.sampling.temperature:g} K"
        super().__init__(Goal(name, "", g, errors, options.weight), ensemble)

    def look(self, ensemble: Ensemble) -> np.ndarray:
        """(M, m) g of every frame."""
        atoms, (a, b) = ensemble.atoms, self._pair
        densities = np.count_nonzero(atoms.numbers == b) / np.abs(np.linalg.det(ensemble.cells))
        more, frames = (atoms.pbc, [self._pair], self._edges), zip(ensemble.positions, ensemble.cells, strict=True)
        counts = [pair_counts(atoms.numbers, *frame, *more)[a, b] for frame in frames]
        return np.array(counts) / (densities[:, None] * shell_volumes(self._edges))

    def of_frame(self, params: dict, graph: Graph, seen: Array) -> Array:
        """(m,)"""
        return seen


class FreeEnergyGap(Averaged):
    """-kT ln(p₂/p₁), p the share of the frames, without their bias, whose variable lies in a range."""

    def __init__(self, options: FreeEnergyDifference, ensemble: Ensemble):
        """Raises ConfigError: no such variable."""
        bias, name = ensemble.bias, options.variable
        if name not in bias.variables:
            raise ConfigError(f"{options.sampling.bias}: there is no variable {name!r}; it has {', '.join(bias.variables)}")
        self._name, self._ranges = name, (options.first, options.second)
        self._column, self._period = list(bias.variables).index(name), period(bias.variables[name])
        self._thermal = KB * options.sampling.temperature / ENERGY[options.unit]
        values, errors = np.array([options.value]), np.array([options.error])
        title = f"free energy along {name} at {options.sampling.temperature:g} K"
        super().__init__(Goal(title, options.unit, values, errors, options.weight), ensemble)

    def look(self, ensemble: Ensemble) -> np.ndarray:
        """(M, 2) 1 where a frame is in a range. Raises SimulationError: none is."""
        values = ensemble.variables[:, self._column]
        inside = np.zeros((len(values), 2))
        for number, (lower, upper) in enumerate(self._ranges):
            above = values - lower if self._period is None else (values - lower) % self._period
            inside[:, number] = (above >= 0) & (above <= upper - lower)
            if not inside[:, number].any():
                raise SimulationError(
                    f"{self.goal.name}: none of {len(values)} frames lies between {lower:g} and {upper:g}; {self._name} went from "
                    f"{values.min():.3g} to {values.max():.3g}; take more frames (sampling.frames), or a bias that leads there"
                )
        return inside

    def of_frame(self, params: dict, graph: Graph, seen: Array) -> Array:
        """(2,)"""
        return seen

    def of_mean(self, mean: Array) -> Array:
        """(1,)"""
        return -self._thermal * jnp.log(mean[1] / mean[0])[None]
