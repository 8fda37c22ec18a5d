"""Structures that travel in a model file: chosen, recorded, and computed again on the first load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mlff.basics.errors import ModelFileError
from mlff.data.structure import Structure
from mlff.interfaces.ase import MLFFCalculator
from mlff.potential import selfcheck
from mlff.potential.potential import Potential
from tests.potentials import morse


def structures() -> list[Structure]:
    frames = [molecule("H2O"), molecule("CH4"), bulk("Si"), Atoms("H")]
    return [Structure.from_atoms(atoms) for atoms in frames for _ in range(3)]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def save(change=lambda entries: None) -> Potential:
        potential = morse()
        entries = selfcheck.record(potential, selfcheck.choose(structures()))
        change(entries)
        path = tmp_path / "model.safetensors"
        replace(potential, metadata={selfcheck.KEY: entries}).save(path)
        return path

    return save


def test_chosen_are_different_compositions_and_no_free_atoms():
    chosen = selfcheck.choose(structures())
    assert sorted(s.formula for s in chosen) == ["CH4", "H2O", "Si2"]
    assert len(selfcheck.choose(structures()[:3])) == 3
    assert selfcheck.choose([structures()[-1]])[0].formula == "H"


def test_a_sound_file_is_checked_once_per_platform(saved, monkeypatch):
    path = saved()
    potential = Potential.load(path)
    assert [len(atoms) for atoms in potential.reference_structures] == [3, 5, 2]
    monkeypatch.setattr(Potential, "predict", lambda *_, **__: pytest.fail("computed again"))
    Potential.load(path)
    monkeypatch.setattr(selfcheck, "platform_name", lambda: "another machine")
    with pytest.raises(pytest.fail.Exception):
        Potential.load(path)
    Potential.load(path, verify=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda e: e[0].update(energy=e[0]["energy"] + 0.1), "energy of reference structure 0 differ"),
        (lambda e: e[1].update(forces=(-np.array(e[1]["forces"]) + 1).tolist()), "forces of reference structure 1 differ"),
        (lambda e: e[2].update(stress=(-np.array(e[2]["stress"])).tolist()), "stress of reference structure 2 differ"),
        (lambda e: e[0].update(numbers=[1, 1]), "cannot be evaluated"),
        (lambda e: e[0].pop("cell"), "cannot be evaluated"),
        (lambda e: e[0].update(positions=[[0, 0, 0]] * 3), "cannot be evaluated"),
        (lambda e: e[0].update(numbers=[1] * 10**4, positions=[[0, 0, 0]] * 10**4), "cannot be evaluated"),
    ],
)
def test_another_answer_or_a_damaged_entry_is_an_error(saved, change, says):
    with pytest.raises(ModelFileError, match=says):
        Potential.load(saved(change))


def test_a_calculator_computes_them_in_the_program_that_it_needs_anyway(saved):
    path = saved()
    atoms = molecule("CH4")
    atoms.calc = calculator = MLFFCalculator(path)
    assert calculator.potential.programs.compilations == 0
    atoms.get_forces()
    assert calculator.potential.programs.compilations <= 2, "CH4 and H2O in the program for CH4; the crystal in its own"
    atoms.calc = again = MLFFCalculator(path)
    atoms.get_forces()
    assert again.potential.programs.compilations == 1


def test_those_that_do_not_fit_share_a_program(saved):
    atoms = molecule("H2")
    atoms.calc = calculator = MLFFCalculator(saved())
    atoms.get_forces()
    assert calculator.potential.programs.compilations <= 2


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", ["CH4", "H2"])
def test_a_calculator_refuses_another_answer_before_it_gives_its_own(saved, name, precision):
    atoms = molecule(name)
    atoms.calc = MLFFCalculator(saved(lambda e: e[1].update(energy=e[1]["energy"] + 0.1)), precision=precision)
    for _ in range(2):
        with pytest.raises(ModelFileError, match="energy of reference structure 1 differ"):
            atoms.get_potential_energy()


def test_stresses_are_looked_at_when_stresses_are_asked_for(saved):
    atoms = bulk("Si", cubic=True)
    atoms.calc = MLFFCalculator(saved(lambda e: e[2].update(stress=(-np.array(e[2]["stress"])).tolist())))
    atoms.get_forces()
    with pytest.raises(ModelFileError, match="stress of reference structure 2 differ"):
        atoms.get_stress()


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parent / "formats").glob("model_*.safetensors")), ids=lambda f: f.stem
)
def test_files_of_every_released_format_load_and_give_what_they_gave(file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    potential = Potential.load(file)
    assert potential.reference_structures and potential.metadata["versions"]
    assert list((tmp_path / "mlff" / "verified").iterdir()), "the references were computed again"
