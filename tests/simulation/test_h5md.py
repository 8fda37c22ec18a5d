"""Trajectories in H5MD: what was simulated is in them, in the units of the format, whatever became of the process."""

import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from typer.testing import CliRunner

from mlff import MLFFCalculator
from mlff.basics.errors import DataError
from mlff.cli import app
from mlff.data.formats import read_atoms
from mlff.simulation import h5md
from mlff.simulation.md import run_md
from mlff.simulation.record import Trajectory, truncate_trajectory
from tests.potentials import lennard_jones, morse

OPTIONS = {"steps": 40, "timestep": 2.0, "progress": False, "interval": 10, "temperature": 100}


def crystal():
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + [[0, 0.1, 0], [0, 0, 0.05], [0.02, 0, 0]]), scale_atoms=True)
    atoms.rattle(0.02, seed=0)
    return atoms


CRYSTAL, MOLECULE = lennard_jones(precision="float64"), morse()  #: made once, so that the tests share what is compiled


def simulated(path, atoms=None, **more):
    atoms = crystal() if atoms is None else atoms
    run_md(atoms, MLFFCalculator(CRYSTAL if atoms.pbc.any() else MOLECULE), trajectory=path, **OPTIONS | more)
    return path


def same(some, others, digits=1e-5):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert np.array_equal(one.numbers, other.numbers) and np.array_equal(one.pbc, other.pbc)
        np.testing.assert_allclose(one.positions, other.positions, atol=digits)
        np.testing.assert_allclose(one.get_momenta(), other.get_momenta(), atol=digits)
        np.testing.assert_allclose(one.cell.array, other.cell.array, atol=1e-7)
        np.testing.assert_allclose(one.arrays["mlff_forces"], other.arrays["mlff_forces"], atol=digits)
        assert one.info["mlff_energy"] == pytest.approx(other.info["mlff_energy"], abs=1e-7)
        assert one.info["time_ps"] == other.info["time_ps"]


def test_it_holds_what_text_holds(tmp_path):
    """A skewed cell that changes, and a molecule; also over a restart, with frames after the state cut away."""
    pressed = {"ensemble": "npt", "barostat": "full", "pressure": 5.0}
    for atoms, more in ((None, pressed), (molecule("H2O"), {"timestep": 0.5})):
        files = [tmp_path / f"{len(more)}{suffix}" for suffix in (".h5md", ".xyz")]
        for file in files:
            simulated(file, atoms and atoms.copy(), **more | {"steps": 20})
            simulated(file, atoms and atoms.copy(), restart=True, steps=40, temperature=None, timestep=None)
        same(*(list(read_atoms(file)) for file in files))
        assert h5md.count(files[0]) == 5
        truncate_trajectory(files[0], 3)
        same(list(read_atoms(files[0])), list(read_atoms(files[1]))[:3])


def test_other_programs_read_it(tmp_path):
    """MDAnalysis: positions, cell, velocities, forces, times, in its units (Å, Å/ps, kJ/mol/Å, ps)."""
    mda = pytest.importorskip("MDAnalysis")
    frames = list(read_atoms(simulated(tmp_path / "md.h5md")))
    universe = mda.Universe.empty(len(frames[0]), trajectory=False, velocities=True, forces=True)
    universe.load_new(str(tmp_path / "md.h5md"))
    assert universe.trajectory.n_frames == 5
    for step, frame in zip(universe.trajectory, frames, strict=True):
        assert step.time == pytest.approx(frame.info["time_ps"])
        np.testing.assert_allclose(step.positions, frame.positions, atol=1e-5)
        np.testing.assert_allclose(step.velocities, frame.get_velocities() * 1e3 * units.fs, rtol=1e-5, atol=1e-5)
        forces = frame.arrays["mlff_forces"] / (units.kJ / units.mol)
        np.testing.assert_allclose(step.forces, forces, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(step.dimensions, frame.cell.cellpar(), rtol=1e-5)
        assert step.data["potential_energy"] == frame.info["mlff_energy"]
    assert np.abs(forces).max() > 1 and np.abs(step.velocities).max() > 0.1


KILLED = """
import os, signal, sys
from ase.io import read
from mlff.simulation.record import Trajectory
atoms = read(sys.argv[1])
trajectory = Trajectory(sys.argv[2])
for step in range(30):
    atoms.positions += 0.01
    trajectory.write(atoms, float(step), atoms.positions, step=step, time_ps=1e-3 * step)
    if step == 20:
        trajectory.sync()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_what_was_forced_to_disk(tmp_path):
    atoms, out = crystal(), tmp_path / "md.h5md"
    atoms.write(tmp_path / "copper.xyz")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "copper.xyz", out])
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(OSError), h5py.File(out, "r+"):
        pass
    assert len(list(read_atoms(out))) == h5md.count(out) >= 21
    truncate_trajectory(out, 15)
    trajectory = Trajectory(out, append=True)
    trajectory.write(atoms, 15.0, atoms.positions, step=15, time_ps=0.015)
    trajectory.close()
    assert [frame.info["mlff_energy"] for frame in read_atoms(out)] == list(range(16))


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path):
    """SIGKILL in the middle of a long run: the file can be read, and a restart gives the frames of a run that was not killed."""
    lennard_jones(precision="float64").save(tmp_path / "model.safetensors")
    crystal().write(tmp_path / "copper.xyz")
    out = tmp_path / "md.h5md"
    words = ["md", tmp_path / "model.safetensors", tmp_path / "copper.xyz", "--temperature", 100, "--interval", 2, "--quiet"]
    command = [
        sys.executable,
        "-c",
        "import mlff.simulation.driver as d; d.SAVE_EVERY = 0.0; from mlff.cli import main; main()",
    ]
    long = [str(word) for word in [*words, "--steps", 10_000_000, "--out", out]]
    process = subprocess.Popen([*command, *long], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while time.monotonic() < limit and not (out.with_suffix(".state.npz").exists() and h5md.count(out) > 20):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(OSError), h5py.File(out, "r+"):
        pass
    frames = list(read_atoms(out))
    assert len(frames) > 20
    steps = 2 * len(frames) + 20
    for file, more in ((out, ["--restart"]), (tmp_path / "whole.h5md", [])):
        result = CliRunner().invoke(app, [str(word) for word in [*words, "--steps", steps, "--out", file, *more]])
        assert result.exit_code == 0, result.stderr
    same(list(read_atoms(out)), list(read_atoms(tmp_path / "whole.h5md")), digits=0)


def test_it_is_analysed(tmp_path):
    file = simulated(tmp_path / "water.h5md", molecule("H2O"), timestep=0.5, steps=400, interval=4)
    result = CliRunner().invoke(app, ["analyze", str(file), "--skip-ps", "0"])
    assert result.exit_code == 0, result.stderr


def test_names_and_damage_are_told_before_time_is_spent(tmp_path):
    with pytest.raises(DataError, match="must end in .traj, .xyz, .extxyz, .h5md"):
        simulated(tmp_path / "md.nc")
    file = simulated(tmp_path / "md.h5md")
    for change, message in (
        (
            lambda f: f["particles/all/position/value"].attrs.__setitem__("unit", "furlong"),
            "'position' is in 'furlong'; known",
        ),
        (lambda f: f["particles"].__delitem__("all"), "0 groups of particles"),
        (lambda f: f["particles/all"].__delitem__("species"), "'species' is missing"),
    ):
        damaged = tmp_path / "damaged.h5md"
        damaged.write_bytes(file.read_bytes())
        with h5py.File(damaged, "r+", libver="latest") as content:
            change(content)
        with pytest.raises(DataError, match=message):
            list(read_atoms(damaged))
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match="cannot be read as"):
        run_md(crystal(), MLFFCalculator(lennard_jones(precision="float64")), trajectory=file, restart=True, progress=False)
