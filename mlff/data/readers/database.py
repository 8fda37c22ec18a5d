"""ASE databases (SQLite or JSON), with labels in the results, the key-value pairs or (SchNetPack) the data of a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase
import ase.db

from mlff.data.facts import Facts, Reading


def read_database(path: Path) -> Reading:
    """Every row. SchNetPack's metadata state the units of length, of `energy`, `forces` and `dipole`."""
    kind = "db" if path.read_bytes()[:15] == b"SQLite format 3" else "json"
    with ase.db.connect(str(path.resolve()), type=kind, use_lock_file=False) as database:
        metadata = database.metadata
    properties = metadata.get("_property_unit_dict", {})
    texts = {
        "length": metadata.get("_distance_unit"),
        "energy": properties.get("energy"),
        "forces": properties.get("forces"),
        "dipole": properties.get("dipole"),
    }
    return Reading(_frames(path, kind), Facts(in_file={name: str(text) for name, text in texts.items() if text is not None}))


def _frames(path: Path, kind: str) -> Iterator[ase.Atoms]:
    with ase.db.connect(str(path.resolve()), type=kind, use_lock_file=False) as database:
        for row in database.select():
            atoms = row.toatoms()
            atoms.info.update(row.key_value_pairs)
            atoms.info.update(row.data)
            yield atoms
