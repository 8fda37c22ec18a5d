"""Structures labelled by a teacher: what is written, that it goes on, and what is refused."""

import os
import signal
import sys

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.io import read
from typer.testing import CliRunner

from mlff.basics.errors import DataError
from mlff.cli.app import app
from mlff.simulation import sampling
from mlff.simulation.guard import SimulationError
from mlff.simulation.sampling import sample
from tests.potentials import lennard_jones


class Wells(Calculator):
    """Atoms each in a harmonic well (1 eV/Å²) at their first positions; counts what it is asked."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, stop_after=None, fail=None, stiffness=1.0):
        super().__init__()
        self.stop_after, self.fail, self.stiffness, self.calls, self.centers = stop_after, fail, stiffness, 0, None

    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        if self.fail:
            raise self.fail
        if self.calls == self.stop_after:
            os.kill(os.getpid(), signal.SIGINT)
        self.centers = molecule("CH4").positions if self.centers is None else self.centers
        away = atoms.positions - self.centers
        self.results = {"energy": 0.5 * self.stiffness * float((away**2).sum()), "forces": -self.stiffness * away}


def samples(out, count=20, calculator=None, structures=None, **options):
    structures = [molecule("CH4")] if structures is None else structures
    new = sample(structures, calculator or Wells(), out, count, progress=False, **options)
    return new, read(out, ":")


def test_structures_carry_the_labels_of_the_teacher_and_where_they_come_from(tmp_path):
    new, frames = samples(tmp_path / "a.xyz", name="wells")
    assert new == len(frames) == 20
    centers = molecule("CH4").positions
    for atoms in frames:
        np.testing.assert_allclose(atoms.get_forces(), centers - atoms.positions, atol=1e-7)
        assert atoms.get_potential_energy() == pytest.approx(0.5 * ((atoms.positions - centers) ** 2).sum(), abs=1e-6)
        assert atoms.info["teacher"] == "wells" and atoms.info["temperature"] in sampling.TEMPERATURES
        assert "momenta" not in atoms.arrays and "masses" not in atoms.arrays
    assert [atoms.info["trajectory"] for atoms in frames] == sorted(atoms.info["trajectory"] for atoms in frames)


def test_bonds_are_as_warm_as_they_should_be(tmp_path):
    frames = samples(tmp_path / "a.xyz", 600, Wells(stiffness=10), temperatures=[600])[1]
    mean = np.mean([atoms.get_potential_energy() for atoms in frames])
    assert 0.8 < mean / (7.5 * 8.617e-5 * 600) < 1  # 15 coordinates, 6 of which start at rest: 1 after longer trajectories


def test_the_same_seed_gives_the_same_and_another_one_others(tmp_path):
    first, again, other = (samples(tmp_path / f"{i}.xyz", 7, seed=seed)[1] for i, seed in enumerate((1, 1, 2)))
    positions = [np.array([atoms.positions for atoms in frames]) for frames in (first, again, other)]
    np.testing.assert_array_equal(positions[0], positions[1])
    assert not np.allclose(positions[0], positions[2])


def test_a_file_is_continued_and_one_that_is_full_stays(tmp_path):
    out = tmp_path / "a.xyz"
    first = samples(out, 12)[1]
    new, frames = samples(out, 18)
    assert new == 6 and len(frames) == 18
    np.testing.assert_array_equal(frames[11].positions, first[11].positions)
    assert frames[12].info["trajectory"] == 2
    assert samples(out, 18)[0] == 0


def test_ctrl_c_writes_what_there_is(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        samples(tmp_path / "a.xyz", 1000, Wells(stop_after=150))
    assert 6 <= len(read(tmp_path / "a.xyz", ":")) < 60
    assert samples(tmp_path / "a.xyz", 60)[0] > 0


def test_full_cells_have_stresses_and_keep_their_cell(tmp_path):
    copper = bulk("Cu", cubic=True)
    for atoms in samples(tmp_path / "a.xyz", 6, EMT(), [copper], temperatures=[300])[1]:
        np.testing.assert_allclose(atoms.cell, copper.cell)
        stress = atoms.get_stress()
        atoms.calc = EMT()
        np.testing.assert_allclose(atoms.get_stress(), stress, atol=1e-6)


@pytest.mark.parametrize(
    "calculator", [Wells(fail=RuntimeError("no convergence")), Wells(stiffness=1e4)], ids=["fails", "forces"]
)
def test_a_teacher_that_gives_nothing_is_an_error_that_says_why(tmp_path, calculator):
    with pytest.raises(SimulationError, match="20 trajectories .* gave no structure: (no convergence|a force of)"):
        samples(tmp_path / "a.xyz", 6, calculator)
    assert not (tmp_path / "a.xyz").exists()


def test_a_teacher_that_fails_later_loses_nothing(tmp_path):
    class Tired(Wells):
        def calculate(self, *arguments, **options):
            self.fail = RuntimeError("tired") if self.calls > 100 else None
            super().calculate(*arguments, **options)

    with pytest.raises(SimulationError, match="gave no structure: tired"):
        samples(tmp_path / "a.xyz", 1000, Tired())
    assert 6 <= len(read(tmp_path / "a.xyz", ":")) < 60


def test_what_cannot_be_sampled_is_refused_before_anything_is_computed(tmp_path):
    never = Wells(fail=AssertionError("computed"))
    with pytest.raises(DataError, match="must end in .xyz"):
        samples(tmp_path / "a.traj", 6, never)
    with pytest.raises(DataError, match="two atoms or more"):
        samples(tmp_path / "a.xyz", 6, never, [ase.Atoms("H")])
    (tmp_path / "b.xyz").write_text("something else")
    with pytest.raises(DataError, match="b.xyz: exists and holds no samples"):
        samples(tmp_path / "b.xyz", 6, never)
    samples(tmp_path / "c.xyz", 6, name="wells")
    with pytest.raises(DataError, match="has labels of wells, not of other"):
        samples(tmp_path / "c.xyz", 12, never, name="other")


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_refuses_an_unknown_teacher_in_one_line(tmp_path):
    molecule("CH4").write(tmp_path / "a.xyz")
    result = call("sample", "GFN7-xTB", tmp_path / "a.xyz", "--out", tmp_path / "b.xyz")
    assert result.exit_code == 1
    assert (
        result.stderr
        == "error: GFN7-xTB: neither a model file nor a method known here (GFN2-xTB, GFN1-xTB, or package.module:function)\n"
    )


def test_the_command_samples_with_a_calculator_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "metals.py").write_text("from ase.calculators.emt import EMT\n\ndef warm():\n    return EMT()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    bulk("Cu").repeat(2).write("cu.xyz")
    result = CliRunner().invoke(app, ["sample", "metals:warm", "cu.xyz", "--out", "emt.xyz", "--count", "2", "--quiet"])
    assert result.exit_code == 0, result.output
    frames = read("emt.xyz", ":")
    assert [frame.info["teacher"] for frame in frames] == ["metals:warm"] * 2
    again = frames[0].copy()
    again.calc = EMT()
    np.testing.assert_allclose(frames[0].get_forces(), again.get_forces(), atol=1e-6)  # extended XYZ has eight decimals


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such_module:f", "No module named 'no'"),
        ("ase.calculators.emt:Nothing", "has no attribute 'Nothing'"),
        ("os:getcwd", "gives a str, not an ASE calculator"),
        ("os:chdir", "expected package.module:function"),
        (":", "expected package.module:function"),
    ],
)
def test_what_is_no_calculator_is_refused_by_name(name, message):
    with pytest.raises(DataError, match=message) as caught:
        sampling.teacher(name)
    assert str(caught.value).startswith(f"{name}: ")


def test_the_command_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tblite.ase", None)
    molecule("CH4").write(tmp_path / "a.xyz")
    result = call("sample", "gfn2-xtb", tmp_path / "a.xyz", "--out", tmp_path / "b.xyz")
    assert result.exit_code == 1 and "GFN2-xTB needs tblite: pip install tblite" in result.stderr


def test_the_command_samples_with_a_semi_empirical_method(tmp_path):
    pytest.importorskip("tblite.ase", reason="tblite is not installed")
    molecule("CH4").write(tmp_path / "a.xyz")
    assert call("sample", "gfn2-xtb", tmp_path / "a.xyz", "--out", tmp_path / "b.xyz", "--count", 3).exit_code == 0
    frames = read(tmp_path / "b.xyz", ":")
    assert len(frames) == 3 and all(-120 < atoms.get_potential_energy() < -110 for atoms in frames)  # eV, valence electrons


def test_the_command_samples_with_a_trained_model(tmp_path):
    lennard_jones().save(tmp_path / "lj.safetensors")
    ase.Atoms("Ar3", [[0, 0, 0], [3.8, 0, 0], [0, 3.8, 0]]).write(tmp_path / "a.xyz")
    assert (
        call("sample", tmp_path / "lj.safetensors", tmp_path / "a.xyz", "--out", tmp_path / "b.xyz", "--count", 4).exit_code
        == 0
    )
    frames = read(tmp_path / "b.xyz", ":")
    assert len(frames) == 4 and len(frames[0].info["teacher"]) == 12
