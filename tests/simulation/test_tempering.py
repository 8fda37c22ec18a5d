"""Parallel tempering: each temperature keeps its canonical distribution, and what exchanges is exchanged whole."""

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write
from typer.testing import CliRunner

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError
from mlff.basics.units import KB
from mlff.cli import app
from mlff.simulation import tempering
from mlff.simulation.replica_run import replica_path, run_replicas
from mlff.simulation.replicas import Replicas
from mlff.simulation.tempering import Tempering, read_temperatures
from tests.potentials import lennard_jones

KELVINS = [100.0, 200.0, 400.0, 800.0]


def harmonic(x):
    return 0.5 * 2.0 * x**2


def double_well(x):
    """Two minima, 0.1 eV deep (at 100 K some 12 kT), the right one 10 meV lower."""
    return 0.1 * (x**2 - 1) ** 2 - 0.005 * x


def sampled(energy, sweeps=1000, copies=50):
    """(4,) means of the energy, of x and their standard errors, by Metropolis walks at the four temperatures that exchange."""
    rng = np.random.default_rng(3)
    kelvins = np.array(KELVINS)
    x = np.ones((copies, len(kelvins)))
    runs = [Tempering(1, seed) for seed in range(copies)]
    for run in runs:
        run.start(KELVINS)
    sums = np.zeros((2, copies, len(kelvins)))
    for sweep in range(sweeps):
        for _ in range(3):
            new = x + rng.normal(0, 3 * np.sqrt(KB * kelvins / 2.0), x.shape)
            x = np.where(rng.random(x.shape) < np.exp(np.minimum((energy(x) - energy(new)) / KB / kelvins, 0)), new, x)
        for row, run in enumerate(runs):
            for low, high in run.exchanges(sweep, energy(x[row]), [True] * 4):
                x[row, [low, high]] = x[row, [high, low]]
        if sweep >= sweeps // 5:
            sums += np.stack([energy(x), x])
    means = sums / (sweeps - sweeps // 5)
    return means.mean(axis=1), means.std(axis=1) / np.sqrt(copies), runs


def exact(energy):
    """(2, 4) canonical means of the energy and of x."""

    x = np.linspace(-4, 4, 100_001)
    weights = np.exp(-(energy(x) - energy(x).min()) / (KB * np.array(KELVINS)[:, None]))
    return np.array([weights @ of / weights.sum(axis=1) for of in (energy(x), x)])


@pytest.mark.parametrize("energy", [harmonic, double_well])
def test_averages_are_canonical_at_every_temperature(energy):
    """Energies and, over a barrier that the coldest walk would never cross, the populations of two wells."""
    means, errors, runs = sampled(energy)
    off = (means - exact(energy)) / errors
    assert np.abs(off).max() < 4.5, off
    assert all(0.1 < run.accepted.sum() / run.tried.sum() < 0.95 for run in runs)
    assert sum(run.round_trips.sum() for run in runs) > 200


def test_a_wrong_sign_is_caught(monkeypatch):
    right = tempering.acceptance
    monkeypatch.setattr(tempering, "acceptance", lambda kelvins, energies: right(kelvins, energies[::-1]))
    means, errors, _ = sampled(harmonic, sweeps=150)
    assert np.abs((means - exact(harmonic))[0] / errors[0]).max() > 10


def crystal():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.02, seed=0)
    return atoms


def test_an_exchange_scales_momenta_and_keeps_what_is_conserved(monkeypatch):
    """Two replicas change places: each has the other's positions, and the other's temperature times the ratio of the targets."""
    seen, original = [], Replicas.exchange

    def watched(self, pairs):
        before = [(m.atoms.positions.copy(), self.temperature(m.index), m.conserved(), m.energy()) for m in self.members]
        original(self, pairs)
        after = [(m.atoms.positions.copy(), self.temperature(m.index), m.conserved(), m.energy()) for m in self.members]
        seen.append((before, after))

    monkeypatch.setattr(Replicas, "exchange", watched)
    monkeypatch.setattr(tempering, "acceptance", lambda kelvins, energies: 1.0)
    options = {"steps": 30, "timestep": 2.0, "interval": 30, "progress": False, "thermostat": "nose_hoover"}
    kelvins = [100.0, 150.0]
    calculator = MLFFCalculator(lennard_jones(precision="float64"))
    run_replicas(crystal(), calculator, 2, temperature=kelvins, tempering=Tempering(10), **options)
    assert len(seen) == 1  # at step 20; at step 10 the pair has no turn
    before, after = seen[0]
    for mine, other in ((0, 1), (1, 0)):
        assert np.array_equal(after[mine][0], before[other][0]) and after[mine][3] == before[other][3]
        assert after[mine][1] == pytest.approx(before[other][1] * kelvins[mine] / kelvins[other])
        assert after[mine][2] == pytest.approx(before[mine][2], abs=1e-9)


def test_replicas_exchange_their_whole_geometry(tmp_path):
    """Energies and forces in the files are those of the positions there, the conserved quantity goes on, kinetic energies fit."""
    potential = lennard_jones(precision="float64")
    calculator, out = MLFFCalculator(potential), tmp_path / "md.xyz"
    kelvins = [100.0, 110.0, 120.0]
    asked = Tempering(5, 1)
    options = {"steps": 60, "timestep": 2.0, "interval": 5, "progress": False, "thermostat": "bussi", "seed": 3}
    log = tmp_path / "md.jsonl"
    results = run_replicas(
        crystal(), calculator, 3, temperature=kelvins, tempering=asked, trajectory=out, log=log, **options
    )
    assert asked.accepted.sum() > 5 and asked.tried.sum() == 11
    assert sorted(asked.walkers) == [0, 1, 2] and "K  accepted" in asked.table()
    for index in range(3):
        frames = read(replica_path(out, index), ":")
        assert len(frames) == 13
        for frame in frames[1:]:
            frame.calc = calculator
            assert frame.get_potential_energy() == pytest.approx(frame.info["mlff_energy"], abs=1e-6)
            np.testing.assert_allclose(frame.get_forces(), frame.arrays["mlff_forces"], atol=1e-5)
        assert abs(results[index].drift) < 20
    for steps in (25, 60):  # the same in two parts
        again, options["steps"] = Tempering(5, 1), steps
        options |= {"restart": steps > 25, "trajectory": tmp_path / "b.xyz"}
        run_replicas(crystal(), calculator, 3, temperature=kelvins, tempering=again, **options)
    assert np.array_equal(again.walkers, asked.walkers) and np.array_equal(again.accepted, asked.accepted)
    for index in range(3):
        assert replica_path(out, index).read_text() == replica_path(tmp_path / "b.xyz", index).read_text()


def test_temperatures_are_read():
    assert read_temperatures("300,350,400", None) == [300.0, 350.0, 400.0]
    np.testing.assert_allclose(read_temperatures("100:800", 4), KELVINS)
    for text, count, message in (
        ("300:900", None, "with --replicas of how many"),
        ("300,hot", None, "are no temperatures"),
        ("300,400", 3, "2 temperatures for 3 replicas"),
        ("-300,400", None, "are no temperatures"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_temperatures(text, count)
    with pytest.raises(ConfigError, match="that increase from replica to replica"):
        Tempering(10).start([300.0, 300.0])
    with pytest.raises(ConfigError, match="needs the ensemble nvt or npt"):
        calculator = MLFFCalculator(lennard_jones())
        run_replicas(crystal(), calculator, 2, ensemble="nve", temperature=[100.0, 200.0], tempering=Tempering(10))


def test_the_command(tmp_path):
    lennard_jones().save(tmp_path / "model.safetensors")
    write(tmp_path / "copper.xyz", crystal())

    def call(*more):
        command = ["md", tmp_path / "model.safetensors", tmp_path / "copper.xyz", "--out", tmp_path / "md.xyz", "--quiet"]
        return CliRunner().invoke(app, [str(word) for word in [*command, "--steps", 20, *more]])

    result = call("--replicas", 3, "--temperatures", "100:200", "--swap-every", 5)
    assert result.exit_code == 0, result.stderr
    assert "round trips between 100 and 200 K" in result.stdout and "3 of 3 replicas done" in result.stdout
    assert "--swap-every needs --temperatures" in call("--replicas", 3, "--swap-every", 5).stderr
    message = "--temperature does not go with --temperatures"
    assert message in call("--temperatures", "100,200", "--temperature", 5).stderr
