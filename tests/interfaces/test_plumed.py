"""PLUMED through ASE, where there is one."""

import os

import numpy as np
import pytest
from ase import units
from ase.build import molecule

from mlff import MLFFCalculator
from tests.potentials import morse


def test_a_restraint_of_plumed_adds_to_the_forces():
    pytest.importorskip("plumed", reason="PLUMED's Python module is not installed")
    if not os.path.exists(os.environ.get("PLUMED_KERNEL", "")):
        pytest.skip("no PLUMED kernel: PLUMED_KERNEL does not name one")
    from ase.calculators.plumed import Plumed

    atoms = molecule("H2O")
    bare = morse(precision="float64").predict([atoms])[0]
    lines = [
        f"UNITS LENGTH=A TIME={1 / (1000 * units.fs)} ENERGY={units.mol / units.kJ}",
        "d: DISTANCE ATOMS=1,2",
        "RESTRAINT ARG=d AT=1.2 KAPPA=3.0",
    ]
    atoms.calc = Plumed(MLFFCalculator(morse(precision="float64")), lines, 0.5 * units.fs, atoms, kT=300 * units.kB)
    vector = atoms.positions[1] - atoms.positions[0]
    length = np.linalg.norm(vector)
    pull = -3.0 * (length - 1.2) * vector / length
    np.testing.assert_allclose(atoms.get_forces() - bare.forces, [-pull, pull, np.zeros(3)], atol=1e-6)
    assert atoms.get_potential_energy() - bare.energy == pytest.approx(1.5 * (length - 1.2) ** 2, abs=1e-6)
