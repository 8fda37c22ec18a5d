"""A calculator for tests that costs nothing: every atom on a spring to where it started."""

from __future__ import annotations

import numpy as np
from ase.calculators.calculator import Calculator, all_changes


class Springs(Calculator):
    """Energy k/2 |u|² in eV with k in eV/Å²; `disturb(calls, forces)` may change the forces (for tests of the guard)."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, atoms, k=5.0, disturb=None):
        super().__init__()
        self.home = atoms.positions.copy()
        self.k = k
        self.disturb = disturb
        self.calls = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        u = atoms.positions - self.home
        forces = -self.k * u
        if self.disturb is not None:
            forces = self.disturb(self.calls, forces)
        self.results = {"energy": 0.5 * self.k * float(np.sum(u * u)), "forces": forces}
