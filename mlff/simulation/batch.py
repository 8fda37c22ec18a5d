"""Structures that move side by side in one padded graph: one that has ended leaves, a waiting one takes its place.

The shape of the graph stays, so nothing is compiled anew. Neighbours are searched on the host, of each structure by itself when
its atoms and its cell have moved too far for those found before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from mlff.basics.errors import MLFFError
from mlff.data.batching import Sizes, make_graph, round_up
from mlff.potential.compiled import OutOfMemory, memory_errors
from mlff.potential.neighborlist import SLACK
from mlff.potential.packing import batch_atoms
from mlff.potential.potential import LARGEST_FORCE, Potential
from mlff.simulation.descent import CellDescent, Descent
from mlff.simulation.mover import Mover


class Batch:
    """Movers in one padded graph, and those that wait for a place."""

    def __init__(self, potential: Potential, sizes: Sizes, waiting: Iterable[Mover], pressure: float | None = None):
        """`sizes`: of the graph; a structure that has more atoms moves by itself, and wider neighbour lists widen the graph.

        `pressure`: eV/Å³ under which the cells move too; None: they stay.
        """
        self.potential = potential
        self.pressure = pressure
        self.waiting = deque(waiting)
        self.movers: list[Mover] = []
        self._sizes = Sizes(round_up(sizes.structures, 1.0), round_up(sizes.atoms, 0.25), _wider(sizes.neighbors))
        self._shifts = any(mover.structure.pbc.any() for mover in self.waiting)
        self._may_grow = True
        self._fill()

    @property
    def thin(self) -> bool:
        """Nobody waits, and less than half of the places are taken."""
        return not self.waiting and 2 * sum(map(len, self.movers)) < self._sizes.atoms

    def release(self) -> list[Mover]:
        """All movers, as they are, for another batch."""
        self._unpack()
        released, self.movers = self.movers, []
        return released

    def advance(self, fmax: float, steps: int) -> Iterator[Mover]:
        """One step of all; those that have ended on the way leave."""
        yield from self._search()
        if not self.movers:
            self._fill()
            return
        try:
            energies, forces, stresses = self._evaluate()
        except OutOfMemory as error:
            yield from self._halve(error)
            return
        yield from self._leave(energies, forces, stresses, fmax, steps)

    def _evaluate(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Energies (B,), eV, forces (N, 3), eV/Å, and where cells move stresses (B, 3, 3), eV/Å³, of all movers."""
        if self._graph is None:
            self._build()
        at, stress = self._descent, self.pressure is not None
        n, B = len(at.positions), len(self.movers)
        graph = self._graph._replace(positions=self._padded(at.positions, self._graph.positions))
        if stress:
            graph = graph._replace(cell=self._padded(at.cells, graph.cell))
        with memory_errors(*graph.neighbors.shape):
            found = self.potential.compute(graph, stress)
            energies, forces = (np.asarray(x, np.float64)[:n] for x in (found.energies, found.forces))
            stresses = np.asarray(found.stress, np.float64)[:B] if stress else None
        return np.add.reduceat(energies, at.begins) + self._baselines, forces, stresses

    def _padded(self, values: np.ndarray, like) -> np.ndarray:
        """Values followed by zeros, in the shape and precision of the graph."""
        padded = np.zeros(like.shape, self.potential.dtype)
        padded[: len(values)] = values
        return padded

    def _leave(
        self, energies: np.ndarray, forces: np.ndarray, stresses: np.ndarray | None, fmax: float, steps: int
    ) -> Iterator[Mover]:
        """Those that have converged, done their steps or have nonsense for forces; all others take a step."""
        at = self._descent
        pull, longest, largest = at.pull(forces, stresses)
        sane = np.isfinite(energies) & (largest < LARGEST_FORCE)
        ended = ~sane | (largest < fmax)
        for row, mover in enumerate(self.movers):
            mover.start = energies[row] if mover.start is None else mover.start
            ended[row] |= mover.steps >= steps
        if not ended.any():
            self._step(pull)
            return
        at.write_back()
        for row in np.flatnonzero(ended):
            mover, atoms = self.movers[row], slice(at.begins[row], at.begins[row] + at.counts[row])
            mover.energy, mover.forces, mover.longest = float(energies[row]), forces[atoms], float(longest[row])
            mover.stress = None if stresses is None else stresses[row]
            mover.failure = mover.look() if sane[row] else _nonsense(mover, largest[row])
            mover.converged = mover.failure is None and bool(largest[row] < fmax)
        gone = [self.movers[row] for row in np.flatnonzero(ended)]
        self.movers = [self.movers[row] for row in np.flatnonzero(~ended)]
        if self.movers:
            self._pack()
            self._step(pull[at.rows_of(~ended)])
        self._grow()
        self._fill()
        yield from gone

    def _step(self, pull: np.ndarray) -> None:
        self._descent.step(pull)
        for mover in self.movers:
            mover.steps += 1

    def _search(self) -> Iterator[Mover]:
        """Neighbours of those that moved too far for their lists; those whose atoms fused or flew off leave."""
        far = self._descent.outgrown(self.potential.cutoff)
        if not far.any():
            return
        self._unpack()
        for row in np.flatnonzero(far):
            mover = self.movers[row]
            try:
                mover.guard.check_geometry(mover.structure.to_atoms())
                mover.search(self.potential.cutoff)
            except MLFFError as error:
                mover.failure = str(error)
        gone = [mover for mover in self.movers if mover.failure]
        self.movers = [mover for mover in self.movers if not mover.failure]
        if self.movers:
            self._pack()
        if gone:
            self._fill()
        yield from gone

    def _fill(self) -> None:
        """Waiting movers take the places that are free, in their order, as far as they fit."""
        self._unpack()
        room, kept, found = self._sizes.atoms - sum(map(len, self.movers)), deque(), False
        while self.waiting and len(self.movers) < self._sizes.structures and room > 0:
            mover = self.waiting.popleft()
            if len(mover) <= room or not self.movers:
                self.movers.append(mover)
                room, found = room - len(mover), True
            else:
                kept.append(mover)
        self.waiting = kept + self.waiting
        if found:
            self._pack()

    def _grow(self) -> None:
        """On a device with room for more, once: places for more structures; where few are left, fewer."""
        inside = sum(map(len, self.movers))
        if not self.waiting and 4 * inside <= self._sizes.atoms and inside:
            self._sizes = self._sizes._replace(atoms=max(inside, self._sizes.atoms // 4))
            self._graph = None
        larger = batch_atoms(self.potential.programs, self._sizes.neighbors, self.pressure is not None)
        if self.waiting and self._may_grow and larger >= 2 * self._sizes.atoms:
            larger = min(larger, inside + sum(map(len, self.waiting)))
            structures = len(self.movers) + len(self.waiting)
            self._sizes, self._may_grow = self._sizes._replace(atoms=larger, structures=structures), False

    def _halve(self, error: OutOfMemory) -> Iterator[Mover]:
        """Half as many atoms at once; a structure that does not fit by itself leaves."""
        self._unpack()
        self._may_grow = False
        if len(self.movers) == 1 and self._sizes.atoms <= len(self.movers[0]):
            self.movers[0].failure = str(error)
            gone, self.movers = self.movers, []
            yield from gone
        else:
            self._sizes = self._sizes._replace(atoms=max(1, min(self._sizes.atoms, sum(map(len, self.movers))) // 2))
            self.waiting.extendleft(reversed(self.movers))
            self.movers = []
        self._fill()

    def _pack(self) -> None:
        """The arrays of all movers, one after the other; the graph follows when it is needed."""
        self._graph = None
        self._baselines = np.array([mover.baseline for mover in self.movers])
        cells = self.pressure is not None
        self._descent = CellDescent(self.movers, self.pressure) if cells else Descent(self.movers)

    def _build(self) -> None:
        samples = [mover.sample for mover in self.movers]
        if (widest := max(sample.sizes.neighbors for sample in samples)) > self._sizes.neighbors:
            self._sizes = self._sizes._replace(neighbors=_wider(widest))
        sizes = self._sizes._replace(atoms=max(self._sizes.atoms, len(self._descent.positions)))
        with self.potential.scope():
            self._graph = jax.device_put(make_graph(samples, sizes, self.potential.dtype, self._shifts))

    def _unpack(self) -> None:
        """Write back to each mover where it stands."""
        if self.movers:
            self._descent.write_back()


def _wider(neighbors: int) -> int:
    """Neighbour slots for lists that have so many now, and may have more when they are searched again."""
    return round_up(int(np.ceil(max(1, neighbors) * (1 + SLACK))), 0.0625)


def _nonsense(mover: Mover, largest: float) -> str:
    return f"an energy of {mover.energy:.2g} eV and forces of up to {largest:.2g} eV/Å are no result"
