"""Copies of one structure, the beads of a ring polymer for instance, evaluated in one compiled call.

Their neighbour lists live on the device (`device_list`): as long as no atom moves far nothing is searched, and nothing is
compiled anew unless an atom has more neighbours than there is room for.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mlff.basics import compiler
from mlff.basics.errors import ConfigError, StructureError
from mlff.basics.runtime import compilation_cache, refuse_forked
from mlff.data.structure import COINCIDENT, Structure
from mlff.potential import capacity, derivatives, device_list
from mlff.potential.capacity import Capacity, Search
from mlff.potential.potential import Potential
from mlff.potential.result import Result

_LARGE = 500_000  #: padded pairs from which on copies are evaluated by `Potential.predict`, batch after batch


class Beads:
    """Energies, forces and stresses of copies that share elements and periodicity. One call at a time."""

    def __init__(self, potential: Potential, numbers: np.ndarray, pbc: np.ndarray, skin: float = 0.5):
        """`numbers` (n,), `pbc` (3,) bool. `skin` (Å): neighbours are searched again when an atom moved half of it.

        Raises ConfigError: no such skin.
        """
        if not (np.isfinite(skin) and skin >= 0):
            raise ConfigError(f"skin must be a length in Å, not {skin}")
        self.potential = potential
        self.compilations = 0
        self._numbers, self._pbc = np.array(numbers, np.int32), np.array(pbc, bool)
        self._search = Search(tuple(bool(p) for p in self._pbc), potential.cutoff, skin, potential.dtype)
        self._room: Capacity | None = None
        self._listed: device_list.NeighborList | None = None
        self._programs: dict[tuple, object] = {}

    def compute(self, positions: np.ndarray, cells: np.ndarray, stress: bool = False) -> list[Result]:
        """One result for each copy: positions (R, n, 3) and cells (R, 3, 3), Å. Stress: of cells periodic in three directions.

        Raises StructureError: an unknown element, positions that are not finite, atoms on top of each other, a result that is
        none (`Potential.check_result`).
        """
        refuse_forked()
        positions, cells = np.asarray(positions, np.float64), np.asarray(cells, np.float64)
        if self._room is None:
            self._allocate(positions, cells)
        elif not np.isfinite(positions).all() or not np.isfinite(cells).all():
            self._check(positions, cells)
        if self._too_large(positions, cells[0]):
            structures = [self._structure(bead, positions, cells) for bead in range(len(positions))]
            return self.potential.predict(structures, stress=stress)
        nearest, energies, forces, stresses = self._run(positions, cells, stress)
        for bead in np.flatnonzero(nearest < COINCIDENT**2):
            raise StructureError(f"bead {bead}: two atoms are on top of each other")
        return [self._result(bead, positions, cells, energies, forces, stresses) for bead in range(len(positions))]

    def _allocate(self, positions: np.ndarray, cells: np.ndarray) -> None:
        self._check(positions, cells)
        for each, cell in zip(positions, cells, strict=True):
            self._room = capacity.allocate(self._search, each, cell, self._room)

    def _check(self, positions: np.ndarray, cells: np.ndarray) -> None:
        for bead in range(len(positions)):
            self.potential.check(self._structure(bead, positions, cells))

    def _structure(self, bead: int, positions: np.ndarray, cells: np.ndarray) -> Structure:
        return Structure(self._numbers, positions[bead], cells[bead], self._pbc, source=f"bead {bead}")

    def _too_large(self, positions: np.ndarray, cell: np.ndarray) -> bool:
        count, n = positions.shape[:2]
        all_pairs = self._room.grid is None and capacity.pairs_searched(self._search, n, cell) > capacity.MOST_PAIRS
        return count * n * self._room.neighbors > _LARGE or all_pairs

    def _run(self, positions: np.ndarray, cells: np.ndarray, stress: bool):
        """Shortest squared distances (R,), energies of the atoms (R, n), forces (R, n, 3), stresses (R, 3, 3) or None."""
        boxes = np.stack([capacity.box_of(self._pbc, cell) for cell in cells])
        while True:
            listed = self._list(positions, cells)
            arguments = self.potential.device_params, self._numbers, listed, positions, cells, boxes
            key = len(positions), self._room, stress
            with jax.enable_x64(True):
                if key not in self._programs:
                    self._programs[key] = self._compile(stress, arguments)
                listed, demand, complete, outcome = self._programs[key](*arguments)
            if complete:
                self._listed = listed
                return jax.device_get(outcome)
            self._room = capacity.enlarge(self._search, len(self._numbers), self._room, demand)
            self._listed = None

    def _list(self, positions: np.ndarray, cells: np.ndarray) -> device_list.NeighborList:
        """The list at hand, or one that holds for nothing: of other copies, or of a cell that the list cannot follow."""
        partly = self._pbc.any() and not self._pbc.all()
        usable = self._listed is not None and len(self._listed.reference) == len(positions)
        if usable and not (partly and not np.array_equal(self._listed.cell, cells)):
            return self._listed
        return device_list.no_list(self._search, self._room, *positions.shape[:2])

    def _compile(self, stress: bool, arguments):
        compiler.check()
        self.compilations += 1
        function = functools.partial(_evaluate, self.potential, self._search, self._room, stress)
        with compilation_cache():
            return jax.jit(function, compiler_options=compiler.quick()).lower(*arguments).compile()

    def _result(self, bead: int, positions, cells, energies, forces, stresses) -> Result:
        atoms = energies[bead] + self.potential.atom_baselines[self._numbers]
        energy = float(atoms.sum())
        self.potential.check_result(energy, forces[bead], lambda: self._structure(bead, positions, cells))
        return Result(energy, forces[bead], None if stresses is None else stresses[bead], atoms)


def _evaluate(potential: Potential, search: Search, room, stress: bool, params, numbers, listed, positions, cells, boxes):
    """The list, what it needed, whether it has all pairs, and what `Beads._run` says, in float64."""
    listed, demand = device_list.update(search, room, listed, positions, cells, boxes)
    graph = device_list.graph_at(search, listed, numbers, positions, cells, boxes)
    with jax.enable_x64(potential.precision == "float64"):
        said = derivatives.predict(functools.partial(potential.energy, params), graph, stress=stress)
        squares = jnp.where(graph.neighbor_mask, jnp.sum(graph.pair_vectors**2, axis=2), jnp.inf)
    energies, forces = said.energies.astype(jnp.float64), said.forces.astype(jnp.float64)
    stresses = None if said.stress is None else said.stress.astype(jnp.float64)
    count, n = positions.shape[:2]
    outcome = squares.reshape(count, -1).min(axis=1), energies.reshape(count, n), forces.reshape(count, n, 3), stresses
    return listed, demand, device_list.fits(room, demand), outcome
