"""Means of correlated values against processes whose correlation is known."""

import numpy as np
import pytest

from mlff.properties.averages import autocorrelation, average, block_error, equilibration, inefficiency


def autoregressive(count: int, memory: float, seed: int) -> np.ndarray:
    """x[t] = memory x[t - 1] + noise, variance 1: the statistical inefficiency is (1 + memory) / (1 - memory)."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, np.sqrt(1 - memory**2), count)
    values = np.empty(count)
    values[0] = rng.normal()
    for t in range(1, count):
        values[t] = memory * values[t - 1] + noise[t]
    return values


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_inefficiency_and_error_of_an_autoregressive_process(memory):
    runs = [autoregressive(20_000, memory, seed) for seed in range(12)]
    exact = (1 + memory) / (1 - memory)
    assert np.mean([inefficiency(values) for values in runs]) == pytest.approx(exact, rel=0.1)
    error = np.sqrt(exact / 20_000)
    assert np.mean([block_error(values) for values in runs]) == pytest.approx(error, rel=0.12)
    assert np.std([values.mean() for values in runs]) == pytest.approx(error, rel=0.6)


def test_the_settling_of_a_run_is_found_and_left_out():
    decay = np.exp(-np.arange(5000) / 100)
    values = autoregressive(5000, 0.5, 0) + 20 * decay
    start = equilibration(values)
    assert 300 <= start <= 900
    found = average(values)
    assert found.discarded == start and found.settled and abs(found.mean) < 4 * found.error
    assert abs(average(values, start=0).mean) > 0.3


def test_a_run_that_drifts_to_its_end_has_not_settled():
    assert not average(np.linspace(0, 20, 2000) + autoregressive(2000, 0.9, 1)).settled
    assert not average(np.linspace(0, 2, 4000) + autoregressive(4000, 0.5, 1), start=0).settled
    assert sum(average(autoregressive(1000, 0.9, seed)).settled for seed in range(40)) >= 38


def test_few_and_constant_values():
    assert average(np.arange(5.0)).error is None
    found = average(np.full(100, 3.0))
    assert (found.mean, found.error, found.inefficiency, found.discarded) == (3.0, 0.0, 1.0, 0)


def test_autocorrelation_is_the_sum_it_says():
    values = np.random.default_rng(0).normal(size=(30, 2))
    expected = [np.mean(values[: 30 - lag] * values[lag:], axis=0) for lag in range(30)]
    np.testing.assert_allclose(autocorrelation(values), expected, atol=1e-12)
