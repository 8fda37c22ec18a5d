"""Units that labels agree on and that are wrong all the same: seen in lengths of bonds and in total energies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlff.basics.units import ENERGY, LENGTH
from mlff.data.composition import elements_of
from mlff.data.structure import Structure
from mlff.lint.contacts import Contacts

_FEWEST = 20  # atoms with a neighbour
_BOND = 0.75, 1.45  # shortest over sum of covalent radii, of ordinary matter (rare gases apart)
_TOLERANCE = 1.06  # of the estimate of a total energy
_LIGHT = {1, 5, 6, 7, 8, 9, 10}  #: a pseudo-atom of these has no energy that looks like another unit
_SIMILAR = 0.03
_BOUND = 12.0  # eV per atom: no solid or molecule is bound so strongly
_AMBIGUOUS = ("Rydberg",)  # ethanol of GFN2-xTB, without core electrons, has 0.074 of its all-electron energy: 1/13.6


class Misfit(NamedTuple):
    """A unit that fits better than the one in which a label was read."""

    sure: bool
    label: str  #: energy or length
    what: str
    do: str


def all_electron(numbers) -> np.ndarray:
    """Total energy of neutral atoms, eV, within 2 % (H exactly): Schwinger, Phys. Rev. A 24, 2353 (1981)."""
    z = np.asarray(numbers, dtype=np.float64)
    hartree = -0.768745 * z ** (7 / 3) + z**2 / 2 - 0.269900 * z ** (5 / 3)
    return np.where(z == 1, -0.5, hartree) * ENERGY["Hartree"]


def all_electron_ratio(structures: Sequence[Structure]) -> tuple[float, float]:
    """Energies over those of free atoms with all their electrons: median and relative spread; about 1 for such energies."""
    ratios = [s.energy / all_electron(s.numbers).sum() for s in structures if s.energy is not None]
    if not ratios:
        return 0.0, 0.0
    low, median, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    return float(median), float((high - low) / (2 * abs(median))) if median else 0.0


def energy_zero(structures: Sequence[Structure]) -> str:
    """What the energies seem to be counted from, in words; empty without energies."""
    ratio, spread = all_electron_ratio(structures)
    per_atom = [s.energy / len(s) for s in structures if s.energy is not None]
    if not per_atom:
        return ""
    if 1 / _TOLERANCE < ratio < _TOLERANCE and spread < _SIMILAR:
        return "nuclei and electrons (total energies)"
    if abs(np.median(per_atom)) < _BOUND:
        return "atoms, elements or pseudo-atoms"
    return "nuclei or cores, or an unusual unit"


def energy_unit(structures: Sequence[Structure], origin: str = "") -> Misfit | None:
    """Total energies of all electrons that were read in a wrong unit; `origin` says in which one they were read."""
    ratio, spread = all_electron_ratio(structures)
    read = next((name for name in ENERGY if f", {name}" in origin), "eV")
    if ratio <= 0 or spread > _SIMILAR or 1 / _TOLERANCE < ratio < _TOLERANCE:
        return None
    for name, value in ENERGY.items():
        factor = ratio * value / ENERGY[read]  # energies over what they are in this unit
        if name not in (read, *_AMBIGUOUS) and 1 / _TOLERANCE < factor < _TOLERANCE:
            elements = set(elements_of(structures))
            what = f"energies are {ratio:.4g} times those of all electrons of the atoms, as if {name} were read as {read}"
            return Misfit(elements <= _LIGHT, "energy", what, f"units.energy: {name}")
    return None


def length_unit(measured: Contacts, origin: str = "") -> Misfit | None:
    """Nearest neighbours at distances that are usual in another unit of length."""
    low, median, high = measured.bonds
    if measured.bonded < _FEWEST or _BOND[0] < median < _BOND[1]:
        return None
    read = next((name for name in LENGTH if origin.startswith(name)), "Angstrom")
    for name, value in LENGTH.items():
        scale = value / LENGTH[read]
        usual = [_BOND[0] < length * scale < _BOND[1] for length in (low, median, high)]
        if name != read and usual[1] and sum(usual) > 1 and not _BOND[0] < low < _BOND[1]:
            sure = all(usual)
            what = f"nearest neighbours lie at {median:.2f} times the length of a bond, as if {name} were read as {read}"
            also = ", and units.energy if that is not eV either (Hartree?)" if name == "Bohr" else ""
            return Misfit(sure, "length", what, f"units.length: {name}{also}")
    return None
