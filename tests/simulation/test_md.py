"""Molecular dynamics: ensembles, output, restarts, the guard, interruption."""

import csv
import json
import os
import signal

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import read

from mlff.basics.errors import ConfigError, DataError
from mlff.basics.files import alone
from mlff.simulation.guard import Limits, SimulationError
from mlff.simulation.md import run_md
from mlff.simulation.record import load_state, lock_path, state_path
from mlff.simulation.velocities import degrees_of_freedom, maxwell_boltzmann
from tests.simulation.springs import Springs


def crystal(repeat=2):
    return bulk("Cu", cubic=True).repeat(repeat)


def simulate(atoms, calculator=None, **options):
    options = {"steps": 50, "timestep": 2.0, "progress": False, "interval": 5} | options
    return run_md(atoms, calculator or Springs(atoms), **options)


def test_nve_keeps_the_energy():
    atoms = crystal()
    summary = simulate(atoms, ensemble="nve", temperature=300, steps=500)
    assert abs(summary.drift) < 0.05
    assert summary.steps == 500 and summary.time_ps == pytest.approx(1.0)
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() > 0  # springs to fixed points do not conserve momentum


@pytest.mark.parametrize("thermostat", ["langevin", "bussi"])
def test_nvt_reaches_the_temperature(thermostat):
    atoms = crystal()
    simulate(atoms, thermostat=thermostat, temperature=500, steps=300)
    summary = simulate(atoms, thermostat=thermostat, temperature=500, steps=1500, keep_velocities=True)
    assert summary.temperature_mean == pytest.approx(500, rel=0.1)
    assert (summary.drift is None) == (thermostat == "langevin")


def test_a_molecule_starts_without_drift_and_rotation():
    atoms = molecule("CH3CH2OH")
    maxwell_boltzmann(atoms, 300, np.random.default_rng(0))
    assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-12
    assert np.abs(atoms.get_angular_momentum()).max() < 1e-9
    assert degrees_of_freedom(atoms, rotation_is_kept=True) == 3 * len(atoms) - 6
    assert degrees_of_freedom(atoms, rotation_is_kept=False) == 3 * len(atoms) - 3
    linear = molecule("CO2")
    maxwell_boltzmann(linear, 300, np.random.default_rng(0))
    assert degrees_of_freedom(linear, rotation_is_kept=True) == 4


def test_velocities_have_the_temperature():
    atoms, rng = crystal(4), np.random.default_rng(1)
    maxwell_boltzmann(atoms, 300, rng)
    expected = 300 * degrees_of_freedom(atoms, False) / (3 * len(atoms))
    assert atoms.get_temperature() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("suffix", [".traj", ".xyz"])
def test_frames_and_lines(tmp_path, suffix):
    atoms = crystal(1)
    out, log = tmp_path / f"run{suffix}", tmp_path / "run.jsonl"
    simulate(atoms, ensemble="nve", steps=22, trajectory=out, log=log)
    frames = read(out, ":")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 5, 10, 15, 20, 22]
    assert len(frames) == 6
    assert np.allclose(frames[-1].positions, atoms.positions, atol=1e-7)
    assert np.allclose(frames[-1].get_momenta(), atoms.get_momenta(), atol=1e-7)
    if suffix == ".xyz":
        assert frames[-1].calc is None and frames[-1].info["mlff_energy"] == pytest.approx(lines[-1]["epot_ev"])
        assert "forces" not in frames[-1].arrays and "mlff_forces" in frames[-1].arrays
    else:
        assert frames[-1].get_potential_energy() == pytest.approx(lines[-1]["epot_ev"])
    assert lines[-1]["etot_ev"] == pytest.approx(lines[-1]["epot_ev"] + lines[-1]["ekin_ev"])
    assert lines[-1]["volume_a3"] == pytest.approx(atoms.get_volume())
    assert lines[-1]["pressure_gpa"] is None


def test_log_as_csv(tmp_path):
    simulate(crystal(1), steps=10, log=tmp_path / "log.csv")
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["0", "5", "10"]
    assert float(rows[-1]["temperature_k"]) > 0


@pytest.mark.parametrize("options", [{"ensemble": "nve"}, {"thermostat": "langevin"}, {"thermostat": "bussi"}], ids=str)
@pytest.mark.parametrize("suffix", [".traj", ".xyz"])
def test_restart_is_bitwise(tmp_path, options, suffix):
    start = crystal(1)
    whole, parts = start.copy(), start.copy()
    simulate(
        whole, Springs(start), steps=60, trajectory=tmp_path / f"whole{suffix}", log=tmp_path / "whole.jsonl", **options
    )
    files = {"trajectory": tmp_path / f"parts{suffix}", "log": tmp_path / "parts.jsonl"}
    simulate(parts, Springs(start), steps=30, **files, **options)
    parts = start.copy()
    summary = simulate(parts, Springs(start), steps=60, restart=True, **files, **options)
    assert summary.steps == 60
    assert np.array_equal(parts.positions, whole.positions)
    assert np.array_equal(parts.get_momenta(), whole.get_momenta())
    assert (tmp_path / "whole.jsonl").read_text() == (tmp_path / "parts.jsonl").read_text()
    frames = [read(tmp_path / f"{name}{suffix}", ":") for name in ("whole", "parts")]
    assert len(frames[0]) == len(frames[1])
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(*frames, strict=True))


@pytest.mark.parametrize("suffix", [".traj", ".xyz"])
def test_what_was_written_after_the_state_is_written_again(tmp_path, suffix):
    start = crystal(1)
    out, log = tmp_path / f"run{suffix}", tmp_path / "run.jsonl"
    simulate(start.copy(), Springs(start), steps=20, trajectory=out, log=log)
    early = state_path(out).read_bytes()
    simulate(start.copy(), Springs(start), steps=40, trajectory=out, log=log, restart=True)
    expected = log.read_text()
    state_path(out).write_bytes(early)  # as if the machine had gone down between two states
    with open(out, "ab") as file:
        file.write(b"" if suffix == ".traj" else b"4\nhalf a fra")
    simulate(start.copy(), Springs(start), steps=40, trajectory=out, log=log, restart=True)
    assert log.read_text() == expected
    assert len(read(out, ":")) == 9


def test_interruption_ends_a_whole_step_and_can_be_resumed(tmp_path):
    start = crystal(1)
    whole, cut, again = start.copy(), start.copy(), start.copy()
    simulate(whole, Springs(start), steps=40, trajectory=tmp_path / "whole.traj")

    def interrupt(calls, forces):
        if calls == 18:
            os.kill(os.getpid(), signal.SIGINT)
        return forces

    out = tmp_path / "cut.traj"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        simulate(cut, Springs(start, disturb=interrupt), steps=40, trajectory=out)
    assert signal.getsignal(signal.SIGINT) is before
    assert int(load_state(state_path(out))["step"]) == 17
    simulate(again, Springs(start), steps=40, trajectory=out, restart=True)
    assert np.array_equal(again.positions, whole.positions)
    assert len(read(out, ":")) == 9


def _blow_up(calls, forces):
    return forces * (1e4 if calls > 12 else 1)


def _not_a_number(calls, forces):
    if calls > 12:
        forces[2, 1] = np.nan
    return forces


def _heat(calls, forces):
    return forces + 20 * (-1) ** (np.arange(len(forces))[:, None] + np.arange(3))


@pytest.mark.parametrize(
    ("disturb", "message"),
    [(_blow_up, "force on atom"), (_not_a_number, "force on atom 2 is not finite"), (_heat, "temperature is")],
)
def test_a_run_that_goes_wrong_stops_and_keeps_its_last_good_frame(tmp_path, disturb, message):
    atoms = crystal(1)
    out = tmp_path / "run.traj"
    with pytest.raises(SimulationError, match=message) as caught:
        simulate(atoms, Springs(atoms, disturb=disturb), steps=100, trajectory=out)
    assert "\n" not in str(caught.value) and str(out) in str(caught.value)
    state = load_state(state_path(out))
    last = read(out, -1)
    assert np.allclose(last.positions, state["positions"])
    assert np.isfinite(last.get_forces()).all()


class _Moving(Springs):
    """Homes that wander off at a constant speed."""

    def __init__(self, atoms, velocity):
        super().__init__(atoms)
        self.velocity = velocity

    def calculate(self, *arguments, **options):
        self.home = self.home + self.velocity
        super().calculate(*arguments, **options)


def test_atoms_that_fuse_or_fly_off_are_noticed(tmp_path):
    atoms = molecule("H2O")
    towards = np.zeros((3, 3))
    towards[1] = 0.01 * (atoms.positions[0] - atoms.positions[1])
    with pytest.raises(SimulationError, match="O 0 and H 1 fused"):
        simulate(atoms.copy(), _Moving(atoms, towards), ensemble="nve", temperature=0, steps=500)
    with pytest.raises(SimulationError, match="H 1 flew off"):
        simulate(
            atoms.copy(),
            _Moving(atoms, -20 * towards),
            ensemble="nve",
            temperature=0,
            steps=500,
            timestep=0.5,
            limits=Limits(temperature=1e9, drift=1e9),
        )
    with pytest.raises(SimulationError, match="limit 1"):
        simulate(atoms.copy(), Springs(atoms), limits=Limits(temperature=1.0))


def test_constraints_come_back():
    from ase.constraints import FixAtoms

    atoms = crystal(1)
    simulate(atoms)
    assert not atoms.constraints
    atoms.set_constraint(FixAtoms([0]))
    before = atoms.positions[0].copy()
    simulate(atoms)
    assert isinstance(atoms.constraints[0], FixAtoms) and np.array_equal(atoms.positions[0], before)


def test_wrong_requests_are_one_line(tmp_path):
    atoms = molecule("H2O")
    with pytest.raises(ConfigError, match="npt needs a cell"):
        simulate(atoms, ensemble="npt")
    with pytest.raises(ConfigError, match="unknown ensemble"):
        simulate(atoms, ensemble="nvx")
    with pytest.raises(ConfigError, match="timestep must be a positive number of fs"):
        simulate(atoms, timestep=0.0)
    with pytest.raises(ConfigError, match="temperature must not be negative"):
        simulate(atoms, temperature=-1)
    with pytest.raises(DataError, match="must end in .traj"):
        simulate(atoms, trajectory=tmp_path / "run.pdb")
    with pytest.raises(DataError, match="no such directory"):
        simulate(atoms, trajectory=tmp_path / "nowhere" / "run.traj")
    with pytest.raises(DataError, match="no state to restart from"):
        simulate(atoms, trajectory=tmp_path / "run.traj", restart=True)
    (tmp_path / "run.state.npz").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="not a state file"):
        simulate(atoms, trajectory=tmp_path / "run.traj", restart=True)
    simulate(crystal(1), trajectory=tmp_path / "run.traj", steps=5)
    with pytest.raises(DataError, match="other atoms"):
        simulate(atoms, trajectory=tmp_path / "run.traj", restart=True)
    with pytest.raises(DataError, match="had timestep 2.0"):
        simulate(crystal(1), trajectory=tmp_path / "run.traj", restart=True, timestep=1.0)


def test_two_runs_that_write_one_trajectory_are_refused(tmp_path):
    out = tmp_path / "md.xyz"
    with alone(lock_path(out), "busy"), pytest.raises(ConfigError, match="another process writes it"):
        simulate(crystal(), trajectory=out, steps=5)
    assert not out.exists()
    simulate(crystal(), trajectory=out, steps=5)
