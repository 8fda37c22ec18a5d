"""Root mean squares and slopes of arrays of numbers."""

from __future__ import annotations

import numpy as np


def rms(values: np.ndarray) -> float:
    """Root mean square of all numbers of an array, in their unit."""
    return float(np.sqrt(np.mean(np.square(values))))


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of the straight line through the points (x, y), both (m,), by least squares; in the unit of y per that of x."""
    x = x - x.mean()
    return float(x @ (y - y.mean()) / (x @ x))
