"""Structures that move side by side in one padded graph: one that has ended leaves, a waiting one takes its place.

The shape of the graph stays, so nothing is compiled anew. Neighbours are searched on the host, of each structure by itself when
one of its atoms has moved by half of the skin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import ase
import jax
import numpy as np

from mlff.basics.errors import MLFFError
from mlff.data.batching import Sample, Sizes, make_graph, make_sample, round_up
from mlff.data.structure import Structure
from mlff.potential.compiled import OutOfMemory, memory_errors
from mlff.potential.neighborlist import SLACK
from mlff.potential.packing import batch_atoms
from mlff.potential.potential import LARGEST_FORCE, Potential
from mlff.simulation import fire
from mlff.simulation.guard import Guard, Limits, SimulationError

SKIN = 0.5  #: Å


@dataclass(eq=False)
class Mover:
    """One structure on its way to a minimum."""

    index: int  #: its place among those given
    structure: Structure  #: where it stands; its source names it in messages
    fixed: np.ndarray  #: indices of atoms that stay where they are
    guard: Guard
    state: fire.State
    sample: Sample = None  #: its neighbours within cutoff and skin ...
    listed: np.ndarray = None  #: (n, 3) Å, ... where it stood when they were searched
    steps: int = 0
    baseline: float = 0.0  #: eV, sum of its reference energies
    start: float | None = None  #: eV, its first energy
    energy: float = float("nan")  #: eV, where it stands
    forces: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 3))
    )  #: (n, 3) eV/Å, of the potential, constraints not applied
    longest: float = float("inf")  #: eV/Å, longest force on an atom that is not fixed
    failure: str | None = None  #: why it cannot go on

    def __len__(self) -> int:
        return len(self.structure)

    def search(self, cutoff: float) -> None:
        """Find the neighbours where it stands. Raises StructureError for atoms on top of each other."""
        self.sample, self.listed = make_sample(self.structure, cutoff + SKIN), self.structure.positions


def make_mover(index: int, atoms: ase.Atoms, fixed: np.ndarray, potential: Potential, source: str) -> Mover:
    """A structure about to start. Raises StructureError if the potential cannot evaluate it."""
    structure = Structure.from_atoms(atoms, source=source)
    potential.check(structure)
    mover = Mover(index, structure, fixed, Guard(atoms, Limits(force=float("inf")), 0.0), fire.start(len(atoms)))
    mover.baseline = potential.baseline_energy(structure.numbers)
    mover.search(potential.cutoff)
    return mover


class Batch:
    """Movers in one padded graph, and those that wait for a place."""

    def __init__(self, potential: Potential, sizes: Sizes, waiting: Iterable[Mover]):
        """`sizes`: of the graph; a structure that has more atoms moves by itself, and wider neighbour lists widen the graph."""
        self.potential = potential
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
            energies, forces = self._evaluate()
        except OutOfMemory as error:
            yield from self._halve(error)
            return
        yield from self._leave(energies, forces, fmax, steps)

    def _evaluate(self) -> tuple[np.ndarray, np.ndarray]:
        """Energies (B,), eV, and forces (N, 3), eV/Å, of all movers."""
        if self._graph is None:
            self._build()
        moved = self._positions.astype(self.potential.dtype)
        spare = self._graph.atomic_numbers.shape[0] - len(moved)
        graph = self._graph._replace(positions=np.pad(moved, ((0, spare), (0, 0))))
        with memory_errors(*graph.neighbors.shape):
            prediction = self.potential.compute(graph)
            energies, forces = (np.asarray(x, np.float64)[: len(moved)] for x in (prediction.energies, prediction.forces))
        return np.add.reduceat(energies, self._begins) + self._baselines, forces

    def _leave(self, energies: np.ndarray, forces: np.ndarray, fmax: float, steps: int) -> Iterator[Mover]:
        """Those that have converged, done their steps or have nonsense for forces; all others take a step."""
        pulled = np.where(self._fixed[:, None], 0.0, forces)
        longest = np.sqrt(np.maximum.reduceat(np.einsum("na,na->n", pulled, pulled), self._begins))
        sane = np.isfinite(energies) & (longest < LARGEST_FORCE)
        ended = ~sane | (longest < fmax)
        for row, mover in enumerate(self.movers):
            mover.start = energies[row] if mover.start is None else mover.start
            ended[row] |= mover.steps >= steps
        if not ended.any():
            self._step(pulled)
            return
        self._unpack()
        for row in np.flatnonzero(ended):
            mover, atoms = self.movers[row], slice(self._begins[row], self._begins[row] + self._counts[row])
            mover.energy, mover.forces, mover.longest = float(energies[row]), forces[atoms], float(longest[row])
            mover.failure = _failure(mover) if sane[row] else _nonsense(mover)
        gone = [self.movers[row] for row in np.flatnonzero(ended)]
        stay = np.repeat(~ended, self._counts)
        self.movers = [self.movers[row] for row in np.flatnonzero(~ended)]
        if self.movers:
            self._pack()
            self._step(pulled[stay])
        self._grow()
        self._fill()
        yield from gone

    def _step(self, forces: np.ndarray) -> None:
        self._state, moves = fire.step(self._state, forces, self._counts)
        self._positions = self._positions + moves
        for mover in self.movers:
            mover.steps += 1

    def _search(self) -> Iterator[Mover]:
        """Neighbours of those that moved too far for their lists; those whose atoms fused or flew off leave."""
        moved = self._positions - self._listed
        far = np.sqrt(np.maximum.reduceat(np.einsum("na,na->n", moved, moved), self._begins)) > 0.5 * SKIN
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
        larger = batch_atoms(self.potential.programs, self._sizes.neighbors)
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
        self._counts = np.array([len(mover) for mover in self.movers])
        self._begins = np.cumsum(self._counts) - self._counts
        self._listed = np.concatenate([mover.sample.positions for mover in self.movers])
        self._positions = self._listed + np.concatenate([m.structure.positions - m.listed for m in self.movers])
        self._fixed = np.zeros(len(self._positions), bool)
        for begin, mover in zip(self._begins, self.movers, strict=True):
            self._fixed[begin + mover.fixed] = True
        self._baselines = np.array([mover.baseline for mover in self.movers])
        self._state = fire.join([mover.state for mover in self.movers])

    def _build(self) -> None:
        samples = [mover.sample for mover in self.movers]
        if (widest := max(sample.sizes.neighbors for sample in samples)) > self._sizes.neighbors:
            self._sizes = self._sizes._replace(neighbors=_wider(widest))
        sizes = self._sizes._replace(atoms=max(self._sizes.atoms, len(self._positions)))
        with self.potential.scope():
            self._graph = jax.device_put(make_graph(samples, sizes, self.potential.dtype, self._shifts))

    def _unpack(self) -> None:
        """Write back to each mover where it stands."""
        if not self.movers:
            return
        moved = np.split(self._positions - self._listed, self._begins[1:])
        for mover, state, move in zip(self.movers, fire.split(self._state, self._counts), moved, strict=True):
            mover.state = state
            mover.structure = replace(mover.structure, positions=mover.listed + move)


def _wider(neighbors: int) -> int:
    """Neighbour slots for lists that have so many now, and may have more when they are searched again."""
    return round_up(int(np.ceil(max(1, neighbors) * (1 + SLACK))), 0.0625)


def _failure(mover: Mover) -> str | None:
    """What happened to its atoms, if they fused or flew off."""
    try:
        mover.guard.check_geometry(mover.structure.to_atoms())
    except SimulationError as error:
        return str(error)
    return None


def _nonsense(mover: Mover) -> str:
    return f"an energy of {mover.energy:.2g} eV and forces of up to {mover.longest:.2g} eV/Å are no result"
