"""The structure that a property is computed of: at a minimum, periodic where it has to be, near the training data or not."""

from __future__ import annotations

from collections.abc import Sequence

import ase
import numpy as np

from mlff.basics.errors import ConfigError, StructureError
from mlff.data.structure import Structure
from mlff.interfaces.ase import MLFFCalculator
from mlff.potential.potential import Potential
from mlff.simulation.guard import SimulationError
from mlff.simulation.relax import relax

TOLERANCE = 0.02  #: eV/Å, largest force on an atom of a structure that counts as a minimum: twice what `mlff relax` leaves
_TIGHT = 0.01  #: of the tolerance: what is relaxed to
_STEPS = 1000


def check_minimum(potential: Potential, atoms: ase.Atoms, tolerance: float = TOLERANCE) -> float:
    """The largest force on an atom that may move, eV/Å. Raises StructureError: above `tolerance`, no atoms, unknown elements."""
    if len(atoms) == 0:
        raise StructureError("the structure has no atoms")
    if not (tolerance > 0 and np.isfinite(tolerance)):
        raise ConfigError(f"--fmax must be a positive force in eV/Å, not {tolerance:g}")
    forces = potential.predict([atoms], stress=False)[0].forces
    for constraint in atoms.constraints:
        constraint.adjust_forces(atoms, forces)
    lengths = np.linalg.norm(forces, axis=1)
    if lengths.max() > tolerance:
        raise StructureError(
            f"not a minimum: the force on atom {int(lengths.argmax())} is {lengths.max():.3g} eV/Å (more than {tolerance:g}): "
            "relax it first with `mlff relax`, or add --relax"
        )
    return float(lengths.max())


def relaxed(
    potential: Potential, atoms: ase.Atoms, cell: bool = False, tolerance: float = TOLERANCE, progress: bool = False
) -> ase.Atoms:
    """A copy of `atoms` at the next minimum, to a hundredth of `tolerance` (eV/Å); with `cell` that of the cell too.

    Raises SimulationError: it comes to none, or breaks up.
    """
    moving = atoms.copy()
    result = relax(moving, MLFFCalculator(potential), fmax=_TIGHT * tolerance, cell=cell, steps=_STEPS, progress=progress)
    if not result.converged:
        raise SimulationError(
            f"--relax comes to no minimum: the largest force is {result.forces_max:.2g} eV/Å after {result.steps} steps; try "
            "`mlff relax` with --optimizer fire and more --steps"
        )
    moving.calc = None
    return moving


def need_cell(atoms: ase.Atoms, what: str) -> None:
    """Raise StructureError without a cell that is periodic in three directions."""
    if not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise StructureError(f"{what} need a cell that is periodic in three directions, found pbc={atoms.pbc.tolist()}")


def farthest(potential: Potential, structures: Sequence[ase.Atoms]) -> float | None:
    """Distance from the training data of the farthest atom (up to 1 is inside, above 2 forces are guesses); None: not known."""
    if potential.environments is None:
        return None
    return max(float(potential.environments.distances(Structure.from_atoms(atoms)).max(initial=0.0)) for atoms in structures)
