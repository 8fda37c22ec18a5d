"""Units, signs and orders that contradict each other are found and named; what belongs together is left in peace."""

import re
from dataclasses import replace

import ase.units
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from mlff.basics.units import ENERGY, LENGTH, STRESS, VOIGT
from mlff.data.dataset import read_dataset
from mlff.lint.close_pairs import find_pairs
from mlff.lint.consistency import compare, imbalance, robust_slope
from tests.data import labelled

HARTREE, KCAL, BOHR = ENERGY["Hartree"], ENERGY["kcal/mol"], LENGTH["Bohr"]


@pytest.fixture(scope="module")
def molecules():
    return labelled.molecules()


@pytest.fixture(scope="module")
def crystals():
    return labelled.crystals()


@pytest.fixture(scope="module")
def defects():
    return labelled.defects()


def seen(structures, **origins):
    """labels -> comparison."""
    return {item.labels: item for item in compare(structures, find_pairs(structures), origins)}


def swapped(structures, order):
    """What reading finds when the shear labels (yz, xz, xy) stand in another order: label k is true component order[k]."""
    at, found = ((1, 2), (0, 2), (0, 1)), []
    for s in structures:
        stress = s.stress.copy()
        for k, source in enumerate(order):
            stress[at[k]] = stress[at[k][::-1]] = s.stress[at[source]]
        found.append(replace(s, stress=stress))
    return found


def test_what_belongs_together_is_consistent(molecules, crystals, defects):
    for structures in (molecules, crystals, defects):
        found = seen(structures)
        assert not {item.verdict for item in found.values()} & {"contradiction", "doubtful"}, found
    assert seen(molecules)["energies and forces"].slope == pytest.approx(1, abs=0.1)
    found = seen(crystals)
    assert found["energies and forces"].slope == pytest.approx(1, abs=0.05)
    assert found["energies and stresses"].slope == pytest.approx(1, abs=0.05)
    assert found["energies and stresses"].correlation > 0.95
    assert {item.verdict for item in found.values()} == {"consistent"}
    found = seen(defects)
    assert found["forces and stresses"].verdict == "consistent"
    assert found["order of the stress components"].verdict == "consistent"


@pytest.mark.parametrize(
    ("factors", "code", "advice"),
    [
        ({"forces": -1}, "forces-sign", "units.forces_sign: gradient"),
        ({"forces": 1 / KCAL}, "forces-unit", "units.forces: kcal/mol/Angstrom"),
        ({"forces": BOHR / HARTREE}, "forces-unit", "units.forces: Hartree/Bohr"),
        ({"forces": -BOHR / HARTREE}, "forces-unit", "units.forces_sign: gradient and units.forces: Hartree/Bohr"),
        ({"forces": BOHR}, "forces-unit", "units.forces: ENERGY/Bohr"),
        ({"energy": 1 / HARTREE}, "forces-unit", "units.energy: Hartree with units.forces: eV/Angstrom"),
        ({"energy": 1 / KCAL}, "forces-unit", "units.energy: kcal/mol with units.forces: eV/Angstrom"),
        ({"energy": 1 / 9}, "energy-per-atom", "units.energy_per_atom: true"),
    ],
)
def test_forces_that_contradict_energies(molecules, factors, code, advice):
    found = seen(labelled.changed(molecules, **factors))["energies and forces"]
    assert (found.verdict, found.code) == ("contradiction", code), found
    assert advice in found.do


def test_the_advice_goes_by_what_was_stated(molecules, crystals):
    found = seen(labelled.changed(molecules, forces=-1), forces='key "F", arrays, eV/Angstrom, gradient')
    assert found["energies and forces"].do == "units.forces_sign: force"
    flipped = labelled.changed(crystals, stress=-1)
    said = {
        'key "stress", info, kbar, positive: compression': "units.stress_sign: tension",
        'key "virial", info, eV, -stress*volume': "units.virial_sign: stress",
        'key "virial", info, eV, +stress*volume': "units.virial_sign: minus_stress",
    }
    for origin, advice in said.items():
        assert seen(flipped, stress=origin)["energies and stresses"].do == advice


@pytest.mark.parametrize(
    ("factor", "code", "advice"),
    [
        (-1, "stress-sign", "units.stress_sign: compression"),
        (1 / STRESS["GPa"], "stress-unit", "units.stress: GPa"),
        (1 / STRESS["kbar"], "stress-unit", "units.stress: kbar"),
        (-1 / STRESS["kbar"], "stress-unit", "units.stress: kbar and units.stress_sign: compression"),
        (-1 / STRESS["bar"], "stress-unit", "units.stress: bar and units.stress_sign: compression"),
    ],
)
def test_stresses_that_contradict_energies_or_forces(crystals, defects, factor, code, advice):
    for structures, labels in ((crystals, "energies and stresses"), (defects, "forces and stresses")):
        found = seen(labelled.changed(structures, stress=factor))
        assert found["energies and forces"].verdict != "contradiction"
        assert (found[labels].verdict, found[labels].code) == ("contradiction", code), found[labels]
        assert advice in found[labels].do


@pytest.mark.parametrize("pressure", [0.0145, -0.01])
def test_stresses_that_are_a_pressure_away(crystals, pressure):
    """As with the Pulay stress of plane waves: the labels are right but for a constant on the diagonal."""
    found = seen([replace(s, stress=s.stress + pressure * np.eye(3)) for s in crystals])["stresses and volumes"]
    assert (found.verdict, found.code) == ("doubtful", "stress-offset")
    assert float(re.search(r"have ([+-][\d.]+) eV/Å³", found.what).group(1)) == pytest.approx(-pressure, rel=0.25)
    assert "stress: 0" in found.do
    assert "stresses and volumes" not in seen([replace(s, stress=s.stress + 1e-4 * np.eye(3)) for s in crystals])


@pytest.mark.parametrize("step", [0.005, 0.02, 0.04])
def test_coarse_volume_scans_have_no_pressure(step):
    found = []
    for k in range(-12, 13):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell.array * (1 + k * step / 2), scale_atoms=True)
        atoms.calc = EMT()
        found.append(labelled.structure_of(atoms, len(found), -4000.0))
    assert "stresses and volumes" not in seen(found)


def test_real_stresses_that_are_a_pressure_away(shared):
    found = seen(read_dataset(shared / "mlearn_cu" / "train.xyz.xz").structures)["stresses and volumes"]
    assert found.code == "stress-offset" and re.search(r"-2\.[3-5] GPa", found.what)


@pytest.mark.parametrize(("order", "name"), [((2, 0, 1), "xx yy zz xy yz xz"), ((2, 1, 0), "xx yy zz xy xz yz")])
def test_components_in_another_order(crystals, defects, order, name):
    for structures in (crystals, defects):
        found = seen(swapped(structures, order))["order of the stress components"]
        assert (found.verdict, found.code) == ("contradiction", "stress-order"), found
        assert name in found.do


def test_wrong_forces_do_not_make_stresses_wrong(crystals, defects):
    found = seen(labelled.changed(crystals, forces=-1))
    assert found["energies and forces"].code == "forces-sign"
    assert found["energies and stresses"].verdict == "consistent"
    assert seen(labelled.changed(defects, forces=-1))["forces and stresses"].code == "stress-sign"  # one of the two


def test_energies_per_atom_where_sizes_differ():
    many = labelled.molecules(60, names=("CH3CH2OH", "H2O", "CH4", "CH3OH", "C6H6", "C2H6"))
    assert seen(many)["energies and numbers of atoms"].verdict == "consistent"
    found = seen([replace(s, energy=s.energy / len(s)) for s in many])["energies and numbers of atoms"]
    assert (found.verdict, found.code) == ("contradiction", "energy-per-atom")


def test_what_cannot_be_tested_is_no_contradiction(molecules):
    few = seen(molecules[:3])["energies and forces"]
    assert few.verdict == "untested" and few.number <= 3
    rng = np.random.default_rng(0)
    noise = [replace(s, forces=rng.normal(size=s.forces.shape)) for s in molecules]
    assert seen(noise)["energies and forces"].verdict == "untested"
    assert seen([replace(s, forces=None) for s in molecules]) == {}
    assert seen([replace(s, energy=None) for s in molecules])["energies and forces"].verdict == "untested"
    assert seen([]) == {}


def test_net_force_and_torque(molecules):
    molecule = molecules[0]
    assert imbalance(molecule) == (0.0, 0.0)
    pushed = replace(molecule, forces=molecule.forces + np.array([1.0, 0, 0]))
    assert imbalance(pushed)[0] > 0.2
    turned = replace(molecule, forces=molecule.forces @ np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]))
    force, torque = imbalance(turned)
    assert force == 0 and torque > 0.2
    assert imbalance(replace(molecule, forces=None)) == (0.0, 0.0)


def test_slope_withstands_outliers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    y = 2 * x + rng.normal(0, 0.05, 200)
    y[:20] = 50
    slope, correlation = robust_slope(x, y)
    assert slope == pytest.approx(2, rel=0.05) and correlation > 0.7
    assert robust_slope(x, np.zeros(200)) == (0.0, 0.0)


def test_slow_slabs_wires_and_single_atoms_do_no_harm(crystals):
    slab = [replace(s, pbc=np.array([True, True, False]), stress=None) for s in crystals]
    assert seen(slab)["energies and forces"].verdict in ("consistent", "untested")
    flat = [replace(s, pbc=np.array([True, True, False]), cell=s.cell * [[1], [1], [0]], stress=None) for s in crystals]
    seen(flat)
    atoms = [replace(s, numbers=s.numbers[:1], positions=s.positions[:1], forces=np.zeros((1, 3))) for s in crystals]
    seen(atoms)


SHARED = {
    "3bpa/train_300K.xyz": {"energies and forces"},
    "ethanol/train_ethanol.xyz": {"energies and forces"},
    "rmd17_aspirin/train.xyz.xz": {"energies and forces"},
    "mlearn_si/train.xyz.xz": {"energies and forces", "energies and stresses", "order of the stress components"},
    "ecemc_liquid/train.xyz.xz": {"forces and stresses", "order of the stress components"},
    "mos2_nep/train.xyz.xz": {"forces and stresses", "order of the stress components"},
}


@pytest.mark.parametrize("name", SHARED)
def test_real_data_are_consistent(shared, name):
    data = read_dataset(shared / name)
    found = seen(data.structures)
    assert not {item.verdict for item in found.values()} & {"contradiction", "doubtful"}
    assert SHARED[name] <= {labels for labels, item in found.items() if item.verdict == "consistent"}


@pytest.mark.parametrize("name", ["mos2_nep", "ecemc_liquid"])
def test_real_virials_of_the_other_sign(shared, name):
    data = read_dataset(shared / name / "train.xyz.xz", units={"virial_sign": "stress"})
    found = seen(data.structures, **dict(data.census.origins))["forces and stresses"]
    assert (found.code, found.do) == ("stress-sign", "units.virial_sign: minus_stress; or units.forces_sign: gradient")


def test_real_stresses_in_bar_with_the_sign_of_a_pressure(shared):
    data = read_dataset(str(shared / "fitsnap_ta" / "*.xyz"), units={"stress": "bar"})
    stated = seen(data.structures, **dict(data.census.origins))["energies and stresses"]
    assert (stated.code, stated.do) == ("stress-sign", "units.stress_sign: compression")
    raw = labelled.changed(data.structures, stress=1 / (1e-4 * ase.units.GPa))  # as the file has them, nothing stated
    found = seen(raw)["energies and stresses"]
    assert found.code == "stress-unit" and "units.stress: bar and units.stress_sign: compression" in found.do


def in_groups(structures, orders, read=None):
    """Six numbers in one order per group, read in the order `read` (None: left out)."""
    ase_order, found = VOIGT["ase"], []
    for k, s in enumerate(structures):
        group = list(orders)[k % 8 // 4 % len(orders)]
        part = dict(zip(ase_order, s.stress[(0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)], strict=True))
        six = np.array([part[name] for name in VOIGT[orders[group]]])
        stress = None
        if read is not None:
            part = dict(zip(VOIGT[read], six, strict=True))
            stress = np.array([[part["".join(sorted(i + j))] for j in "xyz"] for i in "xyz"])
        found.append(replace(s, stress=stress, raw_voigt=six, group=group))
    return found


def test_orders_that_differ_from_group_to_group(crystals):
    orders = {"cold": "vasp", "hot": "lammps"}
    right = "units.stress_order: {cold: vasp, hot: lammps}"
    found = seen(in_groups(crystals, orders))["order of the stress components"]
    assert (found.verdict, found.code) == ("doubtful", "stress-unordered") and right in found.do
    for read, wrong in (("vasp", "hot"), ("lammps", "cold"), ("ase", "cold")):
        found = seen(in_groups(crystals, orders, read))["order of the stress components"]
        assert (found.verdict, found.code) == ("contradiction", "stress-order") and right in found.do
        assert f"{wrong}: " in found.what
    for one in ("ase", "vasp", "lammps"):
        same = in_groups(crystals, dict.fromkeys(orders, one), one)
        assert seen(same)["order of the stress components"].verdict == "consistent"


def test_an_order_that_nobody_can_tell(molecules, crystals):
    still = [replace(s, energy=None, forces=None) for s in in_groups(crystals, {"a": "vasp"})]
    found = seen(still)["order of the stress components"]
    assert found.code == "stress-unordered" and "nothing can be told" in found.what and found.do == "say units.stress_order"
