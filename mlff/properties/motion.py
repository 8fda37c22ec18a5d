"""How atoms move: mean-square displacement, self-diffusion and the vibrational density of states."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from scipy.signal import find_peaks, welch

from mlff.basics.units import INVERSE_CM, TERAHERTZ
from mlff.properties.averages import autocorrelation
from mlff.properties.frames import Frames

_FIT = (0.05, 0.2)  #: lags that the line is fitted to, as shares of the trajectory
_SEGMENTS = 4  #: parts of the trajectory whose scatter gives the error; each is longer than the longest lag of the fit
_SHORTEST = 100  #: frames below which no diffusion coefficient is fitted
_LINEAR = (0.8, 1.2)  #: exponents of the mean-square displacement that count as diffusion
_AT_ONCE = 100  #: atoms whose autocorrelation is in memory
_WINDOW = 4  #: the density of states is a mean over windows of this part of the trajectory


@dataclass(frozen=True, eq=False)
class Diffusion:
    """Mean-square displacement of one element, and its slope."""

    element: str
    time: np.ndarray  #: (m,) ps, lags up to half of the trajectory
    msd: np.ndarray  #: (m,) Å²
    coefficient: float | None  #: Å²/ps: slope / 6 (1 Å²/ps = 1e-4 cm²/s); None: the displacement does not grow linearly
    error: float | None  #: Å²/ps, one standard error
    exponent: float | None  #: of time in the fitted range: 1 for diffusion, 0 for atoms that stay, 2 for free flight
    window: tuple[float, float]  #: ps, lags that were fitted


@dataclass(frozen=True, eq=False)
class VibrationalDensity:
    """Autocorrelation of mass-weighted velocities, and its spectrum; of all atoms and of each element."""

    time: np.ndarray  #: (m,) ps
    correlation: np.ndarray  #: (m,) of all atoms, 1 at time 0
    frequency: np.ndarray  #: (k,) THz
    density: np.ndarray  #: (k,) 1/THz; integrates to 1
    by_element: dict[str, np.ndarray]  #: (k,) 1/THz; they sum to `density`
    peaks: list[float]  #: THz, maxima of the density, the highest first
    highest: float  #: THz; what vibrates faster than half the sampling rate appears at a lower frequency


def diffusion(frames: Frames) -> list[Diffusion]:
    """Of each element, from displacements relative to the center of mass of all atoms, over all starting times.

    None without a periodic direction: a molecule by itself only turns.

    A straight line through the displacement at lags of a twentieth to a fifth of the trajectory; the error is the scatter
    over four parts of it. Not corrected for the size of the cell (Yeh & Hummer, J. Phys. Chem. B 108, 15873 (2004)).
    """
    if not frames.pbc.any() or len(frames) < 3:
        return []
    moved = frames.displacements()
    return [_diffusion(symbol, moved[:, members], frames.interval) for symbol, members in _elements(frames.numbers)]


def vibrational_density(frames: Frames) -> VibrationalDensity | None:
    """From the velocities; None where there are none.

    The spectrum is Welch's mean over half overlapping windows (Hann) of a quarter of the trajectory: the Fourier transform of
    the autocorrelation (Dickey & Paskin, Phys. Rev. 188, 1407 (1969)).
    """
    if frames.velocities is None or len(frames) < 4 * _WINDOW:
        return None
    weighted = frames.velocities * np.sqrt(frames.masses)[:, None]
    length = len(frames) // _WINDOW
    by_element = {}
    for symbol, members in _elements(frames.numbers):
        flat = weighted[:, members].reshape(len(frames), -1)
        frequency, spectrum = welch(flat, fs=1 / frames.interval, nperseg=length, nfft=4 * length, detrend=False, axis=0)
        by_element[symbol] = spectrum.sum(axis=1)
    total = sum(by_element.values())
    area = np.trapezoid(total, frequency)
    density = total / area
    tops = find_peaks(density, height=0.05 * density.max(), prominence=0.05 * density.max())[0]
    correlation = _summed_autocorrelation(weighted)[: len(frames) // 2]
    return VibrationalDensity(
        np.arange(len(correlation)) * frames.interval,
        correlation / correlation[0],
        frequency,
        density,
        {symbol: spectrum / area for symbol, spectrum in by_element.items()},
        [float(frequency[k]) for k in sorted(tops, key=lambda k: -density[k])],
        0.5 / frames.interval,
    )


def wavenumber(terahertz):
    """THz, a number or an array, to cm⁻¹."""
    return terahertz * TERAHERTZ / INVERSE_CM


def mean_square_displacement(moved: np.ndarray) -> np.ndarray:
    """(t, n, 3) Å to (t,) Å²: mean over atoms and starting times at every lag, by Fourier transform.

    Calandrini, Pellegrini, Calligari, Hinsen & Kneller, Collection SFN 12, 201 (2011).
    """
    count = len(moved)
    squares = np.sum(moved**2, axis=(1, 2))
    crossed = _summed_autocorrelation(moved)
    sums = np.concatenate([[0.0], squares.cumsum()])
    lags = np.arange(count)
    ends = (sums[count - lags] + sums[count] - sums[lags]) / (count - lags)
    return (ends - 2 * crossed) / moved.shape[1]


def _diffusion(symbol: str, moved: np.ndarray, interval: float) -> Diffusion:
    count = len(moved)
    msd = mean_square_displacement(moved)
    first, last = max(1, int(_FIT[0] * count)), max(3, int(_FIT[1] * count))
    window = first * interval, last * interval
    time = np.arange(count // 2) * interval
    if count < _SHORTEST or not (msd[first:last] > 0).all():
        return Diffusion(symbol, time, msd[: len(time)], None, None, None, window)
    lags = np.arange(first, last) * interval
    exponent = float(np.polyfit(np.log(lags), np.log(msd[first:last]), 1)[0])
    coefficient = error = None
    if _LINEAR[0] <= exponent <= _LINEAR[1]:
        coefficient = _slope(lags, msd[first:last])
        parts = [mean_square_displacement(part)[first:last] for part in np.array_split(moved, _SEGMENTS)]
        slopes = [_slope(lags[: len(part)], part) for part in parts]
        error = float(np.std(slopes, ddof=1) / np.sqrt(_SEGMENTS))
    return Diffusion(symbol, time, msd[: len(time)], coefficient, error, exponent, window)


def _summed_autocorrelation(values: np.ndarray) -> np.ndarray:
    """(t,) of values (t, n, 3), summed over atoms and components; some atoms at a time, to save memory."""
    parts = np.array_split(values, -(-values.shape[1] // _AT_ONCE), axis=1)
    return sum(autocorrelation(part).sum(axis=(1, 2)) for part in parts)


def _slope(lags: np.ndarray, msd: np.ndarray) -> float:
    """Å²/ps: a sixth of the slope."""
    return float(np.polyfit(lags, msd, 1)[0]) / 6


def _elements(numbers: np.ndarray):
    """(symbol, indices) of each element."""
    return [(chemical_symbols[z], np.flatnonzero(numbers == z)) for z in sorted(set(numbers.tolist()))]
