"""Extended XYZ that is written: ASE and mlff read it back, and what it does not hold is left out and named."""

import io

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLengths
from ase.io import read, write
from ase.spacegroup import Spacegroup
from typer.testing import CliRunner

from mlff.cli import app
from mlff.data.formats import read_atoms
from mlff.data.writing import tell_left_out, write_frames
from tests.potentials import morse

KEPT = {
    "quotes": 'say "hi" to N,N\'-dimethylurea',
    "backslash": "C:\\data\\",
    "equals": "a=b",
    "again": "b=b",
    "unicode": "naïve 水",
    "brackets": "a{b[c",
    "properties": "Properties=species:S:1",
    "dict": {"a": 1, "b": 'x "y"'},
    "nested": [[1, 2], [3, "x"]],
    "words": ["a", "b"],
    "nan": np.nan,
    "inf": -np.inf,
    "float32": np.float32(1.5),
    "int64": np.int64(3),
    "bool": np.bool_(False),
    "list": [1, 2],
    "nine": np.arange(9.0),
    "matrix": np.arange(9.0).reshape(3, 3),
    "virial": np.arange(9.0).reshape(3, 3),
    "species": "H",
    "pos": 3,
    "long": np.arange(1000.0) / 7,
    "config-type": "bulk",
}
LEFT = {
    "newline": "ENCUT = 520\nISMEAR = 0\n",
    "tab": "a\tb",
    "empty": "",
    "none": None,
    7: "seven",
    "a key": 1,
    "integer keys": {1: 2},
    "integers": {1: 2},
    "complex": 1j,
    "longer": np.arange(1001),
    "huge": 2**70,
    "json": "_JSON {",
    "Lattice": "x",
    "Properties": "species:S:1",
    "pbc": "FFF",
    "energy": "low",
    "stress": np.arange(6.0),
    "magmom": [1.0, 2.0],
    "set": {1},
}
COLUMNS_KEPT = {
    "word": np.array(["A", "B", "C"]),
    "object": np.array(["A", "B", "C"], object),
    "flag": np.array([True, False, True]),
    "odd": np.array([np.nan, 1.0, np.inf]),
    "pair": np.arange(6.0).reshape(3, 2),
    "small": np.array([1, 2, 3], np.uint8),
    "tags": np.array([1, -2, 3]),
    "masses": np.array([16.0, 2.014, 2.014]),
}
COLUMNS_LEFT = {
    "blank": np.array(["", "x", "y"]),
    "spaced": np.array(["a b", "x", "y"]),
    "two words": np.ones(3),
    "cube": np.ones((3, 2, 2)),
    "wide": np.ones((3, 0)),
    "complex": np.ones(3) * 1j,
    "large": np.array([2**40] * 3),
    "pair1": np.ones(3),
    "pos0": np.ones(3),
    "pos": np.ones(3),
    "species": np.array(["A", "B", "C"]),
    "forces": np.array(["A", "B", "C"]),
}


def written(path, *frames):
    with open(path, "w", encoding="utf-8") as file:
        left = write_frames(file, frames)
    return left, read(path, ":"), list(read_atoms(path))


def test_info_and_columns_come_back_or_are_named(tmp_path):
    atoms = molecule("H2O")
    atoms.info |= KEPT | LEFT
    for name, array in (COLUMNS_KEPT | COLUMNS_LEFT).items():
        atoms.arrays[name] = array
    left, by_ase, by_mlff = written(tmp_path / "a.xyz", atoms, molecule("H2O"), atoms)
    for frames in (by_ase, by_mlff):
        assert [len(frame) for frame in frames] == [3, 3, 3]
        for frame in (frames[0], frames[2]):
            assert frame.info.keys() == KEPT.keys() and frame.arrays.keys() == {"numbers", "positions", *COLUMNS_KEPT}
            for key, value in KEPT.items():
                if isinstance(value, str | dict) or key in ("nested", "words"):
                    assert frame.info[key] == value, key
                else:
                    np.testing.assert_allclose(frame.info[key], value)
            for name, array in COLUMNS_KEPT.items():
                assert np.array_equal(frame.arrays[name], array, equal_nan=name == "odd"), name
            assert np.allclose(frame.positions, atoms.positions) and not frame.pbc.any() and frame.calc is None
    named = {text.split("'")[1] for text in left}
    assert named == {str(key) for key in LEFT} | set(COLUMNS_LEFT)
    assert "info 'newline' (line breaks or control characters)" in left


def test_results_constraints_and_cells_are_written(tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.ones((4, 3)), stress=np.arange(6.0))
    atoms.info |= {"energy": -2.0, "spacegroup": Spacegroup(225)}
    atoms.set_constraint([FixAtoms([0, 2]), FixBondLengths([[1, 3]])])
    left, (by_ase,), (by_mlff,) = written(tmp_path / "a.xyz", atoms)
    assert left == {"constraint FixBondLengths", "info 'energy' (the calculator has a result of this name)"}
    for frame in (by_ase, by_mlff):
        assert frame.get_potential_energy() == -1.0 and np.allclose(frame.get_stress(), np.arange(6.0))
        assert frame.get_forces(apply_constraint=False).tolist() == np.ones((4, 3)).tolist()
        assert frame.constraints[0].index.tolist() == [0, 2] and frame.pbc.all() and np.allclose(frame.cell, atoms.cell)
        assert frame.info == {"spacegroup": "F m -3 m"}


def test_one_warning_names_what_is_left_out():
    with pytest.warns(
        UserWarning, match="a.xyz: left out, since extended XYZ does not hold it: x0, x1,.* and 2 more"
    ) as told:
        tell_left_out("a.xyz", {f"x{number}" for number in range(12)})
    assert len(told) == 1
    tell_left_out("a.xyz", write_frames(io.StringIO(), [Atoms("H")]))


PDB = """HETATM    1 O1           1       0.000   0.000   0.119  1.00  0.00           O
HETATM    2 H2           1       0.000   0.763  -0.477  1.00  0.00           H
END
"""


@pytest.mark.parametrize("command", ["predict", "relax"])
@pytest.mark.parametrize("name", ["info 'incar'", "info '7'", "column 'residuenames'"])
def test_commands_write_what_is_read_back(tmp_path, command, name):
    morse().save(tmp_path / "model.safetensors")
    atoms, file = molecule("OH"), tmp_path / "in.traj"
    if name.startswith("info"):
        atoms.info |= {"info 'incar'": {"incar": "ENCUT = 520\nISMEAR = 0\n"}, "info '7'": {7: "seven"}}[name]
        write(file, atoms)
    else:
        file = tmp_path / "in.pdb"
        file.write_text(PDB)
    out = tmp_path / "out.xyz"
    to = ["--out", out] if command == "relax" else [out]
    arguments = [command, tmp_path / "model.safetensors", file, *to, "--quiet"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith(f"warning: {out}: left out") and name in result.stderr and result.stderr.count("\n") == 1
    for frame in (read(out), next(read_atoms(out))):
        assert frame.info["mlff_energy"] < 0 and frame.arrays["mlff_forces"].shape == (2, 3)
