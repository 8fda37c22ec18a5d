"""Neighbour lists against a brute-force sum over images and against other libraries."""

import ase.neighborlist
import matscipy.neighbours
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlff.basics.errors import StructureError
from mlff.data import neighbors
from mlff.data.neighbors import coincident_pair, neighbor_list


def brute_force(positions, cell, pbc, cutoff):
    """Every pair over every image that can matter, as a dict (i, j, shift) -> distance."""
    positions, cell = np.asarray(positions, float), np.asarray(cell, float)
    reach = [0, 0, 0]
    span = np.linalg.norm(positions.max(0) - positions.min(0)) if len(positions) else 0.0
    periodic = np.flatnonzero(pbc)
    for axis in periodic:
        others = cell[[k for k in periodic if k != axis]]
        height = cell[axis] - others.T @ np.linalg.lstsq(others.T, cell[axis], rcond=None)[0] if len(others) else cell[axis]
        reach[axis] = int(np.ceil((cutoff + span) / np.linalg.norm(height)))
    shifts = np.array([s for s in np.ndindex(*[2 * r + 1 for r in reach])]) - reach
    found = {}
    for i in range(len(positions)):
        for j in range(len(positions)):
            lengths = np.linalg.norm(positions[j] - positions[i] + shifts @ cell, axis=1)
            for k in np.flatnonzero(lengths < cutoff + 1e-6):
                if i != j or shifts[k].any():
                    found[i, j, *map(int, shifts[k])] = lengths[k]
    return found


def as_dict(positions, cell, lists):
    i, j, shifts = lists
    lengths = np.linalg.norm(positions[j] - positions[i] + shifts @ np.asarray(cell, float), axis=1)
    found = {(int(a), int(b), *map(int, s)): d for a, b, s, d in zip(i, j, shifts, lengths, strict=True)}
    assert len(found) == len(i), "a pair is listed twice"
    return found


def assert_right(positions, cell, pbc, cutoff):
    positions = np.asarray(positions, float)
    i, j, shifts = lists = neighbor_list(positions, cell, pbc, cutoff)
    for array in lists:
        assert array.dtype == np.int32 and array.flags.c_contiguous
    assert shifts.shape == (len(i), 3) and i.shape == j.shape
    assert (np.diff(i) >= 0).all()
    assert not shifts[:, ~np.asarray(pbc, bool)].any()
    found, expected = as_dict(positions, cell, lists), brute_force(positions, cell, pbc, cutoff)
    edge = 1e-6 * cutoff
    assert set(found) <= set(expected)
    assert {pair for pair, d in expected.items() if d < cutoff - edge} <= set(found)
    assert all(d < cutoff + edge for d in found.values())
    assert {(b, a, -x, -y, -z) for a, b, x, y, z in found} == set(found)


@st.composite
def systems(draw):
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    n = draw(st.integers(1, 8))
    pbc = draw(st.tuples(*[st.booleans()] * 3))
    cutoff = draw(st.sampled_from([1.5, 3.0, 5.0]))
    lengths = [draw(st.sampled_from([0.9, 2.3, 4.0, 9.0])) * cutoff / 3.0 for _ in range(3)]
    shear = draw(st.sampled_from([0.0, 0.3, 1.5]))
    cell = np.diag(lengths) + shear * np.triu(rng.uniform(-1, 1, (3, 3)), 1) * np.max(lengths)
    cell = cell @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    if draw(st.booleans()):
        cell = cell[[1, 0, 2]]
    positions = rng.uniform(-0.2, 1.2, (n, 3)) @ cell
    if draw(st.booleans()):
        cell[~np.array(pbc)] = 0.0
    return positions, cell, pbc, cutoff


@given(systems())
@settings(max_examples=120, deadline=None)
def test_agrees_with_brute_force(system):
    assert_right(*system)


@given(systems())
@settings(max_examples=60, deadline=None)
def test_the_tree_agrees_with_brute_force(system):
    most = neighbors._MOST_CELLS
    neighbors._MOST_CELLS, neighbors._FEWEST_ACROSS = 0.0, np.inf
    try:
        assert_right(*system)
    finally:
        neighbors._MOST_CELLS, neighbors._FEWEST_ACROSS = most, 2.0


@given(systems(), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_slabs_have_the_same_pairs(system, atoms):
    positions, cell, pbc, cutoff = system
    expected = as_dict(positions, cell, neighbor_list(*system))
    parts = list(neighbors.neighbor_slabs(*system, atoms=atoms))
    assert sorted(np.concatenate([centers for centers, *_ in parts]).tolist()) == list(range(len(positions)))
    assert all((np.diff(i) >= 0).all() for _, i, _, _ in parts)
    found = as_dict(positions, cell, [np.concatenate(p) for p in zip(*((c[i], j, s) for c, i, j, s in parts), strict=True)])
    edge = 1e-9 * cutoff
    assert {p for p, d in found.items() if d < cutoff - edge} == {p for p, d in expected.items() if d < cutoff - edge}


@pytest.mark.parametrize("pbc", [(0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)])
@pytest.mark.parametrize("lengths", [(1e7, 4, 4), (1550, 1550, 5), (2000, 2000, 1), (11, 11, 1.1e6), (1e9, 1e9, 1e9)])
def test_long_flat_and_exploded_systems(lengths, pbc):
    rng = np.random.default_rng(0)
    fractional = rng.uniform(0, 1, (80, 3))
    fractional[40:] = fractional[:40] + rng.uniform(-1, 1, (40, 3)) / np.array(lengths)
    positions = fractional * lengths
    i, j, shifts = neighbor_list(positions, np.diag(lengths), pbc, 5.0)
    assert set(zip(i.tolist(), j.tolist(), strict=True)) >= {(k, k + 40) for k in range(40)}
    assert (np.linalg.norm(positions[j] - positions[i] + shifts @ np.diag(lengths), axis=1) < 5 + 1e-6).all()


@given(systems(), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_moving_atoms_by_many_cells_changes_only_the_shifts(system, seed):
    positions, cell, pbc, cutoff = system
    jumps = np.random.default_rng(seed).integers(-1000, 1001, positions.shape) * np.array(pbc)
    here = as_dict(positions, cell, neighbor_list(positions, cell, pbc, cutoff))
    moved = positions + jumps @ cell
    there = as_dict(moved, cell, neighbor_list(moved, cell, pbc, cutoff))
    back = {(a, b, *(np.array(s) + jumps[b] - jumps[a])): d for (a, b, *s), d in there.items()}
    inner = {pair for pair, d in here.items() if d < cutoff - 1e-6}
    assert inner <= set(back)
    assert all(here.get(pair, d) == pytest.approx(d, abs=1e-8) for pair, d in back.items())
    assert all(d > cutoff - 1e-6 for pair, d in back.items() if pair not in here)


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 0, 1), (0, 0, 0)])
@pytest.mark.parametrize("n", [1, 7, 60, 300])
def test_agrees_with_other_libraries(n, pbc):
    rng = np.random.default_rng(n)
    cell = np.cbrt(n * 15.0) * (np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3)))
    positions = rng.uniform(0, 1, (n, 3)) @ cell
    ours = set(as_dict(positions, cell, neighbor_list(positions, cell, pbc, 4.0)))
    i, j, shifts = matscipy.neighbours.neighbour_list(
        "ijS", positions=positions, cell=cell, pbc=np.array(pbc, bool), cutoff=4.0
    )
    assert ours == set(as_dict(positions, cell, (i, j, shifts)))
    lists = ase.neighborlist.primitive_neighbor_list("ijS", np.array(pbc, bool), cell, positions, 4.0)
    assert ours == set(as_dict(positions, cell, lists))


def test_a_one_atom_cell_much_smaller_than_the_cutoff():
    fcc = 1.8 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0.0]])
    assert_right([[0.3, 5.0, -7.0]], fcc, (1, 1, 1), 8.0)
    assert_right([[0.3, 5.0, -7.0]], 0.3 * fcc, (1, 1, 1), 5.0)


def test_a_chain_and_a_slab_with_atoms_far_off_the_plane():
    positions = np.array([[0.0, 0, 0], [0.5, 40, 0], [0.4, 40.5, 1.0], [3.9, -0.2, 0.3]])
    assert_right(positions, np.diag([4.0, 0, 0]), (1, 0, 0), 5.0)
    assert_right(positions, np.diag([4.0, 0, 4.5]), (1, 0, 1), 5.0)


def test_periodic_directions_decide_not_the_cell():
    rng = np.random.default_rng(3)
    for n in (9, 80):
        positions = rng.uniform(0, 3, (n, 3))
        alone = neighbor_list(positions, np.zeros((3, 3)), (0, 0, 0), 2.0)
        in_a_cell = neighbor_list(positions, 3 * np.eye(3), (0, 0, 0), 2.0)
        singular = neighbor_list(positions, np.ones((3, 3)), (0, 0, 0), 2.0)
        for a, b, c in zip(alone, in_a_cell, singular, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)
    flat = np.array([[3.0, 0, 0], [0, 3.0, 0], [3.0, 3.0, 0]])
    assert_right(rng.uniform(0, 3, (5, 3)), flat, (1, 1, 0), 4.0)


@pytest.mark.parametrize("pbc", [(0, 0, 0), (1, 1, 1)])
def test_no_atoms_one_atom_no_pair(pbc):
    for positions in (np.zeros((0, 3)), np.array([[0.0, 0, 0]]), np.array([[0.0, 0, 0], [9.0, 9, 9]])):
        i, j, shifts = neighbor_list(positions, 30 * np.eye(3), pbc, 5.0)
        assert i.shape == j.shape == (0,) and shifts.shape == (0, 3)
        assert i.dtype == shifts.dtype == np.int32


def test_views_and_other_types_come_out_right():
    rng = np.random.default_rng(0)
    positions, cell = rng.uniform(0, 6, (60, 3)), 6 * np.eye(3) + rng.uniform(-1, 1, (3, 3))
    expected = neighbor_list(positions, cell, (1, 1, 1), 3.0)
    wide = np.zeros((60, 6))
    wide[:, ::2] = positions
    for p, c in (
        (wide[:, ::2], np.asfortranarray(cell)),
        (positions.astype(">f8"), cell.astype(">f8")),
        (np.asfortranarray(positions), cell.T.copy().T),
        (positions.tolist(), cell.tolist()),
    ):
        for a, b in zip(expected, neighbor_list(p, c, [True] * 3, 3.0), strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_cannot_have_neighbours_is_refused():
    line = [[0.0, 0, 0], [1.0, 0, 0]]
    with pytest.raises(StructureError, match="atom 1"):
        neighbor_list([[0.0, 0, 0], [np.nan, 0, 0]], np.eye(3), (1, 1, 1), 3.0)
    with pytest.raises(StructureError, match="cell vector b is zero"):
        neighbor_list(line, np.diag([3.0, 0, 3]), (1, 1, 1), 3.0)
    with pytest.raises(StructureError, match="one plane"):
        neighbor_list(line, [[3.0, 0, 0], [0, 3, 0], [3, 3, 0]], (1, 1, 1), 3.0)
    with pytest.raises(StructureError, match="not finite"):
        neighbor_list(line, np.diag([3.0, np.inf, 3]), (1, 1, 1), 3.0)
    with pytest.raises(ValueError, match="cutoff"):
        neighbor_list(line, np.eye(3), (1, 1, 1), 0.0)


def test_coincident_atoms_are_found_across_the_boundary():
    cell = 50 * np.eye(3)
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 50, (40, 3))
    assert coincident_pair(positions, cell, (1, 1, 1), 1e-3) is None
    positions[7] = positions[3] + [50.0, 0, -100 + 2e-4]
    assert coincident_pair(positions, cell, (1, 1, 1), 1e-3) == (3, 7)
    assert coincident_pair(positions, cell, (0, 0, 0), 1e-3) is None
    positions[7] = positions[3]
    assert coincident_pair(positions, cell, (0, 0, 0), 1e-3) == (3, 7)
    assert coincident_pair([[0.0, 0, 0]], 5e-4 * np.eye(3), (1, 0, 0), 1e-3) == (0, 0)
    assert coincident_pair(np.zeros((0, 3)), cell, (1, 1, 1), 1e-3) is None
