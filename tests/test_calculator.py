"""The ASE calculator: right for every geometry, few searches, few compilations, at home in ASE's tools."""

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError, all_properties
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.mixing import SumCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import Trajectory, read, write
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.vibrations import Vibrations

from mlff.basics.errors import ConfigError, ModelFileError, StructureError
from mlff.interfaces.ase import MLFFCalculator
from mlff.potential.committee import committee
from mlff.simulation.md import run_md
from tests.conftest import make_potential
from tests.potentials import lennard_jones, morse


@pytest.fixture(scope="module")
def potential():
    return lennard_jones()


@pytest.fixture(scope="module")
def exact():
    return lennard_jones(precision="float64")


@pytest.fixture(scope="module")
def bonds():
    return morse(precision="float64")


@pytest.fixture
def copper():
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(0.05, seed=1)
    return atoms


def assert_agrees(atoms, potential, energy=2e-5, forces=1e-4):
    """Energy, forces and stress of the calculator in `atoms` against a fresh prediction."""
    result = potential.predict([atoms])[0]
    assert atoms.get_potential_energy() == pytest.approx(result.energy, rel=1e-12, abs=energy)
    assert np.abs(atoms.get_forces(apply_constraint=False) - result.forces).max() < forces
    assert atoms.get_potential_energies() == pytest.approx(result.energies, rel=1e-12, abs=energy)
    if result.stress is not None:
        assert np.abs(atoms.get_stress(voigt=False) - result.stress).max() < 1e-6


def test_agrees_with_the_potential(potential, copper):
    copper.calc = MLFFCalculator(potential)
    assert_agrees(copper, potential)
    assert copper.get_potential_energy() == copper.get_potential_energy(force_consistent=True)
    assert copper.get_potential_energies().sum() == pytest.approx(copper.get_potential_energy(), rel=1e-14)


def test_model_file_and_precision(potential, copper, tmp_path):
    potential.save(tmp_path / "model.safetensors")
    copper.calc = MLFFCalculator(tmp_path / "model.safetensors", precision="float64")
    reference = copper.get_forces()
    assert np.abs(reference.sum(axis=0)).max() < 1e-12
    copper.calc = MLFFCalculator(str(tmp_path / "model.safetensors"))
    assert 1e-9 < np.abs(copper.get_forces() - reference).max() < 1e-4


@pytest.mark.parametrize("pbc", [(False, False, False), (True, True, False), (True, True, True)], ids=str)
def test_a_walk_of_small_steps_equals_fresh_evaluations(potential, pbc):
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.cell[0, 1] += 0.7
    atoms.pbc = pbc
    if not pbc[2]:
        atoms.center(vacuum=3.0, axis=2)
    calculator = atoms.calc = MLFFCalculator(potential)
    rng = np.random.default_rng(0)
    velocity = rng.normal(0, 0.02, (len(atoms), 3))
    for step in range(80):
        velocity = 0.98 * velocity + rng.normal(0, 0.004, velocity.shape) + 0.002 * atoms.get_forces()
        atoms.positions += velocity + [0.05, 0.0, -0.02]
        if step % 5 == 0:
            atoms.positions[step % 8] += atoms.cell.array[0] * pbc[0]  # through the wall
        if step % 16 == 15:
            assert_agrees(atoms, potential)
    assert 1 < calculator.rebuilds < 60


def test_a_breathing_cell_equals_fresh_evaluations(potential, copper):
    calculator = copper.calc = MLFFCalculator(potential)
    rng = np.random.default_rng(0)
    compiled = None
    for step in range(60):
        strain = np.eye(3) + 0.01 * np.sin(step / 3) * np.array([[1, 0.3, 0], [0, -0.5, 0.2], [0, 0, 0.8]])
        copper.set_cell(copper.cell.array @ strain, scale_atoms=True)
        copper.positions += rng.normal(0, 0.003, copper.positions.shape)
        copper.get_forces()
        if step % 12 == 0:
            assert_agrees(copper, potential)
            compiled = compiled or calculator.compilations
    assert calculator.rebuilds < 30
    assert calculator.compilations <= compiled + 1  # the learned habit of computing stresses


def test_small_moves_search_nothing_and_compile_nothing(potential, copper):
    calculator = MLFFCalculator(potential)
    run_md(
        copper,
        calculator,
        engine="ase",
        ensemble="nve",
        temperature=100,
        timestep=2,
        steps=100,
        interval=100,
        progress=False,
    )
    assert calculator.rebuilds <= 3
    programs = calculator.compilations
    traces = potential.programs.compilations
    run_md(
        copper,
        calculator,
        engine="ase",
        ensemble="nve",
        temperature=100,
        timestep=2,
        steps=100,
        interval=100,
        progress=False,
    )
    assert calculator.compilations == programs == 2  # with the pressure of the log
    assert potential.programs.compilations == traces
    assert calculator.rebuilds <= 6


def test_one_call_per_step_when_stresses_are_always_asked_for(potential, copper):
    calculator = copper.calc = MLFFCalculator(potential)
    calls = []
    evaluate = calculator._evaluate
    calculator._evaluate = lambda positions, stress: calls.append(stress) or evaluate(positions, stress)
    for _ in range(6):
        copper.positions += 0.001
        copper.get_forces()
        copper.get_stress()
    assert calls[-3:] == [True, True, True] and len(calls) == 8
    copper.positions += 0.001
    copper.get_forces()
    copper.positions += 0.001
    copper.get_forces()
    assert calls[-1] is False


def test_without_skin_every_move_is_searched(potential, copper):
    calculator = copper.calc = MLFFCalculator(potential, skin=0.0)
    for count in range(1, 4):
        copper.positions[0, 0] += 0.01
        copper.get_forces()
        assert calculator.rebuilds == count
    assert_agrees(copper, potential)


def test_atoms_may_change_between_calls(potential):
    calculator = MLFFCalculator(potential)
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(0.1, seed=3)
    rng = np.random.default_rng(0)

    def check():
        atoms.calc = calculator
        assert_agrees(atoms, potential)

    check()
    vacancy = atoms.positions[17].copy()
    del atoms[[3, 17]]
    check()
    atoms.append("Ar")
    atoms.positions[-1] = vacancy + 0.1
    check()
    atoms = atoms[rng.permutation(len(atoms))]
    check()
    atoms.numbers[:5] = 14
    check()
    atoms.pbc = (True, False, True)
    check()
    atoms.pbc = False
    check()
    atoms.set_cell(None)
    check()
    atoms.pbc = True
    atoms.set_cell([8.0, 9.0, 10.0], scale_atoms=False)
    check()
    programs = calculator.compilations
    for count in (31, 30, 29, 30, 31):
        trimmed = atoms[:count]
        trimmed.calc = calculator
        assert_agrees(trimmed, potential)
    assert calculator.compilations <= programs + 2


def test_one_and_no_atom(potential):
    atom = Atoms("Cu", positions=[[50.0, 0, 0]])
    atom.calc = MLFFCalculator(potential)
    assert atom.get_potential_energy() == pytest.approx(-45000.0)
    assert np.array_equal(atom.get_forces(), np.zeros((1, 3)))
    nothing = Atoms()
    nothing.calc = MLFFCalculator(potential)
    assert nothing.get_potential_energy() == 0.0 and nothing.get_forces().shape == (0, 3)
    primitive = bulk("Cu")
    primitive.calc = MLFFCalculator(potential)
    assert_agrees(primitive, potential)


def test_float32_keeps_its_digits_far_from_the_origin(potential):
    atoms = molecule("H2O")
    atoms.positions *= 1.8
    atoms.calc = MLFFCalculator(potential)
    near = atoms.get_forces()
    atoms.positions += [1e5, -3e4, 77.0]
    assert np.abs(atoms.get_forces() - near).max() < 1e-5


def test_forces_and_stress_are_derivatives(exact):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=2)
    atoms.calc = MLFFCalculator(exact)
    assert atoms.get_forces() == pytest.approx(calculate_numerical_forces(atoms, eps=1e-4), abs=1e-6)
    assert atoms.get_stress() == pytest.approx(calculate_numerical_stress(atoms, eps=1e-5), abs=1e-6)
    atoms.set_cell(atoms.cell.array * 0.95, scale_atoms=True)
    assert atoms.get_stress()[:3].max() < 0  # compressed: negative in ASE's convention


def test_stress_only_with_three_periodic_directions(potential, copper):
    copper.calc = MLFFCalculator(potential)
    for pbc in (False, (True, True, False)):
        copper.pbc = pbc
        with pytest.raises(PropertyNotImplementedError, match="periodic in three directions"):
            copper.get_stress()
        copper.get_forces()


def test_results_are_copies(potential, copper):
    copper.calc = MLFFCalculator(potential)
    forces = copper.get_forces()
    forces[:] = 0
    assert np.abs(copper.get_forces()).max() > 0


def test_written_and_read_back(potential, copper, tmp_path):
    copper.calc = MLFFCalculator(potential)
    energy, stress = copper.get_potential_energy(), copper.get_stress()
    write(tmp_path / "copper.traj", copper)
    again = read(tmp_path / "copper.traj")
    assert again.get_potential_energy() == energy and np.array_equal(again.get_stress(), stress)


@pytest.mark.parametrize("optimizer", [BFGS, FIRE])
def test_relaxation_with_constraints(bonds, optimizer):
    atoms = molecule("CH3OH")
    atoms.set_constraint(FixAtoms([0]))
    fixed = atoms.positions[0].copy()
    atoms.calc = MLFFCalculator(bonds)
    assert optimizer(atoms, logfile=None).run(fmax=0.01, steps=500)
    assert np.array_equal(atoms.positions[0], fixed)


def test_relaxation_of_the_cell(exact):
    atoms = bulk("Cu", a=3.9, cubic=True)
    atoms.set_cell(atoms.cell.array @ [[1.02, 0.03, 0], [0, 1, 0], [0, 0, 0.97]], scale_atoms=True)
    atoms.rattle(0.03, seed=0)
    atoms.calc = MLFFCalculator(exact)
    assert BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=300)
    assert np.abs(atoms.get_stress()).max() < 1e-4
    assert_agrees(atoms, exact)
    lengths = np.sort(np.linalg.norm(atoms.get_all_distances(mic=True, vector=True)[0, 1:], axis=1))
    assert lengths == pytest.approx([lengths[0]] * 3, rel=1e-3)


def test_vibrations(bonds, tmp_path):
    atoms = molecule("H2O")
    atoms.calc = MLFFCalculator(bonds)
    BFGS(atoms, logfile=None).run(fmax=1e-6, steps=500)
    rebuilds = atoms.calc.rebuilds
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"))
    vibrations.run()
    hessian = vibrations.get_vibrations().get_hessian_2d()
    assert hessian == pytest.approx(bonds.hessian(atoms), abs=5e-3)
    assert atoms.calc.rebuilds == rebuilds
    frequencies = vibrations.get_frequencies()
    assert np.sum(np.abs(frequencies) > 100) == 3


@pytest.mark.parametrize("shared", [True, False])
def test_nudged_elastic_band(bonds, shared):
    """The hydrogen of H-H...H goes from one side to the other."""
    first = Atoms("H3", positions=[[0, 0, 0], [1.2, 0, 0], [3.6, 0.1, 0]], constraint=FixAtoms([0, 2]))
    last = first.copy()
    last.positions[1] = [2.4, 0, 0]
    calculator = MLFFCalculator(bonds)
    for end in (first, last):
        end.calc = calculator if shared else MLFFCalculator(bonds)
        BFGS(end, logfile=None).run(fmax=1e-3)
    images = [first, *(first.copy() for _ in range(3)), last]
    for image in images[1:-1]:
        image.calc = calculator if shared else MLFFCalculator(bonds)
    band = NEB(images, climb=True, allow_shared_calculator=shared, method="improvedtangent")
    band.interpolate()
    assert FIRE(band, logfile=None).run(fmax=0.02, steps=300)
    energies = [image.get_potential_energy() for image in images]
    assert energies[2] == max(energies) and energies[2] - energies[0] > 0.02
    assert energies[1] == pytest.approx(energies[3], abs=5e-3)


@pytest.mark.parametrize("engine", ["jax", "ase"])
@pytest.mark.parametrize("ensemble", [pytest.param("nve", marks=pytest.mark.slow), "nvt", "npt"])
def test_molecular_dynamics_restarts_bitwise(potential, tmp_path, ensemble, engine):
    start = bulk("Cu", cubic=True)
    start.rattle(0.02, seed=0)
    options = {
        "ensemble": ensemble,
        "temperature": 900,
        "timestep": 4,
        "interval": 10,
        "progress": False,
        "engine": engine,
    } | ({"tau_pressure": 400} if ensemble == "npt" else {})
    whole, first, second = start.copy(), start.copy(), start.copy()
    run_md(whole, MLFFCalculator(potential), steps=120, trajectory=tmp_path / "whole.traj", **options)
    out = tmp_path / "parts.traj"
    run_md(first, MLFFCalculator(potential), steps=70, trajectory=out, **options)
    run_md(second, MLFFCalculator(potential), steps=120, trajectory=out, restart=True, **options)
    assert np.array_equal(second.positions, whole.positions)
    assert np.array_equal(second.get_momenta(), whole.get_momenta())
    assert np.array_equal(second.cell.array, whole.cell.array)
    assert (ensemble == "npt") == (not np.array_equal(whole.cell.array, start.cell.array))


@pytest.mark.parametrize(
    "engine", [pytest.param("jax", marks=pytest.mark.slow), pytest.param("ase", marks=pytest.mark.slow)]
)
def test_constant_pressure_keeps_the_lattice(potential, engine):
    atoms = bulk("Cu", a=3.7, cubic=True).repeat(2)
    atoms.calc = calculator = MLFFCalculator(potential)
    BFGS(FrechetCellFilter(atoms, hydrostatic_strain=True), logfile=None).run(fmax=1e-3, steps=100)
    relaxed = atoms.get_volume()
    options = {
        "ensemble": "npt",
        "temperature": 100,
        "timestep": 4,
        "tau_pressure": 500,
        "progress": False,
        "engine": engine,
    }
    run_md(atoms, calculator, steps=500, **options)
    summary = run_md(atoms, calculator, steps=1500, keep_velocities=True, **options)
    assert abs(summary.drift) < 0.05
    assert summary.temperature_mean == pytest.approx(100, rel=0.15)
    assert (summary.volume_mean / relaxed) ** (1 / 3) == pytest.approx(1.0, abs=0.02)
    assert abs(summary.pressure_mean) < 0.5


def test_unusable_input_is_one_line(potential, copper, tmp_path):
    calculator = MLFFCalculator(potential)

    def failing(atoms, message):
        atoms.calc = calculator
        with pytest.raises(StructureError, match=message) as caught:
            atoms.get_forces()
        assert "\n" not in str(caught.value)

    failing(Atoms("CuU", positions=[[0, 0, 0], [0, 0, 2]]), "atom 1 is U")
    failing(Atoms("Cu2", positions=[[0, 0, 0], [0, 0, np.nan]]), "position of atom 1 is not finite")
    failing(Atoms("Cu2", positions=[[0, 0, 1], [0, 0, 1]]), "atoms 0 and 1 are on top")
    failing(Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 4]], cell=[0, 0, 4], pbc=(False, False, True)), "on top")
    failing(Atoms("Cu", pbc=True), "periodic along a")
    copper.calc = calculator
    assert_agrees(copper, potential)
    copper.positions[4] = np.inf
    failing(copper, "position of atom 4")
    with pytest.raises(ConfigError, match="skin"):
        MLFFCalculator(potential, skin=-1)
    with pytest.raises(ModelFileError, match="no such model file"):
        MLFFCalculator(tmp_path / "nothing.safetensors")


# --- as users use calculators ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def together():
    """A committee of two, far apart."""
    one, other = make_potential("ace", "float64"), make_potential("ace", "float64")
    other = replace(other, params=jax.tree.map(lambda leaf: 1.1 * np.asarray(leaf), other.params))
    return committee([one, other])


def test_results_of_a_committee_are_properties_of_ase(together, ethanol, tmp_path):
    ethanol.calc = calculator = MLFFCalculator(together)
    (expected,) = together.predict([ethanol])
    ethanol.get_forces()
    assert set(calculator.results) <= set(all_properties) and "energy_std" not in calculator.implemented_properties
    assert calculator.export_properties()["energy"] == pytest.approx(expected.energy, abs=1e-9)
    frozen = SinglePointCalculator(ethanol, **calculator.results)
    assert frozen.get_property("energy") == calculator.results["energy"]
    for name in ("energy_std", "forces_std"):
        np.testing.assert_allclose(calculator.get_property(name), getattr(expected, name), atol=1e-9)
        assert calculator.get_property(name, allow_calculation=False) is not None
    assert expected.energy_std > 1e-3
    calculator.get_property("forces_std")[:] = 0
    assert calculator.get_property("forces_std").any(), "a copy"
    ethanol.positions[0] += 0.1
    assert calculator.get_property("energy_std", ethanol, allow_calculation=False) is None
    assert calculator.get_property("energy_std", ethanol) == pytest.approx(together.predict([ethanol])[0].energy_std)
    for name in ("a.xyz", "a.traj", "a.json", "a.db"):
        write(tmp_path / name, ethanol)
        assert read(tmp_path / name).get_potential_energy() == pytest.approx(calculator.results["energy"], abs=1e-7), name
    with Trajectory(tmp_path / "b.traj", "w", ethanol) as trajectory:
        trajectory.write()
    np.testing.assert_array_equal(read(tmp_path / "b.traj").get_forces(), ethanol.get_forces())


def test_what_a_potential_does_not_give_is_refused_by_name(potential, copper):
    copper.calc = calculator = MLFFCalculator(potential)
    for name in ("magmoms", "dipole", "stresses", "energy_std"):
        with pytest.raises(PropertyNotImplementedError, match=f"{name}: not among energy"):
            calculator.get_property(name, copper)
    with pytest.raises(PropertyNotImplementedError):
        copper.get_stresses()
    assert copper.copy().calc is None and calculator.todict() == {} and calculator.name == "mlff"


def test_called_as_ase_calls_it(exact):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=2)
    calculator = MLFFCalculator(exact)
    with pytest.raises(StructureError, match="no structure"):
        calculator.calculate()
    assert calculator.calculation_required(atoms, ["energy"])
    calculator.calculate(atoms, ["energy", "forces"])
    assert not calculator.calculation_required(atoms, ["forces"])
    calculator.calculate()
    energy = calculator.results["energy"]
    assert energy == pytest.approx(exact.predict([atoms])[0].energy, abs=1e-9)
    mixed = SumCalculator([calculator, MLFFCalculator(exact)])
    assert mixed.get_property("energy", atoms) == pytest.approx(2 * energy, abs=1e-9)
    atoms.calc = calculator
    assert atoms.get_properties(["energy", "stress"])["stress"] == pytest.approx(atoms.get_stress())


@pytest.mark.parametrize(
    "again", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"]
)
def test_a_used_calculator_can_be_copied(together, ethanol, again):
    original = ethanol.calc = MLFFCalculator(together)
    energy, forces, spread = ethanol.get_potential_energy(), ethanol.get_forces(), original.get_property("energy_std")
    twin = again(original)
    assert twin.results["energy"] == energy and twin.rebuilds == 0
    assert twin.get_property("energy_std", ethanol, allow_calculation=False) == spread
    other = molecule("CH3OH")
    assert twin.get_property("energy", other) == pytest.approx(together.predict([other])[0].energy, abs=1e-9)
    ethanol.positions[0, 0] += 1e-3  # the list of the original is its own
    np.testing.assert_allclose(ethanol.get_forces(), together.predict([ethanol])[0].forces, atol=1e-9)
    ethanol.positions[0, 0] -= 1e-3
    np.testing.assert_allclose(twin.get_property("forces", ethanol), forces, atol=1e-9)
    assert twin.potential.precision == "float64" and twin.potential.fingerprint == together.fingerprint


def test_atoms_are_copied_with_their_calculator(potential, copper):
    copper.calc = MLFFCalculator(potential)
    copper.get_forces()
    for twin in (copy.deepcopy(copper), pickle.loads(pickle.dumps(copper))):
        assert twin.calc is not copper.calc
        assert_agrees(twin, potential)


def test_threads_may_share_a_calculator(exact):
    calculator = MLFFCalculator(exact)
    calculator.get_property("energy", bulk("Cu"))

    def walk(repeats):
        atoms, rng = bulk("Cu", cubic=True).repeat((repeats, 1, 1)), np.random.default_rng(repeats)
        atoms.calc, off = calculator, []
        for _ in range(15):
            atoms.positions += rng.normal(0, 0.02, atoms.positions.shape)
            forces, (expected,) = atoms.get_forces(), exact.predict([atoms])
            off.append(max(np.abs(forces - expected.forces).max(), abs(atoms.get_potential_energy() - expected.energy)))
        return max(off)

    with ThreadPoolExecutor(3) as pool:
        assert max(pool.map(walk, (1, 2, 1))) < 1e-8


def test_threads_have_potentials_of_their_own(ethanol):
    def forces(precision):
        potential, atoms = morse(precision=precision), ethanol.copy()
        atoms.calc = MLFFCalculator(potential)
        return atoms.get_forces()

    expected = forces("float64")
    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(forces, ["float64", "float32"] * 4)):
            assert np.abs(found - expected).max() < (1e-4 if number % 2 else 1e-10)


FORKED = """
import os, pickle, sys, warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from ase.build import bulk
from mlff.interfaces.ase import MLFFCalculator
from mlff.training.train import train
from tests.potentials import lennard_jones

def energy(calculator, atoms=bulk("Cu", cubic=True)):
    return calculator.get_property("energy", atoms)

def outcome(pool, *job):
    try:
        return pool.submit(*job).result(timeout=60)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    calculator, moved = MLFFCalculator(lennard_jones()), bulk("Cu", a=3.7, cubic=True)
    with ProcessPoolExecutor(1, get_context("fork")) as pool:  # before JAX has started
        print(outcome(pool, energy, calculator))
    print(energy(calculator))
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(1, get_context(method)) as pool:
            print(outcome(pool, energy, calculator))  # known: nothing is computed
            print(outcome(pool, energy, calculator, moved))
            if method == "fork":
                print(outcome(pool, calculator.potential.predict, [moved]))
                print(outcome(pool, train, None, "run"))
    print(energy(calculator, moved))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_processes_compute_or_say_spawn(tmp_path):
    """They hung: the threads of JAX do not come along."""
    script = tmp_path / "forked.py"
    script.write_text(FORKED, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    early, first, known, *refused, copied, spawned, last = done.stdout.splitlines()
    assert float(early) == float(first) == float(known) == float(copied)
    assert len(refused) == 3 and float(last) == pytest.approx(float(spawned), abs=1e-4) and last != first
    for line in refused:
        assert line.startswith("ProcessError: this process was forked") and "'spawn'" in line


def test_results_that_are_nonsense_are_refused_with_the_nearest_atoms(potential):
    def refused(atoms, message):
        atoms.calc = MLFFCalculator(potential)
        for ask in (atoms.get_forces, lambda: potential.predict([molecule("H2O"), atoms])):
            with pytest.raises(StructureError, match=message) as caught:
                ask()
            assert "\n" not in str(caught.value)

    refused(Atoms("CuArCu", positions=[[0, 0, 0], [3, 0, 0], [3, 0.1, 0]]), r"eV/Å: Ar 1 and Cu 2 are 0.1 Å apart")
    refused(Atoms("Cu", cell=[0.3] * 3, pbc=(True, True, False)), "Cu 0 and its periodic image are 0.3 Å apart")
    near = Atoms("CuAr", positions=[[0.05, 0, 0], [2.95, 0, 0]], cell=[3, 9, 9], pbc=True)
    refused(near, r"Cu 0 and Ar 1 \(a periodic image\) are 0.1 Å apart")
    unlimited = MLFFCalculator(potential, check=False)
    assert unlimited.get_property("energy", near) > 1e10


def test_a_potential_that_gives_no_numbers_is_refused(ethanol):
    broken = replace(morse(), baseline=dict.fromkeys(morse().elements, np.nan))
    ethanol.calc = MLFFCalculator(broken)
    for ask in (ethanol.get_forces, lambda: broken.predict([ethanol])):
        with pytest.raises(StructureError, match="energies or forces that are not finite: .* Å apart"):
            ask()
