"""A committee: potentials that differ by their weights alone, asked together.

The mean of its members is more accurate than each of them (errors that are chance cancel), and how far they lie apart
says where it is not to be trusted (query by committee: Seung, Opper & Sompolinsky, COLT 1992; for molecular dynamics:
Schran, Brezina & Marsalek, J. Chem. Phys. 153, 104105 (2020)). Forces are the derivative of the mean energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from mlff.basics.errors import ModelFileError
from mlff.data.structure import Structure
from mlff.potential import selfcheck
from mlff.potential.potential import Potential

_SHARED = ("config", "elements", "baseline", "statistics", "precision")


def committee(potentials: Sequence[Potential], names: Sequence[str] | None = None) -> Potential:
    """One potential of several: mean energies, forces and stresses, standard deviations of energies and forces.

    They must be trained alike (same config, same data; `member` in the config tells them apart). `names` are for messages.
    Raises ModelFileError: fewer than two, not alike, twice the same.
    """
    names = [f"potential {i}" for i in range(len(potentials))] if names is None else list(names)
    if len(potentials) < 2:
        raise ModelFileError("a committee needs at least two potentials")
    first, seen = potentials[0], {}
    for name, potential in zip(names, potentials, strict=True):
        if potential.members > 1:
            raise ModelFileError(f"{name}: is a committee already; give its members")
        for what in _SHARED:
            if getattr(potential, what) != getattr(first, what):
                raise ModelFileError(
                    f"{name}: its {what} differs from that of {names[0]}; members share all options and all data: train each "
                    "with the same config and --set member=0, 1, 2 ..."
                )
        if set(potential.params) != set(first.params):
            raise ModelFileError(
                f"{name}: one of it and {names[0]} was trained by an older version of mlff; train both with this one"
            )
        if potential.fingerprint in seen:
            raise ModelFileError(f"{name}: has the weights of {seen[potential.fingerprint]}; train it with another `member`")
        seen[potential.fingerprint] = name
    kept = {
        key: value for key, value in first.metadata.items() if key in ("config", "formulas", "data", "versions", "machine")
    }
    params = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *(p.params for p in potentials))
    together = replace(first, params=params, metadata=kept | {"members": list(seen)}, members=len(potentials))
    structures = [Structure.from_atoms(atoms) for atoms in first.reference_structures]
    return replace(together, metadata=together.metadata | {selfcheck.KEY: selfcheck.record(together, structures)})
