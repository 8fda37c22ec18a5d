"""What tests under mpirun do: `mpirun -np 2 python -m tests.lammps_ranks NAME ...`; process 0 prints what it found as JSON."""

from __future__ import annotations

import json
import sys

import numpy as np

from mlff.interfaces.lammps import attach
from mlff.interfaces.processes import one_line_errors
from tests.conftest import make_potential
from tests.lammps_cases import CASES, MPI, results, species, start

ASK = """compute energies all pe/atom
compute virials all stress/atom NULL
thermo_style custom step pe press pxx pyy pzz pxy pxz pyz
"""


def agree(model: str, precision: str, case: str) -> dict:
    """Energies, forces and stress of one configuration, and the energy after a few steps."""
    atoms = CASES[case]()
    lmp = start(atoms)
    attach(lmp, make_potential(model, precision), species(atoms))
    lmp.commands_string(ASK + "run 0")
    found = results(lmp, atoms)
    lmp.commands_string("velocity all create 300 1 loop geom\nfix moves all nve\nneighbor 0.5 bin\ntimestep 0.0002\nrun 20")
    return {**found, "later": results(lmp, atoms)["energy"]}


def fail(model: str, how: str) -> None:
    """Something is wrong on the last process alone."""
    atoms = CASES["silicon"]()
    lmp = start(atoms)
    forces = attach(lmp, make_potential(model), species(atoms))
    if MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1:
        if how == "exception":
            forces.local.evaluate = {}.__getitem__
        elif how == "overlap":
            x = lmp.numpy.extract_atom("x")
            x[1] = x[0]
        elif how == "nan":
            lmp.numpy.extract_atom("x")[0] = np.nan
        elif how == "outside":
            raise ValueError("in the script")
    lmp.command("run 100000")


if __name__ == "__main__":
    with one_line_errors():
        answer = globals()[sys.argv[1]](*sys.argv[2:])
    if MPI.COMM_WORLD.rank == 0 and answer is not None:
        print(json.dumps(answer, default=np.ndarray.tolist))
