"""Distances from the training data: invariant, smooth, 1 at their rim, and the same from a file."""

from dataclasses import replace

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from scipy.spatial.transform import Rotation

from mlff import Potential, evaluate
from mlff.basics.errors import ModelFileError
from mlff.data.structure import Structure
from mlff.potential.domain import fingerprints, summarise
from mlff.report.structures import write_predictions
from tests.potentials import morse

ELEMENTS = (1, 6, 8)


def ethanol(size: float, seed: int) -> Structure:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(size, seed=seed)
    return Structure.from_atoms(atoms)


@pytest.fixture(scope="module")
def environments():
    return summarise([ethanol(0.05, seed) for seed in range(100)], ELEMENTS, cutoff=4.0)


@pytest.mark.parametrize("elements", [(6, 8), (1, 6, 7, 8, 9)])
def test_fingerprints_do_not_change_with_place_direction_order_or_cell(elements):
    rng = np.random.default_rng(0)
    solid = bulk("C", cubic=True)
    solid.numbers[:3] = 8
    solid.rattle(0.1, seed=1)
    before = fingerprints(Structure.from_atoms(solid), elements, 4.0)
    order, turn = rng.permutation(len(solid)), -Rotation.random(rng=rng).as_matrix()
    other = ase.Atoms(solid.numbers, solid.positions @ turn + 1.3, cell=solid.cell.array @ turn, pbc=True)[order]
    np.testing.assert_allclose(fingerprints(Structure.from_atoms(other), elements, 4.0), before[order], atol=1e-10)
    twice = Structure.from_atoms(solid * (1, 2, 1))
    np.testing.assert_allclose(fingerprints(twice, elements, 4.0)[: len(solid)], before, atol=1e-10)
    swapped = solid.copy()
    swapped.numbers[[0, 7]] = swapped.numbers[[7, 0]]
    assert np.abs(fingerprints(Structure.from_atoms(swapped), elements, 4.0) - before)[1:7].max() > 0.1


def test_an_atom_that_comes_into_reach_changes_little():
    pair = [Structure.from_atoms(ase.Atoms("CO", [[0, 0, 0], [0, 0, r]])) for r in (3.999, 4.001)]
    inside, outside = (fingerprints(s, ELEMENTS, 4.0) for s in pair)
    assert np.abs(inside - outside).max() < 1e-5 and not outside.any()


def test_bond_angles_count():
    water, other = molecule("H2O"), molecule("H2O")
    other.set_angle(1, 0, 2, 150)
    difference = [fingerprints(Structure.from_atoms(a), ELEMENTS, 4.0)[0] for a in (water, other)]
    assert np.abs(difference[0] - difference[1]).max() > 0.1


def test_one_is_the_rim_of_the_data(environments):
    known, alike, hot = (
        np.concatenate([environments.distances(ethanol(size, seed)) for seed in seeds])
        for size, seeds in ((0.05, range(100)), (0.05, range(200, 230)), (0.25, range(30)))
    )
    assert (known <= 1).mean() > 0.99 and 0.85 < (alike <= 1).mean() and (alike <= 2).all()
    assert np.median(hot) > 2 > np.median(alike)
    assert all(len(prints) <= 256 and prints.dtype == np.float32 for prints in environments.chosen.values())


def stretched(length: float) -> Structure:
    """Ethanol with a C-H bond of this length, Å."""
    atoms = molecule("CH3CH2OH")
    carbon = 1
    hydrogen = min((k for k in range(9) if atoms.numbers[k] == 1), key=lambda k: atoms.get_distance(carbon, k))
    atoms.set_distance(carbon, hydrogen, length, fix=0)
    return Structure.from_atoms(atoms)


def stiff(seed: int) -> Structure:
    return ethanol(0.02, seed)


@pytest.fixture(scope="module")
def stiff_ones():
    return summarise([stiff(seed) for seed in range(100)], ELEMENTS, cutoff=5.0)


def test_a_bond_shorter_or_longer_than_any_seen_is_outside(stiff_ones):
    lengths = [1.10, 1.02, 0.98, 0.92, 0.80]
    short = [stiff_ones.distances(stretched(r)).max() for r in lengths]
    assert short == sorted(short) and short[0] < 1 and short[2] > 1.5 and short[3] > 2.5
    long = [stiff_ones.distances(stretched(r)).max() for r in (1.10, 1.18, 1.22, 1.28, 1.45)]
    assert long == sorted(long) and long[2] > 1.5 and long[3] > 2.5
    alone = replace(stiff_ones, coverage=None)
    assert alone.distances(stretched(0.98)).max() < short[2], "the fingerprints would have missed it"


def test_a_distance_between_bonds_and_contacts_is_outside(stiff_ones):
    # O-H at 1.35 Å: between bonds (0.97) and the nearest that are not bonded (1.9)
    atoms = molecule("CH3CH2OH")
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
    hydrogen = min((k for k in range(9) if atoms.numbers[k] == 1), key=lambda k: atoms.get_distance(oxygen, k))
    for length in (1.35, 1.5):
        atoms.set_distance(oxygen, hydrogen, length, fix=0)
        assert stiff_ones.coverage.distances(Structure.from_atoms(atoms))[[oxygen, hydrogen]].min() > 2


def test_a_bent_angle_is_outside():
    def bent(angle, seed):
        water = molecule("H2O")
        water.set_angle(1, 0, 2, angle)
        water.rattle(0.01, seed=seed)
        return Structure.from_atoms(water)

    rng = np.random.default_rng(0)
    seen = summarise([bent(rng.normal(104, 3), seed) for seed in range(200)], (1, 8), cutoff=5.0)
    far = [seen.coverage.distances(bent(angle, 1)).max() for angle in (104, 110, 120, 130, 150)]
    assert far[0] < 1 and far[1] < 1 and far[2] > 1.5 and far[3] > 2.5 and far == sorted(far)


def test_the_same_element_bonded_to_others_has_ranges_of_its_own():
    # C=O 1.21, C-O 1.42 Å: each is a wrong length for the other
    atoms = [molecule(name) for name in ("H2CO", "CH3OH") for _ in range(40)]
    for seed, each in enumerate(atoms):
        each.rattle(0.02, seed=seed)
    seen = summarise([Structure.from_atoms(a) for a in atoms], ELEMENTS, cutoff=5.0)
    other = molecule("H2CO")
    other.set_distance(0, 1, 1.42, fix=1)
    assert seen.coverage.distances(Structure.from_atoms(molecule("H2CO"))).max() < 1
    assert seen.coverage.distances(Structure.from_atoms(other))[:2].min() > 2


@pytest.mark.parametrize(
    "make", [stiff, lambda seed: solid(seed), lambda seed: argon(seed)], ids=["molecule", "crystal", "gas"]
)
def test_structures_like_those_of_the_training_are_inside(make):
    known = [make(seed) for seed in range(60)]
    seen = summarise(known, tuple(sorted(set(known[0].numbers.tolist()))), cutoff=5.0)
    alike = np.concatenate([seen.coverage.distances(make(seed)) for seed in range(1000, 1060)])
    assert (alike <= 1).mean() > 0.97 and (alike > 2).mean() < 0.005


def solid(seed: int) -> Structure:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.rattle(0.08, seed=seed)
    return Structure.from_atoms(atoms)


def argon(seed: int) -> Structure:
    """Atoms anywhere, no two nearer than 2.2 Å."""
    rng, placed = np.random.default_rng(seed), [np.zeros(3)]
    while len(placed) < 20:
        new = rng.uniform(0, 8, 3)
        if min(np.linalg.norm(new - old) for old in placed) > 2.2:
            placed.append(new)
    return Structure.from_atoms(ase.Atoms(numbers=[18] * 20, positions=placed))


def test_distances_do_not_change_with_place_direction_order_or_cell():
    seen = summarise([solid(seed) for seed in range(20)], (11, 17), cutoff=5.0)
    atoms = bulk("NaCl", "rocksalt", a=5.3, cubic=True)
    atoms.rattle(0.15, seed=3)
    before = seen.coverage.distances(Structure.from_atoms(atoms))
    assert before.min() > 1
    rng = np.random.default_rng(0)
    order, turn = rng.permutation(len(atoms)), -Rotation.random(rng=rng).as_matrix()
    other = ase.Atoms(atoms.numbers, atoms.positions @ turn + 1.3, cell=atoms.cell.array @ turn, pbc=True)[order]
    assert seen.coverage.distances(Structure.from_atoms(other)) == pytest.approx(before[order], rel=1e-6)
    doubled = seen.coverage.distances(Structure.from_atoms(atoms * (2, 1, 1)))
    assert doubled == pytest.approx(np.tile(before, 2), rel=1e-6)
    cell = bulk("NaCl", "rocksalt", a=5.2)  # one ion of each, neighbours of their own images
    assert seen.coverage.distances(Structure.from_atoms(cell * (2, 1, 3))) == pytest.approx(
        np.tile(seen.coverage.distances(Structure.from_atoms(cell)), 6), rel=1e-6
    )


def test_dimers_beside_molecules_and_single_structures():
    dimers = [Structure.from_atoms(ase.Atoms("O2", [[0, 0, 0], [0, 0, r]])) for r in np.arange(0.9, 1.6, 0.1)]
    seen = summarise([stiff(seed) for seed in range(20)] + dimers, ELEMENTS, cutoff=5.0)
    between = Structure.from_atoms(ase.Atoms("O2", [[0, 0, 0], [0, 0, 1.25]]))
    pressed = Structure.from_atoms(ase.Atoms("O2", [[0, 0, 0], [0, 0, 0.5]]))
    assert seen.coverage.distances(between).max() < 1 and seen.coverage.distances(pressed).max() > 1.5
    one = summarise([stiff(0)], ELEMENTS, cutoff=5.0)
    assert one.coverage.distances(stiff(0)).max() < 1 < one.coverage.distances(stretched(0.8)).max()
    assert (summarise([], ELEMENTS, cutoff=5.0).coverage.distances(stretched(1.1)) > 2).any()


def test_a_file_without_ranges_has_the_distance_of_fingerprints(environments, tmp_path):
    older = replace(environments, coverage=None)
    replace(morse(), environments=older).save(tmp_path / "model.safetensors")
    loaded = Potential.load(tmp_path / "model.safetensors").environments
    structure = ethanol(0.1, 7)
    assert loaded.coverage is None and (loaded.distances(structure) == older.distances(structure)).all()


@pytest.mark.parametrize(
    "damage",
    [
        {"keys": lambda c: c.keys[:-1]},
        {"keys": lambda c: c.keys[::-1].copy()},
        {"keys": lambda c: c.keys.astype(np.int64)},
        {"intervals": lambda c: c.intervals[:, :-1].copy()},
        {"intervals": lambda c: np.full_like(c.intervals, np.nan)},
        {"intervals": lambda c: -c.intervals},
        {"intervals": lambda c: c.intervals.astype(np.float64)},
        {"rims": lambda c: {6: 0.0}},
        {"rims": lambda c: {6: -1.0}},
    ],
)
def test_damaged_ranges_are_refused(environments, damage, tmp_path):
    changes = {name: change(environments.coverage) for name, change in damage.items()}
    broken = replace(environments, coverage=replace(environments.coverage, **changes))
    replace(morse(), environments=broken).save(tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="training environments"):
        Potential.load(tmp_path / "model.safetensors")


def test_a_foreign_element_is_infinitely_far(environments):
    foreign = environments.distances(Structure.from_atoms(ase.Atoms("HN", [[0, 0, 0], [0, 0, 1.0]])))
    assert np.isfinite(foreign[0]) and foreign[1] == np.inf


def test_few_and_equal_structures():
    lattice = Structure.from_atoms(bulk("C"))
    environments = summarise([lattice] * 3, (6,), cutoff=4.0)
    assert environments.distances(lattice).max() < 0.01
    assert environments.distances(Structure.from_atoms(ase.Atoms("C"))) > 2


def test_it_travels_in_the_file(environments, tmp_path):
    potential = replace(morse(), elements=ELEMENTS, baseline={z: -1.0 for z in ELEMENTS}, environments=environments)
    potential.save(tmp_path / "model.safetensors")
    loaded = Potential.load(tmp_path / "model.safetensors")
    structure = ethanol(0.1, 7)
    assert (loaded.environments.distances(structure) == environments.distances(structure)).all()
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_predictions_tell_the_distance(environments, tmp_path):
    potential = replace(morse(), elements=ELEMENTS, baseline={z: -1.0 for z in ELEMENTS}, environments=environments)
    structure = ethanol(0.1, 7)
    ase.io.write(tmp_path / "in.xyz", structure.to_atoms())
    write_predictions(potential, tmp_path / "in.xyz", tmp_path / "out.xyz", progress=False)
    written = ase.io.read(tmp_path / "out.xyz").arrays["mlff_distance"]
    assert written == pytest.approx(environments.distances(structure), abs=1e-4)


@pytest.mark.parametrize(
    "damage",
    [
        lambda e: e.chosen[6].fill(np.nan),
        lambda e: e.chosen.update({6: e.chosen[6][:, :-1]}),
        lambda e: e.chosen.update({9: e.chosen[6]}),
        lambda e: e.units.update({6: 0.0}),
        lambda e: e.units.update({6: -1.0}),
        lambda e: e.units.pop(6),
    ],
)
def test_damaged_ones_are_refused(environments, damage, tmp_path):
    copy = replace(
        environments, chosen={z: p.copy() for z, p in environments.chosen.items()}, units=dict(environments.units)
    )
    damage(copy)
    replace(morse(), environments=copy).save(tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="training environments"):
        Potential.load(tmp_path / "model.safetensors")


def test_errors_are_told_by_distance(environments):
    potential = replace(morse(), elements=ELEMENTS, baseline={z: -1.0 for z in ELEMENTS}, environments=environments)
    structures = [
        replace(ethanol(size, seed), energy=0.0, forces=np.zeros((9, 3))) for size in (0.05, 0.3) for seed in range(500, 510)
    ]
    metrics = evaluate(potential, structures)
    assert [row["name"] for row in metrics.by_distance] == ["inside", "up to twice", "beyond"]
    assert sum(row["atoms"] for row in metrics.by_distance) == 180
    assert sum(row["structures"] for row in metrics.by_distance) == 20
    squares = sum(row["atoms"] * row["forces_rmse"] ** 2 for row in metrics.by_distance)
    assert np.sqrt(squares / 180) == pytest.approx(metrics.forces_rmse)
    assert evaluate(replace(potential, environments=None), structures).by_distance == []
