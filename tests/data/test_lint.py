"""Planted faults are found with their code and place; clean data, and the data that come along, are left in peace."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mlff.data.dataset import read_dataset
from mlff.data.structure import Structure
from mlff.lint import contacts
from mlff.lint.findings import SEVERITIES, Finding
from mlff.lint.lint import lint
from tests.data import labelled

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def molecules():
    return labelled.molecules()


@pytest.fixture(scope="module")
def crystals():
    return labelled.crystals(60)


def codes(report, *severities):
    """code -> finding, of these severities (all without any)."""
    return {item.code: item for item in report.findings if item.severity in (severities or SEVERITIES)}


def turned(structure, seed=0):
    """Rotated, moved and with like atoms in another order; labels along."""
    rng = np.random.default_rng(seed)
    matrix = Rotation.random(random_state=rng).as_matrix()
    order = np.lexsort((rng.permutation(len(structure)), structure.numbers))
    positions = structure.positions[order] @ matrix + rng.normal(size=3)
    return replace(structure, numbers=structure.numbers[order], positions=positions, forces=structure.forces[order] @ matrix)


def test_clean_data_are_clean(molecules, crystals):
    for structures in (molecules, crystals):
        assert not codes(lint(labelled.dataset(structures)), "error", "warning")


def test_the_report_is_json_of_one_schema(molecules, crystals):
    keys = set()
    for structures in (molecules, crystals, molecules[:1], []):
        report = lint(labelled.dataset(structures))
        plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        keys.add(tuple(plain))
        assert plain["structures"] == len(structures)
        for finding in plain["findings"]:
            assert set(finding) == {"severity", "code", "what", "do", "where"}
    assert len(keys) == 1
    plain = lint(labelled.dataset(crystals)).to_dict()
    assert plain["distances"]["Cu-Cu"]["shortest"] == pytest.approx(2.4, abs=0.3)
    assert sum(plain["distances"]["Cu-Cu"]["histogram"]) > 1000
    assert plain["elements"] == {"Cu": 480} and plain["ranges"]["stress"]["count"] == 60
    assert plain["reference"]["rank"] == 1 and plain["cutoff"]["suggested"] >= 4


def test_the_same_data_give_the_same_report(molecules):
    assert lint(labelled.dataset(molecules)).to_dict() == lint(labelled.dataset(molecules)).to_dict()


def test_contradictions_are_errors_and_come_first(molecules, crystals):
    report = lint(labelled.dataset(labelled.changed(molecules, forces=-1)))
    assert (report.findings[0].severity, report.findings[0].code) == ("error", "forces-sign")
    assert codes(lint(labelled.dataset(labelled.changed(crystals, stress=-1))), "error").keys() == {"stress-sign"}


def test_duplicates_with_their_places(molecules):
    two = labelled.dataset([*molecules, molecules[7]])
    found = codes(lint(two), "error", "warning")
    assert found.keys() == {"duplicate"} and found["duplicate"].where == ("data.xyz, structure 60", "data.xyz, structure 7")
    other = replace(molecules[7], source="test.xyz, structure 3")
    found = codes(lint(replace(two, structures=(*molecules, other))), "error", "warning")
    assert found["duplicate-across-files"].to_dict()["where"][0] == {"file": "test.xyz", "index": 3}


def test_one_geometry_with_two_energies_is_an_error(molecules):
    other = replace(molecules[7], energy=molecules[7].energy + 1)
    found = codes(lint(labelled.dataset([*molecules, other])))
    assert found["contradicting-labels"].severity == "error"
    assert "data.xyz, structure 60" in found["contradicting-labels"].where


def test_copies_of_another_conversion_name_the_factor(molecules):
    copies = [replace(s, energy=0.999 * s.energy, source=f"b.xyz, structure {k}") for k, s in enumerate(molecules[:9])]
    found = codes(lint(replace(labelled.dataset(molecules), structures=(*molecules, *copies))))
    assert "by a factor of 0.999: another conversion" in found["contradicting-labels"].what


def test_one_energy_for_all_frames_is_an_error(molecules):
    same = [replace(s, energy=molecules[0].energy) for s in molecules]
    (error,) = lint(labelled.dataset(same)).of("error")
    assert error.code == "shared-energy" and "shared by all frames" in error.do and len(error.where) == 60
    turns = [replace(turned(molecules[0], k), energy=molecules[0].energy) for k in range(3)]
    assert "shared-energy" not in codes(lint(labelled.dataset([*turns, *molecules])))


def test_rotated_and_permuted_copies_are_the_weaker_class(molecules):
    found = codes(lint(labelled.dataset([*molecules, turned(molecules[4])])))
    assert found["equivalent"].severity == "note" and "duplicate" not in found
    assert set(found["equivalent"].where) == {"data.xyz, structure 60", "data.xyz, structure 4"}
    moved = replace(molecules[4], positions=molecules[4].positions + np.random.default_rng(0).normal(0, 0.002, (9, 3)))
    found = codes(lint(labelled.dataset([*molecules, moved])))
    assert "equivalent" not in found and "data.xyz, structure 60" in found["near-copies"].where


def test_held_out_sets_that_know_the_training_set(molecules):
    other = labelled.dataset([*labelled.molecules(5, seed=9), molecules[3], turned(molecules[8])], "test.xyz")
    report = lint(labelled.dataset(molecules), {"test": other, "clean": labelled.dataset(labelled.molecules(5, seed=8))})
    found = codes(report)
    assert found["duplicate-held-out"].where == ("test.xyz, structure 5", "data.xyz, structure 3")
    assert found["equivalent-held-out"].where == ("test.xyz, structure 6", "data.xyz, structure 8")
    assert "clean" not in " ".join(item.what for item in report.findings)


def test_outliers_with_their_places(molecules, crystals):
    structures = list(molecules)
    structures[11] = replace(structures[11], energy=structures[11].energy + 200)
    structures[23] = replace(structures[23], forces=40 * structures[23].forces)
    found = codes(lint(labelled.dataset(structures)), "error", "warning")
    assert found["outlier-energy"].where == ("data.xyz, structure 11",)
    assert found["outlier-forces"].where == ("data.xyz, structure 23",)
    structures = list(crystals)
    structures[5] = replace(structures[5], stress=50 * structures[5].stress)
    found = codes(lint(labelled.dataset(structures)), "error", "warning")
    assert found["outlier-stress"].where == ("data.xyz, structure 5",)


def test_atoms_too_near_alone_or_apart(molecules):
    structures = [replace(s, forces=None, energy=None) for s in molecules]
    near, far = structures[5].positions.copy(), structures[9].positions.copy()
    near[8] = near[0] + [0.3, 0, 0]
    far[8] += 100
    structures[5], structures[9] = replace(structures[5], positions=near), replace(structures[9], positions=far)
    found = codes(lint(labelled.dataset(structures)))
    assert found["too-near"].where == ("data.xyz, structure 5",) and "H-C of 0.300" in found["too-near"].what
    assert found["lone-atom"].where == ("data.xyz, structure 9",)
    far[7] += 100
    structures[9] = replace(structures[9], positions=far)
    found = codes(lint(labelled.dataset(structures)))
    assert found["fragments"].where == ("data.xyz, structure 9",) and "lone-atom" not in found


def test_net_forces_frozen_atoms_and_zeros(molecules):
    structures = [
        replace(s, forces=np.vstack([0 * s.forces[:3], s.forces[3:]])) if k < 30 else s for k, s in enumerate(molecules)
    ]
    found = codes(lint(labelled.dataset(structures)))
    assert len(found["net-force"].where) > 20 and "without constraints" in found["net-force"].do
    structures = [*molecules[:-1], replace(molecules[-1], forces=0 * molecules[-1].forces)]
    assert codes(lint(labelled.dataset(structures)))["zero-forces"].where == ("data.xyz, structure 59",)


def test_labels_too_large_where_nothing_can_be_compared(molecules):
    rng = np.random.default_rng(0)
    structures = [replace(s, forces=rng.normal(0, 80, s.forces.shape)) for s in molecules]
    structures = [replace(s, forces=s.forces - s.forces.mean(axis=0)) for s in structures]
    found = codes(lint(labelled.dataset(structures)))
    assert "units.forces" in found["large-forces"].do and "untested" in found


def test_reference_energies(molecules):
    data = replace(labelled.dataset(molecules), isolated_atoms={1: -100.0, 6: -100.0, 8: -100.0})
    report = lint(data)
    assert report.reference["kind"] == "isolated" and report.reference["rank"] == 1
    assert codes(lint(replace(data, isolated_atoms={1: -1e4, 6: -1e4, 8: -1e4})), "error").keys() == {"reference-energies"}
    assert "isolated-atoms-missing" in codes(lint(replace(data, isolated_atoms={1: -100.0})))
    assert "composition-rank" in codes(lint(labelled.dataset(molecules)))


def test_what_is_missing_is_noted(molecules):
    structures = [replace(s, forces=None) if k < 4 else s for k, s in enumerate(molecules)]
    assert len(codes(lint(labelled.dataset(structures)), "note")["no-forces"].where) == 4
    alone = Structure(np.array([6], np.int32), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool))
    lint(labelled.dataset([alone]))


def test_large_sets_are_sampled_and_say_so(molecules, monkeypatch):
    monkeypatch.setattr(contacts, "_MOST_STRUCTURES", 20)
    report = lint(labelled.dataset(molecules))
    assert report.looked_at == 20 and "20 of 60" in codes(report)["sampled"].what


def test_findings_in_one_line():
    finding = Finding("warning", "code", "two things", "do this", ("a.xyz, structure 1", "a.xyz, structure 2"))
    assert finding.line() == "two things (a.xyz, structure 1 and 1 more); do this"
    assert finding.line(2) == "two things (a.xyz, structure 1; a.xyz, structure 2); do this"
    assert finding.line(0) == "two things; do this"


@pytest.mark.parametrize("file", sorted(DATA.glob("*/*.xyz")), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_no_alarm_on_the_data_that_come_along(file):
    report = lint(read_dataset(file))
    assert not codes(report, "error", "warning"), report.findings


#: real data: warnings that are right
KNOWN = {
    "3bpa/train_300K.xyz": set(),
    "3bpa/test_600K.xyz.xz": set(),
    "ethanol/train_ethanol.xyz": set(),
    "rmd17_aspirin/train.xyz.xz": set(),
    "mlearn_si/train.xyz.xz": set(),
    "mlearn_cu/train.xyz.xz": {"stress-offset"},
    "inp/train.xyz.xz": {"duplicate"},
    "water_optb88/train.xyz.xz": set(),
}


@pytest.mark.parametrize("name", KNOWN)
def test_no_alarm_on_real_data(shared, name):
    report = lint(read_dataset(shared / name))
    assert codes(report, "error", "warning").keys() == KNOWN[name], report.findings
