"""Potentials that cost next to nothing to compile, for tests of everything around them."""

from __future__ import annotations

from mlff.config.options import LennardJones, Morse
from mlff.potential.potential import Potential

BASELINE = {1: -13.6, 6: -1029.0, 8: -2041.5, 14: -7900.0, 18: -14354.0, 29: -45000.0}


def lennard_jones(cutoff: float = 5.0, epsilon: float = 0.1, sigma: float = 2.3, precision: str = "float32") -> Potential:
    """Copper-like nearest neighbours of 2.6 Å; knows H, C, O, Si, Ar and Cu."""
    return Potential(
        LennardJones(cutoff=cutoff, epsilon=epsilon, sigma=sigma), {}, tuple(BASELINE), dict(BASELINE), precision=precision
    )


def morse(cutoff: float = 4.0, precision: str = "float32") -> Potential:
    """Bonds of 1.2 Å, for molecules."""
    return Potential(
        Morse(cutoff=cutoff, depth=1.0, stiffness=1.5, r0=1.2), {}, tuple(BASELINE), dict(BASELINE), precision=precision
    )
