"""JSON with structures of pymatgen: MPtrj, MatPES, mlearn's sets, and structures by themselves.

Entries are decoded one by one, for MPtrj has a million of them in one file.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np
from ase.data import atomic_masses

from mlff.basics.errors import DataError
from mlff.data.facts import Facts, Reading
from mlff.data.readers.arrays import ISOTOPES, elements, numbers

_VASP = {"energy": "eV", "length": "Angstrom", "stress": "kbar", "stress_sign": "compression"}
#: The six numbers of mlearn and MatPES stand in an order that nobody states (mlearn's differs between its groups): the user says it.
_MLEARN = Facts(by_format=_VASP | {"stress_order": "unknown"}, keys={"stress": "virial_stress", "group": "group"})
_MATPES = Facts(
    by_format=_VASP | {"stress_order": "unknown"}, keys={"energy": "energy", "forces": "forces", "stress": "stress"}
)
_MPTRJ = Facts(by_format=_VASP, keys={"energy": "uncorrected_total_energy", "forces": "force", "stress": "stress"})
_PIECE = 1 << 20  #: characters read at a time
_BETWEEN = re.compile(r"[\s,]*")


def is_pymatgen(path: Path, head: bytes) -> bool:
    """A structure of pymatgen, or a list of entries."""
    return head.lstrip()[:1] in (b"{", b"[") and (b'"pymatgen' in head or re.match(rb"\s*\[\s*\{", head) is not None)


def read_pymatgen(path: Path) -> Reading:
    """eV, Å, kbar positive under compression, as VASP writes them; MPtrj's energies are those without corrections."""
    entries = _entries(path)
    first = next(entries, None)
    if first is None:
        raise DataError("holds no entries")
    facts = _MLEARN if "outputs" in first else _MPTRJ if "uncorrected_total_energy" in first else _MATPES
    return Reading(map(_atoms, itertools.chain([first], entries)), facts)


def _entries(path: Path) -> Iterator[dict]:
    """The dictionaries that hold a structure (or are one), whatever they are wrapped in."""
    for value in _values(path):
        yield from _unwrapped(value)


def _unwrapped(value: object, depth: int = 0) -> Iterator[dict]:
    if not isinstance(value, dict):
        raise DataError("a list or dictionary of entries with 'structure' and labels is expected")
    if "structure" in value or "sites" in value or depth == 2:
        yield value
    elif value and all(isinstance(item, dict) for item in value.values()):  # MPtrj: material, then frame
        for key, item in value.items():
            for entry in _unwrapped(item, depth + 1):
                yield {"id": key} | entry
    else:
        yield value


def _values(path: Path) -> Iterator[object]:
    """The elements of a list, the values of a dictionary of entries, or the one structure that the file is."""
    decoder = json.JSONDecoder()
    with open(path, encoding="utf-8-sig") as file:
        text = file.read(_PIECE).lstrip()
        if re.match(r'\{\s*"(@module|@class|lattice|sites|structure|charge|properties)"', text):
            yield json.loads(text + file.read())
            return
        named, place = text[:1] == "{", 1
        while True:
            place = _BETWEEN.match(text, place).end()
            try:
                if place >= len(text):
                    raise json.JSONDecodeError("more is needed", text, place)
                if text[place] in "]}":
                    return
                value, end = decoder.raw_decode(text, place)
                if named:
                    end = re.compile(r"\s*:\s*").match(text, end).end()
                    value, end = decoder.raw_decode(text, end)
            except (json.JSONDecodeError, AttributeError):
                more = file.read(max(_PIECE, len(text)))
                if not more:
                    raise DataError(
                        "the file ends in the middle of an entry, or is not JSON; is it damaged or cut short?"
                    ) from None
                text, place = text[place:] + more, 0
                continue
            yield value
            place = end


def _atoms(entry: dict) -> ase.Atoms:
    try:
        outputs = entry.get("outputs", entry)
        structure = entry if "sites" in entry else entry["structure"]
        lattice = None if structure.get("@class") == "Molecule" else structure["lattice"]
        sites = structure["sites"]
        symbols = [_element(site) for site in sites]
        species = elements(["H" if symbol in ISOTOPES else symbol for symbol in symbols], "structure.sites")
        positions = numbers([site["xyz"] for site in sites], (len(sites), 3), "structure.sites.xyz")
        extras = {
            key: value for key, value in entry.items() if isinstance(value, str | int | float) and not key.startswith("@")
        }
        found = {key: outputs.get(key) for key in ("energy", "uncorrected_total_energy", "stress", "virial_stress")}
        forces = {key: outputs.get(key) for key in ("force", "forces")}
        cell = None if lattice is None else numbers(lattice["matrix"], (3, 3), "structure.lattice.matrix")
        pbc = False if lattice is None else lattice.get("pbc", True)
        charge = structure.get("charge")
    except KeyError as error:
        raise DataError(
            f"the entry lacks {error}; each has 'structure' (of pymatgen) and labels, mlearn's in 'outputs'"
        ) from None
    except (TypeError, AttributeError):
        raise DataError(
            "the entry is not built as pymatgen's, mlearn's, MPtrj's or MatPES's are: 'structure' and labels"
        ) from None
    atoms = ase.Atoms(species, positions=positions, cell=cell, pbc=pbc)
    for key, value in forces.items():
        if value is not None:
            atoms.arrays[key] = numbers(value, (len(atoms), 3), key if outputs is entry else f"outputs.{key}")
    atoms.info.update(
        extras | {key: value if np.isscalar(value) else _array(value) for key, value in found.items() if value is not None}
    )
    if ISOTOPES.keys() & set(symbols):
        atoms.set_masses([ISOTOPES.get(symbol, atomic_masses[z]) for symbol, z in zip(symbols, species, strict=True)])
    if charge:
        atoms.info["charge"] = charge
    return atoms


def _array(value: list) -> object:
    try:
        return np.array(value)
    except ValueError:  # lists of different lengths: labels.py says so
        return value


def _element(site: dict) -> str:
    (one, *others) = site["species"]
    if others or one.get("occu", 1) != 1:
        raise DataError("structure.sites: a site is occupied in part; only ordered structures can be learned from")
    return one["element"]
