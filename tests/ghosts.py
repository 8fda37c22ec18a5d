"""Copies of atoms around those that a process owns, for tests of parts of a system."""

from __future__ import annotations

import ase
import numpy as np
from ase.neighborlist import primitive_neighbor_list


def with_ghosts(atoms: ase.Atoms, mine: np.ndarray, reach: float):
    """(positions, owner in `atoms`) of the owned atoms and of all others and images up to `reach` (Å) from them."""
    i, j, shifts = primitive_neighbor_list("ijS", atoms.pbc, atoms.cell, atoms.positions, reach, self_interaction=False)
    near = mine[i]
    ghosts = np.unique(np.column_stack([j, shifts])[near], axis=0)
    ghosts = ghosts[~(mine[ghosts[:, 0]] & (ghosts[:, 1:] == 0).all(axis=1))]
    own = np.flatnonzero(mine)
    positions = np.vstack([atoms.positions[own], atoms.positions[ghosts[:, 0]] + ghosts[:, 1:] @ atoms.cell.array])
    return positions, np.append(own, ghosts[:, 0])
