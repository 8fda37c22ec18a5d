"""Many structures relax side by side to the minima that they reach one by one."""

import signal

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLength
from ase.io import read, write
from typer.testing import CliRunner

from mlff.basics.errors import ConfigError, StructureError
from mlff.cli import app
from mlff.interfaces.ase import MLFFCalculator
from mlff.potential import compiled, packing
from mlff.potential.compiled import OutOfMemory, Programs
from mlff.potential.potential import Potential
from mlff.simulation import lbfgs
from mlff.simulation.batch import Batch
from mlff.simulation.mover import SKIN
from mlff.simulation.relax import relax
from mlff.simulation.relaxations import relax_many
from tests.conftest import make_potential
from tests.potentials import lennard_jones, morse

NAMES = ["H2O", "CH3OH", "CO2", "CH4", "H2O2", "CO", "C2H2", "H2CO", "C6H6"]


def molecules(rattle: float = 0.05) -> list[Atoms]:
    rng = np.random.default_rng(0)
    found = [molecule(name) for name in NAMES]
    for atoms in found:
        atoms.positions += rng.normal(0, rattle, atoms.positions.shape)
    return found


def run(structures, potential, **options):
    """The results in order; the structures move."""
    found = dict(relax_many(structures, MLFFCalculator(potential), progress=False, **options))
    assert sorted(found) == list(range(len(structures)))
    return [found[index] for index in range(len(structures))]


def distances(atoms: Atoms) -> np.ndarray:
    return np.sort(atoms.get_all_distances(mic=True).ravel())


def test_molecules_reach_the_minima_that_ase_finds():
    potential = morse(precision="float64")
    together, alone = molecules()[:5], molecules()[:5]
    results = run(together, potential, fmax=1e-3)
    calculator = MLFFCalculator(potential)
    for one, other, result in zip(together, alone, results, strict=True):
        single = relax(other, calculator, fmax=1e-3, progress=False)
        assert result.converged and result.forces_max < 1e-3 and result.energy_change < 0
        assert result.energy == pytest.approx(single.energy, abs=1e-4)
        np.testing.assert_allclose(distances(one), distances(other), atol=0.01)
        assert one.get_potential_energy() == result.energy


@pytest.mark.slow
def test_a_many_body_model_is_followed_through_new_neighbour_lists():
    potential = make_potential("ace", "float64")
    structures = [molecule("H2O"), bulk("Si"), molecule("CH3OH")]
    for k, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=k)
    before = potential.predict(structures)
    results = run(structures, potential, fmax=1e-4, steps=12)
    assert max(result.displacement for result in results) > 0.5 * SKIN
    for one, result, first, last in zip(structures, results, before, potential.predict(structures), strict=True):
        assert result.energy_change < 0
        assert result.energy == pytest.approx(last.energy, abs=1e-8)
        assert result.energy - result.energy_change == pytest.approx(first.energy, abs=1e-8)
        np.testing.assert_allclose(one.get_forces(), last.forces, atol=1e-8)


def test_a_structure_moves_as_it_would_by_itself():
    potential = morse(precision="float64")
    together = molecules()
    results = run(together, potential, fmax=1e-3)
    for index in (1, 4):
        alone = molecules()[index]
        (result,) = run([alone], potential, fmax=1e-3)
        assert result.steps == results[index].steps
        np.testing.assert_allclose(alone.positions, together[index].positions, atol=1e-7)


def test_nothing_is_compiled_while_structures_take_the_places_of_others(monkeypatch):
    monkeypatch.setattr(packing, "ATOMS", 24)
    potential, inside = lennard_jones(precision="float64"), []
    advance = Batch.advance

    def counted(batch, *arguments):
        inside.append((len(batch.waiting), potential.programs.compilations))
        return advance(batch, *arguments)

    monkeypatch.setattr(Batch, "advance", counted)
    cells = [bulk("Cu", a=3.7, cubic=True) for _ in range(30)]
    for k, atoms in enumerate(cells):
        atoms.rattle(0.02 + 0.004 * k, seed=k)
    results = run(cells, potential, fmax=0.01)
    assert all(result.converged for result in results) and len({result.steps for result in results}) > 3
    waiting = [compilations for count, compilations in inside[1:] if count]
    assert inside[0][0] >= 20 and len(waiting) > 10
    assert set(waiting) == {1}
    assert potential.programs.compilations <= 2


def test_fixed_atoms_stay_and_other_constraints_go_through_ase():
    potential = morse()
    structures = molecules()[:4]
    structures[0].set_constraint(FixAtoms([0]))
    structures[1].set_constraint(FixBondLength(0, 1))
    begin = [atoms.copy() for atoms in structures]
    results = run(structures, potential, fmax=0.02)
    assert all(result.converged for result in results)
    assert np.array_equal(structures[0].positions[0], begin[0].positions[0]) and results[0].displacement > 0
    assert structures[1].get_distance(0, 1) == pytest.approx(begin[1].get_distance(0, 1), abs=1e-6)
    assert np.abs(structures[0].get_forces(apply_constraint=False).sum(axis=0)).max() < 1e-3


def test_what_blows_up_is_told_and_the_others_go_on(monkeypatch):
    structures = molecules()[:3]
    structures.insert(1, Atoms("H2", [[0, 0, 0], [0, 0, 0.05]]))  # thrown apart
    potential = lennard_jones(cutoff=4.0, epsilon=0.1, sigma=1.2, precision="float64")
    results = run(structures, potential, fmax=0.02)
    assert [result.converged for result in results] == [True, False, True, True]
    assert "no result" in results[1].warning
    for index in (0, 2, 3):
        assert results[index].energy_change < 0 and structures[index].calc is not None


def test_bad_structures_are_named_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(Programs, "run", lambda *_: pytest.fail("computed"))
    water, potential = molecule("H2O"), morse()
    for bad, match in (
        (Atoms("HXe", [[0, 0, 0], [0, 0, 1.0]]), "structures, structure 1: atom 1 is Xe"),
        (Atoms("H2", [[0, 0, 0], [0, 0, 1e-5]]), "structures, structure 1: atoms 0 and 1 are on top"),
        (Atoms(), "structures, structure 1: has no atoms"),
    ):
        with pytest.raises(StructureError, match=match):
            run([water, bad], potential)
    with pytest.raises(ConfigError, match="structure 0: its cell can only relax"):
        run([water, water], potential, cell=True)
    with pytest.raises(ConfigError, match="fmax"):
        run([water, water], potential, fmax=0.0)


def short_of_memory(monkeypatch, most: int) -> list[int]:
    """Graphs of more atoms than that do not fit; the sizes that were tried."""
    tried, original = [], Programs._run

    def limited(programs, name, params, graph, *arguments):
        tried.append(graph.neighbors.shape[0])
        if tried[-1] > most:
            raise MemoryError
        return original(programs, name, params, graph, *arguments)

    monkeypatch.setattr(Programs, "_run", limited)
    return tried


def test_batches_halve_when_memory_runs_out(monkeypatch):
    potential, structures = morse(precision="float64"), molecules()
    whole = potential.predict(structures)
    expected = run(molecules(), potential, fmax=0.02)
    tried = short_of_memory(monkeypatch, 30)
    for result, one in zip(potential.predict(structures), whole, strict=True):
        np.testing.assert_allclose(result.forces, one.forces, atol=1e-9)
    assert max(tried) > 30 and tried.count(max(tried)) == 1
    results = run(structures, potential, fmax=0.02)
    for result, one in zip(results, expected, strict=True):
        assert result.converged and result.energy == pytest.approx(one.energy, abs=1e-4)


def test_a_structure_that_does_not_fit_by_itself_is_named(monkeypatch):
    potential, structures = morse(), molecules()
    short_of_memory(monkeypatch, 11)
    with pytest.raises(OutOfMemory, match="structure 8: 12 atoms x .* neighbours need more memory than there is"):
        potential.predict(structures)
    results = run(structures, potential, fmax=0.02)
    assert [index for index, result in enumerate(results) if not result.converged] == [8]
    assert "more memory" in results[8].warning


def test_what_xla_says_of_memory_is_understood():
    graph = morse().graph_of(molecule("H2O"))
    with pytest.raises(OutOfMemory, match="3 atoms x"), compiled.memory_errors(*graph.neighbors.shape):
        raise compiled.jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")
    with (
        pytest.raises(compiled.jax.errors.JaxRuntimeError, match="INTERNAL"),
        compiled.memory_errors(*graph.neighbors.shape),
    ):
        raise compiled.jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_other_devices_take_as_many_atoms_as_half_of_their_memory_holds(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    monkeypatch.setattr(packing, "ATOMS", 16)
    monkeypatch.setattr(packing, "_MOST_ATOMS", 64)
    potential, structures = morse(), [molecule("CH4") for _ in range(40)]
    shapes, original = [], Programs._run
    monkeypatch.setattr(
        Programs,
        "_run",
        lambda self, name, params, graph: shapes.append(graph.neighbors.shape[0]) or original(self, name, params, graph),
    )
    potential.predict(structures)
    assert shapes[0] < 24 and max(shapes) > 48 and potential.programs.slots("forces") > 1
    shapes.clear()
    assert all(result.converged for result in run(molecules(), potential, fmax=0.05))


def test_lbfgs_finds_the_minimum_of_springs_of_any_stiffness():
    sizes = np.array([1, 3, 2])
    stiffness = np.repeat([0.5, 20.0, 200.0], sizes)[:, None]
    positions = np.random.default_rng(0).normal(0, 1, (6, 3))
    state = lbfgs.join([lbfgs.start(n) for n in sizes])
    for _ in range(40):
        state, moves = lbfgs.step(state, -stiffness * positions, sizes)
        assert np.linalg.norm(moves, axis=1).max() <= 0.2 + 1e-12
        positions = positions + moves
    assert np.abs(stiffness * positions).max() < 1e-3
    parts = lbfgs.split(state, sizes)
    np.testing.assert_array_equal(lbfgs.join(parts).moves, state.moves)


@pytest.fixture
def folder(tmp_path):
    morse().save(tmp_path / "model.safetensors")
    write(tmp_path / "many.xyz", molecules())
    return tmp_path


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_command(folder):
    arguments = "relax", folder / "model.safetensors", folder / "many.xyz", "--out", folder / "out.xyz", "-q"
    code, out, err = call(*arguments, "--fmax", 0.02)
    assert code == 0, err
    assert "9 of 9 structures converged" in out and "energies lowered by" in out
    relaxed = read(folder / "out.xyz", ":")
    assert [str(atoms.symbols) for atoms in relaxed] == [str(atoms.symbols) for atoms in molecules()]
    assert all(atoms.info["converged"] and np.abs(atoms.arrays["mlff_forces"]).max() < 0.02 for atoms in relaxed)
    code, _, err = call(*arguments, "--steps", 1)
    assert code == 1 and "structure 0: not converged after 1 steps" in err and err.count("\n") == 1
    assert not any(atoms.info["converged"] for atoms in read(folder / "out.xyz", ":"))
    code, _, err = call(*arguments, "--trajectory", folder / "steps.xyz")
    assert code == 1 and "--trajectory is of one" in err
    code, _, err = call(*arguments[:4], folder / "out.cif", "-q")
    assert code == 1 and "out.cif: the name must end in .xyz, .extxyz" in err
    code, _, err = call(*arguments, "--frame", 2)
    assert code == 0 and len(read(folder / "out.xyz", ":")) == 1


def test_results_of_an_earlier_relaxation_do_not_stay(folder):
    marked = molecules()
    for atoms in marked:
        atoms.info |= {"converged": True, "mlff_energy": 7.0}
        atoms.arrays["mlff_forces"] = np.zeros((len(atoms), 3))
    marked[1] = Atoms("OH", [[0, 0, 0], [0, 0, 0.35]], info={"mlff_energy": 7.0, "converged": True})  # fused
    write(folder / "marked.xyz", marked)
    code, _, err = call(
        "relax", folder / "model.safetensors", folder / "marked.xyz", "--out", folder / "out.xyz", "--steps", 1
    )
    assert code == 1 and "more" not in err and "structure 1:" in err
    for atoms in read(folder / "out.xyz", ":"):
        assert not atoms.info["converged"] and atoms.info.get("mlff_energy") != 7.0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_it_writes_all_and_says_how_to_go_on(folder, monkeypatch, number, code):
    compute, calls = Potential.compute, []

    def interrupted(potential, graph, stress=False):
        calls.append(1)
        if len(calls) == 15:
            signal.raise_signal(number)
        return compute(potential, graph, stress)

    model = folder / "model.safetensors"
    call("relax", model, folder / "many.xyz", "--out", folder / "once.xyz", "-q")
    monkeypatch.setattr(Potential, "compute", interrupted)
    found, _, err = call("relax", model, folder / "many.xyz", "--out", folder / "out.xyz", "-q")
    assert found == code and "of 9 structures; " in err and "to go on, relax that file" in err
    frames = read(folder / "out.xyz", ":")
    assert len(frames) == 9 and len({frame.info["converged"] for frame in frames}) == 2
    monkeypatch.undo()
    found, _, err = call("relax", model, folder / "out.xyz", "--out", folder / "again.xyz", "-q")
    assert found == 0, err
    energies = [[atoms.info["mlff_energy"] for atoms in read(folder / name, ":")] for name in ("once.xyz", "again.xyz")]
    np.testing.assert_allclose(*energies, atol=1e-3)
