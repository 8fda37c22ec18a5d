"""Means of values that are correlated in time: from where on they count, and how well they are known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_STARTS = 50  #: frames that are tried as the end of the equilibration
_FEWEST = 10  #: values below which nothing is said about correlation
_MOST = 0.5  #: share of a run that goes into equilibration at most
_APART = 3.0  #: standard errors that the means of two halves may differ by


@dataclass(frozen=True)
class Average:
    """The mean of one column over a run, without its equilibration."""

    mean: float
    std: float  #: of the values themselves
    error: float | None  #: of the mean, from blocks (`block_error`); None: too few values
    inefficiency: float  #: frames for one independent value (`inefficiency`)
    discarded: int  #: values left out at the start
    settled: bool  #: False: the two halves of what is left differ by more than chance; the mean drifts


def average(values: np.ndarray, start: int | None = None) -> Average:
    """Of a column (t,); `start`: values to leave out, by default as many as `equilibration` says, half of them at most."""
    values = np.asarray(values, np.float64)
    discarded = min(equilibration(values), int(_MOST * len(values))) if start is None else start
    kept = values[discarded:]
    error = block_error(kept)
    return Average(float(kept.mean()), float(kept.std()), error, inefficiency(kept), discarded, _halves_agree(kept))


def inefficiency(values: np.ndarray) -> float:
    """Statistical inefficiency g of a column (t,): t/g of its values are independent. At least 1.

    1 + 2 Σ (1 - τ/t) C(τ), up to the first τ at which the autocorrelation C is negative: Chodera, Swope, Pitera, Seok &
    Dill, J. Chem. Theory Comput. 3, 26 (2007).
    """
    count = len(values)
    if count < _FEWEST or np.ptp(values) == 0:
        return 1.0
    correlation = autocorrelation(values - values.mean())
    correlation = correlation / correlation[0]
    negative = np.flatnonzero(correlation <= 0)
    last = negative[0] if len(negative) else count
    lags = np.arange(1, last)
    return max(1.0, float(1 + 2 * np.sum((1 - lags / count) * correlation[1:last])))


def equilibration(values: np.ndarray) -> int:
    """How many values (t,) to leave out at the start, so that the most independent ones are left.

    Chodera, J. Chem. Theory Comput. 12, 1799 (2016); tried at 50 places.
    """
    starts = np.unique(np.linspace(0, len(values) - 1, _STARTS, endpoint=False).astype(int))
    left = [(len(values) - start) / inefficiency(values[start:]) for start in starts]
    return int(starts[int(np.argmax(left))])


def block_error(values: np.ndarray) -> float | None:
    """Standard error of the mean of correlated values (t,), from the scatter of blocks that are doubled in length.

    Flyvbjerg & Petersen, J. Chem. Phys. 91, 461 (1989); the length is the first whose cube exceeds 2 t (error/naive error)⁴:
    Lee, Chen, Adams, Ceperley & Kent, Phys. Rev. E 83, 066706 (2011). None where no length of at least four blocks does.
    """
    count = len(values)
    if count < _FEWEST:
        return None
    naive = _scatter(values)
    if naive == 0:
        return 0.0
    blocks, length = values, 1
    while len(blocks) >= 4:
        error = _scatter(blocks)
        if length**3 > 2 * count * (error / naive) ** 4:
            return error
        blocks = 0.5 * (blocks[: len(blocks) // 2 * 2 : 2] + blocks[1::2])
        length *= 2
    return None


def autocorrelation(values: np.ndarray) -> np.ndarray:
    """Mean of values[i] * values[i + τ] over i, for every τ: (t, ...) along the first axis, by Fourier transform."""
    count = len(values)
    spectrum = np.fft.rfft(values, n=2 * count, axis=0)
    sums = np.fft.irfft(spectrum * spectrum.conj(), n=2 * count, axis=0)[:count]
    return sums / np.arange(count, 0, -1).reshape(-1, *[1] * (values.ndim - 1))


def _halves_agree(values: np.ndarray) -> bool:
    """Whether the means of both halves are the same within three standard errors (as of Geweke's test, 1992)."""
    if len(values) < 2 * _FEWEST:
        return True
    halves = np.array_split(values, 2)
    variances = [np.var(half) * inefficiency(half) / len(half) for half in halves]
    return bool(abs(halves[0].mean() - halves[1].mean()) <= _APART * np.sqrt(sum(variances)))


def _scatter(blocks: np.ndarray) -> float:
    return float(blocks.std(ddof=1) / np.sqrt(len(blocks)))
