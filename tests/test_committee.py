"""A committee gives the mean of its members and how far they lie apart, from one file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, molecule
from safetensors import safe_open
from safetensors.numpy import save
from typer.testing import CliRunner

from mlff.basics.errors import ModelFileError
from mlff.cli import app
from mlff.data.structure import Structure
from mlff.interfaces.ase import MLFFCalculator
from mlff.models import registry
from mlff.models.parameters import initial_params
from mlff.potential import selfcheck
from mlff.potential.committee import committee
from mlff.potential.potential import Potential
from tests.conftest import ELEMENTS, MODELS, make_potential


def member(seed: int, precision: str = "float64") -> Potential:
    potential = make_potential("schnet", precision)
    module = registry.build(MODELS["schnet"], ELEMENTS, potential.statistics)
    return replace(potential, params=initial_params(module, seed))


@pytest.fixture(scope="module")
def members() -> list[Potential]:
    return [member(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def together(members) -> Potential:
    entries = selfcheck.record(members[0], [Structure.from_atoms(molecule("CH3OH")), Structure.from_atoms(bulk("Si"))])
    return committee([replace(m, metadata={selfcheck.KEY: entries}) for m in members])


def test_results_are_means_and_standard_deviations(members, together, ethanol, silicon):
    structures = [ethanol, silicon]
    each = [m.predict(structures, stress=True) for m in members]
    for index, result in enumerate(together.predict(structures, stress=True)):
        for name in ("energy", "energies", "forces"):
            values = np.array([getattr(e[index], name) for e in each])
            np.testing.assert_allclose(getattr(result, name), values.mean(0), atol=1e-10)
            if name != "energies":
                np.testing.assert_allclose(getattr(result, f"{name}_std"), values.std(0, ddof=1), atol=1e-10)
    np.testing.assert_allclose(result.stress, np.mean([e[1].stress for e in each], axis=0), atol=1e-12)
    assert members[0].predict([ethanol])[0].forces_std is None


@pytest.mark.slow
def test_hessian_is_the_mean(members, together, ethanol):
    np.testing.assert_allclose(together.hessian(ethanol), np.mean([m.hessian(ethanol) for m in members], axis=0), atol=1e-9)


def test_one_file_and_one_calculator(together, ethanol, tmp_path):
    together.save(tmp_path / "committee.safetensors")
    loaded = Potential.load(tmp_path / "committee.safetensors")
    assert loaded.members == 3 and loaded.fingerprint == together.fingerprint and len(loaded.reference_structures) == 2
    ethanol.calc = MLFFCalculator(tmp_path / "committee.safetensors")
    (expected,) = together.predict([ethanol])
    np.testing.assert_allclose(ethanol.get_forces(), expected.forces, atol=1e-9)
    assert ethanol.calc.get_property("energy_std", ethanol) == pytest.approx(expected.energy_std)
    np.testing.assert_allclose(ethanol.calc.get_property("forces_std", ethanol), expected.forces_std, atol=1e-9)
    assert ethanol.calc.get_potential_energy() == pytest.approx(expected.energy)
    assert ethanol.calc.get_property("forces_std", ethanol[:0]).shape == (0, 3)
    assert "forces_std" not in MLFFCalculator.implemented_properties


def test_forces_are_the_derivative_of_the_mean_energy(together, ethanol):
    (result,) = together.predict([ethanol])
    h, moved = 1e-4, [ethanol.copy() for _ in range(4)]
    for atoms, steps in zip(moved, (2, 1, -1, -2), strict=True):
        atoms.positions[2, 1] += steps * h
    slope = np.array([r.energies.sum() for r in together.predict(moved)]) @ [-1, 8, -8, 1] / (12 * h)
    assert -slope == pytest.approx(result.forces[2, 1], rel=1e-6)


def test_float32_and_float64_agree(together, ethanol):
    (double,), (single,) = together.predict([ethanol]), together.with_precision("float32").predict([ethanol])
    np.testing.assert_allclose(single.forces, double.forces, atol=2e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: [m[0]], "at least two"),
        (lambda m: [m[0], replace(m[1], baseline={**m[1].baseline, 1: -0.6})], "potential 1: its baseline differs"),
        (lambda m: [m[0], m[1], m[0]], "potential 2: has the weights of potential 0"),
        (lambda m: [m[0], replace(m[1], precision="float32")], "its precision differs"),
        (lambda m: [m[0], make_potential("ace_messages2", "float64")], "its config differs"),
        (lambda m: [committee(m), m[0]], "is a committee already"),
    ],
)
def test_members_that_do_not_fit_are_named(members, change, message):
    with pytest.raises(ModelFileError, match=message):
        committee(change(members))


def test_command(members, ethanol, tmp_path):
    files = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    for file, potential in zip(files, members, strict=False):
        potential.save(file)
    out = tmp_path / "both.safetensors"
    result = CliRunner().invoke(app, ["committee", *files, "--out", str(out), "--no-certify", "--quiet"])
    assert result.exit_code == 0, result.output
    assert Potential.load(out).members == 2
    ethanol.write(tmp_path / "in.xyz")
    result = CliRunner().invoke(app, ["predict", str(out), str(tmp_path / "in.xyz"), str(tmp_path / "out.xyz"), "--quiet"])
    assert result.exit_code == 0 and "mlff_forces_std" in (tmp_path / "out.xyz").read_text()
    result = CliRunner().invoke(app, ["info", str(out)])
    assert result.exit_code == 0 and "members" in result.output
    result = CliRunner().invoke(app, ["committee", *files, "--out", files[0]])
    assert result.exit_code != 0 and Potential.load(files[0]).members == 1, "an input is not overwritten"


@pytest.mark.parametrize("count", [0, -1, 2, 10**9, 3.0, True, "3", None])
def test_a_file_that_promises_other_members_is_refused(together, tmp_path, count):
    path = tmp_path / "committee.safetensors"
    together.save(path)
    with safe_open(path, framework="numpy") as file:
        header, tensors = json.loads(file.metadata()["mlff"]), {name: file.get_tensor(name) for name in file.keys()}
    path.write_bytes(save(tensors, metadata={"mlff": json.dumps(header | {"members": count})}))
    with pytest.raises(ModelFileError, match="members|has shape"):
        Potential.load(path, verify=False)
