"""Real reference data in their awkward formats, read right when told how: counts, units and signs."""

import json
import lzma
from functools import cache
from io import StringIO
from pathlib import Path

import ase.io
import numpy as np
import pytest

from mlff.basics.errors import DataError
from mlff.config.options import Data, Loss
from mlff.data.dataset import load_data, read_dataset
from mlff.lint.lint import lint

SHARED = Path(__file__).parents[2].parent / "shared" / "datasets"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared reference sets are not at {SHARED}")
MLEARN_ORDER = {"Elastic": "vasp", "AIMD-NVT": "lammps", "Vacancy": "lammps"}


def read(name: str, keys=None, **units):
    return _read_once(name, json.dumps([keys, units], sort_keys=True))


@cache
def _read_once(name: str, options: str):
    keys, units = json.loads(options)
    return read_dataset(SHARED / name, keys=keys, units=units)


def slope(pairs) -> float:
    """Of energy differences over -mean(F)·dR, for pairs of structures of the same atoms; 1 if units and signs agree."""
    steps, works = [], []
    for one, other in pairs:
        steps.append(other.energy - one.energy)
        works.append(-((one.forces + other.forces) / 2 * (other.positions - one.positions)).sum())
    assert np.corrcoef(works, steps)[0, 1] > 0.999
    return np.polyfit(works, steps, 1)[0]


def nearest(structures, count: int) -> list:
    """For the first structures, each with the one nearest in positions."""
    x = np.array([structure.positions.ravel() for structure in structures])
    for index in range(count):
        distance = ((x - x[index]) ** 2).sum(1)
        distance[index] = np.inf
        yield structures[index], structures[int(distance.argmin())]


READ = {
    "md17/md17_ethanol_first2000.npz": ({"energy": "kcal/mol"}, 2000, 9, (True, True, False)),
    "md17/md17_naphthalene_train.xyz.xz": ({}, 1000, 18, (True, True, False)),
    "md17/md17_salicylic_acid_train.xyz.xz": ({}, 1000, 16, (True, True, False)),
    "h2co/h2co_3001.npz": ({}, 3001, 4, (True, True, False)),
    "lips/lips_600.npz": ({}, 600, 83, (True, True, False)),
    "s66x8/s66x8_even.h5": ({"energy": "Hartree", "forces_sign": "gradient"}, 264, (6, 34), (True, True, False)),
    "water_deepmd/*": ({}, 240, 192, (True, True, False)),
    "lips20_deepmd/*": ({}, 600, (32, 128), (True, True, True)),
    "water_optb88/water-scaled.data.xz": ({"energy": "Hartree", "length": "Bohr"}, 160, 192, (True, True, False)),
    "mlearn_si/test.json": ({"stress_order": MLEARN_ORDER}, 25, (24, 64), (True, True, 23)),
    "mlearn_si/training.json.xz": ({"stress_order": MLEARN_ORDER}, 214, (12, 96), (True, True, 202)),
    "formats/fitsnap_json/Ta/*/*.json": ({}, 12, (2, 100), (True, True, True)),
    "formats/fitsnap_json/InP/*/*.json": ({}, 11, (4, 217), (True, True, True)),
    "fitsnap_ta/*.xyz": ({"stress": "bar", "stress_sign": "compression"}, 363, (2, 100), (True, True, True)),
    "3bpa/test_300K.xyz.xz": ({}, 1669, 27, (True, True, False)),
    "3bpa/test_600K.xyz.xz": ({}, 2138, 27, (True, True, False)),
    "3bpa/train_mixedT_300K_600K.xyz": ({}, 334, 27, (True, True, False)),
    "ethanol/train_methanol.xyz": ({}, 300, 6, (True, True, False)),
    "random_methane/train.xyz": ({}, 800, 5, (True, True, False)),
    "spice_dipeptides/train.xyz.xz": ({}, 495, (42, 51), (True, True, False)),
    "spice_dipeptides/val.xyz.xz": ({}, 55, (42, 51), (True, True, False)),
    "mlearn_si/test.xyz": ({}, 25, (24, 64), (True, True, 23)),
    "mlearn_cu/test.xyz": ({}, 31, (20, 108), (True, True, 29)),
}


@pytest.mark.parametrize("name", READ)
def test_counts(name):
    units, structures, atoms, labels = READ[name]
    data = read(name, **units)
    assert len(data) == structures
    assert data.census.sizes == (atoms if isinstance(atoms, tuple) else (atoms, atoms))
    for label, expected in zip(("energy", "forces", "stress"), labels, strict=True):
        assert data.census.labels[label] == (structures * expected if isinstance(expected, bool) else expected)


def test_md17_is_in_kilocalories():
    data = read("md17/md17_ethanol_first2000.npz", energy="kcal/mol")
    assert slope(zip(data, data.structures[1:], strict=False)) == pytest.approx(1, abs=0.003)
    assert data[0].energy == pytest.approx(-4215.35542, abs=1e-4)


def test_h2co_is_in_electronvolts():
    assert slope(nearest(read("h2co/h2co_3001.npz"), 400)) == pytest.approx(1, abs=0.003)


def test_s66x8_forces_are_gradients_in_hartree():
    data = read("s66x8/s66x8_even.h5", energy="Hartree", forces_sign="gradient")
    pairs = [
        (one, other)
        for one, other in zip(data, data.structures[1:], strict=False)
        if one.info["molecule"] == other.info["molecule"] and np.abs(one.positions - other.positions).max() < 0.3
    ]
    assert len(pairs) > 100 and slope(pairs) == pytest.approx(1, abs=0.03)


def test_deepmd_folders_are_what_their_arrays_say():
    data, folder = read("lips20_deepmd/Li48P16S64"), SHARED / "lips20_deepmd" / "Li48P16S64" / "set.000"
    virial, box = np.load(folder / "virial.npy")[7].reshape(3, 3), np.load(folder / "box.npy")[7].reshape(3, 3)
    np.testing.assert_allclose(data[7].stress, -(virial + virial.T) / 2 / abs(np.linalg.det(box)), rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(data[7].forces.ravel(), np.load(folder / "force.npy")[7])
    assert data[7].formula == "Li48P16S64" and "-stress*volume by the format" in str(data.census)
    water = read("water_deepmd/data_1")
    assert len(water) == 160 and water[0].formula == "H128O64" and 0.5 < np.std(water[0].forces) < 1.5


def test_water_in_atomic_units_is_like_the_same_water_in_electronvolts():
    atomic, plain = (
        read("water_optb88/water-scaled.data.xz", energy="Hartree", length="Bohr"),
        read("water_optb88/train.xyz.xz"),
    )
    assert atomic[0].energy / len(atomic[0]) == pytest.approx(plain[0].energy / len(plain[0]), abs=0.1)
    spread = [np.std([s.forces for s in data]) for data in (atomic, plain)]
    assert spread[0] == pytest.approx(spread[1], rel=0.2)
    distances = [np.sort(s.to_atoms().get_all_distances(mic=True), axis=1)[:, 1].mean() for s in (atomic[0], plain[0])]
    assert distances[0] == pytest.approx(distances[1], abs=0.03)


@pytest.mark.parametrize(("name", "same"), [("training.json.xz", "train.xyz.xz"), ("test.json", "test.xyz")])
def test_mlearn_json_is_the_converted_set(name, same):
    unordered = read(f"mlearn_si/{name}")
    assert unordered.census.labels["stress"] == 0 and unordered.census.unordered_stress == len(unordered)
    data, converted = read(f"mlearn_si/{name}", stress_order=MLEARN_ORDER), read(f"mlearn_si/{same}")
    for one, other in zip(data, converted, strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-6)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-6)
        np.testing.assert_allclose(one.positions, other.positions, atol=1e-4)
        assert (one.stress is None) == (other.stress is None)
        if one.stress is not None:
            np.testing.assert_allclose(one.stress, other.stress, atol=1e-6)


def test_fitsnap_json_is_the_converted_set():
    converted = {
        round(s.energy, 6): s for name in ("fitsnap_ta/*.xyz",) for s in read(name, stress="bar", stress_sign="compression")
    }
    converted |= {round(s.energy, 6): s for s in read("inp/train.xyz.xz")}
    data = [*read("formats/fitsnap_json/Ta/*/*.json"), *read("formats/fitsnap_json/InP/*/*.json")]
    found = [(one, converted[round(one.energy, 6)]) for one in data if round(one.energy, 6) in converted]
    assert len(found) > 15
    for one, other in found:
        np.testing.assert_allclose(one.stress, other.stress, atol=2e-6)
        np.testing.assert_allclose(one.forces, other.forces, atol=1e-5)


def test_the_database_states_its_units_and_is_its_xyz_but_for_a_short_factor():
    data = read("formats/ase_db_naphthalene50.db")
    assert "eV/Angstrom by the file" in str(data.census)
    same = read("md17/md17_naphthalene_train.xyz.xz").structures[-50:]
    ratio = [one.energy / other.energy for one, other in zip(data, same, strict=True)]
    np.testing.assert_allclose(ratio, 1 - 9.5e-5, atol=1e-6)


def test_energies_per_atom_become_those_of_structures():
    name, key = "formats/small_molecules_energy_per_atom.xyz.xz", "dft_formation_energy_per_atom_in_eV"
    data = read(name, keys={"energy": key}, energy_per_atom=True)
    text = lzma.decompress((SHARED / name).read_bytes()).decode()
    raw = ase.io.read(StringIO(text), 3, format="extxyz")
    assert data.census.labels["energy"] == 985 and data[3].energy == pytest.approx(raw.info[key] * len(raw), rel=1e-12)


def test_isolated_atoms_without_forces_are_kept_apart():
    data = read("ecemc_liquid/train.xyz.xz")
    assert len(data) == 150 and sorted(data.isolated_atoms) == [1, 6, 8]
    assert (data.census.labels["forces"], data.census.labels["stress"]) == (150, 150)


def test_lips_has_the_cell_and_the_labels_of_its_archive():
    with np.load(SHARED / "lips" / "lips_600.npz", allow_pickle=False) as raw:
        data = read("lips/lips_600.npz")
        np.testing.assert_array_equal(data[5].cell, raw["cell"])
        np.testing.assert_array_equal(data[5].forces, raw["forces"][5])
    assert data[5].pbc.all() and data[5].energy < -350


# what lint says of each trap: nothing where it is told, an error or warning where it is not and the data can tell


def findings(name, keys=None, **units) -> dict[str, str]:
    """code -> severity, of errors and warnings."""
    return {item.code: item.severity for item in _lint_once(name, json.dumps([keys, units], sort_keys=True)).findings}


def alarms(name, keys=None, **units) -> set[str]:
    return {code for code, severity in findings(name, keys, **units).items() if severity != "note"}


@cache
def _lint_once(name: str, options: str):
    return lint(_read_once(name, options))


def advice(name, code, keys=None, **units) -> str:
    report = _lint_once(name, json.dumps([keys, units], sort_keys=True))
    return next(item.do for item in report.findings if item.code == code)


def test_trap_md17_kilocalories_that_agree_with_each_other():
    assert alarms("md17/md17_ethanol_first2000.npz", energy="kcal/mol") == set()
    assert alarms("md17/md17_ethanol_first2000.npz") == {"energy-unit"}
    assert advice("md17/md17_ethanol_first2000.npz", "energy-unit") == "units.energy: kcal/mol"


def test_trap_h2co_energies_of_atomisation_and_dipoles_that_nobody_reads():
    assert findings("h2co/h2co_3001.npz")["energy-zero"] == "note" and alarms("h2co/h2co_3001.npz") == set()
    assert "D" in {key for key, _ in read("h2co/h2co_3001.npz").census.keys}
    assert not {"dipole", "D"} & {label for label, _ in read("h2co/h2co_3001.npz").census.origins}


def test_trap_s66x8_hartree_and_gradients_called_forces():
    assert alarms("s66x8/s66x8_even.h5", {"group": "molecule"}, energy="Hartree", forces_sign="gradient") == set()
    assert alarms("s66x8/s66x8_even.h5") == {"energy-unit", "forces-sign"}
    assert alarms("s66x8/s66x8_even.h5", energy="Hartree") == {"forces-sign"}
    assert advice("s66x8/s66x8_even.h5", "forces-sign") == "units.forces_sign: gradient"


def test_trap_n2p2_atomic_units_that_agree_with_each_other():
    name = "water_optb88/water-scaled.data.xz"
    assert alarms(name, energy="Hartree", length="Bohr") == set()
    assert alarms(name) == {"length-unit"} and "units.length: Bohr" in advice(name, "length-unit")


def test_trap_mlearn_orders_that_differ_by_group():
    name, right = "mlearn_si/training.json.xz", "{AIMD-NVT: lammps, Elastic: vasp, Vacancy: lammps}"
    assert alarms(name, stress_order=MLEARN_ORDER) == set()
    assert alarms(name) == {"stress-unordered"} and right in advice(name, "stress-unordered")
    for one in ("vasp", "lammps", "ase"):
        assert alarms(name, stress_order=one) == {"stress-order"}
        assert right in advice(name, "stress-order", stress_order=one)


def test_trap_fitsnap_bar_and_the_sign_of_a_pressure():
    assert alarms("fitsnap_ta/*.xyz", stress="bar", stress_sign="compression") == set()
    for said in ({}, {"stress": "kbar", "stress_sign": "compression"}):
        with pytest.raises(DataError, match="a stress of .* eV/Å³ cannot be; set units.stress"):
            read("fitsnap_ta/*.xyz", **said)
    assert alarms("fitsnap_ta/*.xyz", stress="bar") == {"stress-sign"}
    assert advice("fitsnap_ta/*.xyz", "stress-sign", stress="bar") == "units.stress_sign: compression"


def test_trap_fitsnap_json_states_its_units_behind_a_comment():
    for folder, unit in (("Ta", "bar"), ("InP", "kbar")):
        name = f"formats/fitsnap_json/{folder}/*/*.json"
        assert f"{unit} by the file, positive: compression by the format" in str(read(name).census)
        assert alarms(name) == set()
        with pytest.raises(DataError, match="states stress in"):
            read(name, stress="GPa")


def test_trap_ecemc_virial_and_atoms_without_forces():
    assert alarms("ecemc_liquid/train.xyz.xz") == set()
    assert alarms("ecemc_liquid/train.xyz.xz", virial_sign="stress") == {"stress-sign"}


def test_trap_mos2_keys_of_gpumd():
    data = read("mos2_nep/train.xyz.xz")
    assert (data.census.labels["energy"], data.census.labels["forces"], data.census.labels["stress"]) == (104, 104, 104)
    assert alarms("mos2_nep/train.xyz.xz") == set()
    assert alarms("mos2_nep/train.xyz.xz", virial_sign="stress") == {"stress-sign"}


def test_trap_deepmd_virial():
    assert alarms("lips20_deepmd/*") == set() and alarms("water_deepmd/*") == set()
    assert alarms("lips20_deepmd/*", virial_sign="stress") == {"stress-sign"}


def test_trap_database_of_a_truncated_factor():
    database, same = "formats/ase_db_naphthalene50.db", "md17/md17_naphthalene_train.xyz.xz"
    assert alarms(database) == set() and alarms(same) == set()
    report = lint(read_dataset([SHARED / same, SHARED / database]))
    (error,) = report.of("error")
    assert error.code == "contradicting-labels" and "a factor of 0.999905" in error.what


def test_trap_small_molecules_energies_per_atom():
    name, keys = "formats/small_molecules_energy_per_atom.xyz.xz", {"energy": "dft_formation_energy_per_atom_in_eV"}
    with pytest.raises(DataError, match=r"no training structure has energy.*dft_formation_energy_per_atom_in_eV"):
        load_data(Data(train=str(SHARED / name)), 0, Loss(forces=0))
    assert alarms(name, keys, energy_per_atom=True) == set()
    assert alarms(name, keys) == {"energy-per-atom"} and "energy_per_atom: true" in advice(name, "energy-per-atom", keys)
    assert not read(name, keys)[0].pbc.any()


def test_trap_formation_energies_are_noted_and_totals_are_not():
    assert findings("spice_dipeptides/train.xyz.xz")["energy-zero"] == "note"
    for name in ("3bpa/test_300K.xyz.xz", "md17/md17_salicylic_acid_train.xyz.xz", "spice_subset/train.xyz.xz"):
        assert "energy-zero" not in findings(name) and alarms(name) == set()
        assert "total energies" in _lint_once(name, json.dumps([None, {}])).reference["zero"]


def test_trap_net_forces_of_some_millielectronvolts():
    sums = [np.abs(s.forces.sum(axis=0)).max() for s in read("spice_subset/train.xyz.xz")]
    assert 1e-4 < np.median(sums) < 0.05
    assert "net-force" not in findings("spice_subset/train.xyz.xz") | findings("spice_dipeptides/train.xyz.xz")


def test_trap_frames_with_different_labels_in_one_file():
    census = read("mlearn_si/test.xyz").census
    assert census.labels["stress"] < census.labels["forces"] == census.structures
    report = lint(read_dataset(SHARED / "ecemc_liquid" / "train.xyz.xz"))
    assert report.reference["kind"] == "isolated" and "no-forces" not in {item.code for item in report.findings}


def test_trap_3bpa_structures_in_both_training_files():
    report = lint(read_dataset([SHARED / "3bpa" / f"train_{name}.xyz" for name in ("300K", "mixedT_300K_600K")]))
    (warning,) = report.of("warning")
    assert warning.code == "duplicate-across-files" and warning.what.startswith("31 structures")
    skipped = read_dataset(
        [SHARED / "3bpa" / f"train_{name}.xyz" for name in ("300K", "mixedT_300K_600K")], skip=["duplicates"]
    )
    assert len(skipped) == 803 and "skipped 31 duplicate" in str(skipped.census)


def test_trap_vasp_outcar():
    data = read("formats/OUTCAR_h2o_md.xz")
    assert (
        data.census.labels["forces"] == data.census.labels["stress"] == len(data) == 10
        and alarms("formats/OUTCAR_h2o_md.xz") == set()
    )


def test_distorted_methane_is_no_false_alarm_but_for_atoms_too_near():
    assert alarms("random_methane/train.xyz") == {"too-near"}


@pytest.mark.parametrize("name", [name for name in READ if not READ[name][0]])
def test_no_contradiction_where_nothing_has_to_be_told(name):
    severities = findings(name)
    assert "error" not in severities.values(), severities
    assert set(severities) - {code for code in severities if severities[code] == "note"} <= {"too-near", "duplicate"}
