"""Reading files: labels wherever they stand, units and signs, awkward arrays, malformed input."""

import bz2
import gzip
import lzma
import sqlite3
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from hypothesis import given, settings
from hypothesis import strategies as st

from mlff.basics.errors import ConfigError, DataError
from mlff.config.options import KeyNames, ReadOptions, Units
from mlff.data.dataset import read_dataset
from mlff.data.formats import read_atoms, read_structures
from mlff.data.labels import is_isolated_atom, label_frames
from tests import samples

SHARED = Path(__file__).parents[2].parent / "shared" / "datasets"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared reference sets are not at {SHARED}")
VOIGT = np.array([0.01, 0.02, 0.03, 0.004, 0.005, 0.006])
TENSOR = np.array([[0.01, 0.006, 0.005], [0.006, 0.02, 0.004], [0.005, 0.004, 0.03]])


def options(keys=None, **units):
    return ReadOptions(keys=KeyNames(**(keys or {})), units=Units(**units))


def water(**info):
    atoms = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    atoms.info.update(info)
    return atoms


def silicon(results=None, info=None, arrays=None):
    atoms = bulk("Si", cubic=True)
    atoms.positions[0] += 0.05
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info.update(info or {})
    for key, value in (arrays or {}).items():
        atoms.set_array(key, value)
    return atoms


def labelled(frames, **kwargs):
    return label_frames(frames, "memory", options(**kwargs))


FORCES = np.random.default_rng(0).normal(size=(8, 3))


# where labels stand


def test_labels_are_found_in_calculator_info_and_arrays():
    from_calculator = silicon({"energy": -3.0, "forces": FORCES, "stress": VOIGT})
    from_atoms = silicon(None, {"energy": -3.0, "stress": VOIGT}, {"forces": FORCES})
    renamed = silicon(None, {"REF_energy": -3.0, "REF_stress": TENSOR}, {"REF_forces": FORCES})
    nep = silicon(None, {"Energy": -3.0, "Virial": -TENSOR * silicon().get_volume()}, {"force": FORCES})
    for atoms, place in ((from_calculator, "calculator"), (from_atoms, "info"), (renamed, "info"), (nep, "info")):
        (structure,), census = labelled([atoms])
        assert structure.energy == -3.0
        np.testing.assert_array_equal(structure.forces, FORCES)
        np.testing.assert_allclose(structure.stress, TENSOR, rtol=1e-12)
        assert place in dict(census.origins)["energy"]
        assert (census.labels["energy"], census.labels["forces"], census.labels["stress"]) == (1, 1, 1)
        assert not {"energy", "REF_energy", "Energy"} & set(structure.info)


def test_named_keys_win_over_the_usual_ones():
    atoms = silicon({"energy": -3.0, "forces": FORCES}, {"pbe_e": -5}, {"pbe_f": 2 * FORCES})
    (structure,), _ = labelled([atoms], keys={"energy": "pbe_e", "forces": "pbe_f"})
    assert structure.energy == -5.0
    np.testing.assert_array_equal(structure.forces, 2 * FORCES)


def test_constraints_do_not_touch_the_forces(tmp_path):
    atoms = silicon({"energy": -3.0, "forces": FORCES})
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    ase.io.write(tmp_path / "a.traj", atoms)
    ase.io.write(tmp_path / "a.xyz", atoms, columns=["symbols", "positions", "forces", "move_mask"])
    assert "move_mask" in (tmp_path / "a.xyz").read_text()
    for name in ("a.traj", "a.xyz"):
        (structure,), _ = read_structures(tmp_path / name)
        np.testing.assert_allclose(structure.forces, FORCES, atol=1e-7)


def test_frames_that_share_an_info_dict_keep_their_own_labels():
    shared = {"energy": -1.0}
    frames = [water(), water()]
    frames[0].info = frames[1].info = shared
    structures, _ = labelled(frames)
    assert [s.energy for s in structures] == [-1.0, -1.0] and shared == {"energy": -1.0}
    assert structures[0].info is not structures[1].info


def test_labels_may_be_missing_per_structure():
    frames = [silicon({"energy": -1.0}), silicon({"forces": FORCES}), silicon(), silicon({"energy": -2.0, "stress": VOIGT})]
    structures, census = labelled(frames)
    assert [s.energy for s in structures] == [-1.0, None, None, -2.0]
    assert [s.forces is None for s in structures] == [True, False, True, True]
    assert [s.stress is None for s in structures] == [True, True, True, False]
    assert (census.structures, census.labels["energy"], census.labels["forces"], census.labels["stress"]) == (4, 2, 1, 1)


def test_contradicting_keys_are_refused_and_agreeing_ones_not():
    with pytest.raises(DataError, match=r"structure 1: energy stands under 'energy' and 'REF_energy'.*keys.energy"):
        labelled([water(energy=-1.0, REF_energy=-1.0), water(energy=-1.0, REF_energy=-2.0)])
    (structure,), _ = labelled([water(energy=-1.0, REF_energy=-1.0)])
    assert structure.energy == -1.0
    (structure,), _ = labelled([water(energy=-1.0, REF_energy=-2.0)], keys={"energy": "REF_energy"})
    assert structure.energy == -2.0
    both = silicon({"energy": -1.0}, {"energy": -2.0})
    with pytest.raises(DataError, match="'energy' stands in calculator and in info"):
        labelled([both])
    with pytest.raises(DataError, match=r"different keys in different structures \('energy' in 1, 'dft_energy' in 2\)"):
        labelled([water(energy=-1.0), water(dft_energy=-1.0), water(dft_energy=-3.0)])
    volume = silicon().get_volume()
    with pytest.raises(DataError, match="contradict each other.*virial_sign"):
        labelled([silicon({"stress": VOIGT}, {"virial": TENSOR * volume})])
    (structure,), census = labelled([silicon({"stress": VOIGT}, {"virial": -TENSOR * volume})])
    np.testing.assert_allclose(structure.stress, TENSOR)
    (structure,), _ = labelled([silicon({"stress": VOIGT}, {"virial": 5 * TENSOR})], keys={"stress": "stress"})
    np.testing.assert_allclose(structure.stress, TENSOR)


def test_a_named_key_that_is_nowhere_lists_what_there_is(tmp_path):
    path = tmp_path / "a.xyz"
    ase.io.write(path, water(REF_energy=-1.0))
    with pytest.raises(
        DataError, match=r"a.xyz: no structure has the key 'REF_energi' \(keys.energy\).*REF_energy \(info\).*did you mean"
    ):
        read_structures(path, options({"energy": "REF_energi"}))


# geometries without labels


@pytest.mark.parametrize("name", [name for name in samples.FORMATS if name not in ("extxyz", "database")])
def test_positions_of_every_format_and_of_one_index(name, tmp_path):
    path, _ = samples.FORMATS[name](tmp_path)
    expected = [atoms.positions for atoms in samples.frames()]
    scale = 1 / units.Bohr if name == "n2p2" else 1.0  # has no units of its own
    every = list(read_atoms(path))
    assert len(every) == samples.COUNT
    for atoms, positions in zip(every, expected, strict=True):
        np.testing.assert_allclose(atoms.positions, scale * positions, atol=1e-6)
    for index in (0, 2, -1, -4):
        (atoms,) = read_atoms(path, index)
        np.testing.assert_array_equal(atoms.positions, every[index].positions)
    assert list(read_atoms(path, 4)) == list(read_atoms(path, -5)) == []


def test_one_structure_of_a_format_of_ase(tmp_path):
    frames = [silicon(), silicon(), silicon()]
    frames[2].positions += 1
    frames[2].set_constraint(FixAtoms([0]))
    ase.io.write(tmp_path / "a.traj", frames)
    (last,) = read_atoms(tmp_path / "a.traj", -1)
    np.testing.assert_array_equal(last.positions, frames[2].positions)
    assert last.constraints and len(list(read_atoms(tmp_path / "a.traj"))) == 3
    assert list(read_atoms(tmp_path / "a.traj", 3)) == []
    (tmp_path / "a.traj").write_bytes((tmp_path / "a.traj").read_bytes()[:200])
    with pytest.raises(DataError, match="a.traj"):
        list(read_atoms(tmp_path / "a.traj", -1))


# units and signs


def test_units_of_energy_length_and_forces():
    atoms = silicon(None, {"energy": -3.0}, {"forces": FORCES})
    (structure,), _ = labelled([atoms], energy="Hartree", length="Bohr")
    assert structure.energy == pytest.approx(-3 * units.Hartree, rel=1e-15)
    np.testing.assert_allclose(structure.positions, atoms.positions * units.Bohr, rtol=1e-15)
    np.testing.assert_allclose(structure.cell, atoms.cell.array * units.Bohr, rtol=1e-15)
    np.testing.assert_allclose(structure.forces, FORCES * units.Hartree / units.Bohr, rtol=1e-14)
    (structure,), census = labelled([atoms], energy="Hartree", forces="kcal/mol/Angstrom", forces_sign="gradient")
    np.testing.assert_allclose(structure.forces, -FORCES * units.kcal / units.mol, rtol=1e-14)
    assert "kcal/mol/Angstrom, gradient" in str(census)
    for unit in ("eV", "eV/foot"):
        with pytest.raises(ConfigError, match="forces: Input should be 'eV/Angstrom', .*'kJ/mol/nm'"):
            read_dataset("reading.xyz", units={"forces": unit})


@pytest.mark.parametrize("given_as", [VOIGT, TENSOR, TENSOR.ravel(), VOIGT[None]])
def test_stress_shapes_units_and_signs(given_as):
    (structure,), _ = labelled([silicon(None, {"stress": given_as})])
    np.testing.assert_allclose(structure.stress, TENSOR)
    kbar = given_as * -1602.1766208
    (structure,), _ = labelled([silicon(None, {"stress": kbar})], stress="kbar", stress_sign="compression")
    np.testing.assert_allclose(structure.stress, TENSOR, rtol=1e-8)


def test_virial_becomes_a_stress_by_the_volume_in_any_handedness():
    atoms = silicon(None, {"virial": TENSOR})
    left = silicon(None, {"virial": TENSOR})
    left.set_cell(left.cell[[1, 0, 2]])
    for frame in (atoms, left):
        (structure,), _ = labelled([frame])
        np.testing.assert_allclose(structure.stress, -TENSOR / atoms.get_volume())
        (structure,), _ = labelled([frame], virial_sign="stress", energy="Hartree", length="Bohr")
        np.testing.assert_allclose(structure.stress, TENSOR * units.Hartree / (atoms.get_volume() * units.Bohr**3))


def test_stress_without_a_full_cell_is_dropped_and_counted():
    slab = silicon({"energy": -1.0, "stress": VOIGT})
    slab.pbc = (True, True, False)
    (first, second), census = labelled([slab, silicon({"energy": -1.0, "stress": VOIGT})])
    assert first.stress is None and first.energy == -1.0 and second.stress is not None
    assert census.ignored_stress == 1 and "stress ignored on 1" in str(census)
    _, census = labelled([slab])
    assert "stress 0;" in str(census)


def test_a_stress_in_the_wrong_unit_is_noticed():
    with pytest.raises(DataError, match=r"structure 0: a stress of 4e\+04 eV/Å³.*units.stress"):
        labelled([silicon(None, {"stress": VOIGT * 4e4 / 0.03})])


# arrays


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([">f8", "<f8", ">f4", "<f4", ">i4", "i8"]), st.sampled_from(["fortran", "strided", "reversed", "plain"])
)
def test_views_byte_orders_and_types_come_out_right(dtype, layout):
    values = np.round(100 * FORCES).astype(dtype)
    view = {
        "plain": values,
        "fortran": np.asfortranarray(values),
        "strided": np.repeat(values, 2, axis=1)[:, ::2],
        "reversed": values[::-1].copy()[::-1],
    }[layout]
    atoms = silicon()
    atoms.calc = SinglePointCalculator(atoms)
    atoms.calc.results = {"energy": np.array([-3], dtype)[0], "forces": view}
    atoms.arrays["positions"] = np.asfortranarray(atoms.positions.astype(">f8"))
    (structure,), _ = labelled([atoms])
    np.testing.assert_array_equal(structure.forces, np.round(100 * FORCES))
    np.testing.assert_array_equal(structure.positions, silicon().positions)
    assert structure.energy == -3.0 and isinstance(structure.energy, float)
    for array in (structure.forces, structure.positions, structure.cell):
        assert array.dtype == np.float64 and array.dtype.isnative and array.flags.c_contiguous
        assert not np.shares_memory(array, view)


# isolated atoms


def one_atom(pbc=False, cell=None, energy=-13.0, **info):
    return Atoms("H", cell=cell, pbc=pbc, info={"energy": energy, **info})


@pytest.mark.parametrize(
    ("atoms", "isolated"),
    [
        (one_atom(), True),
        (one_atom(config_type="IsolatedAtom", pbc=True, cell=[3, 3, 3]), True),
        (one_atom(Config_type="isolated_atom", pbc=True, cell=[3, 3, 3]), True),
        (one_atom(pbc=True, cell=[20, 20, 20]), True),
        (one_atom(pbc=True, cell=[20, 20, 9]), False),
        (one_atom(pbc=True, cell=[[20, 0, 0], [19.9, 3, 0], [0, 0, 20]]), False),
        (one_atom(charge=1), False),
        (one_atom(energy=None), False),
        (water(energy=-1.0, config_type="IsolatedAtom"), False),
    ],
)
def test_isolated_atoms_are_recognised(atoms, isolated):
    atoms.info = {key: value for key, value in atoms.info.items() if value is not None}
    (structure,), census = labelled([atoms])
    assert is_isolated_atom(structure) is isolated
    assert (census.isolated, census.structures) == (int(isolated), int(not isolated))


def test_isolated_atoms_without_forces_stand_beside_structures_with_them(tmp_path):
    ase.io.write(tmp_path / "a.xyz", [one_atom(config_type="IsolatedAtom"), silicon({"energy": -1.0, "forces": FORCES})])
    (atom, structure), census = read_structures(tmp_path / "a.xyz")
    assert atom.forces is None and is_isolated_atom(atom) and structure.forces is not None
    assert (census.structures, census.labels["forces"], census.isolated) == (1, 1, 1)


# formats


def test_every_road_gives_the_same_structures(tmp_path):
    rng = np.random.default_rng(1)
    frames = []
    for _ in range(3):
        atoms = silicon()
        atoms.rattle(0.1, rng=rng)
        results = {"energy": rng.normal(), "forces": rng.normal(size=(8, 3)), "stress": VOIGT * rng.normal()}
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    xyz = tmp_path / "a.xyz"
    ase.io.write(xyz, frames)
    ase.io.write(tmp_path / "a.traj", frames)
    ase.io.write(tmp_path / "a.json", frames)
    with ase.db.connect(tmp_path / "a.db") as database:
        for atoms in frames:
            database.write(atoms)
    with ase.db.connect(tmp_path / "schnetpack.db") as database:
        for atoms in frames:
            data = {key: np.atleast_1d(value) for key, value in atoms.calc.results.items()}
            bare = atoms.copy()
            database.write(bare, data=data)
    for module, suffix in ((gzip, ".gz"), (lzma, ".xz"), (bz2, ".bz2")):
        (tmp_path / f"a.xyz{suffix}").write_bytes(module.compress(xyz.read_bytes()))
    (tmp_path / "packed.traj.xz").write_bytes(lzma.compress((tmp_path / "a.traj").read_bytes()))
    for name in ("a.dat", "b@0.extxyz", "postgres.txt", "b[1].XYZ", "no_suffix"):
        (tmp_path / name).write_bytes(xyz.read_bytes())
    (tmp_path / "windows.xyz").write_text(xyz.read_text().replace("\n", "\r\n"), newline="")
    (tmp_path / "blank_lines.xyz").write_text("\n" + xyz.read_text().replace("\n8\n", "\n\n8\n") + "\n\n")
    files = [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    assert len(files) == 16
    for path in files:
        structures, census = read_structures(path)
        assert len(structures) == 3, path
        assert census.labels["energy"] == census.labels["forces"] == census.labels["stress"] == 3
        for structure, atoms in zip(structures, frames, strict=True):
            np.testing.assert_allclose(structure.positions, atoms.positions, atol=1e-7)
            np.testing.assert_allclose(structure.forces, atoms.calc.results["forces"], atol=1e-7)
            assert structure.energy == pytest.approx(atoms.calc.results["energy"], abs=1e-9)
            assert structure.source.startswith(str(path))


def test_plain_xyz_has_geometry_only(tmp_path):
    (tmp_path / "plain.xyz").write_text("3\na comment\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n")
    (structure,), census = read_structures(tmp_path / "plain.xyz")
    assert structure.formula == "H2O" and structure.energy is None and census.labels["energy"] == 0


def test_the_census_is_one_line(tmp_path):
    frames = [silicon({"energy": -1.0, "forces": FORCES, "stress": VOIGT}) for _ in range(3)]
    frames += [water(energy=-2.0), one_atom(config_type="IsolatedAtom")]
    ase.io.write(tmp_path / "train.xyz", frames)
    _, census = read_structures(tmp_path / "train.xyz")
    assert str(census).replace(str(tmp_path) + "/", "") == (
        'train.xyz: 4 structures, 3 to 8 atoms, H O Si; positions (Angstrom assumed), energy 4 (key "energy", calculator, '
        'eV assumed), forces 3 (key "forces", calculator, eV/Angstrom assumed), stress 3 (key "stress", calculator, '
        "eV/Angstrom^3, positive: tension assumed); isolated atoms 1"
    )


# malformed input: one line that names file, structure and what to do

HEADER = 'Lattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.0 pbc="F F F"'
ATOMS = "H 0 0 0 0 0 1\nH 0 0 0.8 0 0 -1\n"
GOOD = f"2\n{HEADER}\n{ATOMS}"

MALFORMED = {
    "empty file": ("", "the file is empty"),
    "blank file": ("\n \n", "holds no structures"),
    "truncated last frame": (GOOD + GOOD[: -len("H 0 0 0.8 0 0 -1\n")], "structure 1: the file ends.*2 atoms.*cut short"),
    "truncated line": (GOOD + GOOD[:-8], "structure 1: line 8 has 4 columns, but Properties names 7"),
    "wrong count of atoms": (
        GOOD.replace("2\n", "1\n", 1) + GOOD,
        "structure 1: line 4.*number of atoms is expected, found 'H 0 0 0.8",
    ),
    "count too large": (GOOD.replace("2\n", "3\n", 1) + GOOD, "structure 0: line 5 has 1 columns, but Properties names 7"),
    "no number of atoms": ("hello\n" + GOOD, "structure 0: line 1: the number of atoms"),
    "unreadable number": (GOOD + GOOD.replace("0.8", "0.8.1"), "structure 1: not extended XYZ.*0.8.1"),
    "Fortran overflow": (GOOD.replace("-1\n", "*****\n"), "structure 0: not extended XYZ.*column 'forces'"),
    "energy is a word": (
        GOOD.replace("energy=-1.0", "energy=none"),
        r"structure 0: energy \(key 'energy'\) is not a number: 'none'",
    ),
    "energy is NaN": (GOOD + GOOD.replace("-1.0", "nan"), r"structure 1: energy \(key 'energy'\) is not finite"),
    "forces are infinite": (GOOD.replace(" -1\n", " -inf\n"), r"structure 0: forces \(key 'forces'\) is not finite"),
    "two energies": (GOOD.replace("-1.0", '"-1.0 -2.0"'), r"structure 0: energy .* shape \(2,\)"),
    "forces of two columns": (
        GOOD.replace("forces:R:3", "forces:R:2").replace("0 0 1\n", "0 1\n").replace("0 0 -1\n", "0 -1\n"),
        r"structure 0: forces .* shape \(2, 2\) where \(2, 3\)",
    ),
    "columns without a name": (GOOD.replace(":forces:R:3", ""), "structure 0: line 3 has 7 columns, but Properties names 4"),
    "NaN position": (GOOD + GOOD.replace("0.8", "nan"), "structure 1: position of atom 1 is not finite"),
    "no such element": (GOOD.replace("H 0 0 0 ", "Xq 0 0 0 "), "structure 0: 'Xq' is not an element"),
    "dummy atom": (GOOD.replace("H 0 0 0 ", "X 0 0 0 "), "structure 0: 'X' is not an element"),
    "periodic without a cell": (
        GOOD.replace('Lattice="5 0 0 0 5 0 0 0 5" ', "").replace("F F F", "T F F"),
        "structure 0: periodic along a",
    ),
    "flat cell": (
        GOOD.replace("0 5 0 0 0 5", "0 5 0 5 5 0").replace("F F F", "T T T"),
        "structure 0: the cell has no volume",
    ),
    "collinear vectors": (
        GOOD.replace("0 5 0 0 0 5", "5 0 0 0 0 5").replace("F F F", "T T F"),
        "structure 0: the periodic cell vectors",
    ),
    "coincident atoms": (GOOD.replace("0.8", "0.0005"), "structure 0: atoms 0 and 1 are nearer than 0.001"),
    "coincident images": (GOOD.replace("0.8", "5.0005").replace("F F F", "T T T"), "structure 0: atoms 0 and 1 are nearer"),
    "no atoms": ("0\n\n", "structure 0.*"),
    "asymmetric stress": (
        GOOD.replace("energy=-1.0", 'virial="1 2 0 0 1 0 0 0 1"').replace("F F F", "T T T"),
        "virial.*not symmetric",
    ),
    "stress of four": (
        GOOD.replace("energy=-1.0", 'virials="1 2 0 0"').replace("F F F", "T T T"),
        r"virial.*\(4,\) where 3x3, 9 or 6",
    ),
    "prose": (
        "Dear diary,\ntoday I computed something.\n",
        "structure 0: line 1: the number of atoms is expected, found 'Dear diary,'",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_extended_xyz(case, tmp_path):
    text, message = MALFORMED[case]
    path = tmp_path / "bad.xyz"
    path.write_text(text)
    assert_refused(path, message)


def assert_refused(path, message):
    with pytest.raises(DataError, match=message) as caught:
        read_structures(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


def test_other_files_that_cannot_be_read(tmp_path):
    assert_refused(tmp_path / "nothing.xyz", "no such file")
    assert_refused(tmp_path, "is a directory")
    (tmp_path / "notes").write_text("Dear diary,\n")
    assert_refused(tmp_path / "notes", "the format is not recognised; docs/FORMATS.md lists")
    (tmp_path / "noise.xyz").write_bytes(bytes(range(256)) * 20)
    assert_refused(tmp_path / "noise.xyz", "number of atoms")
    (tmp_path / "empty.xyz.gz").write_bytes(gzip.compress(b""))
    assert_refused(tmp_path / "empty.xyz.gz", "empty")
    (tmp_path / "cut.xyz.xz").write_bytes(lzma.compress(GOOD.encode() * 50)[:-20])
    assert_refused(tmp_path / "cut.xyz.xz", "damaged or cut short")
    (tmp_path / "bad.traj").write_bytes(b"- of UlmASE-Trajectory" + b"\0" * 30)
    assert_refused(tmp_path / "bad.traj", "structure 0: cannot be read as traj")
    (tmp_path / "bad.db").write_bytes(b"SQLite format 3\0" + b"\1" * 100)
    assert_refused(tmp_path / "bad.db", "cannot be read as ASE database")
    sqlite3.connect(tmp_path / "other.db").execute("create table t (x)").connection.close()
    assert_refused(tmp_path / "other.db", "ASE database")
    (tmp_path / "list.json").write_text("[1, 2]")
    assert_refused(tmp_path / "list.json", "ASE json")


# the shared reference sets

READ = {
    "3bpa/train_300K.xyz": (500, 500, 500, 0, 0),
    "3bpa/iso_atoms.xyz": (0, 0, 0, 0, 4),
    "ethanol/train_ethanol.xyz": (1000, 1000, 1000, 0, 0),
    "rmd17_aspirin/train.xyz.xz": (1200, 1200, 1200, 0, 0),
    "spice_subset/train.xyz.xz": (479, 479, 479, 0, 0),
    "water_optb88/train.xyz.xz": (353, 353, 353, 0, 0),
    "mlearn_si/train.xyz.xz": (214, 214, 214, 202, 0),
    "mlearn_cu/train.xyz.xz": (262, 262, 262, 252, 0),
    "inp/train.xyz.xz": (1403, 1403, 1403, 1403, 0),
    "ecemc_liquid/train.xyz.xz": (150, 150, 150, 150, 3),
    "mos2_nep/train.xyz.xz": (104, 104, 104, 104, 0),
    "formats/ase_db_naphthalene50.db": (50, 50, 50, 0, 0),
    "formats/OUTCAR_h2o_md.xz": (10, 10, 10, 10, 0),
    "formats/small_molecules_energy_per_atom.xyz.xz": (985, 0, 0, 0, 0),
}


@needs_shared
@pytest.mark.parametrize("name", READ)
def test_reference_sets_are_read_in_full(name):
    structures, census = read_structures(SHARED / name)
    assert (
        census.structures,
        census.labels["energy"],
        census.labels["forces"],
        census.labels["stress"],
        census.isolated,
    ) == READ[name]
    assert len(structures) == census.structures + census.isolated


@needs_shared
def test_stress_signs_agree_with_the_slope_of_the_energy():
    told = options(stress="bar", stress_sign="compression")
    structures, _ = read_structures(SHARED / "fitsnap_ta" / "Volume_FCC.xyz", told)
    assert_slope(structures)
    with pytest.raises(DataError, match="units.stress"):
        read_structures(SHARED / "fitsnap_ta" / "Volume_FCC.xyz")


def assert_slope(structures):
    volume, energy, pressure = np.array(sorted((s.volume, s.energy, np.trace(s.stress) / 3) for s in structures)).T
    slope = np.gradient(energy, volume)[1:-1]
    assert np.corrcoef(slope, pressure[1:-1])[0, 1] > 0.999
    assert np.polyfit(slope, pressure[1:-1], 1)[0] == pytest.approx(1, abs=0.05)


@needs_shared
def test_capitalised_virial_and_singular_force():
    structures, _ = read_structures(SHARED / "mos2_nep" / "train.xyz.xz")
    raw = ase.io.read(SHARED / "mos2_nep" / "train.xyz.xz", 0)
    np.testing.assert_allclose(structures[0].stress, -raw.info["Virial"].reshape(3, 3) / raw.get_volume(), rtol=1e-9)
    np.testing.assert_array_equal(structures[0].forces, raw.arrays["force"])
