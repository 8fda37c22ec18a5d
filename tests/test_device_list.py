"""The neighbour list of the device is that of the host: every pair, every image, and each pair seen from both ends."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

from mlff.data.neighbors import neighbor_list
from mlff.potential import capacity, device_list, linked_cells
from mlff.potential.capacity import Capacity, Search, room_from_numbers, room_in_numbers

CUTOFF, SKIN, ATOMS = 3.0, 0.4, 7
PERIODICITIES = [(False, False, False), (True, True, True), (False, True, True)]
PERIODICITIES += [pytest.param(pbc, marks=pytest.mark.slow) for pbc in ((True, False, False), (True, False, True))]


@functools.cache
def builder(search, room):
    return jax.jit(functools.partial(device_list.build, search, room))


def build(search, room, positions, cell):
    """The list, what it needed, and its graph, of one structure."""
    with jax.enable_x64(True):
        box = capacity.box_of(search.pbc, cell)
        positions, cell, box = (jnp.asarray(array, jnp.float64)[None] for array in (positions, cell, box))
        listed, demand = builder(search, room)(positions, cell, box)
        numbers = jnp.full(positions.shape[1], 14, jnp.int32)
        return listed, demand, device_list.graph_at(search, listed, numbers, positions, cell, box)


def triples(listed):
    """(i, j, S) of all pairs, S between the atoms where they are."""
    i, slots = np.nonzero(np.asarray(listed.mask[0]))
    j = np.asarray(listed.neighbors[0])[i, slots]
    shifts = np.zeros((len(i), 3)) if listed.shifts is None else np.asarray(listed.shifts[0])[i, slots]
    lattice = np.asarray(listed.lattice[0])
    return i, j, np.rint(shifts + lattice[j] - lattice[i]).astype(int), slots


def assert_right(search, room, positions, cell):
    listed, demand, graph = build(search, room, positions, cell)
    i, j, shifts, slots = triples(listed)
    found = {(int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, shifts, strict=True)}
    expected = neighbor_list(positions, cell, np.array(search.pbc), search.cutoff + search.skin)
    assert found == {(int(a), int(b), *map(int, s)) for a, b, s in zip(*expected, strict=True)} and len(found) == len(i)
    assert int(demand.neighbors) == np.bincount(i, minlength=1).max() and bool(device_list.fits(room, demand))
    reverse = np.asarray(graph.reverse)
    assert np.array_equal(np.sort(reverse, axis=None), np.arange(reverse.size))
    assert np.array_equal(reverse.reshape(-1)[reverse.reshape(-1)], np.arange(reverse.size))
    other = dict(zip(zip(i.tolist(), slots.tolist(), strict=True), zip(j, i, *-shifts.T, strict=True), strict=True))
    for (a, slot), wanted in other.items():
        back = divmod(int(reverse[a, slot]), room.neighbors)
        (place,) = np.flatnonzero((i == back[0]) & (slots == back[1]))
        assert (i[place], j[place], *shifts[place]) == wanted
    empty = ~np.asarray(graph.neighbor_mask)
    own = np.arange(reverse.size).reshape(reverse.shape)
    assert np.array_equal(reverse[empty], own[empty])
    assert not np.asarray(graph.pair_vectors)[empty].any()
    vectors = positions[j] - positions[i] + shifts @ cell
    assert np.allclose(np.asarray(graph.pair_vectors)[i, slots], vectors, atol=2e-5)


@pytest.mark.parametrize("pbc", PERIODICITIES, ids=str)
def test_it_is_the_list_of_the_host(pbc):
    """Skewed, left-handed and tiny cells; atoms many cells away; the same shapes for all."""
    rng = np.random.default_rng(sum(pbc))
    search = Search(pbc, CUTOFF, SKIN, np.float32)
    for number in range(10):
        length = (2.0, 3.5, 7.0)[number % 3]
        cell = length * (np.eye(3) + rng.uniform(-0.4, 0.4, (3, 3)))
        if number % 2:
            cell = cell[[1, 0, 2]] * [1, 1, -1] if number % 4 == 1 else cell[[1, 0, 2]]
        positions = rng.uniform(0, 1, (ATOMS, 3)) @ cell * (1 if all(pbc) else 2)
        positions += (rng.integers(-5, 6, (ATOMS, 3)) * np.array(pbc)) @ cell
        most = int(np.bincount(neighbor_list(positions, cell, np.array(pbc), CUTOFF + SKIN)[0], minlength=1).max())
        images = capacity.image_counts(search, cell)
        room = Capacity(400 if all(pbc) else 160, tuple(5 * p for p in pbc))
        assert most <= room.neighbors and (images <= room.images).all(), "the test needs more room"
        assert_right(search, room, positions, cell)


def test_pairs_at_the_cutoff_to_the_last_digit_are_listed_from_both_ends():
    """In a perfect crystal whose lattice constant is the reach of the list, rounding decides on each pair."""
    atoms = bulk("Si", a=CUTOFF + SKIN, cubic=True)
    search = Search((True, True, True), CUTOFF, SKIN, np.float64)
    rng = np.random.default_rng(0)
    for _ in range(5):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        listed, _, graph = build(search, Capacity(64, (2, 2, 2)), atoms.positions @ turn, atoms.cell.array @ turn)
        reverse = np.asarray(graph.reverse).reshape(-1)
        assert np.array_equal(reverse[reverse], np.arange(reverse.size))
        assert (np.asarray(listed.mask).reshape(-1)[reverse] == np.asarray(listed.mask).reshape(-1)).all()


def test_a_list_without_room_says_so():
    atoms = bulk("Si", cubic=True)
    search = Search((True, True, True), CUTOFF, SKIN, np.float32)
    room = capacity.allocate(search, atoms.positions, atoms.cell.array)
    demand = build(search, room, atoms.positions, atoms.cell.array)[1]
    assert bool(device_list.fits(room, demand))
    demand = build(search, room, 0.6 * atoms.positions, 0.6 * atoms.cell.array)[1]
    assert not bool(device_list.fits(room, demand))
    assert int(demand.neighbors) > room.neighbors or (np.asarray(demand.images) > room.images).any()


def test_it_holds_until_a_pair_could_have_come_within_the_cutoff():
    rng, atoms = np.random.default_rng(1), bulk("Si", cubic=True)
    search = Search((True, True, True), CUTOFF, SKIN, np.float64)
    room = Capacity(64, (2, 2, 2))
    listed = build(search, room, atoms.positions, atoms.cell.array)[0]
    kept = 0
    with jax.enable_x64(True):
        holds = jax.jit(functools.partial(device_list.holds, search))
        for number in range(60):
            strain = np.eye(3) + rng.normal(0, 0.004 * (number % 3), (3, 3))
            moved = (atoms.positions + rng.normal(0, 0.05, (8, 3))) @ strain + rng.normal(0, 9, 3)
            cell = atoms.cell.array @ strain
            if not bool(holds(listed, jnp.asarray(moved)[None], jnp.asarray(cell)[None])[0]):
                continue
            kept += 1
            i, j, shifts = neighbor_list(moved, cell, atoms.pbc, CUTOFF)
            now = {(int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, shifts, strict=True)}
            assert now <= {(int(a), int(b), *map(int, s)) for a, b, s in zip(*triples(listed)[:3], strict=True)}
        assert 5 < kept < 60
        assert not bool(holds(listed, jnp.full((1, 8, 3), jnp.nan), listed.cell)[0])


# --- by a grid ------------------------------------------------------------------------------------------------------

REACH = CUTOFF + SKIN
CUBE = 3.1 * REACH * np.eye(3)
SKEWED = np.array([[3.4, 0.3, 0.2], [1.0, 3.7, -0.4], [-0.8, 0.9, 3.9]]) * REACH
GRIDS = [  # cell, periodicity, grid
    pytest.param(SKEWED, (True, True, True), id="skewed"),
    pytest.param(SKEWED[[1, 0, 2]], (True, True, True), id="left-handed"),
    pytest.param(CUBE * [[1], [1], [0]], (True, True, False), id="slab", marks=pytest.mark.slow),
    pytest.param(SKEWED * [[0], [1], [0]], (False, True, False), id="wire", marks=pytest.mark.slow),
    pytest.param(CUBE * 0, (False, False, False), id="molecule", marks=pytest.mark.slow),
    pytest.param(1.2 * REACH * np.eye(3), (True, True, True), id="one grid cell", marks=pytest.mark.slow),
]


def by_grid(search, positions, cell):
    """A grid, whether it pays or not, with room for 48 neighbours and 24 atoms in a grid cell, or for what is there."""
    fractions, heights = capacity.fractions_of(search, positions, cell)
    grid = linked_cells.choose(search.pbc, REACH, fractions, heights)
    slots = max(48, capacity.allocate(search, positions, cell).neighbors)
    return Capacity(slots, (0, 0, 0), grid, max(24, linked_cells.fullest(search.pbc, REACH, grid, fractions)))


@pytest.mark.parametrize(("cell", "pbc"), GRIDS)
def test_a_grid_finds_the_pairs_of_the_host(cell, pbc):
    """Atoms anywhere, on faces of grid cells and many cells away too; one far from the others where there is no cell."""
    rng = np.random.default_rng(3)
    search = Search(pbc, CUTOFF, SKIN, np.float32)
    fractions = rng.uniform(0, 1, (90, 3))
    fractions[:27] = np.array(list(itertools.product((0, 1 / 3, 2 / 3), repeat=3)))
    positions = fractions @ (3.2 * REACH * np.eye(3) if not all(pbc) else cell)
    positions += (rng.integers(-5, 6, (90, 3)) * np.array(pbc)) @ cell
    if not any(pbc):
        positions[7] += 1e4
    room = by_grid(search, positions, cell)
    assert max(room.grid) >= 3 or cell[0, 0] < 2 * REACH
    assert_right(search, room, positions, cell)


@pytest.mark.slow
def test_a_grid_with_atoms_on_its_faces_finds_all_pairs():
    """A perfect crystal whose atoms lie on the faces of the grid cells, turned, and moved across the faces of the cell."""
    atoms = bulk("Si", a=1.01 * REACH, cubic=True).repeat(3)
    search, rng = Search((True, True, True), CUTOFF, SKIN, np.float64), np.random.default_rng(0)
    for turn in (np.eye(3), np.linalg.qr(rng.normal(size=(3, 3)))[0]):
        for move in (0.0, -1e-17, 1e-9):
            positions = (atoms.positions + move) @ turn
            room = Capacity(48, (0, 0, 0), (3, 3, 3), 64)
            listed, demand, graph = build(search, room, positions, atoms.cell.array @ turn)
            expected = neighbor_list(positions, atoms.cell.array @ turn, atoms.pbc, REACH)
            rows = [np.column_stack(each).tolist() for each in (triples(listed)[:3], expected)]
            assert sorted(rows[0]) == sorted(rows[1])
            assert bool(device_list.fits(room, demand))
            reverse = np.asarray(graph.reverse).reshape(-1)
            assert np.array_equal(reverse[reverse], np.arange(reverse.size))


def test_a_grid_without_room_says_so():
    """All atoms gather in a corner: a grid cell is too small for them; under pressure the cell is too small for the grid."""
    search, rng = Search((True, True, True), CUTOFF, SKIN, np.float32), np.random.default_rng(3)
    positions = rng.uniform(0, 1, (90, 3)) @ SKEWED
    room = by_grid(search, positions, SKEWED)
    assert bool(device_list.fits(room, build(search, room, positions, SKEWED)[1]))
    demand = build(search, room, 0.2 * positions, SKEWED)[1]
    assert int(demand.occupants) == 90 > room.occupants
    assert not bool(device_list.fits(room, demand._replace(neighbors=0)))
    lost = positions + np.array([np.nan, 0, 0]) * (np.arange(90) == 4)[:, None]
    demand_without = build(search, room, lost, SKEWED)[1]
    assert bool(device_list.fits(room, demand_without)), "an atom that is nowhere is in no grid cell"
    larger = capacity.enlarge(search, 90, room, demand)
    assert larger.occupants == 90 and larger.grid == room.grid
    flat = SKEWED * [[1], [1], [0.7]]
    demand = build(search, room, positions @ np.linalg.inv(SKEWED) @ flat, flat)[1]
    assert int(demand.grid[2]) == room.grid[2] - 1
    assert not bool(device_list.fits(room, demand._replace(neighbors=0, occupants=0)))
    coarser = capacity.enlarge(search, 90, room, demand)
    assert coarser.grid == (*room.grid[:2], room.grid[2] - 1)
    assert capacity.enlarge(search, 90, room, demand._replace(grid=np.array([3, 3, 0]))).grid is None


def test_the_search_that_looks_at_less_is_taken():
    search = Search((True, True, True), CUTOFF, SKIN, np.float32)
    chosen = {}
    for repeat in (2, 10):
        atoms = bulk("Cu", cubic=True).repeat(repeat)
        chosen[repeat] = capacity.choose_grid(search, atoms.positions, atoms.cell.array)[0]
    assert chosen == {2: None, 10: (10, 10, 10)}
    sheet = bulk("Cu", cubic=True).repeat((40, 40, 1))  # too flat for a grid
    sheet.set_cell(sheet.cell.array * [1, 1, 0.9], scale_atoms=True)
    assert capacity.too_many(search, sheet.positions, sheet.cell.array)
    assert not capacity.too_many(search, atoms.positions, atoms.cell.array)
    for numbers in (room_in_numbers(Capacity(9, (0, 1, 2), (3, 4, 5), 7, 32)), np.array([9, 0, 1, 2])):
        assert room_in_numbers(room_from_numbers(numbers, 90, 1, 10)).tolist()[:4] == [9, 0, 1, 2]
    for numbers in ([99, 0, 1, 2], [9, 0, 1, 2, 3, 4, 5, 0, 0], [9, 0, 1, 2, 30, 4, 5, 7, 0], [9, 0, 1, 2, 3, 4, 5, 7, -1]):
        assert room_from_numbers(np.array(numbers), 90, 1, 10) is None
