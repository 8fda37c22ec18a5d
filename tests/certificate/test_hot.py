"""Short hot dynamics: sound potentials live, those with a hole do not, and no pair is missed."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule

from mlff.certificate import hot
from mlff.certificate.hot import run, survival
from tests.certificate.planted import SOUND, gaussian, planted, structures
from tests.potentials import lennard_jones, morse


def survive(potential, frames) -> list:
    return survival(potential, frames, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("potential", "frames"),
    [
        (SOUND["float32"], structures()),
        (lennard_jones(), [bulk("Cu", cubic=True) * (2, 2, 2)]),
        (morse(), [molecule("CH3OH"), ase.Atoms("H2", [[0, 0, 0], [0, 0, 1.2]])]),
    ],
)
def test_sound_potentials_live(potential, frames):
    lines = survive(potential, frames)
    assert lines[0].value == 1.0 and lines[1].passed and "lost" not in lines[0].note
    assert [line.name for line in lines] == ["survival of runs at 600 K", "survival of runs at 1,200 K"]


def test_a_hole_ends_runs_and_is_named():
    lines = survive(planted(gaussian(-40.0, 0.7, 0.06)), structures()[:1])
    assert not lines[1].passed and "structure 0 after 0." in lines[1].note and "eV/Å" in lines[1].note
    short = survive(planted(gaussian(-60.0, 1.0, 0.05)), structures()[:1])
    assert not any(line.passed for line in short) and all(" at " in line.note and "Å" in line.note for line in short)


def test_what_is_not_finite_ends_a_run_and_not_its_neighbours():
    def broken(potential, graph, prediction):
        forces = prediction.forces.copy()
        forces[np.asarray(graph.structure) == 1] = np.nan
        return prediction._replace(forces=forces)

    ends = run(planted(broken), structures()[:1] * 3, np.full(3, 600.0), np.random.default_rng(0), 20)
    assert [len(end) for end in ends] == [0, 1, 0] and "not finite" in ends[1][0][1] and ends[1][0][0] == 0


def test_the_temperature_is_kept_and_no_pair_is_missed(monkeypatch):
    """Along a run with many searches for pairs the forces are those of the structure as it is."""
    potential, seen, builds = lennard_jones(precision="float64"), [], []
    copper = bulk("Cu", cubic=True) * (2, 2, 2)
    frames, forces, build = [copper, copper[:5]], hot._Batch.forces, hot._Batch._build

    def spy(batch, positions):
        result = forces(batch, positions)
        seen.append((positions.copy(), result.copy()))
        return result

    monkeypatch.setattr(hot._Batch, "forces", spy)
    monkeypatch.setattr(hot._Batch, "_build", lambda batch, positions: (builds.append(1), build(batch, positions)))
    assert run(potential, frames, np.array([1200.0, 600.0]), np.random.default_rng(0), 300) == [[], []]
    assert len(builds) > 5
    for positions, result in seen[::60]:
        for atoms, part in ((copper, slice(0, 32)), (copper[:5], slice(32, 37))):
            atoms = atoms.copy()
            atoms.positions = positions[part]
            assert np.abs(potential.predict([atoms])[0].forces - result[part]).max() < 1e-9
    monkeypatch.setattr(hot, "_HOT", 1.6)  # far above what 96 degrees of freedom do when the thermostat is right
    assert run(potential, frames[:1], np.array([900.0]), np.random.default_rng(0), 300) == [[]]
    monkeypatch.setattr(hot, "_HOT", 0.8)
    assert run(potential, frames[:1], np.array([900.0]), np.random.default_rng(0), 300) != [[]]


def test_a_molecule_that_falls_apart_is_lost_and_a_proton_that_moves_is_not():
    chain = ase.Atoms("C4", [[1.2 * k, 0, 0] for k in range(4)])
    batch = hot._Batch(morse(), [chain, molecule("CH3OH"), bulk("Cu", cubic=True)])
    np.testing.assert_array_equal(batch.fragments(batch.positions), [1, 1, 0])
    apart = batch.positions.copy()
    apart[3] += [1.5, 0, 0]  # an end of the chain
    apart[4 + 2 :] += [0, 0, 3.0]  # hydrogens of methanol
    np.testing.assert_array_equal(batch.fragments(apart), [2, 1, 0])
    ends = run(morse(), [chain[:2]] * 2, np.array([300.0, 8_000.0]), np.random.default_rng(0), 500)
    assert not ends[0] and ends[1][0][1] == "it fell apart"
