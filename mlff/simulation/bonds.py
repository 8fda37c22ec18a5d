"""Distances between atoms that are kept: SHAKE for positions, RATTLE for momenta, as pure functions of JAX.

All distances are solved for together, with the matrix of their couplings (Ryckaert, Ciccotti & Berendsen, J. Comput. Phys.
23, 327 (1977); Andersen, J. Comput. Phys. 52, 24 (1983)). For Langevin the momenta are projected after each part of a step
(g-BAOAB: Leimkuhler & Matthews, Proc. R. Soc. A 472, 20160138 (2016)). Units are ASE's.
"""

from __future__ import annotations

from typing import NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase.constraints import FixAtoms, FixBondLengths
from ase.data import covalent_radii
from ase.geometry import find_mic
from ase.neighborlist import neighbor_list
from jax import Array

from mlff.basics.errors import StructureError

MOST = 256  #: distances that are solved for together
_BONDED = 1.3  #: times the sum of the covalent radii: a bond to hydrogen at most
_PRECISION = 1e-11  #: relative, of the distances
_ITERATIONS = 30
_SINGULAR = 1e-8  #: of the largest eigenvalue of the couplings


class Bonds(NamedTuple):
    """m distances of one system that are kept."""

    pairs: Array  #: (m, 2) int32
    lengths: Array  #: (m,) Å
    images: Array  #: (m, 3) Å, added to the second atom: the image of it that is meant
    coupling: Array  #: (m, m) 1/amu: by how much an impulse along one bond drives another


def to_hydrogen(atoms: ase.Atoms) -> FixBondLengths:
    """A constraint that keeps the distance of each hydrogen atom from the nearest atom, as long as it is now.

    Raises StructureError: no hydrogen, or a hydrogen atom that is bonded to none.
    """
    hydrogen = np.flatnonzero(atoms.numbers == 1)
    if len(hydrogen) == 0:
        raise StructureError("there is no hydrogen whose bonds could be kept; leave the constraint out")
    i, j, lengths = neighbor_list("ijd", atoms, list(_BONDED * covalent_radii[atoms.numbers]))
    pairs = set()
    for atom in hydrogen:
        mine = i == atom
        if not mine.any():
            raise StructureError(f"atom {atom}, hydrogen, is bonded to no other one; its bond cannot be kept")
        pairs.add(tuple(sorted((int(atom), int(j[mine][lengths[mine].argmin()])))))
    return FixBondLengths(sorted(pairs))


def bonds_of(atoms: ase.Atoms) -> Bonds | None:
    """Those of all FixBondLengths of the atoms, whose lengths are set; None if there are none.

    Raises StructureError: they contradict each other, depend on each other, or are not as long as they are to be kept.
    """
    found = [constraint for constraint in atoms.constraints if isinstance(constraint, FixBondLengths)]
    pairs = np.array([pair for constraint in found for pair in constraint.pairs], np.int32).reshape(-1, 2)
    if len(pairs) == 0:
        return None
    lengths = np.concatenate([np.asarray(constraint.bondlengths, float) for constraint in found])
    apart = atoms.positions[pairs[:, 1]] - atoms.positions[pairs[:, 0]]
    nearest = find_mic(apart, atoms.cell, atoms.pbc)[0]
    images = np.zeros_like(apart)
    if atoms.pbc.any():
        cell = atoms.cell.complete().array
        images = np.rint((nearest - apart) @ np.linalg.inv(cell)) @ cell
    inverse = 1 / atoms.get_masses()
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            inverse[constraint.index] = 0.0
    ends = np.zeros((len(pairs), len(atoms)))
    ends[np.arange(len(pairs)), pairs[:, 0]] -= 1
    ends[np.arange(len(pairs)), pairs[:, 1]] += 1
    coupling = (ends * inverse) @ ends.T
    _check(pairs, lengths, nearest, coupling)
    return Bonds(pairs, lengths, images, coupling)


def _check(pairs: np.ndarray, lengths: np.ndarray, vectors: np.ndarray, coupling: np.ndarray) -> None:
    found = np.linalg.norm(vectors, axis=1)
    for (a, b), length, now in zip(pairs, lengths, found, strict=True):
        if a == b or not length > 0:
            raise StructureError(f"the distance of atoms {a} and {b} cannot be kept at {length:.4g} Å")
        if abs(now - length) > 1e-3 * length:
            raise StructureError(f"atoms {a} and {b} are {now:.4f} Å apart, but are to be kept at {length:.4f} Å")
    strengths = np.linalg.eigvalsh(coupling * (vectors @ vectors.T))
    if strengths[0] < _SINGULAR * strengths[-1]:
        raise StructureError(
            "the distances to keep depend on each other, or a pair of fixed atoms is among them; leave out those that follow "
            "from others"
        )


def kept_positions(bonds: Bonds, inverse_masses: Array, before: Array, after: Array) -> Array:
    """Positions `after` (n, 3), Å, moved along the bonds `before` until these have their lengths (SHAKE).

    inverse_masses (n, 1), 1/amu: 0 for fixed atoms. Not numbers where the step is too long for that.
    """
    along = _vectors(bonds, before)
    factor = jax.scipy.linalg.cho_factor(bonds.coupling * (along @ along.T))

    def improve(held: tuple) -> tuple:
        positions, _, count = held
        excess = _excess(bonds, positions)
        solved = jax.scipy.linalg.cho_solve(factor, excess)
        positions = positions - inverse_masses * _spread(bonds, len(positions), solved[:, None] * along)
        return positions, _worst(bonds, positions), count + 1

    def unsettled(held: tuple) -> Array:
        return (held[1] > _PRECISION) & (held[2] < _ITERATIONS)

    positions, worst, _ = jax.lax.while_loop(unsettled, improve, (after, _worst(bonds, after), jnp.int32(0)))
    return jnp.where(worst <= _PRECISION, positions, jnp.nan)


def kept_momenta(bonds: Bonds, inverse_masses: Array, positions: Array, momenta: Array) -> Array:
    """Momenta (n, 3) without what would change the lengths (RATTLE)."""
    along = _vectors(bonds, positions)
    speeds = momenta * inverse_masses
    growing = jnp.sum(along * (speeds[bonds.pairs[:, 1]] - speeds[bonds.pairs[:, 0]]), axis=1)
    solved = jax.scipy.linalg.solve(bonds.coupling * (along @ along.T), growing, assume_a="pos")
    impulse = _spread(bonds, len(positions), solved[:, None] * along)
    return momenta - jnp.where(inverse_masses > 0, impulse, 0.0)


def _vectors(bonds: Bonds, positions: Array) -> Array:
    """(m, 3) Å."""
    return positions[bonds.pairs[:, 1]] - positions[bonds.pairs[:, 0]] + bonds.images


def _excess(bonds: Bonds, positions: Array) -> Array:
    """(m,) Å²: half of what the squares of the lengths are too large by."""
    return 0.5 * (jnp.sum(_vectors(bonds, positions) ** 2, axis=1) - bonds.lengths**2)


def _worst(bonds: Bonds, positions: Array) -> Array:
    return jnp.max(jnp.abs(_excess(bonds, positions)) / bonds.lengths**2)


def _spread(bonds: Bonds, count: int, vectors: Array) -> Array:
    """(count, 3): the sum over the bonds of each atom, minus at its first atom, plus at its second."""
    total = jnp.zeros((count, 3)).at[bonds.pairs[:, 1]].add(vectors)
    return total.at[bonds.pairs[:, 0]].add(-vectors)
