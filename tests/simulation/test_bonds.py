"""Distances that are kept: both engines go the same way, ensembles are right, what cannot be kept is refused."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms, FixBondLengths
from scipy import stats

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError, StructureError
from mlff.basics.units import KB
from mlff.config.options import Morse
from mlff.simulation import integrators
from mlff.simulation.bonds import MOST, bonds_of, to_hydrogen
from mlff.simulation.constraints import fix_lengths
from mlff.simulation.jax_engine import obstacle
from mlff.simulation.md import run_md
from mlff.simulation.replica_run import run_replicas
from mlff.simulation.settings import Settings
from mlff.simulation.state import Outcome, conditions, fresh, kinetic_energy
from tests.potentials import lennard_jones, morse

INTEGRATORS = ["nve", "langevin", "bussi", "nose_hoover"]


@pytest.fixture(scope="module")
def exact():
    """Bonds that yield, so that a molecule it does not know stays whole."""
    return replace(morse(precision="float64"), config=Morse(cutoff=4.0, depth=0.1, stiffness=1.0, r0=1.6))


def alcohol(*more, box=None):
    """Ethanol with the bonds of hydrogen kept; in a `box`, Å, across whose faces it lies."""
    atoms = molecule("CH3CH2OH")
    if box is not None:
        atoms.set_cell([box] * 3)
        atoms.pbc = True
        atoms.wrap()
    atoms.set_constraint([to_hydrogen(atoms), *more])
    return atoms


def lengths(atoms):
    pairs = atoms.constraints[0].pairs
    return np.array([atoms.get_distance(a, b, mic=True) for a, b in pairs])


def simulate(atoms, potential, **options):
    options = {
        "steps": 60,
        "timestep": 0.5,
        "temperature": 100,
        "interval": 20,
        "engine": "jax",
        "progress": False,
    } | options
    return run_md(atoms, MLFFCalculator(potential), **options)


def test_a_potential_runs_with_other_distances_kept_and_without(exact):
    """Each number of them is a program of its own."""
    ends = []
    for kept in (slice(0), slice(6), slice(2)):
        atoms = alcohol()
        atoms.set_constraint(FixBondLengths(atoms.constraints[0].pairs[kept]))
        simulate(atoms, exact, steps=2)
        ends.append(atoms.positions)
    assert not np.allclose(ends[0], ends[1]) and not np.allclose(ends[1], ends[2])


@pytest.mark.parametrize("box", [pytest.param(None, marks=pytest.mark.slow), 9.0])
def test_both_engines_take_the_same_steps(exact, box):
    ends = []
    for engine in ("jax", "ase"):
        atoms = alcohol(box=box)
        start = atoms.positions.copy()
        assert simulate(atoms, exact, ensemble="nve", engine=engine).engine == engine
        ends.append((atoms.positions, atoms.get_momenta()))
    assert np.abs(ends[0][0] - start).max() > 0.01
    for mine, theirs in zip(*ends, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9)


def test_beside_fixed_atoms(exact):
    """ASE keeps one constraint after the other, and the last one wins."""
    atoms = alcohol(FixAtoms([0]))
    before, start = lengths(atoms), atoms.positions.copy()
    simulate(atoms, exact)
    np.testing.assert_allclose(lengths(atoms), before, rtol=1e-10)
    np.testing.assert_array_equal(atoms.positions[0], start[0])
    assert np.abs(atoms.positions - start).max() > 0.01
    with pytest.raises(ConfigError, match="the engine ase cannot keep distances of atom 0, which FixAtoms holds too"):
        simulate(alcohol(FixAtoms([0])), exact, engine="ase")


@pytest.mark.parametrize(
    "ensemble", [n if n == "langevin" else pytest.param(n, marks=pytest.mark.slow) for n in INTEGRATORS]
)
def test_lengths_stay_and_the_molecule_as_a_whole_stays(exact, ensemble):
    atoms = alcohol()
    before = lengths(atoms)
    options = {"ensemble": "nve"} if ensemble == "nve" else {"thermostat": ensemble}
    simulate(atoms, exact, steps=200, timestep=1.0, **options)
    np.testing.assert_allclose(lengths(atoms), before, rtol=1e-10)
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-9
    momenta = atoms.get_momenta()
    atoms.set_momenta(momenta)  # ASE takes away what lies along the bonds
    np.testing.assert_allclose(atoms.get_momenta(), momenta, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_replicas_keep_them_and_each_has_its_own(exact):
    alone = []
    for seed in (0, 1):
        atoms = alcohol()
        simulate(atoms, exact, seed=seed)
        alone.append(atoms.positions)
    summaries = run_replicas(alcohol(), MLFFCalculator(exact), 2, steps=60, timestep=0.5, temperature=100, progress=False)
    assert all(summary.steps == 60 for summary in summaries)
    assert np.abs(alone[0] - alone[1]).max() > 0.01


def test_a_restart_goes_on_to_the_bit(exact, tmp_path):
    ends = []
    for parts in ((60,), (20, 60)):
        out = tmp_path / f"{len(parts)}.traj"
        for steps in parts:
            atoms = alcohol()
            simulate(atoms, exact, steps=steps, trajectory=out, restart=steps != parts[0])
        ends.append(atoms.positions)
    np.testing.assert_array_equal(*ends)


def walk(settings, atoms, energy, steps, copies=400):
    """The states of `copies` systems after `steps` from rest with momenta of half the temperature, their degrees of freedom."""
    fix_lengths(atoms)
    name, n, bonds = integrators.kind(settings), len(atoms), bonds_of(atoms)
    freedom = 3 * n - len(bonds.pairs)
    with jax.enable_x64(True):
        at = conditions(settings, 0, atoms.get_masses(), np.ones(n, bool), freedom, bonds)
        at = at._replace(resting=np.bool_(False))
        push = jax.value_and_grad(energy)

        def outcome(positions):
            value, slope = push(positions)
            return Outcome(value, -slope, jnp.zeros((3, 3)))

        def run(key, momenta):
            mine = at._replace(key=key)
            first = fresh(atoms.positions, np.zeros((n, 3)), np.eye(3), Outcome(0.0, np.zeros((n, 3)), np.zeros((3, 3))))
            state = jax.tree.map(jnp.asarray, first)
            found = outcome(state.positions)
            state = state._replace(momenta=momenta, forces=found.forces, energy=found.energy)

            def step(_, state):
                moved = integrators.begin(name, mine, state)
                return integrators.end(name, mine, moved, outcome(moved.positions))

            state = jax.lax.fori_loop(0, steps, step, state)
            return state.positions, kinetic_energy(mine, state)

        rng = np.random.default_rng(0)
        scale = np.sqrt(atoms.get_masses()[:, None] * KB * settings.temperature)
        keys = rng.integers(2**32, size=(copies, 2), dtype=np.uint32)
        found = jax.jit(jax.vmap(run))(keys, rng.normal(size=(copies, n, 3)) * scale)
        return (*map(np.asarray, found), freedom)


def test_the_kinetic_energy_follows_its_law():
    """Chi-square with three for each atom less one for each distance."""
    atoms = Atoms("OCH3", [[0, 0, 0], [1.2, 0, 0], [1.9, 0.8, 0], [1.9, -0.8, 0.3], [1.2, 0.2, 1.1]])
    atoms.set_constraint(FixBondLengths([[0, 1], [1, 2], [1, 3], [1, 4]]))
    settings = Settings(temperature=300, timestep=1.0, tau=20.0)
    _, kinetic, freedom = walk(settings, atoms, lambda positions: 0.5 * jnp.sum(positions**2), 200)
    assert stats.kstest(2 * kinetic / (KB * 300), stats.chi2(freedom).cdf).pvalue > 1e-3


@pytest.mark.slow
def test_the_angle_of_a_chain_follows_its_law():
    """Of two bonds without forces, equal masses: p(cos) ~ sqrt(1 - cos²/4), not flat (Fixman, PNAS 71, 3050 (1974))."""
    atoms = Atoms("OOO", [[1, 0, 0], [0, 0, 0], [0, 1, 0]])
    atoms.set_constraint(FixBondLengths([[0, 1], [1, 2]]))
    settings = Settings(temperature=300, timestep=2.0, tau=50.0)
    positions, _, _ = walk(settings, atoms, lambda positions: 0.0 * jnp.sum(positions), 600, copies=10_000)
    a, b = positions[:, 0] - positions[:, 1], positions[:, 2] - positions[:, 1]
    found = np.sum(a * b, axis=1) ** 2
    grid = np.linspace(-1, 1, 4001)
    law = np.average(grid**2, weights=np.sqrt(1 - grid**2 / 4))
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - law) < 3.5 * error and error < 0.005


def test_the_error_of_the_energy_falls_as_the_square_of_the_step(exact, tmp_path):
    errors = []
    for timestep in (0.25, 0.5, 1.0):
        log = tmp_path / f"{timestep}.jsonl"
        steps = {"timestep": timestep, "steps": round(60 / timestep), "interval": 1, "log": log}
        simulate(alcohol(), exact, ensemble="nve", temperature=300, **steps)
        totals = [json.loads(line)["etot_ev"] for line in log.read_text().splitlines()]
        errors.append(np.std(totals))
    assert np.polyfit(np.log([0.25, 0.5, 1.0]), np.log(errors), 1)[0] == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(
    ("pairs", "given", "line"),
    [
        ([[0, 1], [0, 1]], None, "depend on each other"),
        ([[0, 0]], [1.0], "cannot be kept at"),
        ([[0, 1]], [3.0], "apart, but are to be kept at 3.0000"),
        ([[0, 1], [0, 2], [1, 2], [0, 3], [1, 3], [2, 3], [0, 4], [1, 4], [2, 4], [3, 4]], None, "depend on each other"),
    ],
)
def test_what_contradicts_itself_is_refused(exact, pairs, given, line):
    atoms = molecule("CH4")
    atoms.set_constraint(FixBondLengths(pairs, bondlengths=None if given is None else np.array(given)))
    with pytest.raises(StructureError, match=line):
        simulate(atoms, exact)


def test_what_has_no_bond_to_hydrogen_is_refused():
    with pytest.raises(StructureError, match="no hydrogen"):
        to_hydrogen(molecule("CO2"))
    with pytest.raises(StructureError, match="atom 1, hydrogen, is bonded to no other one"):
        to_hydrogen(Atoms("CH", [[0, 0, 0], [3, 0, 0]]))


def test_the_step_may_be_longer(exact):
    simulate(alcohol(), exact, timestep=3.0, steps=2)
    with pytest.raises(ConfigError, match="too long for H 3 of 1.01 amu: take 1 fs, at most 4"):
        simulate(alcohol(), exact, timestep=4.5, steps=2)
    with pytest.raises(ConfigError, match="too long for H"):
        simulate(molecule("CH3CH2OH"), exact, timestep=3.0, steps=2)


def test_very_many_go_to_the_loop_of_ase():
    atoms = Atoms("Ar2", [[0, 0, 0], [3, 0, 0]])
    atoms.set_constraint(FixBondLengths([[0, 1]] * (MOST + 1)))
    assert "distances that are kept, more than" in obstacle(MLFFCalculator(lennard_jones()), atoms)
