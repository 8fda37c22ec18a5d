"""FitSNAP JSON: a line of comment, then Dataset.Data with the units of its numbers beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import ase

from mlff.basics.errors import DataError
from mlff.basics.units import spelled
from mlff.data.facts import Facts, Reading
from mlff.data.readers.arrays import elements, numbers

_STYLES = {"EnergyStyle": "energy", "ForcesStyle": "forces", "LatticeStyle": "length", "StressStyle": "stress"}


def read_fitsnap(path: Path) -> Reading:
    """Units as the styles of the file say; a positive stress is compression, by LAMMPS's convention for a pressure."""
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("#"):
        text = text.partition("\n")[2]
    content = json.loads(text)
    dataset = content.get("Dataset") if isinstance(content, dict) else None
    if not isinstance(dataset, dict) or not isinstance(dataset.get("Data"), list):
        raise DataError("'Dataset' with a list 'Data' is expected")
    stated = {unit: str(dataset[style]) for style, unit in _STYLES.items() if dataset.get(style) is not None}
    if spelled(str(dataset.get("PositionsStyle", "angstrom"))) != spelled(stated.get("length", "angstrom")):
        raise DataError("PositionsStyle and LatticeStyle are different units; convert one")
    if str(dataset.get("AtomTypeStyle", "chemicalsymbol")).lower() != "chemicalsymbol":
        raise DataError(f"AtomTypeStyle is {dataset['AtomTypeStyle']!r}; only chemicalsymbol names the elements")
    keys = {"energy": "Energy", "forces": "Forces", "stress": "Stress"}
    return Reading(_frames(dataset["Data"]), Facts(by_format={"stress_sign": "compression"}, in_file=stated, keys=keys))


def _frames(configurations: list) -> Iterator[ase.Atoms]:
    for data in configurations:
        try:
            species = elements(data["AtomTypes"], "AtomTypes")
            positions = numbers(data["Positions"], (len(species), 3), "Positions")
            atoms = ase.Atoms(species, positions=positions, cell=numbers(data["Lattice"], (3, 3), "Lattice"), pbc=True)
            if data.get("NumAtoms", len(atoms)) != len(atoms):
                raise DataError(f"NumAtoms is {data['NumAtoms']}, but there are {len(atoms)} atoms")
            if data.get("Forces") is not None:
                atoms.arrays["Forces"] = numbers(data["Forces"], (len(atoms), 3), "Forces")
            atoms.info.update({key: data[key] for key in ("Energy", "Stress") if data.get(key) is not None})
        except KeyError as error:
            raise DataError(f"{error} is missing in Dataset.Data") from None
        except (TypeError, AttributeError):
            raise DataError("Dataset.Data holds something that is no configuration") from None
        yield atoms
