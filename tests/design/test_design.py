"""Inverse design: gradients, the least energy, agreement with finite differences, targets out of reach, wrong input."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLength
from ase.io import read, write
from ase.units import GPa
from typer.testing import CliRunner

from mlff.basics.errors import ConfigError, MLFFError
from mlff.cli import app
from mlff.config.design import load_design, make_design
from mlff.config.options import LennardJones, Morse
from mlff.design.design import design
from mlff.design.outcome import Candidate, Goal, Outcome, explain, merged
from mlff.design.problem import Problem, Pull
from mlff.design.search import FLAT, REACHED, Found, Search
from mlff.design.space import Space
from mlff.design.targets import make_properties, stress_untested
from mlff.potential.potential import Potential
from tests.conftest import make_potential
from tests.potentials import BASELINE

STEP = 1e-5  #: of x, for finite differences


def bonds(r0: float, depth: float = 1.0, elements: tuple[int, ...] = tuple(BASELINE)) -> Potential:
    """A Morse potential of a molecule in one of its states."""
    options = Morse(cutoff=4.0, depth=depth, stiffness=1.5, r0=r0)
    return Potential(options, {}, elements, {z: BASELINE[z] for z in elements}, precision="float64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models of two states, a crystal and its model, structures."""
    place = tmp_path_factory.mktemp("design")
    bonds(1.2).save(place / "ground.safetensors")
    bonds(1.35, 0.8).save(place / "excited.safetensors")
    bonds(1.35, elements=(1, 6)).save(place / "few.safetensors")
    silicon = LennardJones(cutoff=4.5, epsilon=0.4, sigma=2.2)
    Potential(silicon, {}, tuple(BASELINE), dict(BASELINE), precision="float64").save(place / "solid.safetensors")
    write(place / "pair.xyz", Atoms("OH", [[0, 0, 0], [0, 0, 1.1]]))
    water = molecule("H2O")
    water.rattle(0.05, seed=1)
    write(place / "water.xyz", water)
    write(place / "solid.xyz", bulk("Cu", a=3.4))
    return place


def config(folder, **more):
    plain = {"model": "ground.safetensors", "structure": "pair.xyz", "starts": 1, "energy_limit": 2.0}
    return make_design(plain | more, "test", folder)


def gap(**more) -> dict:
    return {"kind": "energy_gap", "model": "excited.safetensors", "error": 0.001} | more


def problem_of(case: str, folder) -> tuple[Problem, np.ndarray, Pull]:
    """A problem, a place, and a pull in each of the cases that the gradient has."""
    relaxed = {"free": {"cell": "all"}, "targets": [{"kind": "stress", "values": [0.1] * 6, "error": 10.0}]}
    settings = {
        "atoms": config(folder, structure="water.xyz", free={"atoms": [1, 2]}, targets=[gap(value=0.5)]),
        "cell": config(folder, **relaxed),
        "strain of two": config(
            folder,
            free={"cell": ["xx", "xy"], "relax": False},
            targets=[{"kind": "energy_difference", "structure": str(folder / "two.xyz"), "value": 1.0, "error": 0.1}],
        ),
    }[case]
    if case == "atoms":
        atoms, potential = read(folder / "water.xyz"), bonds(1.2)
    else:
        atoms = bulk("Cu", a=3.6, cubic=True) if case != "cell" else bulk("Cu", "hcp", a=2.47, c=4.03)  # which moves inside
        atoms.rattle(0.02, seed=2)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + [[0.01, 0.02, 0], [0, 0, 0.01], [0, 0, -0.01]]), scale_atoms=True)
        other = bulk("Cu", a=3.7, cubic=True)
        other.rattle(0.05, seed=4)
        write(folder / "two.xyz", other)
        potential = Potential.load(folder / "solid.safetensors")
    with potential.scope():
        properties = make_properties(settings, potential, atoms)
        problem = Problem(potential, properties, Space(atoms, settings.free))
    m = len(problem.errors)
    x = np.random.default_rng(0).normal(size=problem.space.size, scale=0.3)
    return problem, x, Pull(np.full(m, 0.3), np.linspace(0.2, 0.4, m), 0.5)


@pytest.mark.parametrize("case", ["atoms", "cell", "strain of two"])
def test_gradients_agree_with_finite_differences(case, folder):
    problem, x, pull = problem_of(case, folder)
    along = np.random.default_rng(1).normal(size=len(x))
    with problem.potential.scope():
        found = problem.at(x, pull).gradient @ along
        high, low = (problem.at(x + sign * STEP * along, pull).objective for sign in (1, -1))
    assert found == pytest.approx((high - low) / (2 * STEP), rel=1e-5) and abs(found) > 1e-3


@pytest.fixture(scope="module")
def pair(folder):
    """A search for the bond length that gives a gap."""
    settings, potential, atoms = config(folder, targets=[gap(value=0.0)]), bonds(1.2), read(folder / "pair.xyz")
    with potential.scope():
        problem = Problem(potential, make_properties(settings, potential, atoms), Space(atoms, settings.free))
        return Search(problem)


def searched(search: Search, change: float, limit: float) -> tuple[Found, float, str | None]:
    """What a search comes to, the bond length there (Å), and why it is not what was wanted."""
    with search.problem.potential.scope():
        found = search.run(search.values + change, limit)
    goal = Goal("energy gap", "eV", (search.values + change).tolist(), 0.001, search.values.tolist())
    length = search.problem.space.structure(found.x).get_distance(0, 1)
    return found, length, explain(found, search.problem.properties, [goal], limit)


def test_a_bond_has_the_length_that_gives_the_gap(pair):
    """Where the two curves lie so far apart."""
    lengths = np.linspace(1.15, 1.9, 751)
    frames = [Atoms("OH", [[0, 0, 0], [0, 0, length]]) for length in lengths]
    ground, excited = (np.array([r.energy for r in one.predict(frames)]) for one in (bonds(1.2), bonds(1.35, 0.8)))
    lowest, gaps = ground.argmin(), excited - ground
    found, length, why = searched(pair, -0.2, 2.0)
    assert pair.values[0] == pytest.approx(gaps[lowest], abs=1e-3) and why is None and found.end == REACHED
    assert length == pytest.approx(np.interp(pair.values[0] - 0.2, gaps[::-1], lengths[::-1]), abs=5e-4)


def test_a_target_out_of_reach_is_said(pair):
    """The limit of the energy."""
    found, _, why = searched(pair, -0.5, 0.05)
    with pair.problem.potential.scope():
        energy = pair.problem.at(found.x, Pull(*np.zeros((2, 1)), 0.0)).energy - pair.energy
    assert "energy limit of 0.05 eV forbids it" in why and 0.045 < energy <= 0.05 < found.stopped_energy


@pytest.mark.slow
def test_a_property_that_has_no_such_value_is_said(pair):
    """The gap has its least value where the atoms are apart."""
    found, _, why = searched(pair, -5.0, 50.0)
    assert "nothing that is free brings it nearer" in why and found.end == FLAT


def test_what_is_found_has_the_least_energy(folder):
    """There the forces are a multiple of the gradient of the gap: no way leads down along which the gap stays."""
    settings = config(folder, structure="water.xyz", targets=[gap(change=-0.3)], starts=3)
    (_, found, *_), outcome = design(settings, progress=False)
    first, second = (one.predict([found])[0].forces.ravel() for one in (bonds(1.2), bonds(1.35, 0.8)))
    slope = second - first
    assert outcome.reached and np.abs(first).max() > 0.1
    assert np.abs(first - slope * (first @ slope) / (slope @ slope)).max() < 0.01
    assert sum(len(one.starts) for one in outcome.candidates) == 3


def test_a_pressure_is_that_of_the_equation_of_state(folder):
    target = {"kind": "pressure", "value": 20.0, "unit": "kbar", "error": 0.1}
    settings = config(folder, structure="solid.xyz", free={"cell": "volume", "atoms": "none"}, targets=[target])
    solid, atoms = Potential.load(folder / "solid.safetensors"), read(folder / "solid.xyz")
    with solid.scope():
        properties = make_properties(settings, solid, atoms)
        problem = Problem(solid, properties, Space(atoms, settings.free))
        found = Search(problem).run(np.array([20.0]), 2.0)
        places = [found.x - 1e-3, found.x + 1e-3]
        energies = [problem.at(x, Pull(*np.zeros((2, 1)), 0.0)).energy for x in places]
    volumes = [problem.space.structure(x).get_volume() for x in places]
    assert found.end == REACHED and -np.diff(energies)[0] / np.diff(volumes)[0] / GPa == pytest.approx(2.0, abs=0.01)
    assert not stress_untested(solid)
    solid.metadata["errors"] = {"validation": {"stress_components": 0}}
    assert stress_untested(solid)


def test_fixed_atoms_stay(folder):
    water = read(folder / "water.xyz")
    water.set_constraint(FixAtoms([0]))
    write(folder / "fixed.xyz", water)
    settings = config(folder, structure="fixed.xyz", free={"atoms": [0, 2]}, targets=[gap(change=-0.05)])
    (_, found), outcome = design(settings, progress=False)
    assert outcome.reached and np.abs(found.positions - water.positions)[:2].max() < 1e-6 < 1e-3
    assert np.abs(found.positions - water.positions)[2].max() > 1e-3


WRONG = {
    "unknown kind": ({"targets": [{"kind": "colour"}]}, "unknown kind 'colour'; known: energy_gap"),
    "unit": ({"targets": [gap(value=1.0, unit="K")]}, "targets.0.unit"),
    "value and change": ({"targets": [gap(value=1.0, change=1.0)]}, "either value or change"),
    "cell": ({"free": {"cell": "lengths"}, "targets": [gap(value=1.0)]}, "'none', 'volume' or 'all' or a list"),
    "no error bar": ({"targets": [{"kind": "pressure", "value": 1.0}]}, "targets.0.error' is missing"),
    "nothing free": ({"free": {"atoms": "none"}, "targets": [gap(value=1.0)]}, "neither atoms nor cell may change"),
    "no cell free": ({"targets": [{"kind": "pressure", "value": 1.0, "error": 1.0}]}, "needs a cell that may change"),
    "displaced": (
        {"free": {"cell": "all", "relax": False}, "targets": [{"kind": "stress", "values": [0.0] * 6, "error": 1.0}]},
        "must come to rest",
    ),
    "no cell": (
        {"free": {"cell": "volume"}, "targets": [{"kind": "pressure", "value": 1.0, "error": 1.0}]},
        r"pair.xyz: free.cell needs a cell that is periodic",
    ),
    "same model": ({"targets": [gap(value=1.0, model="ground.safetensors")]}, "is the same as .*gap is 0 everywhere"),
    "elements": (
        {"targets": [gap(value=1.0, model="few.safetensors")]},
        r"targets.0 \(energy_gap\): .*pair.xyz: atom 0 is O, which this potential does not know",
    ),
    "no model": ({"targets": [gap(value=1.0, model="none.safetensors")]}, r"targets.0 \(energy_gap\): .*none.safetensors"),
    "other atoms": (
        {"targets": [{"kind": "energy_difference", "structure": "water.xyz", "value": 1.0, "error": 1.0}]},
        "has H2O, .*pair.xyz HO; an energy difference needs the same atoms",
    ),
    "no atom": ({"free": {"atoms": [7]}, "targets": [gap(value=1.0)]}, "has no atom 7; its 2 atoms"),
    "no frame": ({"frame": 3, "targets": [gap(value=1.0)]}, "has no structure number 3"),
    "key": ({"startz": 1, "targets": [gap(value=1.0)]}, "unknown key 'startz'; did you mean 'starts'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(name, folder):
    more, message = WRONG[name]
    with pytest.raises(MLFFError, match=message) as error:
        design(config(folder, **more), progress=False)
    assert "\n" not in str(error.value)


def test_other_constraints_are_refused(folder):
    free = SimpleNamespace(atoms="all", cell="none", relaxed=False)
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1]], constraint=FixBondLength(0, 1))
    with pytest.raises(MLFFError, match="constraint FixBondLengths; design knows FixAtoms only"):
        Space(atoms, free)
    atoms.set_constraint(FixAtoms([0, 1]))
    with pytest.raises(ConfigError, match="FixAtoms of structure holds all of them"):
        Space(atoms, free)


def test_the_command_writes_what_was_found(folder, tmp_path):
    text = (
        "model: ground.safetensors\nstructure: pair.xyz\nstarts: 2\n"
        "targets: [{kind: energy_gap, model: excited.safetensors, change: -50, unit: meV, error: 1}]\n"
    )
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    assert load_design(folder / "c.yaml").structure == str(folder / "pair.xyz")
    out, plain = tmp_path / "found.xyz", tmp_path / "found.json"
    result = CliRunner().invoke(app, ["design", str(folder / "c.yaml"), "--out", str(out), "--json", str(plain), "-q"])
    assert result.exit_code == 0, result.stderr
    frames, content = read(out, ":"), json.loads(plain.read_text(encoding="utf-8"))
    assert [frame.info["design"] for frame in frames] == ["minimum", "reached"]
    assert content["candidates"][0]["starts"] == [0, 1] and content["goals"][0]["unit"] == "meV"
    assert "frame 1, reached" in result.stderr and "not known" in result.stderr  # these models know no training data
    result = CliRunner().invoke(app, ["design", str(folder / "c.yaml"), "--out", str(folder / "pair.xyz")])
    assert result.exit_code == 1 and "is an input and would be overwritten" in result.stderr


def test_what_is_doubtful_is_said():
    goals = (Goal("energy gap", "eV", [1.0], 0.1, [0.5]),)
    one = Candidate(False, [0], 0.2, [[0.7]], [3.0], 1.5, "because")
    notes = Outcome(0.5, 10, True, goals, (one,)).notes
    assert notes[0] == "not reached: because" and "no stresses" in notes[1] and "distance 1.5" in notes[2]
    other = Candidate(True, [1], 0.2, [[1.0]], [0.0], 0.5, None)
    third = Candidate(True, [2], 0.2001, [[1.001]], [0.0], 0.5, None)
    kept = merged([(one, "a"), (third, "c"), (other, "b")], list(goals))
    assert [atoms for _, atoms in kept] == ["b", "a"] and kept[0][0].starts == [1, 2]
    assert Outcome(0.5, 10, False, goals, (other,)).notes == []
    lower = Candidate(True, [3], -0.1, [[1.0]], [0.0], 0.5, None)
    assert "less energy than the minimum" in Outcome(0.5, 10, False, goals, (lower,)).notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["schnet", "ace", "ace_l3"])
def test_gradients_of_other_models(name, folder):
    potential = make_potential(name, "float64")
    make_potential("morse", "float64").save(folder / "other.safetensors")
    stress = {"kind": "stress", "values": [0.0] * 6, "error": 50.0}
    for free, target in (({}, gap(model="other.safetensors", value=1.0)), ({"cell": "all", "atoms": "none"}, stress)):
        atoms = bulk("Si") if "cell" in free else molecule("H2O")
        atoms.rattle(0.05, seed=1)
        settings = config(folder, free=free, targets=[target])
        with potential.scope():
            problem = Problem(potential, make_properties(settings, potential, atoms), Space(atoms, settings.free))
            x, along = np.random.default_rng(1).normal(size=(2, problem.space.size), scale=0.2)
            pull = Pull(np.zeros(len(problem.errors)), np.full(len(problem.errors), 0.3), 0.1)
            found = problem.at(x, pull).gradient @ along
            high, low = (problem.at(x + sign * STEP * along, pull).objective for sign in (1, -1))
        assert found == pytest.approx((high - low) / (2 * STEP), rel=1e-4)
