"""Constants of the training data that put a model's inputs and outputs at order one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import covalent_radii

from mlff.basics.errors import DataError
from mlff.basics.statistics import rms
from mlff.data.batching import Sample
from mlff.data.composition import element_counts
from mlff.models.common import Statistics

NEARER = 0.95  #: inner cutoff, as a share of the shortest distance of the training data
_VARIES = 1e-6  #: eV or eV/Å: less is rounding
FARTHEST = 1.0  #: Å: an inner cutoff is at most so far beyond the sum of the covalent radii


def measure(samples: list[Sample], elements: tuple[int, ...], learned: Sequence[str]) -> Statistics:
    """Statistics of the training samples (baseline removed), of which `learned` are the labels with a weight in the loss.

    energy_scale: RMS of the force components (eV/Å); where forces are not learned, or all zero by symmetry, the standard
    deviation of the energy per atom, and where that does not vary either the RMS of stress times volume per atom. atom_energies:
    least squares of the energies over the composition; inner_cutoff: from the shortest distances. Raises DataError when none of the labels
    that are learned varies: there is nothing to learn.
    """
    with_energy = [s for s in samples if "energy" in s.labels]
    energies = np.array([s.labels["energy"] for s in with_energy], np.float64)
    counts = np.array([element_counts(s.numbers, elements) for s in with_energy], np.float64)
    atom_energies = np.zeros(len(elements))
    if len(energies):
        n = counts.sum(axis=1, keepdims=True)
        atom_energies = np.linalg.lstsq(counts / n, energies / n[:, 0], rcond=1e-8)[0]
    sizes = {
        "forces": [s.labels["forces"] for s in samples if "forces" in s.labels],
        "energy": [(energies - counts @ atom_energies) / counts.sum(axis=1)] if len(energies) else [],
        "stress": [s.labels["stress"] * _volume(s) / len(s.numbers) for s in samples if "stress" in s.labels],
    }
    scales = {
        label: rms(np.concatenate([np.ravel(part) for part in parts]))
        for label, parts in sizes.items()
        if label in learned and parts
    }
    scale = next((scale for scale in scales.values() if scale >= _VARIES), None)
    if scale is None:
        found = ", ".join(f"{label} RMS {scale:.1e}" for label, scale in scales.items()) or "none is there"
        raise DataError(
            f"no label of the training structures that has a weight in the loss varies ({found}): nothing to learn; give "
            "others, or a weight to one that varies (loss.energy, loss.forces, loss.stress)"
        )
    neighbors = float(np.sum([s.mask.sum() for s in samples]) / np.sum([len(s.numbers) for s in samples]))
    return Statistics(scale, max(neighbors, 1.0), tuple(map(float, atom_energies)), inner_cutoffs(samples, elements))


def _volume(sample: Sample) -> float:
    return abs(np.linalg.det(sample.cell))


def inner_cutoffs(samples: list[Sample], elements: tuple[int, ...]) -> tuple[float, ...]:
    """`NEARER` of the shortest distance of each pair of elements, Å, at most `FARTHEST` beyond the sum of their radii.

    The data bear a little less than their shortest distance, which hotter dynamics needs. Pairs that are no bonds have
    one too: two hydrogens that the data keep 2 Å apart fell into holes of 1e5 eV when the network was asked about 0.54 Å.
    """
    radii = covalent_radii[list(elements)]
    shortest = (radii[:, None] + radii + FARTHEST) / NEARER
    index = np.zeros(119, int)
    index[list(elements)] = np.arange(len(elements))
    for s in samples:
        vectors = s.positions[s.neighbors] - s.positions[:, None]
        if s.shifts is not None:
            vectors = vectors + s.shifts @ s.cell
        kinds = index[s.numbers]
        i, j = np.broadcast_to(kinds[:, None], s.mask.shape)[s.mask], kinds[s.neighbors][s.mask]
        np.minimum.at(shortest, (i, j), np.linalg.norm(vectors[s.mask], axis=1))
    return tuple(float(distance) for distance in NEARER * np.minimum(shortest, shortest.T).ravel())
