"""mlearn JSON: a list of entries with a pymatgen structure and outputs (energy, forces, virial_stress)."""

from __future__ import annotations

import json
from pathlib import Path

import ase

from mlff.data.facts import Facts, Reading
from mlff.data.readers.arrays import elements, numbers
from mlff.errors import DataError

#: The six numbers of virial_stress stand in an order that differs between the groups of these data: the user says it.
_FACTS = Facts(
    by_format={
        "energy": "eV",
        "length": "Angstrom",
        "stress": "kbar",
        "stress_sign": "compression",
        "stress_order": "unknown",
    },
    keys={"stress": "virial_stress", "group": "group"},
)


def read_mlearn(path: Path) -> Reading:
    """eV, Å, kbar positive under compression."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(entries, list):
        raise DataError("a list of entries with 'structure' and 'outputs' is expected")
    return Reading(map(_atoms, entries), _FACTS)


def _atoms(entry: dict) -> ase.Atoms:
    try:
        structure, outputs = entry["structure"], entry["outputs"]
        lattice, sites = structure["lattice"], structure["sites"]
        species = elements([_element(site) for site in sites], "structure.sites")
        matrix = numbers(lattice["matrix"], (3, 3), "structure.lattice.matrix")
        positions = numbers([site["xyz"] for site in sites], (len(sites), 3), "structure.sites.xyz")
        labels = {key: outputs[key] for key in ("energy", "virial_stress") if outputs.get(key) is not None}
        forces = outputs.get("forces")
        extras = {key: value for key, value in entry.items() if isinstance(value, str | int | float)}
        pbc = lattice.get("pbc", True)
    except KeyError as error:
        raise DataError(f"the entry lacks {error}; each has 'structure' and 'outputs'") from None
    except (TypeError, AttributeError):
        raise DataError("the entry is not built as mlearn's are: 'structure' (pymatgen) and 'outputs'") from None
    atoms = ase.Atoms(species, positions=positions, cell=matrix, pbc=pbc)
    if forces is not None:
        atoms.arrays["forces"] = numbers(forces, (len(atoms), 3), "outputs.forces")
    atoms.info.update(extras | labels)
    return atoms


def _element(site: dict) -> str:
    (one, *others) = site["species"]
    if others or one.get("occu", 1) != 1:
        raise DataError("structure.sites: a site is occupied in part; only ordered structures can be learned from")
    return one["element"]
