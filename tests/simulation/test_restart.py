"""A restart goes on as if there had been one run: constraints, masses, settings; what differs is refused."""

import numpy as np
import pytest
from ase.build import molecule
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedPlane,
    FixInternals,
    FixLinearTriatomic,
    Hookean,
    MirrorForce,
)
from ase.io import read, write
from typer.testing import CliRunner

from mlff.basics.errors import ConfigError, DataError, StructureError
from mlff.cli import app
from mlff.simulation.md import run_md
from mlff.simulation.record import load_state, save_state, state_path
from tests.conftest import loaded_once
from tests.potentials import morse
from tests.simulation.springs import Springs

CONSTRAINTS = {
    "FixAtoms": lambda: FixAtoms([0, 1, 2]),
    "FixCartesian": lambda: FixCartesian([1], [True, False, True]),
    "FixedLine": lambda: FixedLine([1], [1, 1, 0]),
    "FixedPlane": lambda: FixedPlane([0, 4], [0, 1, 1]),
    "FixBondLengths": lambda: FixBondLengths([[0, 1], [0, 2]]),
    "FixCom": FixCom,
    "Hookean": lambda: Hookean(0, 1, 5.0, 1.2),
    "none": lambda: None,
}
ENSEMBLES = [{"ensemble": "nve"}, {"thermostat": "langevin"}, {"thermostat": "bussi"}]


def ethanol(constraint=None):
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=3)
    atoms.set_masses([2.014 if symbol == "H" else None for symbol in atoms.symbols])
    atoms.set_initial_charges(np.linspace(-0.1, 0.1, len(atoms)))
    atoms.set_constraint(constraint)
    return atoms


def simulate(atoms, **options):
    return run_md(atoms, Springs(molecule("CH3CH2OH")), **{"progress": False, "interval": 5} | options)


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("options", ENSEMBLES, ids=str)
def test_with_constraints_it_is_bitwise_the_same(tmp_path, name, options):
    whole, first, again = (ethanol(CONSTRAINTS[name]()) for _ in range(3))
    simulate(whole, steps=20, trajectory=tmp_path / "whole.traj", **options)
    for steps, atoms in ((10, first), (20, again)):
        simulate(atoms, steps=steps, trajectory=tmp_path / "parts.traj", restart=steps == 20, **options)
    assert np.array_equal(again.positions, whole.positions) and np.array_equal(again.get_momenta(), whole.get_momenta())
    assert not np.allclose(first.positions, again.positions)
    start = ethanol()
    if name == "FixAtoms":
        assert np.array_equal(again.positions[:3], start.positions[:3])
    if name == "FixBondLengths":
        assert again.get_distance(0, 1) == pytest.approx(start.get_distance(0, 1), abs=1e-10)
    assert len(again.constraints) == (name != "none")  # as the structure came


def test_the_energy_is_conserved_with_every_constraint_that_is_let_pass(tmp_path):
    for make in CONSTRAINTS.values():
        assert abs(simulate(ethanol(make()), ensemble="nve", steps=400, timestep=0.2).drift) < 2
    carbon_dioxide = molecule("CO2")
    carbon_dioxide.set_constraint(FixLinearTriatomic([(1, 0, 2)]))
    for steps in (30, 60):
        run_md(
            carbon_dioxide,
            Springs(molecule("CO2")),
            steps=steps,
            trajectory=tmp_path / "co2.traj",
            restart=steps == 60,
            progress=False,
        )
    assert carbon_dioxide.get_angle(1, 0, 2) == pytest.approx(180, abs=1e-4)


def test_constraints_that_dynamics_cannot_keep_are_refused_by_name(tmp_path):
    water = molecule("H2O")
    for constraint in (FixInternals(bonds=[[1.0, [0, 1]]]), MirrorForce(0, 1)):
        water.set_constraint(constraint)
        with pytest.raises(StructureError, match=f"dynamics cannot keep the constraint {type(constraint).__name__}"):
            run_md(water, Springs(water), trajectory=tmp_path / "a.traj")
    assert not list(tmp_path.iterdir())


CHANGES = {
    "constraints": lambda atoms: atoms.set_constraint(FixAtoms([0, 1])),
    "masses": lambda atoms: atoms.set_masses("defaults"),
    "initial charges": lambda atoms: atoms.set_initial_charges(None),
    "initial magmoms": lambda atoms: atoms.set_initial_magnetic_moments(np.ones(9)),
    "tags": lambda atoms: atoms.set_tags(range(9)),
    "pbc": lambda atoms: (atoms.set_cell([9, 9, 9]), atoms.set_pbc(True)),
    "cell": lambda atoms: atoms.set_cell([9, 9, 9]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_structure_that_differs_from_that_of_the_first_run_is_an_error(tmp_path, name):
    out = tmp_path / "a.traj"
    simulate(ethanol(FixAtoms([0])), steps=5, trajectory=out)
    before, other = out.read_bytes(), ethanol(FixAtoms([0]))
    CHANGES[name](other)
    with pytest.raises(DataError, match=f"a.state.npz: the earlier run had other ({name}|cell) than the structure has now"):
        simulate(other, steps=10, trajectory=out, restart=True)
    assert out.read_bytes() == before


def test_bond_lengths_of_ones_own_are_part_of_the_constraint(tmp_path):
    out, held = tmp_path / "a.traj", ethanol().get_distance(0, 1)
    simulate(ethanol(FixBondLengths([[0, 1]])), steps=5, trajectory=out)
    with pytest.raises(DataError, match="other constraints"):
        simulate(
            ethanol(FixBondLengths([[0, 1]], bondlengths=np.array([held + 0.1]))), steps=10, trajectory=out, restart=True
        )
    simulate(ethanol(FixBondLengths([[0, 1]], bondlengths=np.array([held]))), steps=10, trajectory=out, restart=True)


def test_what_is_not_said_is_as_in_the_earlier_run(tmp_path):
    start = ethanol()
    options = {"temperature": 500.0, "timestep": 0.2, "tau": 30.0, "seed": 4, "interval": 4}
    run = {"progress": False, "trajectory": tmp_path / "a.traj"}
    whole, parts = start.copy(), start.copy()
    run_md(whole, Springs(start), steps=24, **options, progress=False)
    run_md(start.copy(), Springs(start), steps=12, **options, **run)
    run_md(parts, Springs(start), steps=24, restart=True, **run)
    assert np.array_equal(parts.positions, whole.positions) and len(read(tmp_path / "a.traj", ":")) == 7
    with pytest.raises(ConfigError, match="had seed 4; leave seed out"):
        run_md(start.copy(), Springs(start), steps=30, seed=5, restart=True, **run)
    with pytest.raises(ConfigError, match="which were drawn; leave keep_velocities out"):
        run_md(start.copy(), Springs(start), steps=30, keep_velocities=True, restart=True, **run)
    with pytest.raises(ConfigError, match="has done 24 steps; ask for more than that in all, not 20"):
        run_md(start.copy(), Springs(start), steps=20, restart=True, **run)
    run_md(start.copy(), Springs(start), steps=28, restart=True, **options | {"temperature": 600.0}, **run)  # heated on


def test_a_state_of_an_older_version_is_refused(tmp_path):
    out = tmp_path / "a.traj"
    simulate(ethanol(), steps=5, trajectory=out)
    state = load_state(state_path(out))
    del state["masses"]
    save_state(state_path(out), state)
    with pytest.raises(DataError, match="'masses' is missing from the state .* start without restart"):
        simulate(ethanol(), steps=10, trajectory=out, restart=True)


def test_fixed_atoms_of_a_file_stay_fixed_from_the_command_line(tmp_path):
    morse().save(tmp_path / "model.safetensors")
    fixed, bond = molecule("CH3OH"), molecule("CH3OH")
    fixed.set_constraint(FixAtoms([0, 1]))
    bond.set_constraint(FixBondLengths([[0, 1]]))
    write(tmp_path / "fix.xyz", fixed)  # as the column move_mask
    write(tmp_path / "bond.traj", bond)
    for name in ("fix.xyz", "bond.traj"):
        out = tmp_path / f"{name}.md.traj"
        command = ["md", tmp_path / "model.safetensors", tmp_path / name, "--out", out, "--timestep", 0.2, "--quiet"]
        with loaded_once({}):
            for steps, more in ((20, []), (40, ["--restart"])):
                result = CliRunner().invoke(app, [str(word) for word in [*command, "--steps", steps, *more]])
                assert result.exit_code == 0, result.stderr
        start, end = read(tmp_path / name), read(out, -1)
        assert end.get_distance(0, 1) == pytest.approx(start.get_distance(0, 1), abs=1e-9)
        assert np.allclose(end.positions[:2], start.positions[:2], atol=1e-9) == (name == "fix.xyz")
        assert not np.allclose(end.positions[2:], start.positions[2:], atol=1e-3)
