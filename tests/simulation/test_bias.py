"""Restraints and metadynamics: canonical distributions, free energies in closed form, restarts, and one program for all."""

import ase
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from scipy.stats import kstest, norm

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError, DataError
from mlff.basics.units import KB
from mlff.config.bias import load_bias, make_bias
from mlff.properties.analysis import read_log
from mlff.properties.free_energy import free_energy
from mlff.simulation import compiled_loop
from mlff.simulation.guard import Limits
from mlff.simulation.hills import hills_path, read_hills
from mlff.simulation.md import run_md
from mlff.simulation.record import load_state, state_path
from mlff.simulation.replica_run import replica_path, run_replicas
from tests.pages import ROOT
from tests.potentials import lennard_jones, morse

OPTIONS = {"timestep": 5.0, "tau": 50.0, "progress": False, "engine": "jax"}
KELVIN, THERMAL = 300.0, 300.0 * KB


def x(positions, cell):
    return positions[0, 0]


def well(positions, cell):
    return positions[0, 0] ** 2 - 0.25


#: 2.4 (x² - 1/4)² eV: two wells at ±0.5 Å, a barrier of 0.15 eV
DOUBLE_WELL = {"variables": {"x": x, "well": well}, "restraints": [{"variable": "well", "center": 0.0, "stiffness": 4.8}]}
HILLS = {"variables": ["x"], "height": 0.005, "widths": [0.1], "every": 25, "bias_factor": 3.0}


@pytest.fixture(scope="module")
def free():
    """A potential that is far too weak to be felt."""
    return lennard_jones(epsilon=1e-12, precision="float64")


def one_atom():
    return ase.Atoms("Cu", positions=[[0.5, 0, 0]])


def two_atoms():
    return ase.Atoms("Cu2", positions=[[0, 0, 0], [2.5, 0, 0]])


def test_a_restraint_has_its_canonical_distribution(free, tmp_path):
    """A flat bottom: Gaussian tails of width sqrt(kT/k) on both sides; a harmonic one: a Gaussian."""
    log = tmp_path / "md.jsonl"
    bias = make_bias({"variables": {"x": x}, "restraints": [{"variable": "x", "center": 0.5, "stiffness": 2.0}]})
    run_md(one_atom(), MLFFCalculator(free), bias=bias, steps=30_000, interval=50, log=log, **OPTIONS)
    columns = read_log(log)
    values = columns["cv_x"][20::2]
    np.testing.assert_allclose(columns["bias_ev"], (columns["cv_x"] - 0.5) ** 2, atol=1e-12)
    assert kstest(values, norm(0.5, np.sqrt(THERMAL / 2.0)).cdf).pvalue > 1e-3
    assert kstest(values, norm(0.5, np.sqrt(THERMAL / 1.0)).cdf).pvalue < 1e-3, "the test can tell half the stiffness"


def bias_energy(bias, positions, step=0, pbc=False, cell=None):
    """Energy (eV), forces and stress of a bias without hills."""
    from mlff.simulation import bias as biasing
    from mlff.simulation.settings import Settings

    atoms = ase.Atoms(f"Cu{len(positions)}", positions=positions, cell=cell, pbc=pbc)
    shape, rules, hills = biasing.make_bias(bias, atoms, [Settings()], 0)
    state = type("State", (), {"positions": atoms.positions[None], "step": np.array([step])})
    box = np.eye(3) if cell is None else np.asarray(cell)
    push = biasing.start_push(shape, rules, hills, tuple(atoms.pbc), state, box[None])
    return float(push.energy[0]), push.forces[0], push.stress[0]


@pytest.mark.parametrize(
    ("restraint", "step", "energy"),
    [
        ({"center": 2.0, "stiffness": 3.0}, 0, 1.5 * 0.5**2),
        ({"lower": 2.6, "stiffness": 3.0}, 0, 1.5 * 0.1**2),
        ({"upper": 2.6, "stiffness": 3.0}, 0, 0.0),
        ({"lower": 1.0, "upper": 2.2, "stiffness": 3.0}, 0, 1.5 * 0.3**2),
        ({"center": 2.0, "move_to": 3.0, "move_steps": 10, "stiffness": 3.0}, 5, 0.0),
        ({"center": 2.0, "move_to": 3.0, "move_steps": 10, "stiffness": 3.0}, 25, 1.5 * 0.5**2),
    ],
)
def test_bounds_of_a_restraint(restraint, step, energy):
    bias = make_bias(
        {"variables": {"r": {"kind": "distance", "atoms": [0, 1]}}, "restraints": [{"variable": "r", **restraint}]}
    )
    found, forces, _ = bias_energy(bias, two_atoms().positions, step)
    assert found == pytest.approx(energy, abs=1e-12)
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-12)


def test_a_dihedral_is_restrained_across_180_degrees():
    positions = np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 1.5], [-1.0, 0.05, 1.5]])
    variables = {"t": {"kind": "dihedral", "atoms": [0, 1, 2, 3]}}
    for center in (-170.0, 190.0):
        bias = make_bias({"variables": variables, "restraints": [{"variable": "t", "center": center, "stiffness": 1e-3}]})
        degrees = ase.Atoms("Cu4", positions=positions).get_dihedral(0, 1, 2, 3)
        away = (degrees - center + 180) % 360 - 180
        assert abs(away) < 15
        assert bias_energy(bias, positions)[0] == pytest.approx(0.5e-3 * away**2)


def test_the_stress_of_a_bias_is_its_derivative():
    cell = np.array([[4.0, 0, 0], [0.3, 3.8, 0], [0.2, -0.1, 4.2]])
    positions = np.array([[0.1, 0.2, 0.3], [3.5, 0.4, 3.9]])
    bias = make_bias(
        {
            "variables": {"r": {"kind": "distance", "atoms": [0, 1]}},
            "restraints": [{"variable": "r", "center": 0.2, "stiffness": 3.0}],
        }
    )
    _, _, stress = bias_energy(bias, positions, pbc=True, cell=cell)
    strain = np.array([[1, 0.4, 0.1], [0.4, -0.5, 0.3], [0.1, 0.3, 0.2]]) * 1e-5
    plus, minus = (
        bias_energy(bias, positions @ (np.eye(3) + s), pbc=True, cell=cell @ (np.eye(3) + s))[0] for s in (strain, -strain)
    )
    assert np.sum(stress * strain) * np.linalg.det(cell) == pytest.approx((plus - minus) / 2, rel=1e-5)


def profile(hills, grid):
    """Free energy of hills from their sum, eV."""
    piled = np.sum(hills.heights[:, None] * np.exp(-0.5 * ((grid - hills.centers) / hills.widths) ** 2), axis=0)
    free = -piled * hills.bias_factor / (hills.bias_factor - 1)
    return free - free.mean()


@pytest.mark.slow
def test_metadynamics_finds_the_double_well(free, tmp_path):
    """Four replicas, whose scatter is the error; a wrong bias factor is a wrong scale."""
    out = tmp_path / "md.xyz"
    bias = make_bias(DOUBLE_WELL | {"metadynamics": HILLS})
    options = OPTIONS | {"trajectory": out, "log": tmp_path / "md.jsonl", "interval": 100}
    del options["engine"]
    run_replicas(one_atom(), MLFFCalculator(free), 4, bias=bias, steps=30_000, **options)
    grid = np.linspace(-0.6, 0.6, 25)
    found = [read_hills(hills_path(replica_path(out, index))) for index in range(4)]
    profiles = np.array([profile(hills, grid) for hills in found])
    exact = 2.4 * (grid**2 - 0.25) ** 2
    exact -= exact.mean()
    error = profiles.std(axis=0, ddof=1) / 2
    scales = profiles @ exact / (exact @ exact)
    assert abs(scales.mean() - 1) < 0.08, "a bias factor that is taken as one more gives 1.125"
    assert error.mean() < 0.01
    away = np.abs(profiles.mean(axis=0) - exact)
    assert np.mean(away < 3 * error + 0.004) > 0.8 and away.max() < 0.04
    logs = [replica_path(tmp_path / "md.jsonl", index) for index in range(4)]
    weighted = free_energy(logs, "x", bins=15, skip=0.2, limits=(-0.65, 0.65))
    assert (weighted.energies < 4 * weighted.errors + 0.002).all(), "the weights take off hills and wells: a free atom"
    assert np.nanmax(weighted.errors) < 0.03
    assert all(hills.heights[0] > 3 * hills.heights[-50:].mean() for hills in found), "hills become lower"


def test_the_conserved_quantity_counts_hills_and_moving_restraints(free, tmp_path):
    log = tmp_path / "md.jsonl"
    moving = {"variable": "x", "center": 0.5, "move_to": -0.5, "move_steps": 1000, "stiffness": 2.0}
    bias = make_bias(
        {"variables": {"x": x}, "restraints": [moving], "metadynamics": HILLS | {"height": 0.02, "bias_factor": None}}
    )
    run_md(
        one_atom(),
        MLFFCalculator(free),
        bias=bias,
        steps=2000,
        interval=20,
        log=log,
        **OPTIONS | {"timestep": 2.0, "tau": 500},
    )
    columns = read_log(log)
    assert np.ptp(columns["bias_ev"]) > 0.3
    assert np.ptp(columns["conserved_ev"]) < 0.01


def test_a_restart_repeats_every_bit_and_compiles_nothing_anew(free, tmp_path):
    bias = make_bias(DOUBLE_WELL | {"metadynamics": HILLS})
    ends, compiled = [], []
    for name, parts in (("whole", (3000,)), ("parts", (1100, 3000))):
        out, log = tmp_path / f"{name}.xyz", tmp_path / f"{name}.jsonl"
        for part in parts:
            options = OPTIONS | {"trajectory": out, "log": log, "interval": 100, "bias": bias}
            if part == 3000 and len(parts) > 1:
                options |= {"restart": True}
                del options["timestep"], options["tau"]
            run_md(one_atom(), MLFFCalculator(free), steps=part, **options)
        ends.append([load_state(state_path(out)), hills_path(out).read_bytes(), log.read_bytes()])
        compiled.append(compiled_loop.programs(free).compilations)
    assert compiled[1] <= compiled[0] + 1, "the list of the restart"
    (whole, hills, lines), (parts, *others) = ends
    assert [hills, lines] == others and len(hills.splitlines()) == 4 + 3000 // 25
    assert whole.keys() == parts.keys() and len(whole["bias_heights"]) == 120
    for name, array in whole.items():
        np.testing.assert_array_equal(array, parts[name], err_msg=name)
    options = OPTIONS | {"trajectory": tmp_path / "whole.xyz", "restart": True}
    del options["timestep"], options["tau"]
    with pytest.raises(DataError, match="the earlier run had another bias; give it the same"):
        run_md(one_atom(), MLFFCalculator(free), steps=4000, **options)


def test_a_crystal_under_pressure_is_biased_too(tmp_path):
    """npt: stress, nearest images and the box of the moment."""
    atoms, log = bulk("Cu", cubic=True), tmp_path / "md.jsonl"
    bias = make_bias(
        {
            "variables": {"r": {"kind": "distance", "atoms": [0, 1]}},
            "restraints": [{"variable": "r", "upper": 2.4, "stiffness": 10.0}],
        }
    )
    options = {"ensemble": "npt", "timestep": 2.0, "steps": 200, "interval": 10, "progress": False}
    run_md(atoms, MLFFCalculator(lennard_jones()), bias=bias, log=log, **options)
    columns = read_log(log)
    np.testing.assert_allclose(columns["bias_ev"], 5 * np.maximum(columns["cv_r"] - 2.4, 0) ** 2, atol=1e-12)
    assert columns["cv_r"][-1] == pytest.approx(atoms.get_distance(0, 1, mic=True), abs=1e-9)
    assert columns["cv_r"][10:].mean() < 2.5 < columns["cv_r"][0]
    assert np.ptp(columns["conserved_ev"]) < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ensemble": "nve", "tau": None}, "metadynamics needs a thermostat"),
        ({"engine": "ase"}, "a bias needs the engine jax"),
        ({"steps": 10**9}, "hills in 1,000,000,000 steps are too many"),
    ],
)
def test_what_cannot_be_biased_is_said(free, options, message):
    bias = make_bias(DOUBLE_WELL | {"metadynamics": HILLS})
    with pytest.raises(ConfigError, match=message):
        run_md(one_atom(), MLFFCalculator(free), bias=bias, **OPTIONS | options)


def test_variables_are_checked_before_the_run(free):
    bias = make_bias({"variables": {"r": {"kind": "distance", "atoms": [0, 1]}}})
    with pytest.raises(ConfigError, match="variable 'r': there is no atom 1"):
        run_md(one_atom(), MLFFCalculator(free), bias=bias, **OPTIONS)


def test_frames_hold_forces_of_the_potential_alone(tmp_path):
    """So that they can be compared with reference data: the bias is no part of them."""
    from ase.io import read

    atoms, potential = ase.Atoms("CO", positions=[[0, 0, 0], [1.25, 0, 0]]), morse(precision="float64")
    bias = make_bias(
        {
            "variables": {"r": {"kind": "distance", "atoms": [0, 1]}},
            "restraints": [{"variable": "r", "center": 1.5, "stiffness": 20.0}],
        }
    )
    out = tmp_path / "md.traj"
    options = {"timestep": 0.5, "steps": 40, "interval": 20, "progress": False, "limits": Limits(temperature=1e5)}
    run_md(atoms, MLFFCalculator(potential), bias=bias, trajectory=out, **options)
    for frame in read(out, ":"):
        result = potential.predict([frame])[0]
        np.testing.assert_allclose(frame.get_forces(), result.forces, atol=1e-9)
        assert frame.get_potential_energy() == pytest.approx(result.energy, abs=1e-9)


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "bias").glob("*.yaml")), ids=lambda file: file.name)
def test_files_to_start_from_are_valid(file):
    assert load_bias(file).variables


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variables": {"q": {"kind": "distance", "atoms": [3, 3]}}}, r"'variables.q': the same atom twice in \[3, 3\]"),
        ({"variables": {"q": {"kind": "torsion", "atoms": [0, 1]}}}, "unknown kind 'torsion'; known: distance, angle"),
        (
            {"variables": {"q": {"kind": "distance", "atom": [0, 1]}}},
            "unknown key 'variables.q.atom'; did you mean 'atoms'?",
        ),
        ({"metadynamics": HILLS}, "there is no variable 'x'; known: q"),
        ({"restraints": [{"variable": "q", "stiffness": 1.0}]}, "give either center, or lower, upper or both"),
        ({"restraints": [{"variable": "q", "stifness": 1.0}]}, "did you mean 'stiffness'?"),
    ],
)
def test_a_wrong_file_is_one_line(change, message):
    raw = {"variables": {"q": {"kind": "distance", "atoms": [0, 1]}}} | change
    with pytest.raises(ConfigError, match=message):
        make_bias(raw, "bias.yaml")


def test_functions_are_known_by_their_names():
    one = make_bias({"variables": {"x": x}}).description()
    assert one == make_bias({"variables": {"x": x}}).description() != make_bias({"variables": {"x": jnp.sum}}).description()
