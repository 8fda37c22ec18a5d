import json
import signal
from dataclasses import replace

import ase.io
import jax
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from mlff.basics.errors import ConfigError, DataError
from mlff.basics.files import alone
from mlff.config.load import make_config
from mlff.data.dataset import load_data
from mlff.potential.potential import Potential
from mlff.training.evaluate import evaluate
from mlff.training.identity import MAY_CHANGE, refuse_other
from mlff.training.runlog import RunLog
from mlff.training.train import inspect, train
from mlff.training.trainer import Trainer
from tests.potentials import lennard_jones

from .toy import make_structures


def write(path, structures):
    frames = []
    for structure in structures:
        atoms = structure.to_atoms()
        atoms.calc = SinglePointCalculator(atoms, energy=structure.energy, forces=structure.forces)
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write(folder / "train.xyz", make_structures(24, seed=0)), write(folder / "test.xyz", make_structures(6, seed=1))


def settings(files, **changes):
    raw = {
        "data": {"train": files[0], "test": {"cold": files[1]}, "reference_energies": "none"},
        "model": {"architecture": "schnet", "channels": 8, "layers": 1, "radial_basis": 8, "cutoff": 3.0, "zbl": False},
        "training": {"epochs": 3, "batch_size": 4, "tensorboard": True},
    }
    for key, value in changes.items():
        raw[key] = raw.get(key, {}) | value if isinstance(value, dict) else value
    return make_config(raw)


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "one"
    return out, train(settings(files), out, progress=False)


def test_a_run_leaves_a_potential_its_config_metrics_and_events(finished, files):
    out, potential = finished
    loaded = Potential.load(out / "model.safetensors")
    for a, b in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(potential.params), strict=True):
        np.testing.assert_array_equal(a, b)
    history = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(history) == 3 and all(0 <= line["saturated/head/hidden"] <= 1 for line in history)
    assert list((out / "tensorboard").iterdir())
    assert "schnet" in (out / "config.yaml").read_text()
    errors = loaded.metadata["errors"]
    assert set(errors) == {"validation", "test cold"} and errors["test cold"]["structures"] == 6
    splits = load_data(settings(files).data, 0, settings(files).loss)
    assert loaded.metadata["data"]["train"] == splits.train.fingerprint
    assert loaded.metadata["data"]["test cold"] == splits.test["cold"].fingerprint
    started = json.loads((out / "run.json").read_text())[0]
    assert started["seed"] == 0 and started["data"] == {name: loaded.metadata["data"][name] for name in ("train", "valid")}
    assert started["versions"] == loaded.metadata["versions"] and started["machine"] == loaded.metadata["machine"]
    assert evaluate(loaded, splits.test["cold"]).forces_rmse == pytest.approx(errors["test cold"]["forces_rmse"], rel=1e-4)


def test_the_errors_while_training_are_those_of_the_final_evaluation(finished):
    out, potential = finished
    history = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    best = history[potential.metadata["training"]["best_epoch"] - 1]
    final = potential.metadata["errors"]["validation"]
    assert best["valid_forces_rmse"] == pytest.approx(final["forces_rmse"], rel=1e-3)
    assert best["valid_energy_rmse_per_atom"] == pytest.approx(final["energy_rmse_per_atom"], rel=1e-3)


def test_a_finished_run_is_not_repeated(finished, files, monkeypatch, caplog):
    out, potential = finished
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained again"))
    before = (out / "model.safetensors").stat().st_mtime_ns
    with caplog.at_level("INFO", "mlff"):
        again = train(settings(files), out, progress=False)
    assert "this run is finished" in caplog.text
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert again.metadata == potential.metadata


def test_lint_may_change_between_runs(finished, files):
    out, potential = finished
    assert train(settings(files, data={"lint": "warn"}), out, progress=False).metadata == potential.metadata


def test_another_config_or_other_data_is_refused_by_name(finished, files, tmp_path):
    out, _ = finished
    other = settings(files, optimizer={"learning_rate": 0.5}, model={"channels": 16})
    names = r"model.channels \(8 there, 16 here\), optimizer.learning_rate .*choose another --out"
    with pytest.raises(ConfigError, match=names):
        train(other, out, progress=False)
    new = write(tmp_path / "new.xyz", make_structures(24, seed=5)), files[1]
    with pytest.raises(ConfigError, match="content of data.train"):
        train(settings(new), out, progress=False)
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        train(settings(files), occupied, progress=False)
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ConfigError, match="no checkpoint to go on from"):
        train(settings(files), tmp_path, progress=False)


@pytest.mark.slow  # the loop itself: test_trainer.py
def test_float64_stopped_and_resumed_is_bitwise_as_if_never_stopped(files, tmp_path, monkeypatch, shared_compilations):
    config = settings(files, precision="float64", training={"tensorboard": False})
    straight = train(config, tmp_path / "straight", progress=False)
    original = RunLog.record

    def stop(self, line):
        original(self, line)
        if line["epoch"] == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunLog, "record", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "stopped", progress=False)
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    resumed = train(config, tmp_path / "stopped", progress=False)
    for a, b in zip(jax.tree.leaves(straight.params), jax.tree.leaves(resumed.params), strict=True):
        assert a.dtype == np.float64
        np.testing.assert_array_equal(a, b)
    assert straight.metadata["errors"] == resumed.metadata["errors"]


def test_more_epochs_continue_a_finished_run(finished, files):
    out, _ = finished
    more = train(settings(files, training={"epochs": 4}), out, progress=False)
    assert more.metadata["training"]["epochs"] == 4
    assert [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_two_runs_in_one_directory_are_refused(files, tmp_path):
    with alone(tmp_path / ".lock", "busy"), pytest.raises(ConfigError, match="another process trains there"):
        train(settings(files), tmp_path, progress=False)
    assert not (tmp_path / "config.yaml").exists()


def test_sets_given_in_place_of_files_are_checked_too(files, tmp_path, monkeypatch):
    config = settings(files)
    splits = load_data(config.data, config.seed, config.loss)
    bare = tuple(replace(s, energy=None, forces=None) for s in splits.valid)
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("began to train"))
    with pytest.raises(DataError, match="no validation structure has energy .* or forces"):
        train(config, tmp_path / "run", progress=False, data=replace(splits, valid=replace(splits.valid, structures=bare)))


@pytest.mark.slow
def test_one_atom_cells_train_on_energies_and_stresses(tmp_path):
    """An equation of state: all forces are zero by symmetry."""
    potential, frames = lennard_jones(), []
    for a in np.linspace(3.3, 4.2, 30):
        atoms = bulk("Cu", a=a)
        (result,) = potential.predict([atoms])
        atoms.calc = SinglePointCalculator(atoms, energy=result.energy, forces=np.zeros((1, 3)), stress=result.stress)
        frames.append(atoms)
    ase.io.write(tmp_path / "eos.xyz", frames)
    model = {"cutoff": 4.0}
    changes = {"model": model, "loss": {"stress": 1.0}, "training": {"epochs": 30}}
    changes["optimizer"] = {"name": "adam", "learning_rate": 0.02}
    config = settings((str(tmp_path / "eos.xyz"), None), data={"test": None}, **changes)
    trained = train(config, tmp_path / "run", progress=False)
    energies = [atoms.get_potential_energy() for atoms in frames]
    assert trained.statistics.energy_scale == pytest.approx(np.std(energies), rel=0.2)
    history = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]


def test_a_test_set_that_cannot_be_evaluated_costs_its_errors_alone(finished, files, tmp_path, caplog):
    config = settings(files)
    splits = load_data(config.data, config.seed, config.loss)
    crushed = tuple(replace(s, positions=1e-5 * s.positions) for s in splits.test["cold"])
    test = {"crushed": replace(splits.test["cold"], structures=crushed)}
    trained = train(config, tmp_path / "run", progress=False, data=replace(splits, test=test))
    assert set(trained.metadata["errors"]) == {"validation"} and "crushed: no errors: " in caplog.text


def test_contradictory_labels_stop_before_anything_is_spent(tmp_path, monkeypatch):
    structures = [replace(s, forces=-s.forces) for s in make_structures(24, seed=0)]
    files = write(tmp_path / "train.xyz", structures), write(tmp_path / "test.xyz", make_structures(6, seed=1))
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("began to train"))
    with pytest.raises(DataError, match="train.xyz: energies and forces contradict .* units.forces_sign: gradient"):
        train(settings(files), tmp_path / "run", progress=False)
    config = settings(files, data={"lint": "warn"})
    splits = load_data(config.data, config.seed, config.loss)
    said: list[str] = []
    inspect(config, splits, said.append)
    assert len(said) == 1 and said[0].startswith("error: energies and forces contradict")
    inspect(settings(files, data={"lint": "off"}), splits, lambda text: pytest.fail(text))


def test_an_option_that_an_earlier_run_did_not_know_has_its_default_there(files, tmp_path):
    def identity(**sections):
        config = settings(files, **sections)
        options = {k: dict(v) if isinstance(v, dict) else v for k, v in config.model_dump(mode="json").items()}
        for section, names in MAY_CHANGE.items():
            options[section] = {k: v for k, v in options[section].items() if k not in names}
        return config, {"config": options, "content of data": {}}

    _, before = identity()
    del before["config"]["optimizer"]["weight_decay"], before["config"]["training"]["ema_decay"]
    del before["config"]["optimizer"]["schedule"]["cycles"]
    config, now = identity()
    refuse_other(tmp_path, now, {"identity": before}, config)
    config, now = identity(optimizer={"weight_decay": 0.5})
    with pytest.raises(ConfigError, match=r"differs in optimizer.weight_decay \(0.0 there, 0.5 here\)"):
        refuse_other(tmp_path, now, {"identity": before}, config)
