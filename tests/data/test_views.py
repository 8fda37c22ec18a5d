"""Views of structures: what changes in them, what does not, and that they can be drawn again."""

import ase
import jax
import numpy as np
import pytest
from ase.build import bulk, molecule

from mlff.basics.errors import StructureError
from mlff.config.options import Pretraining
from mlff.data.neighbors import neighbor_list, pair_vectors
from mlff.data.structure import Structure
from mlff.data.views import (
    CROPPED,
    KEPT,
    SUPERCELL,
    NoisyBatches,
    PairsOfViews,
    cropped,
    displaced,
    noisy,
    rotated,
    strained,
    supercell,
    two_views,
)

CUTOFF = 3.0
OPTIONS = Pretraining(displacement=0.03, strain=0.01)


def of(atoms, **labels):
    return Structure.from_atoms(atoms, **labels)


def lengths(structure):
    """(n, n) distances, Å, to the nearest image where there is a cell."""
    return structure.to_atoms().get_all_distances(mic=bool(structure.pbc.any()))


@pytest.fixture
def silicon():
    return of(bulk("Si"))


@pytest.fixture
def molecules():
    atoms = [molecule(name) for name in ("CH3CH2OH", "C6H6", "CH4", "H2O", "CH3OH", "C2H6")]
    return [of(a, energy=1.0, forces=np.ones((len(a), 3))) for a in atoms]


def test_a_small_cell_becomes_a_supercell_of_the_same_crystal(silicon):
    view = supercell(silicon)
    assert len(view.structure) == 16 >= SUPERCELL and view.structure.volume == pytest.approx(8 * silicon.volume)
    assert np.bincount(view.origin).tolist() == [8, 8]
    for structure in (silicon, view.structure):
        i, j, shifts = neighbor_list(structure.positions, structure.cell, structure.pbc, 6.0)
        found = np.linalg.norm(pair_vectors(structure.positions, structure.cell, i, j, shifts), axis=1)
        shells = np.unique(found.round(6), return_counts=True)
        assert (shells[1] / len(structure))[:3].tolist() == [4, 12, 12] and shells[0][0] == pytest.approx(2.351, abs=1e-3)
    assert len(supercell(of(bulk("Si", cubic=True).repeat(2))).structure) == 64


def test_displacements_have_the_standard_deviation_asked_for(silicon):
    big = supercell(of(silicon.to_atoms().repeat(8)))
    moves = displaced(big, np.random.default_rng(0), 0.05)
    assert np.std(moves.displacements) == pytest.approx(0.05, rel=0.02)
    np.testing.assert_allclose(moves.structure.positions - big.structure.positions, moves.displacements)


def test_strain_moves_atoms_with_the_cell_and_is_symmetric(silicon):
    view = strained(supercell(silicon), np.random.default_rng(1), 0.02)
    before = supercell(silicon).structure
    shares = [s.to_atoms().get_scaled_positions(wrap=False) for s in (before, view.structure)]
    np.testing.assert_allclose(*shares, atol=1e-12)
    strain = np.linalg.solve(before.cell, view.structure.cell)
    np.testing.assert_allclose(strain, strain.T, atol=1e-12)
    assert 1e-3 < np.abs(strain - np.eye(3)).max() < 0.1


def test_a_rotation_keeps_lengths_and_handedness(silicon, molecules):
    for structure in (silicon, molecules[0]):
        view = rotated(supercell(structure), np.random.default_rng(2))
        before = supercell(structure).structure
        np.testing.assert_allclose(lengths(view.structure), lengths(before), atol=1e-10)
        assert np.abs(view.structure.positions - before.positions).max() > 0.5
        assert np.linalg.det(view.structure.cell) == pytest.approx(np.linalg.det(before.cell))


def test_a_crop_keeps_the_nearest_and_knows_whose_neighbours_are_gone():
    atoms = bulk("Cu", cubic=True).repeat(3)
    structure = of(ase.Atoms(atoms.numbers, atoms.positions))
    view = cropped(structure, np.random.default_rng(0), CUTOFF)
    assert len(view.structure) == int(KEPT * len(structure)) and len(structure) >= CROPPED
    np.testing.assert_array_equal(structure.positions[view.origin], view.structure.positions)
    distances = lengths(structure)
    gone = np.setdiff1d(np.arange(len(structure)), view.origin)
    lost = (distances[np.ix_(view.origin, gone)] < CUTOFF).any(axis=1)
    np.testing.assert_array_equal(view.whole, ~lost)
    assert 0 < view.whole.sum() < len(view.whole)
    assert len(cropped(of(molecule("H2O")), np.random.default_rng(0), CUTOFF).structure) == 3


def test_views_carry_no_labels(molecules):
    for view in two_views(molecules[0], np.random.default_rng(0), OPTIONS, CUTOFF):
        assert view.structure.labels == {}


def test_noise_is_what_its_forces_point_back_along(molecules):
    structure = molecules[0]
    view = noisy(structure, np.random.default_rng(3), OPTIONS)
    moves = view.structure.positions - structure.positions
    np.testing.assert_allclose(view.structure.forces, -moves / OPTIONS.displacement, atol=1e-10)
    np.testing.assert_allclose(view.structure.forces.sum(axis=0), 0, atol=1e-9)
    assert list(view.structure.labels) == ["forces"]


@pytest.mark.parametrize("kind", [PairsOfViews, NoisyBatches])
def test_batches_are_the_same_for_a_seed_and_others_in_each_epoch(kind, molecules):
    batches = [kind(molecules, CUTOFF, OPTIONS, 3) for _ in range(2)]

    def epoch(batches, number):
        """The views of each structure."""
        found = {}
        for sizes, batch in batches.plan(np.random.default_rng([0, number, 0])):
            views = zip(batch, batches.drawn(sizes, batch), strict=True)
            found |= {index: [view.structure.positions for view, _ in drawn] for (index, _), drawn in views}
        return [found[index] for index in range(len(molecules))]

    first, again, second = epoch(batches[0], 0), epoch(batches[1], 0), epoch(batches[0], 1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not any(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    assert repr(batches[0].plan(None)) == repr(batches[0].plan(None))


@pytest.mark.parametrize("kind", [PairsOfViews, NoisyBatches])
def test_shapes_stay_those_of_the_first_look(kind, molecules, silicon):
    """Also where views have more neighbours than were seen: they are drawn with smaller displacements."""
    rough = Pretraining(displacement=0.6, strain=0.1)
    batches = kind([*molecules, silicon, of(bulk("Cu"))], 4.0, rough, 4)
    shapes = {
        (planned[0], batches.build(*planned)[0].neighbors.shape)
        for number in range(8)
        for planned in batches.plan(np.random.default_rng(number))
    }
    assert len(shapes) == len(batches.sizes)


def test_partners_are_the_same_atoms(molecules, silicon):
    batches = PairsOfViews([*molecules, silicon], CUTOFF, Pretraining(displacement=0.001, strain=0.0), 4)
    for planned in batches.plan(None):
        graph, partners = batches.build(*planned)
        first = np.flatnonzero(partners.atoms >= 0)
        other = partners.atoms[first]
        np.testing.assert_array_equal(graph.atomic_numbers[first], graph.atomic_numbers[other])
        np.testing.assert_array_equal(graph.structure[first] + 1, graph.structure[other])
        assert (graph.structure[first] % 2 == 0).all() and len(set(other)) == len(other)
        for pair in range(0, len(graph.n_atoms), 2):
            n = graph.n_atoms[pair]
            if n != graph.n_atoms[pair + 1] or n == 0:
                continue
            here = np.flatnonzero(graph.structure[: graph.n_atoms.sum()] == pair)
            there = partners.atoms[here]
            a, b = (np.linalg.norm(graph.positions[k][:, None] - graph.positions[k], axis=-1) for k in (here, there))
            np.testing.assert_allclose(a, b, atol=0.02)


def test_atoms_on_top_of_each_other_are_named():
    atoms = molecule("H2O")
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(StructureError, match="a.xyz, structure 3: atoms 0 and 1 are on top of each other"):
        PairsOfViews([of(atoms, source="a.xyz, structure 3")] * 2, CUTOFF, OPTIONS)
