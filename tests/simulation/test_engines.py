"""The compiled engine: the same dynamics as ASE's loop, no missing pair, no program compiled twice, the same manners."""

import json
import os
import signal

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixedPlane
from ase.io import read

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError, DataError
from mlff.basics.units import KB, STRESS
from mlff.potential import capacity, device_list
from mlff.potential.potential import Potential
from mlff.simulation import compiled_loop
from mlff.simulation.guard import Limits, SimulationError
from mlff.simulation.md import run_md
from mlff.simulation.record import load_state, save_state, state_path
from tests.conftest import MODELS
from tests.potentials import lennard_jones, morse
from tests.simulation.springs import Springs

SLOW = [name for name in MODELS if name not in ("lennard_jones", "ace")]
each_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS]
)


@pytest.fixture(scope="module")
def exact():
    return lennard_jones(precision="float64")


def crystal(repeat=1):
    atoms = bulk("Cu", cubic=True).repeat(repeat)
    atoms.rattle(0.02, seed=0)
    return atoms


def simulate(atoms, potential, **options):
    """The summary, and the lines of the log."""
    options = {"steps": 60, "timestep": 2.0, "progress": False, "interval": 10, "engine": "jax"} | options
    skin = options.pop("skin", 0.5)
    return run_md(atoms, MLFFCalculator(potential, skin=skin), **options)


def compilations(potential):
    return compiled_loop.programs(potential).compilations


@each_model
def test_both_engines_take_the_same_steps(potentials, silicon, name):
    """A sheared, left-handed cell much smaller than the cutoff; forces of random weights are strong."""
    potential, ends = potentials(name, "float64"), []
    for engine in ("jax", "ase"):
        atoms = silicon.copy()
        options = {"ensemble": "nve", "temperature": 100, "timestep": 0.5, "steps": 100, "interval": 50, "engine": engine}
        summary = simulate(atoms, potential, limits=Limits(force=1e6, temperature=1e9, fused=0.0), **options)
        assert summary.engine == engine
        ends.append((atoms.positions, atoms.get_momenta(), summary.temperature_mean, summary.pressure_mean))
    moved = np.abs(ends[0][0] - silicon.positions).max()
    assert moved > 0.01
    for mine, theirs in zip(*ends, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-8)


def test_a_molecule_in_float32_takes_the_same_steps(ethanol):
    ends = []
    for engine in ("jax", "ase"):
        atoms = ethanol.copy()
        atoms.positions += 1e4
        limits = Limits(temperature=1e9)
        simulate(atoms, morse(), ensemble="nve", temperature=50, timestep=0.1, steps=80, engine=engine, limits=limits)
        ends.append(atoms.positions)
    assert np.abs(ends[0] - ends[1]).max() < 1e-5
    assert np.abs(ends[0] - ethanol.positions - 1e4).max() > 0.01


PRESSED = {"ensemble": "npt", "temperature": 2000, "pressure": 20.0, "tau_pressure": 200.0, "skin": 0.2, "steps": 40}
PRESSED |= {"limits": Limits(force=1e3, temperature=1e5)}


@pytest.mark.parametrize("barostat", ["isotropic", pytest.param("full", marks=pytest.mark.slow)])
def test_no_step_is_taken_with_a_pair_missing(monkeypatch, barostat):
    """A hot crystal, pressed until its list overflows again and again, goes the way of one with room to spare.

    To rounding only: programs of other shapes add in another order.
    """
    ends, programs = [], []
    for slack in (0.0, 1.0):
        monkeypatch.setattr(capacity, "SLACK", slack)
        potential, atoms = lennard_jones(precision="float64"), crystal()
        colder = {"temperature": 300, "pressure": 15.0} if barostat == "full" else {}  # what flows does not keep its shape
        simulate(atoms, potential, barostat=barostat, **PRESSED | colder)
        ends.append((atoms.positions, atoms.get_momenta(), atoms.cell.array))
        programs.append(compilations(potential))
    if barostat == "isotropic":
        assert programs[0] >= 3 and programs[1] <= 3  # of each larger list: the loop, and the list as it was
    assert programs[0] > programs[1]
    for mine, theirs in zip(*ends, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name != "lennard_jones" else ()) for name in MODELS]
)
def test_a_cell_that_changes_its_shape_keeps_its_list(potentials, silicon, name):
    """A sheared, left-handed cell under pressure: forces, energy and stress at its end are those of a new list, it did not turn."""
    potential, start = potentials(name, "float64"), silicon.cell.array.copy()
    options = {"ensemble": "npt", "barostat": "full", "pressure": 5.0, "tau_pressure": 100.0, "timestep": 0.5, "steps": 60}
    options |= {"temperature": 50, "interval": 60, "skin": 0.3}
    simulate(silicon, potential, limits=Limits(force=1e6, temperature=1e9, fused=0.0), **options)
    change = np.linalg.solve(start, silicon.cell.array)
    assert np.abs(change - np.eye(3) * np.trace(change) / 3).max() > 0.002
    fresh = potential.predict([silicon])[0]
    assert silicon.get_potential_energy() == pytest.approx(fresh.energy, abs=1e-8)
    np.testing.assert_allclose(silicon.get_forces(), fresh.forces, atol=1e-7)
    across, before = (np.cross(cell[0], cell[1]) for cell in (silicon.cell.array, start))
    assert np.linalg.norm(np.cross(silicon.cell.array[0], start[0])) < 1e-9  # the first vector keeps its direction
    assert np.linalg.norm(np.cross(across, before)) < 1e-9  # and the first two their plane


@pytest.mark.slow
def test_steps_with_pairs_missing_would_be_noticed(monkeypatch):
    """A list with too little room, whose overflow is not seen."""
    monkeypatch.setattr(capacity, "SLACK", -0.3)
    monkeypatch.setattr(device_list, "fits", lambda *_: True)
    with pytest.raises(SimulationError, match="forces differ from the calculator's"):
        simulate(crystal(2), lennard_jones(precision="float64"), **PRESSED)


@pytest.mark.slow
def test_a_cell_that_shrinks_below_what_was_searched_gets_more_images(exact):
    """Under pressure the images that were enough at the start no longer are."""
    atoms = crystal()
    atoms.set_cell(atoms.cell.array * 1.06, scale_atoms=True)
    search = capacity.Search((True,) * 3, exact.cutoff, 0.1, np.float64)
    length = (exact.cutoff + 0.1) / 1.5  # just above it one image on each side is searched, below two
    atoms.set_cell(np.eye(3) * (length + 0.01), scale_atoms=True)
    assert capacity.image_counts(search, atoms.cell.array).tolist() == [1, 1, 1]
    options = {"ensemble": "npt", "temperature": 100, "timestep": 1.0, "tau_pressure": 100, "pressure": 60.0}
    simulate(atoms, exact, skin=0.1, steps=60, limits=Limits(force=1e6), **options)
    assert (capacity.image_counts(search, atoms.cell.array) >= 2).all()
    mine, theirs = atoms.get_forces(), exact.predict([atoms])[0].forces
    np.testing.assert_allclose(mine, theirs, atol=1e-8)


def test_nothing_is_compiled_twice(exact):
    options = {"temperature": 200, "steps": 30}
    simulate(crystal(), exact, **options)
    before = compilations(exact)
    simulate(crystal(), exact, **options | {"steps": 95, "interval": 7, "temperature": 400, "timestep": 1.0, "seed": 3})
    simulate(crystal(), exact, **options | {"tau": 50.0, "limits": Limits(force=100.0)})
    assert compilations(exact) == before


@pytest.mark.parametrize("thermostat", ["langevin", pytest.param("bussi", marks=pytest.mark.slow), "nose_hoover"])
def test_a_restart_goes_on_bit_by_bit(exact, tmp_path, thermostat):
    def atoms():
        made = crystal(2)
        made.set_constraint(FixAtoms([0, 5]))
        return made

    whole, parts = atoms(), atoms()
    options = {"thermostat": thermostat, "temperature": 600, "steps": 60}
    simulate(whole, exact, trajectory=tmp_path / "whole.xyz", log=tmp_path / "whole.csv", **options)
    files = {"trajectory": tmp_path / "parts.xyz", "log": tmp_path / "parts.csv"}
    for steps in (0, 23, 60):
        parts = atoms()
        simulate(parts, exact, **options | {"steps": steps}, restart=steps > 0, **files)
    assert np.array_equal(parts.positions, whole.positions) and np.array_equal(parts.get_momenta(), whole.get_momenta())
    start = crystal(2)
    assert (
        np.array_equal(parts.positions[[0, 5]], start.positions[[0, 5]])
        and np.abs(parts.positions - start.positions).max() > 0.1
    )
    lines = [(tmp_path / f"{name}.csv").read_text().splitlines() for name in ("whole", "parts")]
    assert [line for line in lines[1] if not line.startswith("23,")] == lines[0]


def interrupt(patch, call, number):
    """A signal comes when the compiled loop is called for that time."""
    original, calls = compiled_loop.Programs.run, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    patch.setattr(compiled_loop.Programs, "run", interrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_a_whole_step_and_the_run_can_be_resumed(exact, tmp_path, monkeypatch, number):
    whole, again, out = crystal(), crystal(), tmp_path / "cut.traj"
    simulate(whole, exact, trajectory=tmp_path / "whole.traj")
    with monkeypatch.context() as patch:
        interrupt(patch, 4, number)
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
            simulate(crystal(), exact, trajectory=out)
    assert 0 < int(load_state(state_path(out))["step"]) < 60
    simulate(again, exact, trajectory=out, restart=True)
    assert np.array_equal(again.positions, whole.positions) and len(read(out, ":")) == 7


def test_a_run_that_goes_wrong_stops_at_that_step(exact, tmp_path):
    out = tmp_path / "bad.traj"
    with pytest.raises(SimulationError, match=r"stopped at step \d+: the (force on atom|temperature is)") as caught:
        simulate(crystal(), exact, temperature=20000.0, steps=500, interval=100, trajectory=out, limits=Limits(force=8.0))
    assert "last good frame: step 0" in str(caught.value) and np.isfinite(read(out, -1).get_forces()).all()
    with pytest.raises(SimulationError, match="limit 250"):
        simulate(crystal(), exact, steps=500, temperature=240.0, interval=500, limits=Limits(temperature=250.0))
    water = molecule("H2O")
    with pytest.raises(SimulationError, match="fused"):
        simulate(
            water, morse(), ensemble="nve", timestep=0.1, steps=4000, interval=4000, limits=Limits(force=1e9, fused=1.0)
        )


class _Corrected(MLFFCalculator):
    """Something that a user has built on the calculator."""


def test_auto_takes_the_compiled_engine_where_it_can_do_what_is_asked(exact, ethanol):
    held = ethanol.copy()
    held.set_constraint(FixedPlane(0, [0, 0, 1]))
    options = {"steps": 1, "timestep": 0.1, "engine": "auto"}
    for atoms, calculator, reason in (
        (ethanol.copy(), Springs(ethanol), "the calculator is not mlff's own"),
        (ethanol.copy(), _Corrected(morse()), "the calculator is not mlff's own"),
        (held, MLFFCalculator(morse()), "the constraint FixedPlane"),
    ):
        summary = run_md(atoms, calculator, progress=False, **options)
        assert (summary.engine, summary.engine_reason) == ("ase", reason)
        with pytest.raises(ConfigError, match=f"the engine jax cannot do this: {reason}; take engine ase"):
            run_md(atoms, calculator, progress=False, **options | {"engine": "jax"})
    summary = simulate(ethanol.copy(), morse(), **options)
    assert (summary.engine, summary.engine_reason) == ("jax", None)
    wide = bulk("Cu", cubic=True).repeat((80, 1, 1))
    assert "wider than 256 Å in float32" in simulate(wide, lennard_jones(), **options).engine_reason
    with pytest.raises(ConfigError, match="unknown engine 'gpu'; known: auto, jax, ase"):
        simulate(ethanol.copy(), morse(), **options | {"engine": "gpu"})
    with pytest.raises(ConfigError, match="tau_pressure must be at least 100 time steps, 200 fs, not 150"):
        simulate(crystal(), exact, ensemble="npt", tau_pressure=150.0)


def test_a_ramp_goes_by_the_number_of_the_step(exact, tmp_path, monkeypatch):
    """Target temperature and pressure in the log, the kinetic energy behind them; a restart in the middle changes no bit."""
    options = {"temperature": 100.0, "temperature_end": 700.0, "ensemble": "npt", "tau": 20.0, "interval": 20}
    options |= {"pressure": 0.0, "pressure_end": 2.0, "barostat": "full"}
    whole, parts, out, log = crystal(2), crystal(2), tmp_path / "ramp.traj", tmp_path / "ramp.jsonl"
    simulate(whole, exact, steps=200, log=tmp_path / "whole.jsonl", **options)
    with monkeypatch.context() as patch:
        interrupt(patch, 4, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            simulate(parts, exact, steps=200, trajectory=out, log=log, **options)
    assert 0 < int(load_state(state_path(out))["step"]) < 200
    again = crystal(2)
    run_md(again, MLFFCalculator(exact), trajectory=out, log=log, restart=True, steps=200, progress=False)
    assert np.array_equal(again.positions, whole.positions) and np.array_equal(again.cell.array, whole.cell.array)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines == [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["target_k"] == pytest.approx(100 + 600 * line["step"] / 200)
        assert line["target_gpa"] == pytest.approx(2 * line["step"] / 200)
    assert 500 < lines[-1]["temperature_k"] < 900 and abs(lines[-1]["conserved_ev"] - lines[0]["conserved_ev"]) < 0.1
    with pytest.raises(DataError, match="the earlier run had temperature_end 700.0, not 800.0; leave temperature_end out"):
        options = {"restart": True, "progress": False, "temperature_end": 800.0, "steps": 300}
        run_md(crystal(2), MLFFCalculator(exact), trajectory=out, log=log, **options)


def test_a_restart_keeps_its_engine(tmp_path):
    out, potential = tmp_path / "a.traj", lennard_jones()
    simulate(crystal(), potential, steps=5, trajectory=out, engine="ase")
    with pytest.raises(DataError, match="a.state.npz: the earlier run had engine ase, not jax; leave engine out"):
        simulate(crystal(), potential, steps=10, trajectory=out, restart=True, engine="jax")
    assert simulate(crystal(), potential, steps=10, trajectory=out, restart=True, engine="auto").engine == "ase"
    simulate(crystal(), potential, steps=5, trajectory=out)
    with pytest.raises(DataError, match="the engine jax of the earlier run cannot go on: the calculator is not mlff's own"):
        run_md(crystal(), Springs(crystal()), steps=10, trajectory=out, restart=True, progress=False)
    assert json.loads((tmp_path / "a.run.json").read_text())[-1]["engine"] == "jax"


DAMAGE = {
    "list_room": np.array([10**9, 1, 1, 1]),
    "list_reference": np.zeros((3, 3)),
    "engine_forces": np.zeros((4, 3), int),
    "engine_stress": None,
    "chain": np.full((2, 3), np.nan),
    "engine": np.array("fast"),
}


def test_a_damaged_state_is_one_line(exact, tmp_path):
    out = tmp_path / "a.traj"
    simulate(crystal(), exact, steps=5, trajectory=out)
    whole = load_state(state_path(out))
    for name, value in DAMAGE.items():
        others = {key: array for key, array in whole.items() if key != name}
        save_state(state_path(out), others if value is None else others | {name: value})
        with pytest.raises(DataError, match="a.state.npz: .* start without restart"):
            simulate(crystal(), exact, steps=10, trajectory=out, restart=True)
    for room in (whole["list_room"], whole["list_room"][:4]):  # earlier versions wrote four numbers
        save_state(state_path(out), whole | {"list_room": room})
        simulate(crystal(), exact, steps=10, trajectory=out, restart=True)


def test_an_engine_that_differs_from_the_calculator_is_noticed(exact, monkeypatch):
    fresh = Potential(exact.config, {}, exact.elements, exact.baseline, precision="float64")
    original = device_list.graph_at
    monkeypatch.setattr(
        device_list, "graph_at", lambda *a: (lambda g: g._replace(positions=g.positions.at[0, 0].add(0.1)))(original(*a))
    )
    with pytest.raises(SimulationError, match="forces differ from the calculator's by .* take engine ase"):
        simulate(crystal(), fresh)


@pytest.mark.slow
def test_slow_volume_fluctuations_are_those_of_the_equation_of_state(tmp_path):
    """var V = kT V / B, with B from pressures of the same crystal at two fixed volumes and the same temperature."""
    potential, kelvin, base = lennard_jones(precision="float64"), 60.0, bulk("Cu", a=3.6, cubic=True).repeat(2)
    options = {"temperature": kelvin, "timestep": 4.0, "interval": 5}

    def lines(atoms, name, steps, **more):
        simulate(atoms, potential, steps=1000, **options | more)
        simulate(atoms, potential, steps=steps, keep_velocities=True, log=tmp_path / name, **options | more)
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    npt = lines(base.copy(), "npt.jsonl", 40_000, ensemble="npt", tau_pressure=400.0)
    volumes = np.array([line["volume_a3"] for line in npt])
    pressures = []
    for share in (0.99, 1.01):
        atoms = base.copy()
        atoms.set_cell(base.cell.array * (share * volumes.mean() / base.get_volume()) ** (1 / 3), scale_atoms=True)
        fixed = lines(atoms, f"{share}.jsonl", 10_000)
        pressures.append(np.mean([line["pressure_gpa"] for line in fixed]))
    modulus = (pressures[0] - pressures[1]) / 0.02
    assert 20 < modulus < 300
    expected = KB * kelvin * volumes.mean() / (modulus * STRESS["GPa"])
    assert np.var(volumes) == pytest.approx(expected, rel=0.2)
    assert abs(np.mean([line["pressure_gpa"] for line in npt])) < 0.05
    drift = np.array([line["conserved_ev"] for line in npt])
    assert np.ptp(drift) < 0.1 * KB * kelvin * 96
