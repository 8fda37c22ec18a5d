"""Structures to padded batches: nothing lost, nothing twice, little wasted, few shapes."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule

from mlff.basics.errors import StructureError
from mlff.data.batching import (
    Batches,
    Sample,
    Sizes,
    make_graph,
    make_labels,
    make_sample,
    round_up,
)
from mlff.data.neighbors import neighbor_list
from mlff.data.pairs import reverse_pairs, to_dense
from mlff.data.structure import Structure

CUTOFF = 3.0


def _sample(atoms: ase.Atoms, **labels) -> Sample:
    return make_sample(Structure.from_atoms(atoms, **labels), CUTOFF)


def _fake(n: int, k: int) -> Sample:
    """A sample of which only the sizes matter."""
    numbers, neighbors = np.ones(n, np.int32), np.zeros((n, k), np.int32)
    reverse = np.zeros((n, k), np.int32)
    return Sample(numbers, np.zeros((n, 3)), np.zeros((3, 3)), np.zeros(3, bool), neighbors, neighbors == 0, reverse, None)


def _mixed(count: int, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [_fake(int(n), int(min(n - 1, 30))) for n in rng.integers(2, 60, count)]


def _distances(graph) -> np.ndarray:
    """All pair distances of a graph of numpy arrays, sorted, in its own precision."""
    vectors = graph.positions[graph.neighbors] - graph.positions[:, None]
    if graph.shifts is not None:
        vectors = vectors + np.einsum("nka,nab->nkb", graph.shifts, graph.cell[graph.structure])
    return np.sort(np.linalg.norm(vectors, axis=-1)[graph.neighbor_mask])


# --- one graph ------------------------------------------------------------------------------------------------------


def test_padding_is_marked_as_such():
    samples = [_sample(molecule("H2O")), _sample(bulk("Si"))]
    graph = make_graph(samples, Sizes(4, 9, 20))
    np.testing.assert_array_equal(graph.atomic_numbers, [8, 1, 1, 14, 14, 0, 0, 0, 0])
    np.testing.assert_array_equal(graph.structure, [0, 0, 0, 1, 1, 3, 3, 3, 3])
    np.testing.assert_array_equal(graph.n_atoms, [3, 2, 0, 0])
    assert graph.neighbor_mask.sum() == sum(sample.mask.sum() for sample in samples)
    empty = ~graph.neighbor_mask
    np.testing.assert_array_equal(graph.neighbors[empty], np.broadcast_to(np.arange(9)[:, None], empty.shape)[empty])
    assert np.all(graph.shifts[empty] == 0) and np.all(graph.cell[[0, 2, 3]] == 0)
    within = graph.structure[graph.neighbors] == graph.structure[:, None]
    assert within.all()
    assert graph.positions.dtype == graph.shifts.dtype == np.float32


def test_labels_stand_beside_their_atoms_and_absent_ones_are_flagged():
    forces, stress = np.arange(9.0).reshape(3, 3), np.eye(3)
    samples = [
        _sample(molecule("H2O"), energy=-2.0, forces=forces, weight=3.0),
        _sample(bulk("Si"), stress=stress),
    ]
    labels = make_labels(samples, Sizes(3, 7, 20), np.float64)
    np.testing.assert_array_equal(labels.has["energy"], [True, False, False])
    np.testing.assert_array_equal(labels.has["forces"], [True, False, False])
    np.testing.assert_array_equal(labels.has["stress"], [False, True, False])
    np.testing.assert_array_equal(labels.values["energy"], [-2, 0, 0])
    np.testing.assert_array_equal(labels.values["forces"], np.concatenate([forces, np.zeros((4, 3))]))
    np.testing.assert_array_equal(labels.values["stress"][1], stress)
    np.testing.assert_array_equal(labels.weight, [3, 1, 0])


def test_the_baseline_is_taken_off_in_float64():
    structure = Structure.from_atoms(molecule("H2O"), energy=-20000.123456)
    sample = make_sample(structure, CUTOFF, {1: -5.0, 8: -19980.0})
    assert sample.labels["energy"] == pytest.approx(-10.123456, abs=1e-11)


def _pbc(name: str) -> ase.Atoms:
    atoms = bulk("Si", cubic=True)
    atoms.set_cell(atoms.cell.array + [[0, 0.3, 0.1], [0, 0, 0.4], [0.2, 0, 0]])
    atoms.pbc = {"bulk": True, "slab": [True, False, True], "wire": [False, True, False], "molecule": False}[name]
    return atoms


@pytest.mark.parametrize("name", ["bulk", "slab", "wire", "molecule"])
def test_atoms_far_away_keep_their_digits_in_float32(name):
    atoms = _pbc(name)
    atoms.rattle(0.1, seed=0)
    exact = _distances(make_graph([_sample(atoms)], Sizes(1, 8, 40), np.float64))
    far = atoms.copy()
    far.positions += [3000.0, -5000.0, 8000.0]
    vectors = far.cell.array[far.pbc]
    far.positions += np.random.default_rng(0).integers(-900, 900, (8, len(vectors))) @ vectors
    sample = _sample(far)
    graph = make_graph([sample], Sizes(1, 8, 40), np.float32)
    assert np.abs(graph.positions).max() < 10
    np.testing.assert_allclose(_distances(graph), exact, atol=3e-6)


def test_atoms_on_top_of_each_other_are_refused():
    atoms = ase.Atoms("HHO", positions=[[0, 0, 0], [2, 0, 0], [2, 0, 1e-4]])
    structure = Structure.from_atoms(atoms, source="a.xyz, structure 7")
    with pytest.raises(StructureError, match="a.xyz, structure 7: atoms 1 and 2 are on top of each other"):
        make_sample(structure, CUTOFF)


def test_structures_without_neighbours_and_without_atoms():
    samples = [_sample(ase.Atoms("H")), _sample(ase.Atoms()), _sample(ase.Atoms("HH", positions=[[0, 0, 0], [9, 0, 0]]))]
    assert [sample.sizes for sample in samples] == [Sizes(1, 1, 0), Sizes(1, 0, 0), Sizes(1, 2, 0)]
    batches = Batches(samples, 3)
    ((indices, graph, labels),) = batches.ordered()
    assert sorted(indices) == [0, 1, 2] and not graph.neighbor_mask.any() and graph.shifts is None
    assert graph.atomic_numbers.tolist().count(1) == 3


def _pairs(atoms: ase.Atoms, cutoff: float = CUTOFF):
    return neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)


@pytest.mark.parametrize("far", [0, 100_000], ids=["near", "images far away"])
@pytest.mark.parametrize(
    "atoms", [molecule("CH3CH2OH"), bulk("Cu"), bulk("Si", cubic=True)], ids=["molecule", "one atom", "crystal"]
)
def test_every_pair_knows_where_its_other_direction_stands(atoms, far):
    i, j, shifts = _pairs(atoms)
    moves = (
        far * np.arange(len(atoms), dtype=np.int32)[:, None] * atoms.pbc
    )  # atoms counted from other cells, as `placement` may
    shifts = shifts + moves[i] - moves[j]
    other = reverse_pairs(len(atoms), i, j, shifts)
    np.testing.assert_array_equal(i[other], j)
    np.testing.assert_array_equal(j[other], i)
    np.testing.assert_array_equal(shifts[other], -shifts)
    np.testing.assert_array_equal(other[other], np.arange(len(i)))


def test_in_a_batch_the_other_direction_is_that_of_the_same_structure():
    batches = Batches([_sample(molecule("CH4")), _sample(bulk("Si", cubic=True)), _sample(molecule("H2O"))], 3)
    for graph, _ in batches.epoch(np.random.default_rng(0)):
        flat = graph.reverse.reshape(-1)
        centers = np.broadcast_to(np.arange(len(graph.neighbors))[:, None], graph.neighbors.shape)
        np.testing.assert_array_equal(np.sort(flat), np.arange(flat.size))  # each slot once: `get` may rely on it
        np.testing.assert_array_equal(centers.reshape(-1)[flat].reshape(centers.shape), graph.neighbors)
        np.testing.assert_array_equal(graph.neighbor_mask.reshape(-1)[flat].reshape(centers.shape), graph.neighbor_mask)
        vectors = np.asarray(graph.pair_vectors)
        np.testing.assert_allclose(
            vectors.reshape(-1, 3)[flat].reshape(vectors.shape), -vectors, atol=1e-5
        )  # float32: both are differences of coordinates


def test_a_pair_listed_in_one_direction_only_is_left_out():
    i, j, shifts = _pairs(molecule("CH4"), 1.5)
    neighbors, mask, reverse, _ = to_dense(5, i[1:], j[1:], shifts[1:])  # the list lacks its first pair, seen from atom 0
    first = int(j[0])
    assert mask.sum() == len(i) - 2 and not ((neighbors[first] == 0) & mask[first]).any()
    np.testing.assert_array_equal(np.sort(reverse.reshape(-1)), np.arange(reverse.size))


def test_molecules_and_crystals_share_a_batch():
    samples = [_sample(molecule("CH4")), _sample(bulk("Si")), _sample(_pbc("slab"))]
    assert samples[0].shifts is None and samples[1].shifts is not None
    batches = Batches(samples, 3, max_classes=1)
    ((indices, graph, _),) = batches.ordered()
    expected = np.sort(np.concatenate([_distances(make_graph([s], s.sizes, np.float64)) for s in samples]))
    np.testing.assert_allclose(_distances(graph), expected, atol=1e-5)
    assert graph.shifts is not None and sorted(indices) == [0, 1, 2]


# --- many batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rng", [None, 0, 1])
@pytest.mark.parametrize("batch_size", [1, 4, 32, 1000])
def test_every_sample_once_an_epoch_within_the_budget(batch_size, rng):
    samples = _mixed(150)
    batches = Batches(samples, batch_size)
    plan = batches.plan(None if rng is None else np.random.default_rng(rng))
    assert sorted(index for _, indices in plan for index in indices) == list(range(150))
    budget = max(batch_size * np.mean([s.sizes.atoms for s in samples]) + 1, max(s.sizes.atoms for s in samples))
    for sizes, indices in plan:
        assert sizes in batches.sizes and sizes.atoms <= budget
        assert len(indices) <= sizes.structures
        assert sum(samples[i].sizes.atoms for i in indices) <= sizes.atoms
        assert max(samples[i].sizes.neighbors for i in indices) <= sizes.neighbors
        make_graph([samples[i] for i in indices], sizes)


def test_the_order_is_a_function_of_the_generator():
    batches = Batches(_mixed(60), 4)
    plans = [batches.plan(np.random.default_rng(seed)) for seed in (5, 5, 6)]
    assert plans[0] == plans[1] != plans[2]
    assert batches.plan(None) == batches.plan(None) == Batches(_mixed(60), 4).plan(None)


def test_structures_of_one_size_fill_their_batches():
    batches = Batches([_fake(9, 8) for _ in range(103)], 5)
    assert batches.sizes == [Sizes(5, 45, 8)]
    plan = batches.plan(np.random.default_rng(0))
    assert sorted(len(indices) for _, indices in plan) == [3] + [5] * 20
    assert batches.steps_per_epoch == 21


@pytest.mark.parametrize(("atoms", "structures"), [(2, 5), (9, 5), (21, 4), (27, 3), (64, 1), (192, 1)])
def test_without_a_batch_size_a_step_has_about_eighty_atoms(atoms, structures):
    assert Batches([_fake(atoms, 8) for _ in range(50)]).sizes == [Sizes(structures, structures * atoms, 8)]


def test_max_atoms_alone_says_how_large_a_batch_is():
    assert Batches([_fake(27, 8) for _ in range(50)], max_atoms=1000).sizes == [Sizes(37, 999, 8)]


def test_atoms_of_mixed_sizes_waste_little():
    samples = _mixed(400)
    for batch_size, share in ((4, 0.12), (16, 0.05)):
        plan = Batches(samples, batch_size, max_classes=1).plan(np.random.default_rng(1))
        padded = sum(sizes.atoms for sizes, _ in plan)
        assert 1 - sum(s.sizes.atoms for s in samples) / padded < share


def test_a_structure_larger_than_the_budget_raises_it():
    samples = [_fake(5, 4) for _ in range(20)] + [_fake(300, 4)]
    batches = Batches(samples, 2, max_atoms=50)
    assert batches.sizes == [Sizes(8, 300, 4)]
    assert sorted(i for _, indices in batches.plan(None) for i in indices) == list(range(21))


def test_max_atoms_is_kept():
    for sizes, _ in Batches(_mixed(100), 50, max_atoms=64).plan(None):
        assert sizes.atoms <= 64


def test_few_with_many_neighbours_get_a_class_of_their_own():
    samples = [_fake(20, 12) for _ in range(80)] + [_fake(20, 90) for _ in range(6)]
    batches = Batches(samples, 4)
    assert [sizes.neighbors for sizes in batches.sizes] == [12, 90]
    assert len(Batches(samples, 4, max_classes=1).sizes) == 1
    many = [_fake(20, k) for k in range(1, 120)]
    assert len(Batches(many, 4).sizes) == 3
    assert len(Batches([_fake(20, k) for k in (20, 21, 20, 21)], 4).sizes) == 1


def test_classes_are_cut_where_padded_pairs_are_fewest():
    rng = np.random.default_rng(3)
    samples = [_fake(int(n), int(k)) for n, k in zip(rng.integers(1, 30, 40), rng.integers(1, 25, 40), strict=True)]
    n, k = (np.array([getattr(s.sizes, name) for s in samples]) for name in ("atoms", "neighbors"))

    def cost(members):
        return n[members].sum() * k[members].max()

    classes = [members for _, members in Batches(samples, 4, gain=0.0).classes]
    levels = np.unique(k)
    best = min(
        cost(k <= low) + cost((k > low) & (k <= high)) + cost(k > high)
        for low in levels
        for high in levels
        if low < high < levels[-1]
    )
    assert sum(cost(members) for members in classes) == best


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        Batches([], 4)


def test_rungs_are_few_and_near():
    values = np.arange(0, 5000)
    for share in (0.125, 0.25, 0.5, 1.0):
        rungs = np.array([round_up(int(v), share) for v in values])
        assert np.all(rungs >= np.maximum(values, 1)) and np.all(rungs[8:] <= values[8:] * (1 + share) + 1)
        assert len(np.unique(rungs)) <= 13 * 2 / share
        assert all(round_up(int(r), share) == r for r in np.unique(rungs))
