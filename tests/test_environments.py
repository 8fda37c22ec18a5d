"""Distances from the training data: invariant, smooth, 1 at their rim, and the same from a file."""

from dataclasses import replace

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from scipy.spatial.transform import Rotation

from mlff import Potential, evaluate
from mlff.data.structure import Structure
from mlff.environments import fingerprints, summarise
from mlff.errors import ModelFileError
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
