"""Structures displaced beyond the data: sound potentials pass, holes and walls that no pair shows are found."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule

from mlff.certificate import checks, hot
from mlff.certificate.certificate import certify
from mlff.certificate.displaced import displacements, energies_and_forces, thermal
from mlff.certificate.probe import Probe
from mlff.data.neighbors import neighbor_list, pair_vectors
from tests.certificate.planted import SOUND, planted, structures, totals
from tests.potentials import lennard_jones, morse

LINES = {"displaced structures, energy below harmonic", "displaced structures, largest force"}


def lines(potential, frames) -> dict:
    found = displacements(Probe(potential, frames), frames, np.random.default_rng(0))
    return {line.name: line for line in energies_and_forces(found)}


def both(height: float, change: float):
    """A term of three bodies, beyond the data: two C-H bonds of one carbon that are both `change` (Å) longer than 1.3 Å.

    E = height x y, with x and y = (r - 1.3)³ / change³, both fading farther out: no dimer and no single bond shows it.
    """

    def law(r):
        x = np.maximum(r - 1.3, 0) / change
        fade = np.exp(-((x / 3) ** 4))
        return x**3 * fade, (3 * x**2 - x**3 * 4 * x**3 / 81) * fade / change

    def fault(potential, graph, prediction):
        vectors = np.asarray(graph.positions)[graph.neighbors] - graph.positions[:, None]
        if graph.shifts is not None:
            vectors = vectors + np.einsum("nka,nab->nkb", graph.shifts, graph.cell[graph.structure])
        r = np.linalg.norm(vectors, axis=-1)
        numbers = np.asarray(graph.atomic_numbers)
        ours = graph.neighbor_mask & (numbers == 6)[:, None] & (numbers[graph.neighbors] == 1)
        value, slope = (np.where(ours, part, 0.0) for part in law(np.where(ours, r, 1.0)))
        total = value.sum(axis=1)
        energies = 0.5 * height * (total**2 - (value**2).sum(axis=1))
        gradient = (height * (total[:, None] - value) * slope)[..., None] * vectors / np.maximum(r, 1e-9)[..., None]
        forces = prediction.forces + gradient.sum(axis=1)
        np.add.at(forces, graph.neighbors, -gradient)
        return prediction._replace(
            energies=prediction.energies + energies, energy=prediction.energy + totals(graph, energies), forces=forces
        )

    return fault


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_sound_potentials_pass(precision):
    copper = bulk("Cu", cubic=True).repeat((2, 1, 1))
    copper.rattle(0.1, seed=3)
    argon = ase.Atoms("Ar3", [[0, 0, 0], [2.9, 0, 0], [1.4, 2.5, 0]])
    for potential, frames in (
        (SOUND[precision], structures()),
        (lennard_jones(precision=precision), [copper, argon]),
        (morse(precision=precision), [molecule("CH3OH")]),
    ):
        found = lines(potential, frames)
        assert set(found) == LINES and all(line.passed for line in found.values()), [str(v) for v in found.values()]
        assert found["displaced structures, energy below harmonic"].value < 0.8
        assert found["displaced structures, largest force"].value < 0.7 * found["displaced structures, largest force"].limit


def test_bonds_keep_their_bounds_and_atoms_move():
    rng = np.random.default_rng(1)
    for atoms in (molecule("CH3CH2OH"), bulk("Si", cubic=True), bulk("Cu", cubic=True)):
        moved = atoms.copy()
        moved.positions += thermal(atoms, 0.3, rng)
        assert 0.1 < np.sqrt(((moved.positions - atoms.positions) ** 2).sum(axis=1).mean()) < 0.4
        i, j, shifts = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 2.7)
        before, after = (
            np.linalg.norm(pair_vectors(a.positions, a.cell.array, i, j, shifts), axis=1) for a in (atoms, moved)
        )
        assert (after / before).min() > 0.84 and (after / before)[before < 1.6].max(initial=1) < 1.21
        assert (after / before).min() < 0.95 and (after / before).max() > 1.05  # and they make use of them


def test_a_hole_that_no_pair_shows(monkeypatch):
    """Of all static lines those of displaced structures alone find a hole of three bodies."""
    monkeypatch.setattr(checks, "NVE_STEPS", 200)
    monkeypatch.setattr(hot, "STEPS", 500)
    certificate = certify(planted(both(-1e6, 0.6)), structures()[:1])
    failed = {line.name for line in certificate.failed}
    assert failed >= {"displaced structures, energy below harmonic", "survival of runs at 1,200 K"}
    assert failed <= LINES | {"survival of runs at 600 K", "survival of runs at 1,200 K"}, failed
    note = next(line.note for line in certificate.failed if line.name == "displaced structures, energy below harmonic")
    assert "structure 0, all atoms displaced by 0." in note and "instead of" in note


def test_a_wall_that_no_pair_shows():
    found = lines(planted(both(1e5, 0.6)), structures()[:1])
    assert (
        found["displaced structures, energy below harmonic"].passed
        and not found["displaced structures, largest force"].passed
    )


def test_what_is_not_finite_fails():
    def broken(potential, graph, prediction):
        return prediction._replace(forces=np.where(np.abs(prediction.forces) > 1.5, np.nan, prediction.forces))

    found = lines(planted(broken), structures()[:1])
    assert all(line.value is None and not line.passed and "structure 0" in line.note for line in found.values())
