"""Many atoms in the compiled engine: neighbours by a grid, forces in chunks, and the same dynamics."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from ase.build import bulk

from mlff import MLFFCalculator
from mlff.potential import capacity, chunks, compiled, linked_cells
from mlff.potential.committee import committee
from mlff.potential.compiled import OutOfMemory
from mlff.simulation import compiled_loop
from mlff.simulation.guard import Limits, SimulationError
from mlff.simulation.md import run_md
from mlff.simulation.record import load_state, save_state, state_path
from mlff.simulation.replica_run import run_replicas
from tests.conftest import make_potential, over_models
from tests.potentials import lennard_jones

OPTIONS = {"ensemble": "nve", "timestep": 2.0, "steps": 60, "interval": 20, "progress": False, "engine": "jax"}
WILD = Limits(force=1e6, temperature=1e9, fused=0.0)


@pytest.fixture
def grids(monkeypatch):
    """Grids pay everywhere."""
    monkeypatch.setattr(capacity, "_GRID_PAYS", 0)


@pytest.fixture
def small_chunks(monkeypatch):
    """A few hundred pairs are many, and eight atoms a chunk."""
    monkeypatch.setattr(compiled, "_LARGE", 200)
    monkeypatch.setattr(chunks, "SMALLEST", 8)
    monkeypatch.setattr(chunks, "_CACHES", 1)


def crystal():
    """108 atoms, in which the potential's reach of 3.5 Å gives a grid of three grid cells along each edge."""
    atoms = bulk("Cu", cubic=True).repeat(3)
    atoms.rattle(0.02, seed=0)
    return atoms


def simulate(atoms, potential, **options):
    run_md(atoms, MLFFCalculator(potential, skin=0.3), **OPTIONS | options)
    return compiled_loop.programs(potential)


def rooms(programs):
    """Of the loops that were compiled, in turn."""
    return [plan.room for plan in programs._loops]


@pytest.mark.slow
def test_a_grid_that_overflows_gives_the_trajectory_of_all_pairs(grids, monkeypatch):
    """Hot atoms that cross the faces of grid cells; to rounding, for sums run in another order."""
    potential, short, whole = lennard_jones(cutoff=3.2, precision="float64"), crystal(), crystal()
    monkeypatch.setattr(capacity, "SLACK", 0.5)
    original = linked_cells.fullest
    with monkeypatch.context() as patch:
        patch.setattr(linked_cells, "fullest", lambda *grid: original(*grid) // 2)
        grown = rooms(simulate(short, potential, temperature=1500.0))
    assert {room.grid for room in grown} == {(3, 3, 3)} and grown[-1].occupants > grown[0].occupants
    monkeypatch.setattr(capacity, "_GRID_PAYS", 1e9)
    room = rooms(simulate(whole, potential, temperature=1500.0))[-1]
    assert room.grid is None
    np.testing.assert_allclose(short.positions, whole.positions, rtol=0, atol=1e-9)
    assert np.abs(short.positions - crystal().positions).max() > 0.5


@pytest.mark.slow
def test_a_cell_that_shrinks_gets_a_coarser_grid(grids):
    """Pressed until its edges are shorter than three times the reach."""
    potential, atoms = lennard_jones(cutoff=3.2, precision="float64"), crystal()
    pressed = {"ensemble": "npt", "temperature": 300.0, "pressure": 60.0, "tau_pressure": 200.0}
    grown = rooms(simulate(atoms, potential, **pressed))
    assert (grown[0].grid, grown[-1].grid) == ((3, 3, 3), (2, 2, 2)) and atoms.cell.array[0, 0] < 10.5
    np.testing.assert_allclose(atoms.get_forces(), potential.predict([atoms])[0].forces, atol=1e-9)


@pytest.mark.slow
@over_models()
def test_slow_forces_in_chunks_give_the_trajectory_of_one_piece(name, potentials, silicon, grids, small_chunks, monkeypatch):
    """Five chunks of eight atoms for 36, the last of which reaches back."""
    potential, ends = potentials(name), []
    for large in (200, 10**9):
        monkeypatch.setattr(compiled, "_LARGE", large)
        atoms = silicon.repeat((3, 3, 2))
        programs = simulate(atoms, potential, temperature=300.0, timestep=0.5, steps=20, limits=WILD)
        assert rooms(programs)[-1].chunk == (8 if large == 200 else 0)
        ends.append((atoms.positions, atoms.get_momenta(), atoms.get_stress()))
    assert np.abs(ends[0][0] - silicon.repeat((3, 3, 2)).positions).max() > 1e-3
    for mine, theirs in zip(*ends, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_memory_that_runs_out_halves_the_chunks_and_a_restart_keeps_them(grids, tmp_path, monkeypatch):
    """108 atoms in one piece, 54 and 27, of which the last fit; also bit by bit where a restart finds more memory."""
    monkeypatch.setattr(chunks, "SMALLEST", 8)
    monkeypatch.setattr(capacity, "SLACK", 0.5)
    original, tried = compiled_loop.Programs.run, []

    def limited(programs, plan, *arguments):
        tried.append(plan.room.chunk)
        if not 0 < plan.room.chunk <= 27:
            raise OutOfMemory("too little")
        return original(programs, plan, *arguments)

    potential = lennard_jones(cutoff=3.2, precision="float64")
    in_one_piece, whole, parts, again = (crystal() for _ in range(4))
    simulate(in_one_piece, potential)
    with monkeypatch.context() as patch:
        patch.setattr(compiled_loop.Programs, "run", limited)
        simulate(whole, potential)
        assert tried[:3] == [0, 54, 27] and set(tried[3:]) == {27}
        simulate(parts, potential, trajectory=tmp_path / "parts.traj", steps=25)
        patch.setattr(chunks, "SMALLEST", 64)
        with pytest.raises(SimulationError, match="stopped at step 0: too little"):
            simulate(crystal(), potential)
    programs = simulate(again, potential, trajectory=tmp_path / "parts.traj", restart=True)
    assert rooms(programs)[-1].chunk == 27 and np.array_equal(again.positions, whole.positions)
    np.testing.assert_allclose(again.positions, in_one_piece.positions, rtol=0, atol=1e-9)
    assert np.abs(again.positions - crystal().positions).max() > 0.1


@pytest.mark.slow
def test_slow_a_restart_whose_list_has_no_room_searches_anew(grids, tmp_path):
    out, potential = tmp_path / "parts.traj", lennard_jones(cutoff=3.2, precision="float64")
    whole, parts = crystal(), crystal()
    simulate(whole, potential)
    simulate(parts, potential, trajectory=out, steps=25)
    state = load_state(state_path(out))
    room = capacity.room_from_numbers(state["list_room"], 108, 1, 100)._replace(occupants=2)
    save_state(state_path(out), state | {"list_room": capacity.room_in_numbers(room)})
    parts = crystal()
    simulate(parts, potential, trajectory=out, restart=True)
    np.testing.assert_allclose(parts.positions, whole.positions, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_slow_replicas_and_committees_are_computed_in_chunks_too(grids, small_chunks, silicon, monkeypatch):
    members = [make_potential("schnet", "float64"), make_potential("schnet", "float64")]
    members[1].params["params"] = jax.tree.map(lambda leaf: 1.01 * leaf, members[1].params["params"])
    ends = []
    for large in (200, 10**9):
        monkeypatch.setattr(compiled, "_LARGE", large)
        copies, potential = silicon.repeat((3, 3, 2)), committee(members)
        options = {"ensemble": "nve", "timestep": 0.5, "steps": 20, "interval": 20, "progress": False, "limits": WILD}
        summaries = run_replicas(copies, MLFFCalculator(potential, skin=0.3), 2, temperature=[100.0, 400.0], **options)
        assert rooms(compiled_loop.programs(potential))[-1].chunk == (8 if large == 200 else 0)
        ends.append([summary.temperature_mean for summary in summaries])
    np.testing.assert_allclose(*ends, rtol=1e-9)
    assert ends[0][0] != pytest.approx(ends[0][1], rel=0.1)


MANY = """
import sys
import numpy as np
from ase.build import bulk
from ase.io import read
from mlff import MLFFCalculator
from mlff.config.options import ACE
from mlff.models import registry
from mlff.models.common import Statistics
from mlff.models.parameters import initial_params
from mlff.potential.potential import Potential
from mlff.simulation.guard import Limits, SimulationError
from mlff.simulation.md import run_md
from tests.memory import peak

config, statistics = ACE(channels=16, l_max=2, l_message=1), Statistics(0.3, 43.0, (-3.5,), inner_cutoff=(1.8,))
params = initial_params(registry.build(config, (29,), statistics), 0)
potential = Potential(config, params, (29,), {29: -1.0}, statistics)
atoms = bulk("Cu", cubic=True).repeat(int(sys.argv[1]))
atoms.rattle(0.05, seed=0)
limits = Limits(force=1e6, temperature=1e9, drift=1e9)
options = {"ensemble": "nve", "steps": 6, "timestep": 2.0, "interval": 6, "limits": limits, "progress": False}
summary = run_md(atoms, MLFFCalculator(potential), trajectory=sys.argv[2], **options)
assert summary.engine == "jax", summary.engine_reason
last = read(sys.argv[2], -1)
assert np.abs(last.get_forces() - potential.predict([last])[0].forces).max() < 5e-4, "eV/Å"
print(peak() / 2**10)
"""


@pytest.mark.slow
def test_slow_twenty_thousand_atoms_of_a_network_need_little_memory(tmp_path):
    """19,652 copper atoms take six steps within 1.2 GiB, of which some 0.5 are JAX and the compiler; in one piece 2.5."""
    command = [sys.executable, "-c", MANY, "17", str(tmp_path / "md.traj")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.2, f"{done.stdout} GiB"
