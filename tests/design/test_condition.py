"""The temperature or volume at which a run has a wanted mean pressure."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from typer.testing import CliRunner

from mlff.basics.errors import ConfigError
from mlff.basics.units import KB, STRESS
from mlff.cli import app
from mlff.config.condition import Condition
from mlff.config.design import load_design, make_design
from mlff.design.condition import find_condition
from mlff.properties.averages import block_error
from mlff.refinement.ensembles import Ensemble
from tests.potentials import lennard_jones

SAMPLING = {"structure": "atoms.xyz", "temperature": 200.0, "equilibration": 0, "frames": 12, "every": 1}


@pytest.fixture
def gas(tmp_path):
    """A folder with eight atoms so far apart that they feel nothing."""
    places = 12.0 * np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    write(tmp_path / "atoms.xyz", Atoms("Ar8", places, cell=24.0 * np.eye(3), pbc=True))
    lennard_jones(cutoff=5.0, epsilon=1e-3, sigma=3.4).save(tmp_path / "model.safetensors")
    return tmp_path


def config(folder, free: dict, value: float, **more) -> Condition:
    target = {"kind": "mean_pressure", "value": value, "unit": "bar", "error": 1e-3}
    sampling = SAMPLING | more.pop("sampling", {})
    plain = {"model": "model.safetensors", "sampling": sampling, "free": free, "targets": [target]} | more
    return make_design(plain, "test", folder)


def ideal(temperature: float, volume: float) -> float:
    """Pressure of the gas in bar; its centre of mass rests."""
    return 7 * KB * temperature / volume / STRESS["bar"]


@pytest.mark.slow
def test_the_temperature_of_an_ideal_gas(gas):
    (last,), found = find_condition(config(gas, {"temperature": [100, 400]}, ideal(300, 24**3)), progress=False)
    assert found.reached and len(found.runs) == 2
    assert found.runs[-1].condition == pytest.approx(300, abs=0.1)
    assert found.runs[0].mean == pytest.approx(ideal(200, 24**3), rel=1e-6)
    assert found.runs[0].slope == pytest.approx(ideal(1, 24**3), rel=1e-4)
    assert last.info["mlff_temperature"] == found.runs[-1].condition and last.get_volume() == pytest.approx(24**3)


def test_the_command_finds_the_volume_of_an_ideal_gas(gas):
    settings = config(gas, {"volume": [10000, 20000]}, ideal(200, 17000))
    plain = settings.model_dump(exclude_none=True)
    (gas / "config.yaml").write_text(json.dumps(plain), encoding="utf-8")
    assert load_design(gas / "config.yaml") == settings
    asked = ["design", gas / "config.yaml", "--out", gas / "out.xyz", "--json", gas / "out.json", "-q"]
    outcome = CliRunner().invoke(app, [str(one) for one in asked])
    assert outcome.exit_code == 0, outcome.stderr
    said = json.loads((gas / "out.json").read_text(encoding="utf-8"))
    assert said["reached"] and said["condition"] == pytest.approx(17000, rel=1e-4)
    assert read(gas / "out.xyz").get_volume() == pytest.approx(said["condition"], rel=1e-6)
    assert "mean pressure" in outcome.stderr and "volume, Å³" in outcome.stderr


@pytest.mark.slow
def test_the_end_of_the_range_is_told(gas):
    (last,), found = find_condition(config(gas, {"temperature": [100, 220]}, ideal(300, 24**3)), progress=False)
    assert not found.reached and found.runs[-1].condition == 220 and last.info["design"] == "not_reached"
    assert "free.temperature ends there" in found.notes[0]


def test_bad_configs_are_one_line(gas):
    for free, more, match in (
        ({"temperature": [100, 300], "volume": [1, 2]}, {}, "either temperature or volume"),
        ({"temperature": [300, 100]}, {}, "less than the second"),
        ({"temperature": [300, 400]}, {}, "sampling.temperature: 200 K is outside of free.temperature"),
        ({"temperature": [100, 400]}, {"structure": "atoms.xyz"}, "unknown key 'structure'"),
        ({"temperature": [100, 400], "atoms": "all"}, {}, "unknown key '(free.)?atoms'"),
        ({"volume": [100, 400]}, {"targets": [{"kind": "stress", "error": 1, "values": [0] * 6}]}, "targets"),
    ):
        with pytest.raises(ConfigError, match=match) as error:
            config(gas, free, 1.0, **more)
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="free.volume: the volume of .*atoms.xyz is 13824 Å³, outside"):
        find_condition(config(gas, {"volume": [100, 400]}, 1.0), progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("free", ["temperature", "volume"])
def test_a_longer_run_at_what_was_found_has_the_pressure(tmp_path, free):
    argon = bulk("Ar", a=5.35, cubic=True).repeat(2)
    write(tmp_path / "atoms.xyz", argon)
    potential = lennard_jones(cutoff=8.0, epsilon=0.0104, sigma=3.4)
    potential.save(tmp_path / "model.safetensors")
    sampling = {"temperature": 40.0, "timestep": 4.0, "tau": 400.0, "equilibration": 300, "frames": 60, "every": 20}
    ranges = {"temperature": [10, 80], "volume": [1100, 1300]}
    settings = config(tmp_path, {free: ranges[free]}, 1000.0, sampling=sampling)
    target = settings.targets[0].model_copy(update={"error": 60.0})
    (last,), found = find_condition(settings.model_copy(update={"targets": (target,)}), progress=False)
    assert found.reached
    longer = settings.sampling.model_copy(update={"frames": 150, "temperature": last.info["mlff_temperature"]})
    wide = potential.with_precision("float64")
    with wide.scope():
        ensemble = Ensemble(longer, wide, "float32", last, 7)
        ensemble.sample(wide.device_params)
    pressures = [-np.trace(one.stress) / 3 for one in wide.predict(frames_of(ensemble), stress=True)]
    pressures = (np.array(pressures) + ensemble.kinetic_pressure) / STRESS["bar"]
    error = block_error(pressures) or pressures.std() / np.sqrt(15)
    assert abs(pressures.mean() - 1000.0) < 60.0 + 4 * error


def frames_of(ensemble: Ensemble) -> list[Atoms]:
    found = []
    for positions in ensemble.positions:
        found.append(ensemble.atoms.copy())
        found[-1].positions = positions
    return found
