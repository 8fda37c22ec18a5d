"""Constraints of a simulation: which of them dynamics can keep, and how a restart knows them again."""

from __future__ import annotations

import json

import ase
import numpy as np
from ase.constraints import FixAtoms, FixBondLengths

from mlff.basics.errors import StructureError

#: Those that ASE's integrators keep. Others project momenta like forces, whatever the masses, or are made for saddle points.
KEPT = (
    "FixAtoms",
    "FixCartesian",
    "FixScaled",
    "FixedPlane",
    "FixedLine",
    "FixCom",
    "FixSubsetCom",
    "FixBondLengths",
    "FixLinearTriatomic",
    "Hookean",
    "ExternalForce",
)


def check_constraints(atoms: ase.Atoms) -> None:
    """Raise StructureError if dynamics cannot keep a constraint of the atoms."""
    for constraint in atoms.constraints:
        name = type(constraint).__name__
        if name not in KEPT:
            raise StructureError(f"dynamics cannot keep the constraint {name}; remove it, or use one of {', '.join(KEPT)}")


def free_to_move(atoms: ase.Atoms) -> np.ndarray:
    """(n,) bool: False for those that a FixAtoms holds."""
    moving = np.ones(len(atoms), bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            moving[constraint.index] = False
    return moving


def move_freely(atoms: ase.Atoms) -> bool:
    """Whether all may move and turn together: there is no constraint, or only distances are kept."""
    return all(type(constraint) is FixBondLengths for constraint in atoms.constraints)


def fix_lengths(atoms: ase.Atoms) -> None:
    """Lengths that constraints hold become those of now, where none are given. ASE would do that at the first step."""
    for constraint in atoms.constraints:
        if getattr(constraint, "bondlengths", ()) is None:
            if hasattr(constraint, "initialize"):
                constraint.initialize(atoms)
            else:
                constraint.bondlengths = constraint.initialize_bond_lengths(atoms)


def describe(atoms: ase.Atoms) -> str:
    """Kinds, atoms, parameters and lengths of all constraints as JSON: the same text for the same constraints."""
    known = [[constraint.todict(), getattr(constraint, "bondlengths", None)] for constraint in atoms.constraints]
    return json.dumps(known, default=lambda value: value.tolist())
