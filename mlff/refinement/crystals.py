"""Observables of a crystal at its minimum as functions of the parameters: elastic constants, volume."""

from __future__ import annotations

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics import compiler
from mlff.basics.errors import StructureError
from mlff.basics.units import STRESS
from mlff.config import observables as options
from mlff.graph import Graph
from mlff.potential.potential import Potential
from mlff.properties.elasticity import CUBIC, elasticity
from mlff.properties.minimum import need_cell, relaxed
from mlff.refinement.observables import FAR, NEWTON, SETTLED, TIGHT, Following, Goal, Measured, with_params

_LENGTH = 5.0  #: Å: a strain times this is compared with displacements


class Crystal(Following):
    """A crystal x that follows the parameters θ by Newton steps, in its atoms and, if wanted, its cell.

    Coordinates z (3n + 6,) are displacements of the atoms, Å, and strains (order xx yy zz yz xz xy, shears twice the tensor's),
    both zero where the crystal is. With the pull p = (1/V) dE/dz, zero at the minimum but for the stress of a cell that stays, and its
    Jacobian J = dp/dz, a function S(x, θ) has the gradient ∂S/∂θ - a ∂p/∂θ, where J'a = ∂S/∂z: the implicit function theorem.
    """

    def __init__(self, goal: Goal, potential: Potential, atoms: ase.Atoms, cell: bool):
        """`cell`: whether it relaxes too. Raises StructureError: no cell; SimulationError: it comes to no minimum."""
        need_cell(atoms, "elastic constants and volumes")
        super().__init__(goal, potential, relaxed(potential, atoms, cell, TIGHT))
        self._cell = cell
        count = len(atoms)
        whole = np.tile(np.eye(3), (count, 1)) / np.sqrt(count)
        inner = np.linalg.svd(whole, full_matrices=True)[0][:, 3:]  # without translations
        self._inner = np.concatenate([inner, np.zeros((6, inner.shape[1]))])
        self._strains = np.eye(3 * count + 6)[:, -6:]
        self._moving = np.concatenate([self._inner, self._strains], axis=1) if cell else self._inner
        fast = {"compiler_options": _options()}
        self._curved = jax.jit(self._derivatives, **fast)
        self._pulled = jax.jit(jax.grad(lambda params, graph, along: jnp.vdot(along, self._pull(params, graph))), **fast)

    def _settle(self, params: dict) -> tuple[Graph, np.ndarray]:
        """Newton steps to the minimum: the graph there and J (3n + 6, 3n + 6)."""
        for _ in range(NEWTON):
            graph, basis = self._graph(), self._moving
            pull, jacobian = (np.asarray(found) for found in self._curved(params, graph))
            step = -basis @ np.linalg.solve(basis.T @ jacobian @ basis, basis.T @ pull)
            length = max(np.abs(step[:-6]).max(), _LENGTH * np.abs(step[-6:]).max())
            if length < SETTLED:
                return graph, jacobian
            if length < FAR:
                deformation = np.asarray(_deformation(step))
                self._atoms.positions = (self._atoms.positions + step[:-6].reshape(-1, 3)) @ deformation
                self._atoms.cell = self._atoms.cell.array @ deformation
            else:
                self._atoms = relaxed(with_params(self._potential, params), self._atoms, self._cell, TIGHT)
        raise StructureError(f"{self.goal.name}: the crystal has no minimum near where it was")

    def _implicit(self, params: dict, graph: Graph, jacobian: np.ndarray, of_coordinates: np.ndarray) -> dict:
        """a ∂p/∂θ for ∂S/∂z (3n + 6,)."""
        basis = self._moving
        adjoint = basis @ np.linalg.solve((basis.T @ jacobian @ basis).T, basis.T @ of_coordinates)
        return self._pulled(params, graph, adjoint)

    def _pull(self, params: dict, graph: Graph) -> Array:
        """(3n + 6,) (1/V) dE/dz."""
        nothing = jnp.zeros(graph.positions.size + 6)
        gradient = jax.grad(lambda z: jnp.sum(self._potential.energy(params, _deformed(graph, z))))(nothing)
        return gradient / jnp.abs(jnp.linalg.det(graph.cell[0]))

    def _derivatives(self, params: dict, graph: Graph) -> tuple[Array, Array]:
        """p (3n + 6,) and J (3n + 6, 3n + 6)."""
        nothing = jnp.zeros(graph.positions.size + 6)
        pull, back = jax.vjp(lambda z: self._pull(params, _deformed(graph, z)), nothing)
        return pull, jax.lax.map(lambda row: back(row)[0], jnp.eye(len(nothing)))


class ElasticConstants(Crystal):
    """dσ/dε with atoms relaxed at every strain.

    With w_i what atoms and cell do under strain i (w'J has no part left along the atoms), C_ij = w_i'J w_j. A sum Σ c_ij C_ij is
    Σ λ y'J y, λ the eigenvalues of c and y = Σ q_i w_i of its eigenvectors; to first order in θ and x the w stay as they are.
    """

    def __init__(self, config: options.ElasticConstants, potential: Potential, atoms: ase.Atoms):
        """Raises StructureError, SimulationError: no cell, no minimum, atoms that are not held in place."""
        values = np.array(list(config.values.values()))
        name = f"{', '.join(config.values)} of {atoms.get_chemical_formula()}"
        goal = Goal(name, config.unit, values, np.full(len(values), config.error), config.weight)
        super().__init__(goal, potential, atoms, config.relax_cell)
        cubic = elasticity(potential, self._atoms).cubic is not None
        self._means = np.stack([_mean(name, cubic) for name in config.values]) * STRESS["GPa"] / STRESS[config.unit]
        self._slopes = jax.jit(jax.grad(self._sum, argnums=(0, 1)), compiler_options=_options())

    def measure(self, params: dict) -> Measured:
        """At these parameters; the crystal moves along."""
        graph, jacobian = self._settle(params)
        inner, strains = self._inner, self._strains
        answers = strains - inner @ np.linalg.solve(inner.T @ jacobian @ inner, inner.T @ jacobian @ strains)
        values = self._values(strains.T @ jacobian @ answers / STRESS["GPa"])
        goal = self.goal
        slope = 2 * goal.weight * (values - goal.values) / goal.errors**2 / len(values) / STRESS["GPa"]
        curvatures, vectors = np.linalg.eigh(np.tensordot(slope, self._means, axes=1))
        nothing = np.zeros(len(jacobian))
        of_params, of_coordinates = self._slopes(params, nothing, graph, curvatures, (answers @ vectors).T)
        implicit = self._implicit(params, graph, jacobian, np.asarray(of_coordinates))
        return Measured(values, jax.tree.map(jnp.subtract, of_params, implicit))

    def fresh(self, potential: Potential) -> tuple[np.ndarray, None]:
        """Relaxed and computed as `mlff elastic` does."""
        potential = potential.with_precision("float64")
        return self._values(elasticity(potential, relaxed(potential, self._atoms, self._cell, TIGHT)).constants), None

    def _values(self, constants: np.ndarray) -> np.ndarray:
        """(m,) in the goal's unit, of constants (6, 6) in GPa."""
        return np.tensordot(self._means, constants, axes=2)

    def _sum(self, params: dict, coordinates: Array, graph: Graph, curvatures: Array, directions: Array) -> Array:
        """Σ λ y'J y over directions (6, 3n + 6) at coordinates z."""
        here = _deformed(graph, coordinates)

        def curvature(y: Array) -> Array:
            return jnp.vdot(y, jax.grad(lambda z: jnp.vdot(y, self._pull(params, _deformed(here, z))))(jnp.zeros_like(y)))

        return jnp.vdot(curvatures, jax.lax.map(jax.checkpoint(curvature), directions))


class EquilibriumVolume(Crystal):
    """Volume per atom, Å³, at the minimum of atoms and cell."""

    def __init__(self, config: options.Volume, potential: Potential, atoms: ase.Atoms):
        """Raises StructureError, SimulationError: no cell, no minimum."""
        values, errors = np.array([config.value]), np.array([config.error])
        goal = Goal(f"volume of {atoms.get_chemical_formula()} per atom", "Å^3", values, errors, config.weight)
        super().__init__(goal, potential, atoms, True)

    def measure(self, params: dict) -> Measured:
        """At these parameters; the crystal moves along."""
        graph, jacobian = self._settle(params)
        goal, values = self.goal, np.array([self._atoms.get_volume() / len(self._atoms)])
        slope = 2 * goal.weight * (values - goal.values) / goal.errors**2
        of_coordinates = self._strains[:, :3].sum(axis=1) * slope * values
        implicit = self._implicit(params, graph, jacobian, of_coordinates)
        return Measured(values, jax.tree.map(jnp.negative, implicit))

    def fresh(self, potential: Potential) -> tuple[np.ndarray, None]:
        """Relaxed as `mlff relax --cell` does."""
        found = relaxed(potential.with_precision("float64"), self._atoms, True, TIGHT)
        return np.array([found.get_volume() / len(found)]), None


def _options() -> dict:
    """Of the compiler: crystals are small, and third derivatives take long to compile."""
    return compiler.hasty() if jax.default_backend() == "cpu" else compiler.quick()


def _deformation(coordinates: Array) -> Array:
    """(3, 3) 1 + ε of coordinates (3n + 6,)."""
    xx, yy, zz, yz, xz, xy = coordinates[-6:]
    return jnp.eye(3) + jnp.array([[xx, xy / 2, xz / 2], [xy / 2, yy, yz / 2], [xz / 2, yz / 2, zz]])


def _deformed(graph: Graph, coordinates: Array) -> Graph:
    """The graph of one structure, displaced, then strained."""
    deformation = _deformation(coordinates)
    positions = (graph.positions + coordinates[:-6].reshape(-1, 3)) @ deformation
    return graph._replace(positions=positions, cell=graph.cell @ deformation)


def _mean(name: str, cubic: bool) -> np.ndarray:
    """(6, 6) symmetric weights, of sum 1, of what a name stands for."""
    alone = ((int(name[1]) - 1, int(name[2]) - 1),)
    weights = np.zeros((6, 6))
    for pair in CUBIC.get(name, alone) if cubic else alone:
        weights[pair] += 1
        weights[pair[::-1]] += 1
    return weights / weights.sum()
