"""The learning-rate range test suggests a rate at which a training works, and leaves the task as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import typer.testing

from mlff.cli.learn import app
from mlff.training.range_test import RangeTest, range_test

from .test_loop import write
from .toy import make_config, make_structures, make_task


@pytest.fixture(scope="module")
def task():
    optimizer = {"name": "adam", "learning_rate": 0.05}
    return make_task(make_config(optimizer=optimizer, loss={"energy": 0.5, "error": "mse"}), make_structures(24, seed=0))


def test_it_ends_where_the_loss_explodes_and_suggests_less(task):
    before = jax.tree.map(np.array, task.params)
    found = range_test(task, steps=120, lowest=1e-4, highest=1e4)
    assert len(found.rates) == len(found.losses) == len(found.smooth) < 120
    assert found.smooth[-1] > 4 * found.smooth.min()
    lowest = found.rates[np.argmin(found.smooth)]
    assert lowest / 10 < found.suggestion < lowest < found.rates[-1]
    jax.tree.map(np.testing.assert_array_equal, before, task.params)


def test_the_rate_of_a_step_is_the_one_it_is_said_to_be(task):
    """Whatever the schedule and the learning rate of the config."""
    small = task.config.optimizer.model_copy(update={"learning_rate": 1e-3})
    other = make_task(task.config.model_copy(update={"optimizer": small}), make_structures(24, seed=0))
    np.testing.assert_allclose(range_test(other, 30).losses, range_test(task, 30).losses, rtol=1e-4)


def test_where_the_loss_never_falls_nothing_is_suggested():
    assert RangeTest(np.geomspace(1e-5, 1, 20), np.ones(20), np.linspace(1, 2, 20)).suggestion is None


def test_a_loss_that_is_no_number_ends_it(task):
    broken = make_task(
        task.config,
        make_structures(24, seed=0),
        apply=lambda params, graph: jnp.log(-(params["w"][0] ** 2)) + 0 * graph.positions[:, 0],
    )
    assert len(range_test(broken, 5).rates) == 0


@pytest.mark.slow
def test_the_command_draws_and_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.xyz", make_structures(24, seed=0))
    (tmp_path / "a.yaml").write_text(
        "data: {train: a.xyz}\nmodel: {architecture: schnet, channels: 8, layers: 1, radial_basis: 8, cutoff: 3.0}\n"
    )
    done = typer.testing.CliRunner().invoke(app, ["train", "a.yaml", "--find-lr"])
    assert done.exit_code == 0, done.output
    assert "learning_rate" in done.output
    assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == ["learning_rate.png"]
