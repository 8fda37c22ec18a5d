"""Relaxation: minima of atoms and cells, and honest words about float32."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.io import read

from mlff.basics.errors import ConfigError
from mlff.interfaces.ase import MLFFCalculator
from mlff.simulation.relax import force_noise, relax
from tests.potentials import lennard_jones, morse


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_molecule(optimizer, tmp_path):
    atoms = molecule("CH3OH")
    atoms.set_constraint(FixAtoms([0]))
    result = relax(
        atoms, MLFFCalculator(morse()), fmax=0.02, optimizer=optimizer, trajectory=tmp_path / "path.xyz", progress=False
    )
    assert result.converged and result.forces_max < 0.02 and result.energy_change < 0 and result.volume is None
    frames = read(tmp_path / "path.xyz", ":")
    assert len(frames) == result.steps + 1
    assert frames[-1].info["mlff_energy"] == pytest.approx(result.energy)
    assert isinstance(atoms.constraints[0], FixAtoms)


def test_cell_and_pressure():
    calculator = MLFFCalculator(lennard_jones())
    free, pressed = (bulk("Cu", a=3.75, cubic=True) for _ in range(2))
    relaxed = relax(free, calculator, cell=True, progress=False)
    squeezed = relax(pressed, calculator, cell=True, pressure=5.0, progress=False)
    assert relaxed.converged and squeezed.converged
    assert np.abs(free.get_stress()).max() < 2e-3
    assert squeezed.volume < relaxed.volume
    assert -pressed.get_stress()[:3].mean() == pytest.approx(5.0 / 160.21766, abs=2e-3)


def test_float32_noise_is_found_and_told():
    atoms = molecule("H2O")
    single, double = MLFFCalculator(morse()), MLFFCalculator(morse(precision="float64"))
    assert 1e-8 < force_noise(atoms, single) < 1e-4
    assert force_noise(atoms, double) < 1e-12
    result = relax(atoms, single, fmax=1e-8, steps=60, progress=False)
    assert not result.converged and "use float64" in result.warning
    assert relax(atoms, double, fmax=1e-8, steps=60, progress=False).warning is None


def test_wrong_requests():
    atoms, calculator = molecule("H2O"), MLFFCalculator(morse())
    with pytest.raises(ConfigError, match="unknown optimizer"):
        relax(atoms, calculator, optimizer="newton", progress=False)
    with pytest.raises(ConfigError, match="periodic in three"):
        relax(atoms, calculator, cell=True, progress=False)
    with pytest.raises(ConfigError, match="fmax"):
        relax(atoms, calculator, fmax=0, progress=False)
    with pytest.raises(ConfigError, match="pressure only acts"):
        relax(atoms, calculator, pressure=1.0, progress=False)
