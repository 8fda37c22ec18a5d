"""Several starts in one program: each goes its own way, as if it were alone."""

import collections
import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlff.basics.errors import ConfigError, ModelFileError, TrainingError
from mlff.config.load import make_config as parse
from mlff.data.batching import Batches, make_sample
from mlff.data.dataset import load_data
from mlff.models import registry
from mlff.models.parameters import initial_params
from mlff.potential.potential import Potential
from mlff.training import start, starts, step
from mlff.training.checkpoint import Checkpoints
from mlff.training.objectives import supervised
from mlff.training.pretrain import check as check_pretraining
from mlff.training.progress import TrainingProgress
from mlff.training.runlog import RunLog
from mlff.training.step import Report, initial_state, make_step
from mlff.training.train import prepare, train
from mlff.training.trainer import Trainer
from tests.conftest import MODELS, make_potential

from .every_model import structures as molecules_and_crystals
from .test_loop import files, settings  # noqa: F401  a fixture
from .toy import make_config, make_task

COUNT = 2


def begun(structures, count=COUNT, **training):
    """A task of several starts with weights of their own, in float64."""
    config = make_config(training={"epochs": 6, "starts": count} | training, precision="float64")
    task = make_task(config, structures)
    rng = np.random.default_rng(0)
    params, *others = ({"w": jnp.asarray(rng.normal(size=4))} for _ in range(count))
    return dataclasses.replace(task, params=params, others=tuple(others))


def alone(task, k):
    """The same training of one of its starts."""
    config = task.config.model_copy(update={"training": task.config.training.model_copy(update={"starts": 1})})
    return dataclasses.replace(task, config=config, params=(task.params, *task.others)[k], others=())


def fit(out, task):
    out.mkdir(exist_ok=True)
    with jax.enable_x64(True), Checkpoints(out / "checkpoints") as saved:
        trainer = Trainer(task, saved, RunLog(out, progress=False), {})
        trainer.resume()
        trainer.fit()
        return trainer


def counters(run):
    return {name: value for name, value in run.to_dict().items() if name not in ("seconds", "overhead")}


def lines(out):
    timing = ("seconds", "structures_per_second")
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timing} for line in read]


def jumping(monkeypatch):
    """Starts with a weak validation see their error jump, each once: they go back, the others do not."""
    jumps = property(lambda run: run.epoch == 3 and run.position == 3 and not run.spikes and run.best_score > 0.2)
    monkeypatch.setattr(TrainingProgress, "spiked", jumps)


def test_each_start_is_what_it_would_be_alone(structures, tmp_path, monkeypatch):
    jumping(monkeypatch)
    booked, take = collections.Counter(), TrainingProgress.take
    monkeypatch.setattr(TrainingProgress, "take", lambda run, report: (booked.update([id(run)]), take(run, report)))
    with jax.enable_x64(True):
        task = begun(structures, patience=3)
        together = fit(tmp_path / "together", task)
        single = [fit(tmp_path / str(k), alone(task, k)) for k in range(COUNT)]
    assert len({run.spikes for run in together.runs}) == 2, "what happens to one does not happen to all"
    for run in together.runs:
        assert booked[id(run)] == run.tried - 2 * run.spikes, "steps that were on their way at a jump do not count"
    for k, trainer in enumerate(single):
        got, expected = counters(together.runs[k]), counters(trainer.run)
        assert not [name for name in got if not np.allclose(got[name] or 0, expected[name] or 0, rtol=1e-10)]
        for name in ("state", "best"):
            pairs = jax.tree.leaves(getattr(together, name)), jax.tree.leaves(getattr(trainer, name))
            for several, one in zip(*pairs, strict=True):
                np.testing.assert_allclose(several[k], one, rtol=1e-10, atol=1e-12)
    best = starts.leader(together.runs)
    assert together.runs[best].best_score == pytest.approx(min(trainer.run.best_score for trainer in single))
    last, others = lines(tmp_path / "together")[-1], [lines(tmp_path / str(k))[-1] for k in range(COUNT)]
    assert last["start"] == best and last["train_loss"] == pytest.approx(others[best]["train_loss"])
    assert [last[f"valid_loss/{k}"] for k in range(COUNT)] == pytest.approx([line["valid_loss"] for line in others])


def test_stopped_and_resumed_is_bitwise_as_if_never_stopped(structures, tmp_path, monkeypatch):
    with jax.enable_x64(True):
        task = begun(structures)
    straight = fit(tmp_path / "straight", task)
    original = Trainer._tick

    def stop(self):
        original(self)
        if self.run.tried == 6:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_tick", stop)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "stopped", task)
    resumed = fit(tmp_path / "stopped", task)
    trees = [jax.tree.leaves((trainer.state, trainer.best)) for trainer in (straight, resumed)]
    assert all(np.array_equal(a, b) for a, b in zip(*trees, strict=True))
    assert list(map(counters, straight.runs)) == list(map(counters, resumed.runs))
    assert lines(tmp_path / "straight") == lines(tmp_path / "stopped")
    with jax.enable_x64(True), pytest.raises(ModelFileError, match="another model"):
        fit(tmp_path / "stopped", alone(task, 0))


def test_a_start_that_keeps_diverging_is_left_behind_and_the_last_one_is_an_error(structures, tmp_path, caplog):
    with jax.enable_x64(True):
        task = begun(structures, epochs=10)
        lost = {"w": jnp.full(4, jnp.nan)}
        ends = fit(tmp_path / "one", dataclasses.replace(task, others=(lost,)))
        assert [run.failed for run in ends.runs] == [False, True] and ends.run.best_epoch > 1
        assert starts.kept(ends.config, ends.runs) == [0] and "1: failed" in starts.outcome(ends.runs)
        committee = ends.config.model_copy(
            update={"training": ends.config.training.model_copy(update={"keep": "committee"})}
        )
        assert starts.kept(committee, ends.runs) == [0]
        assert caplog.text.count("start 1: ") >= 6 and "it is left behind" in caplog.text
        with pytest.raises(TrainingError, match="lower optimizer.learning_rate"):
            fit(tmp_path / "both", dataclasses.replace(task, params=lost, others=(lost,)))


def test_records_of_checkpoints(tmp_path):
    runs = [TrainingProgress(epoch=2, best_score=0.5), TrainingProgress(epoch=2, failed=True)]
    record = json.loads(json.dumps(starts.to_record(runs)))
    assert starts.from_record(record, "x") == runs
    assert starts.to_record(runs[:1]) == {"run": runs[0].to_dict()}, "as that of one start has always been"
    for broken in ({"others": 3}, {"others": [{"epoch": -1}]}, {"others": [None]}):
        with pytest.raises(ModelFileError, match="not that of a run of mlff"):
            starts.from_record(record | broken, "x")


@pytest.mark.parametrize(
    ("training", "more", "message"),
    [
        ({"starts": 4, "devices": 2}, {}, "starts: 4 and devices: 2 do not go together"),
        ({"starts": 0}, {}, "training.starts"),
        ({"keep": "committee"}, {}, "keep: committee joins several starts, and there is one"),
        ({"starts": 2}, {"finetune_from": "a.safetensors"}, "2 starts would all begin with the weights of finetune_from"),
    ],
)
def test_what_cannot_be_is_said(training, more, message):
    with pytest.raises(ConfigError, match=message):
        start.load(parse({"data": {"train": "a.xyz"}, "training": training, **more}))


def test_learning_without_labels_has_one_start():
    with pytest.raises(ConfigError, match="training.starts: learning without labels has one start"):
        check_pretraining(parse({"data": {"train": "a.xyz"}, "training": {"starts": 2}}))


@pytest.mark.slow
def test_a_committee_of_starts_is_one_model(files, tmp_path, caplog):  # noqa: F811
    training = {"epochs": 1, "tensorboard": False, "starts": 2, "keep": "committee"}
    with caplog.at_level("INFO", "mlff"):
        potential = train(settings(files, training=training), tmp_path / "run", progress=False)
    assert potential.members == 2 and potential.metadata["errors"]["test cold"]["structures"] == 6
    assert Potential.load(tmp_path / "run" / "model.safetensors").fingerprint == potential.fingerprint
    assert "kept: 0, 1" in caplog.text and "2 starts" in caplog.text
    assert {"start", "valid_loss/0", "valid_loss/1"} <= set(lines(tmp_path / "run")[-1])
    with pytest.raises(ConfigError, match=r"training.starts \(2 there, 1 here\)"):
        train(settings(files), tmp_path / "run", progress=False)


def test_start_k_begins_as_member_k(files):  # noqa: F811
    several = settings(files, training={"starts": 2}, member=1)
    splits = load_data(several.data, several.seed, several.loss)
    task = prepare(several, splits)
    for k, params in enumerate((task.params, *task.others), 1):
        member = prepare(settings(files, member=k), splits)
        assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(member.params)))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["cpu", "gpu"])  # one after another; all at once
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("lennard_jones", "morse")])
def test_a_step_of_several_starts_is_that_of_each(name, where, monkeypatch):
    with jax.enable_x64(True):
        potential = make_potential(name, "float64")
        batches = Batches(
            [make_sample(s, potential.cutoff) for s in molecules_and_crystals()], batch_size=6, dtype=np.float64
        )
        graph, labels = jax.device_put(batches.build(*batches.plan(None)[0]))
        module = registry.build(potential.config, potential.elements, potential.statistics)
        config = make_config(optimizer={"name": "muon", "learning_rate": 0.01}, precision="float64")
        objective = supervised(module.apply, config.loss, 1.0)
        params = [jax.tree.map(lambda p: jnp.asarray(p, float), initial_params(module, seed)) for seed in range(2)]
        controls, one = np.array([[0.5, 1.0, 1.0], [0.6, 0.5, 1.0]]), make_step(objective, config)
        expected = [one(initial_state(config, p), c, graph, labels) for p, c in zip(params, controls, strict=True)]
        monkeypatch.setattr(step.jax, "default_backend", lambda: where)
        every = make_step(objective, config, starts=2)
        state, vectors = every(starts.side_by_side([initial_state(config, p) for p in params]), controls, graph, labels)
        for k, (single, vector) in enumerate(expected):
            np.testing.assert_allclose(vectors[k], vector, rtol=1e-9, atol=1e-12)
            assert Report.unpack(vectors[k]).norms.all()
            for several, alone in zip(jax.tree.leaves(state), jax.tree.leaves(single), strict=True):
                np.testing.assert_allclose(several[k], alone, rtol=1e-8, atol=1e-9)
