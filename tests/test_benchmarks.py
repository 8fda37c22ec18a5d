"""The benchmarks against other codes: the same structures for all, and a reason where a peer is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "datasets"
SCRIPTS = ROOT / "scripts" / "benchmarks"


@pytest.fixture
def scripts(monkeypatch):
    """The benchmark scripts, importable."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.syspath_prepend(str(SCRIPTS / "peers"))
    names = (
        "cost_per_step",
        "dynamics",
        "edge",
        "environments",
        "front",
        "launch",
        "machine",
        "oracles",
        "service",
        "time_to_accuracy",
    )
    yield
    for name in names:
        sys.modules.pop(name, None)


def test_peers_without_environment_are_reported_with_the_reason(scripts, tmp_path):
    import time_to_accuracy
    from launch import launch

    answer = launch("mace", {"task": "train"}, tmp_path, tmp_path, limit=1)
    assert answer["missing"].startswith("no environment")
    (tmp_path / "environments.json").write_text('{"mace": {"missing": "ERROR: no such version"}}', encoding="utf-8")
    answer = launch("mace", {"task": "train"}, tmp_path, tmp_path, limit=1)
    assert answer == {"missing": "ERROR: no such version"}
    assert "| mace | ERROR: no such version |" in time_to_accuracy.table([{"code": "mace", **answer}])


def test_curves_are_of_codes_with_more_than_one_time_or_number(scripts, tmp_path):
    from time_to_accuracy import curve_table, curves, plot

    def row(code, minutes, error):
        return {"code": code, "minutes": minutes, "errors": {name: {"forces_rmse": error} for name in ("t300", "t600")}}

    found = curves(
        [row("mlff", 15, 2.0), row("mlff", 1, 8.0), row("mace", 15, 9.0), {"code": "mlff", "minutes": 30, "failed": "no"}]
    )
    assert {code: list(times) for code, times in found.items()} == {"mlff": [1, 15]}
    assert curve_table(found).splitlines()[-1] == "| mlff | 8.0 / 8.0 | 2.0 / 2.0 |"
    plot(found, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size
    fewer = [{**row("mlff", 15, error), "structures": number} for number, error in ((50, 9.0), (450, 2.0))]
    found = curves(fewer, "structures")
    assert curve_table(found, "structures").splitlines()[::2] == [
        "| structures | 50 | 450 |",
        "| mlff | 9.0 / 9.0 | 2.0 / 2.0 |",
    ]
    plot(found, tmp_path / "structures.png", "structures")
    assert (tmp_path / "structures.png").stat().st_size


def test_every_peer_has_an_environment_and_a_runner(scripts):
    import cost_per_step
    import environments
    import time_to_accuracy

    assert set(environments.PEERS) == set(time_to_accuracy.PEERS) == set(cost_per_step.PEERS)
    for name in (*environments.PEERS, "mlff"):
        assert (SCRIPTS / "peers" / f"run_{name}.py").exists()


def test_ratios_are_taken_round_by_round(scripts):
    from cost_per_step import summarize

    def row(code, number, cpu):
        timed = {"cpu_ms": cpu, "wall_ms": cpu}
        return {
            "code": code,
            "case": "27",
            "round": number,
            "calculator": timed,
            "bare": None,
            "first_force_s": 9.0 - number,
        } | {"peak_memory_mib": 100}

    rows = [row("mlff", 0, 1.0), row("mace", 0, 10.0), row("mlff", 1, 2.0), row("mace", 1, 20.0)]
    rows += [{"code": "painn", "case": "27", "round": 0, "missing": "not there"}]
    summary = summarize(rows, "cpu_ms")
    assert summary["mace"]["27"]["calculator_ratio"] == 10.0
    assert (summary["mace"]["27"]["first_force_cold_s"], summary["mace"]["27"]["first_force_warm_s"]) == (9.0, 8.0)
    assert summary["painn"]["27"] == {"reason": "not there"}


@pytest.mark.skipif(not (SHARED / "3bpa").exists(), reason="needs the developers' data sets beside the checkout")
def test_3bpa_is_split_without_overlap(scripts, tmp_path):
    from time_to_accuracy import split

    files = split(SHARED, tmp_path)
    sets = {name: {atoms.positions.round(6).tobytes() for atoms in read(file, ":")} for name, file in files.items()}
    assert {name: len(found) for name, found in sets.items()} == {"train": 450, "valid": 50, "t300": 136, "t600": 167}
    assert len(set().union(*sets.values())) == 450 + 50 + 136 + 167
    forces = [atoms.get_forces() for atoms in read(files["t600"], ":")]
    assert 1000 * np.sqrt(np.mean(np.square(forces))) == pytest.approx(1321, abs=1)  # meV/Å


def test_the_front_holds_what_nothing_beats_in_both(scripts):
    import front

    rows = [{"t300": error, "us_per_atom": cost} for error, cost in ((20, 10), (30, 5), (25, 12), (20, 30), (19, 40))]
    assert front.on_front(rows) == [True, True, False, True, True]
    assert front.options({"settings": "mlff, model.channels=16, loss.energy=10; otherwise defaults"}) == [
        "model.channels=16",
        "loss.energy=10",
    ]


def springs(at, stiffness):
    """What a runner's predict gives: structures to energies and forces of springs to fixed points, eV/Å²."""

    def predict(structures):
        moved = [atoms.positions - at for atoms in structures]
        return [0.5 * stiffness * float((d**2).sum()) for d in moved], [-stiffness * d for d in moved]

    return predict


def test_replicas_live_on_a_sound_potential_and_are_lost_on_others(scripts, tmp_path):
    from ase.build import molecule
    from ase.io import write
    from dynamics import explore

    start = molecule("CH3OH")
    write(tmp_path / "starts.xyz", [start] * 2)
    asked = {"starts": str(tmp_path / "starts.xyz"), "temperatures": [300.0, 1200.0], "replicas": 3, "nvt": 150, "nve": 150}
    request = {"seed": 0, "dynamics": asked | {"every": 50, "fragments": 1, "out": str(tmp_path / "out.xyz")}}
    sound = explore(springs(start.positions, 20.0), request)
    assert sound["300 K"] == {"replicas": 3, "alive": 1.0, "steps": 300.0, "lost": {}} and sound["1200 K"]["alive"] == 1.0
    frames = read(tmp_path / "out.xyz", ":")
    assert len(frames) == 6 * 6 and {f.info["temperature"] for f in frames} == {300.0, 1200.0}
    expected = -20 * (frames[0].positions - start.positions)
    np.testing.assert_allclose(frames[0].arrays["predicted_forces"], expected, atol=1e-6)  # the file has eight decimals
    hottest = [f for f in frames if f.info["temperature"] == 1200.0]
    spread = np.mean([((f.positions - start.positions) ** 2).mean() for f in hottest[9:]])
    assert spread == pytest.approx(8.617e-5 * 1200 / 20, rel=0.5)  # kT over the stiffness
    wrong = explore(springs(start.positions, -5.0), request)
    assert wrong["300 K"]["alive"] == 0 and set(wrong["300 K"]["lost"]) <= {"too hot", "force", "fell apart", "too near"}
    assert explore(springs(start.positions, 1.0), {"seed": 0}) is None


def test_the_table_of_the_edge_names_the_worst_and_the_lost(scripts):
    from edge import table
    from service import quantiles

    found = quantiles([10.0] * 98 + [20.0, 3000.0])
    assert found == {"median": 10.0, "90 %": 10.0, "99 %": 20.0, "worst": 3000.0, "above 1 eV/Å": 0.01}
    errors = {name: {"forces_rmse": 12.0, "forces_rmse_of_structures": found} for name in ("300 K", "600 K", "1200 K")}
    row = {"system": "water", "structures": 100, "code": "mlff", "epochs": 7, "errors": errors, "certificate": []}
    row |= {"dynamics": {"300 K": {"alive": 0.5}}, "loop": {"300 K": {"forces_rmse": 99.0}}}
    text = table([row, {"system": "water", "structures": 100, "code": "mace", "missing": "no environment"}])
    assert "| water, 100 | mlff | 7 | 12.0 / 10.0 / 3000 |" in text and "| 0.010 | 0.50 | 99 | 1 of 1 pass |" in text
    assert "| water, 100 | mace | no environment |" in text


def test_oracles_change_solids_as_they_say(scripts):
    import oracles

    start = oracles.SYSTEMS["silicon"].make()
    assert len(oracles.vacancy(start)) == len(start) - 1
    assert oracles.surface(start).get_volume() > 1.3 * start.get_volume()
    strain = np.linalg.solve(start.cell.array, oracles.strained(start).cell.array) - np.eye(3)
    assert 0.02 < np.abs(strain).max() <= 0.08 + 1e-9
    labelled = oracles.label(start, oracles.SYSTEMS["silicon"].oracle())
    assert labelled.get_potential_energy() / len(start) == pytest.approx(-4.3366, abs=0.02)
