"""What a file says about itself: its frames, and the units, signs and keys that its format or its header fixes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import ase

from mlff.config.options import KeyNames


class Facts(NamedTuple):
    """Units and signs by the names of `Units`. The user overrules the format, but may not contradict the file itself."""

    by_format: Mapping[str, str] = {}  #: a convention of the format
    in_file: Mapping[str, str] = {}  #: stated in this very file, in its own spelling: energy, length, forces, stress
    keys: Mapping[str, str] = {}  #: label -> key of the format, where the user names none

    def name(self, keys: KeyNames) -> KeyNames:
        """The user's keys, completed by those of the format."""
        stated = {label for label in KeyNames.model_fields if getattr(keys, label) is not None}
        if stated & {"stress", "virial"}:
            stated |= {"stress", "virial"}
        return keys.model_copy(update={label: key for label, key in self.keys.items() if label not in stated})


REMARKS = "mlff_remarks"  #: key in the `info` of a frame under which a reader leaves what must be said of it


class Remark(NamedTuple):
    """Something that a reader could not take over, or a mark of quality that the file itself has."""

    code: str  #: "unconverged", "cell", "isotope": for programs
    text: str


UNCONVERGED = Remark("unconverged", "the SCF did not converge, says the file")


def remark(atoms: ase.Atoms, *remarks: Remark) -> ase.Atoms:
    """The same atoms, with remarks for those who read them."""
    atoms.info[REMARKS] = (*atoms.info.get(REMARKS, ()), *remarks)
    return atoms


class Reading(NamedTuple):
    """What a reader returns; errors of single frames come up while `frames` is walked through."""

    frames: Iterable[ase.Atoms]  #: labels in `info`, `arrays` or a calculator, in the file's units and under its keys
    facts: Facts = Facts()


#: ASE converts what it reads.
ASE = Facts(
    by_format={
        "energy": "eV",
        "length": "Angstrom",
        "stress": "eV/Angstrom^3",
        "stress_sign": "tension",
        "dipole": "e*Angstrom",
    }
)
