"""The properties of a structure of which files have reference values: one table for readers, batches, errors and plots.

A new property is a new row. A potential gives those in `PREDICTED`: they may have a term in the loss, and predictions are
compared with them. All others (`CARRIED`) are read, counted, carried along in batches and shown by `mlff info`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mlff.basics.units import DIPOLE, ENERGY, FORCE, STRESS


class Property(NamedTuple):
    """What must be known of a property to read it, to put it into a batch and to print it."""

    name: str  #: in `Structure`, in the options `keys` and `units`, in batches and in figures of errors
    what: str  #: in the options' descriptions
    shape: tuple[int | str, ...]  #: of one structure; "n" is the number of atoms
    unit: str  #: mlff's own, as it is printed
    units: Mapping[str, float]  #: those that a file may have -> factor to mlff's own, which is the first
    keys: tuple[str, ...]  #: usual names in files, in any case
    signs: Mapping[str, float] = {}  #: conventions that a file may have -> factor to mlff's own, which is the first
    grows: bool = False  #: with the number of atoms: shown per atom
    predicted: bool = False  #: by a potential

    @property
    def per_atom(self) -> bool:
        """Whether each atom has a value; else the structure has one."""
        return "n" in self.shape

    def shape_of(self, n: int) -> tuple[int, ...]:
        """The shape for a structure of n atoms."""
        return tuple(n if size == "n" else size for size in self.shape)

    @property
    def shown(self) -> str:
        """What ranges of it are called: energy_per_atom, since energies grow with the number of atoms; forces; stress."""
        return f"{self.name}_per_atom" if self.grows else self.name

    @property
    def shown_unit(self) -> str:
        """The unit of ranges."""
        return f"{self.unit}/atom" if self.grows else self.unit

    @property
    def rmse(self) -> str:
        """What its root mean square error is called: energy_rmse_per_atom, forces_rmse, stress_rmse."""
        return f"{self.name}_rmse_per_atom" if self.grows else f"{self.name}_rmse"

    @property
    def rmse_unit(self) -> str:
        """The unit of that error, a thousandth of `shown_unit`; the factor is `MILLI`."""
        return f"m{self.shown_unit}"


MILLI = 1000.0  #: errors are printed in meV, meV/Å, meV/Å³

_TABLE = (
    Property(
        name="energy",
        what="total energy",
        shape=(),
        unit="eV",
        units=ENERGY,
        keys=("energy", "total_energy", "toten"),
        grows=True,
        predicted=True,
    ),
    Property(
        name="forces",
        what="forces, -dE/dR",
        shape=("n", 3),
        unit="eV/Å",
        units=FORCE,
        keys=("forces", "force"),
        signs={"force": 1.0, "gradient": -1.0},
        predicted=True,
    ),
    Property(
        name="stress",
        what="stress, +dE/dstrain/V (3x3, 9 or 6 numbers, see units.stress_order)",
        shape=(3, 3),
        unit="eV/Å³",
        units=STRESS,
        keys=("stress",),
        signs={"tension": 1.0, "compression": -1.0},
        predicted=True,
    ),
    Property(
        name="dipole",
        what="dipole moment, from minus to plus",
        shape=(3,),
        unit="e·Å",
        units=DIPOLE,
        keys=("dipole",),
    ),
)

PROPERTIES = {known.name: known for known in _TABLE}  #: by their names
PREDICTED = tuple(name for name, known in PROPERTIES.items() if known.predicted)  #: the names of what a potential gives
CARRIED = tuple(name for name in PROPERTIES if name not in PREDICTED)  #: the names of all others
