"""Units: everything inside mlff is eV, Å, eV/Å, eV/Å³, e·Å and amu; factors into them stand here and nowhere else.

Energies, lengths and pressures come from ASE (CODATA 2014, the set ASE uses everywhere).
"""

import numpy as np
from ase import units as _ase

from mlff.basics.errors import ConfigError

#: eV per unit
ENERGY = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": _ase.Hartree,
    "Rydberg": _ase.Rydberg,
    "kcal/mol": _ase.kcal / _ase.mol,
    "kJ/mol": _ase.kJ / _ase.mol,
}

#: Å per unit
LENGTH = {"Angstrom": 1.0, "Bohr": _ase.Bohr, "nm": 10.0}

#: eV/Å per unit
FORCE = {f"{energy}/{length}": ENERGY[energy] / LENGTH[length] for energy in ENERGY for length in LENGTH}

#: eV/Å³ per unit
STRESS = {
    "eV/Angstrom^3": 1.0,
    "GPa": _ase.GPa,
    "kbar": 0.1 * _ase.GPa,
    "bar": 1e-4 * _ase.GPa,
    "Hartree/Bohr^3": _ase.Hartree / _ase.Bohr**3,
}

#: e·Å per unit
DIPOLE = {"e*Angstrom": 1.0, "Debye": _ase.Debye, "e*Bohr": _ase.Bohr}

#: Å²/ps per unit
DIFFUSION = {"1e-9 m^2/s": 0.1, "1e-5 cm^2/s": 0.1, "Angstrom^2/ps": 1.0}

#: amu/Å³ per unit
DENSITY = {"g/cm^3": 1e-27 / _ase._amu, "kg/m^3": 1e-30 / _ase._amu}

#: order of the six numbers of a symmetric tensor
VOIGT = {
    "ase": ("xx", "yy", "zz", "yz", "xz", "xy"),
    "vasp": ("xx", "yy", "zz", "xy", "yz", "xz"),
    "lammps": ("xx", "yy", "zz", "xy", "xz", "yz"),
}
_PLACES = [0, 4, 8, 5, 2, 1]  # of ASE's six in a tensor row by row

_SPELLED = {
    "electronvolt": "eV", "ha": "Hartree", "eh": "Hartree", "ry": "Rydberg", "kcalmol": "kcal/mol", "kjmol": "kJ/mol",
    "ang": "Angstrom", "a": "Angstrom", "å": "Angstrom", "a0": "Bohr", "kb": "kbar",
    "e*ang": "e*Angstrom", "e*a0": "e*Bohr",
}  # fmt: skip

KB = _ase.kB  #: Boltzmann constant, eV/K
FEMTOSECOND = _ase.fs  #: one femtosecond in ASE's time unit, Å sqrt(amu/eV)
HBAR = _ase._hbar / _ase._e * _ase.s  #: reduced Planck constant, eV in ASE's time unit: of sqrt(eV/Å²/amu) it makes eV
INVERSE_CM = _ase.invcm  #: energy of a vibration of 1 cm⁻¹, eV
TERAHERTZ = _ase._hplanck / _ase._e * 1e12  #: energy of a vibration of 1 THz, eV
KJ_PER_MOL = _ase.kJ / _ase.mol  #: eV


def spelled(text: str) -> str | None:
    """The name here of a unit that a file spells in its own way (kB, Ang, hartree/bohr, electronvoltperangstrom)."""
    known = {name.lower(): name for name in (*ENERGY, *LENGTH, *STRESS, *DIPOLE)} | _SPELLED
    text = text.strip().lower().replace(" ", "")
    if text in known:
        return known[text]
    energy, separator, length = text.rpartition("per" if "per" in text else "/")
    return f"{known[energy]}/{known[length]}" if separator and {energy, length} <= known.keys() else None


def to_six(tensor: np.ndarray) -> np.ndarray:
    """The six numbers of a symmetric tensor (3, 3) in ASE's order: (6,)."""
    return tensor.flat[_PLACES]


def from_six(six: np.ndarray, order: tuple[str, ...] = VOIGT["ase"]) -> np.ndarray:
    """The symmetric tensor (3, 3) whose components in this order are `six` (6,)."""
    part = dict(zip(order, six, strict=True))
    return np.array([[part["".join(sorted(i + j))] for j in "xyz"] for i in "xyz"])


def factor(table: dict[str, float], unit: str, what: str) -> float:
    """The factor that takes `unit` into mlff's own; an unknown unit names the ones there are."""
    try:
        return table[unit]
    except KeyError:
        raise ConfigError(f"unknown {what} unit {unit!r}; known: {', '.join(table)}") from None
