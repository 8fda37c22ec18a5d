"""Harmonic vibrations of molecules and cells from the Hessian, and the free energy that follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ase
import numpy as np
from ase.constraints import FixAtoms
from ase.thermochemistry import HarmonicThermo, IdealGasThermo

from mlff.basics.errors import ConfigError, StructureError
from mlff.basics.units import HBAR, INVERSE_CM
from mlff.potential.potential import Potential
from mlff.properties.minimum import TOLERANCE, check_minimum

_LINEAR = 1e-3  #: least moment of inertia over the largest below which a molecule is linear
_BAR = 1e5  #: Pa
_AMPLITUDE = 0.3  #: Å, of the atom that moves most in an animation
_PICTURES = 16  #: of one period


@dataclass(frozen=True, eq=False)
class Vibrations:
    """Normal modes of m coordinates of n atoms."""

    atoms: ase.Atoms
    energy: float  #: eV
    forces_max: float  #: eV/Å
    kind: str  #: monatomic, linear, nonlinear (molecules); periodic; fixed: some atoms cannot move
    wavenumbers: np.ndarray  #: (m,) cm⁻¹, ascending; negative: imaginary
    modes: np.ndarray  #: (m, n, 3) displacements, each of length 1
    rest: float  #: cm⁻¹, of the translations and rotations before they were projected out; 0 at an exact minimum

    @property
    def imaginary(self) -> np.ndarray:
        """cm⁻¹, those that are."""
        return self.wavenumbers[self.wavenumbers < 0]

    @property
    def zero_point(self) -> float:
        """eV; imaginary modes count as nothing."""
        return 0.5 * float(self.wavenumbers[self.wavenumbers > 0].sum()) * INVERSE_CM

    def free_energy(self, temperature: float, symmetry: int = 1) -> dict[str, float]:
        """Thermochemistry at `temperature` (K); imaginary modes are left out, electrons are in a singlet ground state.

        A molecule is an ideal gas at 1 bar of rigid rotors with the symmetry number `symmetry`: enthalpy_ev, entropy_ev_per_k
        and gibbs_ev; a cell, or a molecule of which atoms are fixed, vibrates only: internal_energy_ev, entropy_ev_per_k and
        helmholtz_ev. The potential energy is included. Raises ConfigError.
        """
        if not (temperature > 0 and np.isfinite(temperature)):
            raise ConfigError(f"--temperature must be a positive number of K, not {temperature:g}")
        if symmetry < 1:
            raise ConfigError(f"--symmetry must be a positive number, not {symmetry}")
        energies = self.wavenumbers[self.wavenumbers > 0] * INVERSE_CM
        if self.kind in ("periodic", "fixed"):
            if symmetry != 1:
                raise ConfigError("--symmetry has no effect on what cannot rotate: leave it out")
            thermo = HarmonicThermo(energies, potentialenergy=self.energy)
            return {
                "internal_energy_ev": float(thermo.get_internal_energy(temperature, verbose=False)),
                "entropy_ev_per_k": float(thermo.get_entropy(temperature, verbose=False)),
                "helmholtz_ev": float(thermo.get_helmholtz_energy(temperature, verbose=False)),
            }
        thermo = IdealGasThermo(
            energies,
            self.kind,
            potentialenergy=self.energy,
            atoms=self.atoms,
            symmetrynumber=symmetry,
            spin=0,
            vib_selection="all",
        )
        return {
            "enthalpy_ev": float(thermo.get_enthalpy(temperature, verbose=False)),
            "entropy_ev_per_k": float(thermo.get_entropy(temperature, _BAR, verbose=False)),
            "gibbs_ev": float(thermo.get_gibbs_energy(temperature, _BAR, verbose=False)),
        }

    def animation(self) -> Iterator[ase.Atoms]:
        """One period of every mode, 16 pictures each, the atom that moves most by 0.3 Å; info says mode and wavenumber."""
        for number, (wavenumber, mode) in enumerate(zip(self.wavenumbers, self.modes, strict=True)):
            scale = _AMPLITUDE / np.linalg.norm(mode, axis=1).max()
            for phase in 2 * np.pi * np.arange(_PICTURES) / _PICTURES:
                picture = self.atoms.copy()
                picture.set_constraint()
                picture.positions += scale * np.sin(phase) * mode
                picture.info = {"mode": number, "wavenumber_cm1": float(wavenumber)}
                yield picture

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {
            "energy_ev": self.energy,
            "forces_max_ev_per_a": self.forces_max,
            "kind": self.kind,
            "wavenumbers_cm1": self.wavenumbers.tolist(),
            "imaginary": len(self.imaginary),
            "zero_point_ev": self.zero_point,
            "rest_cm1": self.rest,
            "modes": self.modes.tolist(),
        }


def vibrations(potential: Potential, atoms: ase.Atoms, tolerance: float = TOLERANCE) -> Vibrations:
    """Normal modes of a structure at a minimum (or saddle point): eigenvectors of the mass-weighted Hessian.

    The overall translations, and the rotations of a molecule, are projected out first (Wilson, Decius & Cross, Molecular
    Vibrations, 1955), unless atoms are fixed (FixAtoms), which then stand still. Of a cell these are the modes at Γ. Use a
    potential in float64. Raises StructureError: a force above `tolerance` (eV/Å), constraints other than FixAtoms.
    """
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise StructureError(f"vibrations cannot keep the constraint {type(constraint).__name__}; FixAtoms they can")
    forces_max = check_minimum(potential, atoms, tolerance)
    fixed = sorted({int(k) for constraint in atoms.constraints for k in constraint.index})
    free = np.setdiff1d(np.arange(len(atoms)), fixed)
    masses = atoms.get_masses()[free]
    root = np.repeat(np.sqrt(masses), 3)
    kind = "fixed" if fixed else "periodic" if atoms.pbc.any() else _shape(atoms)
    rows = (3 * free[:, None] + np.arange(3)).ravel()
    hessian = potential.hessian(atoms)[np.ix_(rows, rows)]
    weighted = 0.5 * (hessian + hessian.T) / np.outer(root, root)
    whole = np.zeros((3 * len(free), 0)) if fixed else _overall(atoms.positions, masses, kind)
    basis = _rest(whole)
    squares, vectors = np.linalg.eigh(basis.T @ weighted @ basis)
    displacements = (basis @ vectors / root[:, None]).T
    displacements /= np.linalg.norm(displacements, axis=1)[:, None]
    modes = np.zeros((len(squares), len(atoms), 3))
    modes[:, free] = displacements.reshape(-1, len(free), 3)
    rest = np.abs(_wavenumbers(np.linalg.eigvalsh(whole.T @ weighted @ whole))).max(initial=0.0)
    energy = potential.predict([atoms], stress=False)[0].energy
    return Vibrations(atoms, energy, forces_max, kind, _wavenumbers(squares), modes, float(rest))


def mass_weighted_basis(atoms: ase.Atoms) -> tuple[str, np.ndarray]:
    """Kind (see `Vibrations`) and an orthonormal basis (3n, m) of mass-weighted displacements: no translation, no rotation."""
    kind = "periodic" if atoms.pbc.any() else _shape(atoms)
    return kind, _rest(_overall(atoms.positions, atoms.get_masses(), kind))


def _rest(whole: np.ndarray) -> np.ndarray:
    """Orthonormal basis (3n, 3n - k) of what is orthogonal to (3n, k)."""
    return np.linalg.svd(whole, full_matrices=True)[0][:, whole.shape[1] :]


def _wavenumbers(squares: np.ndarray) -> np.ndarray:
    """Squares of frequencies, eV/Å²/amu, to cm⁻¹; negative for imaginary ones."""
    return np.sign(squares) * np.sqrt(np.abs(squares)) * HBAR / INVERSE_CM


def _shape(atoms: ase.Atoms) -> str:
    if len(atoms) == 1:
        return "monatomic"
    moments = atoms.get_moments_of_inertia()
    return "linear" if moments.min() < _LINEAR * moments.max() else "nonlinear"


def _overall(positions: np.ndarray, masses: np.ndarray, kind: str) -> np.ndarray:
    """Orthonormal mass-weighted translations and, of molecules, rotations: (3n, k), k = 3, 5 or 6."""
    root = np.sqrt(masses)[:, None, None]
    arms = positions - np.average(positions, axis=0, weights=masses)
    turns = np.cross(np.eye(3)[None], arms[:, None]) * root  # (n, axis, 3)
    turns /= max(
        np.linalg.norm(arms), 1e-12
    )  # not each by its own length, which is noise about the axis of a linear molecule
    shifts = np.broadcast_to(np.eye(3), turns.shape) * root
    vectors = np.concatenate([shifts] if kind == "periodic" else [shifts, turns], axis=1)
    count = {"monatomic": 3, "linear": 5, "nonlinear": 6, "periodic": 3}[kind]
    flat = vectors.transpose(0, 2, 1).reshape(3 * len(masses), -1)
    return np.linalg.svd(flat, full_matrices=False)[0][:, :count]
