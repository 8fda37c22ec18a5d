"""Arrays of a file that holds many structures at once: plausible sizes, elements, one `Atoms` per row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import ase
import numpy as np
from ase.data import atomic_numbers

from mlff.basics.errors import DataError

_UNPACKED = 2**26  # bytes that any file may unpack to
_RATIO = 200  # and how many times its size a larger one may
ISOTOPES = {"D": 2.01410178, "T": 3.01604928}  #: amu, of hydrogen: symbols that files have for them


def check_size(unpacked: int, stored: int, what: str) -> None:
    """Raise DataError if `stored` bytes cannot honestly hold `unpacked` ones."""
    if unpacked > max(_UNPACKED, _RATIO * stored):
        raise DataError(
            f"{what} promises {unpacked / 1e9:.3g} GB, but only {stored / 1e9:.3g} GB are stored; is the file damaged?"
        )


def elements(values, what: str) -> np.ndarray:
    """Atomic numbers (of any shape; 0 pads) from numbers or symbols, text or bytes. Raises DataError."""
    array = np.asarray(values)
    if array.dtype.kind in "SUO":
        symbols = [
            symbol.decode("utf-8", "replace") if isinstance(symbol, bytes) else symbol for symbol in array.ravel().tolist()
        ]
        unknown = next(
            (symbol for symbol in symbols if not isinstance(symbol, str) or symbol.strip() not in atomic_numbers), None
        )
        if unknown is not None:
            raise DataError(f"{what}: {str(unknown)[:20]!r} is not an element")
        return np.array([atomic_numbers[symbol.strip()] for symbol in symbols], dtype=np.int64).reshape(array.shape)
    if array.dtype.kind not in "iuf" or not ((array >= 0) & (array <= 118) & (array == np.round(array))).all():
        raise DataError(f"{what}: atomic numbers between 1 and 118 are expected")
    return array.astype(np.int64)


def numbers(values, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Floating-point numbers of exactly this shape, finite or not. Raises DataError."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"{what}: numbers in the shape {shape} are expected") from None
    if array.shape != shape:
        raise DataError(f"{what}: has the shape {array.shape} where {shape} is expected")
    return array


def rows(
    species: np.ndarray, positions: np.ndarray, columns: Mapping[str, np.ndarray], cells=None, pbc=None
) -> Iterator[ase.Atoms]:
    """One `Atoms` per row of `positions` (n, N, 3); species (N,) or (n, N), where zeros at the end are padding.

    Columns of n rows go to `arrays` if they are (n, N, 3), else to `info` if a row has at most 9 entries. Cells
    (n, 3, 3), pbc (n, 3).
    """
    columns = {
        key: column for key, column in columns.items() if key not in ("numbers", "positions")
    }  # no labels: geometry in ASE
    for index, place in enumerate(positions):
        kinds = species if species.ndim == 1 else species[index]
        real = int(np.count_nonzero(kinds))
        if not real or not kinds[:real].all():
            raise DataError("has an atom of atomic number 0 before a real one, or none but padding")
        atoms = ase.Atoms(kinds[:real], positions=place[:real])
        if cells is not None:
            atoms.cell = cells[index]
            atoms.pbc = True if pbc is None else pbc[index]
        for key, column in columns.items():
            row = column[index]
            if row.shape == place.shape and not any(tensor in key.lower() for tensor in ("stress", "virial")):
                atoms.arrays[key] = row[:real]
            elif row.size <= 9:
                row = row.astype(str) if row.dtype.kind == "S" else row
                atoms.info[key] = row.item() if row.size == 1 else row
        yield atoms
