#!/usr/bin/env python3
"""A geometry of malonaldehyde with a lower ionisation energy, found with two models and checked with the method of their labels.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/benchmarks/design.py --work WORK --minutes 6

Geometries of data/malonaldehyde are labelled by GFN2-xTB (pip install tblite), neutral and as a cation; a model of each state is
trained for so many minutes. `mlff design` then looks for the geometries of least energy whose vertical ionisation energy is lower than
at the minimum by 0.1 to 0.8 eV. Beside each stands what GFN2-xTB says of the same geometry. Labels and models stay in WORK, and what is
there is not made again. Writes scripts/benchmarks/results/design.json and docs/images/design.png. --plot draws what the JSON holds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from machine import machine

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "design.json"
STATES = {"neutral": {}, "cation": {"charge": 1, "multiplicity": 2}}


def single_points(frames: list, state: str) -> list:
    """Copies with energies (eV) and forces (eV/Å) by GFN2-xTB."""
    from tblite.ase import TBLite

    calculator = TBLite(method="GFN2-xTB", verbosity=0, cache_api=False, **STATES[state])
    labelled = []
    for frame in frames:
        atoms = frame.copy()
        atoms.info, atoms.calc = {}, calculator
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        labelled.append(atoms)
    return labelled


def label(work: Path) -> None:
    """Data of both states: 1,000 geometries of 300 K and 200 of 600 K to train on, 200 of each temperature kept aside."""
    folder = ROOT / "data" / "malonaldehyde"
    warm, hot = read(folder / "test_300K.xyz", ":"), read(folder / "test_600K.xyz", ":")
    sets = {"train": [*read(folder / "train.xyz", ":"), *hot[::2]], "test_300K": warm[::2], "test_600K": hot[1::2]}
    for state in STATES:
        for name, frames in sets.items():
            if not (work / f"{state}_{name}.xyz").exists():
                write(work / f"{state}_{name}.xyz", single_points(frames, state))


if __name__ == "__main__":
    import sys
    w = Path(sys.argv[1]); w.mkdir(exist_ok=True)
    t = time.time(); label(w); print(time.time() - t)
