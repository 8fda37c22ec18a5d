"""`mlff vibrations`, `phonons`, `elastic`, `eos` and `neb` from end to end."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write
from typer.testing import CliRunner

from mlff.cli import app
from mlff.potential.potential import Potential
from tests.potentials import lennard_jones, morse


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def fails(*arguments) -> str:
    code, _, stderr = call(*arguments)
    lines = stderr.splitlines()
    assert code == 1 and len(lines) == 1 and lines[0].startswith("error: "), stderr
    return lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("properties")
    lennard_jones().save(folder / "copper.safetensors")
    morse().save(folder / "bonds.safetensors")
    write(folder / "copper.xyz", bulk("Cu", a=3.55))
    write(folder / "water.xyz", molecule("H2O"))
    return folder


def figures(folder, stem: str) -> dict:
    """What the JSON holds; the picture is there too."""
    assert (folder / f"{stem}.png").stat().st_size > 8_000
    content = json.loads((folder / f"{stem}.json").read_text())
    assert content["model"].endswith(".safetensors") and len(content["fingerprint"]) == 64 and content["distance"] is None
    return content


def outputs(folder, stem: str) -> tuple:
    return "--json", folder / f"{stem}.json", "--plot", folder / f"{stem}.png", "-q"


def test_vibrations(folder):
    model, structure, modes = folder / "bonds.safetensors", folder / "water.xyz", folder / "modes.xyz"
    line = fails("vibrations", model, structure)
    assert "water.xyz: not a minimum" in line and "--relax" in line
    arguments = "vibrations", model, structure, "--relax", "--symmetry", 2, "--modes", modes, *outputs(folder, "vibrations")
    code, out, err = call(*arguments)
    assert code == 0, err
    content = figures(folder, "vibrations")
    assert content["kind"] == "nonlinear" and len(content["wavenumbers_cm1"]) == 3 and content["imaginary"] == 0
    assert f"{content['wavenumbers_cm1'][0]:.1f}" in out and "zero-point energy" in out and "G = H - TS" in out
    assert len(read(modes, ":")) == 48 and read(modes, 0).info["mode"] == 0
    code, _, err = call("vibrations", model, structure, "--relax", "--temperature", 0, "-q")
    assert code == 2 and "--temperature" in err


def test_crystals(folder):
    model, structure = folder / "copper.safetensors", folder / "copper.xyz"
    for command, key in (("eos", "bulk_modulus_gpa"), ("elastic", "cubic_gpa")):
        code, out, err = call(command, model, structure, "--relax", *outputs(folder, command))
        assert code == 0 and not err, err
        assert "GPa" in out and "not known" in out and key in figures(folder, command)
        assert "atom 0 is Xe" in fails(command, model, written(folder, bulk("Xe")), "--relax")
        assert "water.xyz: " in (line := fails(command, model, folder / "water.xyz")) and "three directions" in line
    moduli = figures(folder, "eos")["bulk_modulus_gpa"], figures(folder, "elastic")["bulk_modulus_gpa"]["hill"]
    assert moduli[0] == pytest.approx(moduli[1], rel=0.01)
    code, _, err = call("elastic", model, structure)  # one atom: no force, but a stress
    assert code == 0 and "stress of" in err


def written(folder, atoms):
    write(folder / "other.xyz", atoms)
    return folder / "other.xyz"


def test_phonons(folder):
    pytest.importorskip("phonopy")
    model, structure = folder / "copper.safetensors", folder / "copper.xyz"
    arguments = "--relax", "--supercell", 4, 4, 4, "--temperature", 100, "--temperature", 300, *outputs(folder, "phonons")
    code, out, err = call("phonons", model, structure, *arguments)
    assert code == 0 and not err, err
    content = figures(folder, "phonons")
    assert content["stable"] and content["temperature_k"] == [100, 300] and "THz" in out


def test_neb(folder):
    model, out = folder / "bonds.safetensors", folder / "path.xyz"
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 0.45
    start = Atoms("CSiOH", positions=corners)
    end = start.copy()
    end.positions *= [1, 1, -1]
    write(folder / "ends.xyz", [start, end])
    arguments = "neb", model, folder / "ends.xyz", folder / "ends.xyz", "--start-frame", 0, "--images", 3, "--out", out
    code, printed, err = call(*arguments, "--relax", *outputs(folder, "path"))
    assert code == 0, err
    content = figures(folder, "path")
    assert content["converged"] and content["barrier_ev"] == pytest.approx(content["barrier_back_ev"], abs=1e-3)
    images = read(out, ":")
    energies = np.array([image.info["mlff_energy"] for image in images])
    np.testing.assert_allclose(energies - energies[0], content["energies_ev"], atol=1e-5)
    assert f"{content['barrier_ev']:.4f} eV" in printed and "kJ/mol" in printed
    assert "ends.xyz: not a minimum" in fails(*arguments)
    line = fails("neb", model, folder / "ends.xyz", written(folder, start[[1, 0, 2, 3]]), "--relax")
    assert "ends.xyz, " in line and "atom 0 is C in START and Si in END" in line
    code, _, err = call(*arguments, "--relax", "--steps", 1, "-q")
    assert code == 1 and "not converged after 1 steps" in err and len(read(out, ":")) == 5


def test_far_from_the_training_data_is_said(folder, monkeypatch):
    environments = SimpleNamespace(distances=lambda structure: np.array([0.1, structure.volume - 9.5]))
    potential = replace(lennard_jones(), environments=environments)
    monkeypatch.setattr(Potential, "load", classmethod(lambda cls, path, *options: potential))
    code, out, err = call("eos", folder / "copper.safetensors", folder / "copper.xyz", "--json", folder / "far.json", "-q")
    largest = 1.06 * 3.55**3 / 4 - 9.5
    assert code == 0 and f"{largest:.2g} times as far from the training data as these reach: forces there are a guess" in err
    assert json.loads((folder / "far.json").read_text())["distance"] == pytest.approx(largest) and f"{largest:.2g}" in out
