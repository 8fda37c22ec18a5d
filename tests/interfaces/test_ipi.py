"""The driver of i-PI: units, signs, all beads in one call, refusals; and i-PI itself with it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import read, write

pytest.importorskip("ipi", reason="i-PI is not installed: pip install '.[ipi]'")

from mlff.basics.errors import ConfigError, DataError, StructureError
from mlff.interfaces.ipi import INIT, INPUT, MODEL, PES, MLFFDriver, write_folder
from mlff.interfaces.order import check_order
from mlff.potential.potential import Potential
from tests.interfaces.servers import changed, simulation
from tests.potentials import morse

ANGSTROM, EV = 1.8897261, 0.036749326  #: in bohr and hartree, i-PI's figures


@pytest.fixture
def water(tmp_path):
    """A folder to run i-PI in: a molecule of water, four beads."""
    write_folder(morse(precision="float64"), "model", tmp_path, molecule("H2O"), beads=4)
    return tmp_path


def driver(folder, atoms, precision="float64", **options):
    morse(precision=precision).save(folder / "m.safetensors")
    write(folder / "t.xyz", atoms)
    return MLFFDriver(str(folder / "m.safetensors"), str(folder / "t.xyz"), **options)


def sheared():
    """A crystal in a cell that is no diagonal."""
    atoms = bulk("Si", cubic=True)
    atoms.set_cell(atoms.cell.array + [[0, 0, 0], [0.9, 0, 0], [0.4, -0.7, 0]], scale_atoms=True)
    return atoms


@pytest.mark.parametrize("atoms", [molecule("CH3CH2OH"), sheared()], ids=["molecule", "crystal"])
def test_answers_are_those_of_the_potential_in_atomic_units(tmp_path, atoms):
    atoms.rattle(0.05, seed=2)
    made = driver(tmp_path, atoms)
    (expected,) = morse(precision="float64").predict([atoms])
    energy, forces, virial, _ = made(atoms.cell.array.T * ANGSTROM, atoms.positions * ANGSTROM)
    assert energy / EV == pytest.approx(expected.energy, rel=1e-14)
    np.testing.assert_allclose(
        forces * ANGSTROM / EV, expected.forces, rtol=0, atol=1e-7
    )  # of coordinates of 8 digits in a file
    if not atoms.pbc.all():
        assert not virial.any()
        return
    np.testing.assert_allclose(virial / EV, -expected.stress * atoms.get_volume(), atol=1e-6)


def test_the_virial_is_minus_the_derivative_of_the_energy_along_a_strain(tmp_path):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=2)
    made, step = driver(tmp_path, atoms), 1e-5
    strain = np.array([[0.3, 0.2, 0], [0.2, -0.5, 0.1], [0, 0.1, 1.0]])
    energies = []
    for sign in (-1, 1):
        deformed = np.eye(3) + sign * step * strain
        answer = made((atoms.cell.array @ deformed).T * ANGSTROM, atoms.positions @ deformed * ANGSTROM)
        energies.append(answer[0])
    virial = made(atoms.cell.array.T * ANGSTROM, atoms.positions * ANGSTROM)[2]
    assert np.vdot(virial, strain) == pytest.approx(-(energies[1] - energies[0]) / (2 * step), rel=1e-5)


def test_all_beads_are_one_call_and_short_lists_compile_nothing(tmp_path):
    atoms = molecule("CH3CH2OH")
    made = driver(tmp_path, atoms)
    rng, cell = np.random.default_rng(0), np.eye(3) * 100
    positions = [(atoms.positions + rng.normal(0, 0.05, (9, 3))) * ANGSTROM for _ in range(5)]
    everything = made([cell] * 5, positions)
    for count in (2, 5, 1):
        for found, expected in zip(made([cell] * count, positions[:count]), everything, strict=False):
            assert found[0] == expected[0] and np.array_equal(found[1], expected[1])
    assert made(cell, positions[3])[0] == everything[3][0]
    assert made.beads.compilations == 1


def test_a_crystal_that_has_melted_is_no_other_order():
    atoms = bulk("Si", cubic=True).repeat(2)
    melted = atoms.copy()
    melted.rattle(0.7, seed=1)
    check_order(atoms, melted.positions, melted.cell.array, "template")


def refused(call, *arguments):
    with pytest.raises(SystemExit) as stopped:
        call(*arguments)
    text = str(stopped.value)
    assert text.startswith("error: ") and "\n" not in text
    return text


def test_what_is_wrong_ends_with_one_line(tmp_path):
    atoms, cell = molecule("CH3CH2OH"), np.eye(3) * 100
    made = driver(tmp_path, atoms)
    assert "i-PI sends 8 atoms" in refused(made, cell, atoms.positions[:8])
    backwards = refused(made, cell, atoms.positions[::-1] * ANGSTROM)
    assert "8 of 9 atoms (the first is atom 1, C) are bonded to other elements" in backwards
    made(cell, atoms.positions * ANGSTROM)
    assert "bead 0: position of atom 3 is not finite" in refused(
        made, cell, np.where(np.arange(9)[:, None] == 3, np.nan, atoms.positions)
    )
    assert "the cell changes" in refused(made, cell * 1.01, atoms.positions * ANGSTROM)
    files = str(tmp_path / "m.safetensors"), str(tmp_path / "t.xyz")
    assert "colour" in refused(lambda: MLFFDriver(*files, colour="red"))
    assert "must name model and template" in refused(lambda: MLFFDriver(files[0]))
    assert "skin must be a length in Å, not wide" in refused(lambda: MLFFDriver(*files, skin="wide"))
    assert "float16" in refused(lambda: MLFFDriver(*files, precision="float16"))
    assert "no.xyz: cannot be read" in refused(MLFFDriver, files[0], "no.xyz")
    assert "no.safetensors" in refused(MLFFDriver, "no.safetensors", files[1])
    write(tmp_path / "t.xyz", bulk("Fe"))
    assert "atom 0 is Fe" in refused(MLFFDriver, *files)


def test_a_run_of_path_integrals_conserves_energy_with_one_program(water):
    steps = ("10000 </total", "20 </total"), ("stride='10'", "stride='1'")
    text = changed(water, *steps, ("mode='nvt'", "mode='nve'"), ("<thermostat.*</thermostat>", ""))
    with simulation(water, text) as run:
        run.run()
        made = run.fflist["mlff"].driver
        assert made._most == 4 and made.beads.compilations == 1
        forces = [each.f for each in run.syslist[0].forces.mforces[0]._forces]
        atoms = read(INIT)
        atoms.positions = run.syslist[0].beads.q[2].reshape(-1, 3) / ANGSTROM
        (expected,) = Potential.load(MODEL).predict([atoms])
        np.testing.assert_allclose(forces[2].reshape(-1, 3) * ANGSTROM / EV, expected.forces, atol=1e-7)
    rows = np.loadtxt(water / "simulation.out")
    assert len(rows) == 21
    kinetic, conserved = rows[:, 3], rows[:, 2]
    assert np.ptp(conserved) < 2e-3 < 0.01 * np.ptp(rows[:, 5]) + 1 and kinetic.all()
    assert len(read(water / "simulation.pos_3.extxyz", ":")) == 2


def test_the_pressure_of_i_pi_is_that_of_kinetic_energy_and_stress(tmp_path):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=2)
    potential = morse(precision="float64")
    write_folder(potential, "model", tmp_path, atoms, beads=1)
    steps = ("10000 </total", "1 </total"), ("mode='nvt'", "mode='nve'"), ("<thermostat.*</thermostat>", "")
    with simulation(tmp_path, changed(tmp_path, *steps)) as run:
        run.run()
        system = run.syslist[0]
        atoms.positions = system.beads.q[0].reshape(-1, 3) / ANGSTROM
        stress = potential.predict([atoms])[0].stress
        volume = system.cell.V
        pressure = system.properties["pressure_md"][0]
        kinetic = system.properties["kinetic_md"][0]
    expected = 2 * kinetic / (3 * volume) - np.trace(stress) / 3 * EV / ANGSTROM**3
    assert pressure == pytest.approx(expected, rel=1e-5) and abs(np.trace(stress)) > 0.01


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("threaded", ["", "threaded='True'"], ids=["serial", "threaded"])
def test_nonsense_ends_the_run(water, threaded, monkeypatch, capsys):
    monkeypatch.setattr("mlff.potential.potential.LARGEST_FORCE", 0.1)
    text = changed(water, ("<ffdirect", f"<ffdirect {threaded}"))
    with simulation(water, text) as run:
        if threaded:
            run.run()
            assert "mlff: bead 0: the potential gives an energy of" in capsys.readouterr().out
        else:
            assert "bead 0: the potential gives an energy of" in refused(run.run)
        assert run.step <= 1


@pytest.mark.slow
def test_i_pis_own_client_serves_all_beads_through_shared_memory(water):
    address = f"mlff_shm_{os.getpid()}"
    there = f"<ffsocket mode='shm' name='mlff'> <address> {address} </address> <batch_size> 4 </batch_size> </ffsocket>"
    text = changed(water, ("<ffdirect.*</ffdirect>", there), ("10000 </total", "10 </total"))
    program = str(Path(sys.executable).with_name("i-pi-driver-py"))
    options = ["--shm", "-a", address, "-m", "custom", "-P", PES, "-o", f"model={MODEL},template={INIT}"]
    with simulation(water, text) as run:
        client = subprocess.Popen([sys.executable, program, *options], cwd=water)
        run.run()
        potential = run.syslist[0].forces.pots[3] / EV
        atoms = read(INIT)
        atoms.positions = run.syslist[0].beads.q[3].reshape(-1, 3) / ANGSTROM
        assert potential == pytest.approx(Potential.load(MODEL).predict([atoms])[0].energy, rel=1e-12)
    assert client.wait(60) == 0


def test_the_folder_names_what_it_has(water):
    assert sorted(path.name for path in water.iterdir()) == sorted([MODEL, INIT, INPUT, PES])
    text = (water / INPUT).read_text(encoding="utf-8")
    assert "<batch_size> 4 </batch_size>" in text and "nbeads='4'" in text and "300 <" in text


def test_cells_are_turned_as_i_pi_wants_them(tmp_path):
    atoms = bulk("Si")  # its cell is no upper triangle
    atoms.set_cell(atoms.cell.array[[1, 0, 2]], scale_atoms=False)
    potential = morse(precision="float64")
    write_folder(potential, "model", tmp_path, atoms, beads=1)
    turned = read(tmp_path / INIT)
    assert np.allclose(np.triu(turned.cell.array, 1), 0, atol=1e-12) and np.linalg.det(turned.cell.array) > 0
    energies = [result.energy for result in potential.predict([atoms, turned])]
    assert energies[0] == pytest.approx(energies[1], abs=1e-6)


def test_exports_that_cannot_be_are_refused(tmp_path):
    tmp_path = tmp_path / "new"
    with pytest.raises(DataError, match="m: no structure travels with this model"):
        write_folder(morse(), "m", tmp_path)
    with pytest.raises(StructureError, match="Fe"):
        write_folder(morse(), "m", tmp_path, bulk("Fe"))
    with pytest.raises(ConfigError, match="0 beads"):
        write_folder(morse(), "m", tmp_path, molecule("H2O"), beads=0)
    slab = molecule("H2O", vacuum=3.0)
    slab.pbc = (True, True, False)
    with pytest.raises(StructureError, match="periodic in three directions, and molecules"):
        write_folder(morse(), "m", tmp_path, slab)
    assert not tmp_path.exists()
    write_folder(morse(), "m", tmp_path, molecule("H2O"))
    with pytest.raises(ConfigError, match="new: is there already"):
        write_folder(morse(), "m", tmp_path, molecule("H2O"))
