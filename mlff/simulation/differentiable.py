"""A run of molecular dynamics as a function of what it starts from: the inputs that a gradient is taken of, and the forces.

Nothing here takes a step; `backpropagation`, `adjoint` and `reweighting` do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase.constraints import FixAtoms
from jax import Array

from mlff.basics.errors import ConfigError
from mlff.basics.units import FEMTOSECOND
from mlff.data.structure import Structure
from mlff.potential import capacity, device_list
from mlff.potential.capacity import Search
from mlff.potential.device_list import NeighborList
from mlff.potential.potential import Potential
from mlff.simulation import fixed_point, integrators
from mlff.simulation.settings import Settings
from mlff.simulation.state import Conditions, conditions
from mlff.simulation.thermostats import at_rest
from mlff.simulation.velocities import degrees_of_freedom

SKIN = 2.0  #: Å beyond the cutoff that the list of a periodic structure reaches
_ALL = 1e4  #: Å: a reach that holds every pair of a molecule
_build = jax.jit(device_list.build, static_argnums=(0, 1))


class Frame(NamedTuple):
    """What an observable sees of one step."""

    positions: Array  #: (n, 3) Å, not wrapped
    momenta: Array  #: (n, 3) in ASE's unit, sqrt(amu eV)
    cell: Array  #: (3, 3) Å


class Inputs(NamedTuple):
    """What a run depends on smoothly; a gradient with respect to them has the same form."""

    params: dict  #: parameters of the potential
    temperature: Array  #: () K, of the thermostat
    positions: Array  #: (n, 3) Å, at the start
    momenta: Array  #: (n, 3) in ASE's unit, at the start
    cell: Array  #: (3, 3) Å; the atoms move with it at the start, as shares of its vectors
    timestep: Array  #: () fs


class Objective(NamedTuple):
    """A number that a run gives: loss(mean of observable(frame))."""

    observable: Callable[[Frame], Array]
    loss: Callable[[Array], Array]
    every: int  #: the mean is over each so manyth step; 0: the last frame alone

    def counts(self, step: Array, steps: Array) -> Array:
        """() bool: whether the frame of this step is among those that are averaged."""
        return (step % self.every == 0) & (step > 0) if self.every else step == steps

    def add(self, mean: Array, frame: Frame, step: Array, steps: Array) -> Array:
        """The mean of a run of `steps` steps with the share of this frame added."""
        count = jnp.maximum(steps // self.every, 1) if self.every else 1
        return jax.lax.cond(
            self.counts(step, steps), lambda: mean + self.observable(frame).astype(jnp.float64) / count, lambda: mean
        )

    def pull(self, mean: Array, frame: Frame, step: Array, steps: Array) -> Frame:
        """The gradient of the loss of the mean, by what this frame, which counts, adds to it."""
        weight = jax.grad(self.loss)(mean)
        return jax.grad(lambda frame: jnp.sum(weight * self.add(jnp.zeros_like(mean), frame, step, steps)))(frame)


class System:
    """The atoms of a run with their potential, and a neighbour list, which must last for the whole run unless `followed`."""

    def __init__(self, potential: Potential, atoms: ase.Atoms, settings: Settings, skin: float | None = None):
        """`atoms` with momenta; `skin` in Å, by default every pair of a molecule, `SKIN` of what is periodic.

        Raises ConfigError (npt, ramps, constraints other than FixAtoms), StructureError.
        """
        if settings.ensemble == "npt":
            raise ConfigError("gradients through npt are not there: take nve or nvt, and the cell as an input")
        if settings.ramped:
            raise ConfigError("gradients through a ramp of the temperature are not there: leave temperature_end out")
        potential.check(Structure.from_atoms(atoms))
        moving = np.ones(len(atoms), bool)
        for constraint in atoms.constraints:
            if type(constraint) is not FixAtoms:
                raise ConfigError(f"gradients through a run do not know the constraint {type(constraint).__name__}")
            moving[constraint.index] = False
        self.potential, self.settings, self.numbers = potential, settings, atoms.numbers.astype(np.int32)
        self.integrator = integrators.kind(settings)
        freedom = degrees_of_freedom(atoms, settings.keeps_rotation)
        self._at = conditions(settings, 0, atoms.get_masses(), moving, freedom)
        self._positions, self._cell = atoms.positions.copy(), atoms.cell.array.copy()
        pbc = tuple(bool(periodic) for periodic in atoms.pbc)
        reach = skin if skin is not None else SKIN if any(pbc) else _ALL
        self._search = Search(pbc, potential.cutoff, float(reach), potential.dtype)
        self._box = capacity.box_of(pbc, self._cell)
        self._room = capacity.allocate(self._search, self._positions, self._cell)
        self._listed = self._list()
        self.inputs = Inputs(
            jax.tree.map(lambda array: np.asarray(array, potential.dtype), potential.params),
            np.float64(settings.temperature),
            self._positions,
            atoms.get_momenta(),
            self._cell,
            np.float64(settings.timestep),
        )  #: as atoms, potential and settings give them

    @property
    def periodic(self) -> bool:
        """Whether there is a cell."""
        return any(self._search.pbc)

    def start(self, inputs: Inputs) -> Frame:
        """The first frame: the cell carries the atoms along; under Langevin's friction the center of mass rests."""
        positions = self.carried(inputs.positions, self._cell, inputs.cell)
        resting = self._at._replace(resting=self._at.resting & (self.integrator == "langevin"))
        return Frame(positions, at_rest(resting, inputs.momenta), inputs.cell)

    def carried(self, positions: Array, cell: Array, new: Array) -> Array:
        """Positions (n, 3) of a `cell` in a `new` one, at the same shares of its vectors; no derivative is taken of the shares."""
        pbc = np.array(self._search.pbc)
        box = jnp.where(pbc[:, None], cell, self._box)
        shares = jax.lax.stop_gradient(positions @ jnp.linalg.inv(box)) * pbc
        return positions + shares @ (new - cell)

    def kinetic_energy(self, momenta: Array) -> Array:
        """() eV."""
        return 0.5 * jnp.sum(momenta**2 / self._at.masses)

    def lifetime(self, timestep: float) -> int:
        """Steps of `timestep` fs after which the remainder of the friction must be put aside (`fixed_point`)."""
        if self.integrator != "langevin":
            return 2**62
        return fixed_point.lifetime(float(np.exp(-timestep * FEMTOSECOND / self._at.tau)))

    def conditions(self, temperature: Array, timestep: Array, key: Array) -> Conditions:
        """At a temperature in K, with a time step in fs and a key (2,) of random numbers."""
        return self._at._replace(
            temperature=temperature, temperature_end=temperature, timestep=timestep * FEMTOSECOND, key=key
        )

    def energy(self, params: dict, positions: Array, cell: Array) -> Array:
        """() eV, float64, reference energies not added; of positions (n, 3) and cell (3, 3), float64, Å."""
        box = jnp.where(np.array(self._search.pbc)[:, None], cell, self._box)
        graph = device_list.graph_at(self._search, self._listed, self.numbers, positions[None], cell[None], box[None])
        with jax.enable_x64(self.potential.precision == "float64"), jax.default_matmul_precision("float32"):
            energy = jnp.sum(self.potential.energy(params, graph))
        return energy.astype(jnp.float64)

    def forces(self, params: dict, positions: Array, cell: Array) -> Array:
        """(n, 3) eV/Å, float64; zero on fixed atoms."""
        return jnp.where(self._at.moving, -jax.grad(self.energy, argnums=1)(params, positions, cell), 0.0)

    def pull_forces(self, inputs: Inputs, positions: Array, vector: Array, by_all: bool) -> tuple[Array, tuple]:
        """The forces, and the gradient of their scalar product with `vector` (n, 3) by parameters, positions and cell.

        Reverse over reverse: with the forces it costs what reverse over forward does without them. Not `by_all`: by the
        positions alone, zeros for the others.
        """
        size = jnp.max(jnp.abs(vector))  # taken out, for float32
        along = jnp.where(size > 0, vector / jnp.where(size > 0, size, 1.0), 0.0)
        if by_all:
            forces, pull = jax.vjp(self.forces, inputs.params, positions, inputs.cell)
            found = pull(along)
        else:
            forces, pull = jax.vjp(lambda moved: self.forces(inputs.params, moved, inputs.cell), positions)
            found = jax.tree.map(jnp.zeros_like, inputs.params), *pull(along), jnp.zeros((3, 3))
        return forces, jax.tree.map(lambda array: size * array.astype(jnp.float64), found)

    def listed(self, positions: Array, cell: Array) -> Array:
        """() bool: whether the list still has every pair within the cutoff; False too for what is not finite."""
        return device_list.holds(self._search, self._listed, positions[None], cell[None])[0]

    def followed(self, positions: Array, cell: Array) -> tuple[System, Array]:
        """The same with a list of positions (n, 3) and cell (3, 3), and () bool: whether it had room for all pairs; pure."""
        if self._search.skin >= _ALL:
            return self, jnp.bool_(True)
        box = jnp.where(np.array(self._search.pbc)[:, None], cell, self._box)
        where = jax.lax.stop_gradient((positions[None], cell[None], box[None]))
        other = copy.copy(self)
        other._listed, demand = device_list.build(self._search, self._room, *where)
        return other, device_list.fits(self._room, demand)

    def roomier(self) -> System:
        """The same with room for a quarter more neighbours in the lists of `followed`."""
        other, room = copy.copy(self), self._room
        other._room = room._replace(
            neighbors=room.neighbors + room.neighbors // 4 + 1, occupants=-(-5 * room.occupants // 4)
        )
        other._listed = other._list()
        return other

    def _list(self) -> NeighborList:
        where = self._positions[None], self._cell[None], self._box[None]
        with jax.enable_x64(True):
            return jax.device_get(_build(self._search, self._room, *where)[0])
