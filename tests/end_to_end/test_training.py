"""The main job on a slice of the shipped data, through the command line: what is learned is useful, and can be used.

Training runs in processes of its own: the other tests compile without optimisation, which is too slow for it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from ase import units
from ase.io import read
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from mlff import MLFFCalculator, Potential, read_dataset

DATA = Path(__file__).parents[2] / "data" / "malonaldehyde"
CONFIG = """
data:
  train: [train.xyz, isolated_atoms.xyz]
  valid: valid.xyz
model: {cutoff: 4.0, channels: 16, radial_basis: 6}
optimizer: {name: muon, learning_rate: 0.02}
training: {epochs: 40, batch_size: 5, tensorboard: false}
"""
ENERGIES_ONLY = """
data:
  train: [many.xyz, isolated_atoms.xyz]
  valid: valid.xyz
model: {cutoff: 4.0, channels: 16, radial_basis: 6}
loss: {forces: 0}
optimizer: {name: muon, learning_rate: 0.003}
training: {epochs: 20, batch_size: 5, tensorboard: false}
"""
SMALL = """
data:
  train: [train.xyz, isolated_atoms.xyz]
  valid: valid.xyz
model: {architecture: schnet, cutoff: 4.0, channels: 16, layers: 1, radial_basis: 8}
training: {epochs: 40, batch_size: 5, tensorboard: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """240 structures to train on (900 where only energies are used), 20 to validate, 60 held out, spread over the files."""
    folder = tmp_path_factory.mktemp("malonaldehyde")
    train, test = frames(DATA / "train.xyz"), frames(DATA / "test_300K.xyz")
    valid = spread(train, 20)
    rest = [frame for frame in train if frame not in valid]
    parts = {"valid": valid, "train": spread(rest, 240), "many": spread(rest, 900), "test": spread(test, 60)}
    for name, part in parts.items():
        (folder / f"{name}.xyz").write_text("".join(part))
    (folder / "isolated_atoms.xyz").write_text((DATA / "isolated_atoms.xyz").read_text())
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "energies_only.yaml").write_text(ENERGIES_ONLY)
    (folder / "small.yaml").write_text(SMALL)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    """The trained model."""
    run(folder, "train", "config.yaml", "--out", "run", "--quiet", "--no-certify")
    return folder / "run" / "model.safetensors"


def frames(path: Path) -> list[str]:
    lines, start, found = path.read_text().splitlines(keepends=True), 0, []
    while start < len(lines):
        stop = start + int(lines[start]) + 2
        found.append("".join(lines[start:stop]))
        start = stop
    return found


def spread(items: list, count: int) -> list:
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def start(folder: Path, *arguments) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
    command = [sys.executable, "-c", "from mlff.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(folder: Path, *arguments) -> str:
    process = start(folder, *arguments)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def force_errors(folder: Path, model: Path) -> tuple[float, float]:
    """RMSE of the forces on the held-out structures, and their RMS, which is the error of zero forces; eV/Å."""
    run(folder, "evaluate", model, "test.xyz", "--json", "errors.json", "--quiet")
    errors = json.loads((folder / "errors.json").read_text())
    forces = np.concatenate([structure.forces for structure in read_dataset(folder / "test.xyz")])
    rms = float(np.sqrt(np.mean(forces**2)))
    return errors["forces_rmse"] / 1000, rms


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without what measures time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def test_forces_are_twenty_times_better_than_a_mean_predictor(folder, model):
    error, rms = force_errors(folder, model)
    print(f"forces: RMSE {1000 * error:.1f} meV/Å, RMS {1000 * rms:.0f} meV/Å, {rms / error:.1f} times better")
    assert error < rms / 20


def test_energies_are_better_than_their_mean(folder, model):
    test = read_dataset(folder / "test.xyz")
    reference = np.array([structure.energy for structure in test])
    predicted = np.array([result.energy for result in Potential.load(model).predict(test)])
    assert np.sqrt(np.mean((predicted - reference) ** 2)) < reference.std() / 5


def test_short_dynamics_keep_the_energy(folder, model):
    atoms = read(folder / "test.xyz", index=0)
    atoms.calc = MLFFCalculator(model)
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    Stationary(atoms)
    ZeroRotation(atoms)
    dynamics = VelocityVerlet(atoms, timestep=0.5 * units.fs)
    totals = []
    dynamics.attach(lambda: totals.append(atoms.get_total_energy()), interval=10)
    dynamics.run(200)
    totals = np.array(totals) / len(atoms)
    assert np.abs(totals - totals[0]).max() < 2e-3, "eV per atom"
    first, last = totals[: len(totals) // 2].mean(), totals[len(totals) // 2 :].mean()
    assert abs(last - first) < 5e-4, "eV per atom"
    assert atoms.get_all_distances()[np.triu_indices(len(atoms), 1)].min() > 0.7
    assert atoms.get_temperature() < 1500


def test_energies_alone_teach_forces(folder):
    run(folder, "train", "energies_only.yaml", "--out", "energies_only", "--quiet", "--no-certify")
    error, rms = force_errors(folder, folder / "energies_only" / "model.safetensors")
    print(f"energies only: forces RMSE {1000 * error:.0f} meV/Å of {1000 * rms:.0f} meV/Å")
    assert error < rms / 2


@pytest.mark.slow
def test_interrupted_and_resumed_is_as_if_never_stopped(folder):
    arguments = ["train", "small.yaml", "--quiet", "--no-certify", "--out"]
    process = start(folder, *arguments, "stopped")
    deadline = time.monotonic() + 300
    while not (file := folder / "stopped" / "metrics.jsonl").exists() or len(file.read_text().splitlines()) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and err.splitlines()[-1] == "error: interrupted"
    before = metrics(folder / "stopped")
    assert 3 <= len(before) < 40 and not (folder / "stopped" / "model.safetensors").exists()

    run(folder, *arguments, "stopped")
    after = metrics(folder / "stopped")
    assert after[: len(before)] == before
    assert [line["epoch"] for line in after] == list(range(1, 41))

    run(folder, *arguments, "whole")
    assert metrics(folder / "whole") == after
    stopped, whole = (Potential.load(folder / name / "model.safetensors").params for name in ("stopped", "whole"))
    jax.tree.map(np.testing.assert_array_equal, stopped, whole)
