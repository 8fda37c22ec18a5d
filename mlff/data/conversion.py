"""From the units and signs of a file to mlff's, and who says what they are."""

from __future__ import annotations

from itertools import groupby

import numpy as np

from mlff.basics.errors import DataError
from mlff.basics.properties import CARRIED, PROPERTIES
from mlff.basics.units import LENGTH, VOIGT, factor, from_six, spelled
from mlff.config.options import Units
from mlff.data.facts import Facts

_ASSUMED = {"energy_per_atom": False, "length": "Angstrom", "stress_order": "ase", "virial_sign": "minus_stress"}
_ASSUMED |= {name: next(iter(known.units)) for name, known in PROPERTIES.items()}
_ASSUMED |= {f"{name}_sign": next(iter(known.signs)) for name, known in PROPERTIES.items() if known.signs}
_ASSUMED["forces"] = None  # energies per length
_SURE = ("assumed", "by the format", "as stated", "by the file")


class Conversion:
    """Factors and signs, settled once per file.

    Raises DataError where the options contradict the file itself.
    """

    def __init__(self, stated: Units, facts: Facts, source: str):
        self.values, self.said = _settle(stated, facts, source)
        values = self.values
        self.length = factor(LENGTH, values["length"], "length")
        self.factors = {}  # of labels
        for name, known in PROPERTIES.items():
            sign = known.signs[values[f"{name}_sign"]] if known.signs else 1.0
            self.factors[name] = None if values[name] is None else sign * factor(known.units, values[name], name)
        self.factors["virial"] = self.factors["energy"]
        self.virial_sign = -1.0 if values["virial_sign"] == "minus_stress" else 1.0

    def order(self, group: str | None = None, *_) -> tuple[str, ...] | None:
        """Components of a tensor of six numbers, for a structure of this group; None if nobody says."""
        order = self.values["stress_order"]
        return VOIGT.get(order.get(group) if isinstance(order, dict) else order)

    def parse(self, label, value, n, where, key, order=VOIGT["ase"]):
        """A label in mlff's units: of its shape in `PROPERTIES` (a single number as float), virial (3, 3), weight float, group str."""
        name = f"{where}: {label} (key {key!r})"
        if label == "group":
            return str(value)
        with np.errstate(over="ignore"):
            parsed = self._parse(label, value, n, name, order)
        if not np.isfinite(parsed).all():
            raise DataError(f"{name} is too large for a number in mlff's units; remove the label or the structure")
        return parsed

    def _parse(self, label, value, n, name, order):
        try:
            array = np.asarray(value)
        except ValueError:  # lists of different lengths
            array = np.array(None)
        if array.dtype.kind not in "fiu":
            raise DataError(f"{name} is not a number: {str(value)[:40]!r}; correct it or name another key with keys.{label}")
        array = array.astype(np.float64, order="C")
        if not np.isfinite(array).all():
            raise DataError(f"{name} is not finite; remove the label or the structure")
        if label in self.factors and self.factors[label] is None:
            raise DataError(f"{name} is {self.said[label]}; say units.{label}")
        if label in ("stress", "virial"):
            return _tensor(array, name, label, order) * self.factors[label]
        shape = () if label == "weight" else PROPERTIES[label].shape_of(n)
        if [size for size in array.shape if size != 1] != [size for size in shape if size != 1]:
            raise DataError(
                f"{name} has shape {array.shape} where {shape or 'one number'} is expected; name another key with keys.{label}"
            )
        value = array.reshape(shape) if shape else float(array.reshape(()))
        if label == "weight":
            if value < 0:
                raise DataError(f"{name} is negative ({value:g}); weights are 0 or more")
            return value
        return value * self.factors[label] * (n if label == "energy" and self.values["energy_per_atom"] else 1)

    @property
    def said_of_positions(self) -> str:
        """'Bohr as stated'."""
        return f"{self.values['length']} {self.said['length']}"

    def describe(self, label: str, key: str, place: str, six: bool) -> str:
        """Where a label stood, its unit and sign, the order of a tensor of six numbers, and who says so."""
        values = self.values
        order = values["stress_order"]
        order = " ".join(VOIGT.get(order, (order,))) if isinstance(order, str) else "order by group"
        parts = [(values[label], label)] if label in PROPERTIES else []
        if label == "energy" and values["energy_per_atom"]:
            parts.append(("per atom", "energy_per_atom"))
        if label == "forces" and values["forces_sign"] == "gradient":
            parts.append(("gradient", "forces_sign"))
        if label == "stress":
            parts.append((f"positive: {values['stress_sign']}", "stress_sign"))
        if label == "virial":
            parts = [(values["energy"], "energy"), ("-+"[self.virial_sign > 0] + "stress*volume", "virial_sign")]
        if label in ("stress", "virial") and six:
            parts.append((order, "stress_order"))
        said = groupby(parts, lambda part: self.said[part[1]])
        return ", ".join([f'key "{key}"', place, *(f"{', '.join(text for text, _ in some)} {who}" for who, some in said)])


def _settle(stated: Units, facts: Facts, source: str) -> tuple[dict, dict]:
    """Values and who says so, by the names of `Units`."""
    values, said = {}, {}
    for name, assumed in _ASSUMED.items():
        user = getattr(stated, name)
        unit = _known(name, facts.in_file[name]) if name in facts.in_file else None
        if unit is not None:
            values[name], said[name] = unit, "by the file"
            if user not in (None, unit):
                raise DataError(f"{source}: states {name} in {unit}, but units.{name} is {user}; leave that option out")
        elif user is None and name in facts.in_file:
            text = f"in {str(facts.in_file[name])[:40]!r}, a unit that is not known"
            if name in CARRIED:
                values[name], said[name] = None, text
                continue
            raise DataError(f"{source}: states {name} {text}; say units.{name}")
        elif user is not None:
            values[name], said[name] = user, "as stated"
        elif name in facts.by_format:
            values[name], said[name] = facts.by_format[name], "by the format"
        else:
            values[name], said[name] = assumed, "assumed"
    if values["forces"] is None:
        values["forces"] = f"{values['energy']}/{values['length']}"
        said["forces"] = min(said["energy"], said["length"], key=_SURE.index)
    return values, said


def _known(name: str, text: str) -> str | None:
    """A unit that a file states, as it is called here; None if it is none for this quantity."""
    unit = spelled(text)
    return unit if unit in (LENGTH if name == "length" else PROPERTIES[name].units) else None


def _tensor(array, name, label, order) -> np.ndarray:
    if array.size not in (6, 9) or array.shape not in ((6,), (9,), (3, 3), (1, 6), (1, 9)):
        raise DataError(
            f"{name} has shape {array.shape} where 3x3, 9 or 6 numbers are expected; name another key with keys.{label}"
        )
    if array.size == 6:
        return from_six(array.ravel(), order)
    tensor = array.reshape(3, 3)
    if np.abs(tensor - tensor.T).max() > 1e-2 * np.abs(tensor).max():
        raise DataError(f"{name} is not symmetric; check the order of its components")
    return (tensor + tensor.T) / 2
