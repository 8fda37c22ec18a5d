"""Velocities to start from, and the number of coordinates their temperature is an average over."""

from __future__ import annotations

import ase
import numpy as np

from mlff.basics.errors import StructureError
from mlff.basics.units import FEMTOSECOND, KB
from mlff.simulation.constraints import move_freely

COLUMNS = ("velo", "vel", "velocity", "velocities")  #: names of velocities in extended XYZ, Å/fs
_HOTTEST = 1e5  #: K; velocities beyond are in another unit


def maxwell_boltzmann(atoms: ase.Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Draw momenta at `temperature` (K), without motion of the center of mass and, for molecules, without rotation.

    Atoms with constraints lose only what their constraints remove; distances that are kept do not hinder the others.
    """
    masses = atoms.get_masses()[:, None]
    momenta = rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * KB * temperature)
    if move_freely(atoms) and len(atoms) > 1:
        momenta -= masses * (momenta.sum(axis=0) / masses.sum())
        if not atoms.pbc.any():
            momenta -= masses * np.cross(_angular_velocity(atoms.positions, momenta, masses), _arms(atoms.positions, masses))
    atoms.set_momenta(momenta)


def take_velocities(atoms: ase.Atoms, rotation_is_kept: bool) -> tuple[str, float]:
    """Make the momenta of `atoms` those that it came with: where they stood, with unit, and their temperature (K).

    ASE's momenta as they are, else an array (n, 3) of a name of `COLUMNS` in Å/fs (so QUIP writes it; ASE writes momenta).
    What constraints forbid goes. Raises StructureError: none, two, not (n, 3), not finite, all zero, or hotter than 1e5 K.
    """
    source = "momenta"
    if not atoms.has("momenta") or not atoms.get_momenta().any():
        names = [name for name in COLUMNS if name in atoms.arrays]
        if not names:
            raise StructureError(f"velocities: none to keep: no momenta and no column {', '.join(COLUMNS)}, or all are zero")
        if len(names) > 1:
            raise StructureError(f"velocities: {' and '.join(names)} are both there; keep one of them")
        velocities = np.asarray(atoms.arrays[names[0]])
        if velocities.shape != (len(atoms), 3) or velocities.dtype.kind not in "fiu":
            shape = f"({len(atoms)}, 3)"
            raise StructureError(f"velocities: {names[0]} has the shape {velocities.shape} where {shape} is expected")
        if not np.isfinite(velocities).all():
            raise StructureError(f"velocities: {names[0]} has values that are not finite")
        atoms.set_momenta(atoms.get_masses()[:, None] * velocities / FEMTOSECOND)
        source = f"{names[0]} in Å/fs"
    else:
        atoms.set_momenta(atoms.get_momenta())
    momenta = atoms.get_momenta()
    freedom = degrees_of_freedom(atoms, rotation_is_kept)
    temperature = 2 * kinetic_energy(momenta, atoms.get_masses()[:, None]) / (freedom * KB)
    if temperature == 0:
        raise StructureError(f"velocities: {source}: those of atoms that may move are all zero; leave keep_velocities out")
    if not temperature < _HOTTEST:
        raise StructureError(f"velocities: {source}: {temperature:.3g} K; are they in another unit?")
    return source, temperature


def degrees_of_freedom(atoms: ase.Atoms, rotation_is_kept: bool) -> int:
    """Coordinates that share the kinetic energy.

    3n less the center of mass; less the rotation of a molecule that does not rotate, if the dynamics keep it so; less the
    distances that are kept; for atoms with other constraints 3n less what these remove.
    """
    if not move_freely(atoms) or len(atoms) == 1:
        return max(1, atoms.get_number_of_degrees_of_freedom())
    kept = sum(len(constraint.pairs) for constraint in atoms.constraints)
    momenta, masses = atoms.get_momenta(), atoms.get_masses()[:, None]
    if rotation_is_kept and not atoms.pbc.any():
        spin = np.cross(_angular_velocity(atoms.positions, momenta, masses), _arms(atoms.positions, masses))
        if kinetic_energy(masses * spin, masses) <= 1e-9 * kinetic_energy(momenta, masses):
            linear = np.linalg.matrix_rank(_arms(atoms.positions, masses), tol=1e-6) < 2
            return max(1, 3 * len(atoms) - (5 if linear else 6) - kept)
    return max(1, 3 * len(atoms) - 3 - kept)


def kinetic_energy(momenta: np.ndarray, masses: np.ndarray) -> float:
    """momenta (n, 3) in ASE's units, masses (n, 1) in amu: eV."""
    return 0.5 * float(np.sum(momenta * momenta / masses))


def _arms(positions: np.ndarray, masses: np.ndarray) -> np.ndarray:
    return positions - (masses * positions).sum(axis=0) / masses.sum()


def _angular_velocity(positions: np.ndarray, momenta: np.ndarray, masses: np.ndarray) -> np.ndarray:
    arms = _arms(positions, masses)
    inertia = np.sum(masses * arms * arms) * np.eye(3) - (masses * arms).T @ arms
    return np.linalg.pinv(inertia, rcond=1e-9) @ np.cross(arms, momenta).sum(axis=0)
