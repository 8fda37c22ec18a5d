"""Reaction paths against scans and symmetry."""

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms

from mlff.basics.errors import StructureError
from mlff.properties.minimum import relaxed
from mlff.properties.path import reaction_path
from tests.potentials import morse
from tests.properties.crystals import copper, potential


@pytest.fixture(scope="module")
def hop() -> tuple[Atoms, Atoms]:
    """An atom beside a vacancy, before and after it has hopped into it."""
    atoms = copper().repeat(2)
    start = atoms[1:]
    end = start.copy()
    nearest = int(np.linalg.norm(start.positions - atoms.positions[0], axis=1).argmin())
    end.positions[nearest] = atoms.positions[0]
    return relaxed(potential(), start), relaxed(potential(), end)


def test_a_vacancy_hop_has_the_barrier_of_its_midpoint(hop):
    """By symmetry the saddle point is half way: the atom is held there, all others relax around it."""
    start, end = hop
    before = potential().programs.compilations
    found = reaction_path(potential(), start, end, images=3, fmax=0.01)
    assert potential().programs.compilations - before <= 4, "two shapes: the band, and both ends with it"
    assert found.converged and found.highest == 2 and not found.notes
    assert found.barrier == pytest.approx(found.barrier_back, abs=1e-4)
    moved = int(np.linalg.norm(end.positions - start.positions, axis=1).argmax())
    middle = start.copy()
    middle.positions = 0.5 * (start.positions + end.positions)
    middle.set_constraint(FixAtoms([moved]))
    saddle = relaxed(potential(), middle)
    energies = [result.energy for result in potential().predict([start, saddle])]
    assert found.barrier == pytest.approx(energies[1] - energies[0], abs=1e-3)
    assert found.distances[-1] > 2.0 and (np.diff(found.distances) > 0).all()


def test_a_molecule_turned_elsewhere_is_laid_over_the_first():
    """A tetrahedron of four atoms and its mirror image: half way it is flat, and what is flat stays so when it relaxes."""
    bonds = morse(precision="float64")
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 0.42
    start = relaxed(bonds, Atoms("CSiOH", positions=corners))
    end = start.copy()
    end.positions *= [1, 1, -1]
    end.rotate(70, (1, 2, 3))
    end.positions += [5.0, -3.0, 1.0]
    turned = start.copy()
    turned.rotate(70, (1, 2, 3))
    with pytest.raises(StructureError, match="the same minimum"):
        reaction_path(bonds, start, turned)
    found = reaction_path(bonds, start, end, images=4, fmax=0.02)  # an even number: the highest has to climb
    assert found.converged and found.energies[-1] == pytest.approx(0, abs=1e-6)
    assert 1.0 < found.distances[-1] < 5.0
    flat = found.images[found.highest].copy()
    arms = flat.positions - flat.positions.mean(axis=0)
    flat.positions = arms @ np.linalg.svd(arms)[2].T * [1, 1, 0]
    energies = [result.energy for result in bonds.predict([start, relaxed(bonds, flat)])]
    assert found.barrier == pytest.approx(energies[1] - energies[0], abs=2e-3) and found.barrier > 0.1


def test_ends_that_do_not_belong_together_are_refused(hop):
    start, end = hop
    bonds = morse(precision="float64")
    water = Atoms("OHH", positions=[[0, 0, 0], [1.2, 0, 0], [0.3, 1.1, 0]])
    with pytest.raises(StructureError, match="atom 0 is O in START and H in END"):
        reaction_path(bonds, water, water[[1, 0, 2]])
    with pytest.raises(StructureError, match="not made of the same atoms: H2O and HO"):
        reaction_path(bonds, water, water[:2])
    with pytest.raises(StructureError, match="the same minimum"):
        reaction_path(potential(), start, start)
    other = end.copy()
    other.set_cell(end.cell.array * 1.01)
    with pytest.raises(StructureError, match="differ in cell or periodicity"):
        reaction_path(potential(), start, other)


def test_like_atoms_that_exchange_their_numbers_are_said(hop):
    start, end = hop
    far = np.linalg.norm(start.positions - start.positions[0], axis=1).argmax()
    order = np.arange(len(end))
    order[[0, far]] = order[[far, 0]]
    found = reaction_path(potential(), start, end[order], images=1, steps=1)
    assert any("another order" in note and "Cu 0 of START" in note for note in found.notes) and not found.converged
