"""Averages over runs of molecular dynamics as functions of the parameters, by reweighting (DiffTRe).

Frames of one run stand for the canonical ensemble at other parameters if each has the weight exp(-(E - E0)/kT): E its energy at
these parameters, E0 at those of the run. No derivative goes through the dynamics. The farther the parameters go, the fewer
frames carry the weight; then a new run is made (Thaler & Zavadlav, Nat. Commun. 12, 6884 (2021)). Unlike
`mlff.simulation.trajectory_gradient`, every frame has its neighbours of its own, so that liquids may diffuse, and the observable may
depend on the potential (the pressure).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import atomic_numbers
from ase.io import read
from jax import Array

from mlff.basics import compiler
from mlff.basics.errors import ConfigError, StructureError
from mlff.basics.units import KB, STRESS
from mlff.config.observables import Distribution, Pressure, Sampling
from mlff.data.batching import Sizes, make_graph, make_sample, round_up
from mlff.data.structure import Structure
from mlff.graph import Graph
from mlff.interfaces.ase import MLFFCalculator
from mlff.potential import derivatives
from mlff.potential.potential import Potential
from mlff.properties.averages import block_error
from mlff.properties.distribution import pair_counts, shell_volumes
from mlff.refinement.observables import Goal, Measured, penalised, with_params
from mlff.simulation.md import run_md
from mlff.simulation.velocities import degrees_of_freedom


class Ensemble:
    """The frames of a run at some parameters, and what is needed to weigh them at others."""

    def __init__(
        self, options: Sampling, potential: Potential, precision: str, atoms: ase.Atoms, seed: int, margin: float = 0.0
    ):
        """`potential` in float64; runs are made in `precision`; neighbours are searched `margin` (Å) beyond the cutoff.

        Raises StructureError: no periodic cell.
        """
        if not (atoms.pbc.all() and atoms.cell.rank == 3):
            raise StructureError(
                f"{options.structure}: needs a cell that is periodic in three directions for these averages"
            )
        self.options, self.atoms = options, atoms
        self.reach = potential.cutoff + margin  #: Å
        self.runs = 0  #: made so far
        self._potential, self._precision, self._seed = potential, precision, seed
        self._neighbors = 1
        self._energies = jax.jit(self._of_frames, compiler_options=compiler.quick())
        self.positions = np.zeros((0, len(atoms), 3))  #: (M, n, 3) Å
        self._momenta = atoms.get_momenta()
        self.graphs: Graph | None = None  #: of all frames, stacked
        self.exponents = np.zeros(0)  #: (M,) E/kT at the parameters of the run

    @property
    def kinetic_pressure(self) -> float:
        """eV/Å³, of the runs."""
        return self.kinetic_pressure_at(self.options.temperature, self.atoms.get_volume())

    def kinetic_pressure_at(self, temperature: float, volume: float) -> float:
        """eV/Å³ at K and Å³; the center of mass rests."""
        return degrees_of_freedom(self.atoms, False) / 3 * KB * temperature / volume

    def move(self, temperature: float | None = None, volume: float | None = None) -> None:
        """Runs are at this temperature (K) and volume (Å³) from now on; the last frame is scaled along."""
        if temperature is not None:
            self.options = self.options.model_copy(update={"temperature": temperature})
        if volume is not None:
            scale = (volume / self.atoms.get_volume()) ** (1 / 3)
            self.atoms.set_cell(self.atoms.cell.array * scale, scale_atoms=True)
            self.positions = self.positions * scale

    def sample(self, params: dict) -> None:
        """Make a run with these parameters, from where the last one ended. Raises SimulationError."""
        options = self.options
        atoms = self.atoms.copy()
        first = not self.runs
        if not first:
            atoms.positions = self.positions[-1]
            atoms.set_momenta(self._momenta)
        calculator = MLFFCalculator(with_params(self._potential, params).with_precision(self._precision))
        skipped = options.equilibration if first else options.equilibration // 2
        common = {"ensemble": "nvt", "temperature": options.temperature, "timestep": options.timestep, "tau": options.tau}
        seed = 2 * (1000 * self._seed + self.runs)
        if skipped:
            run_md(atoms, calculator, steps=skipped, seed=seed, keep_velocities=not first, progress=False, **common)
        with tempfile.TemporaryDirectory(prefix="mlff-") as folder:
            file = Path(folder) / "run.traj"
            length = {"steps": options.frames * options.every, "interval": options.every, "trajectory": file}
            keep = bool(skipped) or not first
            run_md(atoms, calculator, seed=seed + 1, keep_velocities=keep, progress=False, **length, **common)
            frames = read(file, ":")[1:]  # the first is the start
        self._take(np.array([frame.positions for frame in frames]), atoms.get_momenta())
        self.exponents = np.asarray(self._energies(params, self.graphs)) / (KB * options.temperature)
        self.runs += 1

    def average(self, params: dict, graphs: Graph, exponents: Array, of_frame: Callable, seen: Array) -> tuple[Array, Array]:
        """Mean of `of_frame(params, graph, seen)` over the frames, and the effective number of frames exp(-Σ w ln w); pure."""

        def both(frame: tuple[Graph, Array]) -> tuple[Array, Array]:
            graph, seen = frame
            return self._energy(params, graph), of_frame(params, graph, seen)

        energies, values = jax.lax.map(jax.checkpoint(both), (graphs, seen))
        log = jax.nn.log_softmax(exponents - energies / (KB * self.options.temperature))
        weights = jnp.exp(log)
        return jnp.tensordot(weights, values, axes=1), jnp.exp(-jnp.sum(weights * log))

    def enough(self, effective: float) -> bool:
        """Whether so many effective frames will do."""
        return bool(effective >= self.options.least * len(self.exponents))

    def again(self) -> Ensemble:
        """One for runs of its own, with other random numbers, that go on from here."""
        other = Ensemble(self.options, self._potential, self._precision, self.atoms.copy(), self._seed + 500)
        other.atoms.positions = self.positions[-1]
        return other

    def state(self) -> dict[str, np.ndarray]:
        """The frames, for a restart."""
        held = {"positions": self.positions, "momenta": self._momenta, "exponents": self.exponents}
        return held | {"runs": np.array(self.runs)}

    def restore(self, held: dict[str, np.ndarray]) -> None:
        """Take up what `state` gave."""
        self.runs = int(held["runs"])
        if self.runs:
            self._take(held["positions"], held["momenta"])
            self.exponents = held["exponents"]

    def _take(self, positions: np.ndarray, momenta: np.ndarray) -> None:
        samples = []
        for frame in positions:
            structure = Structure(self.atoms.numbers.copy(), frame, self.atoms.cell.array.copy(), self.atoms.pbc.copy())
            samples.append(make_sample(structure, self.reach))
        widest = max(sample.sizes.neighbors for sample in samples)
        if widest > self._neighbors:  # with room, so that few runs compile anew
            self._neighbors = round_up(widest + 1, 0.25)
        sizes = Sizes(1, len(self.atoms), self._neighbors)
        graphs = [make_graph([sample], sizes, np.float64) for sample in samples]
        self.graphs = jax.tree.map(lambda *arrays: np.stack(arrays), *graphs)
        self.positions, self._momenta = positions, momenta

    def _energy(self, params: dict, graph: Graph) -> Array:
        return jnp.sum(self._potential.energy(params, graph))

    def _of_frames(self, params: dict, graphs: Graph) -> Array:
        return jax.lax.map(lambda graph: self._energy(params, graph), graphs)


class Averaged:
    """A target that is the mean over the frames of an ensemble."""

    def __init__(self, goal: Goal, ensemble: Ensemble):
        self.goal, self.ensemble = goal, ensemble

        def observable(params: dict, graphs: Graph, exponents: Array, seen: Array) -> tuple[Array, Array]:
            return ensemble.average(params, graphs, exponents, self.of_frame, seen)

        self._compiled = penalised(goal, observable)
        self._seen: tuple[int, np.ndarray] = -1, np.zeros(0)

    def measure(self, params: dict) -> Measured:
        """At these parameters; where too few frames count, after a new run."""
        if self.ensemble.runs:
            gradient, (values, effective) = self._ask(params)
            if self.ensemble.enough(float(effective)):
                return Measured(np.asarray(values), gradient)
        self.ensemble.sample(params)
        gradient, (values, _) = self._ask(params)
        return Measured(np.asarray(values), gradient)

    def fresh(self, potential: Potential) -> tuple[np.ndarray, np.ndarray | None]:
        """From a run of its own; errors from blocks, where these say nothing the scatter of single frames."""
        ensemble = self.ensemble.again()
        params = potential.with_precision("float64").device_params
        ensemble.sample(params)
        seen = self.look(ensemble)
        values = np.asarray(jax.lax.map(lambda frame: self.of_frame(params, *frame), (ensemble.graphs, seen)))
        errors = [block_error(column) for column in values.T]
        known = all(error is not None for error in errors)
        return values.mean(axis=0), np.array(errors) if known else values.std(axis=0)

    def look(self, ensemble: Ensemble) -> np.ndarray:
        """(M, k) what of the frames does not depend on the parameters."""
        return np.zeros((len(ensemble.exponents), 1))

    def of_frame(self, params: dict, graph: Graph, seen: Array) -> Array:
        """(m,) the values of one frame; pure."""
        raise NotImplementedError

    def state(self) -> dict[str, np.ndarray]:
        """Frames of the ensemble."""
        return self.ensemble.state()

    def restore(self, held: dict[str, np.ndarray]) -> None:
        self.ensemble.restore(held)

    def _ask(self, params: dict):
        if self._seen[0] != self.ensemble.runs:
            self._seen = self.ensemble.runs, self.look(self.ensemble)
        return self._compiled(params, self.ensemble.graphs, self.ensemble.exponents, self._seen[1])


class MeanPressure(Averaged):
    """N kT/V less a third of the trace of the stress."""

    def __init__(self, options: Pressure, ensemble: Ensemble, potential: Potential):
        self._potential, self._unit = potential, STRESS[options.unit]
        values, errors = np.array([options.value]), np.array([options.error])
        name = f"pressure at {options.sampling.temperature:g} K"
        super().__init__(Goal(name, options.unit, values, errors, options.weight), ensemble)

    def of_frame(self, params: dict, graph: Graph, seen: Array) -> Array:
        """(1,)"""
        said = derivatives.predict(lambda g: self._potential.energy(params, g), graph, stress=True)
        return (self.ensemble.kinetic_pressure - jnp.trace(said.stress[0]) / 3)[None] / self._unit


class RadialDistribution(Averaged):
    """g(r) of a pair of elements in the bins of the goal's file."""

    def __init__(self, options: Distribution, table: np.ndarray, ensemble: Ensemble):
        """`table` (m, 2 or 3): r in Å, g, error bars. Raises ConfigError: bins uneven or too far out, an element not there."""
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
        density = np.count_nonzero(atoms.numbers == b) / atoms.get_volume()
        geometry = atoms.cell.array, atoms.pbc, [self._pair], self._edges
        counts = [pair_counts(atoms.numbers, frame, *geometry)[a, b] for frame in ensemble.positions]
        return np.array(counts) / (density * shell_volumes(self._edges))

    def of_frame(self, params: dict, graph: Graph, seen: Array) -> Array:
        """(m,)"""
        return seen
