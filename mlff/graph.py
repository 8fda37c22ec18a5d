"""One padded batch of structures: the arrays that models, losses and derivatives work on.

Letters: B structures, N atoms, K neighbours per atom (all with padding included). The layout is dense: every atom
has K neighbour slots, so sums over neighbours are reductions or matrix products, never scatters.
Units: Å, eV, eV/Å, eV/Å³.
"""

from __future__ import annotations

from typing import NamedTuple

from jax import Array


class Graph(NamedTuple):
    """Atoms and neighbour lists of a batch. Padding: atoms with Z = 0, pair slots with mask False, n_atoms = 0."""

    positions: Array  #: (N, 3) float, Å
    atomic_numbers: Array  #: (N,) int32; 0 is padding
    structure: Array  #: (N,) int32, ascending: the structure an atom belongs to; padding atoms carry B - 1
    n_atoms: Array  #: (B,) int32; 0 for padding structures
    cell: Array  #: (B, 3, 3) float, Å, rows are the cell vectors; zeros where there is no cell
    pbc: Array  #: (B, 3) bool: periodic along which cell vectors
    neighbors: Array  #: (N, K) int32: atom j of slot k of center i; in empty slots the center itself
    neighbor_mask: Array  #: (N, K) bool: False in empty slots
    reverse: (
        Array | None
    )  #: (N, K) int32: where the same pair stands seen from its neighbour, i as a neighbor of j, as an index into (N * K,); None where a large graph is computed in chunks only
    shifts: (
        Array | None
    )  #: (N, K, 3) float or int8, whole cell vectors: r_ij = r_j - r_i + shifts @ cell. None: no pair crosses a cell
    vectors: Array | None = (
        None  #: (N, K, 3) Å, r_ij where someone else owns the neighbour list; positions then count nothing
    )
    numbers_around: Array | None = (
        None  #: (N, K) int32, atomic numbers of the neighbours of some of the atoms only, see `mlff.potential.chunks`
    )

    @property
    def atom_mask(self) -> Array:
        """(N,) bool: False for padding atoms."""
        return self.atomic_numbers > 0

    @property
    def structure_mask(self) -> Array:
        """(B,) bool: False for padding structures."""
        return self.n_atoms > 0

    @property
    def neighbor_numbers(self) -> Array:
        """(N, K) int32, atomic numbers of the neighbours; in empty slots that of the center."""
        return self.atomic_numbers[self.neighbors] if self.numbers_around is None else self.numbers_around

    @property
    def pair_vectors(self) -> Array:
        """(N, K, 3) r_ij = r_j - r_i + shifts @ cell, Å, or `vectors`; zero in empty slots."""
        if self.vectors is not None:
            return self.vectors
        return difference(self.positions[self.neighbors], self.positions, self.cell[self.structure], self.shifts)


def difference(neighbors: Array, positions: Array, cells: Array, shifts: Array | None) -> Array:
    """(N, K, 3) r_j - r_i + shifts @ cell of neighbours at (N, K, 3) and atoms at (N, 3), Å, in cells (N, 3, 3), Å."""
    vectors = neighbors - positions[:, None, :]
    if shifts is None:
        return vectors
    # a sum of three products: as a matrix product it would be one small call per atom
    return vectors + sum(shifts[..., a, None] * cells[:, None, a] for a in range(3))


class Labels(NamedTuple):
    """Reference values of a batch by their names in `mlff.basics.properties.PROPERTIES`, baseline already removed.

    An absent label is 0 with its flag False: read the flag. Energy, forces and stress are always there, other properties
    where a structure of the data set has them.
    """

    values: dict[str, Array]  #: energy (B,) float, eV, total less the baseline; forces (N, 3), eV/Å; stress (B, 3, 3), eV/Å³
    has: dict[str, Array]  #: (B,) bool
    weight: Array  #: (B,) float, weight of the structure in the loss
    replayed: Array | None = None  #: (B,) bool: of structures with a readout of their own (`mlff.training.second_readout`)
    direction: Array | None = (
        None  #: (N, 3) float, dR/dr of structures with a stretched bond, else 0; None: no batch has any
    )


class Prediction(NamedTuple):
    """What a potential says of a batch, baseline not yet added."""

    energy: Array  #: (B,) float, eV
    forces: Array  #: (N, 3) float, eV/Å, -dE/dR
    stress: Array | None  #: (B, 3, 3) float, eV/Å³; None when not asked for; 0 where there is no cell
    energies: Array  #: (N,) float, eV, per atom; 0 for padding
    energy_std: Array | None = None  #: (B,) float, eV: how far the members of a committee lie apart; None for one model
    forces_std: Array | None = None  #: (N, 3) float, eV/Å: the same of the forces
