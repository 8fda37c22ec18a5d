"""Right in the odd corners: energies, forces and stress of whole graphs against a plain sum over images in float64.

Cells of every shape and periodicity, atoms anywhere, few, many and none, arrays of every layout; one by one, in one
batch, and through the calculator while everything changes between calls.
"""

import dataclasses
import json
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones

from mlff.basics.errors import StructureError
from mlff.config.options import SchNet
from mlff.data import neighbors
from mlff.data.structure import Structure
from mlff.interfaces.ase import MLFFCalculator
from mlff.models import registry
from mlff.models.common import Statistics
from mlff.models.parameters import initial_params
from mlff.potential import compiled as programs_module
from mlff.potential.derivatives import predict
from mlff.training.checkpoint import Checkpoints
from mlff.training.runlog import RunLog
from mlff.training.trainer import Trainer
from tests import images
from tests.conftest import make_potential
from tests.potentials import BASELINE, lennard_jones
from tests.training.toy import make_config, make_structures, make_task

CUTOFF, EPSILON, SIGMA = 5.0, 0.1, 2.3
PAIR = images.lennard_jones(EPSILON, SIGMA, CUTOFF)


def crystal(repeat=1, rattle=0.08, cell=None, seed=0):
    """Copper, disturbed; `cell`: what its cell is multiplied by."""
    atoms = bulk("Cu", a=3.7, cubic=True).repeat(repeat)
    if cell is not None:
        atoms.set_cell(atoms.cell.array @ np.asarray(cell, float), scale_atoms=True)
    atoms.rattle(rattle, seed=seed)
    return atoms


def cluster(n=9, seed=0, symbol="Cu"):
    """A free cluster with neighbours at 2.4 Å and more."""
    grid = 2.5 * np.stack(np.meshgrid(*[np.arange(3.0)] * 3), -1).reshape(-1, 3)[:n]
    return Atoms(f"{symbol}{n}", grid + np.random.default_rng(seed).normal(0, 0.05, (n, 3)))


def unwrapped(cells=10**6, pbc=True):
    """Every atom many cells away from where it was."""
    atoms = crystal(cell=[[1, 0.2, 0], [0, 1, -0.1], [0, 0, 1]])
    atoms.pbc = pbc
    jumps = np.random.default_rng(1).integers(-cells, cells, (len(atoms), 3)) * atoms.pbc
    atoms.positions += jumps @ atoms.cell.array
    return atoms


def layer(pbc, third):
    """A slab or chain along `pbc`; the vectors of the other directions are `third`."""
    atoms = crystal((2, 1, 1))
    atoms.pbc = pbc
    atoms.cell[~np.array(pbc)] = third
    return atoms


def in_a_box(atoms, lengths, at, pbc=True):
    """`atoms` around the point `at` (share of the cell) of a box."""
    atoms = atoms.copy()
    atoms.set_cell(np.asarray(lengths, float) * np.eye(3))
    atoms.pbc = pbc
    atoms.positions += np.asarray(at) * np.asarray(lengths) - atoms.positions.mean(0)
    return atoms


def apart(distance, count=2):
    """Fragments far from each other along the diagonal."""
    fragments = Atoms()
    for k in range(count):
        part = cluster(5, seed=k)
        part.positions += k * distance / np.sqrt(3)
        fragments += part
    return fragments


CORNERS = {
    "crystal": crystal(2),
    "left-handed": crystal(cell=np.eye(3)[[1, 0, 2]]),
    "mirrored": crystal(cell=np.diag([1, 1, -1])),
    "skewed": Atoms(crystal(), cell=crystal().cell.array @ [[1, 0, 0], [3, 1, 0], [-2, 4, 1]], pbc=True),
    "sheared far": crystal(cell=[[1, 0, 0], [1.5, 1, 0], [0, -1.2, 1]]),
    "tiny": bulk("Cu", a=3.2),
    "flat": Atoms("Cu", cell=[[2.4, 0, 0], [0, 2.4, 0], [0.3, 0.2, 40]], pbc=True),
    "needle": Atoms("Cu2", [[0, 0, 0], [0.1, 0.2, 900]], cell=[[2.6, 0, 0], [0.4, 2.6, 0], [0, 0, 2000]], pbc=True),
    "huge": in_a_box(cluster(), [300, 300, 300], [0.99, 0.5, 0.01]),
    "huge, over the corner": in_a_box(cluster(), [2e4, 2e4, 2e4], [1, 1, 0]),
    "astronomic": in_a_box(cluster(), [1e6, 2e6, 1e6], [0.7, 1, 0.3]),
    "slab without third vector": layer((True, True, False), [0, 0, 0]),
    "slab with a third vector in its plane": layer((True, True, False), [1.0, 1.0, 0.0]),
    "slab periodic along b and c": layer((False, True, True), [20.0, 1.0, 0.0]),
    "chain": layer((True, False, False), np.zeros((2, 3))),
    "chain with a bent cell": layer((False, False, True), [[3.0, 0, 9], [0, 3, 5.0]]),
    "cell without periodicity": layer((False, False, False), crystal((2, 1, 1)).cell.array),
    "degenerate cell without periodicity": Atoms(cluster(), cell=np.ones((3, 3)), pbc=False),
    "unwrapped": unwrapped(),
    "unwrapped slab": unwrapped(pbc=(True, False, True)),
    "far from the origin": Atoms(cluster(), positions=cluster().positions + [1e7, -3e6, 5e5]),
    "one atom": Atoms("Cu", [[1e3, 2, 3]]),
    "one atom in a cell": Atoms("Ar", [[1, 2, 3]], cell=[3, 3.1, 2.9], pbc=True),
    "beyond every cutoff": Atoms("CuArCu", [[0, 0, 0], [0, 0, 5.0001], [900, 0, 0]]),
    "beyond every cutoff, periodic": Atoms("Cu2", [[0, 0, 0], [20, 20, 20]], cell=[40, 40, 40], pbc=True),
    "fragments": apart(50, 3),
    "fragments far apart": apart(1e5),
    "fragments and periodicity": in_a_box(apart(400, 3), [1200] * 3, [0.5, 0, 0.9]),
    "elements": Atoms("HCOSiArCuHCO", cluster().positions),
}
EXACT = {"precision": "float64", "energy": 1e-9, "forces": 1e-7}
SINGLE = {"precision": "float32", "energy": 2e-5, "forces": 2e-4}

NOTHING = {"no atoms": Atoms(), "no atoms in a cell": Atoms(cell=[4, 4, 4], pbc=True)}

corners = pytest.mark.parametrize("name", CORNERS)


def precisions(default: dict, late: dict) -> pytest.MarkDecorator:
    cases = [default, pytest.param(late, marks=pytest.mark.slow)]
    return pytest.mark.parametrize("limits", cases, ids=lambda limits: limits["precision"])


precisely, singly = precisions(EXACT, SINGLE), precisions(SINGLE, EXACT)  #: by default in float64, in float32


def expected(atoms):
    """Energies per atom with reference energies, forces, stress."""
    energies, forces, stress = images.pair_sum(atoms, PAIR, CUTOFF)
    return energies + np.array([BASELINE[z] for z in atoms.numbers.tolist()]), forces, stress


def assert_equal(atoms, energies, forces, stress, limits, where=""):
    """Against the sum over images, per atom."""
    right = expected(atoms)
    np.testing.assert_allclose(energies, right[0], rtol=1e-12, atol=limits["energy"], err_msg=where)
    np.testing.assert_allclose(forces, right[1], rtol=limits["forces"] / 10, atol=limits["forces"], err_msg=where)
    assert (stress is None) == (right[2] is None)
    if stress is not None:
        np.testing.assert_allclose(stress, right[2], rtol=1e-4, atol=limits["forces"] / 10, err_msg=where)


@corners
def test_the_judge_agrees_with_ase(name):
    """ASE's own Lennard-Jones where it can: its neighbour list wants a third vector and knows no far images."""
    atoms = CORNERS[name].copy()
    if not atoms.pbc.any():
        atoms.set_cell(None)
        atoms.positions -= atoms.positions.mean(0)
    pair = images.shifted_lennard_jones(EPSILON, SIGMA, CUTOFF)
    energies, forces, stress = images.pair_sum(atoms, pair, CUTOFF)
    if name in ("slab with a third vector in its plane", "degenerate cell without periodicity"):
        pytest.skip("ASE refuses a cell without volume")
    atoms.wrap()
    atoms.calc = LennardJones(epsilon=EPSILON, sigma=SIGMA, rc=CUTOFF, smooth=False)
    np.testing.assert_allclose(atoms.get_potential_energies(), energies, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(atoms.get_forces(), forces, rtol=1e-6, atol=1e-6)
    if stress is not None:
        np.testing.assert_allclose(atoms.get_stress(voigt=False), stress, rtol=1e-6, atol=1e-8)


@pytest.fixture(scope="module")
def potential():
    made = {limits["precision"]: lennard_jones(precision=limits["precision"]) for limits in (EXACT, SINGLE)}
    return lambda limits: made[limits["precision"]]


@precisely
@corners
def test_one_by_one(potential, name, limits):
    atoms = CORNERS[name]
    result = potential(limits).predict([atoms])[0]
    assert_equal(atoms, result.energies, result.forces, result.stress, limits)
    assert result.energy == pytest.approx(result.energies.sum(), rel=1e-14)


@precisely
def test_all_in_one_batch(potential, limits):
    mixed = [*CORNERS.values(), *NOTHING.values(), *reversed(CORNERS.values())]
    results = potential(limits).predict(mixed)
    assert len(results) == len(mixed)
    for atoms, result in zip(mixed, results, strict=True):
        if len(atoms):
            assert_equal(atoms, result.energies, result.forces, result.stress, limits, str(atoms))
    for k, atoms in enumerate(mixed[:6]):
        (alone,) = potential(limits).predict([atoms])
        np.testing.assert_allclose(results[k].forces, alone.forces, atol=limits["forces"] / 10)


@singly
def test_the_calculator_one_after_the_other(potential, limits):
    """One calculator for all: nothing of one structure stays behind in the next."""
    calculator = MLFFCalculator(potential(limits))
    wide = [
        name for name, atoms in CORNERS.items() if np.ptp(atoms.positions, axis=0).max(initial=0.0) > 100 or "huge" in name
    ]
    names = np.random.default_rng(0).permutation([*CORNERS, *NOTHING] if limits is EXACT else wide)
    for name in names:
        atoms = (CORNERS | NOTHING)[name].copy()
        atoms.calc = calculator
        energies, forces = atoms.get_potential_energies(), atoms.get_forces()
        stress = atoms.get_stress(voigt=False) if atoms.pbc.all() else None
        if len(atoms):
            assert_equal(atoms, energies, forces, stress, limits, name)


def test_no_atoms_have_no_energy_no_forces_and_no_stress(potential):
    """As an ASE user expects of a sum over atoms: zero, in the shapes of n = 0; only simulating nothing is an error."""
    for atoms in NOTHING.values():
        (result,) = potential(EXACT).predict([atoms])
        assert result.energy == 0.0 and result.forces.shape == (0, 3) and result.energies.shape == (0,)
        assert (result.stress is None) == (not atoms.pbc.all())
        assert potential(EXACT).hessian(atoms).shape == (0, 0)
        assert potential(EXACT).hessian_vector_product(atoms, np.zeros((0, 3))).shape == (0, 3)
        atoms.calc = MLFFCalculator(potential(EXACT))
        assert atoms.get_potential_energy() == 0.0 and atoms.get_forces().shape == (0, 3)
        if atoms.pbc.all():
            assert np.array_equal(result.stress, np.zeros((3, 3))) and np.array_equal(atoms.get_stress(), np.zeros(6))


def layouts(array):
    """The same numbers in other memory."""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    locked = array.copy()
    locked.flags.writeable = False
    return {
        "strided": wide[..., ::2],
        "backwards": array[::-1].copy()[::-1],
        "Fortran": np.asfortranarray(array),
        "big-endian": array.astype(array.dtype.newbyteorder(">")),
        "read-only": locked,
    }


@pytest.mark.parametrize("layout", ["strided", "backwards", "Fortran", "big-endian", "read-only"])
def test_the_layout_of_arrays_changes_nothing(potential, layout):
    atoms = unwrapped()
    right = potential(EXACT).predict([atoms])[0]
    arrays = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array, "pbc": atoms.pbc}
    changed = {name: layouts(array)[layout] for name, array in arrays.items()}
    structure = Structure(**changed)
    hidden = Atoms(atoms)
    hidden.arrays["positions"], hidden.arrays["numbers"] = changed["positions"], changed["numbers"]
    hidden.cell.array, hidden._pbc = changed["cell"], changed["pbc"]
    for other in (structure, hidden):
        result = potential(EXACT).predict([other])[0]
        assert result.energy == right.energy and np.array_equal(result.forces, right.forces)
        assert np.array_equal(result.stress, right.stress)
    hidden.calc = MLFFCalculator(potential(EXACT))
    np.testing.assert_allclose(hidden.get_forces(), right.forces, atol=1e-9)
    np.testing.assert_allclose(hidden.get_stress(voigt=False), right.stress, atol=1e-9)
    assert hidden.get_potential_energy() == pytest.approx(right.energy, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8, ">i2"])
def test_the_type_of_numbers_changes_nothing(potential, dtype):
    """Positions and cell of any real type count as the numbers that they are."""
    grid = Atoms("Cu8", 2 * np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3), cell=[5, 6, 7], pbc=True)
    right = potential(EXACT).predict([grid])[0]
    numbers = grid.numbers.astype(dtype if np.issubdtype(dtype, np.integer) else np.int64)
    structure = Structure(numbers, grid.positions.astype(dtype), grid.cell.array.astype(dtype), grid.pbc)
    other = Atoms(grid)
    other.arrays["positions"], other.arrays["numbers"] = structure.positions, numbers
    for same in (structure, other):
        result = potential(EXACT).predict([same])[0]
        assert result.energy == right.energy and np.array_equal(result.forces, right.forces)
    other.calc = MLFFCalculator(potential(EXACT))
    np.testing.assert_allclose(other.get_forces(), right.forces, atol=1e-9)
    other.arrays["positions"] = other.positions + np.ones(3, dtype)
    np.testing.assert_allclose(other.get_forces(), right.forces, atol=1e-9)


def test_plain_lists_are_a_structure_too(potential):
    right = potential(EXACT).predict([cluster(4)])[0]
    listed = Structure([29] * 4, cluster(4).positions.tolist(), [[0, 0, 0]] * 3, [False] * 3)
    assert np.array_equal(potential(EXACT).predict([listed])[0].forces, right.forces)


# --- everything changes between calls ----------------------------------------------------------------------------------


def nudge(atoms, rng):
    atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)


def cross_a_border(atoms, rng):
    atoms.positions[rng.integers(len(atoms))] += rng.integers(-3, 4, 3) * atoms.pbc @ atoms.cell.array


def drift(atoms, rng):
    atoms.positions += rng.normal(0, 1.0, 3)


def wrap(atoms, rng):
    atoms.wrap()


def shrink(atoms, rng):
    """Less than half the length in a few calls; then large again."""
    share = 0.86 if atoms.get_volume() > 60 + 9 * len(atoms) else 1.8
    atoms.set_cell(atoms.cell.array * share, scale_atoms=True)


def shear(atoms, rng):
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)


def shrink_around_the_atoms(atoms, rng):
    """The cell alone; atoms of opposite sides come nearer."""
    atoms.set_cell(atoms.cell.array * rng.choice([0.93, 1.08]), scale_atoms=False)


def mirror(atoms, rng):
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])


def turn_a_direction_off_or_on(atoms, rng):
    axis = rng.integers(3)
    pbc = atoms.pbc.copy()
    pbc[axis] = not pbc[axis]
    atoms.pbc = pbc


def exchange_elements(atoms, rng):
    atoms.numbers[rng.integers(len(atoms))] = rng.choice([1, 6, 8, 14, 18, 29])


def permute(atoms, rng):
    order = rng.permutation(len(atoms))
    atoms.positions, atoms.numbers = atoms.positions[order], atoms.numbers[order]


def remove(atoms, rng):
    if len(atoms) > 2:
        del atoms[int(rng.integers(len(atoms)))]


def add(atoms, rng):
    if len(atoms) < 14:
        atoms.append("Ar")
        atoms.positions[-1] = rng.uniform(-1, 2, 3) @ atoms.cell.array


CHANGES = [nudge, nudge, nudge, cross_a_border, drift, wrap, shrink, shear, shrink_around_the_atoms, mirror]
CHANGES += [turn_a_direction_off_or_on, exchange_elements, permute, remove, add]


@pytest.mark.parametrize(
    ("skin", "seed"), [pytest.param(0.0, 0, marks=pytest.mark.slow), (0.3, 1), pytest.param(2.0, 2, marks=pytest.mark.slow)]
)
def test_whatever_changes_between_calls_the_calculator_is_as_good_as_new(potential, skin, seed):
    rng = np.random.default_rng(seed)
    atoms = crystal(cell=1.2 * np.eye(3)[rng.permutation(3)], seed=seed)
    calculator = MLFFCalculator(potential(EXACT), skin=skin)
    for step in range(25):
        before = atoms.copy()
        for change in rng.choice(CHANGES, size=rng.integers(1, 3)):
            change(atoms, rng)
        if too_near(atoms):
            atoms = before
            continue
        atoms.calc = calculator
        stress = atoms.get_stress(voigt=False) if atoms.pbc.all() and step % 3 == 0 else None
        energies, forces = atoms.get_potential_energies(), atoms.get_forces()
        right = expected(atoms)
        size = max(1.0, np.abs(right[1]).max())
        np.testing.assert_allclose(energies, right[0], rtol=1e-12, atol=1e-9 * size, err_msg=f"step {step}: {change}")
        np.testing.assert_allclose(forces, right[1], rtol=1e-7, atol=1e-8 * size, err_msg=f"step {step}: {change}")
        if stress is not None:
            np.testing.assert_allclose(stress, right[2], rtol=1e-7, atol=1e-8 * size)
    if skin == 2.0:
        assert calculator.rebuilds < 24


def too_near(atoms):
    """Whether some pair is nearer than 1 Å: nothing to compare digits on."""
    nearest = images.pair_sum(atoms, lambda r: ((r < 1.0) * 1.0, 0.0 * r), 1.0)[0]
    return bool(nearest.any())


def test_a_cell_that_shrinks_under_the_skin_is_noticed(potential):
    """Atoms that do not move at all, in fractions: new neighbours come in from beyond cutoff and skin."""
    atoms = Atoms("Cu4", cell=[6, 6, 6], pbc=True, scaled_positions=[[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    atoms.calc = calculator = MLFFCalculator(potential(EXACT), skin=0.5)
    for _ in range(30):
        atoms.set_cell(atoms.cell.array * 0.98, scale_atoms=True)
        assert_equal(atoms, atoms.get_potential_energies(), atoms.get_forces(), atoms.get_stress(voigt=False), EXACT)
    assert 4 < calculator.rebuilds < 30


# --- large -------------------------------------------------------------------------------------------------------------
MANY = """
import jax
import numpy as np
from ase.build import bulk
from mlff.interfaces.ase import MLFFCalculator
from tests import images
from tests.memory import peak
from tests.potentials import BASELINE, lennard_jones

small = bulk("Cu", a=3.7, cubic=True)
small.rattle(0.08, seed=0)
energies, forces, stress = images.pair_sum(small, images.lennard_jones(0.1, 2.3, 5.0), 5.0)
energies += BASELINE[29]
many = small.repeat((25, 25, 40))
assert len(many) == 100_000
before = peak()
potential = lennard_jones()
many.calc = MLFFCalculator(potential)
for result in (potential.predict([many])[0], None):
    found = many.get_forces() if result is None else result.forces
    assert np.abs(found - np.tile(forces, (25_000, 1))).max() < 5e-4
    found = many.get_stress(voigt=False) if result is None else result.stress
    assert np.abs(found - stress).max() < 1e-5
    found = many.get_potential_energy() if result is None else result.energy
    assert abs(found / 25_000 - energies.sum()) < 1e-5
print((peak() - before) / 2**10)
"""


@pytest.mark.slow
def test_slow_a_hundred_thousand_atoms_are_right_and_need_little_memory():
    """Copies of a crystal whose forces are known; predict and the calculator, in 3 GiB."""
    done = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 3.0, f"{done.stdout} GiB"


def test_what_does_not_fit_into_memory_is_an_error_before_it_is_computed(monkeypatch):
    potential = lennard_jones(cutoff=4.0)
    atoms = bulk("Si", cubic=True)
    monkeypatch.setattr(programs_module, "_LARGE", 100)
    whole = potential.predict([atoms])[0]  # through the program that is measured
    assert np.abs(whole.forces.sum(axis=0)).max() < 1e-3
    potential = dataclasses.replace(potential)
    monkeypatch.setattr(programs_module, "free_memory", lambda: 1.0)
    with pytest.raises(StructureError, match=r"structure 1: \d+ atoms x \d+ neighbours need 0.\d GiB .* take fewer atoms"):
        potential.predict([Atoms("Si"), atoms])
    atoms.calc = MLFFCalculator(potential)
    with pytest.raises(StructureError, match="GiB are free"):
        atoms.get_forces()
    monkeypatch.setattr(programs_module, "free_memory", lambda: 2.0**40)
    np.testing.assert_allclose(atoms.get_forces(), whole.forces, atol=1e-4)


def test_nanometres_taken_for_angstrom_are_an_error_before_memory_runs_out(potential, monkeypatch):
    monkeypatch.setattr(neighbors, "free_memory", lambda: 1e9)
    nanometres = bulk("Cu", cubic=True).repeat(12)
    nanometres.set_cell(nanometres.cell.array / 10, scale_atoms=True)
    for pbc in (True, (True, False, True), False):
        nanometres.pbc = pbc
        dense = (
            "6912 atoms in a cell of 81.3 Å³; is it a placeholder, or not in Å"
            if pbc is True
            else r"about [\d,]+ neighbours per atom within 5 Å: .* in Å\?"
        )
        with pytest.raises(StructureError, match=f"structure 0: {dense}"):
            potential(SINGLE).predict([nanometres])
        nanometres.calc = MLFFCalculator(potential(SINGLE))
        with pytest.raises(StructureError, match=dense.split(" within")[0]):
            nanometres.get_forces()


# --- ghost species ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["schnet", pytest.param("ace", marks=pytest.mark.slow)])
def test_species_that_a_structure_lacks_do_not_touch_it(name):
    """Other parameters of an element that is not there leave energies and forces alone, bit by bit, and get no gradient."""
    potential = make_potential(name)
    elements = potential.elements
    atoms = Atoms("H2OSi", [[0, 0, 0], [1.2, 0, 0], [0.3, 1.1, 0], [0, 0, 2.0]])
    ghost = elements.index(6)

    def haunt(path, leaf):
        leaf, name = np.array(leaf), path[-1].key
        if "pair_embedding" in name:
            square = leaf.reshape(len(elements), len(elements), -1)
            square[ghost] += 0.5
            square[:, ghost] += 0.5
        elif "embedding" in name or name.startswith("weight_"):
            leaf[ghost] += 0.5
        return leaf

    haunted = dataclasses.replace(potential, params=jax.tree_util.tree_map_with_path(haunt, potential.params))
    changed = [
        not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (potential.params, haunted.params)), strict=True)
    ]
    assert any(changed)
    carbon = Atoms("CO", [[0, 0, 0], [1.2, 0, 0]])
    (here, touched), (there, otherwise) = (p.predict([atoms, carbon]) for p in (potential, haunted))
    assert here.energy == there.energy and np.array_equal(here.forces, there.forces)
    assert touched.energy != otherwise.energy


@pytest.mark.slow
def test_slow_training_with_species_that_the_data_lack(tmp_path):
    """Carbon only, in a model of H, C, O and Si: it learns, stays finite, and the parameters of the others get no gradient."""
    config, elements = make_config(training={"epochs": 3}), (1, 6, 8, 14)
    module = registry.build(SchNet(cutoff=3.0, channels=8, layers=1, radial_basis=8, zbl=False), elements, Statistics())
    initial = initial_params(module, seed=0)
    structures = make_structures(8, seed=0)
    task = dataclasses.replace(make_task(config, structures, apply=module.apply), params=initial)
    with Checkpoints(tmp_path / "checkpoints", 1) as checkpoints:
        trainer = Trainer(task, checkpoints, RunLog(tmp_path, progress=False), {})
        trainer.fit()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["valid_loss"] < lines[0]["valid_loss"] and trainer.run.skipped == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trainer.state))
    graph, _ = task.train.build(*task.train.plan(None)[0])
    gradient = jax.grad(lambda params: (predict(partial(module.apply, params), graph).energy ** 2).sum())(initial)
    embedding = np.asarray(gradient["params"]["embedding"])
    assert np.abs(embedding[elements.index(6)]).max() > 0 and not np.delete(embedding, elements.index(6), axis=0).any()
