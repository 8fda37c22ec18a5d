"""Structures labelled by analytic potentials: molecules, strained crystals, and cells of which no two are near."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.morse import MorsePotential
from scipy.spatial.transform import Rotation

from mlff.data.census import Census
from mlff.data.dataset import Dataset
from mlff.data.structure import Structure


def molecules(count: int = 60, seed: int = 0, scale: float = 0.04, names=("CH3CH2OH",)) -> list[Structure]:
    """Perturbed and turned molecules with a Morse potential."""
    rng, found = np.random.default_rng(seed), []
    for k in range(count):
        atoms = molecule(names[k % len(names)])
        atoms.positions += rng.normal(0, scale, atoms.positions.shape)
        atoms.positions = Rotation.random(random_state=rng).apply(atoms.positions) + rng.normal(0, 3, 3)
        atoms.calc = MorsePotential(epsilon=3.0, r0=1.3, rho0=2.5, rcut1=3.5, rcut2=4.5)
        found.append(structure_of(atoms, len(found), -100.0 * len(atoms)))
    return found


def crystals(count: int = 80, seed: int = 0) -> list[Structure]:
    """Copper of 8 atoms, EMT: compressed, sheared, sheared and displaced, displaced; some turned as a whole."""
    rng, found = np.random.default_rng(seed), []
    cell = bulk("Cu", cubic=True) * (2, 1, 1)
    for k in range(count):
        atoms = cell.copy()
        shear = rng.normal(0, 0.02, (3, 3))
        strain = (np.eye(3) * rng.uniform(-0.05, 0.05), shear, shear, np.zeros((3, 3)))[k % 4]
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        if k % 4 > 1:
            atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        turn = Rotation.random(random_state=rng).as_matrix() if k % 5 == 0 else np.eye(3)
        atoms.set_cell(atoms.cell.array @ turn, scale_atoms=True)
        atoms.calc = EMT()
        found.append(structure_of(atoms, len(found), -1000.0 * len(atoms)))
    return found


def defects(count: int = 24, seed: int = 0) -> list[Structure]:
    """Sheared copper with up to `count` atoms left out, EMT: all compositions differ, no two are near."""
    rng, found = np.random.default_rng(seed), []
    for k in range(count):
        atoms = bulk("Cu", cubic=True) * (3, 3, 3)
        strain = rng.normal(0, 0.03, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        del atoms[rng.choice(len(atoms), k, replace=False)]
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        atoms.calc = EMT()
        found.append(structure_of(atoms, len(found), -1000.0 * len(atoms)))
    return found


def dataset(structures, file: str = "data.xyz", **origins) -> Dataset:
    """With sources named after the file, and where the labels are said to be from."""
    named = tuple(replace(s, source=f"{file}, structure {k}") for k, s in enumerate(structures))
    return Dataset(named, {}, Census(source=file, origins=tuple(origins.items())).counted(list(named), 0))


def changed(structures, energy=1.0, forces=1.0, stress=1.0) -> list[Structure]:
    """Labels times factors."""
    return [
        replace(
            s,
            energy=None if s.energy is None else energy * s.energy,
            forces=None if s.forces is None else forces * s.forces,
            stress=None if s.stress is None else stress * s.stress,
        )
        for s in structures
    ]


def structure_of(atoms, index, offset) -> Structure:
    labels = {"energy": atoms.get_potential_energy() + offset, "forces": atoms.get_forces()}
    if atoms.pbc.all():
        labels["stress"] = atoms.get_stress(voigt=False)
    return Structure.from_atoms(atoms, f"data.xyz, structure {index}", **labels)
