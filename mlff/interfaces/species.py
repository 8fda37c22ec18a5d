"""The elements of an engine's atom types, which have numbers only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import atomic_masses, atomic_numbers, chemical_symbols

from mlff.basics.errors import ConfigError
from mlff.potential.potential import Potential

_SAME = 0.005  #: relative difference of masses of one element


def numbers_of(species: Sequence[str], potential: Potential) -> np.ndarray:
    """(types,) atomic numbers of element symbols. Raises ConfigError: no element, or not known to the potential."""
    known = ", ".join(chemical_symbols[z] for z in potential.elements)
    for place, symbol in enumerate(species, start=1):
        if atomic_numbers.get(symbol, 0) not in potential.elements:
            raise ConfigError(f"species: type {place} is {symbol}, which this potential does not know; it knows {known}")
    return np.array([atomic_numbers[symbol] for symbol in species], np.int32)


def refuse_other_mass(place: int, z: int, mass: float) -> None:
    """Raise ConfigError if atoms of type `place`, of element z, have the mass (amu) of another element; isotopes may pass."""
    other = 1 + int(np.abs(atomic_masses[1:] - mass).argmin())
    if other != z and abs(mass / atomic_masses[other] - 1) < _SAME and abs(mass / atomic_masses[z] - 1) >= _SAME:
        raise ConfigError(
            f"species: type {place} is {chemical_symbols[z]}, but has the mass of {chemical_symbols[other]}, {mass:g}; "
            "are the types in this order?"
        )
