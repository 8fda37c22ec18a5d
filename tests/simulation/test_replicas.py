"""Many runs in one compiled call: each as if it were alone, and one that blows up rests while the others go on."""

import json
import threading

import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixedPlane
from ase.io import read, write
from typer.testing import CliRunner

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError
from mlff.cli import app
from mlff.simulation import compiled_loop, replicas
from mlff.simulation.driver import Summary
from mlff.simulation.guard import Guard, Limits, SimulationError
from mlff.simulation.jax_engine import JaxEngine
from mlff.simulation.md import run_md
from mlff.simulation.replica_run import replica_path, run_replicas
from mlff.simulation.settings import Settings
from mlff.simulation.tempering import Tempering
from mlff.simulation.velocities import maxwell_boltzmann
from tests.potentials import lennard_jones, morse

OPTIONS = {"steps": 40, "timestep": 2.0, "progress": False, "interval": 10}


@pytest.fixture(scope="module")
def exact():
    return lennard_jones(precision="float64")


def crystal():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.02, seed=0)
    return atoms


def test_each_replica_goes_the_way_of_a_run_alone(exact, tmp_path):
    """The same velocities and random numbers, whoever runs beside it; and a replica can be restarted alone."""
    out, log = tmp_path / "md.xyz", tmp_path / "md.jsonl"
    results = run_replicas(crystal(), MLFFCalculator(exact), 3, seed=5, trajectory=out, log=log, **OPTIONS)
    assert all(isinstance(result, Summary) and result.steps == 40 for result in results)
    before = compiled_loop.programs(exact).compilations
    ends = []
    for index in range(3):
        alone = crystal()
        run_md(alone, MLFFCalculator(exact), seed=5 + index, engine="jax", **OPTIONS)
        last = read(replica_path(out, index), -1)
        np.testing.assert_allclose(last.positions, alone.positions, atol=1e-7)
        ends.append(last.positions)
        assert len(replica_path(log, index).read_text().splitlines()) == 5
        assert json.loads((tmp_path / f"md.{index}.run.json").read_text())[0]["seed"] == 5 + index
    assert compiled_loop.programs(exact).compilations == before + 1
    assert np.abs(ends[0] - ends[1]).max() > 1e-3
    whole, parts = crystal(), crystal()
    run_md(whole, MLFFCalculator(exact), seed=6, engine="jax", **OPTIONS | {"steps": 60})
    run_md(parts, MLFFCalculator(exact), trajectory=replica_path(out, 1), restart=True, progress=False, steps=60)
    np.testing.assert_allclose(parts.positions, whole.positions, atol=1e-9)


def test_replicas_in_groups_go_the_same_way(tmp_path, monkeypatch):
    """Three groups of two, of which one has a replica that rests: forces, stress and who goes on stay with their replica."""
    ends, kelvin = [], [300.0, 300.0, 300.0, 1e7, 300.0, 600.0]
    for name, most in (("whole", 1000), ("groups", 8)):
        monkeypatch.setattr(compiled_loop, "_ATOMS", most)
        potential, out = lennard_jones(precision="float64"), tmp_path / f"{name}.xyz"
        options = OPTIONS | {"temperature": kelvin, "ensemble": "npt", "tau_pressure": 200.0}
        results = run_replicas(crystal(), MLFFCalculator(potential), 6, seed=5, trajectory=out, **options)
        (plan,) = compiled_loop.programs(potential)._loops
        assert compiled_loop.together(plan) == (6 if name == "whole" else 2)
        assert [isinstance(result, SimulationError) for result in results] == [k > 1e6 for k in kelvin]
        last = [read(replica_path(out, index), -1) for index in (0, 1, 2, 4, 5)]
        ends.append([np.vstack([atoms.positions, atoms.cell.array, atoms.get_momenta()]) for atoms in last])
    np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-8)
    assert np.abs(np.diff(ends[0], axis=0)).max(axis=(1, 2)).min() > 1e-3


def test_one_that_blows_up_rests_and_the_others_go_on(exact, tmp_path):
    out = tmp_path / "md.traj"
    options = OPTIONS | {"limits": Limits(temperature=900.0), "temperature": [100.0, 850.0, 100.0], "trajectory": out}
    results = run_replicas(crystal(), MLFFCalculator(exact), 3, **options | {"steps": 200})
    assert [isinstance(result, SimulationError) for result in results] == [False, True, False]
    assert (
        "the temperature is" in str(results[1]) and "md.1.traj" in str(results[1]) and "stopped at step" in str(results[1])
    )
    assert [len(read(replica_path(out, index), ":")) for index in (0, 2)] == [21, 21]
    assert 1 <= len(read(replica_path(out, 1), ":")) < 21


def frames_of(potential, out, monkeypatch, **changed) -> list[bytes]:
    """What three replicas wrote, where the next steps are taken beside, and where not."""
    written = []
    for cores in (2, 1):
        monkeypatch.setattr(replicas, "usable_cores", lambda cores=cores: cores)
        run_replicas(crystal(), MLFFCalculator(potential), 3, trajectory=out, **OPTIONS | changed)
        written.append(b"".join(replica_path(out, index).read_bytes() for index in range(3)))
    return written


@pytest.mark.parametrize("kind", ["plain", "lists overflow", "one rests", "exchanges"])
def test_steps_taken_while_frames_are_written_are_the_same(exact, kind, tmp_path, monkeypatch):
    """Bit by bit, whatever happens to the states or the lists meanwhile; and they are begun once a frame."""
    changed = {
        "plain": {"steps": 200},
        "lists overflow": {"steps": 200, "temperature": 3000.0, "limits": Limits(temperature=1e6)},
        "one rests": {"steps": 200, "limits": Limits(temperature=900.0), "temperature": [100.0, 850.0, 100.0]},
        "exchanges": {"steps": 200, "temperature": [300.0, 310.0, 320.0], "tempering": Tempering(every=20)},
    }[kind]
    begun, real = [], compiled_loop.Programs.run

    def run(self, *arguments):
        begun.append(threading.current_thread() is not threading.main_thread())
        return real(self, *arguments)

    monkeypatch.setattr(compiled_loop.Programs, "run", run)
    beside, after = frames_of(exact, tmp_path / "md.xyz", monkeypatch, **changed)
    assert beside == after
    assert sum(begun) >= (5 if kind == "exchanges" else 10)


def test_steps_begun_that_are_not_asked_for_are_dropped(exact, monkeypatch):
    monkeypatch.setattr(replicas, "usable_cores", lambda: 2)
    ends = []
    for asked in (4, 6, 0):
        engine = jax_engine_of(exact)
        for _ in range(4):
            if asked:
                engine.begin(asked)
            at = engine.step
            while engine.step < at + 6:
                engine.advance(at + 6 - engine.step)
        ends.append(engine.atoms.positions.copy())
    np.testing.assert_array_equal(ends[0], ends[2])
    np.testing.assert_array_equal(ends[1], ends[2])


def jax_engine_of(potential) -> JaxEngine:
    atoms = crystal()
    maxwell_boltzmann(atoms, 300.0, np.random.default_rng(0))
    atoms.calc = MLFFCalculator(potential)
    atoms.calc.always_stress = True
    return JaxEngine(atoms, Settings(), Guard(atoms, Limits(), 300.0, 9), 0, 9)


def test_what_replicas_cannot_do_is_said(exact, ethanol):
    ethanol.set_constraint(FixedPlane(0, [0, 0, 1]))
    with pytest.raises(ConfigError, match="replicas need the engine jax, which cannot do this: the constraint FixedPlane"):
        run_replicas(ethanol, MLFFCalculator(morse()), 2)
    with pytest.raises(ConfigError, match="2 temperatures for 3 replicas"):
        run_replicas(crystal(), MLFFCalculator(exact), 3, temperature=[100.0, 200.0])


def test_the_command(tmp_path):
    lennard_jones().save(tmp_path / "model.safetensors")
    write(tmp_path / "copper.xyz", crystal())
    out = tmp_path / "md.xyz"

    def call(*more):
        command = ["md", tmp_path / "model.safetensors", tmp_path / "copper.xyz", "--out", out, "--replicas", 2, "--quiet"]
        return CliRunner().invoke(app, [str(word) for word in [*command, "--steps", 20, *more]])

    result = call()
    assert result.exit_code == 0, result.stderr
    assert "2 of 2 replicas done" in result.stdout and len(read(tmp_path / "md.1.xyz", ":")) == 3
    assert "md.0.xyz: exists; --restart continues all of them, --force overwrites them" in call().stderr
    result = call("--restart", "--steps", 40)
    assert result.exit_code == 0 and len(read(tmp_path / "md.1.xyz", ":")) == 5, result.stderr
    assert (
        "the earlier run had no parallel tempering"
        in call("--restart", "--steps", 60, "--temperatures", "300,310", "--swap-every", 5).stderr
    )
    result = call("--force", "--max-temperature", 10)
    assert (
        result.exit_code == 1 and "stopped before the end" in result.stderr and "md.0.xyz: stopped at step" in result.stderr
    )
