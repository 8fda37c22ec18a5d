"""Extended XYZ by one grammar, and XYZ as other programs write it."""

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from hypothesis import given, settings
from hypothesis import strategies as st

from mlff.basics.errors import DataError
from mlff.data.formats import read_atoms, read_structures
from mlff.data.readers.comment import parse
from mlff.data.structure import Structure

HEAD = 'Lattice="5 0 0 1 6 0 0 0 7" Properties=species:S:1:pos:R:3'
ATOMS = "O 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"


def frame(comment, atoms=ATOMS):
    return f"{len(atoms.splitlines())}\n{comment}\n{atoms}"


def read(tmp_path, text, name="a.xyz"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return list(read_atoms(tmp_path / name))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=-1.5e3", -1500.0),
        ("a=1.0D-3", 1e-3),
        ("a=1d2", 100.0),
        ("a = 1", 1),
        ('a="1"', 1),
        ("a", True),
        ("a=T", True),
        ("a=false", False),
        ("a=N,N'-dimethylurea", "N,N'-dimethylurea"),
        ('a="5\' end"', "5' end"),
        (r'a="he said \"so\", C:\\x"', 'he said "so", C:\\x'),
        ("a='single \"quotes\"'", 'single "quotes"'),
        (r'a="two\nlines"', "two\nlines"),
        ("a=b=c", "b=c"),
        ('"key with space"=2', None),
        ("a=12e4567", "12e4567"),
        ("a=0\xa0:", "0\xa0:"),
        ("a=123456789012345678901", 123456789012345678901.0),
        ("a=", ""),
        ('a=""', ""),
        ("a=T0", "T0"),
        ("a=[x,y]", "x,y"),
        ("a=1.2.3", "1.2.3"),
    ],
)
def test_values(text, value):
    found = parse(text)
    assert len(found) == 1 and found == ({"key with space": 2} if value is None else {"a": value})
    assert value is None or type(found["a"]) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('a="1 2 3"', [1, 2, 3]),
        ("a={1 2 3.5}", [1.0, 2.0, 3.5]),
        ("a=[1,2]", [1, 2]),
        ("a=[1]", [1]),
        ("a=[[1, 2.5], [3, 4]]", [[1, 2.5], [3, 4]]),
        ("a=[[T, F], [F, T]]", [[True, False], [False, True]]),
        ('a="T F T"', [True, False, True]),
        ('a="_JSON [[1, 2], [3, 4]]"', [[1, 2], [3, 4]]),
    ],
)
def test_arrays(text, value):
    (found,) = parse(text).values()
    assert isinstance(found, np.ndarray) and found.tolist() == value


def test_what_is_not_a_comment_of_extended_xyz_is_refused():
    for text, message in (
        ('a="1', "not closed"),
        ("a=[1 2", "bracket is not closed"),
        ("a=1 a=2", "'a' stands there twice"),
        ("=1", "a key is expected"),
        ('"', "quotation mark"),
    ):
        with pytest.raises(DataError, match=message):
            parse(text)


names = st.text("abcXYZ_", min_size=1, max_size=8)
words = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=12)
values = st.one_of(
    st.integers(-(10**9), 10**9), st.floats(allow_nan=False), st.booleans(), words.filter(lambda w: w.strip() == w),
    st.lists(st.floats(allow_nan=False), min_size=2, max_size=9).map(np.array), st.lists(st.integers(-9, 9), min_size=2, max_size=3).map(np.array),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(names, values, max_size=4))
def test_comments_that_ase_writes_are_read_as_they_were(info):
    """Words apart that look like something else when they are read, and backslashes, which ASE leaves as they are."""
    from ase.io.extxyz import key_val_dict_to_str

    info = {key: value for key, value in info.items() if not isinstance(value, str) or plain(value)}
    found = parse(key_val_dict_to_str(info))
    assert found.keys() == info.keys()
    for key, value in info.items():
        assert isinstance(found[key], np.ndarray) == isinstance(value, np.ndarray)
        np.testing.assert_array_equal(found[key], value)


def plain(text):
    return (
        text
        and "\\" not in text
        and isinstance(parse(f'a="{text}"').get("a") if '"' not in text else text, str)
        and "=" not in text
        and "," not in text
    )


def test_frames_of_ase_are_the_same_as_ase_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    atoms = Atoms(
        "OHHSi", positions=rng.normal(size=(4, 3)) * 3, cell=rng.normal(size=(3, 3)) + 5 * np.eye(3), pbc=(True, False, True)
    )
    atoms.calc = SinglePointCalculator(
        atoms, energy=-1.5, forces=rng.normal(size=(4, 3)), stress=rng.normal(size=6), charges=rng.normal(size=4)
    )
    atoms.info |= {"name": "a b", "tag": 3, "array": np.arange(4.0), "ok": True, "virials": rng.normal(size=(3, 3))}
    atoms.set_masses([15, 1, 2, 28.0])
    atoms.set_tags([0, 1, 2, 3])
    atoms.set_initial_charges([0.5, 0, 0, -0.5])
    atoms.set_momenta(rng.normal(size=(4, 3)))
    atoms.set_array("label", np.array(["a", "b", "c", "d"]))
    for constraint in (FixAtoms([1, 2]), [FixCartesian(0, [True, False, True])]):
        atoms.set_constraint(constraint)
        columns = [
            "symbols",
            "positions",
            "forces",
            "charges",
            "masses",
            "tags",
            "initial_charges",
            "momenta",
            "label",
            "move_mask",
        ]
        ase.io.write(tmp_path / "a.xyz", atoms, columns=columns)
        expected, (found,) = ase.io.read(tmp_path / "a.xyz"), read_atoms(tmp_path / "a.xyz")
        assert (
            (found.pbc == expected.pbc).all()
            and found.info.keys() == expected.info.keys()
            and found.arrays.keys() == expected.arrays.keys()
        )
        np.testing.assert_array_equal(found.cell, expected.cell)
        for key, array in expected.arrays.items():
            np.testing.assert_array_equal(found.arrays[key], array)
        assert found.calc.results.keys() == expected.calc.results.keys()
        for key, value in expected.calc.results.items():
            np.testing.assert_array_equal(found.calc.results[key], value)
        np.testing.assert_array_equal(found.get_masses(), atoms.get_masses())
        fixing = [c.todict() for c in expected.constraints if any(c.todict()["kwargs"].get("mask", [True]))]
        assert [c.todict() for c in found.constraints] == fixing and fixing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"T T F"', "TTF"), ("TTF", "TTF"), ('"FFF"', "FFF"), ('"f f f"', "FFF"), ('"[False, False, False]"', "FFF"), ("[T,F,T]", "TFT"),
        ('"1 1 0"', "TTF"), ("000", "FFF"), ("110", "TTF"), ('"true true false"', "TTF"), ("T", "TTT"), ("F", "FFF"), ("True", "TTT"), ("0", "FFF"),
    ],
)  # fmt: skip
def test_periodicity_in_all_its_spellings(text, expected, tmp_path):
    (atoms,) = read(tmp_path, frame(f"{HEAD} pbc={text}"))
    assert "".join("FT"[int(value)] for value in atoms.pbc) == expected


def test_periodicity_that_nobody_understands_is_refused(tmp_path):
    for text in ("xyz", '"T T"', '"2 2 2"', "slab", "7"):
        with pytest.raises(DataError, match="line 2 .the comment.: pbc=.*three of T or F"):
            read(tmp_path, frame(f"{HEAD} pbc={text}"))
    assert (
        read(tmp_path, frame(HEAD))[0].pbc.all() and not read(tmp_path, frame("Properties=species:S:1:pos:R:3"))[0].pbc.any()
    )


def test_an_apostrophe_swallows_nothing(tmp_path):
    for comment in (f"{HEAD} name=N,N'-dimethylurea energy=-3.5", f"name=N,N'-dimethylurea {HEAD} energy=-3.5"):
        (structure,), census = read_structures(write(tmp_path, frame(comment)))
        assert (
            structure.energy == -3.5
            and structure.info["name"] == "N,N'-dimethylurea"
            and structure.pbc.all()
            and census.labels["energy"] == 1
        )
        np.testing.assert_array_equal(structure.cell, [[5, 0, 0], [1, 6, 0], [0, 0, 7]])


def write(tmp_path, text, name="a.xyz"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize("key", ["stress", "REF_stress", "virial"])
def test_six_numbers_are_read_under_every_name(key, tmp_path):
    six = "0.01 0.02 0.03 0.004 0.005 0.006"
    tensor = np.array([[0.01, 0.006, 0.005], [0.006, 0.02, 0.004], [0.005, 0.004, 0.03]])
    (structure,), census = read_structures(write(tmp_path, frame(f'{HEAD} {key}="{six}"')))
    scale = -1 / structure.volume if key == "virial" else 1
    np.testing.assert_allclose(structure.stress, scale * tensor, rtol=1e-12)
    assert "xx yy zz yz xz xy assumed" in str(census)


def test_a_cell_under_another_name_is_refused(tmp_path):
    for key in ("cell", "lattice", "Box"):
        with pytest.raises(DataError, match=f"a cell under the key '{key}'; extended XYZ calls it Lattice"):
            read(tmp_path, frame(f'{key}="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3'))
    with pytest.raises(DataError, match="Lattice must be nine numbers"):
        read(tmp_path, frame('Lattice="5 5 5" Properties=species:S:1:pos:R:3'))


def test_columns_without_a_name_are_refused(tmp_path):
    with pytest.raises(DataError, match="line 3 has 5 columns, a symbol and three numbers are expected"):
        read(tmp_path, frame("water", "O 0 0 0 0.3\nH 0.96 0 0 0.1\nH -0.24 0.93 0 0.1\n"))
    with pytest.raises(DataError, match="line 4 has 5 columns, but Properties names 4"):
        read(tmp_path, frame(HEAD, "O 0 0 0\nH 0.96 0 0 9\nH -0.24 0.93 0\n"))
    for properties, message in (
        ("species:S:1", "must name the columns pos"),
        ("pos:R:3", "must name the columns"),
        ("species:S:1:pos:R", "is not NAME"),
        ("species:S:1:pos:R:3:pos:R:3", "twice"),
    ):
        with pytest.raises(DataError, match=message):
            read(tmp_path, frame(f"Properties={properties}"))


def test_elements_isotopes_and_what_is_none(tmp_path):
    (atoms,) = read(tmp_path, frame("heavy water", "O 0 0 0\nD 0.96 0 0\nT -0.24 0.93 0\n"))
    assert atoms.get_chemical_symbols() == ["O", "H", "H"] and atoms.info == {"comment": "heavy water"}
    np.testing.assert_allclose(atoms.get_masses(), [15.999, 2.0141, 3.0160], atol=1e-4)
    (atoms,) = read(tmp_path, frame("by number", "8 0 0 0\n1 0.96 0 0\n1 -0.24 0.93 0\n"))
    assert atoms.get_chemical_symbols() == ["O", "H", "H"]
    (atoms,) = read(tmp_path, frame("Properties=Z:I:1:pos:R:3", "8 0 0 0\n1 0.96 0 0\n1 -0.24 0.93 0\n"))
    assert atoms.get_chemical_symbols() == ["O", "H", "H"]
    (atoms,) = read(tmp_path, frame("", "SI 0 0 0\ncl 0 0 2\n"))
    assert atoms.get_chemical_symbols() == ["Si", "Cl"]
    for symbol in ("X", "H1", "Fe2+", "CA1", "0", "119"):
        with pytest.raises(DataError, match="is not an element"):
            read(tmp_path, frame("", f"{symbol} 0 0 0\n"))
    with pytest.raises(DataError, match="contradict"):
        read(tmp_path, frame("Properties=species:S:1:Z:I:1:pos:R:3", "O 6 0 0 0\n"))


@pytest.mark.parametrize(
    ("comment", "energy"),
    [
        (" i =       12, time =        6.000, E =       -17.1643447113", -17.1643447113),
        (" i =        3, E =       -17.1643447113", -17.1643447113),
        (" energy: -5.070544440612 gnorm: 0.000226350611 xtb: 6.6.1 (8d0f1dd)", -5.070544440612),
        ("Coordinates from ORCA-job water E -76.323456789012", -76.323456789012),
    ],
)
def test_dialects_with_energies_in_hartree(comment, energy, tmp_path):
    (structure,), census = read_structures(write(tmp_path, frame(comment)))
    assert structure.energy == pytest.approx(energy * units.Hartree, rel=1e-12)
    assert 'key "energy", calculator, Hartree by the format' in str(census)
    with pytest.raises(DataError, match="structure 1: line 7 .the comment.: 'something else' is not as"):
        read_structures(write(tmp_path, frame(comment) + frame("something else")))


def test_dialects_that_are_refused_by_name(tmp_path):
    for comment, name in (
        ("# CELL(abcABC): 12 12 12 90 90 90  Step: 0  Bead: 0 positions{angstrom}  cell{atomic_unit}", "an i-PI trajectory"),
        ("MD iter: 0", "a DFTB. trajectory"),
    ):
        with pytest.raises(DataError, match=name):
            read_structures(write(tmp_path, frame(comment)))
    for kind in ("frc", "vel"):
        with pytest.raises(DataError, match="a CP2K file of .* where positions are expected"):
            read_structures(
                write(tmp_path, frame(" i =        0, time =        0.000, E =       -17.1"), f"water-{kind}-1.xyz")
            )


def test_plain_comments_stay_text(tmp_path):
    for comment in ("5' end of the strand", 'he said "so', "opt. at [PBE", "E(SCF) = -76.3 a.u. (not converged"):
        (atoms,) = read(tmp_path, frame(comment))
        assert list(atoms.info.values())[0] == comment or "=" in comment
        Structure.from_atoms(atoms)
