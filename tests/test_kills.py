"""Killed at any moment at which files change, training and dynamics go on and end as if never killed, bit by bit."""

import json
import shutil

import jax
import numpy as np
import pytest
from ase.build import bulk
from ase.io import read

from mlff.simulation import driver
from mlff.simulation.md import run_md
from mlff.simulation.record import load_state, record_path, state_path
from mlff.training import trainer
from mlff.training.checkpoint import Checkpoints
from mlff.training.runlog import RunLog
from mlff.training.trainer import Trainer
from tests.disks import Moments
from tests.simulation.springs import Springs
from tests.training.conftest import compiled, shared_compilations, structures  # noqa: F401
from tests.training.toy import make_config, make_task

STEPS = 30


def simulate(folder, name, restart=False, steps=STEPS):
    """Langevin dynamics of springs with a state at every record."""
    atoms = bulk("Cu", cubic=True)
    files = {"trajectory": folder / name, "log": folder / "md.jsonl"}
    options = {"steps": steps, "timestep": 2.0, "interval": 5, "temperature": 300, "progress": False}
    run_md(atoms, Springs(atoms), restart=restart, **files, **options)


def content(folder, name):
    """What a run of dynamics leaves, times apart."""
    frames = read(folder / name, ":")
    state = load_state(state_path(folder / name))
    numbers = [array.tobytes() for atoms in frames for array in (atoms.positions, atoms.get_momenta())]
    text = (folder / name).read_bytes() if name.endswith(".xyz") else b""
    return numbers, text, (folder / "md.jsonl").read_text(), {key: value.tobytes() for key, value in state.items()}


@pytest.mark.parametrize("name", ["md.xyz", "md.traj"])
def test_dynamics_killed_at_any_moment_goes_on(tmp_path, monkeypatch, name):
    monkeypatch.setattr(driver, "SAVE_EVERY", 0.0)
    monkeypatch.setattr("mlff.basics.files.sync", lambda path: None)
    folder, alone = tmp_path / "run", tmp_path / "alone"
    for place in (folder, alone):
        place.mkdir()
    simulate(alone, name)
    with Moments(folder, tmp_path / "killed") as moments:
        simulate(folder, name)
    expected = content(alone, name)
    assert content(folder, name) == expected
    assert moments.count > 20
    resumed = 0
    for killed in moments.all():
        with_state = state_path(killed / name).exists()
        resumed += with_state
        simulate(killed, name, restart=with_state)
        assert content(killed, name) == expected, killed.name
        assert not list(killed.glob(".*.lock"))
    assert resumed > 15


def test_dynamics_killed_while_it_goes_on_goes_on(tmp_path, monkeypatch):
    """The cuts of a restart (frames and lines after the state) may be interrupted too."""
    monkeypatch.setattr("mlff.basics.files.sync", lambda path: None)
    alone, folder = tmp_path / "alone", tmp_path / "run"
    for place in (alone, folder):
        place.mkdir()
    for name in ("md.xyz", "md.traj"):
        simulate(alone, name)
        simulate(folder, name, steps=10)
        early = state_path(folder / name).read_bytes()
        simulate(folder, name, restart=True, steps=20)
        state_path(folder / name).write_bytes(early)
        with open(folder / "md.jsonl", "a") as file:
            file.write('{"step": 1')
        with Moments(folder, tmp_path / f"killed {name}") as moments:
            simulate(folder, name, restart=True)
        for killed in moments.all():
            simulate(killed, name, restart=True)
            assert content(killed, name) == content(alone, name)
        for path in folder.iterdir():
            path.unlink()


def test_a_new_run_never_goes_on_from_the_state_of_an_older_one(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "SAVE_EVERY", 0.0)
    folder = tmp_path / "run"
    folder.mkdir()
    simulate(folder, "md.xyz", steps=7)
    before = [(folder / name).read_bytes() for name in ("md.xyz", "md.jsonl")]
    with Moments(folder, tmp_path / "killed") as moments:
        simulate(folder, "md.xyz", steps=10)
    steps = []
    for killed in moments.all():
        if state_path(killed / "md.xyz").exists():
            steps.append(int(load_state(state_path(killed / "md.xyz"))["step"]))
            old = [(killed / name).read_bytes() for name in ("md.xyz", "md.jsonl")] == before
            assert old == (steps[-1] == 7)
    assert 7 in steps and 0 in steps


def test_a_log_in_csv_restarts_to_the_byte(tmp_path):
    def run(name, steps, restart=False):
        atoms = bulk("Cu", cubic=True)
        options = {"steps": steps, "interval": 5, "progress": False, "restart": restart}
        run_md(atoms, Springs(atoms), trajectory=tmp_path / f"{name}.xyz", log=tmp_path / f"{name}.csv", **options)

    run("whole", 20)
    run("parts", 10)
    with open(tmp_path / "parts.csv", "ab") as file:
        file.write(b"1")  # the first byte of step 15: as a step of its own it would have to stay
    run("parts", 20, restart=True)
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_every_start_of_a_run_is_on_record(tmp_path):
    simulate(tmp_path, "md.xyz", steps=5)
    simulate(tmp_path, "md.xyz", restart=True, steps=10)
    first, second = json.loads(record_path(tmp_path / "md.xyz").read_text())
    assert first["seed"] == 0 and first["settings"]["timestep"] == 2.0 and first["formula"] == "Cu4"
    assert {"mlff", "jax", "numpy", "ase"} <= set(first["versions"]) and "Python" in first["machine"]
    assert (first["from_step"], second["from_step"], second["steps"]) == (0, 5, 10)
    simulate(tmp_path, "md.xyz", steps=5)
    assert len(json.loads(record_path(tmp_path / "md.xyz").read_text())) == 1


def fit(out, task):
    out.mkdir(exist_ok=True, parents=True)
    with Checkpoints(out / "checkpoints", 2) as checkpoints:
        trained = Trainer(task, checkpoints, RunLog(out, progress=False), {})
        resumed = trained.resume()
        trained.fit()
    return trained, resumed


def lines(out):
    times = ("seconds", "structures_per_second")
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in times} for line in read]


@pytest.mark.parametrize("count", [4, pytest.param(1000, marks=pytest.mark.slow)])
def test_training_killed_at_any_moment_goes_on(tmp_path, monkeypatch, structures, shared_compilations, count):  # noqa: F811
    monkeypatch.setattr(trainer, "OFTEN", -1.0)  # a checkpoint after every epoch
    task = make_task(make_config(training={"epochs": 3}), structures)
    alone, _ = fit(tmp_path / "alone", task)
    with Moments(tmp_path / "run", tmp_path / "killed") as moments:
        whole, _ = fit(tmp_path / "run", task)
    assert moments.count > 10
    states = [trained for trained in (alone, whole)]
    resumptions = 0
    chosen = moments.all()
    stride = max(1, len(chosen) // count)
    for killed in chosen[stride // 2 :: stride]:
        trained, resumed = fit(killed, task)
        resumptions += resumed
        states.append(trained)
        assert lines(killed) == lines(tmp_path / "alone"), killed.name
        shutil.rmtree(killed)
    for trained in states[1:]:
        pairs = zip(jax.tree.leaves((alone.state, alone.best)), jax.tree.leaves((trained.state, trained.best)), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    assert resumptions >= min(count // 2, 20)
