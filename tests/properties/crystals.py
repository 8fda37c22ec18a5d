"""Crystals of a pair potential at their minimum, for tests of all that is computed of crystals."""

from __future__ import annotations

import functools

import ase
from ase.build import bulk

from mlff.potential.potential import Potential
from mlff.properties.minimum import relaxed
from tests.potentials import lennard_jones


@functools.cache
def potential() -> Potential:
    """Lennard-Jones copper in float64."""
    return lennard_jones(precision="float64")


@functools.cache
def _copper() -> ase.Atoms:
    return relaxed(potential(), bulk("Cu", cubic=True), cell=True)


def copper() -> ase.Atoms:
    """Four atoms in the cubic cell, forces and stress zero."""
    return _copper().copy()


def primitive_copper() -> ase.Atoms:
    """One atom in the primitive cell."""
    return bulk("Cu", a=_copper().cell[0, 0])
