"""What of a structure may change, as one vector: displacements of atoms and components of the strain of the cell."""

from __future__ import annotations

import ase
import numpy as np
from ase.constraints import FixAtoms

from mlff.basics.errors import ConfigError, StructureError
from mlff.basics.units import VOIGT
from mlff.config.design import Free

UNIT, STRAIN_UNIT = (
    0.2,
    0.02,
)  #: Å, and of the strain: what a component of 1 means, so that an optimiser's first step is a short one
LARGEST_STRAIN = 0.2  #: of each component
_STRAIN = 0.01  #: standard deviation of each component in a displaced start


class Space:
    """Coordinates x (m,), without unit, around a structure: all zeros.

    Atoms are displaced by u, then all is strained: R = (R₀ + u) D and cell = cell₀ D with D = 1 + Σ s B, B the free
    components of a symmetric strain. x is (u / `UNIT`, s / `STRAIN_UNIT`). Atoms that may not move keep their
    fractional coordinates.
    """

    def __init__(self, atoms: ase.Atoms, free: Free, source: str = "structure"):
        """Raises StructureError: no cell where it is free, constraints but FixAtoms; ConfigError: no atom that may move."""
        self.atoms = atoms
        self.moving = _moving(atoms, free, source)  #: (k,) numbers of the atoms that may move
        self.relaxed = free.relaxed  #: they follow the cell, and are no part of x
        self.strains = _strains(free)  #: (s, 3, 3)
        if len(self.strains) and not (atoms.pbc.all() and atoms.cell.rank == 3):
            raise StructureError(
                f"{source}: free.cell needs a cell that is periodic in three directions, found pbc={atoms.pbc.tolist()}"
            )
        self._displaced = 0 if self.relaxed else 3 * len(self.moving)
        self.size = self._displaced + len(self.strains)
        self.followed = np.zeros((len(atoms), 3))  #: Å, displacements before the strain of atoms that follow the cell

    @property
    def bounds(self) -> list[tuple[float | None, float | None]]:
        """Of each component of x."""
        most = LARGEST_STRAIN / STRAIN_UNIT
        return [(None, None)] * self._displaced + [(-most, most)] * len(self.strains)

    def at_bound(self, x: np.ndarray) -> bool:
        """Whether a component of the strain is as large as it may be."""
        return bool((np.abs(x[self._displaced :]) * STRAIN_UNIT > 0.999 * LARGEST_STRAIN).any())

    def geometry(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions (n, 3), Å, and deformation D (3, 3)."""
        deformation = np.eye(3) + np.tensordot(x[self._displaced :] * STRAIN_UNIT, self.strains, axes=1)
        displacement = self.followed.copy()
        if self._displaced:
            displacement[self.moving] += UNIT * x[: self._displaced].reshape(-1, 3)
        return (self.atoms.positions + displacement) @ deformation, deformation

    def structure(self, x: np.ndarray) -> ase.Atoms:
        """The structure at x."""
        positions, deformation = self.geometry(x)
        atoms = self.atoms.copy()
        atoms.set_constraint()
        atoms.set_cell(self.atoms.cell.array @ deformation)
        atoms.positions = positions
        atoms.set_constraint(self.atoms.constraints)
        return atoms

    def strained(self, atoms: ase.Atoms, x: np.ndarray) -> ase.Atoms:
        """Another structure with the strain at x."""
        other = atoms.copy()
        if len(self.strains):
            other.set_constraint()
            other.set_cell(other.cell.array @ self.geometry(x)[1], scale_atoms=True)
        return other

    def follow(self, x: np.ndarray, step: np.ndarray) -> None:
        """Atoms that follow the cell go on by `step` (n, 3), Å, in the deformed structure at x."""
        self.followed += step @ np.linalg.inv(self.geometry(x)[1])

    def gradient(self, x: np.ndarray, of_positions: np.ndarray, of_strain: np.ndarray) -> np.ndarray:
        """(m,) by x, from the derivatives by positions (n, 3) and by η (3, 3): positions and cell times (1 + η)."""
        deformation = self.geometry(x)[1]
        of_deformation = np.linalg.solve(deformation.T, of_strain)
        strains = np.tensordot(self.strains, of_deformation, axes=2)
        displaced = (of_positions[self.moving] @ deformation.T).ravel() if self._displaced else np.zeros(0)
        return np.concatenate([UNIT * displaced, STRAIN_UNIT * strains])

    def displaced(self, rng: np.random.Generator, displacement: float) -> tuple[np.ndarray, np.ndarray]:
        """x of a random start, and `followed` there."""
        moves = np.zeros((len(self.atoms), 3))
        moves[self.moving] = rng.normal(scale=displacement, size=(len(self.moving), 3))
        strains = rng.normal(scale=_STRAIN / STRAIN_UNIT, size=len(self.strains))
        x = np.concatenate([moves[self.moving].ravel()[: self._displaced] / UNIT, strains])
        return x, moves if self.relaxed else np.zeros_like(moves)


def _moving(atoms: ase.Atoms, free: Free, source: str) -> np.ndarray:
    fixed: set[int] = set()
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise StructureError(f"{source}: has the constraint {type(constraint).__name__}; design knows FixAtoms only")
        fixed |= set(constraint.get_indices().tolist())
    if free.atoms == "none":
        return np.zeros(0, int)
    wanted = range(len(atoms)) if free.atoms == "all" else free.atoms
    if (last := max(wanted, default=0)) >= len(atoms):
        raise ConfigError(f"free.atoms: {source} has no atom {last}; its {len(atoms)} atoms are numbered from 0")
    moving = np.array(sorted(set(wanted) - fixed), int)
    if not len(moving):
        raise ConfigError(
            f"free.atoms: FixAtoms of {source} holds all of them; set free.atoms: none to change the cell only"
        )
    return moving


def _strains(free: Free) -> np.ndarray:
    if free.cell in ("none", ()):
        return np.zeros((0, 3, 3))
    if free.cell == "volume":
        return np.eye(3)[None]
    names = VOIGT["ase"] if free.cell == "all" else dict.fromkeys(free.cell)
    strains = []
    for i, j in (("xyz".index(name[0]), "xyz".index(name[1])) for name in names):
        strain = np.zeros((3, 3))
        strain[i, j] = strain[j, i] = 1.0 if i == j else 0.5**0.5
        strains.append(strain)
    return np.array(strains)
