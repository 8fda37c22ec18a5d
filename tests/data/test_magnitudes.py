"""Units that the labels agree about and that are wrong all the same; energies that only look as if."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, molecule

from mlff.basics.units import ENERGY, LENGTH
from mlff.data.structure import Structure
from mlff.lint.contacts import measure
from mlff.lint.lint import lint
from mlff.lint.unit_guess import all_electron, energy_unit, energy_zero, length_unit
from tests.data import labelled

NAMES = "CH3CH2OH", "H2O", "CH4", "C6H6", "CH3OH", "C2H6", "NH3", "HCN"


def molecules(scale=1.0, energy=1.0, names=NAMES):
    """With total energies of all electrons times `energy`, 0.3 % below those of free atoms."""
    rng, found = np.random.default_rng(0), []
    for k in range(24):
        atoms = molecule(names[k % len(names)])
        atoms.positions = scale * (atoms.positions + rng.normal(0, 0.05, atoms.positions.shape))
        found.append(Structure.from_atoms(atoms, energy=energy * 1.003 * all_electron(atoms.numbers).sum()))
    return found


def crystals(name, scale=1.0, **options):
    found = []
    for k in range(8):
        atoms = bulk(name, cubic=True, **options) * (2, 2, 2)
        atoms.rattle(0.08, seed=k)
        atoms.set_cell(scale * atoms.cell.array, scale_atoms=True)
        found.append(Structure.from_atoms(atoms, energy=-4.0 * len(atoms)))
    return found


@pytest.mark.parametrize(("numbers", "hartree"), [([1], -0.5), ([6], -37.85), ([8], -75.07), ([26], -1263), ([54], -7232)])
def test_total_energies_of_atoms(numbers, hartree):
    assert all_electron(numbers)[0] / ENERGY["Hartree"] == pytest.approx(hartree, rel=0.015)


@pytest.mark.parametrize("unit", ["Hartree", "kcal/mol", "kJ/mol", "meV"])
def test_total_energies_in_another_unit(unit):
    misfit = energy_unit(molecules(energy=1 / ENERGY[unit]))
    assert misfit.sure and misfit.do == f"units.energy: {unit}"
    stated = energy_unit(molecules(energy=ENERGY[unit]), f'key "energy", info, {unit} as stated')
    assert stated.do == "units.energy: eV" and f"as if eV were read as {unit}" in stated.what


def test_energies_that_are_right_or_have_another_zero_are_left_in_peace():
    right = molecules()
    assert energy_unit(right) is None
    assert energy_unit([replace(s, energy=-4.2 * len(s)) for s in right]) is None  # of formation
    for share in (0.22, 0.155, 0.074, 0.053):  # without core electrons: pseudo-potentials, PM6, GFN2-xTB, DFTB
        assert energy_unit([replace(s, energy=share * s.energy) for s in right]) is None
    scattered = [replace(s, energy=s.energy * f / 27.2) for s, f in zip(right, np.linspace(0.9, 1.1, 24), strict=True)]
    assert energy_unit(scattered) is None
    assert energy_unit([replace(s, energy=None) for s in right]) is None
    heavy = [replace(s, numbers=np.where(s.numbers == 6, 16, s.numbers).astype(np.int32)) for s in right]
    heavy = [replace(s, energy=all_electron(s.numbers).sum() / 27.2114) for s in heavy]
    assert not energy_unit(heavy).sure  # pseudo-atoms of sulphur come near that


def test_what_energies_are_counted_from():
    right = molecules()
    assert energy_zero(right).startswith("nuclei and electrons")
    assert energy_zero([replace(s, energy=-4.2 * len(s)) for s in right]).startswith("atoms, elements")
    assert energy_zero([replace(s, energy=0.22 * s.energy) for s in right]).startswith("nuclei or cores")
    assert energy_zero([replace(s, energy=None) for s in right]) == ""


@pytest.mark.parametrize("unit", ["Bohr", "nm"])
def test_lengths_in_another_unit(unit):
    for structures in (molecules(1 / LENGTH[unit]), crystals("Cu", 1 / LENGTH[unit]), crystals("Si", 1 / LENGTH[unit])):
        misfit = length_unit(measure(structures))
        assert misfit.sure and f"units.length: {unit}" in misfit.do
    stated = length_unit(measure(molecules(LENGTH["Bohr"])), "Bohr as stated")
    assert "units.length: Angstrom" in stated.do


def test_usual_and_unusual_lengths_are_left_in_peace():
    for structures in (molecules(), crystals("Na"), crystals("Si"), crystals("NaCl", crystalstructure="rocksalt", a=5.64)):
        assert length_unit(measure(structures)) is None
    assert length_unit(measure(crystals("Ar"))) is None  # rare gases have no bonds
    rng = np.random.default_rng(0)
    wide = [replace(s, positions=s.positions * rng.uniform(0.8, 3)) for s in molecules()]
    assert length_unit(measure(wide)) is None  # a scan of distances


def test_lint_says_it():
    data = labelled.dataset(molecules(energy=1 / ENERGY["kcal/mol"]))
    (error,) = lint(data).of("error")
    assert (error.code, error.do) == ("energy-unit", "units.energy: kcal/mol")
    (error,) = lint(labelled.dataset(molecules(1 / LENGTH["Bohr"]))).of("error")
    assert error.code == "length-unit"
