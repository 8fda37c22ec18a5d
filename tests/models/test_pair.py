"""Lennard-Jones, Morse and ZBL through a Potential against sums written out pair by pair."""

from __future__ import annotations

import itertools

import ase
import jax
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.data import covalent_radii
from ase.units import Bohr, Hartree

from mlff.basics.numerics import safe_norm
from mlff.config.options import LennardJones, Morse
from mlff.data.batching import Sizes, make_graph, make_sample
from mlff.data.structure import Structure
from mlff.models.pair import zbl_energies
from mlff.potential.potential import Potential

CUTOFF = 4.0


def _envelope(x):
    return np.where(x < 1, 1 - 28 * x**6 + 48 * x**7 - 21 * x**8, 0.0)


def _lennard_jones(r):
    return 4 * 0.05 * ((1.5 / r) ** 12 - (1.5 / r) ** 6) * _envelope(r / CUTOFF)


def _morse(r):
    return 0.7 * ((1 - np.exp(-1.3 * (r - 1.9))) ** 2 - 1) * _envelope(r / CUTOFF)


PAIRS = {
    "lennard_jones": (LennardJones(cutoff=CUTOFF, epsilon=0.05, sigma=1.5), _lennard_jones),
    "morse": (Morse(cutoff=CUTOFF, depth=0.7, stiffness=1.3, r0=1.9), _morse),
}


def _brute_force(atoms: ase.Atoms, energy) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy, forces and virial by a sum over all images, with numerical derivatives of the pair energy."""
    h = 1e-5
    total, forces, virial = 0.0, np.zeros((len(atoms), 3)), np.zeros((3, 3))
    reach = [range(-4, 5) if periodic else (0,) for periodic in atoms.pbc]
    for image in itertools.product(*reach):
        vectors = atoms.positions[None] - atoms.positions[:, None] + np.array(image) @ atoms.cell.array
        r = np.linalg.norm(vectors, axis=-1)
        near = (r < CUTOFF + 0.1) & (r > 0)
        for i, j in zip(*near.nonzero(), strict=True):
            d = r[i, j]
            slope = (8 * (energy(d + h) - energy(d - h)) - energy(d + 2 * h) + energy(d - 2 * h)) / (12 * h)
            total += 0.5 * energy(d)
            forces[i] += slope * vectors[i, j] / d
            virial += 0.5 * slope * np.outer(vectors[i, j], vectors[i, j]) / d
    return total, forces, virial


def _structures() -> list[ase.Atoms]:
    water = molecule("H2O")
    silicon = bulk("Si")
    silicon.rattle(0.1, seed=0)
    slab = ase.Atoms("COH", positions=[[0, 0, 0], [1.1, 0.4, 1.2], [0.2, 1.9, -0.7]], pbc=[True, True, False])
    slab.set_cell([[2.9, 0.6, 0], [0.3, 3.1, 0], [0, 0, 9]])
    chain = ase.Atoms("C", cell=[0, 1.7, 0], pbc=[False, True, False])
    return [molecule("CH3CH2OH"), water, silicon, slab, chain]


@pytest.fixture(scope="module", params=PAIRS)
def answers(request):
    config, energy = PAIRS[request.param]
    elements = (1, 6, 8, 14)
    potential = Potential(config, {}, elements, dict.fromkeys(elements, 0.0), precision="float64")
    structures = _structures()
    return potential.predict(structures), structures, energy


def test_pair_potentials_against_a_sum_over_all_pairs(answers):
    results, structures, energy = answers
    for result, atoms in zip(results, structures, strict=True):
        total, forces, virial = _brute_force(atoms, energy)
        assert result.energy == pytest.approx(total, rel=1e-12)
        scale = max(1, np.abs(forces).max())
        np.testing.assert_allclose(result.forces, forces, atol=1e-8 * scale)
        if atoms.pbc.all():
            np.testing.assert_allclose(result.stress, virial / atoms.get_volume(), atol=1e-8)
        else:
            assert result.stress is None


def _zbl(graph):
    return jax.jit(lambda g: zbl_energies(g, safe_norm(g.pair_vectors, g.neighbor_mask)))(graph)


def _dimers(first: int, second: int, distances) -> np.ndarray:
    samples = []
    for d in distances:
        atoms = ase.Atoms([first, second], positions=[[0, 0, 0], [0, 0, d]])
        samples.append(make_sample(Structure.from_atoms(atoms), 5.0))
    with jax.enable_x64(True):
        energies = _zbl(make_graph(samples, Sizes(len(samples), 2 * len(samples) + 3, 2), np.float64))
        assert np.all(np.asarray(energies[2 * len(samples) :]) == 0)
        return np.asarray(energies[: 2 * len(samples)]).reshape(-1, 2).sum(axis=1)


@pytest.mark.parametrize("first, second", [(1, 1), (6, 8), (14, 14), (29, 1)])
def test_zbl_against_its_formula(first, second):
    """Ziegler, Biersack and Littmark (1985): a = 0.8854 a0 / (Z1^0.23 + Z2^0.23)."""
    reach = covalent_radii[first] + covalent_radii[second]
    distances = np.linspace(0.02, 1.05, 40) * reach
    x = distances * (first**0.23 + second**0.23) / (0.8854 * Bohr)
    screening = sum(
        c * np.exp(-b * x) for c, b in zip((0.1818, 0.5099, 0.2802, 0.02817), (3.2, 0.9423, 0.4029, 0.2016), strict=True)
    )
    expected = Hartree * Bohr * first * second / distances * screening * _envelope(distances / reach)
    energies = _dimers(first, second, distances)
    np.testing.assert_allclose(energies, expected, rtol=2e-3)
    assert np.all(energies[distances >= reach] == 0)
    inside = energies[distances < 0.97 * reach]
    assert np.all(inside > 0) and np.all(np.diff(inside) < 0)
