"""LAMMPS: dumps as text and data files, by ASE, without what ASE makes up: elements from types, and energies of zero."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import ase
import ase.data
import ase.io

from mlff.basics.errors import DataError
from mlff.data.facts import Facts, Reading, Remark, remark
from mlff.data.readers.arrays import ISOTOPES

_STYLES = {
    "metal": {"energy": "eV", "length": "Angstrom"},
    "real": {"energy": "kcal/mol", "length": "Angstrom"},
    "electron": {"energy": "Hartree", "length": "Bohr"},
}
NO_VELOCITIES = Remark("velocities", "velocities in the units electron of LAMMPS are not read")
_PICOSECOND = 1000.0  #: fs
_STYLES_OF_ATOMS = ("atomic", "charge", "full", "molecular", "bond", "angle", "sphere")


def is_dump(path: Path, head: bytes) -> bool:
    """By its first ITEM."""
    return re.match(rb"ITEM: (UNITS|TIMESTEP|TIME)\b", head) is not None


def is_data(path: Path, head: bytes) -> bool:
    """By the counts in its header."""
    return (
        re.search(rb"^\s*\d+\s+atoms\b", head, re.MULTILINE) is not None
        and re.search(rb"^\s*\d+\s+atom types\b", head, re.MULTILINE) is not None
    )


def read_dump(path: Path) -> Reading:
    """Every frame. Units are those of `dump_modify units yes`, else the user's business. Raises DataError: no elements."""
    style, columns = None, None
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("ITEM: UNITS"):
                style = file.readline().strip()
            elif line.startswith("ITEM: ATOMS"):
                columns = line.split()[2:]
                break
    if columns is None:
        raise DataError("a LAMMPS dump without atoms; is it cut short?")
    if "element" not in columns:
        raise DataError(
            "a LAMMPS dump without elements: a type is a number that LAMMPS alone knows; write it with "
            "'dump ... custom ... id element x y z fx fy fz' and 'dump_modify ... element Si O'"
        )
    if style is not None and style not in _STYLES:
        raise DataError(f"a LAMMPS dump in the units {style!r}; metal, real and electron are known")
    return Reading(_dump(path, style), Facts(in_file=_STYLES.get(style, {})))


def _dump(path: Path, style: str | None) -> Iterator[ase.Atoms]:
    for atoms in ase.io.iread(str(path.resolve()), ":", format="lammps-dump-text", do_not_split_by_at_sign=True):
        if atoms.calc is not None:
            atoms.calc.results.pop("energy", None)  # ASE's zero
        _velocities(atoms, style)
        yield atoms


def _velocities(atoms: ase.Atoms, style: str | None) -> None:
    """ASE takes them as Å/ps, the unit of `metal`."""
    if style == "electron" and atoms.arrays.pop("momenta", None) is not None:
        remark(atoms, NO_VELOCITIES)
    elif style == "real" and "momenta" in atoms.arrays:
        atoms.set_momenta(atoms.get_momenta() * _PICOSECOND)


def read_data(path: Path) -> Reading:
    """The one structure of a data file, elements by their masses, which stay. Raises DataError where these or the style are not said."""
    text = path.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^\s*Atoms\s*#\s*(\S+)", text, re.MULTILINE)
    if found is None or found[1] not in _STYLES_OF_ATOMS:
        raise DataError(
            f"a LAMMPS data file that does not say its atom style; write 'Atoms # full' (or {', '.join(_STYLES_OF_ATOMS)}) over the atoms"
        )
    if re.search(r"^\s*Masses\b", text, re.MULTILINE) is None:
        raise DataError("a LAMMPS data file without Masses: nothing says what its types are")
    style = (re.search(r"units = (\S+)", text.splitlines()[0]) or [None, None])[1]
    if style is not None and style not in _STYLES:
        raise DataError(f"a LAMMPS data file in the units {style!r}; metal, real and electron are known")
    atoms = ase.io.read(
        str(path.resolve()), format="lammps-data", units="metal", atom_style=found[1], do_not_split_by_at_sign=True
    )
    _elements_by_mass(atoms, text)
    _velocities(atoms, style)
    return Reading([atoms], Facts(in_file=_STYLES.get(style, {})))


def _elements_by_mass(atoms: ase.Atoms, text: str) -> None:
    """Raises DataError for a mass that no element has."""
    section = re.search(r"^\s*Masses\b[^\n]*\n\s*\n((?:\s*\d+\s+[\d.eE+-]+[^\n]*\n)+)", text, re.MULTILINE)
    masses = {int(row.split()[0]): float(row.split()[1]) for row in section[1].strip().splitlines()} if section else {}
    types = atoms.arrays.get("type")
    if types is None or not masses:
        raise DataError("a LAMMPS data file whose Masses cannot be read")
    known = [(mass, z) for z, mass in enumerate(ase.data.atomic_masses) if z] + [(mass, 1) for mass in ISOTOPES.values()]
    for kind, mass in masses.items():
        off, nearest = min((abs(other - mass), z) for other, z in known)
        if off > 0.1:
            raise DataError(f"a LAMMPS data file with a mass of {mass:g} for type {kind}, which is no element's")
        atoms.numbers[types == kind] = nearest
