"""Watch over a simulation: stop before a run that has gone wrong fills the disk with nonsense, and say which frames to label."""

from __future__ import annotations

from dataclasses import dataclass

import ase
import numpy as np
from ase.data import chemical_symbols, covalent_radii

from mlff.basics.errors import MLFFError
from mlff.basics.units import KB
from mlff.data.neighbors import neighbor_list, pair_vectors
from mlff.simulation.velocities import kinetic_energy


class SimulationError(MLFFError):
    """A simulation cannot go on: it blew up, lost an atom or fused two."""


@dataclass(frozen=True)
class Limits:
    """Beyond these a simulation stops; with `mark` those of distance and spread only write the frame down and go on."""

    force: float = 300.0  #: largest force on an atom, eV/Å
    temperature: float | None = None  #: K; default: ten times the target, at least 5,000 K
    fused: float = 0.4  #: shortest distance as a share of the sum of the two covalent radii
    drift: float = 1.0  #: eV/atom by which the conserved energy may differ from its start; every step in the engine jax
    distance: float | None = None  #: from the training data, of the farthest atom of a frame; None: no limit
    spread: float | None = None  #: eV/Å, largest standard deviation of a force over a committee in a frame; None: no limit
    mark: bool = False  #: go on beyond `distance` and `spread`
    lost: float = 5.0  #: an atom without a neighbour within so many Å is lost (if it had one at the start)


class Guard:
    """`check_step` after every step (cheap), `check_geometry` before a frame is written. Both raise SimulationError."""

    def __init__(self, atoms: ase.Atoms, limits: Limits, temperature: float, freedom: int = 1):
        """`temperature`: the target, K; `freedom`: degrees of freedom, for the temperature of a step."""
        self.limits = limits
        self.freedom = freedom
        self._masses = atoms.get_masses()[:, None]
        self.hottest = limits.temperature if limits.temperature is not None else max(5000.0, 10 * temperature)
        self._lonely = self._survey(atoms)[1]

    def temperature(self, atoms: ase.Atoms) -> float:
        """K."""
        return 2 * kinetic_energy(atoms.get_momenta(), self._masses) / (self.freedom * KB)

    def check_step(self, forces: np.ndarray, temperature: float) -> None:
        """forces (n, 3) in eV/Å, temperature in K."""
        largest = float(np.abs(forces).max(initial=0.0))
        if not largest < self.limits.force:
            if not np.isfinite(largest):
                atom = int(np.flatnonzero(~np.isfinite(forces).all(axis=1))[0])
                raise SimulationError(f"the force on atom {atom} is not finite")
            atom = int(np.abs(forces).max(axis=1).argmax())
            raise SimulationError(f"the force on atom {atom} is {largest:.0f} eV/Å (limit {self.limits.force:g})")
        if not temperature < self.hottest:
            raise SimulationError(f"the temperature is {temperature:.0f} K (limit {self.hottest:g})")

    def check_drift(self, change: float) -> None:
        """Change of the conserved energy since the start, eV/atom."""
        if not abs(change) < self.limits.drift:
            raise SimulationError(
                f"the conserved energy has changed by {change:.2g} eV/atom (limit {self.limits.drift:g}); take a shorter time step"
            )

    def check_geometry(self, atoms: ase.Atoms) -> None:
        """Look for atoms that fused or flew off."""
        if not np.isfinite(atoms.positions).all():
            raise SimulationError("positions are not finite")
        fused, lonely = self._survey(atoms)
        if fused is not None:
            i, j, distance = fused
            names = [f"{chemical_symbols[atoms.numbers[k]]} {k}" for k in (i, j)]
            raise SimulationError(f"atoms {names[0]} and {names[1]} fused: {distance:.2f} Å apart")
        gone = np.flatnonzero(lonely & ~self._lonely)
        if len(gone):
            name = f"{chemical_symbols[atoms.numbers[gone[0]]]} {gone[0]}"
            raise SimulationError(f"atom {name} flew off: no neighbour within {self.limits.lost:g} Å")

    def _survey(self, atoms: ase.Atoms) -> tuple[tuple[int, int, float] | None, np.ndarray]:
        i, j, shifts = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, self.limits.lost)
        lonely = np.bincount(i, minlength=len(atoms)) == 0
        distances = np.linalg.norm(pair_vectors(atoms.positions, atoms.cell.array, i, j, shifts), axis=1)
        radii = np.nan_to_num(covalent_radii, nan=1.0)[atoms.numbers]
        short = np.flatnonzero(distances < self.limits.fused * (radii[i] + radii[j]))
        if len(short) == 0:
            return None, lonely
        worst = short[distances[short].argmin()]
        return (int(i[worst]), int(j[worst]), float(distances[worst])), lonely
