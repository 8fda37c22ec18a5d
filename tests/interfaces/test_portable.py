"""A potential as a program for other runtimes: says the same, refuses what it does not know, is read by newer versions of JAX."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from ase.build import molecule
from ase.neighborlist import neighbor_list

from mlff.basics.errors import ConfigError
from mlff.data.structure import Structure
from mlff.interfaces import portable
from mlff.interfaces.portable_loader import VERSION, Portable, slots
from mlff.potential import selfcheck
from tests.conftest import make_potential

FORMATS = Path(__file__).parents[1] / "formats"


def referenced(potential, structures):
    """With structures that travel with it."""
    entries = selfcheck.record(potential, [Structure.from_atoms(atoms) for atoms in structures])
    return replace(potential, metadata=potential.metadata | {selfcheck.KEY: entries})


def asked(program, atoms, reach=0.0, extra=0):
    """What the program says of a structure, with pairs beyond the cutoff and atoms that count nothing."""
    n = len(atoms) + extra
    numbers, positions = np.zeros(n, int), np.zeros((n, 3))
    numbers[: len(atoms)], positions[: len(atoms)] = atoms.numbers, atoms.positions
    pairs = neighbor_list("ijS", atoms, program.cutoff + reach)
    return program(numbers, positions, atoms.cell.array, *slots(n, *pairs))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that passes messages, in float64, with water as its reference."""
    folder = tmp_path_factory.mktemp("portable") / "ace"
    portable.write_folder(referenced(make_potential("ace", "float64"), [molecule("H2O")]), folder)
    return folder


@pytest.fixture(scope="module")
def program(folder):
    return Portable(folder)


def test_it_says_what_the_potential_says(program, ethanol, silicon):
    potential = make_potential("ace", "float64")
    for atoms, reach, extra in ((ethanol, 0.5, 3), (silicon, 0.0, 0)):
        (expected,) = potential.predict([atoms])
        energy, forces, virial = asked(program, atoms, reach, extra)
        assert energy == pytest.approx(expected.energy, abs=1e-9)
        np.testing.assert_allclose(forces[: len(atoms)], expected.forces, atol=1e-9)
        assert not forces[len(atoms) :].any()
    np.testing.assert_allclose(virial / silicon.get_volume(), expected.stress, atol=1e-10)


@pytest.mark.parametrize(
    "name", ["lennard_jones", *(pytest.param(name, marks=pytest.mark.slow) for name in ("schnet", "ace_l3"))]
)
def test_of_other_models_too(name, tmp_path, silicon):
    potential = make_potential(name)
    portable.write_folder(potential, tmp_path / "out")
    energy, forces, virial = asked(Portable(tmp_path / "out"), silicon)
    (expected,) = potential.predict([silicon])
    assert energy == pytest.approx(expected.energy, rel=1e-5)
    np.testing.assert_allclose(forces, expected.forces, atol=1e-4 * np.abs(expected.forces).max())
    np.testing.assert_allclose(virial / silicon.get_volume(), expected.stress, atol=1e-4 * np.abs(expected.stress).max())


def test_what_it_cannot_know_is_refused(program, ethanol):
    """In the shape of the test above, which is compiled."""
    numbers, positions, cell = ethanol.numbers, ethanol.positions, ethanol.cell.array
    i, j, shifts = neighbor_list("ijS", ethanol, program.cutoff)
    for kept in (i < j, np.arange(len(i)) > 0):
        with pytest.raises(ValueError, match="not listed in both directions"):
            program(numbers, positions, cell, *slots(len(numbers), i[kept], j[kept], shifts[kept]))
    gold = np.where(numbers == 8, 79, numbers)
    with pytest.raises(ValueError, match="atomic number 79 is not known"):
        program(gold, positions, cell, *slots(len(numbers), i, j, shifts))
    with pytest.raises(ValueError, match="not finite"):
        program(numbers, positions + np.nan, cell, *slots(len(numbers), i, j, shifts))
    neighbors, images = slots(len(numbers), i, j, shifts)
    with jax.enable_x64(True):
        energies = program._call(positions, gold.astype(np.int32), cell, neighbors, images.astype(float))[0]
    assert np.isnan(energies).all()  # for those who take the program without the loader


def test_references_and_versions_are_looked_at(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    with np.load(copy / "references.npz") as stored:
        arrays = dict(stored)
    arrays["forces_0"][1, 2] += 1e-3
    np.savez(copy / "references.npz", **arrays)
    with pytest.raises(ValueError, match="reference structure 0 comes out otherwise"):
        Portable(copy)
    Portable(copy, verify=False)
    contract = json.loads((copy / "potential.json").read_text())
    (copy / "potential.json").write_text(json.dumps(contract | {"version": VERSION + 1}))
    with pytest.raises(ValueError, match="newer than this loader"):
        Portable(copy)
    with pytest.raises(ConfigError, match="is there already"):
        portable.write_folder(make_potential("morse"), copy)


def test_the_folder_needs_no_mlff_and_names_no_path(folder):
    code = "import sys; from load import Portable; Portable('.'); assert not any(m.split('.')[0] in ('mlff', 'flax', 'ase') for m in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    here = str(Path(portable.__file__).parents[2]).encode()
    assert not any(here in file.read_bytes() for file in folder.iterdir())


def test_a_file_of_the_oldest_jax_is_read():
    """Written by jax 0.10.1 (the committed folder): newer versions read what older ones wrote."""
    program = Portable(FORMATS / "portable_1")
    assert program.contract["written_by"] == "jax 0.10.1" and program.contract["references"] == 1
