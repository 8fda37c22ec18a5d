"""Pairs that someone else has found, as a graph."""

from __future__ import annotations

import functools

import ase
import jax
import numpy as np
import pytest
from ase.build import bulk, molecule

from mlff.basics.errors import StructureError
from mlff.data import pairs
from mlff.data.neighbors import neighbor_list, pair_vectors
from mlff.data.pairs import graph_of_vectors
from mlff.potential.derivatives import pair_gradient


def listed(atoms: ase.Atoms, reach: float):
    """numbers, centers, neighbours, vectors, in an order of no meaning and in float32, as an engine would give them."""
    i, j, shifts = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, reach)
    order = np.random.default_rng(0).permutation(len(i))
    vectors = pair_vectors(atoms.positions, atoms.cell.array, i, j, shifts)[order]
    return atoms.numbers, i[order], j[order], vectors.astype(np.float32)


def crystal() -> ase.Atoms:
    """Two atoms in a small skewed cell: several images of each pair, and of each atom itself."""
    atoms = bulk("Si")
    atoms.rattle(0.05, seed=2)
    return atoms


ALONE = molecule("CH4") + ase.Atoms("H", [[50, 0, 0]])  #: an atom apart
CASES = {"ace": (crystal(),), "schnet": (molecule("CH3CH2OH"), ALONE)}
LATE = {"schnet": (crystal(),), "ace": (molecule("CH3CH2OH"), ALONE)}


@pytest.mark.parametrize(
    "name, atoms",
    [(name, atoms) for name, several in CASES.items() for atoms in several]
    + [pytest.param(name, atoms, marks=pytest.mark.slow) for name, several in LATE.items() for atoms in several],
)
def test_energies_and_forces_are_those_of_the_structure(name, atoms, potentials):
    potential = potentials(name, "float32")
    numbers, i, j, vectors = listed(atoms, potential.cutoff + 1.0)  # with a skin
    graph = graph_of_vectors(numbers, i, j, vectors, potential.cutoff)
    with potential.scope():
        derive = jax.jit(lambda graph: pair_gradient(lambda g: potential.energy(potential.device_params, g), graph))
        energies, gradient = map(np.asarray, derive(graph))
    (result,) = potential.predict([atoms])
    scale = max(np.abs(result.forces).max(), np.abs(gradient).max())
    np.testing.assert_allclose(energies.sum() + potential.baseline_energy(numbers), result.energy, rtol=1e-5)
    back = gradient.reshape(-1, 3)[graph.reverse.reshape(-1)].reshape(gradient.shape)
    np.testing.assert_allclose((gradient - back).sum(axis=1), result.forces, atol=1e-5 + 1e-4 * scale)
    assert not graph.pbc.any() and len(graph.n_atoms) == 1


def test_a_pair_without_its_reverse_is_an_error():
    numbers, i, j, vectors = listed(crystal(), 3.0)
    with pytest.raises(
        StructureError, match=r"the pair of atoms \d and \d, 2\.\d+ Å apart, is not listed from \d to \d too"
    ):
        graph_of_vectors(numbers, i[1:], j[1:], vectors[1:], 3.0)
    half = i < j  # a half list
    with pytest.raises(StructureError, match="give a full neighbour list"):
        graph_of_vectors(numbers, i[half], j[half], vectors[half], 3.0)
    turned = vectors.copy()
    turned[0] *= -1
    with pytest.raises(StructureError, match="is not listed"):
        graph_of_vectors(numbers, i, j, turned, 3.0)


def test_pairs_twice_or_of_atoms_that_are_not_there_are_errors():
    numbers, i, j, vectors = listed(crystal(), 3.0)
    with pytest.raises(StructureError, match="is not listed"):
        graph_of_vectors(numbers, np.append(i, i[0]), np.append(j, j[0]), np.vstack([vectors, vectors[:1]]), 3.0)
    with pytest.raises(StructureError, match="a pair names atom 7 of 2"):
        graph_of_vectors(numbers, np.append(i, 7), np.append(j, 0), np.vstack([vectors, [[1, 0, 0]]]), 3.0)
    with pytest.raises(StructureError, match="not finite"):
        graph_of_vectors(numbers, i, j, vectors * np.nan, 3.0)
    with pytest.raises(StructureError, match="on top of each other"):
        graph_of_vectors(numbers, [0, 1], [1, 0], np.zeros((2, 3)), 3.0)


def test_no_pairs_at_all():
    graph = graph_of_vectors(np.array([1, 1]), [], [], np.zeros((0, 3)), 3.0)
    assert graph.neighbors.tolist() == [[0], [1]] and not graph.neighbor_mask.any() and graph.reverse.tolist() == [[0], [1]]


@pytest.mark.parametrize("far", [0.0, 400.0], ids=["near", "wide"])
@pytest.mark.parametrize("periodic", [True, False])
def test_large_structures_have_the_same_pairs_in_small_arrays(periodic, far, monkeypatch):
    """Some atoms lie apart, or around the corner of the cell: fragments are moved together as those of small structures."""
    atoms = bulk("Si", cubic=True).repeat(2)
    atoms.rattle(0.05, seed=0)
    if periodic:
        atoms = atoms.repeat((1, 1, 25))  # 272 Å
    else:
        atoms += ase.Atoms("H2", [[far, 1, 1], [far, 1, 1.7]])
    atoms.pbc = periodic
    given = atoms.positions, atoms.cell.array, atoms.pbc, 4.0
    whole = pairs.find_pairs(*given)
    monkeypatch.setattr(pairs, "MANY", 60)
    monkeypatch.setattr(pairs, "neighbor_slabs", functools.partial(pairs.neighbor_slabs, atoms=20))
    lean = pairs.find_pairs(*given, reverse=False)
    assert lean.reverse is None and lean.shifts.dtype == np.int8 and lean.neighbors.dtype == np.int32
    assert (lean.moves is None) == (whole.moves is None) == (not periodic and far == 0.0)
    np.testing.assert_allclose(lean.positions, whole.positions, atol=1e-9)
    rows = []
    for found in (whole, lean):
        vectors = found.positions[found.neighbors] - found.positions[:, None] + found.shifts @ atoms.cell.array
        centers = np.broadcast_to(np.arange(len(atoms))[:, None], found.mask.shape)
        table = np.column_stack([centers[found.mask], found.neighbors[found.mask], vectors[found.mask].round(6) + 0.0])
        rows.append(table[np.lexsort(table.T[::-1])])
        assert (found.neighbors[~found.mask] == centers[~found.mask]).all() and not found.shifts[~found.mask].any()
    np.testing.assert_allclose(*rows, atol=1e-5)
    assert pairs.find_pairs(*given).reverse is not None


def test_atoms_on_top_of_each_other_are_found_in_large_structures_too(monkeypatch):
    monkeypatch.setattr(pairs, "MANY", 8)
    atoms = bulk("Si", cubic=True).repeat(2)
    atoms.positions[40] = atoms.positions[3] + 1e-4
    with pytest.raises(StructureError, match="atoms 3 and 40 are on top of each other"):
        pairs.find_pairs(atoms.positions, atoms.cell.array, atoms.pbc, 4.0, reverse=False)
