"""Claims about any model: forces, stress and Hessian are the derivatives of the energy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import MODELS

pytestmark = pytest.mark.parametrize("name", MODELS)
STEP = 1e-4


def test_forces_against_finite_differences(name, potentials, ethanol, silicon):
    potential = potentials(name)
    for atoms in (ethanol, silicon):
        directions = np.random.default_rng(0).normal(size=(4, len(atoms), 3))
        displaced = []
        for direction in directions:
            for step in (2 * STEP, STEP, -STEP, -2 * STEP):
                moved = atoms.copy()
                moved.positions += step * direction
                displaced.append(moved)
        result, *others = potential.predict([atoms, *displaced])
        base = potential.baseline_energy(atoms.numbers)
        energies = np.array([other.energies.sum() - base for other in others]).reshape(4, 4)
        slopes = energies @ np.array([-1, 8, -8, 1]) / (12 * STEP)
        expected = -np.einsum("dna,na->d", directions, result.forces)
        np.testing.assert_allclose(slopes, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_stress_against_finite_differences(name, potentials, silicon):
    potential = potentials(name)
    strained, pairs = [], [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    for a, b in pairs:
        for step in (2 * STEP, STEP, -STEP, -2 * STEP):
            strain = np.zeros((3, 3))
            strain[a, b] += step / 2
            strain[b, a] += step / 2
            other = silicon.copy()
            other.set_cell(silicon.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            strained.append(other)
    result, *others = potential.predict([silicon, *strained])
    base = potential.baseline_energy(silicon.numbers)
    energies = np.array([other.energies.sum() - base for other in others]).reshape(6, 4)
    slopes = energies @ np.array([-1, 8, -8, 1]) / (12 * STEP) / silicon.get_volume()
    expected = np.array([result.stress[pair] for pair in pairs])
    np.testing.assert_allclose(slopes, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(result.stress, result.stress.T, atol=1e-12)


def test_hessian_against_differences_of_forces(name, potentials, silicon):
    potential = potentials(name)
    vector = np.random.default_rng(1).normal(size=(len(silicon), 3))
    plus, minus = silicon.copy(), silicon.copy()
    plus.positions += STEP * vector
    minus.positions -= STEP * vector
    up, down = potential.predict([plus, minus], stress=False)
    expected = -(up.forces - down.forces) / (2 * STEP)
    product = potential.hessian_vector_product(silicon, vector)
    np.testing.assert_allclose(product, expected, atol=1e-5 * np.abs(expected).max())
    matrix = potential.hessian(silicon)
    np.testing.assert_allclose(matrix @ vector.ravel(), product.ravel(), atol=1e-8 * np.abs(matrix).max())
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9 * np.abs(matrix).max())
