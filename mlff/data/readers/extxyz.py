"""XYZ, frame by frame: extended XYZ, plain XYZ, and what other programs call XYZ, each known by its comment line.

Nothing is dropped in silence: a column that nobody names, a cell under another name, a symbol that is no element is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import ase
import numpy as np
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.data import atomic_masses, atomic_numbers
from ase.stress import full_3x3_to_voigt_6_stress

from mlff.basics.errors import DataError
from mlff.data.facts import Facts, Reading
from mlff.data.readers import cp2k
from mlff.data.readers.arrays import ISOTOPES
from mlff.data.readers.comment import parse

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
_PLAIN = "species:S:1:pos:R:3"
_COLUMNS = {"species": "symbols", "Z": "numbers", "pos": "positions", "charge": "charges"}  #: as ASE calls them
_TYPES: dict[str, Callable] = {
    "R": float,
    "I": int,
    "S": str,
    "L": {"T": True, "F": False, "True": True, "False": False}.__getitem__,
}
_CELLS = {"lattice", "cell", "unitcell", "unit_cell", "box", "cell_vectors", "lattice_vectors"}
_TENSORS = {"stress", "virial"}  #: nine numbers stand column by column, as those of Lattice
_OF_STRUCTURE = {"energy", "free_energy", "stress", "dipole", "magmom"}  #: results of ASE's calculators that are no columns


class Dialect(NamedTuple):
    """XYZ of another program: how its comment line looks, and what is in it."""

    comment: re.Pattern  #: groups are kept in `info` under their names
    facts: Facts = Facts()
    refusal: str = ""  #: why it cannot be read, and what to do


_HARTREE = Facts(by_format={"energy": "Hartree", "length": "Angstrom"})
_CP2K = Facts(by_format={"energy": "Hartree", "length": "Angstrom", "forces": "Hartree/Bohr"})
_REAL = r"[+-]?\d+\.?\d*(?:[eEdD][+-]?\d+)?"
DIALECTS = {
    "CP2K": Dialect(
        re.compile(rf"i\s*=\s*(?P<step>\d+),(?:\s*time\s*=\s*(?P<time>{_REAL}),)?\s*E\s*=\s*(?P<energy>{_REAL})"), _CP2K
    ),
    "xtb": Dialect(re.compile(rf"energy:\s*(?P<energy>{_REAL})\s+gnorm:\s*{_REAL}.*"), _HARTREE),
    "ORCA": Dialect(re.compile(rf"Coordinates from ORCA-job \S+ E\s+(?P<energy>{_REAL})"), _HARTREE),
    "i-PI": Dialect(
        re.compile(r"#\s*CELL.*"),
        refusal="an i-PI trajectory, whose cell and units stand in its own way; convert it, e.g. with i-PI's tools",
    ),
    "DFTB+": Dialect(
        re.compile(r"(MD iter|Geometry Step):.*"),
        refusal="a DFTB+ trajectory, whose columns after the positions nobody names; keep the first four, or give Properties",
    ),
}


def is_extxyz(path: Path, head: bytes) -> bool:
    """By the first lines, or by the name of the file."""
    lines = head.decode("utf-8-sig", errors="replace").lstrip().splitlines()
    if not lines or not lines[0].strip().isdigit():
        return path.suffix.lower() in (".xyz", ".extxyz") and path.name != "xyz.in"
    if len(lines) < 3 or path.suffix.lower() in (".xyz", ".extxyz"):
        return True
    fields = lines[2].split()
    return "Properties" in lines[1] or (len(fields) >= 4 and fields[0].isalpha() and all(map(_is_number, fields[1:4])))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_extxyz(path: Path) -> Reading:
    """Every frame; blank lines between frames are skipped.

    Energies in comments of CP2K, xtb and ORCA are in Hartree; units of all others are the user's business.
    """
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        _next_line(file, 0)
        first = file.readline()
    name = dialect(first)
    if name == "CP2K" and (found := re.search(r"-(frc|vel)-\d*\.xyz$", path.name)):
        what = {"frc": "forces", "vel": "velocities"}[found[1]]
        raise DataError(
            f"a CP2K file of {what} where positions are expected; give the file of positions (-pos-), beside which that of forces is found"
        )
    if name == "CP2K":
        forces, cells = cp2k.beside(path)
        return Reading(cp2k.join(_frames(path, name), forces and _frames(forces, name), cells), DIALECTS[name].facts)
    return Reading(_frames(path, name), DIALECTS[name].facts if name else Facts())


def dialect(comment: str) -> str | None:
    """The program whose manner a comment line has; None for extended and plain XYZ. Raises DataError for one that is not read."""
    for name, known in DIALECTS.items():
        if known.comment.fullmatch(comment.strip()):
            if known.refusal:
                raise DataError(f"this is {known.refusal}")
            return name
    return None


def _frames(path: Path, name: str | None) -> Iterator[ase.Atoms]:
    size = path.stat().st_size
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        number, header = _next_line(file, 0)
        while header:
            if not header.strip().isdecimal() or len(header) > 20:
                raise DataError(f"line {number}: the number of atoms is expected, found {header.strip()[:40]!r}")
            n = int(header)
            if 8 * n > size:
                raise DataError(
                    f"line {number} promises {n} atoms, more than the file of {size} bytes can hold; is it cut short?"
                )
            comment, *lines = (file.readline() for _ in range(n + 1))
            if lines and not lines[-1].strip():
                raise DataError(f"the file ends, or a line is blank, before the last of its {n} atoms; is it cut short?")
            end, header = _next_line(file, number + n + 1)
            vectors = []
            while header.startswith("VEC"):
                vectors.append(header)
                end, header = _next_line(file, end)
            try:
                yield _atoms(comment, lines, vectors, number + 2, name)
            except _Comment as error:
                raise DataError(f"line {number + 1} (the comment): {error}") from None
            number = end


class _Comment(DataError):
    """Something is wrong with the comment line."""


def _next_line(file, number: int) -> tuple[int, str]:
    """The next line that is not blank, with its number from 1; an empty string at the end."""
    for line in file:
        number += 1
        if line.strip():
            return number, line
    return number, ""


def _atoms(comment: str, lines: list[str], vectors: list[str], number: int, name: str | None) -> ase.Atoms:
    """One frame; `number`: of its first line of atoms."""
    info = _info(comment, name)
    extended = "Properties" in info
    columns = _declared(str(info.pop("Properties", _PLAIN)))
    arrays = _arrays(columns, lines, number, extended)
    cell, pbc = _cell(info, vectors)
    symbols, numbers = arrays.pop("symbols", None), arrays.pop("numbers", None)
    kinds, masses = _elements(symbols, numbers, number)
    atoms = ase.Atoms(kinds, positions=arrays.pop("positions").reshape(-1, 3), cell=cell, pbc=pbc, info=info)
    if masses is not None:
        atoms.set_masses(masses)
    if "move_mask" in arrays:
        _constrain(atoms, arrays.pop("move_mask"))
    for key in _TENSORS & info.keys():
        if np.shape(info[key]) == (9,):
            info[key] = np.reshape(info[key], (3, 3), order="F")
    results = {key: arrays.pop(key) for key in list(arrays) if key in all_properties}
    results |= {
        key: info[key] for key in _OF_STRUCTURE & info.keys() if np.size(info[key]) != 6
    }  # six numbers: their order is not said
    atoms.info = {key: value for key, value in info.items() if key not in results}
    for key, array in arrays.items():
        atoms.set_array(key, array)
    if np.shape(results.get("stress")) == (3, 3):
        results["stress"] = full_3x3_to_voigt_6_stress(results["stress"])
    if results:
        atoms.calc = SinglePointCalculator(atoms)
        atoms.calc.results = results
    return atoms


def _info(comment: str, name: str | None) -> dict[str, object]:
    """What the comment says; of one that is plain text, the text."""
    line = comment.strip()
    if _CONTROL.search(line):
        raise _Comment("holds bytes that are no text; is the file damaged?")
    if name is not None:
        match = DIALECTS[name].comment.fullmatch(line)
        if match is None:
            raise _Comment(f"{line[:40]!r} is not as {name} writes it, unlike the first of the file")
        values = {key: text for key, text in match.groupdict().items() if text is not None}
        return {key: int(text) if text.isdecimal() else float(re.sub("[dD]", "e", text)) for key, text in values.items()}
    try:
        info = parse(line)
    except DataError as error:
        if re.search(r"(Properties|Lattice)\s*=", line):
            raise _Comment(str(error)) from None
        info = {}
    if not any(value is not True for value in info.values()):
        return {"comment": line} if line else {}
    return info


def _declared(text: str) -> list[tuple[str, str, int]]:
    """(name, type, width) of the columns."""
    parts = text.split(":")
    names, types, widths = parts[::3], parts[1::3], parts[2::3]
    if (
        len(parts) % 3
        or not all(kind in _TYPES for kind in types)
        or not all(width.isdecimal() and int(width) for width in widths)
    ):
        raise _Comment(f"Properties={text[:60]!r} is not NAME:TYPE:WIDTH with the types S, R, I and L")
    named = [_COLUMNS.get(name, name) for name in names]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise _Comment(f"Properties names the column {twice!r} twice")
    widths = dict(zip(named, map(int, widths), strict=True))
    if widths.get("positions") != 3 or not {"symbols", "numbers"} & widths.keys() or widths.get("symbols", 1) != 1:
        raise _Comment("Properties must name the columns pos:R:3 and species:S:1 (or Z:I:1)")
    return [(name, kind, width) for (name, width), kind in zip(widths.items(), types, strict=True)]


def _arrays(columns: list[tuple[str, str, int]], lines: list[str], number: int, extended: bool) -> dict[str, np.ndarray]:
    """name -> (n,) or (n, width)."""
    wanted = sum(width for _, _, width in columns)
    rows = [line.split() for line in lines]
    for k, row in enumerate(rows):
        if len(row) != wanted:
            if extended:
                raise DataError(f"line {number + k} has {len(row)} columns, but Properties names {wanted}")
            raise DataError(
                f"line {number + k} has {len(row)} columns, a symbol and three numbers are expected; name others with Properties"
            )
    arrays, start = {}, 0
    for name, kind, width in columns:
        try:
            values = [list(map(_TYPES[kind], row[start : start + width])) for row in rows]
        except (ValueError, KeyError):
            k, text = next(
                (k, text) for k, row in enumerate(rows) for text in row[start : start + width] if not _fits(kind, text)
            )
            raise DataError(
                f"not extended XYZ (line {number + k}): {text[:40]!r} in the column {name!r} is not of the type {kind}"
            ) from None
        array = np.array(values, dtype=object if kind == "S" else None).reshape(len(rows), width)
        if kind == "I" and array.dtype.kind == "O":
            raise DataError(f"the column {name!r} has an integer that is too large")
        array = array.astype(float) if kind == "R" else array
        arrays[name] = array[:, 0] if width == 1 else array
        start += width
    return arrays


def _fits(kind: str, text: str) -> bool:
    try:
        _TYPES[kind](text)
    except (ValueError, KeyError):
        return False
    return True


def _cell(info: dict, vectors: list[str]) -> tuple[np.ndarray | None, np.ndarray | bool]:
    """Lattice (rows are vectors, Å) or VEC lines, and pbc; taken out of `info`."""
    lattice, pbc = info.pop("Lattice", None), info.pop("pbc", None)
    if lattice is None and not vectors:
        other = next((key for key in info if key.lower() in _CELLS), None)
        if other is not None and info[other] is not True:
            raise _Comment(f"has a cell under the key {other!r}; extended XYZ calls it Lattice")
    cell = None
    if lattice is not None:
        if np.size(lattice) != 9 or np.asarray(lattice).dtype.kind not in "if":
            raise _Comment("Lattice must be nine numbers, three for each vector")
        cell = np.reshape(np.asarray(lattice, float), (3, 3))
    elif vectors:
        cell = np.zeros((3, 3))
        for k, line in enumerate(vectors):
            head, *numbers = line.split()
            if head != f"VEC{k + 1}" or k > 2 or len(numbers) != 3 or not all(map(_is_number, numbers)):
                raise DataError(f"VEC{k + 1} and three numbers are expected, found {line.strip()[:40]!r}")
            cell[k] = [float(number) for number in numbers]
        return cell, np.arange(3) < len(vectors)
    return cell, lattice is not None if pbc is None else _periodic(pbc)


def _periodic(value: object) -> np.ndarray:
    """(3,) booleans from "T T F", "TTF", "[True, True, False]", 1 1 0, or one for all."""
    words = np.ravel(value).tolist()
    if len(words) == 1 and isinstance(words[0], str):
        text = re.sub(r"(?i)true", "T", re.sub(r"(?i)false", "F", words[0]))
        words = [letter.upper() for letter in text if letter.isalnum()]
    elif len(words) == 1 and isinstance(words[0], int) and not isinstance(words[0], bool):
        words = list(f"{words[0]:03d}")
    meant = {True: True, False: False, "T": True, "F": False, "1": True, "0": False}  # 1 and 0 are True and False
    if len(words) not in (1, 3) or any(word not in meant for word in words):
        raise _Comment(f"pbc={str(value)[:40]!r}: three of T or F are expected")
    return np.array([meant[word] for word in words] * (3 // len(words)))


def _elements(symbols, numbers, line: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(n,) atomic numbers, and masses (amu) where there are isotopes of hydrogen."""
    if symbols is None:
        bad = (numbers < 1) | (numbers > 118)
        if bad.any():
            raise DataError(f"line {line + int(np.flatnonzero(bad)[0])}: {numbers[bad][0]} is not an atomic number")
        return numbers.astype(int), None
    found = np.zeros(len(symbols), int)
    for k, symbol in enumerate(symbols):
        if symbol.isdecimal() and 1 <= int(symbol) <= 118:
            found[k] = int(symbol)
        else:
            name = symbol.capitalize()
            found[k] = 1 if name in ISOTOPES else atomic_numbers.get(name, 0)
        if found[k] == 0:
            raise DataError(f"{symbol[:20]!r} is not an element or not a known column (line {line + k})")
    if numbers is not None and (numbers != found).any():
        k = int(np.flatnonzero(numbers != found)[0])
        raise DataError(f"line {line + k}: the symbol {symbols[k]} and the atomic number {numbers[k]} contradict each other")
    isotopes = np.array([ISOTOPES.get(symbol.capitalize(), 0.0) for symbol in symbols])
    return found, np.where(isotopes > 0, isotopes, atomic_masses[found]) if isotopes.any() else None


def _constrain(atoms: ase.Atoms, moves: np.ndarray) -> None:
    moves = np.asarray(moves).astype(bool)
    if moves.ndim == 1:
        atoms.set_constraint(FixAtoms(mask=~moves))
    elif moves.shape[1] == 3:
        atoms.set_constraint([FixCartesian(int(k), mask=~moves[k]) for k in np.flatnonzero(~moves.all(axis=1))])
    else:
        raise _Comment("move_mask must have one or three columns")
