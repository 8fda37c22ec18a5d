"""The share of one element in another at which a mixture has a wanted mean property."""

import json
import re

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.data import atomic_masses, atomic_numbers
from ase.io import read, write
from typer.testing import CliRunner

from mlff.basics.errors import ConfigError, MLFFError
from mlff.basics.units import DENSITY
from mlff.cli import app
from mlff.config.composition import Composition
from mlff.config.design import load_design, make_design
from mlff.design.composition import Mixtures, find_composition
from mlff.design.composition_outcome import Mixture
from tests.potentials import lennard_jones

SI, CU = (atomic_masses[atomic_numbers[symbol]] for symbol in ("Si", "Cu"))


@pytest.fixture
def lattice(tmp_path):
    """A folder with an fcc cell and a potential that takes all elements for the same."""
    write(tmp_path / "atoms.xyz", bulk("Cu", a=3.7).repeat((2, 2, 2)))
    write(tmp_path / "alone.xyz", Atoms("SiCu", positions=[[0, 0, 0], [0, 0, 2]]))
    held = bulk("Cu", a=3.7).repeat(2)
    held.set_constraint(FixAtoms([0]))
    write(tmp_path / "held.xyz", held)
    lennard_jones(precision="float64").save(tmp_path / "model.safetensors")
    return tmp_path


def config(folder, kind: str, value: float, error: float, pair=("Si", "Cu"), **more) -> Composition:
    target = {"kind": kind, "value": value, "error": error}
    plain = {"model": "model.safetensors", "structure": "atoms.xyz", "free": {"composition": pair}, "targets": [target]}
    return make_design(plain | {"decorations": 2} | more, "test", folder)


def test_the_command_finds_the_density_of_a_lattice_whose_sites_are_alike(lattice):
    pure = find_pure_volume(lattice)
    wanted = (0.7 * SI + 0.3 * CU) / pure / DENSITY["g/cm^3"]
    settings = config(lattice, "density", wanted, 0.2)
    (lattice / "config.yaml").write_text(json.dumps(settings.model_dump()), encoding="utf-8")
    assert load_design(lattice / "config.yaml") == settings
    asked = ["design", lattice / "config.yaml", "--out", lattice / "out.xyz", "--json", lattice / "out.json", "-q"]
    outcome = CliRunner().invoke(app, [str(one) for one in asked])
    assert outcome.exit_code == 0, outcome.stderr
    said = json.loads((lattice / "out.json").read_text(encoding="utf-8"))
    (found,) = said["solutions"]
    assert found["share"] == pytest.approx(0.3, abs=1e-5) and found["error"] < 1e-6
    assert [found[end]["count"] for end in ("lower", "upper")] == [2, 3]
    frames = read(lattice / "out.xyz", ":")
    assert [np.count_nonzero(atoms.numbers == 29) for atoms in frames] == [2, 2, 3, 3]
    assert frames[0].info["mlff_density"] == pytest.approx(found["lower"]["mean"], rel=1e-6)
    assert "0.3000 ± " in outcome.stderr and "share of Cu in Si" in outcome.stderr


def test_sites_that_are_alike_mix_at_no_cost(lattice):
    with pytest.raises(ConfigError, match="no mixture has 5 meV; they have ") as error:
        find_composition(config(lattice, "mixing_energy", 5.0, 0.1), progress=False)
    assert max(abs(float(word)) for word in re.findall(r"(?:have|to) (\S+) \(share", str(error.value))) < 1e-3


def find_pure_volume(folder) -> float:
    """Å³ per atom."""
    settings = config(folder, "volume", 10.0, 0.1)
    potential = lennard_jones(precision="float64")
    mixtures = Mixtures(settings, potential, read(folder / "atoms.xyz"))
    with potential.scope():
        mixtures.measure(0)
    return mixtures.known[0].mean


@pytest.fixture
def property_of_share(lattice, monkeypatch):
    """The property of a mixture is a given function of the share, with noise that is the same whenever it is asked for."""
    looked = []

    def prepare(function, noise: float) -> list[int]:
        def measure(self, count: int) -> None:
            looked.append(count)
            mean = function(count / self.sites) + noise * np.random.default_rng(count).normal()
            self.known[count] = Mixture(count, count / self.sites, mean, noise if 0 < count < self.sites else 0.0)

        monkeypatch.setattr(Mixtures, "measure", measure)
        monkeypatch.setattr(Mixtures, "frames", lambda self, counts: [self._atoms])
        write(lattice / "atoms.xyz", bulk("Cu", a=3.7).repeat((8, 8, 4)))
        return looked

    return prepare


def test_a_curved_property_with_noise_is_met_within_its_error(lattice, property_of_share):
    looked = property_of_share(lambda share: 10 + 5 * share + 2 * share * (1 - share), 0.02)
    wanted = 10 + 5 * 0.4 + 2 * 0.4 * 0.6
    _, outcome = find_composition(config(lattice, "volume", wanted, 0.05), progress=False)
    (found,) = outcome.solutions
    assert abs(found.share - 0.4) < 3 * found.error and found.error == pytest.approx(0.02 / 5.5, rel=0.1)
    assert found.upper.count == found.lower.count + 1
    assert (found.lower.mean - wanted) * (found.upper.mean - wanted) <= 0
    assert len(looked) == len(set(looked)) < 12
    assert outcome.notes == ["distance from the training data not known: no model knows its own"]
    _, unsure = find_composition(config(lattice, "volume", wanted, 0.001), progress=False)
    assert any("raise decorations" in line for line in unsure.notes)


def test_an_energy_of_mixing_is_met_on_both_sides(lattice, property_of_share):
    property_of_share(lambda share: -100 * share * (1 - share), 0.0)
    _, outcome = find_composition(config(lattice, "mixing_energy", -16.0, 1.0), progress=False)
    assert [one.share for one in outcome.solutions] == pytest.approx([0.2, 0.8], abs=1e-4)
    assert "2 shares have the mean" in outcome.notes


def test_a_value_that_no_mixture_has_is_one_line_with_the_span(lattice, property_of_share):
    property_of_share(lambda share: 10 + 5 * share, 0.0)
    with pytest.raises(
        ConfigError, match=r"no mixture has 20 Angstrom\^3; .* 10 \(share 0 of Cu\) to 15 \(share 1 of Cu\)"
    ) as error:
        find_composition(config(lattice, "volume", 20.0, 0.1), progress=False)
    assert "\n" not in str(error.value)


def test_bad_input_is_one_line(lattice):
    for pair, more, match in (
        (("Si", "Xx"), {}, "'Xx' is no element"),
        (("Cu", "Cu"), {}, "two elements are needed"),
        (("Cu", "Au"), {}, "Au, which this potential does not know"),
        (("H", "O"), {}, "0 of its sites hold H or O"),
        (("Si", "Cu"), {"structure": "alone.xyz"}, "periodic in three directions"),
        (("Si", "Cu"), {"structure": "held.xyz"}, "has constraints"),
        (("Si", "Cu"), {"targets": [{"kind": "pressure", "value": 1, "error": 1}]}, "unknown kind 'pressure'"),
        (("Si", "Cu"), {"starts": 4}, "unknown key 'starts'"),
    ):
        with pytest.raises(MLFFError, match=match) as error:
            find_composition(config(lattice, "volume", 12.0, 0.1, pair, **more), progress=False)
        assert "\n" not in str(error.value)
