"""n2p2's input.data: blocks of begin, comment, lattice, atom, energy, charge, end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np

from mlff.basics.errors import DataError
from mlff.data.facts import Reading
from mlff.data.readers.arrays import elements

_COLUMNS = {"lattice": 3, "atom": 9, "energy": 1, "charge": 1}


def read_n2p2(path: Path) -> Reading:
    """The units are the user's business: n2p2 has none of its own (Hartree and Bohr are frequent)."""
    return Reading(_frames(path))


def _frames(path: Path) -> Iterator[ase.Atoms]:
    block: dict[str, list] | None = None
    number = 0
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            keyword, *fields = line.split() or [""]
            if not keyword or keyword.startswith("#"):
                continue
            if keyword == "begin" and block is None:
                block = {name: [] for name in ("comment", *_COLUMNS)}
            elif keyword == "end" and block is not None:
                yield _atoms(block, number)
                block = None
            elif block is None or keyword not in block:
                raise DataError(f"line {number}: {'end' if block else 'begin'} is expected, found {line.strip()[:40]!r}")
            elif keyword == "comment":
                block[keyword].append(" ".join(fields))
            elif len(fields) < _COLUMNS[keyword]:
                raise DataError(f"line {number}: {keyword} has {len(fields)} columns where {_COLUMNS[keyword]} are expected")
            else:
                block[keyword].append(fields[: _COLUMNS[keyword]])
    if block is not None:
        raise DataError(f"the file ends after line {number} without an end; is it cut short?")


def _atoms(block: dict[str, list], number: int) -> ase.Atoms:
    wrong = next((name for name in ("energy", "charge") if len(block[name]) > 1), None)
    if wrong or len(block["lattice"]) not in (0, 3) or not block["atom"]:
        raise DataError(f"the block that ends in line {number}: atoms, no or 3 lattice lines and one energy are expected")
    rows = block["atom"]
    try:
        columns = np.array([[*row[:3], *row[4:]] for row in rows], dtype=np.float64)
        lattice = np.array(block["lattice"], dtype=np.float64)
        info = {name: float(block[name][0][0]) for name in ("energy", "charge") if block[name]}
    except ValueError as error:
        raise DataError(f"the block that ends in line {number}: {error}") from None
    atoms = ase.Atoms(elements([row[3] for row in rows], "atom"), positions=columns[:, :3])
    if len(lattice):
        atoms.cell, atoms.pbc = lattice, True
    atoms.arrays["forces"] = columns[:, 5:8]
    atoms.info.update(info, **({"comment": " ".join(block["comment"])} if block["comment"] else {}))
    return atoms
