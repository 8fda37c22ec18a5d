"""Claims about any model: the energy is smooth where a pair enters the cutoff, and finite where atoms nearly touch."""

from __future__ import annotations

from dataclasses import replace

import ase
import numpy as np
import pytest

from mlff.models.common import WALL
from mlff.models.radial import envelope
from tests.conftest import over_models

pytestmark = over_models()


def _line(distances: np.ndarray) -> list[ase.Atoms]:
    """A bent C-O-H molecule and an H atom that leaves it; only the distance H-C matters near the cutoff."""
    base = np.array([[0.0, 0, 0], [-1.2, 0, 0], [-1.6, 0.9, 0]])
    return [ase.Atoms("COHH", positions=[*base, [d, 0, 0]]) for d in distances]


def test_energy_force_and_curvature_are_continuous_at_the_cutoff(name, potentials):
    potential = potentials(name)
    step = 1e-3
    distances = potential.cutoff + step * np.arange(-6, 7)
    force = np.array([r.forces[3, 0] for r in potential.predict(_line(distances))])
    slope = np.diff(force) / step
    inner = potential.cutoff - 0.5
    before, after = (r.forces[3, 0] for r in potential.predict(_line(np.array([inner, inner + step]))))
    scale = max(abs(after - before) / step, 1e-3)
    assert np.abs(force[6:]).max() < 1e-10
    assert np.abs(np.diff(slope)).max() < 0.05 * scale
    assert np.abs(slope[6:]).max() < 1e-6


def test_no_force_on_an_atom_beyond_the_cutoff(name, potentials):
    atoms = _line(np.array([potentials(name).cutoff + 1e-6]))
    (result,) = potentials(name).predict(atoms)
    assert np.all(result.forces[3] == 0)


def test_free_atom_has_its_reference_energy(name, potentials):
    potential = potentials(name)
    (result,) = potential.predict([ase.Atoms("H")])
    assert result.energy == potential.baseline[1] and np.all(result.forces == 0)


def test_atoms_that_approach_repel(name, potentials):
    if name == "morse":
        pytest.skip("a Morse potential is finite at r = 0")
    distances = np.array([0.05, 0.1, 0.2, 0.3])
    results = potentials(name).predict([ase.Atoms("CO", positions=[[0, 0, 0], [d, 0, 0]]) for d in distances], check=False)
    energies = np.array([r.energy for r in results])
    assert np.all(np.diff(energies) < 0) and all(r.forces[1, 0] > 10 for r in results)


def test_within_the_core_a_network_sees_no_shorter_distance_and_the_pair_repels(name, potentials):
    if name in ("lennard_jones", "morse"):
        pytest.skip("an oracle has no network that could make up energies")
    step, core = 1e-3, 0.8  # Å, as in make_potential
    potential = potentials(name)
    plain = replace(potential, config=potential.config.model_copy(update={"zbl": False}))

    def results(potential, distances):
        return potential.predict([ase.Atoms("CO", positions=[[0, 0, 0], [d, 0, 0]]) for d in distances], check=False)

    inside = core * np.array([0.95, 0.8, 0.5, 0.1])
    energies = np.array([r.energy for r in results(plain, inside)])
    wall = WALL * (1 - inside / core) ** 4 * np.asarray(envelope(inside, potential.cutoff))
    np.testing.assert_allclose(energies - energies[0], wall - wall[0], rtol=1e-5)
    curvature = np.diff([r.forces[1, 0] for r in results(potential, np.arange(0.9 * core, core + 6 * step, step))]) / step
    assert np.abs(np.diff(curvature)).max() < 0.1 * np.abs(curvature).max(), "two continuous derivatives of the energy"
