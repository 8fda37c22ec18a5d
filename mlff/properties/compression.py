"""The equation of state: energy over volume, equilibrium volume and bulk modulus."""

from __future__ import annotations

from dataclasses import dataclass

import ase
import numpy as np
from ase.eos import EquationOfState, birchmurnaghan

from mlff.basics.errors import ConfigError, StructureError
from mlff.basics.units import STRESS
from mlff.potential.potential import Potential
from mlff.properties.minimum import need_cell

_EDGE = 0.25  #: share of the volumes on either side within which a minimum is said to be near the edge


@dataclass(frozen=True, eq=False)
class Compression:
    """Energies of scaled cells and the Birch-Murnaghan curve through them."""

    volumes: np.ndarray  #: (k,) Å³, ascending
    energies: np.ndarray  #: (k,) eV
    atoms: int
    volume: float  #: Å³, of the minimum
    energy: float  #: eV, there
    bulk: float  #: GPa, there
    derivative: float  #: of the bulk modulus by pressure
    misfit: float  #: meV/atom, root mean square
    forces_max: float  #: eV/Å; atoms move with the cell and are not relaxed
    central: bool  #: False: the minimum lies near the edge of the volumes

    def curve(self, volumes: np.ndarray) -> np.ndarray:
        """eV at volumes in Å³."""
        return birchmurnaghan(volumes, self.energy, self.bulk * STRESS["GPa"], self.derivative, self.volume)

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {
            "volumes_a3": self.volumes.tolist(),
            "energies_ev": self.energies.tolist(),
            "volume_a3": self.volume,
            "energy_ev": self.energy,
            "bulk_modulus_gpa": self.bulk,
            "bulk_modulus_derivative": self.derivative,
            "misfit_mev_per_atom": self.misfit,
            "forces_max_ev_per_a": self.forces_max,
        }


def scaled_cells(atoms: ase.Atoms, span: float, points: int) -> list[ase.Atoms]:
    """Cells with volumes from 1 - `span` to 1 + `span` of that of `atoms`, their atoms scaled along."""
    result = []
    for factor in np.linspace(1 - span, 1 + span, points):
        scaled = atoms.copy()
        scaled.set_constraint()
        scaled.set_cell(atoms.cell.array * np.cbrt(factor), scale_atoms=True)
        result.append(scaled)
    return result


def compression(potential: Potential, atoms: ase.Atoms, span: float = 0.06, points: int = 11) -> Compression:
    """Fit the third-order equation of Birch (Phys. Rev. 71, 809 (1947)) to the energies of scaled cells, all in one batch.

    `span`: volumes from 1 - span to 1 + span of that given. Raises StructureError: no cell, or no minimum among these
    volumes; ConfigError.
    """
    need_cell(atoms, "equations of state")
    if not 0 < span < 0.5:
        raise ConfigError(f"--range must be a share of the volume between 0 and 0.5, found {span:g}")
    if points < 5:
        raise ConfigError(f"--points must be 5 or more for a fit of four numbers, found {points}")
    cells = scaled_cells(atoms, span, points)
    results = potential.predict(cells, stress=False)
    volumes, energies = np.array([cell.get_volume() for cell in cells]), np.array([result.energy for result in results])
    lowest = int(energies.argmin())
    if lowest in (0, points - 1):
        side = "smaller" if lowest == 0 else "larger"
        raise StructureError(
            f"no minimum between {volumes[0]:.4g} and {volumes[-1]:.4g} Å³: the energy still falls towards {side} volumes; relax the "
            "cell first (`mlff relax` with --cell), or add --relax, or widen --range"
        )
    fit = EquationOfState(volumes, energies - energies.min(), eos="birchmurnaghan")
    try:
        volume, energy, _ = fit.fit(warn=False)
    except (RuntimeError, ValueError) as error:
        raise StructureError(f"no equation of state fits the energies ({error}); take a smaller --range") from None
    _, bulk, derivative, _ = fit.eos_parameters
    if not volumes[0] < volume < volumes[-1]:
        raise StructureError(
            f"the curve fitted has its minimum at {volume:.4g} Å³, outside the volumes: relax the cell first"
        )
    misfit = 1e3 / len(atoms) * np.sqrt(np.mean((birchmurnaghan(volumes, *fit.eos_parameters) - fit.e) ** 2))
    margin = _EDGE * (volumes[-1] - volumes[0])
    return Compression(
        volumes,
        energies,
        len(atoms),
        float(volume),
        float(energy + energies.min()),
        float(bulk / STRESS["GPa"]),
        float(derivative),
        float(misfit),
        max(float(np.linalg.norm(result.forces, axis=1).max()) for result in results),
        bool(volumes[0] + margin <= volume <= volumes[-1] - margin),
    )
