"""Constants of the training data that put a model's inputs and outputs at order one."""

from __future__ import annotations

import numpy as np
from ase.data import covalent_radii

from mlff.data.batching import Sample
from mlff.errors import DataError
from mlff.models.atoms import Statistics

NEARER = 0.95  #: of the shortest distance of the training data: how near a pair may come before it looks to the network as if it came no nearer
FARTHEST = 1.0  #: Å: a core reaches at most so far beyond the sum of the covalent radii


def measure(samples: list[Sample], elements: tuple[int, ...], forces: bool) -> Statistics:
    """Statistics of the training samples (baseline removed).

    energy_scale: RMS of the force components (eV/Å) when `forces` are learned and present, else the standard deviation
    of the energy per atom. shifts: least squares of the energies over the composition; core: shortest distances. Raises DataError when the
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
    shifts = tuple(float(shift) for shift in shifts)
    return Statistics(scale, max(neighbors, 1.0), shifts, _core(samples, elements))


def _core(samples: list[Sample], elements: tuple[int, ...]) -> tuple[float, ...]:
    """`NEARER` of the shortest distance of each pair of elements, Å, at most `FARTHEST` beyond the sum of their radii.

    The data bear a little less than their shortest distance, which hotter dynamics needs. Pairs that are no bonds have a
    core too: two hydrogens that the data keep 2 Å apart fell into holes of 1e5 eV when the network was asked about 0.54 Å.
    """
    radii = covalent_radii[list(elements)]
    core = (radii[:, None] + radii + FARTHEST) / NEARER
    index = np.zeros(119, int)
    index[list(elements)] = np.arange(len(elements))
    for s in samples:
        vectors = s.positions[s.neighbors] - s.positions[:, None]
        if s.shifts is not None:
            vectors = vectors + s.shifts @ s.cell
        kinds = index[s.numbers]
        i, j = np.broadcast_to(kinds[:, None], s.mask.shape)[s.mask], kinds[s.neighbors][s.mask]
        np.minimum.at(core, (i, j), np.linalg.norm(vectors[s.mask], axis=1))
    return tuple(float(distance) for distance in NEARER * np.minimum(core, core.T).ravel())


def _composition(numbers: np.ndarray, elements: tuple[int, ...]) -> np.ndarray:
    return np.array([np.count_nonzero(numbers == element) for element in elements])
