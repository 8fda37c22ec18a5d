"""The readers: every format gives the same structures, says its units, and refuses broken files in one line."""

import gzip
import json
import sys
import time
import types
import zipfile
from contextlib import suppress

import h5py
import numpy as np
import pytest
from ase import units
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlff.basics.errors import DataError, MLFFError
from mlff.basics.units import spelled
from mlff.config.options import Data, Loss, ReadOptions
from mlff.data.dataset import load_data, read_dataset
from mlff.data.formats import read_atoms, read_structures
from tests import samples

SAID = {
    "sgdml": ("E", "kcal/mol as stated", "Angstrom assumed"),
    "rmd17": ("energies", "eV assumed", "Angstrom assumed"),
    "physnet": ("E", "eV assumed", "Angstrom assumed"),
    "nequip": ("energy", "eV assumed", "Angstrom assumed"),
    "deepmd": ("energy", "eV by the format", "Angstrom by the format"),
    "ani": ("energies", "Hartree as stated", "Angstrom assumed"),
    "spice": ("dft_total_energy", "Hartree by the file", "Bohr by the file"),
    "mlearn": ("energy", "eV by the format", "Angstrom by the format"),
    "fitsnap": ("Energy", "eV by the file", "Angstrom by the file"),
    "n2p2": ("energy", "Hartree as stated", "Bohr as stated"),
    "extxyz": ("energy", "eV assumed", "Angstrom assumed"),
    "database": ("energy", "Hartree by the file", "Angstrom by the file"),
}
WITH_STRESS = {"nequip", "deepmd", "mlearn", "fitsnap", "extxyz"}


@pytest.mark.parametrize("name", samples.FORMATS)
def test_every_format_gives_the_same_structures_and_says_the_units(name, tmp_path):
    path, options = samples.FORMATS[name](tmp_path)
    data = read_dataset(path, **options)
    assert len(data) == samples.COUNT
    for structure, atoms in zip(data, samples.frames(), strict=True):
        np.testing.assert_array_equal(structure.numbers, samples.NUMBERS)
        np.testing.assert_allclose(structure.positions, atoms.positions, atol=1e-7)
        np.testing.assert_allclose(structure.forces, atoms.calc.results["forces"], atol=1e-7)
        assert structure.energy == pytest.approx(atoms.calc.results["energy"], abs=1e-8)
        assert structure.pbc.tolist() == [name in WITH_STRESS | {"n2p2"}] * 3
        if name in WITH_STRESS:
            np.testing.assert_allclose(structure.cell, atoms.cell.array, atol=1e-7)
            np.testing.assert_allclose(structure.stress, atoms.get_stress(voigt=False), atol=1e-9)
        else:
            assert structure.stress is None
    key, energy, positions = SAID[name]
    said = dict(data.census.origins)
    assert said["energy"].startswith(f'key "{key}", ') and said["energy"].endswith(energy)
    assert said["positions"] == positions
    assert "\n" not in str(data.census)


# what the single formats have of their own


def test_npz_other_keys_cells_and_stated_units(tmp_path):
    path, _ = samples.rmd17(tmp_path)
    assert read_dataset(path, keys={"energy": "old_energies"})[0].energy == read_dataset(path)[0].energy + 1
    lattice = np.array([[5.0, 1, 0], [0, 6, 0], [0, 0, 7]])
    path, _ = samples.sgdml(tmp_path, lattice=lattice, r_unit="Ang", e_unit="kcal/mol")
    data = read_dataset(path)
    np.testing.assert_array_equal(data[0].cell, lattice.T)
    assert data[0].pbc.all() and "kcal/mol by the file" in str(data.census)
    with pytest.raises(DataError, match="states energy in kcal/mol, but units.energy is eV"):
        read_dataset(path, units={"energy": "eV"})
    path, _ = samples.nequip(tmp_path, pbc=np.array([True, True, False]))
    assert read_dataset(path).census.ignored_stress == samples.COUNT


def test_physnet_rows_of_different_length(tmp_path):
    count = np.array([3, 2, 3, 1])
    path, _ = samples.physnet(tmp_path, N=count)
    structures, _ = read_structures(path)
    assert [len(structure) for structure in structures] == count.tolist()


def test_deepmd_without_cells_and_with_mixed_types(tmp_path):
    system, _ = samples.deepmd(tmp_path)
    (system / "nopbc").touch()
    for box in system.glob("set.*/box.npy"):
        box.unlink()
    data = read_dataset(system)
    assert not data[0].pbc.any() and data.census.ignored_stress == samples.COUNT
    for folder in system.glob("set.*"):
        n = len(np.load(folder / "energy.npy"))
        np.save(folder / "real_atom_types.npy", np.tile([1, 0, -1], (n, 1)))
    (system / "type.raw").write_text("0 0 0")
    assert [s.formula for s in read_dataset(system)] == ["HO"] * samples.COUNT
    samples.deepmd(tmp_path, "other")
    assert len(read_dataset(tmp_path / "*")) == 2 * samples.COUNT


def test_hdf5_groups_links_and_units(tmp_path):
    path, _ = samples.ani(tmp_path)
    options = {"units": {"energy": "Hartree", "forces_sign": "gradient"}, "keys": {"group": "molecule"}}
    assert [s.group for s in read_dataset(path, **options)] == ["water/mol00"] * 2 + ["water/mol01"] * 2
    with h5py.File(path, "a") as file:
        file["again"] = h5py.ExternalLink("elsewhere.h5", "/water")
        file["soft"] = h5py.SoftLink("/water/mol00")
        file["water/loop"] = file["water"]
    assert len(read_dataset(path, **options)) == samples.COUNT
    path, _ = samples.spice(tmp_path, stated=False)
    data = read_dataset(path)
    assert "Hartree/Bohr, gradient by the format" in str(data.census)
    assert read_dataset(path, keys={"energy": "formation_energy"})[0].energy == 0
    path, _ = samples.spice(tmp_path)
    with pytest.raises(DataError, match="states length in Bohr, but units.length is Angstrom"):
        read_dataset(path, units={"length": "Angstrom"})


def test_mlearn_stresses_need_an_order(tmp_path):
    path, _ = samples.mlearn(tmp_path)
    data = read_dataset(path)
    assert data.census.labels["stress"] == 0 and data.census.unordered_stress == samples.COUNT
    assert "the order of its six numbers is not known, say units.stress_order" in str(data.census)
    data = read_dataset(path, units={"stress_order": {"Elastic": "vasp"}})
    assert (data.census.labels["stress"], data.census.unordered_stress) == (2, 2)
    assert [s.group for s in data] == ["AIMD", "Elastic"] * 2
    swapped = read_dataset(path, units={"stress_order": "vasp"})
    assert abs(swapped[0].stress - samples.frames()[0].get_stress(voigt=False)).max() > 1e-4


def test_fitsnap_units_are_those_of_the_file(tmp_path):
    path, _ = samples.fitsnap(tmp_path)
    with pytest.raises(DataError, match="fitsnap.json: states stress in kbar, but units.stress is bar"):
        read_dataset(path, units={"stress": "bar"})
    assert len(read_dataset(path, units={"stress": "kbar"})) == samples.COUNT
    path, _ = samples.fitsnap(tmp_path, lambda dataset: dataset.update(StressStyle="psi"))
    assert "kbar as stated" in str(read_dataset(path, units={"stress": "kbar"}).census).replace(
        ", positive: compression", ""
    )
    path, _ = samples.fitsnap(tmp_path, lambda dataset: dataset.update(StressStyle="bar"))
    assert read_dataset(path)[0].stress[0, 0] == pytest.approx(samples.frames()[0].get_stress()[0] / 1000)
    path, _ = samples.fitsnap(tmp_path, lambda dataset: dataset.update(EnergyStyle="Hartree"))
    assert read_dataset(path)[0].energy == pytest.approx(samples.frames()[0].calc.results["energy"] * units.Hartree)


def test_units_as_files_spell_them():
    assert spelled("electronvoltperangstrom") == spelled("eV/Ang") == "eV/Angstrom"
    assert spelled("kB") == "kbar" and spelled("Ha") == "Hartree" and spelled("hartree/bohr") == "Hartree/Bohr"
    assert spelled("kcal/mol/Ang") == "kcal/mol/Angstrom" and spelled("kcal/mol") == "kcal/mol"
    assert spelled("furlong") is None and spelled("eV/furlong") is None and spelled("") is None


# broken files


def npz(maker, **changes):
    return lambda folder: maker(folder, **changes)[0]


def huge_npz(folder):
    """The header promises 10^9 atoms."""
    path, _ = samples.sgdml(folder)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["R.npy"] = members["R.npy"].replace(b"(4, 3, 3), }          ", b"(4, 1000000000, 3), } ")
    assert b"1000000000" in members["R.npy"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def pickled(folder):
    return samples.sgdml(folder, z=np.array([8, 1, 1], dtype=object))[0]


def cut(maker, keep=0.6):
    def make(folder):
        path, _ = maker(folder)
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
        return path

    return make


def deepmd(change):
    def make(folder):
        system, _ = samples.deepmd(folder)
        change(system)
        return system

    return make


def npy(name, array):
    return deepmd(lambda system: np.save(system / "set.000" / name, array))


def long_npy(system):
    file = system / "set.000" / "coord.npy"
    file.write_bytes(file.read_bytes().replace(b"(3, 9), }          ", b"(3, 1000000000), } "))
    assert b"1000000000" in file.read_bytes()


def hdf5(maker, change):
    def make(folder):
        path, _ = maker(folder)
        with h5py.File(path, "a") as file:
            change(file)
        return path

    return make


def broken_heap(folder):
    path, _ = samples.spice(folder)
    content = path.read_bytes()
    text = content.index(b"hartree/bohr")
    path.write_bytes(content[: text - 8] + (229).to_bytes(8, "little") + content[text:])
    return path


def replaced(group, key, **dataset):
    def change(file):
        del file[group][key]
        file[group].create_dataset(key, **dataset)

    return change


def entry(**changes):
    return lambda folder: samples.mlearn(folder, lambda entries: entries[1].update(changes))[0]


def configuration(**changes):
    return lambda folder: samples.fitsnap(folder, lambda dataset: dataset["Data"][1].update(changes))[0]


def block(old, new, count=1):
    return lambda folder: samples.n2p2(folder, lambda text: text.replace(old, new, count))[0]


def text(name, content):
    def make(folder):
        (folder / name).write_text(content)
        return folder / name

    return make


NAN = np.full((4, 3, 3), np.nan)
BROKEN = {
    "npz cut short": (cut(samples.sgdml), "cannot be read as npz"),
    "npz with unknown keys": (
        npz(samples.sgdml, z=None, R=None, a=np.zeros(3)),
        "no known set of keys, found E, F, a .*sGDML: R, z",
    ),
    "npz of pickles": (pickled, "key 'z' holds Python objects, which are not loaded"),
    "npz that promises 10^9 atoms": (huge_npz, "key 'R' promises the shape .*1000000000.*damaged"),
    "npz with wrong forces": (npz(samples.sgdml, F=np.zeros((4, 2, 3))), r"key 'F' has the shape \(4, 2, 3\)"),
    "npz with one energy": (npz(samples.rmd17, energies=np.zeros(1)), r"key 'energies' has the shape \(1,\)"),
    "npz with flat positions": (npz(samples.sgdml, R=np.zeros((4, 9))), r"key 'R' has the shape \(4, 9\)"),
    "npz with no structures": (
        npz(samples.rmd17, coords=np.zeros((0, 3, 3)), energies=np.zeros(0), forces=np.zeros((0, 3, 3))),
        "no structures",
    ),
    "npz with NaN energy": (
        npz(samples.rmd17, energies=np.array([1, np.nan, 1, 1])),
        r"structure 1: energy \(key 'energies'\) is not finite",
    ),
    "npz with NaN positions": (npz(samples.sgdml, R=NAN), "structure 0: position of atom 0 is not finite"),
    "npz with impossible atoms": (npz(samples.sgdml, z=np.array([8, 1, 2**40 + 1])), "key 'z': atomic numbers"),
    "npz with text for atoms": (npz(samples.sgdml, z=np.array(["O", "H", "Q"])), "key 'z': 'Q' is not an element"),
    "npz that counts too many": (npz(samples.physnet, N=np.full(4, 9)), "key 'N': numbers of atoms between 1 and 5"),
    "npz that counts padding": (npz(samples.physnet, N=np.full(4, 4)), "key 'N': counts more atoms .* structure 0"),
    "npz with a padded hole": (npz(samples.sgdml, z=np.array([8, 0, 1])), "structure 0: has an atom of atomic number 0"),
    "npz with a wrong cell": (npz(samples.nequip, cell=np.zeros((2, 3))), r"key 'cell' has the shape \(2, 3\)"),
    "DeePMD without elements": (deepmd(lambda s: (s / "type_map.raw").unlink()), "type_map.raw: cannot be read"),
    "DeePMD with strange elements": (
        deepmd(lambda s: (s / "type_map.raw").write_text("H Q")),
        "type_map.raw: 'Q' is not an element",
    ),
    "DeePMD with text for types": (deepmd(lambda s: (s / "type.raw").write_text("1 H 0")), "type.raw: whole numbers"),
    "DeePMD without types": (deepmd(lambda s: (s / "type.raw").write_text("")), "type.raw: names no atoms"),
    "DeePMD with too many types": (
        deepmd(lambda s: (s / "type.raw").write_text("1 0 7")),
        "type 7 does not stand in type_map",
    ),
    "DeePMD of another size": (
        deepmd(lambda s: (s / "type.raw").write_text("1 0")),
        r"set.000/coord.npy: has the shape \(3, 9\)",
    ),
    "DeePMD without cells": (
        deepmd(lambda s: (s / "set.001" / "box.npy").unlink()),
        "structure 3: set.001/box.npy is missing.*nopbc",
    ),
    "DeePMD without sets": (deepmd(lambda s: [d.rename(s / d.name[4:]) for d in s.glob("set.*")]), "no set"),
    "DeePMD without positions": (deepmd(lambda s: (s / "set.000" / "coord.npy").unlink()), "set.000/coord.npy is missing"),
    "DeePMD with fewer energies": (npy("energy.npy", np.zeros(2)), r"energy.npy: has the shape \(2,\)"),
    "DeePMD of pickles": (npy("force.npy", np.array([{}] * 27)), "force.npy: is no whole npy file"),
    "DeePMD that promises 10^9 atoms": (deepmd(long_npy), "coord.npy: is no whole npy file"),
    "DeePMD with an empty file": (
        deepmd(lambda s: (s / "set.000" / "coord.npy").write_bytes(b"")),
        "coord.npy: is no whole npy",
    ),
    "DeePMD with NaN forces": (
        npy("force.npy", np.full((3, 9), np.nan)),
        r"structure 0: forces \(key 'force'\) is not finite",
    ),
    "DeePMD with words": (npy("force.npy", np.full((3, 9), "x")), "force.npy: holds <U1"),
    "HDF5 cut short": (cut(samples.ani), "cannot be read as HDF5"),
    "HDF5 of something else": (
        hdf5(samples.ani, lambda f: f.move("water", "x") or [f["x"][m].pop("species") for m in f["x"]]),
        "no group holds .* at the top are x",
    ),
    "HDF5 of another count": (
        hdf5(samples.ani, replaced("water/mol01", "energies", data=np.zeros(3))),
        r"structure 2: group 'water/mol01': 'energies' has the shape \(3,\)",
    ),
    "HDF5 of another size": (
        hdf5(samples.ani, replaced("water/mol00", "species", data=[8, 1])),
        r"'species' has the shape \(2,\) where \(3,\)",
    ),
    "HDF5 with strange elements": (
        hdf5(samples.ani, replaced("water/mol00", "species", data=[b"O", b"H", b"Q"])),
        "'species': 'Q' is not an element",
    ),
    "HDF5 with references for elements": (
        hdf5(samples.ani, replaced("water/mol00", "species", shape=(3,), dtype=h5py.ref_dtype)),
        "'species'.* is not an element",
    ),
    "HDF5 with flat positions": (
        hdf5(samples.ani, replaced("water/mol00", "coordinates", data=np.zeros((2, 9)))),
        r"\(2, 9\) where \(structures",
    ),
    "HDF5 with NaN": (
        hdf5(samples.ani, replaced("water/mol01", "energies", data=[0, np.nan])),
        r"structure 3: energy \(key 'energies'\) is not finite",
    ),
    "HDF5 that promises 10^9 atoms": (
        hdf5(samples.ani, replaced("water/mol00", "coordinates", shape=(2, 10**9, 3), dtype="f8", chunks=(1, 1000, 3))),
        r"where \(1000000000,\) or \(2, 1000000000\) is expected",
    ),
    "HDF5 that promises 10^9 frames": (
        hdf5(samples.ani, replaced("water/mol00", "coordinates", shape=(10**9, 3, 3), dtype="f8", chunks=(1000, 3, 3))),
        "'coordinates' promises 72 GB",
    ),
    "HDF5 with a broken heap": (broken_heap, "a heap of strings is broken"),
    "HDF5 of two manners": (
        hdf5(samples.spice, lambda f: f.move("b/conformations", "b/coordinates")),
        "some groups hold conformations and some coordinates",
    ),
    "HDF5 of two units": (
        hdf5(samples.spice, lambda f: f["b/conformations"].attrs.update(units="angstrom")),
        "group 'b': 'conformations' is in angstrom",
    ),
    "mlearn cut short": (cut(samples.mlearn), "the file ends in the middle of an entry"),
    "mlearn of something else": (text("a.json", '[{"a": 1}]'), "structure 0: the entry lacks 'structure'"),
    "mlearn of numbers": (entry(outputs=[1]), "structure 1: the entry is not built as"),
    "mlearn without sites": (entry(structure={"lattice": {"matrix": np.eye(3).tolist()}, "sites": []}), "structure 1"),
    "mlearn without a cell": (entry(structure={"sites": []}), "structure 1: the entry lacks 'lattice'"),
    "mlearn with wrong forces": (
        entry(outputs={"energy": 1.0, "forces": [[0, 0, 0]]}),
        r"structure 1: outputs.forces: has the shape \(1, 3\)",
    ),
    "mlearn with ragged forces": (
        entry(outputs={"energy": 1.0, "forces": [[0, 0, 0], [1]]}),
        "structure 1: outputs.forces: numbers in the shape",
    ),
    "mlearn with NaN": (entry(outputs={"energy": float("nan")}), r"structure 1: energy \(key 'energy'\) is not finite"),
    "mlearn with a word": (entry(outputs={"energy": "low"}), r"structure 1: energy \(key 'energy'\) is not a number"),
    "FitSNAP cut short": (cut(samples.fitsnap), "cannot be read as FitSNAP JSON"),
    "FitSNAP without data": (text("a.json", '# x\n{"Dataset": {"Data": 3}}'), "'Dataset' with a list 'Data'"),
    "FitSNAP in a strange unit": (
        lambda d: samples.fitsnap(d, lambda s: s.update(StressStyle="psi"))[0],
        "states stress in 'psi', a unit that is not known; say units.stress",
    ),
    "FitSNAP of types": (
        lambda d: samples.fitsnap(d, lambda s: s.update(AtomTypeStyle="number"))[0],
        "AtomTypeStyle is 'number'",
    ),
    "FitSNAP of another count": (configuration(NumAtoms=7), "structure 1: NumAtoms is 7, but there are 3"),
    "FitSNAP with wrong forces": (configuration(Forces=[[1, 2]]), "structure 1: Forces: has the shape"),
    "FitSNAP without positions": (configuration(Positions=None), "structure 1: Positions: "),
    "FitSNAP with strange elements": (
        configuration(AtomTypes=["O", "H", "Q"]),
        "structure 1: AtomTypes: 'Q' is not an element",
    ),
    "FitSNAP with NaN": (configuration(Energy=float("nan")), r"structure 1: energy \(key 'Energy'\) is not finite"),
    "FitSNAP with flat stress": (configuration(Stress=[1, 2, 3]), r"structure 1: stress \(key 'Stress'\) has shape \(3,\)"),
    "n2p2 cut short": (cut(samples.n2p2), "line .*(columns|cut short)"),
    "n2p2 without an end": (block("end\n", ""), "structure 0: line 11: end is expected, found 'begin'"),
    "n2p2 with a strange keyword": (block("energy", "enrgy"), "structure 0: line 9: end is expected, found 'enrgy"),
    "n2p2 with few columns": (block(" 0.0 0.0 ", " "), "structure 0: line 6: atom has 7 columns where 9"),
    "n2p2 with a word": (block("energy -", "energy x"), "structure 0: the block that ends in line 11: could not convert"),
    "n2p2 with two energies": (
        block("charge 0.0", "energy -1"),
        "structure 0: the block that ends in line 11: .*one energy",
    ),
    "n2p2 without atoms": (text("input.data", "begin\nenergy 0\nend\n"), "structure 0: the block that ends in line 3"),
    "n2p2 with strange elements": (block(" H ", " Q "), "structure 0: atom: 'Q' is not an element"),
    "n2p2 with NaN": (block("energy -", "energy nan #"), r"structure 0: energy \(key 'energy'\) is not finite"),
    "extxyz that promises 10^9 atoms": (
        text("a.xyz", "1000000000\n\nH 0 0 0\n"),
        "line 1 promises 1000000000 atoms.*cut short",
    ),
    "extxyz with a long count": (text("a.xyz", "9" * 30 + "\n\nH 0 0 0\n"), "line 1: the number of atoms is expected"),
    "extxyz with bytes in the comment": (
        text("a.xyz", "1\nenergy=\x02\nH 0 0 0\n"),
        "line 2 .the comment.: holds bytes that are no text",
    ),
    "extxyz with an open quote": (
        text("a.xyz", '1\nProperties=species:S:1:pos:R:3 energy="-1\nH 0 0 0\n'),
        "line 2 .the comment.: the value of 'energy': a quotation mark",
    ),
    "extxyz with an open bracket": (
        text("a.xyz", "1\nProperties=species:S:1:pos:R:3 a=[1 2 energy=-1\nH 0 0 0\n"),
        "line 2 .the comment.: the value of 'a': a bracket",
    ),
    "extxyz with two energies": (
        text("a.xyz", "1\nProperties=species:S:1:pos:R:3 energy=-1 energy=-2\nH 0 0 0\n"),
        "line 2 .the comment.: the key 'energy' stands there twice",
    ),
    "folder of DeePMD systems": (
        lambda d: samples.deepmd(d)[0].parent,
        "is a directory and no DeePMD system.*name the DeePMD systems in it",
    ),
    "folder of nothing": (lambda d: d, r"is a directory and no DeePMD system .*name the files in it"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_in_one_line(case, tmp_path):
    make, message = BROKEN[case]
    path = make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        read_structures(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 500


@pytest.mark.parametrize(
    "content",
    ["# " * 2000, "1\nProperties=species:S:1:pos:R:3 " + "a" * 1_000_000 + "\nH 0 0 0\n", "[" * 100_000, "[{" * 100_000],
)
def test_strange_text_takes_no_time(content, tmp_path):
    path = tmp_path / "strange"
    path.write_text(content)
    start = time.perf_counter()
    with suppress(DataError):
        read_structures(path)
    assert time.perf_counter() - start < 10


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("mlff.data.readers.arrays._UNPACKED", 10**6)
    np.savez_compressed(tmp_path / "bomb.npz", R=np.zeros((100_000, 3, 3)), z=np.ones(3))
    (tmp_path / "bomb.xyz.gz").write_bytes(gzip.compress(b" " * 10**7))
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file["species"] = [1, 1, 1]
        file.create_dataset("coordinates", data=np.zeros((100_000, 3, 3)), compression="gzip")
    for name in ("bomb.npz", "bomb.xyz.gz", "bomb.h5"):
        with pytest.raises(DataError, match="promises 0.0[01].* GB, but only"):
            read_structures(tmp_path / name)


def test_a_stress_in_no_known_order_cannot_be_learned(tmp_path):
    path, _ = samples.mlearn(tmp_path)
    with pytest.raises(DataError, match=r"has stress in a known order \(units.stress_order\), but loss.stress has weight 1"):
        load_data(Data(train=str(path)), 0, Loss(stress=1))


def test_frames_that_share_their_forces_are_refused(tmp_path):
    path, _ = samples.rmd17(tmp_path, forces=np.tile(samples.arrays(False)["forces"][:1], (4, 1, 1)))
    with pytest.raises(DataError, match="all 4 structures have the very same forces in different geometries"):
        read_structures(path)
    same = np.tile(samples.arrays(False)["positions"][:1], (4, 1, 1)) + np.arange(4)[:, None, None]
    path, _ = samples.rmd17(tmp_path, coords=same, forces=np.tile(samples.arrays(False)["forces"][:1], (4, 1, 1)))
    assert len(read_structures(path)[0]) == 4


def test_energies_per_atom(tmp_path):
    path, _ = samples.rmd17(tmp_path)
    data = read_dataset(path, units={"energy_per_atom": True})
    assert data[0].energy == 3 * read_dataset(path)[0].energy and "per atom as stated" in str(data.census)


@pytest.mark.parametrize(("name", "order"), [("ase", (3, 4, 5)), ("vasp", (5, 3, 4)), ("lammps", (5, 4, 3))])
def test_orders_of_six_numbers(tmp_path, name, order):
    stress = samples.frames()[0].calc.results["stress"]
    column = np.tile([*stress[:3], *stress[list(order)]], (4, 1))
    path, _ = samples.nequip(tmp_path, virial=np.zeros(1), stress=column)
    data = read_dataset(path, units={"stress_order": name})
    np.testing.assert_allclose(data[0].stress, samples.frames()[0].get_stress(voigt=False), atol=1e-12)
    assert read_dataset(path, units={"stress_order": "unknown"}).census.unordered_stress == 4


# files damaged at random


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    made = {name: make(folder) for name, make in samples.FORMATS.items()}
    return {
        name: ((path / "set.000" / "coord.npy" if path.is_dir() else path), path, options)
        for name, (path, options) in made.items()
    }


@pytest.mark.parametrize("name", samples.FORMATS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_refused_or_does_not_matter(name, originals, data):
    file, path, options = originals[name]
    good = file.read_bytes()
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4), label="changes")):
        place = data.draw(st.integers(0, len(content) - 1), label="place")
        piece = data.draw(
            st.binary(max_size=6) | st.sampled_from([b"nan", b"1e999", b"9" * 12, b"\0" * 8, b"]", b'"']), label="piece"
        )
        content[place : place + data.draw(st.sampled_from([0, 1, len(piece), 300]), label="cut")] = piece
        content = content or bytearray(b" ")
    file.write_bytes(content)
    try:
        read_structures(path, ReadOptions(**options))
    except MLFFError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    finally:
        file.write_bytes(good)


def test_dpdata_reads_what_else_it_knows_by_name(tmp_path, monkeypatch):
    """With the package in place of which a stand-in stands here: the units and signs are dpdata's."""
    cells, virials = np.array([np.eye(3) * 10.0] * 2), np.array([np.diag([1.0, 2.0, 3.0])] * 2)
    data = {"atom_names": ["O", "H"], "atom_types": np.array([0, 1, 1]), "cells": cells, "virials": virials}
    data |= {"coords": np.arange(18.0).reshape(2, 3, 3), "energies": np.array([-1.0, -2.0]), "forces": np.ones((2, 3, 3))}
    package, formats = types.ModuleType("dpdata"), types.ModuleType("dpdata.format")
    package.LabeledSystem = lambda file, fmt: types.SimpleNamespace(data=data if fmt == "movement" else {})
    formats.Format = types.SimpleNamespace(get_formats=lambda: {"movement": None})
    path = tmp_path / "MOVEMENT"
    path.write_text("3 atoms, Iteration = 0\n")
    with pytest.raises(DataError, match="dpdata turns others into"):
        read_structures(path, ReadOptions())
    monkeypatch.setitem(sys.modules, "dpdata", package)
    monkeypatch.setitem(sys.modules, "dpdata.format", formats)
    structures, census = read_structures(path, ReadOptions())
    assert [s.energy for s in structures] == [-1.0, -2.0] and structures[0].numbers.tolist() == [8, 1, 1]
    assert structures[1].forces.shape == (3, 3) and np.allclose(structures[0].stress, -np.diag([1.0, 2.0, 3.0]) / 1000)
    assert "by the format" in str(census)


def test_hdf5_of_ani2x_has_the_elements_of_every_row(tmp_path):
    """Grouped by the number of atoms, so that the molecules of a group differ."""
    with h5py.File(tmp_path / "ani2x.h5", "w") as file:
        group = file.create_group("003")
        group["species"] = np.array([[8, 1, 1], [16, 1, 1]])
        group["coordinates"] = np.array(
            [[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [[0, 0, 0], [1.34, 0, 0], [-0.05, 1.34, 0]]]
        )
        group["energies"] = [-76.4, -399.4]
        group["forces"] = np.zeros((2, 3, 3))
    data = read_dataset(tmp_path / "ani2x.h5", units={"energy": "Hartree"})
    assert [s.formula for s in data] == ["H2O", "H2S"] and data[1].energy == pytest.approx(-399.4 * units.Hartree)
    with h5py.File(tmp_path / "ani2x.h5", "a") as file:
        del file["003/species"]
        file["003/species"] = np.array([[8, 1], [16, 1]])
    with pytest.raises(
        DataError, match=r"group '003': 'species' has the shape \(2, 2\) where \(3,\) or \(2, 3\) is expected"
    ):
        read_dataset(tmp_path / "ani2x.h5")


def test_hdf5_of_transition1x_is_in_ev(tmp_path):
    with h5py.File(tmp_path / "t1x.h5", "w") as file:
        group = file.create_group("data/H2O/rxn0001")
        group["atomic_numbers"] = [8, 1, 1]
        group["positions"] = np.array([[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]] * 2)
        group["wB97x_6-31G(d).energy"] = [-2078.3, -2079.8]
        group["wB97x_6-31G(d).forces"] = np.full((2, 3, 3), 0.5)
        file["train"] = h5py.SoftLink("/data")
    data = read_dataset(tmp_path / "t1x.h5")
    assert len(data) == 2 and data[1].energy == -2079.8 and (data[0].forces == 0.5).all()
    assert 'key "wB97x_6-31G(d).energy", info, eV by the format' in str(data.census)


def silicon_of_pymatgen(x=1.35, species=({"element": "Si", "occu": 1},)):
    sites = [
        {"species": [{"element": "Si", "occu": 1}], "abc": [0, 0, 0], "xyz": [0, 0, 0], "label": "Si", "properties": {}}
    ]
    sites.append({"species": list(species), "abc": [0.25] * 3, "xyz": [x, 1.35, 1.35], "label": "Si", "properties": {}})
    lattice = {"matrix": [[0, 2.7, 2.7], [2.7, 0, 2.7], [2.7, 2.7, 0]], "pbc": [True, True, True]}
    return {"@module": "pymatgen.core.structure", "@class": "Structure", "charge": 0, "lattice": lattice, "sites": sites}


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path


def test_pymatgen_mptrj(tmp_path, monkeypatch):
    labels = {
        "corrected_total_energy": -11.0,
        "uncorrected_total_energy": -10.8,
        "energy_per_atom": -5.4,
        "force": [[0.01, 0, 0], [-0.01, 0, 0]],
    }
    labels |= {"stress": [[10.0, 0, 1], [0, 20.0, 0], [1, 0, 30.0]], "magmom": None}
    frames = {f"mp-149-0-{k}": {"structure": silicon_of_pymatgen(1.3 + 0.02 * k)} | labels for k in range(3)}
    frames["mp-149-0-1"]["force"] = [[0.02, 0, 0], [-0.02, 0, 0]]
    path = write_json(tmp_path / "MPtrj_2022.9_full.json", {"mp-149": frames, "mp-150": frames})
    for piece in (1 << 20, 50):
        monkeypatch.setattr("mlff.data.readers.pymatgen._PIECE", piece)
        data = read_dataset(path)
        assert (
            len(data) == 6
            and data[0].energy == -10.8
            and data[4].positions[1, 0] == 1.32
            and data[4].info["id"] == "mp-149-0-1"
        )
    expected = -np.array([[10.0, 0, 1], [0, 20.0, 0], [1, 0, 30.0]]) * 0.1 * units.GPa
    np.testing.assert_allclose(data[0].stress, expected, rtol=1e-12)
    np.testing.assert_array_equal(data[0].forces, labels["force"])
    assert 'key "uncorrected_total_energy", info, eV by the format' in str(data.census)
    path.write_text(path.read_text()[:-200])
    with pytest.raises(DataError, match="structure 3: the file ends in the middle of an entry"):
        read_dataset(path)


def test_pymatgen_matpes_and_structures_by_themselves(tmp_path):
    entry = {
        "structure": silicon_of_pymatgen(),
        "energy": -10.8,
        "forces": [[0.01, 0, 0], [-0.01, 0, 0]],
        "stress": [1, 2, 3, 4, 5, 6],
        "matpes_id": "m-1",
    }
    path = write_json(tmp_path / "MatPES.json", [entry, entry])
    data = read_dataset(path)
    assert data[0].energy == -10.8 and data.census.unordered_stress == 2
    data = read_dataset(path, units={"stress_order": "vasp"})
    assert data[0].stress[0, 1] == pytest.approx(-4 * 0.1 * units.GPa)
    for content in (silicon_of_pymatgen(), [silicon_of_pymatgen()]):
        (atoms,) = read_atoms(write_json(tmp_path / "structure.json", content))
        assert atoms.pbc.all() and atoms.positions[1].tolist() == [1.35] * 3
    molecule = {"@class": "Molecule"} | {
        key: value
        for key, value in silicon_of_pymatgen(species=({"element": "D", "occu": 1},)).items()
        if key not in ("lattice", "@class")
    }
    (atoms,) = read_atoms(write_json(tmp_path / "molecule.json", molecule | {"charge": 1}))
    assert not atoms.pbc.any() and atoms.info["charge"] == 1 and atoms.get_masses()[1] == pytest.approx(2.014, abs=1e-3)
    half = silicon_of_pymatgen(species=({"element": "Si", "occu": 0.5}, {"element": "Ge", "occu": 0.5}))
    with pytest.raises(DataError, match="occupied in part"):
        list(read_atoms(write_json(tmp_path / "half.json", half)))
