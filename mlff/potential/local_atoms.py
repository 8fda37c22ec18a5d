"""Energies and forces of the part of a system that one process has: atoms it owns, and copies of those around (ghosts).

For engines that divide space among processes, as LAMMPS does. There is no cell: an image of an atom is a ghost like any other.
The energy of an atom depends on the atoms within the receptive field, one cutoff for each layer of the model. Ghosts must
reach as far. Then the energies of the owned atoms are complete, and their derivatives by all atoms, owned and ghosts, are
shares of the forces: added up over the processes they are the forces, and nothing is counted twice.

A layer is computed for the atoms that the next layer asks about, not for all ghosts: of two layers the first needs the owned
atoms and one cutoff around them, the last the owned atoms alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from mlff.basics.errors import StructureError
from mlff.data.batching import round_up
from mlff.data.neighbors import neighbor_list
from mlff.data.pairs import refuse_coincident
from mlff.graph import Graph
from mlff.potential.potential import Potential

_SPARE = 0.1  #: of atoms and neighbours: what the padded arrays have more than is needed when they are made
_STEPS = 0.25  #: and they grow to a rung of a ladder of such steps


class LocalResult(NamedTuple):
    """What the owned atoms say. float64; energies with reference energies."""

    energies: np.ndarray  #: (owned,) eV
    forces: np.ndarray  #: (n, 3) eV/Å: -d(sum of the energies)/dR by owned atoms and ghosts
    virials: (
        np.ndarray
    )  #: (n, 3, 3) eV: shares of dE/dε by atom; their sum is that of this process. Zero without a cell's worth of pairs


class PairResult(NamedTuple):
    """The same for pairs that an engine has listed."""

    energies: np.ndarray  #: (owned,) eV
    gradient: np.ndarray  #: (P, 3) eV/Å: dE/dr_ij of each pair; zero where the owned atoms do not depend on it


class LocalAtoms:
    """The padded neighbour list of one process, and what a potential says of it.

    Padded sizes only grow, with something to spare, so that a run compiles one program, seldom two; the time of a call
    follows the atoms that there are, not the padding.
    """

    def __init__(self, potential: Potential, skin: float = 0.5):
        """`skin` (Å): neighbours are listed up to the cutoff and so much more; see `covers`."""
        self.potential = potential
        self.skin = skin
        self.rebuilds = 0  #: times neighbours were listed
        self._sizes = 1, 1, 1  #: of the padded arrays: atoms, atoms that have rows of neighbours, slots of a row

    def build(self, numbers: np.ndarray, positions: np.ndarray, owned: int, ids: np.ndarray | None = None) -> None:
        """List the neighbours of atoms at positions (n, 3), Å, of which the first `owned` are this process's own.

        numbers (n,): atomic numbers; `ids` (n,): what errors call the atoms, by default their place. Raises StructureError:
        positions that are not finite, atoms on top of each other, an element that the potential does not know.
        """
        if not np.isfinite(positions).all():
            atom = np.flatnonzero(~np.isfinite(positions).all(axis=1))[0]
            raise StructureError(f"the position of atom {atom if ids is None else ids[atom]} is not finite")
        i, j = self._pairs(positions, self.potential.cutoff + self.skin)
        self._lay_out(numbers, owned, i, j, positions[j] - positions[i], ids)
        self._center = positions[:owned].mean(axis=0) if owned else np.zeros(3)
        self._built, self._listed = positions.copy(), (i, j)
        self.rebuilds += 1

    def covers(self, positions: np.ndarray) -> bool:
        """Whether the list is good for these positions: no atom, owned or ghost, has moved by half of the skin."""
        moved = positions - self._built
        return bool(np.einsum("na,na->n", moved, moved).max(initial=0.0) <= (0.5 * self.skin) ** 2)

    def evaluate(self, positions: np.ndarray) -> LocalResult:
        """Energies, forces and virials at positions (n, 3), Å, of the atoms of the last `build`.

        Raises OutOfMemory, a StructureError.
        """
        order, rows = self._order, int(self._rows[0])
        energies, forces, virials = self._baseline.copy(), np.zeros((len(positions), 3)), np.zeros((len(positions), 3, 3))
        if self._owned:
            moved = np.zeros(self._graph.positions.shape, self.potential.dtype)
            moved[: len(order)] = positions[order] - self._center
            found = jax.device_get(self.potential.derive_local(self._graph._replace(positions=moved), self._rows))
            energies += found.energies[: self._owned]
            forces[order] = -found.positions[: len(order)]
            virials[order[:rows]] = found.virials[:rows]
            virials = 0.5 * (virials + virials.transpose(0, 2, 1))
        return LocalResult(energies, forces, virials)

    def evaluate_pairs(
        self, numbers: np.ndarray, owned: int, centers: np.ndarray, neighbors: np.ndarray, vectors: np.ndarray
    ) -> PairResult:
        """The same from the list of an engine: centers and neighbors (P,), vectors r_j - r_i (P, 3), Å, of atoms (n,).

        All pairs up to the cutoff must be there, seen from both of their atoms, except of atoms that are a receptive
        field away. Pairs beyond the cutoff count nothing. Raises StructureError as `build`.
        """
        energies, gradient = np.zeros(0), np.zeros((len(vectors), 3))
        near = np.flatnonzero(np.einsum("pa,pa->p", vectors, vectors) < self.potential.cutoff**2)
        kept, slots = self._lay_out(numbers, owned, centers[near], neighbors[near], vectors[near])
        energies = self._baseline.copy()
        if owned:
            given = np.zeros((*self._graph.neighbors.shape, 3), self.potential.dtype)
            given.reshape(-1, 3)[slots] = vectors[near[kept]]
            found = jax.device_get(self.potential.derive_local(self._graph._replace(vectors=given), self._rows))
            energies += found.energies[:owned]
            gradient[near[kept]] = found.pairs.reshape(-1, 3)[slots]
        return PairResult(energies, gradient)

    @property
    def rows(self) -> list[int]:
        """For how many atoms each layer is computed."""
        return [int(count) for count in self._rows]

    @property
    def shortest(self) -> tuple[int, int, float] | None:
        """The nearest two atoms, by their place, and their distance in Å, as they were when the list was built."""
        i, j = self._listed
        if not len(i):
            return None
        lengths = np.linalg.norm(self._built[j] - self._built[i], axis=1)
        nearest = lengths.argmin()
        return int(i[nearest]), int(j[nearest]), float(lengths[nearest])

    def one_sided(self, ids: np.ndarray) -> np.ndarray:
        """Two sums over pairs of owned atoms with ghosts, (2,): of an odd function of the two ids (n,), and of its size.

        Over all processes the first sum vanishes, as each pair is seen from both of its atoms, unless ghosts are missing.
        """
        i, j = self._listed
        crossing = (i < self._owned) & (j >= self._owned)
        i, j = i[crossing], j[crossing]
        lengths = np.linalg.norm(self._built[j] - self._built[i], axis=1)
        weights = np.maximum(self.potential.cutoff - lengths, 0.0) ** 2  # none at the cutoff, which rounding may cross
        odd = weights * (np.sin(1.0 + ids[i]) - np.sin(1.0 + ids[j]))
        return np.array([odd.sum(), np.abs(odd).sum()])

    def _pairs(self, positions: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
        return neighbor_list(positions, np.zeros((3, 3)), np.zeros(3, bool), reach)[:2]

    def _lay_out(self, numbers, owned: int, i, j, vectors, ids=None) -> tuple[np.ndarray, np.ndarray]:
        """Make the padded graph of pairs (P,); returns which of them it has, and their places in (M * K,)."""
        ids = np.arange(len(numbers)) if ids is None else ids
        if len(unknown := np.flatnonzero(~np.isin(numbers, self.potential.elements))):
            raise StructureError(f"atom {ids[unknown[0]]} has Z = {numbers[unknown[0]]}, which this potential does not know")
        refuse_coincident(ids[i], ids[j], vectors)
        self._order, self._rows = order, rows = self._arrange(len(numbers), owned, i, j)
        self._owned, self._baseline = owned, self.potential.atom_baselines[numbers[:owned]]
        place = np.full(len(numbers), len(numbers))
        place[order] = np.arange(len(order))
        kept = np.flatnonzero(place[i] < rows[0])
        centers, around = place[i[kept]], place[j[kept]]
        by_center = np.argsort(centers, kind="stable")
        counts = np.bincount(centers, minlength=1)
        slots = np.empty(len(kept), np.int64)
        slots[by_center] = np.arange(len(kept)) - np.repeat(np.cumsum(counts) - counts, counts)
        atoms, most, width = self._sizes = self._grown((len(order), int(rows[0]), int(counts.max())))
        slots += width * centers.astype(np.int64)
        dense = np.repeat(np.arange(most, dtype=np.int32)[:, None], width, axis=1)
        mask = np.zeros((most, width), bool)
        dense.reshape(-1)[slots], mask.reshape(-1)[slots] = around, True
        padded = np.zeros(atoms, np.int32)
        padded[: len(order)] = numbers[order]
        self._graph = self._make(padded, dense, mask)
        return kept, slots

    def _arrange(self, n: int, owned: int, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Atoms by the number of pairs between them and the owned ones, and for how many of them each layer is computed."""
        layers = self.potential.layers
        hops = np.full(n, layers + 1, np.int32)
        hops[:owned] = 0
        for hop in range(1, layers + 1):
            reached = j[hops[i] == hop - 1]
            hops[reached] = np.minimum(hops[reached], hop)
        order = np.argsort(hops, kind="stable")[: np.count_nonzero(hops <= layers)]
        rows = np.array([np.count_nonzero(hops <= layers - 1 - layer) for layer in range(layers)], np.int32)
        return order, rows

    def _grown(self, needed: tuple[int, int, int]) -> tuple[int, int, int]:
        """Sizes of the padded arrays: those that there are, or larger ones."""
        pairs = zip(self._sizes, needed, strict=True)
        atoms, rows, width = (have if have >= n else round_up(int(n * (1 + _SPARE)) + 1, _STEPS) for have, n in pairs)
        return atoms, min(rows, atoms), width

    def _make(self, numbers: np.ndarray, neighbors: np.ndarray, mask: np.ndarray) -> Graph:
        atoms, dtype = len(numbers), self.potential.dtype
        graph = Graph(
            positions=np.zeros((atoms, 3), dtype),
            atomic_numbers=numbers,
            structure=np.zeros(atoms, np.int32),
            n_atoms=np.ones(1, np.int32),
            cell=np.zeros((1, 3, 3), dtype),
            pbc=np.zeros((1, 3), bool),
            neighbors=neighbors,
            neighbor_mask=mask,
            reverse=None,
            shifts=None,
        )
        with self.potential.scope():
            return jax.device_put(graph)
