"""Root mean squares and slopes of arrays of numbers, and means and slopes of numbers that come one by one."""

from __future__ import annotations

import numpy as np


def rms(values: np.ndarray) -> float:
    """Root mean square of all numbers of an array, in their unit."""
    return float(np.sqrt(np.mean(np.square(values))))


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of the straight line through the points (x, y), both (m,), by least squares; in the unit of y per that of x."""
    x = x - x.mean()
    return float(x @ (y - y.mean()) / (x @ x))


class RunningMean:
    """Mean and standard deviation of numbers that come one by one (Welford, Technometrics 4, 419 (1962)): none is kept."""

    def __init__(self):
        self.count, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, value: float) -> None:
        """One more number."""
        self.count += 1
        away = value - self._mean
        self._mean += away / self.count
        self._squares += away * (value - self._mean)

    @property
    def mean(self) -> float | None:
        """In the unit of the numbers; None before the first."""
        return self._mean if self.count else None

    @property
    def std(self) -> float | None:
        """The same."""
        return float(np.sqrt(self._squares / self.count)) if self.count else None


class RunningSlope:
    """Slope of the straight line through points that come one by one, by least squares, as `slope`."""

    def __init__(self):
        self.count, self._x, self._y, self._xx, self._xy = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, x: float, y: float) -> None:
        """One more point."""
        self.count += 1
        away = x - self._x
        self._x += away / self.count
        self._y += (y - self._y) / self.count
        self._xx += away * (x - self._x)
        self._xy += away * (y - self._y)

    @property
    def slope(self) -> float | None:
        """In the unit of y per that of x; None before two different x."""
        return self._xy / self._xx if self._xx > 0 else None
