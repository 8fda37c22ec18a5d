"""Averages over runs of molecular dynamics as functions of the parameters, by reweighting (DiffTRe).

Frames of one run stand for the canonical ensemble at other parameters if each has the weight exp(-(E - E0)/kT): E its energy at
these parameters, E0 at those of the run. No derivative goes through the dynamics. The farther the parameters go, the fewer
frames carry the weight; then a new run is made (Thaler & Zavadlav, Nat. Commun. 12, 6884 (2021)). Unlike
`mlff.simulation.trajectory_gradient`, every frame has its neighbours of its own, so that liquids may diffuse, and the observable may
depend on the potential (the pressure). A run may be biased: the weights of its frames undo the bias. In a run at constant
pressure each frame keeps its volume; the weights are the same, as the pressure times the volume is the same in both.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase.io import read
from jax import Array

from mlff.basics import compiler
from mlff.basics.units import KB
from mlff.config.sampling import Sampling
from mlff.data.batching import Sizes, make_graph, make_sample, round_up
from mlff.data.structure import Structure
from mlff.graph import Graph
from mlff.interfaces.ase import MLFFCalculator
from mlff.potential.potential import Potential
from mlff.refinement.fixed_bias import FixedBias
from mlff.refinement.observables import with_params
from mlff.simulation.md import run_md
from mlff.simulation.velocities import degrees_of_freedom


class Frames(NamedTuple):
    """What weighs the frames of a run."""

    graphs: Graph  #: stacked
    exponents: Array  #: (M,) E/kT at the parameters of the run
    biases: Array  #: (M,) energy of the bias over kT


class Ensemble:
    """The frames of a run at some parameters, and what is needed to weigh them at others."""

    def __init__(
        self, options: Sampling, potential: Potential, precision: str, atoms: ase.Atoms, seed: int, margin: float = 0.0
    ):
        """`potential` in float64; runs are made in `precision`; neighbours are searched `margin` (Å) beyond the cutoff.

        Raises ConfigError, DataError: a wrong bias.
        """
        self.options, self.atoms = options, atoms
        self.bias = None if options.bias is None else FixedBias(options, atoms)
        self.reach = potential.cutoff + margin  #: Å
        self.runs = 0  #: made so far
        self._potential, self._precision, self.seed = potential, precision, seed
        self._neighbors = 1
        self._energies = jax.jit(self._of_frames, compiler_options=compiler.quick())
        self.positions = np.zeros((0, len(atoms), 3))  #: (M, n, 3) Å
        self.cells = np.zeros((0, 3, 3))  #: (M, 3, 3) Å
        self._momenta = atoms.get_momenta()
        self.graphs: Graph | None = None  #: of all frames, stacked
        self.exponents = np.zeros(0)  #: (M,) E/kT at the parameters of the run
        self.biases = np.zeros(0)  #: (M,) energy of the bias over kT
        self.variables = np.zeros((0, 0))  #: (M, d) values of the variables of the bias

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
            self.positions, self.cells = self.positions * scale, self.cells * scale

    def sample(self, params: dict) -> None:
        """Make a run with these parameters, from where the last one ended. Raises SimulationError."""
        options = self.options
        atoms = self.atoms.copy()
        first = not self.runs
        if not first:
            atoms.cell, atoms.positions = self.cells[-1], self.positions[-1]
            atoms.set_momenta(self._momenta)
        calculator = MLFFCalculator(with_params(self._potential, params).with_precision(self._precision))
        skipped = options.equilibration if first else options.equilibration // 2
        common = options.settings | {"bias": None if self.bias is None else self.bias.bias}
        seed = 2 * (1000 * self.seed + self.runs)
        if skipped:
            run_md(atoms, calculator, steps=skipped, seed=seed, keep_velocities=not first, progress=False, **common)
        with tempfile.TemporaryDirectory(prefix="mlff-") as folder:
            file = Path(folder) / "run.traj"
            length = {"steps": options.frames * options.every, "interval": options.every, "trajectory": file}
            keep = bool(skipped) or not first
            run_md(atoms, calculator, seed=seed + 1, keep_velocities=keep, progress=False, **length, **common)
            frames = read(file, ":")[1:]  # the first is the start
        positions, cells = (np.array(one) for one in zip(*((f.positions, f.cell.array) for f in frames), strict=True))
        self._take(positions, cells, atoms.get_momenta())
        self.exponents = np.asarray(self._energies(params, self.graphs)) / (KB * options.temperature)
        self.runs += 1

    def average(self, params: dict, frames: Frames, of_frame: Callable, seen: Array) -> tuple[Array, Array]:
        """Mean of `of_frame(params, graph, seen)` over the frames without their bias, and how many of them count; pure.

        That number, exp(-Σ w ln w), is of the weights that the parameters give, so that biased frames count as others do.
        """

        def both(frame: tuple[Graph, Array]) -> tuple[Array, Array]:
            graph, seen = frame
            return self._energy(params, graph), of_frame(params, graph, seen)

        energies, values = jax.lax.map(jax.checkpoint(both), (frames.graphs, seen))
        log = frames.exponents - energies / (KB * self.options.temperature)
        weights, counted = jax.nn.softmax(log + frames.biases), jax.nn.log_softmax(log)
        return jnp.tensordot(weights, values, axes=1), jnp.exp(-jnp.sum(jnp.exp(counted) * counted))

    def enough(self, effective: float) -> bool:
        """Whether so many effective frames will do."""
        return bool(effective >= self.options.least * len(self.exponents))

    def again(self) -> Ensemble:
        """One for runs of its own, with other random numbers, that go on from here."""
        other = Ensemble(self.options, self._potential, self._precision, self.atoms.copy(), self.seed + 500)
        other.atoms.cell, other.atoms.positions = self.cells[-1], self.positions[-1]
        return other

    def state(self) -> dict[str, np.ndarray]:
        """The frames, for a restart."""
        held = {"positions": self.positions, "cells": self.cells, "momenta": self._momenta, "exponents": self.exponents}
        return held | {"runs": np.array(self.runs)}

    def restore(self, held: dict[str, np.ndarray]) -> None:
        """Take up what `state` gave."""
        self.runs = int(held["runs"])
        if self.runs:
            cells = held.get("cells", np.tile(self.atoms.cell.array, (len(held["positions"]), 1, 1)))
            self._take(held["positions"], cells, held["momenta"])
            self.exponents = held["exponents"]

    @property
    def frames(self) -> Frames:
        """For `average`."""
        return Frames(self.graphs, self.exponents, self.biases)

    def _take(self, positions: np.ndarray, cells: np.ndarray, momenta: np.ndarray) -> None:
        samples = []
        for frame, cell in zip(positions, cells, strict=True):
            structure = Structure(self.atoms.numbers.copy(), frame, cell.copy(), self.atoms.pbc.copy())
            samples.append(make_sample(structure, self.reach))
        widest = max(sample.sizes.neighbors for sample in samples)
        if widest > self._neighbors:  # with room, so that few runs compile anew
            self._neighbors = round_up(widest + 1, 0.25)
        sizes = Sizes(1, len(self.atoms), self._neighbors)
        periodic = bool(self.atoms.pbc.any())
        graphs = [make_graph([sample], sizes, np.float64, periodic) for sample in samples]
        self.graphs = jax.tree.map(lambda *arrays: np.stack(arrays), *graphs)
        self.positions, self.cells, self._momenta = positions, cells, momenta
        self.biases = np.zeros(len(positions))
        if self.bias is not None:
            self.variables, energies = self.bias.at(positions)
            self.biases = energies / (KB * self.options.temperature)

    def _energy(self, params: dict, graph: Graph) -> Array:
        return jnp.sum(self._potential.energy(params, graph))

    def _of_frames(self, params: dict, graphs: Graph) -> Array:
        return jax.lax.map(lambda graph: self._energy(params, graph), graphs)
