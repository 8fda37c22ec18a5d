"""Per-element reference energies: what is taken off total energies before training and added back in float64."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from mlff.basics.errors import DataError
from mlff.data.composition import element_counts, elements_of
from mlff.data.structure import Structure

#: No bond is worth so much (eV per atom): a larger remainder means that references and labels do not belong together.
_LARGEST_BINDING = 25.0


def fit(
    data: Sequence[Structure], how: str | Mapping[str, float] = "auto", isolated: Mapping[int, float] | None = None
) -> dict[int, float]:
    """Reference energies of every element in `data` (a Dataset or structures): Z -> eV.

    how: "isolated" (energies of `isolated`, by default `data.isolated_atoms`), "least_squares" (fit to energies per atom;
    if the compositions cannot tell elements apart, the solution of least norm, with a warning), "auto" (isolated if
    complete, else least squares; zeros without any energy), "none" (zeros), or the energies themselves, {"H": -13.6}, eV.
    Raises DataError: an element without a reference; no energies to fit; references that do not belong to the labels.
    """
    if isolated is None:
        isolated = getattr(data, "isolated_atoms", {})
    elements = elements_of(data)
    labelled = [structure for structure in data if structure.energy is not None]
    if isinstance(how, Mapping):
        given = {_atomic_number(symbol): float(energy) for symbol, energy in how.items()}
        return _checked({z: _get(given, z, "reference_energies names no energy of it") for z in elements}, labelled)
    if how == "none" or (how == "auto" and not labelled and not set(elements) <= set(isolated)):
        return dict.fromkeys(elements, 0.0)
    if how == "isolated" or (how == "auto" and set(elements) <= set(isolated)):
        return _checked({z: float(_get(isolated, z, "the data hold no isolated atom of it")) for z in elements}, labelled)
    if how not in ("auto", "least_squares"):
        raise ValueError(f"unknown kind of baseline {how!r}")
    if not labelled:
        raise DataError("reference_energies: least_squares needs energies, and no training structure has one; use none")
    missing = [chemical_symbols[z] for z in elements if z not in isolated]
    if how == "auto" and len(missing) < len(elements):
        warnings.warn(
            f"isolated atoms of {', '.join(missing)} are missing: reference energies by least squares", stacklevel=2
        )
    return _least_squares(labelled, elements)


def energy(baseline: Mapping[int, float], numbers) -> float:
    """Reference energies of the atoms `numbers` (n,) summed, eV. Raises DataError for an element without one."""
    values, counts = np.unique(np.asarray(numbers), return_counts=True)
    try:
        return float(sum(float(baseline[z]) * count for z, count in zip(values.tolist(), counts.tolist(), strict=True)))
    except KeyError as error:
        known = " ".join(chemical_symbols[z] for z in sorted(baseline))
        raise DataError(f"no reference energy for {_symbol(error.args[0])}; there are those of {known}") from None


def _least_squares(structures: Sequence[Structure], elements: Sequence[int]) -> dict[int, float]:
    shares = np.array([element_counts(structure.numbers, elements) / len(structure) for structure in structures])
    energies = np.array([structure.energy / len(structure) for structure in structures])
    left, singular, directions = np.linalg.svd(shares, full_matrices=False)
    rank = int((singular > 1e-6 * singular[0]).sum())
    solution = directions[:rank].T @ (left[:, :rank].T @ energies / singular[:rank])
    if rank < len(elements):
        free = 1 - (directions[:rank] ** 2).sum(axis=0) > 1e-8
        symbols = ", ".join(chemical_symbols[z] for z, is_free in zip(elements, free, strict=True) if is_free)
        warnings.warn(
            f"the compositions cannot tell the reference energies of {symbols} apart (rank {rank} of {len(elements)} "
            "elements); energies of other compositions will be off by a constant: give reference_energies or isolated atoms "
            "if these matter",
            stacklevel=3,
        )
    return {z: float(value) for z, value in zip(elements, solution, strict=True)}


def _checked(baseline: dict[int, float], labelled: Sequence[Structure]) -> dict[int, float]:
    if not labelled:
        return baseline
    before = float(np.median([structure.energy / len(structure) for structure in labelled]))
    after = float(
        np.median([(structure.energy - energy(baseline, structure.numbers)) / len(structure) for structure in labelled])
    )
    if abs(after) <= _LARGEST_BINDING:
        return baseline
    if abs(after) > abs(before):
        raise DataError(
            f"the energies seem to be atomisation or formation energies already: {before:.3f} eV per atom as they are, "
            f"{after:.1f} after taking the reference energies off; set data.reference_energies to none or least_squares"
        )
    raise DataError(
        f"the reference energies do not belong to these labels: {after:.1f} eV per atom are left of {before:.1f} after "
        "taking them off; check their units and method, or set data.reference_energies to least_squares"
    )


def _get(energies: Mapping[int, float], z: int, problem: str) -> float:
    if z not in energies:
        raise DataError(f"no reference energy for {_symbol(z)}: {problem}; give one or use least_squares")
    return energies[z]


def _atomic_number(symbol: str) -> int:
    number = atomic_numbers.get(symbol, 0)
    if number == 0:
        raise DataError(f"reference_energies: {symbol!r} is not the symbol of an element")
    return number


def _symbol(z: int) -> str:
    return chemical_symbols[z] if 0 < z < len(chemical_symbols) else f"atomic number {z}"
