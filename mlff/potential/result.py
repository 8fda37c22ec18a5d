"""What a potential says of one structure, taken out of the padded arrays of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlff.graph import Prediction


class Result(NamedTuple):
    """What a potential says of one structure."""

    energy: float  #: eV, total, baseline included
    forces: np.ndarray  #: (n, 3) eV/Å
    stress: np.ndarray | None  #: (3, 3) eV/Å³, +(1/V) dE/dε; None without a cell of three periodic directions
    energies: np.ndarray  #: (n,) eV per atom, baseline included; they sum to `energy`
    energy_std: float | None = None  #: eV, standard deviation over the members of a committee; None for one model
    forces_std: np.ndarray | None = None  #: (n, 3) eV/Å, the same of the forces


def unpack(prediction: Prediction, baselines: Sequence[np.ndarray], periodic: Sequence[bool]) -> list[Result]:
    """The results of the structures of a batch in their order, in float64.

    `baselines`: of each structure the reference energies of its atoms, (n,) eV, which are added; `periodic`: whether it is
    in three directions, without which it has no stress.
    """
    atom_energies, forces = np.asarray(prediction.energies), np.asarray(prediction.forces)
    stresses = None if prediction.stress is None else np.asarray(prediction.stress)
    results, start = [], 0
    for row, baseline in enumerate(baselines):
        atoms = slice(start, start := start + len(baseline))
        energies = atom_energies[atoms] + baseline
        stress = stresses[row].astype(np.float64) if stresses is not None and periodic[row] else None
        spreads = ()
        if prediction.energy_std is not None:
            spreads = float(prediction.energy_std[row]), np.asarray(prediction.forces_std)[atoms].astype(np.float64)
        results.append(Result(float(energies.sum()), forces[atoms].astype(np.float64), stress, energies, *spreads))
    return results
