import json

import numpy as np
import pytest

from mlff.config.options import Config, Data, Optimizer, Schedule, Training
from mlff.training.losses import Sums
from mlff.training.progress import TrainingProgress, errors
from mlff.training.step import Report


def config(schedule="constant", **training):
    optimizer = Optimizer(schedule=Schedule(kind=schedule, factor=0.5, patience=2, final_fraction=0.2))
    return Config(data=Data(train="unused.xyz"), training=Training(**training), optimizer=optimizer)


def report(skipped=0.0, loss=1.0):
    return Report(loss, 1.0, skipped, Sums(*[1.0] * len(Sums._fields)))


def test_progress_by_epochs():
    run = TrainingProgress(epoch=3, position=5)
    assert run.share(config(epochs=10), steps=10) == pytest.approx(0.35)
    assert not run.over(config(epochs=4)) and TrainingProgress(epoch=4).over(config(epochs=4))


def test_progress_by_hours_counts_compilation_out_of_the_budget_and_not_as_progress():
    settings = config(max_hours=1)
    assert settings.training.epochs is None
    run = TrainingProgress(epoch=3, position=5, seconds=0.0, overhead=600.0)
    assert run.share(settings, steps=10) == 0.0
    run.seconds = 1500.0
    assert run.share(settings, steps=10) == pytest.approx(0.5)
    run.seconds = 3000.0
    assert run.over(settings) and run.out_of_time(settings)


def test_with_both_what_ends_first_counts():
    settings = config(epochs=10, max_hours=1)
    assert TrainingProgress(epoch=2, seconds=1800.0).share(settings, steps=10) == pytest.approx(0.5)
    assert TrainingProgress(epoch=8, seconds=1800.0).share(settings, steps=10) == pytest.approx(0.8)


def test_patience_ends_a_run():
    run, settings = TrainingProgress(), config(epochs=100, patience=2)
    assert run.judge(1.0, settings) and run.judge(0.5, settings)
    assert not run.judge(0.5, settings) and not run.over(settings)
    assert not run.judge(0.6, settings) and run.over(settings)


def test_a_plateau_cuts_the_learning_rate_down_to_the_floor():
    run, settings = TrainingProgress(), config("plateau", epochs=100)
    factors = []
    for score in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5):
        run.judge(score, settings)
        factors.append(run.factor)
    assert factors == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]


def test_skipped_steps_in_a_row_or_often_call_for_a_back_off():
    run = TrainingProgress()
    for skipped in (1, 1, 1, 1, 0, 1, 1, 1, 1):
        run.take(report(skipped))
    assert not run.unstable
    run.take(report(1))
    assert run.unstable and run.skipped == 9
    often = TrainingProgress()
    for index in range(100):
        often.take(report(index % 5 == 0))
    assert often.unstable and len(often.recent) == 100


def test_an_error_that_jumps_is_seen_and_noise_is_not():
    def step(error):
        return Report(0.0, 0.0, 0.0, Sums(*[0.0] * len(Sums._fields))._replace(forces_squares=3 * error**2, n_forces=3))

    run, rng = TrainingProgress(), np.random.default_rng(0)
    for error in np.geomspace(1.0, 0.1, 100) * rng.uniform(0.5, 2.0, 100):
        run.take(step(error))
        assert not run.spiked
    for number in range(50):  # noqa: B007
        run.take(step(1.0))
        if run.spiked:
            break
    assert 5 < number < 40
    run.spikes = 5  # often enough: the error is what it is
    assert not run.spiked


def test_rounding_of_forces_that_are_zero_by_symmetry_is_no_jump():
    run = TrainingProgress()
    for error in [1e-9] * 50 + [1e-7] * 50:
        run.take(Report(0.0, 0.0, 0.0, Sums(*[0.0] * len(Sums._fields))._replace(forces_squares=3 * error**2, n_forces=3)))
        assert not run.spiked


def test_over_fitting_brings_the_end_forward():
    settings, run = config("cosine", epochs=100), TrainingProgress()
    for epoch in range(100):
        run.end_epoch()
        run.judge(1.0 - 0.02 * epoch if epoch < 20 else 0.8 + 0.002 * epoch, settings)
        if run.over_fits(settings):
            break
    assert (run.best_epoch, run.epoch) == (20, 36)
    run.bring_end_forward(settings)
    assert run.progress(settings) == pytest.approx(0.2) and not run.over_fits(settings)
    run.epoch = 41
    assert run.progress(settings) == pytest.approx(0.6) and not run.over(settings)
    run.epoch = 46
    assert run.progress(settings) == pytest.approx(1.0) and run.over(settings)
    assert TrainingProgress.from_record({"run": json.loads(json.dumps(run.to_dict()))}, "x") == run


def test_noise_around_the_best_validation_is_no_over_fitting():
    settings, run = config("cosine", epochs=100), TrainingProgress()
    for _ in range(100):
        run.end_epoch()
        run.judge(1.0 if run.epoch == 30 else 1.15 + 0.02 * (run.epoch % 2), settings)  # as silicon at large rates
        assert not run.over_fits(settings)


def test_skipped_steps_do_not_enter_the_sums():
    run = TrainingProgress()
    run.take(report(loss=2.0))
    run.take(report(1.0, loss=float("nan")))
    assert run.totals[:2] == [1.0, 2.0]


def test_it_survives_json():
    run = TrainingProgress(epoch=3, best_score=0.1, recent=[0, 1])
    assert TrainingProgress(**json.loads(json.dumps(run.to_dict()))) == run


def test_errors_in_meV():
    sums = Sums(0, 0, 0, 4.0, 1.0, 0.27, 0.0, 4, 3, 0)
    assert errors(sums, "valid") == pytest.approx(
        {"valid_energy_rmse": 1000.0, "valid_energy_rmse_per_atom": 500.0, "valid_forces_rmse": 300.0}
    )


def test_a_cosine_that_starts_anew_is_not_measured_by_the_one_before():
    run = TrainingProgress(errors=[0.1] * 50, lowest=0.1)
    run.enter(0)
    assert run.lowest == 0.1
    run.enter(1)
    assert run.cycle == 1 and run.lowest is None and not run.errors and not run.spiked


def test_within_an_epoch_an_end_that_was_brought_forward_has_not_come():
    settings = config("cosine", epochs=100)
    run = TrainingProgress(epoch=30, ending=[0.3, 0.2, 0.1], position=15)  # the end comes after ten more epochs
    assert not run.over(settings) and run.progress(settings, steps=20) == pytest.approx(0.2 + 0.8 * 0.075)
    run.epoch, run.position = 40, 0
    assert run.over(settings)
