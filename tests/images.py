"""Pair potentials summed over periodic images in plain numpy and float64: the judge of whole graphs. No code of mlff."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import ase
import numpy as np

Pair = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  #: distances (Å) -> energies (eV) and slopes (eV/Å)


def pair_sum(atoms: ase.Atoms, pair: Pair, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Energies per atom (n,), forces (n, 3) and, with three periodic directions, stress (3, 3) of pairs nearer than cutoff.

    Every atom with every other in every image that can be in reach; positions are first moved into the cell.
    """
    n, pbc = len(atoms), np.asarray(atoms.pbc)
    vectors = atoms.cell.array[pbc]
    positions = atoms.positions.astype(float)
    lattice = positions @ np.linalg.pinv(vectors) if len(vectors) else np.zeros((n, 0))
    positions = positions - np.floor(lattice) @ vectors
    heights = 1 / np.linalg.norm(np.linalg.pinv(vectors), axis=0) if len(vectors) else np.zeros(0)
    reach = [range(-r, r + 1) for r in (np.ceil(cutoff / heights).astype(int) + 1)]
    energies, forces, virial = np.zeros(n), np.zeros((n, 3)), np.zeros((3, 3))
    for image in itertools.product(*reach):
        r_ij = (
            positions[None] - positions[:, None] + np.array(image, float) @ vectors
            if image
            else positions[None] - positions[:, None]
        )
        lengths = np.sqrt((r_ij**2).sum(-1))
        near = (lengths < cutoff) & (lengths > 0)
        safe = np.where(near, lengths, 1.0)
        u, slope = (np.where(near, values, 0.0) for values in pair(safe))
        along = slope[..., None] * r_ij / safe[..., None]
        energies += 0.5 * u.sum(1)
        forces += along.sum(1)
        virial += 0.5 * np.einsum("ija,ijb->ab", along, r_ij)
    volume = abs(np.linalg.det(atoms.cell.array))
    return energies, forces, virial / volume if pbc.all() else None


def lennard_jones(epsilon: float, sigma: float, cutoff: float, p: int = 6) -> Pair:
    """As `mlff.models.pair.LennardJones`: times the polynomial envelope of Gasteiger et al. (2020), eq. 8."""

    def pair(r):
        x, power = r / cutoff, (sigma / r) ** 6
        u, du = 4 * epsilon * (power**2 - power), 4 * epsilon * (6 * power - 12 * power**2) / r
        a, b, c = (p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2
        cut = 1 - a * x**p + b * x ** (p + 1) - c * x ** (p + 2)
        slope = (-a * p * x ** (p - 1) + b * (p + 1) * x**p - c * (p + 2) * x ** (p + 1)) / cutoff
        return u * cut, du * cut + u * slope

    return pair


def shifted_lennard_jones(epsilon: float, sigma: float, cutoff: float) -> Pair:
    """As `ase.calculators.lj.LennardJones(smooth=False)`: shifted to zero at the cutoff."""

    def pair(r):
        power, end = (sigma / r) ** 6, (sigma / cutoff) ** 6
        return 4 * epsilon * (power**2 - power - end**2 + end), 4 * epsilon * (6 * power - 12 * power**2) / r

    return pair
