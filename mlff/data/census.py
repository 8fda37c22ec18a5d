"""What a file of reference data holds, in one line."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass, field, replace

from ase.data import chemical_symbols

from mlff.basics.errors import DataError
from mlff.basics.properties import PREDICTED, PROPERTIES
from mlff.config.options import KeyNames
from mlff.data.composition import elements_of
from mlff.data.facts import Remark
from mlff.data.skipping import Skipped
from mlff.data.structure import Structure


@dataclass(frozen=True)
class Census:
    """Counts over structures (isolated atoms apart), and where each label came from."""

    source: str  #: file name(s)
    structures: int = 0  #: isolated atoms not counted
    sizes: tuple[int, int] = (0, 0)  #: atoms in the smallest and the largest structure
    elements: tuple[int, ...] = ()  #: atomic numbers, ascending
    labels: Counter[str] = field(default_factory=Counter)  #: structures with an energy, with forces, ... by name
    isolated: int = 0  #: isolated atoms with an energy
    ignored_stress: int = 0  #: stresses of structures that are not periodic along a, b and c: without meaning, dropped
    unordered_stress: int = 0  #: stresses of six numbers in an order that nobody states: dropped
    origins: tuple[tuple[str, str], ...] = ()  #: (label, 'key "energy", calculator, eV assumed') for every label found
    keys: tuple[tuple[str, str], ...] = ()  #: every (key, place) in the file
    skipped: tuple[Skipped, ...] = ()  #: structures left out because the user says so
    remarks: tuple[tuple[str, Remark], ...] = ()  #: (structure, what its reader must say of it)

    def counted(self, structures: list[Structure], isolated: int) -> Census:
        """The same file(s), with counts over these structures."""
        lengths = [len(structure) for structure in structures] or [0]
        return replace(
            self,
            structures=len(structures),
            sizes=(min(lengths), max(lengths)),
            elements=elements_of(structures),
            labels=Counter(name for structure in structures for name in structure.labels),
            isolated=isolated,
        )

    def __add__(self, other: Census) -> Census:
        sizes = [s for census in (self, other) if census.structures for s in census.sizes] or [0]
        totals = ("structures", "labels", "isolated", "ignored_stress", "unordered_stress")
        return Census(
            source=f"{self.source}, {other.source}",
            sizes=(min(sizes), max(sizes)),
            elements=tuple(sorted({*self.elements, *other.elements})),
            origins=tuple(dict.fromkeys(self.origins + other.origins)),
            keys=tuple(dict.fromkeys(self.keys + other.keys)),
            skipped=self.skipped + other.skipped,
            remarks=self.remarks + other.remarks,
            **{name: getattr(self, name) + getattr(other, name) for name in totals},
        )

    @property
    def keys_there(self) -> str:
        """The keys of the file for messages: 'energy (calculator), REF_forces (arrays)'."""
        return ", ".join(f"{key} ({place})" for key, place in self.keys) or "none"

    def require(self, names: KeyNames, labels: tuple[str, ...] = tuple(KeyNames.model_fields)) -> None:
        """Raise DataError if a key named in the options stands in no structure at all."""
        there = {key for key, _ in self.keys}
        for label in labels:
            key = getattr(names, label)
            if key is None or key in there:
                continue
            near = difflib.get_close_matches(key, there, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{self.source}: no structure has the key {key!r} (keys.{label}); keys there: {self.keys_there}{hint}"
            )

    def __str__(self) -> str:
        low, high = self.sizes
        atoms = f"{low} atoms each" if low == high else f"{low} to {high} atoms"
        symbols = " ".join(chemical_symbols[z] for z in self.elements)
        head = f"{self.source}: {self.structures} structures" + (f", {atoms}, {symbols}" if self.structures else "")
        labels = [f"positions ({self._origin('positions')})"] if self._origin("positions") else []
        for name in PROPERTIES:
            if name in PREDICTED or self.labels[name]:
                origin = self._origin(name)
                labels.append(f"{name} {self.labels[name]}" + (f" ({origin})" if origin else ""))
        extras = [f"{label} ({text})" for label, text in self.origins if label in ("weight", "group")]
        parts = [head, ", ".join(labels + extras)]
        if self.ignored_stress:
            parts.append(f"stress ignored on {self.ignored_stress} not fully periodic structures")
        if self.unordered_stress:
            unknown = "the order of its six numbers is not known, say units.stress_order"
            parts.append(f"stress ignored on {self.unordered_stress} structures: {unknown}")
        if self.isolated:
            parts.append(f"isolated atoms {self.isolated}")
        if self.skipped:
            kinds = Counter(item.kind for item in self.skipped)
            first = self.skipped[0]
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            parts.append(f"skipped {counts} (the first: {first.source}, {first.why})")
        parts += [f"{text} ({count} structures)" for text, count in Counter(item.text for _, item in self.remarks).items()]
        return "; ".join(parts)

    def _origin(self, name: str) -> str:
        return " or ".join(text for label, text in self.origins if label == name)
