"""Dynamics says how far it went from the training data."""

from types import SimpleNamespace

import numpy as np
import pytest
from ase.build import molecule

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError, StructureError
from mlff.data.structure import Structure
from mlff.potential.domain import summarise
from mlff.report import tables
from mlff.simulation.md import run_md
from mlff.simulation.reach import Reach
from tests.conftest import make_potential
from tests.simulation.springs import Springs


@pytest.fixture(scope="module")
def environments():
    structures = []
    for seed in range(60):
        atoms = molecule("CH3OH")
        atoms.rattle(0.03, seed=seed)
        structures.append(Structure.from_atoms(atoms))
    return summarise(structures, (1, 6, 8), cutoff=4.0)


def test_a_run_inside_its_data_and_one_beyond(environments):
    summaries = []
    for kelvin in (20, 4_000):
        atoms = molecule("CH3OH")
        calculator = Springs(atoms)
        calculator.potential = SimpleNamespace(environments=environments, programs=SimpleNamespace(), fingerprint="")
        summaries.append(run_md(atoms, calculator, temperature=kelvin, timestep=0.2, steps=200, interval=5, progress=False))
    cold, hot = summaries
    assert cold.distance_max < 2 and cold.distance_beyond == 0
    assert hot.distance_max > 2 and hot.distance_beyond > 0
    assert "farthest from the training data" in tables.md(hot)


def test_looking_costs_little_and_nothing_is_said_where_nothing_is_known(environments):
    reach = Reach(SimpleNamespace(potential=SimpleNamespace(environments=environments)))
    for _ in range(200):
        reach.look(molecule("CH3OH"))
    assert 40 <= len(reach.farthest) < 60
    unknown = Reach(Springs(molecule("CH3OH")))
    unknown.look(molecule("CH3OH"))
    assert unknown.largest is unknown.beyond is None


def test_the_calculator_tells_the_distances_of_atoms(environments):
    from dataclasses import replace

    calculator = MLFFCalculator(replace(make_potential("morse"), environments=environments))
    with pytest.raises(StructureError, match="no structure"):
        calculator.distances()
    atoms = molecule("CH3OH")
    atoms.calc = calculator
    atoms.get_potential_energy()
    np.testing.assert_array_equal(calculator.distances(), environments.distances(Structure.from_atoms(atoms)))
    with pytest.raises(ConfigError, match="training data"):
        MLFFCalculator(make_potential("morse")).distances(atoms)
