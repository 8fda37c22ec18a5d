"""Whether an engine, which sends positions alone, has its atoms in the order that is expected."""

from __future__ import annotations

import ase
import numpy as np
from ase.data import covalent_radii

from mlff.basics.errors import StructureError
from mlff.data.neighbors import neighbor_list

_BONDED = 1.25  #: times the sum of two covalent radii
_OTHERWISE = 1 / 3  #: of the atoms with other neighbours than in the template: their order is not that of the template


def check_order(template: ase.Atoms, positions: np.ndarray, cell: np.ndarray, name: str) -> None:
    """Raise StructureError where many atoms at positions (n, 3), Å, are bonded to other elements than in the template.

    How many neighbours they have does not count: a crystal may have melted since.
    """
    now = _surroundings(template.numbers, positions, cell, template.pbc)
    then = _surroundings(template.numbers, template.positions, template.cell.array, template.pbc)
    other = [atom for atom, pair in enumerate(zip(now, then, strict=True)) if pair[0] != pair[1]]
    if len(other) > _OTHERWISE * len(template):
        raise StructureError(
            f"{len(other)} of {len(template)} atoms (the first is atom {other[0]}, {template.symbols[other[0]]}) are bonded "
            f"to other elements than in {name}: the atoms must come in its order"
        )


def _surroundings(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> list[set[int]]:
    """For each atom the elements of those bonded to it."""
    radii = _BONDED * covalent_radii[numbers]
    if pbc.any():
        positions = positions - np.floor(positions @ np.linalg.pinv(cell[pbc])) @ cell[pbc]
    i, j, shifts = neighbor_list(positions, cell, pbc, 2 * float(radii.max()))
    lengths = np.linalg.norm(positions[j] - positions[i] + shifts @ cell, axis=1)
    found: list[set[int]] = [set() for _ in numbers]
    for k in np.flatnonzero(lengths < radii[i] + radii[j]):
        found[i[k]].add(int(numbers[j[k]]))
    return found
