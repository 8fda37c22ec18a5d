"""PDB, by ASE, after a look at what ASE takes over without understanding it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import ase
import ase.io

from mlff.basics.errors import DataError
from mlff.data.facts import Facts, Reading

_FACTS = Facts(by_format={"length": "Angstrom"})


def is_pdb(path: Path, head: bytes) -> bool:
    """By the records at its start."""
    return re.match(rb"(HEADER|TITLE |CRYST1|ATOM  |HETATM|MODEL |REMARK|COMPND|AUTHOR)", head) is not None and (
        path.suffix.lower() in (".pdb", ".ent") or re.search(rb"^(ATOM  |HETATM)", head, re.MULTILINE) is not None
    )


def read_pdb(path: Path) -> Reading:
    """Every model. A cell of 1 x 1 x 1 Å means that there is none (wwPDB 3.3, CRYST1).

    Raises DataError: alternate locations, or a crystal of which only the asymmetric unit is there.
    """
    dummy = False
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.startswith("CRYST1"):
            lengths = re.findall(r"[\d.]+", line[6:33])[:3]
            dummy = len(lengths) == 3 and all(float(length) == 1.0 for length in lengths)
            group = line[55:66].strip()
            if not dummy and group not in ("", "P 1", "P1", "1"):
                raise DataError(
                    f"line {number}: a crystal of space group {group!r}, of which the file holds the asymmetric unit only; write the whole cell (P 1)"
                )
        elif line.startswith(("ATOM  ", "HETATM")) and line[16:17].strip():
            raise DataError(f"line {number}: an atom with alternate locations ({line[16]!r} in column 17); keep one of them")
    return Reading(_frames(path, dummy), _FACTS)


def _frames(path: Path, dummy: bool) -> Iterator[ase.Atoms]:
    first = None
    for atoms in ase.io.iread(str(path.resolve()), ":", format="proteindatabank", do_not_split_by_at_sign=True):
        if len(atoms) == 0:  # after the last ENDMDL
            continue
        occupancies = atoms.arrays.get("occupancy")
        if occupancies is not None and ((occupancies < 1) & (occupancies > 0)).any():
            atom = int(((occupancies < 1) & (occupancies > 0)).argmax())
            raise DataError(f"atom {atom} is occupied in part ({occupancies[atom]:g}); only whole atoms can be computed")
        first = first or atoms
        if dummy:
            atoms.set_cell(None)
            atoms.pbc = False
        elif not atoms.cell.any():  # of the models after the first one ASE forgets it
            atoms.set_cell(first.cell)
            atoms.pbc = first.pbc
        yield atoms
