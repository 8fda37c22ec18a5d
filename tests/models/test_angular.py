"""The harmonics are orthonormal and turn into each other; the grid integrates what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import lebedev_rule

from mlff.models.angular import L_MAX, SphereGrid, spherical_harmonics


def test_harmonics_are_orthonormal():
    points, weights = lebedev_rule(11)
    harmonics = np.concatenate(spherical_harmonics(L_MAX, points.T))
    overlap = (harmonics * weights) @ harmonics.T / weights.sum()
    np.testing.assert_allclose(overlap, np.eye((L_MAX + 1) ** 2), atol=1e-12)


def test_addition_theorem():
    directions = np.random.default_rng(0).normal(size=(20, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    for l, rows in enumerate(spherical_harmonics(L_MAX, directions)):
        np.testing.assert_allclose((rows**2).sum(axis=0), 2 * l + 1, rtol=1e-12)


@pytest.mark.parametrize("degree", [3, 5, 7, 9, 10, 11, 15])
def test_half_grid_projects_back_what_was_synthesised(degree):
    grid = SphereGrid(degree)
    l_max = min(degree // 2, L_MAX)
    assert grid.weights.sum() == pytest.approx(1)
    for parity in (0, 1):
        there, back = grid.synthesis(l_max, parity), grid.analysis(l_max, parity)
        np.testing.assert_allclose(back @ there, np.eye(there.shape[1]), atol=1e-12)
