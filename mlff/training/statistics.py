"""Constants of the training data that put a model's inputs and outputs at order one."""

from __future__ import annotations

import numpy as np

from mlff.data.batching import Sample
from mlff.errors import DataError
from mlff.models.atoms import Statistics


def measure(samples: list[Sample], elements: tuple[int, ...], forces: bool) -> Statistics:
    """Statistics of the training samples (baseline removed).

    energy_scale: RMS of the force components (eV/Å) when `forces` are learned and present, else the standard deviation
    of the energy per atom. shifts: least squares of the energies over the composition. Raises DataError when the
    labels do not vary: there is nothing to learn.
    """
    energies = np.array([s.energy for s in samples if s.energy is not None], np.float64)
    counts = np.array([_composition(s.numbers, elements) for s in samples if s.energy is not None], np.float64)
    shifts = np.zeros(len(elements))
    if len(energies):
        n = counts.sum(axis=1, keepdims=True)
        shifts = np.linalg.lstsq(counts / n, energies / n[:, 0], rcond=1e-8)[0]
    labelled = [s.forces for s in samples if s.forces is not None]
    if forces and labelled:
        what, scale = "forces", float(np.sqrt(np.mean(np.concatenate(labelled) ** 2)))
    elif len(energies):
        what, scale = "energies", float(np.std((energies - counts @ shifts) / counts.sum(axis=1)))
    else:
        raise DataError("no training structure has an energy, and forces have no weight: nothing to learn from")
    if scale < 1e-6:
        raise DataError(f"the {what} of the training structures do not vary (RMS {scale:.1e} eV/Å): nothing to learn")
    neighbors = float(np.sum([s.mask.sum() for s in samples]) / np.sum([len(s.numbers) for s in samples]))
    return Statistics(scale, max(neighbors, 1.0), tuple(float(shift) for shift in shifts))


def _composition(numbers: np.ndarray, elements: tuple[int, ...]) -> np.ndarray:
    return np.array([np.count_nonzero(numbers == element) for element in elements])
