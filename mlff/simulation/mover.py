"""One structure on its way to a minimum."""

from __future__ import annotations

from dataclasses import dataclass, field

import ase
import numpy as np

from mlff.data.batching import Sample, make_sample
from mlff.data.structure import Structure
from mlff.potential.potential import Potential
from mlff.simulation import lbfgs
from mlff.simulation.guard import Guard, Limits, SimulationError

SKIN = 0.5  #: Å


@dataclass(eq=False)
class Mover:
    """One structure on its way to a minimum."""

    index: int  #: its place among those given
    structure: Structure  #: where it stands; its source names it in messages
    fixed: np.ndarray  #: indices of atoms that stay where they are (where its cell relaxes: in fractional coordinates)
    guard: Guard
    state: lbfgs.State | None  #: None: it has ended
    sample: Sample = None  #: its neighbours within cutoff and skin ...
    listed: np.ndarray = None  #: (n, 3) Å, ... where it stood when they were searched
    strain: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))  #: logarithm of the deformation since the start
    steps: int = 0
    baseline: float = 0.0  #: eV, sum of its reference energies
    start: float | None = None  #: eV, its first energy
    energy: float = float("nan")  #: eV, where it stands
    forces: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 3))
    )  #: (n, 3) eV/Å, of the potential, constraints not applied
    stress: np.ndarray | None = None  #: (3, 3) eV/Å³, where the cell relaxes
    longest: float = float("inf")  #: eV/Å, longest force on an atom that is not fixed
    converged: bool = False
    failure: str | None = None  #: why it cannot go on

    def __len__(self) -> int:
        return len(self.structure)

    def search(self, cutoff: float) -> None:
        """Find the neighbours where it stands. Raises StructureError for atoms on top of each other."""
        self.sample, self.listed = make_sample(self.structure, cutoff + SKIN), self.structure.positions

    def look(self) -> str | None:
        """What happened to its atoms, if they fused or flew off."""
        try:
            self.guard.check_geometry(self.structure.to_atoms())
        except SimulationError as error:
            return str(error)
        return None


def make_mover(
    index: int, atoms: ase.Atoms, fixed: np.ndarray, potential: Potential, source: str, cell: bool = False
) -> Mover:
    """A structure about to start, with `cell` its cell too. Raises StructureError if the potential cannot evaluate it."""
    structure = Structure.from_atoms(atoms, source=source)
    potential.check(structure)
    state = lbfgs.start(len(atoms) + (3 if cell else 0))
    mover = Mover(index, structure, fixed, Guard(atoms, Limits(force=float("inf")), 0.0), state)
    mover.baseline = potential.baseline_energy(structure.numbers)
    mover.search(potential.cutoff)
    return mover
