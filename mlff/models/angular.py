"""Real spherical harmonics as polynomials, and the sphere grid on which equivariant products are taken.

Normalisation: sum over m of Y_lm² = 2l + 1 (the mean of Y_lm² over the sphere is 1). Order of m as usual: -l ... l.
"""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

import jax.numpy as jnp
import numpy as np
from scipy.integrate import lebedev_rule

L_MAX = 4  #: highest degree with a formula here


def spherical_harmonics(l_max: int, unit_vectors) -> list:
    """One array (2l + 1, ...) for each l <= l_max from unit vectors (..., 3); numpy in, numpy out, else JAX."""
    xp = np if isinstance(unit_vectors, np.ndarray) else jnp
    x, y, z = unit_vectors[..., 0], unit_vectors[..., 1], unit_vectors[..., 2]
    rows = [[xp.ones_like(x)]]
    if l_max >= 1:
        rows.append([sqrt(3) * y, sqrt(3) * z, sqrt(3) * x])
    if l_max >= 2:
        xx, yy, zz = x * x, y * y, z * z
        rows.append(
            [
                sqrt(15) * x * y,
                sqrt(15) * y * z,
                sqrt(5) / 2 * (3 * zz - 1),
                sqrt(15) * x * z,
                sqrt(15) / 2 * (xx - yy),
            ]
        )
    if l_max >= 3:
        rows.append(
            [
                sqrt(35 / 8) * y * (3 * xx - yy),
                sqrt(105) * x * y * z,
                sqrt(21 / 8) * y * (5 * zz - 1),
                sqrt(7) / 2 * z * (5 * zz - 3),
                sqrt(21 / 8) * x * (5 * zz - 1),
                sqrt(105) / 2 * z * (xx - yy),
                sqrt(35 / 8) * x * (xx - 3 * yy),
            ]
        )
    if l_max >= 4:
        rows.append(
            [
                3 * sqrt(35) / 2 * x * y * (xx - yy),
                3 * sqrt(70) / 4 * y * z * (3 * xx - yy),
                3 * sqrt(5) / 2 * x * y * (7 * zz - 1),
                3 * sqrt(10) / 4 * y * z * (7 * zz - 3),
                3 / 8 * (35 * zz * zz - 30 * zz + 3),
                3 * sqrt(10) / 4 * x * z * (7 * zz - 3),
                3 * sqrt(5) / 4 * (xx - yy) * (7 * zz - 1),
                3 * sqrt(70) / 4 * x * z * (xx - 3 * yy),
                3 * sqrt(35) / 8 * (xx * xx - 6 * xx * yy + yy * yy),
            ]
        )
    if l_max > L_MAX:
        raise ValueError(f"l_max = {l_max}: spherical harmonics go up to {L_MAX}")
    return [xp.stack(row) for row in rows]


class SphereGrid:
    """Half of a Lebedev grid, exact for products up to a degree: functions on the sphere, even and odd parts apart.

    A function f = sum_lm X_lm Y_lm is held as its even part (l = 0, 2, ...) and its odd part (l = 1, 3, ...) on one
    point of each antipodal pair; products of parts are parts again, so powers and projections cost half the points.
    Because the quadrature is exact for the degrees used, products are equivariant to rounding (the Gaunt tensor
    product: Luo, Chen & Krishnapriyan, ICLR 2024, arXiv:2401.10216).
    """

    def __init__(self, degree: int):
        points, weights = lebedev_rule(next(d for d in (3, 5, 7, 9, 11, 15, 17, 19, 21, 23) if d >= degree))
        points = points.T
        lead = np.where(
            np.abs(points[:, 2]) > 1e-9, points[:, 2], np.where(np.abs(points[:, 1]) > 1e-9, points[:, 1], points[:, 0])
        )
        half = lead > 0
        self.points = points[half]  #: (Q, 3)
        self.weights = 2 * weights[half] / weights.sum()  #: (Q,), sum 1

    def synthesis(self, l_max: int, parity: int) -> np.ndarray:
        """(Q, M): the harmonics of l = parity, parity + 2, ... <= l_max at the points."""
        harmonics = spherical_harmonics(l_max, self.points)[parity::2]
        return np.concatenate(harmonics).T if harmonics else np.zeros((len(self.points), 0))

    def analysis(self, l_max: int, parity: int) -> np.ndarray:
        """(M, Q): projection of a function of that parity onto its harmonics."""
        return (self.synthesis(l_max, parity) * self.weights[:, None]).T


@lru_cache
def sphere_grid(degree: int) -> SphereGrid:
    """The grid that integrates products of harmonics up to this total degree exactly; made once."""
    return SphereGrid(degree)
