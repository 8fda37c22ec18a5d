"""Ctrl-C and SIGTERM: every command ends with one line and its exit code, and what is on disk is whole."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import read, write
from typer.testing import CliRunner

from mlff.basics.signals import Terminated
from mlff.cli import app
from mlff.lint import lint
from mlff.potential.potential import Potential
from mlff.simulation.md import run_md
from mlff.simulation.record import load_state, state_path
from mlff.simulation.relax import relax
from mlff.training.checkpoint import Checkpoints
from mlff.training.runlog import RunLog
from mlff.training.trainer import Trainer
from tests.potentials import morse
from tests.simulation.springs import Springs
from tests.training.conftest import compiled, shared_compilations, structures  # noqa: F401
from tests.training.toy import make_config, make_task

SIGNALS = {signal.SIGINT: (130, "error: interrupted"), signal.SIGTERM: (143, "error: terminated")}
each_signal = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


@pytest.fixture
def folder(tmp_path):
    rng, oracle = np.random.default_rng(0), morse()
    frames = [molecule("H2O") for _ in range(8)]
    for atoms in frames:
        atoms.positions += rng.normal(0, 0.1, (3, 3))
    for atoms, result in zip(frames, oracle.predict(frames), strict=True):
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = result.energy, result.forces
    write(tmp_path / "data.xyz", frames)
    oracle.save(tmp_path / "model.safetensors")
    return tmp_path


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def during(monkeypatch, owner, name, number, at=1):
    """The signal arrives while `owner.name` is called for the `at`-th time."""
    original, calls = getattr(owner, name), []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(number)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


@each_signal
@pytest.mark.parametrize("command", ["predict", "evaluate", "lint"])
def test_a_command_of_one_go_leaves_nothing_half(folder, monkeypatch, number, command):
    out = folder / "out.xyz"
    out.write_text("what was there before")
    if command == "lint":
        during(monkeypatch, lint, "lint", number)
        arguments = ["lint", folder / "data.xyz", "--json", out]
    else:
        during(monkeypatch, Potential, "predict", number)
        arguments = [
            command,
            folder / "model.safetensors",
            folder / "data.xyz",
            *(["--json"] if command == "evaluate" else []),
            out,
        ]
    before, handler = sorted(folder.iterdir()), signal.getsignal(signal.SIGTERM)
    code, _, stderr = call(*arguments, "--quiet")
    assert (code, stderr.strip()) == SIGNALS[number]
    assert out.read_text() == "what was there before" and sorted(folder.iterdir()) == before
    assert signal.getsignal(signal.SIGTERM) is handler


@each_signal
def test_dynamics_saves_its_state(tmp_path, number):
    start = bulk("Cu", cubic=True)
    options = {"steps": 40, "timestep": 2.0, "interval": 5, "progress": False}
    whole, cut, again = start.copy(), start.copy(), start.copy()
    run_md(whole, Springs(start), trajectory=tmp_path / "whole.traj", **options)

    def stop(calls, forces):
        if calls == 18:
            os.kill(os.getpid(), number)
        return forces

    out = tmp_path / "cut.traj"
    with pytest.raises(Terminated if number == signal.SIGTERM else KeyboardInterrupt):
        run_md(cut, Springs(start, disturb=stop), trajectory=out, **options)
    assert int(load_state(state_path(out))["step"]) == 17
    run_md(again, Springs(start), trajectory=out, restart=True, **options)
    assert np.array_equal(again.positions, whole.positions) and len(read(out, ":")) == 9


@each_signal
def test_training_saves_a_checkpoint(tmp_path, monkeypatch, number, structures, shared_compilations):  # noqa: F811
    task = make_task(make_config(training={"epochs": 2}), structures)
    during(monkeypatch, Trainer, "_tick", number, at=4)
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        trained = Trainer(task, checkpoints, RunLog(tmp_path, progress=False), {})
        with pytest.raises(Terminated if number == signal.SIGTERM else KeyboardInterrupt):
            trained.fit()
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        assert checkpoints.record()["run"]["tried"] == trained.run.tried > 0


@each_signal
def test_a_relaxation_keeps_how_far_it_came(folder, monkeypatch, number):
    write(folder / "water.xyz", molecule("H2O"))
    during(monkeypatch, Springs, "calculate", number, at=3)
    atoms = molecule("H2O")
    springs = Springs(atoms)
    atoms.positions[0] += 0.3
    begin = atoms.positions.copy()
    with pytest.raises(Terminated if number == signal.SIGTERM else KeyboardInterrupt):
        relax(atoms, springs, progress=False)
    assert not np.array_equal(atoms.positions, begin)
    monkeypatch.setattr("mlff.cli.simulate.make_calculator", lambda *_: Springs(molecule("H2O")))
    during(monkeypatch, Springs, "calculate", number, at=1)
    files = folder / "data.xyz", "--frame", 0, "--out", folder / "relaxed.xyz"
    code, _, stderr = call("relax", folder / "model.safetensors", *files, "--quiet")
    warning, error = stderr.splitlines()
    assert (code, error) == SIGNALS[number]
    assert warning == f"warning: stopped before the end; the last structure is in {folder / 'relaxed.xyz'}"
    assert len(read(folder / "relaxed.xyz")) == 3


CONFIG = """
data: {train: data.xyz, lint: 'off'}
model: {architecture: schnet, cutoff: 4.0, channels: 8, layers: 1, radial_basis: 4}
training: {epochs: 100000, batch_size: 4}
"""


@pytest.mark.slow
@each_signal
@pytest.mark.parametrize("command", ["train", "md"])
def test_slow_as_a_process(folder, number, command):
    """Exit code, one line, and a second start goes on from there."""
    (folder / "config.yaml").write_text(CONFIG)
    if command == "train":
        arguments, grows = ["train", "config.yaml", "--out", "run", "--quiet"], folder / "run" / "metrics.jsonl"
    else:
        options = ["--steps", "100000000", "--interval", "100", "--quiet", "--timestep", "0.2"]
        arguments, grows = ["md", "model.safetensors", "data.xyz", "--out", "md.xyz", *options], folder / "md.jsonl"
    begin = 0
    for start in range(2):
        command_line = [sys.executable, "-c", "from mlff.cli import main; main()", *arguments]
        process = subprocess.Popen(command_line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and (not grows.exists() or len(grows.read_text().splitlines()) < begin + 3):
            time.sleep(0.1)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=120)
        lines = [line for line in stderr.splitlines() if not line.startswith("warning: ")]
        assert (process.returncode, "\n".join(lines)) == SIGNALS[number]
        begin = len(grows.read_text().splitlines())
        if command == "md" and start == 0:
            arguments.append("--restart")
    steps = [json.loads(line).get("step") for line in grows.read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert not list(folder.rglob("*.lock")) and not list(folder.rglob("*.tmp*"))
