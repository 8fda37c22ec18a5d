"""Potentials with a planted fault: one sound, compiled potential, and what a numpy function makes of its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import ase
import jax
import numpy as np
from ase.build import bulk

from mlff.graph import Graph, Prediction
from mlff.potential.potential import Potential
from tests.potentials import BASELINE, morse

ELEMENTS = (1, 6)  # a bond of both, and of carbon alone, is about 1.2 Å long
SOUND = {
    precision: replace(morse(precision=precision), elements=ELEMENTS, baseline={z: BASELINE[z] for z in ELEMENTS})
    for precision in ("float32", "float64")
}
Fault = Callable[[Potential, Graph, Prediction], Prediction]


def structures() -> list[ase.Atoms]:
    """A molecule and a crystal, not relaxed."""
    triangle = ase.Atoms("CH2", [[0, 0, 0], [1.2, 0, 0], [0.6, 1.04, 0]])  # what three atoms make of the Morse potential
    triangle.rattle(0.03, seed=1)
    diamond = bulk("C", cubic=True)
    diamond.rattle(0.03, seed=2)
    return [triangle, diamond]


def planted(fault: Fault, precision: str = "float64") -> Potential:
    """The sound potential with its answers changed by `fault`."""

    class Planted(Potential):
        def compute(self, graph, stress=False):
            prediction = jax.device_get(SOUND[self.precision].compute(graph, stress))
            return fault(self, graph, prediction)

    sound = SOUND[precision]
    return Planted(**{name: getattr(sound, name) for name in sound.__dataclass_fields__})


def pairs(energy: Callable, slope: Callable) -> Fault:
    """Pairs within the cutoff get another energy, forces and stress to match: energy(r) eV, slope(r) eV/Å."""

    def along(vectors, r):
        return energy(r), slope(r)[..., None] * vectors / r[..., None]

    return directed(along)


def directed(law: Callable) -> Fault:
    """As `pairs`, by the vector of the pair: law(vectors (N, K, 3), r (N, K)) gives energies and their gradient."""

    def fault(potential, graph, prediction):
        vectors = graph.positions[graph.neighbors] - graph.positions[:, None]
        if graph.shifts is not None:
            vectors = vectors + np.einsum("nka,nab->nkb", graph.shifts, graph.cell[graph.structure])
        r = np.linalg.norm(vectors, axis=-1)
        inside = graph.neighbor_mask & (r < potential.cutoff)
        energies, gradient = law(vectors, np.where(inside, r, 1.0))
        energies = 0.5 * np.where(inside, energies, 0.0).sum(axis=1)
        gradient = np.where(inside[..., None], gradient, 0.0)
        changes = {"energies": prediction.energies + energies, "forces": prediction.forces + gradient.sum(axis=1)}
        changes["energy"] = prediction.energy + totals(graph, energies)
        if prediction.stress is not None:
            virial = np.zeros_like(graph.cell)
            np.add.at(virial, graph.structure, 0.5 * np.einsum("nka,nkb->nab", vectors, gradient))
            volume = np.abs(np.linalg.det(graph.cell))[:, None, None]
            changes["stress"] = prediction.stress + np.where(volume > 0, virial / np.maximum(volume, 1e-9), 0.0)
        return prediction._replace(**changes)

    return fault


def add_energies(prediction: Prediction, graph: Graph, energies: np.ndarray) -> Prediction:
    """Energies (N,) more, without forces."""
    energies = np.where(graph.atomic_numbers > 0, energies, 0.0)
    return prediction._replace(energies=prediction.energies + energies, energy=prediction.energy + totals(graph, energies))


def totals(graph: Graph, energies: np.ndarray) -> np.ndarray:
    """Sums (B,) over the structures of energies (N,)."""
    return np.bincount(graph.structure, energies, minlength=len(graph.n_atoms))


def gaussian(height: float, center: float, width: float) -> Fault:
    """A bump or a dip in the energy of all pairs."""

    def energy(r):
        return height * np.exp(-0.5 * ((r - center) / width) ** 2)

    return pairs(energy, lambda r: -(r - center) / width**2 * energy(r))
