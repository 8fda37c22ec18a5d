"""Vibrations against formulas and finite differences."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.constraints import FixAtoms, FixBondLengths
from ase.vibrations import Vibrations as FiniteDifferences

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError, StructureError
from mlff.config.options import Morse
from mlff.potential.potential import Potential
from mlff.properties.minimum import relaxed
from mlff.properties.vibrations import vibrations
from tests.potentials import BASELINE, morse
from tests.properties.crystals import copper, potential

SINGLE = units._hbar * 1e10 / np.sqrt(units._e * units._amu) / units.invcm  # cm⁻¹ of one sqrt(eV/Å²/amu)


@pytest.fixture(scope="module")
def bonds() -> Potential:
    """Morse of 1.2 Å and, as good as, no cutoff."""
    config = Morse(cutoff=100.0, depth=1.0, stiffness=1.5, r0=1.2)
    return Potential(config, {}, tuple(BASELINE), dict(BASELINE), precision="float64")


def test_a_morse_molecule_vibrates_at_its_formula(bonds):
    """ω = a sqrt(2 D / μ)."""
    found = vibrations(bonds, Atoms("HO", positions=[[0, 0, 0], [0, 0.72, 0.96]]))
    masses = Atoms("HO").get_masses()
    expected = 1.5 * np.sqrt(2 * 1.0 * masses.sum() / masses.prod()) * SINGLE
    assert found.kind == "linear" and found.wavenumbers == pytest.approx([expected], rel=1e-5)
    assert found.zero_point == pytest.approx(0.5 * expected * units.invcm, rel=1e-5)
    assert found.rest < 0.1 and len(found.imaginary) == 0


def differences(atoms: Atoms, potential: Potential, folder) -> np.ndarray:
    """Wavenumbers by ASE's finite differences of forces, all 3n, imaginary ones negative."""
    atoms = atoms.copy()
    atoms.calc = MLFFCalculator(potential)
    finite = FiniteDifferences(atoms, name=str(folder / "vib"), delta=0.002, nfree=4)
    finite.run()
    energies = finite.get_energies() / units.invcm
    return np.sort(energies.real - energies.imag)


def without_overall(values: np.ndarray, count: int) -> np.ndarray:
    return np.sort(values[np.argsort(np.abs(values))[count:]])


def test_molecules_against_finite_differences(tmp_path):
    bonds = morse(precision="float64")
    for name, kind, overall in (("CH3CH2OH", "nonlinear", 6), ("C2H2", "linear", 5)):
        atoms = molecule(name) if kind == "linear" else relaxed(bonds, molecule(name))
        found = vibrations(bonds, atoms, tolerance=1e3)
        assert found.kind == kind and len(found.wavenumbers) == 3 * len(atoms) - overall
        if kind == "nonlinear":  # C2H2 is no minimum: what turns it as a whole costs energy
            expected = without_overall(differences(atoms, bonds, tmp_path), overall)
            np.testing.assert_allclose(found.wavenumbers, expected, atol=0.5)
        masses = np.sqrt(atoms.get_masses())[:, None]
        momenta = np.einsum("mna,n->ma", found.modes, masses[:, 0] ** 2)
        spins = np.einsum("mna->ma", np.cross(atoms.positions, found.modes * masses**2))
        assert np.abs(momenta).max() < 1e-8 and np.abs(spins).max() < 1e-8
        weighted = (found.modes * masses).reshape(len(found.modes), -1)
        weighted /= np.linalg.norm(weighted, axis=1)[:, None]
        np.testing.assert_allclose(weighted @ weighted.T, np.eye(len(weighted)), atol=1e-8)


def test_a_learned_model_against_finite_differences(potentials, tmp_path):
    """Along each mode the force changes as its wavenumber says."""
    potential = potentials("schnet")
    atoms = molecule("H2O")
    found = vibrations(potential, atoms, tolerance=1e3)
    moved, directions = [], []
    for mode in found.modes:
        directions.append(mode / np.linalg.norm(mode * np.sqrt(atoms.get_masses())[:, None]))  # mass-weighted length 1
        for step in (1e-3, -1e-3):
            moved.append(atoms.copy())
            moved[-1].positions += step * directions[-1]
    forces = [result.forces for result in potential.predict(moved)]
    pairs = zip(forces[::2], forces[1::2], directions, strict=True)
    squares = np.array([-np.vdot(plus - minus, direction) / 2e-3 for plus, minus, direction in pairs])
    expected = np.sign(squares) * np.sqrt(np.abs(squares)) * SINGLE
    assert len(found.wavenumbers) == 3
    np.testing.assert_allclose(found.wavenumbers, expected, rtol=1e-3, atol=0.1)


def test_a_crystal_has_three_translations_and_fixed_atoms_have_none():
    atoms = copper()
    found = vibrations(potential(), atoms)
    assert found.kind == "periodic" and len(found.wavenumbers) == 9 and found.rest < 0.1
    assert len(found.imaginary) == 0 and "helmholtz_ev" in found.free_energy(300)
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    found = vibrations(potential(), atoms)
    assert found.kind == "fixed" and len(found.wavenumbers) == 3 and np.abs(found.modes[:, :3]).max() == 0
    hessian = potential().hessian(copper())[9:, 9:]
    expected = np.sqrt(np.linalg.eigvalsh(hessian) / atoms.get_masses()[3]) * SINGLE
    np.testing.assert_allclose(found.wavenumbers, expected, rtol=1e-8)


def test_free_energies(bonds):
    molecule = Atoms("OO", positions=[[0, 0, 0], [0, 0, 1.2]])
    found = vibrations(bonds, molecule)
    one, two = found.free_energy(300.0), found.free_energy(300.0, symmetry=2)
    assert two["entropy_ev_per_k"] - one["entropy_ev_per_k"] == pytest.approx(-units.kB * np.log(2))
    assert one["gibbs_ev"] == pytest.approx(one["enthalpy_ev"] - 300 * one["entropy_ev_per_k"])
    atom = vibrations(bonds, Atoms("Ar"))
    assert atom.kind == "monatomic" and len(atom.wavenumbers) == 0
    joule = units.J / units.mol
    assert atom.free_energy(298.15)["entropy_ev_per_k"] / joule == pytest.approx(154.8, abs=0.1)  # J/K/mol at 1 bar, NIST
    with pytest.raises(ConfigError, match="--temperature"):
        found.free_energy(0.0)


def test_a_saddle_point_has_an_imaginary_mode(bonds):
    """Three atoms in line, attracted to each other: bending brings the ends together."""
    line = relaxed(bonds, Atoms("OCO", positions=[[0, 0, -1.2], [0, 0, 0], [0, 0, 1.2]]))
    found = vibrations(bonds, line)
    assert found.kind == "linear" and len(found.wavenumbers) == 4 and len(found.imaginary) == 2
    assert found.imaginary[0] == pytest.approx(found.imaginary[1])
    pictures = list(found.animation())
    assert len(pictures) == 4 * 16 and pictures[0].info == {"mode": 0, "wavenumber_cm1": pytest.approx(found.imaginary[0])}
    moved = np.linalg.norm([picture.positions - line.positions for picture in pictures], axis=2)
    assert moved.max() == pytest.approx(0.3, abs=1e-6)


def test_what_is_no_minimum_is_refused(bonds):
    with pytest.raises(StructureError, match=r"not a minimum: the force on atom \d is .*`mlff relax`"):
        vibrations(bonds, molecule("H2O"))
    atoms = Atoms("OO", positions=[[0, 0, 0], [0, 0, 1.2]], constraint=FixBondLengths([[0, 1]]))
    with pytest.raises(StructureError, match="FixBondLengths"):
        vibrations(bonds, atoms)
    with pytest.raises(StructureError, match="atom 0 is Xe, which this potential does not know"):
        vibrations(bonds, Atoms("Xe"))
