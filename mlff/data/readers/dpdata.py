"""What dpdata reads, where it is installed: files of the programs whose names tell it the format (MOVEMENT, *.mlmd ...).

dpdata (https://docs.deepmodeling.com/projects/dpdata) hands over eV, Å and virial = -stress * volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np

from mlff.data.facts import Facts, Reading

_FACTS = Facts(by_format={"energy": "eV", "length": "Angstrom", "virial_sign": "minus_stress"})


def dpdata_format(path: Path) -> str | None:
    """dpdata's name of the format of a file, by the name of the file as dpdata takes it; None if it knows none, or is absent."""
    name = path.name.split(".")[-1].lower()
    try:
        from dpdata.format import Format
    except ImportError:
        return None
    return name if name in Format.get_formats() else None


def read_dpdata(path: Path) -> Reading:
    """The labelled frames of a file."""
    import dpdata

    system = dpdata.LabeledSystem(str(path), fmt=dpdata_format(path))
    return Reading(_frames(system.data), _FACTS)


def _frames(data: dict) -> Iterator[ase.Atoms]:
    symbols = np.array(data["atom_names"])[data["atom_types"]]
    for index, positions in enumerate(data["coords"]):
        atoms = ase.Atoms(symbols, positions=positions)
        if not data.get("nopbc", False):
            atoms.cell, atoms.pbc = data["cells"][index], True
        atoms.info["energy"] = float(data["energies"][index])
        if "forces" in data:
            atoms.arrays["force"] = np.array(data["forces"][index], np.float64)
        if "virials" in data:
            atoms.info["virial"] = np.array(data["virials"][index], np.float64).reshape(9)
        yield atoms
