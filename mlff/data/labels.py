"""Labels of ASE frames: where they stand, in which unit and with which sign; `Atoms` to `Structure`.

Labels are looked up in `atoms.info`, in `atoms.arrays` and in the results of the attached calculator (read as they
are: `get_forces` would zero the forces of constrained atoms).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import ase
import numpy as np

from mlff.basics.errors import DataError, StructureError
from mlff.basics.properties import CARRIED, PROPERTIES
from mlff.basics.units import VOIGT, to_six
from mlff.config.options import KeyNames, ReadOptions
from mlff.data.census import Census
from mlff.data.conversion import Conversion
from mlff.data.facts import REMARKS, UNCONVERGED, Facts, Remark
from mlff.data.neighbors import coincident_pair
from mlff.data.skipping import Skipped
from mlff.data.structure import COINCIDENT, Structure

#: What a key may be called (in any case, with or without one of the prefixes) to be taken for a label.
USUAL = {name: known.keys for name, known in PROPERTIES.items()} | {"virial": ("virial", "virials")}
PREFIXES = ("ref_", "dft_", "qm_", "reference_", "target_")
_LARGEST_STRESS = 100.0  # eV/Å³, 16 TPa
_GEOMETRY = {"numbers", "positions"}


def label_frames(
    frames: list[ase.Atoms], source: str, options: ReadOptions, facts: Facts = Facts()
) -> tuple[list[Structure], Census]:
    """Structures with labels in mlff's units, isolated atoms included; the census counts them apart.

    Raises DataError with file, structure index (from 0) and key: two keys that contradict each other, a label that is
    not a finite number or of the wrong shape, a geometry that cannot be evaluated, forces that all structures share, a
    stated unit that the file contradicts. Of a property that no potential predicts and whose key the user does not name it is
    a remark instead, and the label is left out.
    """
    names = facts.name(options.keys)
    keys = tuple(dict.fromkeys(item for atoms in frames for item in _all_keys(atoms)))
    chosen = {label: _choose(label, frames, keys, source, names) for label in KeyNames.model_fields}
    optional = {name for name in CARRIED if getattr(options.keys, name) is None}
    convert = Conversion(options.units, facts, source)
    structures, dropped, origins, skipped, remarks = [], Counter(), {}, [], []
    for index, atoms in enumerate(frames):
        where = f"{source}, structure {index}"
        said = atoms.info.pop(REMARKS, ())
        if UNCONVERGED in said and UNCONVERGED.code in options.skip:
            skipped.append(Skipped(UNCONVERGED.code, where, UNCONVERGED.text))
            continue
        remarks += [(where, item) for item in said]
        try:
            structure, reason, found, left_out = _label(atoms, where, chosen, convert, optional)
        except DataError as error:
            if "unreadable" not in options.skip:
                raise
            skipped.append(Skipped("unreadable", where, str(error).removeprefix(where).lstrip(": ")))
            continue
        dropped[reason] += 1
        origins.update(dict.fromkeys(found))
        remarks += [(where, item) for item in left_out]
        structures.append(structure)
    if not structures:
        raise DataError(f"{source}: no structure can be used; the first: {skipped[0].why}")
    _refuse_shared_forces(structures, source)
    isolated = [structure for structure in structures if is_isolated_atom(structure)]
    rest = [structure for structure in structures if not is_isolated_atom(structure)]
    described = tuple((label, convert.describe(kind, *origin)) for label, kind, *origin in origins)
    census = Census(
        source=source,
        ignored_stress=dropped["cell"],
        unordered_stress=dropped["order"],
        origins=(("positions", convert.said_of_positions), *described),
        keys=keys,
        skipped=tuple(skipped),
        remarks=tuple(remarks),
    )
    return structures, census.counted(rest, len(isolated))


def is_isolated_atom(structure: Structure) -> bool:
    """One neutral atom with an energy that is marked so, not periodic, or in a cell wider than 10 Å all round."""
    if len(structure) != 1 or structure.energy is None:
        return False
    info = {str(key).lower(): value for key, value in structure.info.items()}
    mark = str(info.get("config_type", "")).lower().replace("_", "").replace("-", "").replace(" ", "")
    if mark.startswith("isolated"):
        return True
    charge = info.get("charge", info.get("total_charge", 0))
    if isinstance(charge, int | float | np.number) and charge != 0:
        return False
    if not structure.pbc.any():
        return True
    if structure.pbc.all():
        return bool((1 / np.linalg.norm(np.linalg.inv(structure.cell), axis=0) > 10).all())
    return bool((np.linalg.norm(structure.cell[structure.pbc], axis=1) > 10).all())


def _label(atoms, where, chosen, convert, optional=()) -> tuple[Structure, str, list, list[Remark]]:
    """One structure; why a stress was dropped ("", "cell", "order"); the origins (label, kind, key, place, of six numbers);
    what is said of `optional` labels that cannot be read."""
    structure = _geometry(atoms, where, convert.length)
    order = convert.order(*(str(value) for name in chosen["group"] for _, value in _look(atoms, name)))
    found, origins, reason, found_six, left_out = {}, {}, "", None, []
    for label, names in chosen.items():
        there = [(name, place, value) for name in names for place, value in _look(atoms, name)]
        if not there:
            continue
        six = any(place != "calculator" and _size(value) == 6 for _, place, value in there)
        if six and label in ("stress", "virial") and structure.pbc.all():
            name, place, value = next(item for item in there if item[1] != "calculator" and _size(item[2]) == 6)
            tensor = convert.parse(label, value, len(atoms), where, name)
            found_six = to_six(tensor if label == "stress" else convert.virial_sign * tensor / structure.volume)
        if label in ("stress", "virial") and (six and order is None or not structure.pbc.all()):
            reason = "order" if structure.pbc.all() else "cell"
            continue
        values = []
        try:
            for name, place, value in there:
                components = VOIGT["ase"] if place == "calculator" else order
                values.append((name, place, convert.parse(label, value, len(atoms), where, name, components)))
            _agree(values, label, where)
        except DataError as error:
            if label not in optional:
                raise
            left_out.append(Remark("left-out", f"left out: {str(error).removeprefix(where).lstrip(': ')}"))
            continue
        name, place, found[label] = values[0]
        origins[label] = (label, label, name, place, six)
    tensors = {label: found.pop(label) for label in ("stress", "virial") if label in found}
    if tensors:
        found["stress"] = _stress(tensors, structure.volume, convert, where)
        origins.setdefault("stress", ("stress", *origins.get("virial", ())[1:]))
    origins.pop("virial", None)
    taken = {name for names in chosen.values() for name in names}
    info = {key: value for key, value in atoms.info.items() if key not in taken}
    structure = replace(structure, info=info, raw_voigt=found_six, **found)
    return structure, "" if tensors else reason, list(origins.values()), left_out


def _refuse_shared_forces(structures, source) -> None:
    """Different geometries never have the very same forces: one calculator or array was shared by all frames."""
    first, *others = [s for s in structures if s.forces is not None and len(s) > 1] or [None]
    if not others or not first.forces.any():
        return
    if any(other.forces.shape != first.forces.shape or (other.forces != first.forces).any() for other in others):
        return
    shapes = [s.positions - s.positions[0] for s in (first, *others)]
    if any(np.abs(shape - shapes[0]).max() > 1e-3 for shape in shapes[1:]):
        raise DataError(
            f"{source}: all {len(shapes)} structures have the very same forces in different geometries; was one calculator "
            "or array shared by all frames when the file was written?"
        )


def _geometry(atoms, where, length) -> Structure:
    if len(atoms) == 0:
        raise DataError(f"{where}: has no atoms; remove it")
    structure = Structure(
        numbers=np.array(atoms.numbers, dtype=np.int32),
        positions=length * np.array(atoms.positions, dtype=np.float64, order="C"),
        cell=length * np.array(atoms.cell.array, dtype=np.float64, order="C"),
        pbc=np.array(atoms.pbc, dtype=bool),
        source=where,
    )
    structure.check()
    try:
        pair = coincident_pair(structure.positions, structure.cell, structure.pbc, COINCIDENT)
    except StructureError as error:
        raise StructureError(f"{where}: {error}") from None
    if pair is not None:
        raise StructureError(f"{where}: atoms {pair[0]} and {pair[1]} are nearer than {COINCIDENT} Å; remove the structure")
    return structure


def _stress(found, volume, convert, where):
    virial = convert.virial_sign * found["virial"] / volume if "virial" in found else found["stress"]
    stress = found.get("stress", virial)
    if np.abs(stress).max() > _LARGEST_STRESS:
        raise DataError(
            f"{where}: a stress of {np.abs(stress).max():.3g} eV/Å³ cannot be; set units.stress (bar, kbar, GPa)"
        )
    if np.abs(stress - virial).max() > 1e-2 * np.abs(stress).max() + 1e-5:
        raise DataError(
            f"{where}: stress ({stress[0, 0]:.6g} eV/Å³ along xx) and virial ({virial[0, 0]:.6g} as a stress) contradict "
            "each other; name one with keys.stress or keys.virial, and check units.stress, stress_sign and virial_sign"
        )
    return stress


def _all_keys(atoms):
    results = getattr(atoms.calc, "results", None) or {}
    for place, values in (("calculator", results), ("arrays", atoms.arrays), ("info", atoms.info)):
        yield from ((str(key), place) for key, value in values.items() if value is not None and key not in _GEOMETRY)


def _look(atoms, key):
    results = getattr(atoms.calc, "results", None) or {}
    for place, values in (("calculator", results), ("arrays", atoms.arrays), ("info", atoms.info)):
        if key not in _GEOMETRY and values.get(key) is not None:
            yield place, values[key]


def _choose(label, frames, keys, source, names: KeyNames) -> list[str]:
    """The keys to read a label from: the one named, or the usual ones there, the one that covers every frame first."""
    named = getattr(names, label)
    if named is not None:
        return [named]
    other = {"stress": names.virial, "virial": names.stress}.get(label)
    if label not in USUAL or other is not None:
        return []
    usual = list(dict.fromkeys(key for key, _ in keys if _plain(key) in USUAL[label]))
    if len(usual) < 2 or label in CARRIED:
        return usual
    frames_with = Counter()
    for atoms in frames:
        there = [key for key in usual if any(_look(atoms, key))]
        frames_with.update([*there, None] if there else [])
    complete = [key for key in usual if frames_with[key] == frames_with[None]]
    if not complete:
        listed = ", ".join(f"{key!r} in {frames_with[key]}" for key in usual)
        raise DataError(
            f"{source}: {label} stands under different keys in different structures ({listed}); name one: keys.{label}"
        )
    return complete[:1] + [key for key in usual if key != complete[0]]


def _plain(key: str) -> str:
    key = key.lower()
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _size(value) -> int:
    """How many numbers; 0 for lists of lists of different lengths."""
    try:
        return np.size(value)
    except ValueError:
        return 0


def _agree(values, label, where):
    (first, place, value), *others = values
    for name, other_place, other in others:
        same = value == other if isinstance(value, str) else np.allclose(value, other, rtol=1e-9, atol=1e-5)
        if same:
            continue
        if name == first:
            raise DataError(
                f"{where}: {label} {name!r} stands in {place} and in {other_place} with different values; remove one"
            )
        raise DataError(
            f"{where}: {label} stands under {first!r} and {name!r} with different values; say which: keys.{label}"
        )
