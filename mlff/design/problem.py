"""Energy and properties of the structure at x, and the gradient of what is minimised, through the potentials."""

from __future__ import annotations

from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics import compiler
from mlff.basics.errors import StructureError
from mlff.data.batching import Sizes, make_graph, make_sample, round_up
from mlff.data.structure import Structure
from mlff.design.space import Space
from mlff.design.targets import Other, Property
from mlff.graph import Graph
from mlff.potential import derivatives
from mlff.potential.potential import Potential
from mlff.properties.minimum import TOLERANCE, relaxed

_FAR = 0.05  #: Å that one Newton step may move an atom; beyond it the atoms are relaxed step by step
_SETTLED = 1e-9  #: Å: a Newton step so short is none
_NEWTON = 20  #: steps at most


class Pull(NamedTuple):
    """How the properties are drawn to where they shall be: a Lagrange function with a penalty (augmented Lagrangian)."""

    wanted: np.ndarray  #: (m,)
    multipliers: np.ndarray  #: (m,) eV for an error bar
    strength: float  #: eV for a squared error bar


class Point(NamedTuple):
    """What is known at an x."""

    energy: float  #: eV, without reference energies
    values: np.ndarray  #: (m,) of all properties, one after the other
    objective: float  #: eV
    gradient: np.ndarray  #: (size,) of the objective by x


class Problem:
    """Minimised is E + λ·c + ½ ρ c·c with c the deviations from what is wanted, in error bars."""

    def __init__(self, potential: Potential, properties: list[Property], space: Space):
        """Potentials in float64; within their `scope`."""
        self.potential, self.properties, self.space = potential, properties, space
        self.errors = np.concatenate([np.full(len(one.wanted), one.error) for one in properties])
        self._parts = [Other(potential, None), *(one.other for one in properties if one.other is not None)]
        self._params = tuple(part.potential.device_params for part in self._parts)
        self._baselines = [part.potential.baseline_energy(space.atoms.numbers) for part in self._parts]
        self._stress = any(one.stress for one in properties)
        self._neighbors = [1] * len(self._parts)
        fast = {"compiler_options": compiler.quick()}
        self._objective = jax.jit(jax.value_and_grad(self._lagrange, argnums=(2, 3), has_aux=True), **fast)
        self._curved = jax.jit(self._derivatives, **fast)
        self._along = jax.jit(jax.grad(self._force_along, argnums=2), **fast)

    def at(self, x: np.ndarray, pull: Pull) -> Point:
        """The structure at x; atoms that follow the cell come to rest first. Raises StructureError, SimulationError."""
        inverse = self._settle(x) if self.space.relaxed else None
        graphs = self._graphs(x)
        objective, (energy, values), of_positions, of_strain = self._differentiated(graphs, pull)
        if inverse is not None:
            of_strain = of_strain - self._following(graphs, inverse, of_positions)
        gradient = self.space.gradient(x, of_positions, of_strain)
        return Point(float(energy), np.asarray(values), float(objective), gradient)

    def slopes(self, x: np.ndarray) -> np.ndarray:
        """(m,) length of the gradient of each value, for a change of x by 1."""
        nothing = Pull(*np.zeros((2, len(self.errors))), 0.0)
        of_energy = self.at(x, nothing).gradient
        each = [self.at(x, nothing._replace(multipliers=row)).gradient - of_energy for row in np.diag(self.errors)]
        return np.linalg.norm(each, axis=1)

    def fresh(self, x: np.ndarray) -> tuple[ase.Atoms, float, list[list[float]]]:
        """The structure at x, its energy (eV) and the values of each property, from `Potential.predict`."""
        atoms = self.space.structure(x)
        (own,) = self.potential.predict([atoms])
        values = []
        for one in self.properties:
            other = own
            if one.other is not None:
                (other,) = one.other.potential.predict([self._of_part(one.other, x)], stress=False)
            values.append(np.asarray(one.of(np.float64(own.energy), np.float64(other.energy), own.stress)).tolist())
        return atoms, own.energy, values

    # --- compiled: of displacements (n, 3) and a strain (3, 3) on top of the graphs ---------------------------------

    def _values(self, params: tuple, graphs: tuple, moves: Array, strain: Array) -> tuple[Array, Array]:
        """Energy, eV, and the values of all properties (m,)."""
        moved = [
            _strained(graph, moves if part.atoms is None else 0.0, strain)
            for part, graph in zip(self._parts, graphs, strict=True)
        ]
        asked = list(zip(self._parts, params, moved, self._baselines, strict=True))
        energies = [jnp.sum(part.potential.energy(p, graph)) + base for part, p, graph, base in asked]
        stress = self._stress_of(params[0], moved[0]) if self._stress else jnp.zeros((3, 3))
        others = iter(energies[1:])
        values = [
            one.of(energies[0], next(others) if one.other is not None else energies[0], stress) for one in self.properties
        ]
        return energies[0] - self._baselines[0], jnp.concatenate(values)

    def _stress_of(self, params: Any, graph: Graph) -> Array:
        return derivatives.predict(lambda g: self.potential.energy(params, g), graph, stress=True).stress[0]

    def _lagrange(self, params: tuple, graphs: tuple, moves: Array, strain: Array, pull: Pull):
        energy, values = self._values(params, graphs, moves, strain)
        away = (values - pull.wanted) / self.errors
        return energy + pull.multipliers @ away + 0.5 * pull.strength * away @ away, (energy, values)

    def _slope(self, params: Any, graph: Graph, moves: Array, strain: Array) -> Array:
        """(n, 3) dE/d`moves`."""
        return jax.grad(lambda m: jnp.sum(self.potential.energy(params, _strained(graph, m, strain))))(moves)

    def _derivatives(self, params: Any, graph: Graph) -> tuple[Array, Array]:
        hessian = derivatives.hessian(lambda g: self.potential.energy(params, g), graph)
        return self._slope(params, graph, *self._nothing()), hessian

    def _force_along(self, params: Any, graph: Graph, strain: Array, direction: Array) -> Array:
        return jnp.vdot(direction, self._slope(params, graph, self._nothing()[0], strain))

    # --- atoms that follow the cell -----------------------------------------------------------------------------------

    def _settle(self, x: np.ndarray) -> np.ndarray:
        """Newton steps of the atoms to rest; the inverse (3k, 3k) of the Hessian of those that move."""
        moving, n = self.space.moving, len(self.space.atoms)
        for _ in range(_NEWTON):
            gradient, hessian = (np.asarray(found) for found in self._curved(self._params[0], self._graphs(x)[0]))
            matrix = hessian[moving][:, :, moving].reshape(3 * len(moving), -1)
            matrix = 0.5 * (matrix + matrix.T)
            if len(moving) == n:  # the whole may be shifted at no cost: it stays
                matrix = matrix + np.kron(np.full((n, n), max(np.trace(matrix) / (3 * n), 1.0) / n), np.eye(3))
            inverse = np.linalg.inv(matrix)
            step = np.zeros((n, 3))
            step[moving] = -(inverse @ gradient[moving].ravel()).reshape(-1, 3)
            longest = np.abs(step).max()
            if longest < _SETTLED:
                return inverse
            if longest < _FAR:
                self.space.follow(x, step)
            else:
                held = self.space.structure(x)
                held.set_constraint(ase.constraints.FixAtoms(sorted(set(range(n)) - set(moving.tolist()))))
                self.space.follow(x, relaxed(self.potential, held, tolerance=TOLERANCE).positions - held.positions)
        raise StructureError("the atoms come to no rest near where they were: the structure has no minimum in this cell")

    def _following(self, graphs: tuple, inverse: np.ndarray, of_positions: np.ndarray) -> np.ndarray:
        """(3, 3) what the derivative by the strain has less, since the atoms move with it (implicit function theorem)."""
        moving = self.space.moving
        adjoint = np.zeros_like(of_positions)
        adjoint[moving] = (inverse @ of_positions[moving].ravel()).reshape(-1, 3)
        return np.asarray(self._along(self._params[0], graphs[0], self._nothing()[1], adjoint))

    # ------------------------------------------------------------------------------------------------------------------

    def _differentiated(self, graphs: tuple, pull: Pull):
        pull = Pull(*(np.asarray(part, np.float64) for part in pull))  # one type, or it is compiled again
        (objective, aux), (of_positions, of_strain) = self._objective(self._params, graphs, *self._nothing(), pull)
        return objective, aux, np.asarray(of_positions), np.asarray(of_strain)

    def _nothing(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(self.space.atoms), 3)), np.zeros((3, 3))

    def _graphs(self, x: np.ndarray) -> tuple[Graph, ...]:
        """Of all structures at x, one for each energy."""
        graphs = []
        for number, part in enumerate(self._parts):
            atoms = self._of_part(part, x)
            sample = make_sample(Structure.from_atoms(atoms), part.potential.cutoff)
            if (
                sample.sizes.neighbors > self._neighbors[number]
            ):  # with room, so that few changes compile anew (more where cells shrink)
                room = 1.4 if len(self.space.strains) else 1.1
                self._neighbors[number] = round_up(int(room * sample.sizes.neighbors) + 1)
            sizes = Sizes(1, len(atoms), self._neighbors[number])
            graphs.append(make_graph([sample], sizes, np.float64, bool(atoms.pbc.any())))
        return tuple(graphs)

    def _of_part(self, part: Other, x: np.ndarray) -> ase.Atoms:
        return self.space.structure(x) if part.atoms is None else self.space.strained(part.atoms, x)


def _strained(graph: Graph, moves: Array | float, strain: Array) -> Graph:
    """Atoms displaced by `moves` (n, 3), Å, then all strained, not necessarily symmetrically."""
    deformation = jnp.eye(3) + strain
    return graph._replace(positions=(graph.positions + moves) @ deformation, cell=graph.cell @ deformation)
