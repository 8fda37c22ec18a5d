"""Phonons of a crystal by displacements in a supercell, through phonopy (Togo, J. Phys. Soc. Jpn. 92, 012001 (2023))."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import ase
import numpy as np
from ase.cell import Cell

from mlff.basics.errors import ConfigError
from mlff.basics.units import KJ_PER_MOL
from mlff.potential.potential import Potential
from mlff.properties.minimum import TOLERANCE, check_minimum, need_cell

_DISPLACEMENT = 0.01  #: Å
_SYMMETRY = 1e-4  #: Å, positions that count as the same
_POINTS = 200  #: along the path
_MESH = 60.0  #: Å: a direction with the lattice vector a has about _MESH / a points
_IMAGINARY = -0.1  #: THz; what lies between it and 0 is rounding near Γ
_LARGEST = 1000  #: atoms of a supercell that is chosen here


@dataclass(frozen=True, eq=False)
class Phonons:
    """Frequencies in THz, negative: imaginary. Thermal properties are those of one primitive cell at constant volume."""

    supercell: tuple[int, int, int]  #: of the cell that was given
    supercell_atoms: int
    primitive_atoms: int
    displacements: int  #: supercells that were computed
    path: np.ndarray  #: (k,) 1/Å, along the band path
    bands: np.ndarray  #: (k, 3 * primitive_atoms)
    ticks: list[tuple[float, str]]  #: special points: place on the path, name
    frequency: np.ndarray  #: (m,) of the density of states
    density: np.ndarray  #: (m,) 1/THz; integrates to 3 * primitive_atoms
    lowest: float  #: of the path and a mesh over the Brillouin zone
    zero_point: float  #: eV
    temperature: np.ndarray  #: (t,) K
    free_energy: np.ndarray  #: (t,) eV, vibrational
    entropy: np.ndarray  #: (t,) J/K/mol
    heat_capacity: np.ndarray  #: (t,) J/K/mol

    @property
    def stable(self) -> bool:
        """No imaginary frequency beyond rounding (0.1 THz)."""
        return self.lowest > _IMAGINARY

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {
            "supercell": list(self.supercell),
            "supercell_atoms": self.supercell_atoms,
            "primitive_atoms": self.primitive_atoms,
            "displaced_supercells": self.displacements,
            "path_per_a": self.path.tolist(),
            "bands_thz": self.bands.tolist(),
            "special_points": [{"at": at, "name": name} for at, name in self.ticks],
            "frequency_thz": self.frequency.tolist(),
            "density_per_thz": self.density.tolist(),
            "lowest_thz": self.lowest,
            "stable": self.stable,
            "zero_point_ev": self.zero_point,
            "temperature_k": self.temperature.tolist(),
            "free_energy_ev": self.free_energy.tolist(),
            "entropy_j_per_k_mol": self.entropy.tolist(),
            "heat_capacity_j_per_k_mol": self.heat_capacity.tolist(),
        }


def phonons(
    potential: Potential,
    atoms: ase.Atoms,
    supercell: Sequence[int] | None = None,
    temperatures: Sequence[float] = (300.0,),
    tolerance: float = TOLERANCE,
) -> Phonons:
    """Phonons of the crystal `atoms`; all displaced supercells are computed in one batch.

    `supercell`: repetitions along the three cell vectors, by default so many that it is twice the cutoff wide. Non-analytical
    terms of polar crystals (LO-TO splitting) are not included. Use a potential in float64. Raises StructureError: no cell, a
    force above `tolerance` (eV/Å); ConfigError: phonopy is not installed, no supercell, no temperature.
    """
    need_phonopy()
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    need_cell(atoms, "phonons")
    if not all(temperature >= 0 and np.isfinite(temperature) for temperature in temperatures):
        raise ConfigError("--temperature must not be negative (K)")
    atoms = atoms.copy()
    atoms.set_constraint()
    check_minimum(potential, atoms, tolerance)
    repeats = _repeats(potential.cutoff, atoms, supercell)
    cell = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        cell=atoms.cell.array,
        scaled_positions=atoms.get_scaled_positions(),
        masses=atoms.get_masses(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that "auto" finds a smaller cell
        phonopy = Phonopy(cell, np.diag(repeats), primitive_matrix="auto", symprec=_SYMMETRY)
    phonopy.generate_displacements(distance=_DISPLACEMENT)
    cells = [phonopy.supercell, *phonopy.supercells_with_displacements]
    still, *displaced = potential.predict([_atoms(cell) for cell in cells], stress=False)
    phonopy.forces = np.array([result.forces - still.forces for result in displaced])
    phonopy.produce_force_constants(show_drift=False)
    phonopy.symmetrize_force_constants(show_drift=False)
    return _results(phonopy, repeats, len(displaced), temperatures)


def need_phonopy() -> None:
    """Raise ConfigError if it is not installed."""
    if importlib.util.find_spec("phonopy") is None:
        raise ConfigError("phonons need phonopy, which is not installed: pip install phonopy")


def _results(phonopy, repeats: tuple[int, int, int], count: int, temperatures: Sequence[float]) -> Phonons:
    """What follows from the force constants."""
    path = Cell(phonopy.primitive.cell).bandpath(npoints=_POINTS)
    bands = np.array(phonopy.run_qpoints(path.kpts).frequencies)
    at, places, names = path.get_linear_kpoint_axis()
    phonopy.run_mesh(_MESH)
    density = phonopy.run_total_dos()
    thermal = phonopy.run_thermal_properties(temperatures=temperatures, exclude_gamma_acoustic=True)
    return Phonons(
        repeats,
        len(phonopy.supercell),
        len(phonopy.primitive),
        count,
        at,
        bands,
        [(float(place), name.replace("G", "Γ")) for place, name in zip(places, names, strict=True)],
        np.array(density.frequency_points),
        np.array(density.dos),
        float(min(bands.min(), phonopy.mesh.frequencies.min())),
        float(thermal.zero_point_energy) * KJ_PER_MOL,
        np.array(thermal.temperatures),
        np.array(thermal.free_energy) * KJ_PER_MOL,
        np.array(thermal.entropy),
        np.array(thermal.heat_capacity),
    )


def _repeats(cutoff: float, atoms: ase.Atoms, wanted: Sequence[int] | None) -> tuple[int, int, int]:
    """The supercell as asked for, or twice the cutoff wide. Raises ConfigError."""
    heights = 1 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
    least = tuple(math.ceil(2 * cutoff / height - 1e-9) for height in heights)
    if wanted is not None:
        if len(wanted) != 3 or min(wanted) < 1:
            raise ConfigError("--supercell takes three positive numbers, e.g. 4 4 4")
        return tuple(wanted)
    size = math.prod(least) * len(atoms)
    if size > _LARGEST:
        raise ConfigError(
            f"a supercell of twice the cutoff, {' '.join(map(str, least))}, has {size:,} atoms: give --supercell to confirm it, or a "
            "smaller one"
        )
    return least


def _atoms(cell) -> ase.Atoms:
    return ase.Atoms(cell.symbols, scaled_positions=cell.scaled_positions, cell=cell.cell, pbc=True)
