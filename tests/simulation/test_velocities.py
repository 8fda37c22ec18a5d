"""Velocities of a file: found, with their unit, or an error; and options of dynamics that would have no effect."""

import json

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.constraints import FixAtoms
from ase.io import read, write
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from typer.testing import CliRunner

from mlff.basics.errors import ConfigError, StructureError
from mlff.cli import app
from mlff.simulation.md import run_md
from mlff.simulation.velocities import COLUMNS, take_velocities
from tests.potentials import morse
from tests.simulation.springs import Springs


def moving(temperature=400):
    atoms = molecule("CH3OH")
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=np.random.default_rng(0))
    return atoms


def without_momenta(atoms, **arrays):
    copy = Atoms(atoms.numbers, positions=atoms.positions)
    for name, array in arrays.items():
        copy.set_array(name, array)
    return copy


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_velocities_is_in_angstrom_per_femtosecond(name):
    source = moving()
    atoms = without_momenta(source, **{name: source.get_velocities() * units.fs})
    text, temperature = take_velocities(atoms, rotation_is_kept=True)
    assert text == f"{name} in Å/fs"
    assert np.allclose(atoms.get_momenta(), source.get_momenta(), atol=1e-12)
    assert temperature == pytest.approx(source.get_temperature() * 18 / 15)  # less the center of mass, with rotation


def test_momenta_are_taken_as_they_are_and_constraints_hold():
    atoms = moving()
    before = atoms.get_momenta()
    assert take_velocities(atoms, True)[0] == "momenta" and np.array_equal(atoms.get_momenta(), before)
    atoms.set_constraint(FixAtoms([0]))
    take_velocities(atoms, True)
    assert not atoms.get_momenta()[0].any() and np.array_equal(atoms.get_momenta()[1:], before[1:])


def test_what_are_no_velocities_is_one_line():
    water, v = molecule("H2O"), np.full((3, 3), 0.01) * [[1], [-1], [0]]
    for atoms, message in (
        (without_momenta(water), "none to keep: no momenta and no column velo, vel, velocity, velocities"),
        (without_momenta(water, momenta=np.zeros((3, 3))), "none to keep"),
        (without_momenta(water, vel=np.zeros((3, 3))), "vel in Å/fs: those of atoms that may move are all zero"),
        (without_momenta(water, vel=v, velocities=v), "vel and velocities are both there"),
        (without_momenta(water, vel=np.ones(3)), r"vel has the shape \(3,\) where \(3, 3\) is expected"),
        (without_momenta(water, velo=v * 1000), "velo in Å/fs: .* K; are they in another unit"),
        (without_momenta(water, vel=v * np.nan), "vel has values that are not finite"),
    ):
        with pytest.raises(StructureError, match=f"velocities: {message}"):
            run_md(atoms, Springs(water), keep_velocities=True, progress=False)


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("velocities"), moving()
    for name in ("vel", "velocities"):
        write(folder / f"{name}.xyz", without_momenta(source, **{name: source.get_velocities() * units.fs}))
    write(folder / "none.xyz", without_momenta(source))
    morse().save(folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["vel", "velocities"])
def test_the_command_starts_with_the_velocities_of_the_file(folder, name):
    out, file = folder / f"{name}.md.traj", folder / f"{name}.xyz"
    command = ["md", folder / "model.safetensors", file, "--ensemble", "nve", "--timestep", 0.2, "--quiet", "--out", out]
    code, stderr = call(*command, "--steps", 10, "--keep-velocities")
    assert code == 0, stderr
    first = json.loads(out.with_suffix(".jsonl").read_text().splitlines()[0])
    assert first["temperature_k"] == pytest.approx(moving().get_temperature() * 18 / 15, rel=1e-4)
    assert f"note: velocities of {file}: {name} in Å/fs, {first['temperature_k']:.0f} K" in stderr
    assert np.allclose(read(out, 0).get_velocities(), moving().get_velocities(), atol=1e-6)
    assert call(*command, "--steps", 20, "--keep-velocities", "--restart")[0] == 0  # the same command goes on


def test_without_velocities_the_command_says_so_before_anything(folder):
    command = ["md", folder / "model.safetensors", folder / "none.xyz", "--out", folder / "n.traj", "--keep-velocities"]
    code, stderr = call(*command)
    assert code == 1 and "none.xyz, structure -1: velocities: none to keep" in stderr and stderr.count("\n") == 1
    assert "takes velocities in Å/fs, not in Bohr" in call(*command, "--length", "Bohr")[1]
    assert not (folder / "n.traj").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pressure": 0.0}, "pressure has no effect in the ensemble nvt: leave it out, or choose npt"),
        ({"tau_pressure": 500.0}, "tau_pressure has no effect in the ensemble nvt"),
        ({"barostat": "full"}, "barostat has no effect in the ensemble nvt: leave it out, or choose npt"),
        ({"pressure_end": 1.0}, "pressure_end has no effect in the ensemble nvt: leave it out, or choose npt"),
        ({"ensemble": "nve", "temperature_end": 500.0}, "temperature_end has no effect in the ensemble nve"),
        ({"temperature_end": 500.0, "steps": 0}, "a ramp of temperature or pressure needs at least one step"),
        ({"temperature_end": 500.0}, "the engine ase has no ramps of temperature or pressure, and jax cannot do this"),
        ({"temperature_end": 0.0}, "nvt needs a temperature above 0 K"),
        ({"timestep": 2.1}, r"a time step of 2.1 fs is too long for H 2 of 1.01 amu: take 0.5 fs, at most 2"),
        ({"ensemble": "nve", "tau": 50.0}, "tau has no effect in the ensemble nve: leave it out, or choose nvt or npt"),
        ({"ensemble": "nve", "thermostat": "bussi"}, "thermostat has no effect in the ensemble nve"),
        (
            {"ensemble": "npt", "thermostat": "bussi"},
            "thermostat has no effect in the ensemble npt: leave it out, or choose nvt",
        ),
        (
            {"ensemble": "nve", "temperature": 300.0, "keep_velocities": True},
            "temperature has no effect in the ensemble nve",
        ),
        ({"ensemble": "nve", "seed": 1, "keep_velocities": True}, "seed has no effect in the ensemble nve"),
        ({"seed": -1}, "seed must not be negative"),
    ],
    ids=str,
)
def test_options_without_effect_are_an_error(options, message):
    with pytest.raises(ConfigError, match=message):
        run_md(moving(), Springs(moving()), progress=False, **options)


def test_options_without_effect_on_the_command_line(folder):
    model, water, out = folder / "model.safetensors", folder / "none.xyz", folder / "o.traj"
    for arguments, message in (
        (["md", model, water, "--out", out, "--pressure", 0], "pressure has no effect in the ensemble nvt"),
        (["md", model, water, "--out", out, "--restart", "--force"], "leave one of them out"),
        (["md", model, water, "--out", out, "--restart"], "no state to restart from"),
        (["relax", model, water, "--pressure", 1, "--out", folder / "r.xyz"], "add cell"),
        (["relax", model, water, "--pressure", 0, "--out", folder / "r.xyz"], "add cell"),
        (["relax", model, water, "--cell", "--out", folder / "r.xyz"], "periodic in three directions"),
        (["certify", model, "--length", 10], "--length has no effect without --full"),
        (["certify", model, "--key", "energy=E"], "--key has no effect without structures"),
        (["info", model, "--unit", "energy=eV"], "--unit has no effect on a model"),
    ):
        code, stderr = call(*arguments)
        assert code == 1 and message in stderr and stderr.count("\n") == 1, stderr
