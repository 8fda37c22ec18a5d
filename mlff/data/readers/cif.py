"""CIF, by ASE, after a look at occupancies and isotopes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import ase
import ase.io

from mlff.basics.errors import DataError
from mlff.data.facts import Facts, Reading, Remark, remark

_FACTS = Facts(by_format={"length": "Angstrom"})
DEUTERIUM = Remark("isotope", "deuterium is read as hydrogen, with hydrogen's mass")


def is_cif(path: Path, head: bytes) -> bool:
    """By the name, or a data block at the start."""
    return (
        path.suffix.lower() in (".cif", ".mcif")
        or re.match(rb"\s*(#[^\n]*\n\s*)*data_\S*\s*\n\s*(_|loop_|#)", head) is not None
    )


def read_cif(path: Path) -> Reading:
    """Every block with atoms, the whole cell by its symmetry. Raises DataError for a site that is occupied in part."""
    text = path.read_text(encoding="utf-8", errors="replace")
    heavy = re.search(r"^\s*(?:D\d*|T)\S*\s+(?:D|T)\b|^\s*D\d+\s", text, re.MULTILINE) is not None
    return Reading(_frames(path, heavy), _FACTS)


def _frames(path: Path, heavy: bool) -> Iterator[ase.Atoms]:
    for atoms in ase.io.iread(str(path.resolve()), ":", format="cif", do_not_split_by_at_sign=True):
        for site, kinds in (atoms.info.pop("occupancy", None) or {}).items():
            if len(kinds) != 1 or any(abs(share - 1) > 1e-3 for share in kinds.values()):
                shares = ", ".join(f"{name} {share:g}" for name, share in kinds.items())
                raise DataError(
                    f"site {site} is occupied in part ({shares}); only ordered structures can be computed: choose one arrangement"
                )
        for key in ("spacegroup", "unit_cell"):
            atoms.info.pop(key, None)
        yield remark(atoms, DEUTERIUM) if heavy and 1 in atoms.numbers else atoms
