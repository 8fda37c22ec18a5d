"""Elastic constants of a crystal from the stresses and forces of small strains."""

from __future__ import annotations

from dataclasses import dataclass

import ase
import numpy as np

from mlff.basics.errors import ConfigError, StructureError
from mlff.basics.units import STRESS
from mlff.potential.potential import Potential
from mlff.properties.minimum import TOLERANCE, check_minimum, need_cell

_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))  #: xx yy zz yz xz xy
_SOFT = 1e-4  #: eV/Å²; a mode of the atoms in the cell below it has no restoring force
CUBIC = {
    "C11": ((0, 0), (1, 1), (2, 2)),
    "C12": ((0, 1), (0, 2), (1, 2)),
    "C44": ((3, 3), (4, 4), (5, 5)),
}  #: equal by symmetry
_ALIKE = 0.02  #: of the largest constant: how far a cubic crystal's may lie from the cubic pattern
_STRAINS = (1e-5, 0.03)


@dataclass(frozen=True, eq=False)
class Elasticity:
    """Elastic constants in GPa, order xx yy zz yz xz xy, shear strains twice the tensor's; axes x y z are those of the file."""

    constants: np.ndarray  #: (6, 6), atoms relaxed at every strain
    clamped: np.ndarray  #: (6, 6), atoms move with the cell
    asymmetry: float  #: GPa, largest difference of C_ij and C_ji before their mean was taken
    stress: np.ndarray  #: (6,) GPa of the structure as given, positive under tension
    forces_max: float  #: eV/Å
    bulk: tuple[float, float, float]  #: GPa: Voigt, Reuss and Hill
    shear: tuple[float, float, float]  #: GPa

    @property
    def eigenvalues(self) -> np.ndarray:
        """(6,) GPa, ascending; a crystal without stress is stable if all are positive."""
        return np.linalg.eigvalsh(self.constants)

    @property
    def young(self) -> float:
        """GPa, from the Hill moduli."""
        return 9 * self.bulk[2] * self.shear[2] / (3 * self.bulk[2] + self.shear[2])

    @property
    def poisson(self) -> float:
        """From the Hill moduli."""
        return (3 * self.bulk[2] - 2 * self.shear[2]) / (2 * (3 * self.bulk[2] + self.shear[2]))

    @property
    def cubic(self) -> tuple[float, float, float] | None:
        """C11, C12 and C44 (GPa), if the constants have the pattern of a cubic crystal along x, y and z."""
        c = self.constants
        c11, c12, c44 = (np.mean([c[pair] for pair in pairs]) for pairs in CUBIC.values())
        pattern = np.zeros((6, 6))
        pattern[:3, :3] = c12
        np.fill_diagonal(pattern, [c11] * 3 + [c44] * 3)
        return (float(c11), float(c12), float(c44)) if np.abs(c - pattern).max() < _ALIKE * np.abs(c).max() else None

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        names = ("voigt", "reuss", "hill")
        return {
            "order": ["xx", "yy", "zz", "yz", "xz", "xy"],
            "constants_gpa": self.constants.tolist(),
            "clamped_gpa": self.clamped.tolist(),
            "asymmetry_gpa": self.asymmetry,
            "eigenvalues_gpa": self.eigenvalues.tolist(),
            "cubic_gpa": None if self.cubic is None else dict(zip(("C11", "C12", "C44"), self.cubic, strict=True)),
            "bulk_modulus_gpa": dict(zip(names, self.bulk, strict=True)),
            "shear_modulus_gpa": dict(zip(names, self.shear, strict=True)),
            "young_modulus_gpa": self.young,
            "poisson_ratio": self.poisson,
            "stress_gpa": self.stress.tolist(),
            "forces_max_ev_per_a": self.forces_max,
        }


def elasticity(potential: Potential, atoms: ase.Atoms, strain: float = 0.005, tolerance: float = TOLERANCE) -> Elasticity:
    """Elastic constants dσ/dε by central differences over six strains of ± `strain`, all in one batch.

    What the atoms do in the strained cell follows from the forces of the same batch and the Hessian, to first order and
    without a relaxation: Wu, Vanderbilt & Hamann, Phys. Rev. B 72, 035105 (2005). Moduli: Hill, Proc. Phys. Soc. A 65, 349
    (1952). Use a potential in float64. Raises StructureError: no cell, a force above `tolerance` (eV/Å), atoms that are not
    held in place; ConfigError.
    """
    need_cell(atoms, "elastic constants")
    if not _STRAINS[0] <= strain <= _STRAINS[1]:
        raise ConfigError(f"--strain must lie between {_STRAINS[0]:g} and {_STRAINS[1]:g}, found {strain:g}")
    atoms = atoms.copy()
    atoms.set_constraint()
    forces_max = check_minimum(potential, atoms, tolerance)
    still, *strained = potential.predict([atoms, *strained_cells(atoms, strain)])
    plus, minus = strained[:6], strained[6:]
    raw = np.stack([(_six(p.stress) - _six(m.stress)) / (2 * strain) for p, m in zip(plus, minus, strict=True)], axis=1)
    coupling = np.stack([(p.forces - m.forces).ravel() / (2 * strain) for p, m in zip(plus, minus, strict=True)], axis=1)
    clamped = raw / STRESS["GPa"]
    softening = coupling.T @ _compliance(potential.hessian(atoms)) @ coupling / atoms.get_volume() / STRESS["GPa"]
    constants = clamped - softening
    symmetric = 0.5 * (constants + constants.T)
    bulk, shear = _moduli(symmetric)
    return Elasticity(
        symmetric,
        0.5 * (clamped + clamped.T),
        float(np.abs(constants - constants.T).max()),
        _six(still.stress) / STRESS["GPa"],
        forces_max,
        bulk,
        shear,
    )


def strained_cells(atoms: ase.Atoms, strain: float) -> list[ase.Atoms]:
    """Six strains of +`strain`, then six of -`strain`, order xx yy zz yz xz xy, shears twice the tensor's."""
    result = []
    for signed in (strain, -strain):
        for a, b in _VOIGT:
            tensor = np.zeros((3, 3))
            tensor[a, b] += 0.5 * signed
            tensor[b, a] += 0.5 * signed
            strained = atoms.copy()
            strained.set_cell(atoms.cell.array @ (np.eye(3) + tensor), scale_atoms=True)
            result.append(strained)
    return result


def _compliance(hessian: np.ndarray) -> np.ndarray:
    """The inverse of the Hessian (3n, 3n) without the three translations, Å²/eV. Raises StructureError."""
    n = len(hessian) // 3
    whole = np.tile(np.eye(3), (n, 1)) / np.sqrt(n)
    basis = np.linalg.svd(whole, full_matrices=True)[0][:, 3:]
    values, vectors = np.linalg.eigh(basis.T @ (0.5 * (hessian + hessian.T)) @ basis)
    if len(values) and values[0] < _SOFT:
        raise StructureError(
            f"the atoms are not held in place (least curvature {values[0]:.2g} eV/Å²), so that they have no place in a strained "
            "cell: the structure is a saddle point; displace its atoms a little and relax it"
        )
    vectors = basis @ vectors
    return (vectors / values) @ vectors.T


def _six(tensor: np.ndarray) -> np.ndarray:
    return np.array([tensor[pair] for pair in _VOIGT])


def _moduli(c: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Bulk and shear modulus by Voigt, Reuss and Hill; NaN by Reuss and Hill where the constants are singular."""
    try:
        s = np.linalg.inv(c)
    except np.linalg.LinAlgError:
        s = np.full((6, 6), np.nan)
    bulk = c[:3, :3].sum() / 9, 1 / s[:3, :3].sum()
    shear = (
        (np.trace(c[:3, :3]) - (c[0, 1] + c[0, 2] + c[1, 2]) + 3 * np.trace(c[3:, 3:])) / 15,
        15 / (4 * np.trace(s[:3, :3]) - 4 * (s[0, 1] + s[0, 2] + s[1, 2]) + 3 * np.trace(s[3:, 3:])),
    )
    return tuple((float(v), float(r), float(0.5 * (v + r))) for v, r in (bulk, shear))
