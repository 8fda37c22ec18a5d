"""Beads in one call: what the calculator says of each, whatever moves, and nothing compiled anew."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule

from mlff.basics.errors import ConfigError, StructureError
from mlff.potential.beads import Beads
from mlff.potential.committee import committee
from tests.conftest import MODELS, make_potential
from tests.potentials import lennard_jones, morse

PRECISIONS = {"float32": 1e-5, "float64": 1e-10}  #: relative


def structures(kind):
    if kind == "molecule":
        atoms = molecule("CH3CH2OH")
    elif kind == "crystal":
        atoms = bulk("Si", cubic=True)
        atoms.set_cell(atoms.cell.array + [[0, 0, 0], [0.6, 0, 0], [0, 0.3, 0.1]], scale_atoms=True)
    else:
        atoms = fcc111("Si", (2, 2, 2), a=4.5, vacuum=4.0)
        atoms.pbc = (True, True, False)
    return atoms


def spread(atoms, count, width=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return atoms.positions + rng.normal(0, width, (count, len(atoms), 3)), np.repeat(atoms.cell.array[None], count, axis=0)


def compare(beads, positions, cells, atoms, stress, tolerance):
    expected = []
    for each, cell in zip(positions, cells, strict=True):
        copy = atoms.copy()
        copy.positions, copy.cell[:] = each, cell
        expected.append(copy)
    expected = beads.potential.predict(expected, stress=stress)
    largest = max(np.abs(one.forces).max() for one in expected)
    for found, one in zip(beads.compute(positions, cells, stress), expected, strict=True):
        assert found.energy == pytest.approx(one.energy, rel=tolerance)
        np.testing.assert_allclose(found.energies.sum(), found.energy)
        np.testing.assert_allclose(found.forces, one.forces, atol=10 * tolerance * largest, rtol=0)
        if stress:
            np.testing.assert_allclose(found.stress, one.stress, atol=10 * tolerance * np.abs(one.stress).max(), rtol=0)


QUICK = {"schnet"}  #: of the models


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in MODELS])
def test_beads_are_what_the_potential_says_of_each(potentials, name):
    atoms = structures("molecule")
    potential = potentials(name)
    compare(Beads(potential, atoms.numbers, atoms.pbc), *spread(atoms, 3), atoms, False, PRECISIONS["float64"])


@pytest.mark.parametrize("kind, precision", [("molecule", "float32"), ("crystal", "float64"), ("slab", "float32")])
def test_lists_follow_atoms_and_cells_without_compiling(kind, precision):
    atoms = structures(kind)
    beads = Beads(morse(precision=precision), atoms.numbers, atoms.pbc)
    positions, cells = spread(atoms, 4, 0.05)
    rng = np.random.default_rng(1)
    for _ in range(6):
        compare(beads, positions, cells, atoms, kind == "crystal", PRECISIONS[precision])
        positions = positions + rng.normal(0, 0.1, positions.shape)
        if kind != "molecule":
            stretch = np.eye(3) + np.diag([0.004, -0.003, 0])
            positions, cells = positions @ stretch, cells @ stretch
    assert beads.compilations == 1
    if kind == "slab":  # the atoms stay where they are, their images come nearer
        for squeezed in (cells, cells @ np.diag([0.7, 0.7, 1.0])):
            compare(beads, positions, squeezed, atoms, False, PRECISIONS[precision])


@pytest.mark.slow
def test_a_list_that_is_full_grows():
    atoms = structures("crystal")
    beads = Beads(morse(precision="float64"), atoms.numbers, atoms.pbc)
    positions, cells = spread(atoms, 2, 0.05)
    for scale in (1.0, 0.8, 1.0):
        compare(beads, positions * scale, cells * scale, atoms, True, PRECISIONS["float64"])
    assert beads.compilations == 2


@pytest.mark.slow
def test_many_atoms_are_computed_in_batches(monkeypatch):
    monkeypatch.setattr("mlff.potential.beads._LARGE", 10)
    atoms = structures("crystal")
    beads = Beads(morse(precision="float64"), atoms.numbers, atoms.pbc)
    compare(beads, *spread(atoms, 3), atoms, True, PRECISIONS["float64"])
    assert beads.compilations == 0


@pytest.mark.slow
def test_a_committee_gives_its_mean():
    atoms = structures("molecule")
    one = make_potential("schnet", "float64")
    other = replace(one, params=jax.tree.map(lambda leaf: 1.1 * leaf, one.params))
    together = committee([one, other])
    compare(Beads(together, atoms.numbers, atoms.pbc), *spread(atoms, 2), atoms, False, PRECISIONS["float64"])


def test_bad_input_is_one_line_that_names_the_bead():
    atoms = structures("molecule")
    beads = Beads(morse(), atoms.numbers, atoms.pbc)
    positions, cells = spread(atoms, 3)
    for _ in ("before the first list", "with a list"):
        broken = positions.copy()
        broken[1, 4] = np.nan
        with pytest.raises(StructureError, match="bead 1"):
            beads.compute(broken, cells)
        broken = positions.copy()
        broken[2, 4] = broken[2, 3]
        with pytest.raises(StructureError, match="bead 2: two atoms are on top of each other"):
            beads.compute(broken, cells)
        beads.compute(positions, cells)
    with pytest.raises(StructureError, match="bead 0: atom 0 is Fe"):
        Beads(morse(), [26] * len(atoms), atoms.pbc).compute(positions, cells)
    with pytest.raises(ConfigError, match="skin"):
        Beads(lennard_jones(), atoms.numbers, atoms.pbc, skin=-1)
