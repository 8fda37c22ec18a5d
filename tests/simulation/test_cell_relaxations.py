"""Many structures relax side by side with their cells, to the minima that they reach one by one."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read, write
from scipy.linalg import expm
from typer.testing import CliRunner

from mlff.basics.errors import ConfigError
from mlff.basics.units import STRESS
from mlff.cli import app
from mlff.interfaces.ase import MLFFCalculator
from mlff.potential import packing
from mlff.potential.potential import Potential
from mlff.simulation.batch import Batch
from mlff.simulation.descent import CellDescent, cell_pull
from mlff.simulation.mover import make_mover
from mlff.simulation.relax import relax
from mlff.simulation.relaxations import relax_many
from tests.conftest import make_potential, over_models
from tests.potentials import lennard_jones, morse


@pytest.fixture(scope="module")
def copper() -> Potential:
    return lennard_jones(precision="float64")


def cells(strain: float = 0.04) -> list[Atoms]:
    """Copper of 1 to 8 atoms, strained and displaced: smaller than the cutoff, skewed, one left-handed."""
    rng = np.random.default_rng(0)
    found = [bulk("Cu", a=3.7), bulk("Cu", a=3.6, cubic=True), bulk("Cu", a=3.9).repeat((2, 2, 2)), bulk("Cu", a=3.7)]
    found[3].set_cell(found[3].cell.array[[1, 0, 2]])
    for atoms in found:
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-strain, strain, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
    return found


def run(structures, potential, **options):
    """The results in order; the structures move."""
    found = dict(relax_many(structures, MLFFCalculator(potential), progress=False, cell=True, **options))
    return [found[index] for index in range(len(structures))]


def test_the_pull_on_a_cell_is_the_derivative_of_the_energy():
    rng = np.random.default_rng(1)
    strains, goals, h = rng.normal(0, 0.3, (2, 3, 3)), rng.normal(0, 1, (2, 3, 3)), 1e-5

    def energies(strains):
        return 0.5 * ((expm(strains) - goals) ** 2).sum(axis=(1, 2))

    virials = -(expm(strains) - goals) @ expm(strains).swapaxes(1, 2)
    pull = cell_pull(strains, virials)
    for i, j in np.ndindex(3, 3):
        step = np.zeros((3, 3))
        step[i, j] = h
        slope = (energies(strains + step) - energies(strains - step)) / (2 * h)
        np.testing.assert_allclose(pull[:, i, j], -slope, atol=1e-8)
    assert np.isnan(cell_pull(strains, virials * [[[1.0]], [[np.inf]]])).all(axis=(1, 2)).tolist() == [False, True]


def test_pull_and_steps_are_those_of_the_filter_of_ase(copper):
    pressure = 3.0 * STRESS["GPa"]
    given = cells()
    for atoms in given:
        atoms.calc = MLFFCalculator(copper)
    filters = [FrechetCellFilter(atoms, scalar_pressure=pressure) for atoms in given]
    movers = [make_mover(k, atoms, np.zeros(0, int), copper, "cells", True) for k, atoms in enumerate(given)]
    descent = CellDescent(movers, pressure)
    for _ in range(3):
        forces = np.concatenate([atoms.get_forces() for atoms in given])
        stresses = np.stack([atoms.get_stress(voigt=False) for atoms in given])
        pull, longest, largest = descent.pull(forces, stresses)
        theirs = [one.get_forces() for one in filters]
        np.testing.assert_allclose(pull, np.concatenate(theirs), atol=1e-9)
        np.testing.assert_allclose(largest, [np.linalg.norm(f, axis=1).max() for f in theirs], atol=1e-9)
        np.testing.assert_allclose(longest, [np.linalg.norm(a.get_forces(), axis=1).max() for a in given], atol=1e-9)
        descent.step(pull)
        for one, part in zip(filters, np.split(descent._state.move, np.cumsum(descent._rows)[:-1]), strict=True):
            one.set_positions(one.get_positions() + part)
        descent.write_back()
        for mover, atoms in zip(movers, given, strict=True):
            np.testing.assert_allclose(mover.structure.cell, atoms.cell.array, atol=1e-9)
            np.testing.assert_allclose(mover.structure.positions, atoms.positions, atol=1e-9)


@pytest.mark.parametrize(
    ("pressure", "fmax", "first"), [(8.0, 2e-4, 2), *(pytest.param(p, 1e-6, 0, marks=pytest.mark.slow) for p in (None, 8.0))]
)
def test_cells_reach_the_minima_that_ase_finds(copper, pressure, fmax, first):
    together, alone, near = cells()[first:], cells()[first:], max(fmax, 1e-5)
    options = {"fmax": fmax, "pressure": pressure, "steps": 1000}
    results = run(together, copper, **options)
    last = copper.predict(together)
    for one, other, result, here in zip(together, alone, results, last, strict=True):
        single = relax(other, MLFFCalculator(copper), cell=True, progress=False, **options)
        assert result.converged and single.converged and result.forces_max < 1.2 * fmax  # that of the filter is below
        assert result.energy == pytest.approx(single.energy, abs=near)
        assert result.volume == pytest.approx(single.volume, rel=near)
        np.testing.assert_allclose(one.cell.cellpar(), other.cell.cellpar(), rtol=near)
        assert result.energy_change == pytest.approx(single.energy_change, abs=near)
        assert result.energy == pytest.approx(here.energy, abs=1e-8)
        np.testing.assert_allclose(one.get_stress(voigt=False), here.stress, atol=1e-9)
        np.testing.assert_allclose(here.stress, -(pressure or 0.0) * STRESS["GPa"] * np.eye(3), atol=fmax)


def test_neighbour_lists_hold_at_every_step(copper, monkeypatch):
    evaluate, searches = Batch._evaluate, []

    def compared(batch):
        energies, forces, stresses = evaluate(batch)
        batch._unpack()
        now = copper.predict([mover.structure for mover in batch.movers])
        np.testing.assert_allclose(energies, [one.energy for one in now], atol=1e-8)
        np.testing.assert_allclose(forces, np.concatenate([one.forces for one in now]), atol=1e-8)
        np.testing.assert_allclose(stresses, [one.stress for one in now], atol=1e-9)
        searches.append(max(mover.sample.sizes.neighbors for mover in batch.movers))
        return energies, forces, stresses

    monkeypatch.setattr(Batch, "_evaluate", compared)
    run(cells(), copper, fmax=1e-2, pressure=80.0, steps=20)
    assert len(set(searches)) > 1


def test_nothing_is_compiled_while_cells_take_the_places_of_others(monkeypatch):
    monkeypatch.setattr(packing, "ATOMS", 16)
    potential, inside, advance = lennard_jones(precision="float64"), [], Batch.advance

    def counted(batch, *arguments):
        inside.append((len(batch.waiting), potential.programs.compilations))
        return advance(batch, *arguments)

    monkeypatch.setattr(Batch, "advance", counted)
    found = [bulk("Cu", a=3.7 + 0.004 * k, cubic=True) for k in range(20)]
    for k, atoms in enumerate(found):
        atoms.rattle(0.02 + 0.004 * k, seed=k)
    results = run(found, potential, fmax=0.01)
    assert all(result.converged for result in results) and len({result.steps for result in results}) > 3
    waiting = [compilations for count, compilations in inside[1:] if count]
    assert inside[0][0] >= 12 and len(waiting) > 10
    assert set(waiting) == {1}


def test_fixed_atoms_keep_their_fractional_coordinates(copper):
    together = cells()[1:3]
    together[1].set_constraint(FixAtoms([0, 3]))
    before = [atoms.get_scaled_positions(wrap=False) for atoms in together]
    results = run(together, copper, fmax=1e-3, steps=1000)
    after = [atoms.get_scaled_positions(wrap=False) for atoms in together]
    np.testing.assert_allclose(after[1][[0, 3]], before[1][[0, 3]], atol=1e-9)
    assert np.abs(after[1] - before[1]).max() > 1e-3 and all(result.converged for result in results)
    assert np.linalg.norm(together[1].get_forces(apply_constraint=False)[[0, 3]], axis=1).min() > 0.01


def test_a_cell_that_explodes_is_told_and_the_others_go_on(copper):
    gas = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.9]], cell=[9.0, 9.0, 9.0], pbc=True)
    fused = Atoms("Cu2", [[0, 0, 0], [0, 0, 0.4]], cell=[4.0, 4.0, 4.0], pbc=True)
    results = run([cells()[0], fused, gas], copper, fmax=0.01, pressure=-1.0)
    assert [result.converged for result in results] == [True, False, False]
    assert "no result" in results[1].warning and "flew off" in results[2].warning
    with pytest.raises(ConfigError, match="a pressure only acts"):
        next(relax_many([gas], MLFFCalculator(copper), pressure=1.0))


@pytest.mark.slow
def test_a_cell_that_collapses_is_told():
    alone = Atoms("C", cell=np.eye(3) * 1.6, pbc=True)
    (result,) = run([alone], morse(precision="float64"), fmax=1e-3, pressure=3000.0)
    assert not result.converged and "fused" in result.warning


@pytest.mark.slow
@over_models()
def test_every_model_goes_the_way_it_goes_through_ase(name):
    potential = make_potential(name, "float64")
    together, alone = ([bulk("Si"), bulk("Si", cubic=True)] for _ in range(2))
    for k, atoms in enumerate([*together, *alone]):
        atoms.rattle(0.05, seed=k % 2)
    results = run(together, potential, fmax=1e-9, steps=3)
    for one, other, result in zip(together, alone, results, strict=True):
        mover = make_mover(0, other, np.zeros(0, int), potential, "alone", True)
        for _ in range(3):
            mover.search(potential.cutoff)
            now = potential.predict([mover.structure])[0]
            descent = CellDescent([mover], 0.0)
            descent.step(descent.pull(now.forces, now.stress[None])[0])
            descent.write_back()
        np.testing.assert_allclose(one.cell.array, mover.structure.cell, atol=1e-9)
        np.testing.assert_allclose(one.positions, mover.structure.positions, atol=1e-9)
        assert result.energy == pytest.approx(potential.predict([one])[0].energy, abs=1e-8)


def test_command(tmp_path, monkeypatch):
    lennard_jones(precision="float64").save(tmp_path / "model.safetensors")
    write(tmp_path / "many.xyz", cells())
    monkeypatch.setattr("mlff.simulation.relaxations.relax", lambda *_, **__: pytest.fail("one by one"))
    asked = "relax", tmp_path / "model.safetensors", tmp_path / "many.xyz", "--cell", "--pressure", 2, "--fmax", 0.001
    outcome = CliRunner().invoke(app, [*map(str, asked), "--out", str(tmp_path / "out.xyz"), "-q", "--precision", "float64"])
    assert outcome.exit_code == 0, outcome.stderr
    assert "4 of 4 structures converged" in outcome.stdout
    relaxed = read(tmp_path / "out.xyz", ":")
    stresses = [result.stress for result in Potential.load(tmp_path / "model.safetensors").predict(relaxed)]
    np.testing.assert_allclose(stresses, np.broadcast_to(-2.0 * STRESS["GPa"] * np.eye(3), (4, 3, 3)), atol=2e-4)
