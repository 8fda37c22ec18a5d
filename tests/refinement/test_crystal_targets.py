"""Elastic constants and volumes as targets: gradients of the whole way, relaxation included."""

import ase
import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from mlff.basics.errors import MLFFError
from mlff.config.observables import ElasticConstants as Options
from mlff.config.observables import Volume
from mlff.config.refinement import make_refinement
from mlff.properties.elasticity import elasticity
from mlff.properties.minimum import relaxed
from mlff.refinement.crystals import ElasticConstants, EquilibriumVolume, _mean
from mlff.refinement.observables import TIGHT
from mlff.refinement.targets import make_targets
from tests.conftest import make_potential
from tests.refinement.slopes import direction, slope

HEXAGONAL = {"C11": 250.0, "C12": 80.0, "C13": 60.0, "C33": 240.0, "C44": 50.0}  #: GPa


@pytest.fixture(scope="module")
def model():
    return make_potential("schnet", "float64")


def hexagonal() -> ase.Atoms:
    """Under most strains its two atoms move against each other."""
    return bulk("Si", "hcp", a=2.2, c=3.6)


def constants(values: dict, **more) -> Options:
    return Options(kind="elastic_constants", structure="", values=values, error=20.0, **more)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [True, False])
def test_gradient_of_elastic_constants(cell, model):
    """Of the values that relaxation and a strained crystal give, also where a stress is left."""
    with model.scope():
        target = ElasticConstants(constants(HEXAGONAL, relax_cell=cell), model, hexagonal())
        params, along = model.device_params, direction(model.params)
        found, expected = slope(target, params, along)
        values = target.measure(params).values
        fresh, _ = target.fresh(model)
    assert found == pytest.approx(expected, rel=1e-5)
    assert values == pytest.approx(fresh, rel=5e-3)
    crystal = relaxed(model, hexagonal(), cell, TIGHT)
    direct = elasticity(model, crystal, strain=1e-4)
    assert values == pytest.approx(direct.constants[[0, 0, 0, 2, 3], [0, 1, 2, 2, 3]], rel=1e-4)
    assert np.abs(direct.clamped - direct.constants).max() > 1  # the atoms do move


@pytest.mark.slow
def test_gradient_of_a_volume(model):
    options = Volume(kind="volume", structure="", value=7.0, error=0.1)
    with model.scope():
        target = EquilibriumVolume(options, model, hexagonal())
        params = model.device_params
        found, expected = slope(target, params, direction(model.params))
        assert found == pytest.approx(expected, rel=1e-5)
        assert target.measure(params).values == pytest.approx(target.fresh(model)[0], rel=1e-6)


WRONG = {
    "name": ({"kind": "elastic_constants", "values": {"C17": 1.0}, "error": 1.0}, "'C17' is no elastic constant"),
    "no values": ({"kind": "elastic_constants", "values": {}, "error": 1.0}, "targets.0.values"),
    "no cell": ({"kind": "volume", "value": 1.0, "error": 1.0}, "periodic in three directions"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_target_is_one_line(name, model, tmp_path):
    target, message = WRONG[name]
    write(tmp_path / "two.xyz", ase.Atoms("Si2", [[0, 0, 0], [0, 0, 2.0]]))
    plain = {"model": "m", "data": {"train": "d.xyz"}, "targets": [target | {"structure": "two.xyz"}]}
    with pytest.raises(MLFFError, match=message) as error, model.scope():
        make_targets(make_refinement(plain, "test", tmp_path), model, "float32")
    assert "\n" not in str(error.value)


def test_constants_of_a_cubic_crystal_are_means():
    matrix = np.arange(36.0).reshape(6, 6)
    matrix = 0.5 * (matrix + matrix.T)
    assert np.vdot(_mean("C12", True), matrix) == pytest.approx(matrix[[0, 0, 1], [1, 2, 2]].mean())
    assert np.vdot(_mean("C12", False), matrix) == np.vdot(_mean("C21", True), matrix) == matrix[0, 1]
