"""One structure with its reference labels, in mlff's units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, make_dataclass

import ase
import numpy as np

from mlff.basics.errors import StructureError
from mlff.basics.properties import PROPERTIES
from mlff.data.neighbors import check_cell

#: Two atoms nearer than this (Å) are on top of each other: no reference calculation converges there.
COINCIDENT = 1e-3
_FAR = 1e9  # Å; integers of lattice vectors would overflow


_Labelled = make_dataclass(
    "_Labelled", [(name, float | np.ndarray | None, None) for name in PROPERTIES], frozen=True, eq=False, kw_only=True
)


@dataclass(frozen=True, eq=False)
class Structure(_Labelled):
    """Atoms and, where known, labels. Arrays become float64, C-contiguous and native byte order, whatever is given.

    Labels are given by keyword and have the shapes and units of `mlff.basics.properties.PROPERTIES`: `energy` (float, eV),
    `forces` ((n, 3), eV/Å), `stress` ((3, 3), eV/Å³). Absent ones are None, never 0. Constraints do not exist here: forces
    are those of the reference method.
    """

    numbers: np.ndarray  #: (n,) int32, atomic numbers
    positions: np.ndarray  #: (n, 3), Å, as given (not wrapped)
    cell: np.ndarray  #: (3, 3), Å, rows are vectors; zeros if there is none
    pbc: np.ndarray  #: (3,) bool
    raw_voigt: np.ndarray | None = (
        None  #: (6,), the stress (eV/Å³) in the order of the file, if that has six numbers; maybe of no known order
    )
    weight: float = 1.0  #: weight in the loss
    group: str | None = None  #: frames of one group never straddle a split
    source: str = "structure"  #: where it came from, for messages: "file.xyz, structure 12"
    info: dict = field(default_factory=dict)  #: what else the file said about it

    def __post_init__(self) -> None:
        types = {"numbers": np.int32, "positions": np.float64, "cell": np.float64, "pbc": bool}
        types |= {name: np.float64 for name, known in PROPERTIES.items() if known.shape}
        for name, dtype in types.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.ascontiguousarray(value, dtype))

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def labels(self) -> dict[str, float | np.ndarray]:
        """The labels that there are, by their names in `PROPERTIES`."""
        return {name: value for name in PROPERTIES if (value := getattr(self, name)) is not None}

    @property
    def formula(self) -> str:
        """In Hill's order, e.g. C3H4O2."""
        return ase.Atoms(self.numbers).get_chemical_formula()

    @property
    def volume(self) -> float:
        """abs(det cell), Å³."""
        return float(abs(np.linalg.det(self.cell)))

    @classmethod
    def from_atoms(cls, atoms: ase.Atoms, source: str = "structure", **labels) -> Structure:
        """Take geometry from `atoms` (its calculator, constraints and info are not read); labels by keyword.

        Raises StructureError for NaN, an unknown element (Z < 1 or > 118) or a periodic direction without a vector.
        """
        copies = {"numbers": atoms.numbers.copy(), "positions": atoms.positions.copy()}
        structure = cls(**copies, cell=atoms.cell.array.copy(), pbc=atoms.pbc.copy(), source=source, **labels)
        structure.check()
        return structure

    def check(self) -> None:
        """Raise StructureError if the geometry cannot be evaluated at all."""
        shapes = self.numbers.shape, self.positions.shape, self.cell.shape, self.pbc.shape
        if shapes != ((len(self),), (len(self), 3), (3, 3), (3,)):
            expected = "numbers (n,), positions (n, 3), cell (3, 3), pbc (3,) expected"
            raise StructureError(f"{self.source}: {expected}, found {shapes}")
        near = np.abs(self.positions) < _FAR
        if not near.all():
            atom = int(np.flatnonzero(~near.all(axis=1))[0])
            raise StructureError(f"{self.source}: position of atom {atom} is not finite, or beyond {_FAR:g} Å")
        if not (np.abs(self.cell) < _FAR).all():
            raise StructureError(f"{self.source}: the cell is not finite, or beyond {_FAR:g} Å")
        bad = (self.numbers < 1) | (self.numbers > 118)
        if bad.any():
            atom = int(np.flatnonzero(bad)[0])
            raise StructureError(
                f"{self.source}: atom {atom} has atomic number {int(self.numbers[atom])}, which is no element"
            )
        if self.pbc.any():
            lengths = np.linalg.norm(self.cell, axis=1)
            if (lengths[self.pbc] == 0).any():
                axis = "abc"[int(np.flatnonzero(self.pbc & (lengths == 0))[0])]
                raise StructureError(
                    f"{self.source}: periodic along {axis}, but the cell vector {axis} is zero; set the cell or pbc"
                )
            if self.pbc.all() and self.volume < 1e-6:
                raise StructureError(f"{self.source}: the cell has no volume")
            try:
                check_cell(self.cell, self.pbc)
            except StructureError as error:
                raise StructureError(f"{self.source}: {error}") from None

    def to_atoms(self) -> ase.Atoms:
        """ASE atoms without labels."""
        return ase.Atoms(self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc)


def label_numbers(structures: Iterable[Structure], name: str) -> list[np.ndarray]:
    """The numbers of a label of `PROPERTIES`, flat and per atom where it grows with their number, of structures that have it."""
    share = len if PROPERTIES[name].grows else lambda structure: 1
    return [np.ravel(value) / share(s) for s in structures if (value := getattr(s, name)) is not None]
