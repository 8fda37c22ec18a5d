"""Molecules with a stretched bond: as the text says, and none where nothing can be said."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.cluster import Icosahedron
from ase.data import covalent_radii

from mlff.data.batching import make_sample
from mlff.data.stretched import far_side, pairs_of, stretched
from mlff.data.structure import Structure

CUTOFF = 4.0


def rattled(atoms: ase.Atoms, count: int = 6) -> list:
    """Samples of a molecule whose atoms are displaced by 0.03 Å."""
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(count):
        moved = atoms.copy()
        moved.positions += 0.03 * rng.normal(size=moved.positions.shape)
        samples.append(make_sample(Structure.from_atoms(moved), CUTOFF))
    return samples


def draw(samples: list, count: int = 40, seed: int = 0) -> list:
    return stretched(samples, count, CUTOFF, np.random.default_rng(seed))


def bond_of(sample) -> tuple[int, int, float]:
    """The fixed and the moving atom of the bond along which a sample is stretched, and its length."""
    i, j, lengths = pairs_of(sample)
    moves = sample.direction.any(axis=1)
    unit = sample.direction[moves][0]
    cosines = np.einsum("na,a->n", sample.positions[j] - sample.positions[i], unit) / lengths
    along = np.flatnonzero(~moves[i] & moves[j] & (cosines > 1 - 1e-9))
    k = along[lengths[along].argmin()]
    return int(i[k]), int(j[k]), float(lengths[k])


@pytest.fixture(scope="module")
def ethanol() -> list:
    return rattled(molecule("CH3CH2OH"))


@pytest.mark.parametrize(
    "names, expected",
    [(["CH3CH2OH"], {(1, 6), (1, 8), (6, 6), (6, 8)}), (["C2H2", "C2H6"], {(1, 6), (6, 6)})],
    ids=["all bonds", "triple and single bonds"],
)
def test_a_stretched_bond_is_longer_than_any_in_the_data_and_at_most_half_as_long_again(names, expected):
    samples = [sample for name in names for sample in rattled(molecule(name))]
    longest: dict[tuple[int, int], float] = {}
    known: dict[tuple[int, int], list[float]] = {}
    for sample in samples:
        i, j, lengths = pairs_of(sample)
        radii = covalent_radii[sample.numbers]
        for a, b, r in zip(i, j, lengths, strict=True):
            pair = int(sample.numbers[a]), int(sample.numbers[b])
            known.setdefault(pair, []).append(r)
            if r < 1.2 * (radii[a] + radii[b]):
                longest[pair] = max(longest.get(pair, 0.0), r)
    drawn = draw(samples)
    assert len(drawn) == 40
    kinds = set()
    for sample in drawn:
        a, b, length = bond_of(sample)
        pair = int(sample.numbers[a]), int(sample.numbers[b])
        kinds.add(tuple(sorted(pair)))
        assert longest[pair] < length < 1.5 * longest[pair]
        assert not any(int(r / 0.05) == int(length / 0.05) for r in known[pair]), "the data have that distance"
        assert not sample.labels and sample.shifts is None
        np.testing.assert_allclose(np.linalg.norm(sample.direction[sample.direction.any(axis=1)], axis=1), 1.0)
    assert kinds == expected


def test_a_fragment_moves_as_a_whole_and_of_a_ring_one_atom():
    bonds = np.array([[0, 1], [1, 2], [2, 3], [3, 1], [3, 4]])  # 0 hangs on the ring 1-2-3, and so does 4
    i, j = np.concatenate([bonds, bonds[:, ::-1]]).T
    assert far_side(5, i, j, 0, 1) == [1, 2, 3, 4]
    assert far_side(5, i, j, 1, 0) == [0]
    assert far_side(5, i, j, 1, 3) == [3]
    benzene = draw(rattled(molecule("C6H6")))
    counts = {(int(s.numbers[bond_of(s)[1]]), int(s.direction.any(axis=1).sum())) for s in benzene}
    assert counts == {(6, 1), (1, 1), (6, 11)}, "a carbon of the ring, a hydrogen, or all but a hydrogen"


def test_the_same_seed_draws_the_same(ethanol):
    first, same, other = (draw(ethanol, 5, seed) for seed in (1, 1, 2))
    for one, two in zip(first, same, strict=True):
        np.testing.assert_array_equal(one.positions, two.positions)
    assert any(not np.array_equal(one.positions, two.positions) for one, two in zip(first, other, strict=True))


def test_nothing_is_drawn_where_nothing_can_be_said(ethanol):
    silicon, atom = (make_sample(Structure.from_atoms(a), CUTOFF) for a in (bulk("Si"), ase.Atoms("H")))
    assert draw([silicon, atom]) == []
    assert {len(s.numbers) for s in draw([silicon, atom, *ethanol])} == {9}


def test_bonds_of_metals_are_left_alone():
    assert draw(rattled(Icosahedron("Cu", 2))) == []
    methyl = molecule("CH3Cl")
    methyl.symbols[methyl.numbers == 17] = "Li"
    methyl.set_distance(0, 1, 1.95, fix=0)
    drawn = {tuple(sorted(sample.numbers[list(bond_of(sample)[:2])])) for sample in draw(rattled(methyl))}
    assert drawn == {(1, 6)}


def test_distances_that_the_data_have_are_not_drawn():
    """A molecule that is taken apart in the data."""
    apart = [ase.Atoms("N2", [[0, 0, 0], [0, 0, r]]) for r in np.arange(1.0, 2.6, 0.025)]
    samples = [make_sample(Structure.from_atoms(atoms), CUTOFF) for atoms in apart]
    assert draw(samples) == []
    assert all(1.25 <= bond_of(s)[2] < 1.8 for s in draw(samples[:10])), "bonds of 1.0 to 1.23 Å"
    assert len(draw(samples[:10])) == 40


def test_a_hydrogen_is_not_drawn_to_its_acceptor():
    """H3O2-: atom 1, between two oxygens that are 2.5 Å apart, would leave the one for the other."""
    ion = ase.Atoms("OHHOH", [[0, 0, 0], [1.05, 0, 0], [-0.3, 0.9, 0], [2.5, 0, 0], [2.8, 0.9, 0]])

    def hydrogens(atoms: ase.Atoms) -> set[int]:
        return {bond_of(sample)[1] for sample in draw(rattled(atoms))} - {0, 3}

    assert hydrogens(ion) == {2, 4}
    assert hydrogens(ion[:3]) == {1, 2}
