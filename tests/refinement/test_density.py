"""The density as a target: one atom in a cell, whose distribution of volumes is known exactly; a crystal of many."""

import ase
import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from mlff.basics.errors import MLFFError
from mlff.basics.units import DENSITY, KB, STRESS
from mlff.config.observables import Density
from mlff.config.refinement import make_refinement
from mlff.config.sampling import Sampling
from mlff.properties.averages import block_error
from mlff.refinement.averages import MeanDensity
from mlff.refinement.ensembles import Ensemble
from mlff.refinement.targets import make_targets
from mlff.simulation.guard import SimulationError
from tests.conftest import make_potential
from tests.potentials import lennard_jones
from tests.refinement.slopes import direction, moved, slope

HOT, PRESSURE = 1000.0, 1.0  #: K, GPa
SAMPLING = {"structure": "cell.xyz", "temperature": HOT, "pressure": PRESSURE, "least": 0.1}
OPTIONS = Density(kind="density", value=2.0, error=0.1, sampling=SAMPLING)


@pytest.fixture(scope="module")
def model():
    return make_potential("schnet", "float64")


def one_atom(volumes: np.ndarray) -> list[ase.Atoms]:
    return [ase.Atoms("Si", cell=3 * [volume ** (1 / 3)], pbc=True) for volume in volumes]


class Cells:
    """Energies of one atom at 200 volumes, and the distribution of volumes that follows: V exp(-(E + pV)/kT), as it moves freely."""

    def __init__(self, model):
        self.ensemble = Ensemble(OPTIONS.sampling, model, "float64", one_atom([10])[0], 0)
        self.nodes = np.linspace(5, 70, 200)
        self.graphs = self.at(self.nodes)

    def at(self, volumes: np.ndarray):
        """The ensemble has these volumes."""
        cells = np.array([atoms.cell.array for atoms in one_atom(volumes)])
        held = {"positions": np.zeros((200, 1, 3)), "cells": cells, "momenta": np.zeros((1, 3))}
        self.ensemble.restore(held | {"exponents": np.zeros(200), "runs": np.array(1)})
        return self.ensemble.graphs

    def distribution(self, params: dict) -> tuple[np.ndarray, np.ndarray]:
        energies = np.asarray(self.ensemble._energies(params, self.graphs))
        volumes = np.linspace(5, 70, 13001)
        exponent = (energies + PRESSURE * STRESS["GPa"] * self.nodes) / (KB * HOT)
        density = volumes * np.exp(-np.interp(volumes, self.nodes, exponent - exponent.min()))
        return volumes, density / density.sum()

    def exact(self, params: dict) -> float:
        """g/cm³"""
        volumes, density = self.distribution(params)
        return self.ensemble.atoms.get_masses()[0] / (density @ volumes) / DENSITY["g/cm^3"]


@pytest.fixture(scope="module")
def drawn(model) -> Cells:
    """Frames lie as those of an endless run would."""
    params = model.device_params
    with model.scope():
        cells = Cells(model)
        volumes, density = cells.distribution(params)
        shares = np.random.default_rng(0).permutation(200) + 0.5
        cells.at(np.interp(shares / 200, np.cumsum(density), volumes))
        cells.ensemble.exponents = np.asarray(cells.ensemble._energies(params, cells.ensemble.graphs)) / (KB * HOT)
    return cells


def test_it_is_exact_also_at_other_parameters(model, drawn):
    with model.scope():
        target = MeanDensity(OPTIONS, drawn.ensemble, model)
        params = model.device_params
        other = moved(params, params["params"], 0.1)
        before, after = drawn.exact(params), drawn.exact(other)
        assert abs(after - before) > 0.04 * before
        assert target.measure(params).values == pytest.approx([before], rel=1e-2)
        assert target.measure(other).values == pytest.approx([after], rel=1e-2)
        assert target.ensemble.runs == 1
        found, expected = slope(target, params, direction(model.params))
    assert found == pytest.approx(expected, rel=1e-5) and abs(found) > 1e-3


def test_volumes_that_hardly_changed_are_one_line(model, drawn):
    ensemble = Ensemble(OPTIONS.sampling, model, "float64", drawn.ensemble.atoms, 0)
    ensemble.cells = drawn.ensemble.cells[np.argsort(np.linalg.det(drawn.ensemble.cells))]
    with pytest.raises(SimulationError, match=r"200 frames are as good as \d\.\d independent ones, 5 are needed") as error:
        MeanDensity(OPTIONS, ensemble, model).look(ensemble)
    assert "\n" not in str(error.value)


WRONG = {
    "a fixed cell": ({"pressure": None}, {}, "sampling.pressure is missing"),
    "no cell": ({"structure": "alone.xyz"}, {}, "periodic in three directions"),
    "a bias": ({"bias": "bias.yaml"}, {}, "runs with a bias have a constant volume"),
    "a pressure": (
        {},
        {"kind": "pressure", "unit": "GPa"},
        "sampling.pressure: a mean pressure is that of a run at constant",
    ),
    "diffusion": (
        {},
        {"kind": "diffusion", "unit": "Angstrom^2/ps", "element": "Si"},
        "sampling.pressure: diffusion is that",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(name, tmp_path, model):
    write(tmp_path / "cell.xyz", one_atom([10])[0])
    write(tmp_path / "alone.xyz", ase.Atoms("Si"))
    of_sampling, of_target, message = WRONG[name]
    one = {"kind": "density", "value": 2.0, "error": 0.1, "sampling": SAMPLING | of_sampling} | of_target
    plain = {"model": "m", "data": {"train": "d.xyz"}, "targets": [one]}
    with pytest.raises(MLFFError, match=message) as error, model.scope():
        make_targets(make_refinement(plain, "test", tmp_path), model, "float32")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_run_has_it_and_goes_on(tmp_path):
    """Argon, solid: the mean volume of the frames is that of the estimate; a second run goes on in the cell of the first."""
    potential = lennard_jones(cutoff=8.0, epsilon=0.0104, sigma=3.4).with_precision("float64")
    more = {"temperature": 20.0, "pressure": 0.3, "timestep": 5.0, "tau": 200.0, "tau_pressure": 500.0}
    sampling = Sampling(structure="", frames=400, every=30, equilibration=3000, **more)
    options = OPTIONS.model_copy(update={"sampling": sampling})
    ensemble = Ensemble(sampling, potential, "float32", bulk("Ar", a=5.2, cubic=True).repeat(2), 0)
    target = MeanDensity(options, ensemble, potential)
    with potential.scope():
        ensemble.sample(potential.device_params)
        volumes = np.linalg.det(ensemble.cells)
        values, errors = target.fresh(potential)
    plain = ensemble.atoms.get_masses().sum() / volumes / DENSITY["g/cm^3"]
    error = block_error(plain) or plain.std() / 2
    assert errors[0] < error and abs(values[0] - plain.mean()) < 3 * (error + errors[0]), (
        values,
        errors,
        plain.mean(),
        error,
    )
    again = ensemble.again()
    assert again.atoms.get_volume() == pytest.approx(volumes[-1])
