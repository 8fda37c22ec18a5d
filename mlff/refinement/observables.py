"""Observables of single structures as functions of the parameters: harmonic wavenumbers, energy differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics import compiler
from mlff.basics.errors import ConfigError, StructureError
from mlff.basics.units import ENERGY, HBAR, INVERSE_CM, TERAHERTZ
from mlff.config.observables import EnergyDifference, Frequencies
from mlff.data.batching import Sizes, make_graph, make_sample, round_up
from mlff.data.structure import Structure
from mlff.graph import Graph
from mlff.potential import derivatives
from mlff.potential.potential import Potential
from mlff.properties.minimum import relaxed
from mlff.properties.vibrations import mass_weighted_basis, vibrations

TIGHT = 1e-3  #: eV/Å times a hundredth: how far structures are relaxed
FAR = 0.05  #: Å that one Newton step may move an atom; beyond it the structure is relaxed anew
SETTLED = 1e-8  #: Å: a Newton step so short is none
NEWTON = 10  #: steps at most
_FLAT = 1e-3  #: of the unit: the derivative of a wavenumber nearer to zero is that here
UNITS = {"cm^-1": INVERSE_CM, "THz": TERAHERTZ, "meV": 1e-3}  #: eV


class Goal(NamedTuple):
    """What an observable is to become."""

    name: str
    unit: str
    values: np.ndarray  #: (m,)
    errors: np.ndarray  #: (m,) error bars
    weight: float

    def deviation(self, values: np.ndarray) -> float:
        """Root mean square deviation in error bars."""
        return float(np.sqrt(np.mean(((values - self.values) / self.errors) ** 2)))


class Measured(NamedTuple):
    """An observable at some parameters."""

    values: np.ndarray  #: (m,)
    gradient: Any  #: of weight times the mean squared deviation in error bars, a tree like the parameters


class Target(Protocol):
    """An observable with its goal. Parameters are whole trees of `Potential.params` in float64."""

    goal: Goal

    def measure(self, params: dict) -> Measured: ...
    def fresh(self, potential: Potential) -> tuple[np.ndarray, np.ndarray | None]:
        """Computed anew, independent of what the optimisation saw: values (m,), and their statistical errors (None: exact)."""
        ...

    def state(self) -> dict[str, np.ndarray]: ...
    def restore(self, held: dict[str, np.ndarray]) -> None: ...


def penalised(goal: Goal, observable: Callable) -> Callable:
    """Compiled (params, *arguments) -> (gradient of weight times the mean squared deviation, (values, extra)).

    `observable(params, *arguments)` gives values (m,) and anything besides.
    """

    def penalty(params: dict, *arguments) -> tuple[Array, tuple[Array, Any]]:
        values, extra = observable(params, *arguments)
        return goal.weight * jnp.mean(((values - goal.values) / goal.errors) ** 2), (values, extra)

    return jax.jit(jax.grad(penalty, has_aux=True), compiler_options=compiler.quick())


def with_params(potential: Potential, params: dict) -> Potential:
    """The potential with other parameters."""
    return replace(potential, params=jax.tree.map(np.asarray, params))


class Following:
    """A target whose structure stays at the minimum as the parameters change."""

    def __init__(self, goal: Goal, potential: Potential, atoms: ase.Atoms):
        """`atoms` at the minimum."""
        self.goal = goal
        self._potential, self._atoms, self._neighbors = potential, atoms, 1

    def state(self) -> dict[str, np.ndarray]:
        """The structure."""
        return {"positions": self._atoms.positions.copy(), "cell": self._atoms.cell.array.copy()}

    def restore(self, held: dict[str, np.ndarray]) -> None:
        """Take up what `state` gave."""
        self._atoms.positions, self._atoms.cell = held["positions"], held.get("cell", self._atoms.cell)

    def _graph(self) -> Graph:
        sample = make_sample(Structure.from_atoms(self._atoms), self._potential.cutoff)
        if sample.sizes.neighbors > self._neighbors:  # with room, so that few changes compile anew
            self._neighbors = round_up(sample.sizes.neighbors + 1, 0.25)
        sizes = Sizes(1, len(self._atoms), self._neighbors)
        return make_graph([sample], sizes, np.float64, bool(self._atoms.pbc.any()))


class Wavenumbers(Following):
    """Harmonic wavenumbers at the minimum of the current parameters θ.

    The structure x follows θ by Newton steps. With S = Σ c v'H(x, θ)v over the modes, c the slope of the penalty with respect to
    an eigenvalue and v held fixed (Hellmann-Feynman: right for degenerate modes too), the gradient is ∂S/∂θ - a ∂g/∂θ, where g
    is the gradient of the energy and H a = ∂S/∂x: the implicit function theorem, so that the change of the structure counts.
    """

    def __init__(self, options: Frequencies, values: np.ndarray, potential: Potential, atoms: ase.Atoms):
        """`values` in the unit of the options. Raises ConfigError, StructureError, SimulationError: it comes to no minimum."""
        count = mass_weighted_basis(atoms)[1].shape[1]
        wanted = tuple(range(count)) if options.modes is None else options.modes
        if len(wanted) != len(values) or max(wanted) >= count:
            raise ConfigError(
                f"{len(values)} wavenumbers are given for {len(wanted)} modes; the structure has {count} (numbered from 0)"
            )
        self._options, self._modes = options, np.array(wanted)
        errors = np.full(len(values), options.error)
        goal = Goal(f"frequencies of {atoms.get_chemical_formula()}", options.unit, values, errors, options.weight)
        super().__init__(goal, potential, relaxed(potential, atoms, tolerance=TIGHT))
        self._root = np.repeat(np.sqrt(atoms.get_masses()), 3)
        fast = {"compiler_options": compiler.quick()}
        self._curved = jax.jit(self._derivatives, **fast)
        self._slopes = jax.jit(jax.grad(self._sum, argnums=(0, 1)), **fast)
        self._pulled = jax.jit(jax.grad(self._along), **fast)

    def measure(self, params: dict) -> Measured:
        """At these parameters; the structure moves along."""
        graph, basis, matrix = self._settle(params)
        squares, vectors = np.linalg.eigh(matrix)
        goal, unit = self.goal, HBAR / UNITS[self._options.unit]
        chosen = squares[self._modes]
        values = np.sign(chosen) * np.sqrt(np.abs(chosen)) * unit
        slope = 2 * goal.weight * (values - goal.values) / goal.errors**2 / len(values)
        slope = slope * unit**2 / (2 * np.maximum(np.abs(values), _FLAT))
        directions = (basis @ vectors[:, self._modes] / self._root[:, None]).T.reshape(-1, len(self._atoms), 3)
        of_params, of_positions = self._slopes(params, graph.positions, graph, slope, directions)
        whole = basis.T @ (np.ravel(of_positions) / self._root)
        adjoint = (basis @ np.linalg.solve(matrix, whole) / self._root).reshape(-1, 3)
        return Measured(values, jax.tree.map(jnp.subtract, of_params, self._pulled(params, graph, adjoint)))

    def fresh(self, potential: Potential) -> tuple[np.ndarray, None]:
        """Relaxed and computed as `mlff vibrations` does."""
        potential = potential.with_precision("float64")
        found = vibrations(potential, relaxed(potential, self._atoms, tolerance=TIGHT)).wavenumbers
        return found[self._modes] * INVERSE_CM / UNITS[self._options.unit], None

    def _settle(self, params: dict) -> tuple[Graph, np.ndarray, np.ndarray]:
        """Newton steps to the minimum: the graph there, the basis (3n, m), and the mass-weighted Hessian in it (m, m)."""
        for _ in range(NEWTON):
            graph, basis = self._graph(), mass_weighted_basis(self._atoms)[1]
            gradient, hessian = (np.asarray(found) for found in self._curved(params, graph))
            matrix = basis.T @ (0.5 * (hessian + hessian.T) / np.outer(self._root, self._root)) @ basis
            step = basis @ np.linalg.solve(matrix, basis.T @ (gradient.ravel() / self._root)) / self._root
            if np.abs(step).max() < SETTLED:
                return graph, basis, matrix
            if not np.abs(step).max() < FAR:
                self._atoms = relaxed(with_params(self._potential, params), self._atoms, tolerance=TIGHT)
            else:
                self._atoms.positions -= step.reshape(-1, 3)
        raise StructureError(f"{self.goal.name}: the structure has no minimum near where it was")

    def _slope(self, params: dict, positions: Array, graph: Graph) -> Array:
        return jax.grad(lambda r: jnp.sum(self._potential.energy(params, graph._replace(positions=r))))(positions)

    def _derivatives(self, params: dict, graph: Graph) -> tuple[Array, Array]:
        """(n, 3) dE/dR and (3n, 3n) d²E/dR²."""
        size = graph.positions.size
        hessian = derivatives.hessian(lambda g: self._potential.energy(params, g), graph)
        return self._slope(params, graph.positions, graph), hessian.reshape(size, size)

    def _sum(self, params: dict, positions: Array, graph: Graph, slope: Array, directions: Array) -> Array:
        """Σ slope v'Hv over directions (m, n, 3)."""

        def curvature(v: Array) -> Array:
            return jnp.vdot(v, jax.vjp(lambda r: self._slope(params, r, graph), positions)[1](v)[0])

        return jnp.vdot(slope, jax.lax.map(jax.checkpoint(curvature), directions))

    def _along(self, params: dict, graph: Graph, direction: Array) -> Array:
        return jnp.vdot(direction, self._slope(params, graph.positions, graph))


class Difference:
    """Energy of one structure less that of another, both as they stand."""

    def __init__(self, options: EnergyDifference, potential: Potential, pair: tuple[ase.Atoms, ase.Atoms]):
        self._options, self._pair = options, pair
        graphs = tuple(potential.graph_of(atoms) for atoms in pair)
        first, second = (potential.baseline_energy(atoms.numbers) for atoms in pair)
        factor = ENERGY[options.unit]

        def difference(params: dict) -> tuple[Array, None]:
            one, other = (jnp.sum(potential.energy(params, graph)) for graph in graphs)
            return (other - one + second - first)[None] / factor, None

        values, errors = np.array([options.value]), np.array([options.error])
        self.goal = Goal("energy difference", options.unit, values, errors, options.weight)
        self._compiled = penalised(self.goal, difference)

    def measure(self, params: dict) -> Measured:
        """At these parameters."""
        gradient, (values, _) = self._compiled(params)
        return Measured(np.asarray(values), gradient)

    def fresh(self, potential: Potential) -> tuple[np.ndarray, None]:
        """From `Potential.predict`, in float64."""
        first, second = potential.with_precision("float64").predict(list(self._pair), stress=False)
        return np.array([second.energy - first.energy]) / ENERGY[self._options.unit], None

    def state(self) -> dict[str, np.ndarray]:
        """Nothing changes."""
        return {}

    def restore(self, held: dict[str, np.ndarray]) -> None:
        """Nothing to take up."""
