"""The long tests of a certificate, shortened: a sound potential passes, and what they are there for is caught."""

from __future__ import annotations

from dataclasses import replace

import ase
import numpy as np
import pytest

from mlff import MLFFCalculator
from mlff.basics.errors import DataError
from mlff.certificate import stability as module
from mlff.certificate import survival as runs
from mlff.certificate.bonds import apart, lost_hydrogen
from mlff.certificate.scans import Scan
from mlff.certificate.stability import full, homonuclear, nve, stability
from mlff.certificate.survival import survival
from tests.certificate.planted import SOUND, planted, structures
from tests.certificate.test_certificate import direct

LENGTH = 2.0  # ps


def pumped(potential, graph, prediction):
    """Direct forces that pump energy quickly."""
    worse = direct(potential, graph, prediction)
    return worse._replace(forces=prediction.forces + 40 * (worse.forces - prediction.forces))


def loose(potential, graph, prediction):
    """Atoms that do not see each other."""
    return prediction._replace(**{name: 0 * getattr(prediction, name) for name in ("energy", "energies", "forces")})


def test_a_sound_potential_passes():
    lines = {line.name: line for part in full(SOUND["float64"], structures()[:1], length=LENGTH) for line in part}
    assert all(line.passed for line in lines.values()), lines
    assert lines["stability, NVT at 300 K (2 of 100 ps)"].value == 1.0
    assert abs(lines["NVE drift, 1 fs (1 of 50 ps)"].value) < 0.1
    assert lines["heating until the guard stops it (0.2 of 10 ps)"].value == 1200
    assert lines["NVE survival at 1,200 K (1 of 50 ps)"].value == 1.0
    assert abs(lines["NVE drift of these runs (1 of 50 ps)"].value) < 1


def test_an_explosion_is_caught():
    bad, (atoms, _) = planted(pumped), structures()
    (score,) = stability(bad, atoms, LENGTH)
    assert not score.passed and score.value < 0.5 and "stopped at step" in score.note
    drift, share = nve(bad, atoms, LENGTH)
    assert not drift.passed and not share.passed


def test_a_lost_hydrogen_is_caught():
    (score,) = stability(planted(loose), structures()[0], 1.0)
    assert 0.5 <= score.value < 1 and not score.passed and "hydrogen is lost" in score.note


def test_hydrogens_are_lost_from_all_heavy_atoms_and_for_good():
    water = ase.Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [0, 0.96, 0]])

    def frames(*distances):
        moved = []
        for r in distances:
            frame = water.copy()
            frame.positions[1] = [r, 0, 0]
            moved.append(frame)
        return moved

    assert lost_hydrogen(frames(0.96, 1.5, 1.0)) is None
    assert lost_hydrogen(frames(0.96, 2.4, 2.6, 2.7)) == 2
    assert lost_hydrogen(frames(0.96, 2.6, 2.4, 2.4)) is None
    transferred = [frame + ase.Atoms("O", [[2.7, 0, 0]]) for frame in frames(0.96, 1.7, 2.6, 2.7)]
    transferred[-1].positions[1] = [3.5, 0, 0]
    assert lost_hydrogen(transferred) is None
    assert lost_hydrogen([ase.Atoms("H2", [[0, 0, 0], [0, 0, r]]) for r in (0.74, 3.0)]) == 1


def test_a_molecule_is_apart_when_its_heavy_atoms_are_in_more_pieces():
    ethane = ase.Atoms("C2H", [[0, 0, 0], [1.5, 0, 0], [0, 1.1, 0]])
    broken, bare = ethane.copy(), ethane.copy()
    broken.positions[1, 0] = 2.5  # 1.64 sums of covalent radii
    bare.positions[2, 1] = 9.0
    assert apart([ethane, bare, broken, ethane]) == 2
    assert apart([broken, ethane, broken]) is None  # it was in two pieces from the start


def test_replicas_that_fall_apart_are_lost_and_the_others_counted(monkeypatch):
    monkeypatch.setattr(runs, "TEMPERATURES", {300.0: 1.0, 20_000.0: 0.5})
    monkeypatch.setattr(runs, "REPLICAS", 2)
    cold, hot, drift = survival(SOUND["float64"], structures()[0], 1.0)
    assert cold.passed and cold.value == 1.0 and "2 runs of 1 ps of CH2" in cold.note and "lost" not in cold.note
    mean = float(cold.note.split("mean temperature ")[1].split(" K")[0])
    assert 150 < mean < 450  # of three coordinates, from 600 K
    assert not hot.passed and hot.value == 0.0 and "lost: stopped at step" in hot.note
    assert drift.passed and "at 300 K" in drift.note and "20,000" not in drift.note
    monkeypatch.setattr(runs, "apart", lambda frames: 3)
    cold, *_ = survival(SOUND["float64"], structures()[0], 1.0)
    assert cold.value == 0.0 and "lost: it fell apart after 0.3 ps" in cold.note


def test_what_the_compiled_loop_cannot_do_is_not_measured_and_said():
    lines = survival(planted(pumped), structures()[0], 1.0)
    assert all(line.value is None and line.passed and "not measured" in line.note for line in lines)


def test_dimers_by_hand():
    r = np.arange(0.6, 4.0, 0.01)
    morse = (1 - np.exp(-2 * (r - 1.2))) ** 2 - 1
    ideal = homonuclear([Scan("C-C", r, morse, r), Scan("H-C", r, np.cos(9 * r), r)])
    assert [line.value for line in ideal] == pytest.approx([1, 1, -1, 1])
    wavy = homonuclear([Scan("H-H", r, morse + 0.3 * np.sin(9 * r), r), Scan("C-C", r, morse, r)])
    assert wavy[0].value > 4 and wavy[1].value > 1.5 and wavy[3].value < 0.9 and "H-H of 2" in wavy[0].note
    repulsive = homonuclear([Scan("H-H", r, np.exp(-r), r)])
    assert [line.value for line in repulsive] == pytest.approx([0, 1, -1, 1])
    assert all(line.limit is None for line in ideal) and homonuclear([]) == []


def test_several_compositions_and_the_worst_of_them(monkeypatch):
    def pretend(potential, atoms, length, progress):
        return [module.Line("x", len(atoms), "", 1.0, "note"), module.Line("y", 1 / len(atoms), "", 1.0, "", least=True)]

    for name in ("stability", "nve", "heating", "survival"):
        monkeypatch.setattr(module, name, pretend)
    lines = [line for part in full(SOUND["float64"], [*structures(), *structures()]) for line in part]
    assert [line.value for line in lines[:2]] == [8, 1 / 8] and "worst of 2 structures" in lines[0].note
    with pytest.raises(DataError, match="nothing to certify"):
        list(full(SOUND["float64"]))


def test_a_calculator_tells_what_failed():
    line = {"name": "stability, NVT at 300 K", "passed": False}
    with pytest.warns(UserWarning, match="failed checks of its certificate: stability, NVT at 300 K$"):
        MLFFCalculator(replace(SOUND["float32"], metadata={"certificate": {"lines": [], "full": [line]}}))
