import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlff.basics.errors import TrainingError
from mlff.config.options import Schedule
from mlff.training.checkpoint import Checkpoints
from mlff.training.losses import Sums
from mlff.training.objectives import supervised
from mlff.training.progress import TrainingProgress
from mlff.training.runlog import RunLog
from mlff.training.step import Report, initial_state, make_step
from mlff.training.trainer import Trainer

from .toy import make_config, make_structures, make_task, pair_energies


@pytest.fixture(autouse=True)
def share(shared_compilations):
    """Most tests here run the same compiled step."""


def make_trainer(out, task, quiet=True):
    out.mkdir(exist_ok=True, parents=True)
    return Trainer(task, Checkpoints(out / "checkpoints", 2), RunLog(out, progress=not quiet), {})


def fit(out, task):
    trainer = make_trainer(out, task)
    trainer.resume()
    try:
        trainer.fit()
    finally:
        trainer.checkpoints.close()
    return trainer


def lines(out):
    timing = ("seconds", "structures_per_second")
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timing} for line in read]


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def task(structures):
    return make_task(make_config(), structures)


@pytest.fixture
def straight(task, tmp_path):
    return tmp_path / "straight", fit(tmp_path / "straight", task)


def test_training_learns_and_records_every_epoch(straight):
    out, trainer = straight
    history = lines(out)
    assert [line["epoch"] for line in history] == [1, 2, 3, 4]
    assert history[-1]["valid_loss"] < 0.7 * history[0]["valid_loss"]  # absolute errors: their squares are halved
    assert history[-1]["step"] == trainer.run.tried == 4 * trainer.task.train.steps_per_epoch
    assert {"train_loss", "valid_energy_rmse", "valid_forces_rmse", "learning_rate", "skipped"} <= set(history[0])


def test_same_seed_same_result(straight, task, tmp_path):
    out, trainer = straight
    again = fit(tmp_path / "again", task)
    assert_same(trainer.state, again.state)
    assert lines(tmp_path / "again") == lines(out)


@pytest.mark.parametrize("when", [("epoch", 2), ("step", 6)], ids=["between epochs", "within an epoch"])
def test_stopped_and_resumed_is_bitwise_as_if_never_stopped(straight, task, tmp_path, when, monkeypatch):
    out, trainer = straight
    original = RunLog.record if when[0] == "epoch" else Trainer._tick
    stopped = []

    def stop(self, *arguments):
        original(self, *arguments)
        reached = arguments[0]["epoch"] == when[1] if when[0] == "epoch" else self.run.tried == when[1]
        if reached and not stopped:
            stopped.append(True)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(*((RunLog, "record") if when[0] == "epoch" else (Trainer, "_tick")), stop)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, task)
    assert stopped and len(lines(tmp_path)) == (2 if when[0] == "epoch" else 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train_loss": 1}\n{"epoch": 4, "tr')  # what a killed process may leave behind
    resumed = fit(tmp_path, task)
    assert_same((trainer.state, trainer.best), (resumed.state, resumed.best))
    assert lines(tmp_path) == lines(out)


def test_one_compilation_per_padded_size(tmp_path):
    mixed = make_structures(30, seed=1, sizes=(2, 3)) + make_structures(6, seed=2, sizes=(7, 8))
    task = make_task(make_config(training={"epochs": 2, "batch_size": 3, "ema_decay": 0.8}), mixed)
    trainer = fit(tmp_path, task)
    assert trainer.run.tried > 6 and len(task.train.sizes) > 1
    assert trainer.step._cache_size() == len(task.train.sizes)
    assert trainer.measure._cache_size() == len(task.valid.sizes)


def poison(task, which):
    """The task with non-finite energies in some training structures."""
    samples = [s._replace(labels=s.labels | {"energy": np.inf}) if which(i) else s for i, s in enumerate(task.train.samples)]
    config = task.config
    train = type(task.train)(samples, config.training.batch_size, config.training.max_atoms)
    return dataclasses.replace(task, train=train)


def test_a_step_that_is_not_finite_is_skipped_counted_and_reported(task, tmp_path, caplog):
    trainer = fit(tmp_path, poison(task, lambda i: i == 3))
    assert trainer.run.skipped == 4 and trainer.run.backoffs == 0
    assert [line["skipped"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trainer.state))
    assert lines(tmp_path)[-1]["valid_loss"] < lines(tmp_path)[0]["valid_loss"]
    assert "epoch 1: 1 steps with a non-finite loss or gradient were skipped" in caplog.text


def test_a_skipped_step_changes_nothing(structures):
    config = make_config()
    step = make_step(supervised(pair_energies, config.loss, 1.0), config)
    task = make_task(config, structures)
    graph, labels = task.train.build(*task.train.plan(None)[0])
    controls = np.array([0.5, 1.0, 0.0], np.float32)
    state = initial_state(config, {"w": jnp.ones(4)})
    state, _ = step(state, controls, graph, labels)
    before = jax.device_get(state)
    state, report = step(
        state, controls, graph, labels._replace(values=labels.values | {"energy": labels.values["energy"] * np.nan})
    )
    assert Report.unpack(report).skipped == 1
    assert_same(before, state)
    state, report = step(state, controls, graph, labels)
    assert Report.unpack(report).skipped == 0 and int(state.updates) == 2


def test_norms_of_gradient_update_and_weights_are_told_when_asked_for(structures):
    config = make_config(optimizer={"name": "sgd", "learning_rate": 0.1, "clip": None})
    task = make_task(config, structures)
    step = make_step(task.objective, config)
    graph, labels = task.train.build(*task.train.plan(None)[0])
    state = initial_state(config, {"w": jnp.arange(4.0)})
    before = np.asarray(state.params["w"])
    state, report = step(state, np.array([0.5, 1.0, 1.0], np.float32), graph, labels)
    moved = np.linalg.norm(np.asarray(state.params["w"]) - before)
    found = Report.unpack(report)
    np.testing.assert_allclose(found.norms, [[found.gradient_norm], [moved], [np.linalg.norm(before)]], rtol=1e-5)
    assert moved == pytest.approx(0.1 * found.gradient_norm, rel=1e-5)
    _, report = step(state, np.array([0.5, 1.0, 0.0], np.float32), graph, labels)
    assert not Report.unpack(report).norms.any()


def test_the_log_has_them_once_an_epoch(task, tmp_path):
    fit(tmp_path, task)
    for line in lines(tmp_path):
        assert line["gradient/w"] > 0 and line["update/w"] > 0 and line["ratio/w"] > 0


def test_training_that_keeps_diverging_backs_off_and_then_gives_up(task, tmp_path, caplog):
    task = poison(task, lambda i: True)
    config = task.config.model_copy(update={"training": task.config.training.model_copy(update={"epochs": 100})})
    with pytest.raises(TrainingError, match="lower optimizer.learning_rate"):
        fit(tmp_path, dataclasses.replace(task, config=config))
    assert caplog.text.count("with the learning rate x") == 5


def test_batches_come_in_the_order_of_the_plan_and_errors_of_building_them_are_raised(task, tmp_path):
    trainer = make_trainer(tmp_path, task)
    plan = task.train.plan(np.random.default_rng(0))
    for (sizes, indices), (size, count, graph, labels) in zip(plan, trainer._batches(plan), strict=True):
        assert (size, count) == (sizes, len(indices)) and isinstance(labels.values["energy"], jax.Array)
        assert_same(task.train.build(sizes, indices), (graph, labels))
    with pytest.raises(IndexError):
        next(trainer._batches([(plan[0][0], [10**6])]))


def test_energies_only_never_differentiates_by_positions(structures, tmp_path):
    @jax.custom_vjp
    def guarded(positions):
        return positions

    def refuse(_, cotangent):
        raise AssertionError("a force was computed")

    guarded.defvjp(lambda positions: (positions, None), refuse)

    def apply(params, graph):
        return pair_energies(params, graph._replace(positions=guarded(graph.positions)))

    config = make_config(loss=make_config().loss.model_copy(update={"forces": 0.0}))
    task = make_task(config, structures, apply=apply)
    step = make_step(supervised(apply, config.loss, 1.0), config)
    graph, labels = task.train.build(*task.train.plan(None)[0])
    before = initial_state(config, task.params)
    with pytest.raises(AssertionError, match="a force was computed"):
        make_step(supervised(apply, make_config().loss, 1.0), make_config()).lower(
            before, np.zeros(3, np.float32), graph, labels
        )
    _, report = step(before, np.zeros(3, np.float32), graph, labels)
    assert Report.unpack(report).sums.n_forces == 0 and Report.unpack(report).loss > 0


def test_an_objective_gets_another_key_in_every_step_and_the_same_ones_again(structures):
    config = make_config()
    task = make_task(config, structures)
    graph, labels = task.train.build(*task.train.plan(None)[0])
    nothing = Sums(*[jnp.zeros(())] * len(Sums._fields))

    def noise(params, graph, labels, progress, key):
        return jnp.sum(params["w"] * jax.random.normal(key, (4,))), nothing

    def losses_of(config):
        state, found = initial_state(config, {"w": jnp.ones(4)}), []
        step = make_step(noise, config)
        for _ in range(3):
            state, report = step(state, np.array([0.5, 0.0, 0.0], np.float32), graph, labels)
            found.append(Report.unpack(report).loss)
        return found

    first = losses_of(config)
    assert len(set(first)) == 3 and losses_of(config) == first
    other = losses_of(config.model_copy(update={"member": 1}))
    assert not set(first) & set(other)


def test_the_average_of_the_weights_follows_them_with_a_short_memory_at_first(structures):
    config = make_config(training={"ema_decay": 0.99})
    step = make_step(supervised(pair_energies, config.loss, 1.0), config)
    task = make_task(config, structures)
    graph, labels = task.train.build(*task.train.plan(None)[0])
    state = initial_state(config, task.params)
    expected = np.zeros(4)
    for t in range(3):
        state, _ = step(state, np.array([0.5, 1.0, 0.0], np.float32), graph, labels)
        decay = min(0.99, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["w"])
    np.testing.assert_allclose(state.average["w"], expected, rtol=1e-5)


def test_hours_end_a_run_and_carry_the_schedule_to_its_end(structures, tmp_path):
    training = {"epochs": None, "max_hours": 10.0 / 3600}
    optimizer = {"schedule": Schedule(kind="exponential", warmup_fraction=0, final_fraction=0.1)}
    trainer = make_trainer(tmp_path, make_task(make_config(training, optimizer), structures))
    trainer.run.overhead = 9.9  # what preparing took; compiling comes on top
    trainer.fit()
    trainer.checkpoints.close()
    assert trainer.run.out_of_time(trainer.config) and trainer.run.epoch >= 1
    assert lines(tmp_path)[-1]["learning_rate"] <= lines(tmp_path)[0]["learning_rate"] <= 0.05


def test_over_fitting_goes_back_to_the_best_weights_and_ends_early(structures, tmp_path, monkeypatch, caplog):
    config = make_config(training={"epochs": 20}, optimizer={"schedule": Schedule(kind="cosine", warmup_fraction=0)})
    scores = iter([3.0, 2.0, 1.0, *[1.5] * 20])
    judge = TrainingProgress.judge
    monkeypatch.setattr(TrainingProgress, "judge", lambda self, score, config: judge(self, next(scores), config))
    trainer = fit(tmp_path, make_task(config, structures))
    assert (trainer.run.best_epoch, trainer.run.epoch) == (
        3,
        8,
    )  # seen after the sixth epoch; 0.15 of the plan are three, half is 1.5
    assert "over-fitting since epoch 3" in caplog.text
    rates = [line["learning_rate"] for line in lines(tmp_path)]
    assert rates[5] > rates[6] > rates[7] and rates[7] < 0.1 * rates[0]


def test_a_jump_of_the_error_is_undone_and_counted(structures, tmp_path, monkeypatch, caplog):
    jumps = iter([False] * 4 + [True] + [False] * 4 + [True] + [False] * 1000)
    monkeypatch.setattr(TrainingProgress, "spiked", property(lambda self: next(jumps)))
    trainer = fit(tmp_path, make_task(make_config(), structures))
    assert trainer.run.spikes == 2 and trainer.run.factor == 0.5  # the first costs nothing but the way back
    assert caplog.text.count("more than 3 times what it had been") == 2
