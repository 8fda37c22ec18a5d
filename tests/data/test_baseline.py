"""Reference energies per element: given, isolated, least squares, and labels that do not belong to them."""

import warnings

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from mlff.basics.errors import DataError
from mlff.data import baseline
from mlff.data.structure import Structure

ATOMS = {1: -13.587, 6: -1029.489, 7: -1484.981, 8: -2041.982}


def structure(formula, energy=None):
    atoms = Atoms(formula)
    atoms.positions[:, 0] = 1.5 * np.arange(len(atoms))
    return Structure.from_atoms(atoms, energy=energy)


def total(formula, binding=-4.0):
    numbers = Atoms(formula).numbers
    return sum(ATOMS[int(z)] for z in numbers) + binding * len(numbers)


def molecules(*formulas, binding=-4.0):
    return [structure(formula, total(formula, binding)) for formula in formulas]


VARIED = ("H2O", "CH4", "CH3OH", "NH3", "HCN", "CO2", "H2", "C2H6", "N2O")


def test_given_energies_by_symbol():
    given_ = {"H": -13.587, "O": -2041.982, "Fe": -1.0}
    assert baseline.fit(molecules("H2O"), given_) == {1: -13.587, 8: -2041.982}
    with pytest.raises(DataError, match="no reference energy for C: reference_energies names no"):
        baseline.fit(molecules("CH4"), given_)
    with pytest.raises(DataError, match="'Hh' is not the symbol"):
        baseline.fit(molecules("H2O"), {"Hh": -1.0})


def test_isolated_atoms_exactly():
    data = molecules(*VARIED)
    assert baseline.fit(data, "isolated", ATOMS) == ATOMS
    assert baseline.fit(data, "auto", ATOMS) == ATOMS
    with pytest.raises(DataError, match="no reference energy for N: the data hold no isolated atom of it"):
        baseline.fit(data, "isolated", {z: ATOMS[z] for z in (1, 6, 8)})


def test_auto_takes_least_squares_when_an_atom_is_missing_and_says_so():
    data = molecules(*VARIED)
    with pytest.warns(UserWarning, match="isolated atoms of N, O are missing: reference energies by least squares"):
        fitted = baseline.fit(data, "auto", {1: ATOMS[1], 6: ATOMS[6]})
    assert fitted == baseline.fit(data, "least_squares")


@given(st.lists(st.floats(-5000, 100), min_size=4, max_size=4))
@settings(max_examples=50, deadline=None)
def test_least_squares_finds_additive_energies_in_float64(values):
    atoms = dict(zip(ATOMS, values, strict=True))
    data = [structure(f, sum(atoms[int(z)] for z in Atoms(f).numbers)) for f in VARIED]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fitted = baseline.fit(data, "least_squares")
    for z, value in atoms.items():
        assert fitted[z] == pytest.approx(value, abs=1e-9)


def test_least_squares_of_indistinct_compositions_is_of_least_norm_and_warns():
    data = molecules("H2O", "H4O2", "H2O")
    with pytest.warns(UserWarning, match="reference energies of H, O apart .rank 1 of 2"):
        fitted = baseline.fit(data, "least_squares")
    for item in data:
        assert baseline.energy(fitted, item.numbers) == pytest.approx(item.energy, rel=1e-12)
    assert fitted[1] == pytest.approx(2 * fitted[8])


def test_only_the_elements_that_are_confounded_are_named():
    data = [*molecules("H2", "H2O2", "HO"), structure("H2CN", -100.0), structure("HC2N2", -150.0), structure("H3CN", -101.0)]
    with pytest.warns(UserWarning, match="reference energies of C, N apart .rank 3 of 4"):
        baseline.fit(data, "least_squares")
    silent = [*molecules("H2", "CH4"), structure("NH3")]
    with pytest.warns(UserWarning, match="of N apart"):
        assert baseline.fit(silent, "least_squares")[7] == 0.0


def test_none_and_data_without_energies():
    assert baseline.fit(molecules("H2O"), "none") == {1: 0.0, 8: 0.0}
    unlabelled = [structure("H2O")]
    assert baseline.fit(unlabelled, "auto") == {1: 0.0, 8: 0.0}
    assert baseline.fit(unlabelled, "auto", ATOMS) == {1: ATOMS[1], 8: ATOMS[8]}
    with pytest.raises(DataError, match="no training structure has one"):
        baseline.fit(unlabelled, "least_squares")
    with pytest.raises(ValueError, match="unknown"):
        baseline.fit(unlabelled, "guess")


@pytest.mark.parametrize("how", ["isolated", "auto", {"H": ATOMS[1], "C": ATOMS[6], "N": ATOMS[7], "O": ATOMS[8]}])
def test_atomisation_energies_are_recognised(how):
    already = [structure(f, -4.0 * len(Atoms(f))) for f in VARIED]
    with pytest.raises(DataError, match="atomisation or formation energies already: -4.000 eV per atom"):
        baseline.fit(already, how, ATOMS)
    assert baseline.fit(already, "none", ATOMS)[6] == 0.0


def test_references_in_the_wrong_unit_are_recognised():
    hartree = {z: value / 27.2114 for z, value in ATOMS.items()}
    with pytest.raises(DataError, match="do not belong to these labels"):
        baseline.fit(molecules(*VARIED), "isolated", hartree)


def test_energy_is_a_float64_sum_and_names_what_it_lacks():
    numbers = np.array([6] * 1000 + [1] * 2000, np.int32)
    assert baseline.energy(ATOMS, numbers) == pytest.approx(1000 * ATOMS[6] + 2000 * ATOMS[1], rel=1e-15)
    assert baseline.energy(ATOMS, []) == 0.0
    with pytest.raises(DataError, match="no reference energy for Fe; there are those of H C N O"):
        baseline.energy(ATOMS, [1, 26])
