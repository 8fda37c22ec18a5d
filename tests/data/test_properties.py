"""The table of properties, and one that no potential predicts: read, converted, counted, carried in batches, shown."""

import ase.db
import ase.io
import jax
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from rich.console import Console

from mlff.basics.errors import ConfigError, DataError
from mlff.basics.properties import CARRIED, PREDICTED, PROPERTIES
from mlff.basics.units import DIPOLE, ENERGY, FORCE, LENGTH, STRESS, spelled
from mlff.config.load import make_config
from mlff.config.options import Loss
from mlff.data.batching import Batches, make_sample
from mlff.data.dataset import read_dataset
from mlff.data.structure import Structure
from mlff.graph import Prediction
from mlff.report import tables
from mlff.training import losses

VECTORS = np.array([[0.1, -0.2, 0.39], [0.0, 0.3, -0.4]])  # e·Å


def water(k: int, **results) -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=k)
    atoms.calc = SinglePointCalculator(atoms, energy=-14.0 - k, forces=np.full((3, 3), 0.1 * k), **results)
    return atoms


def with_dipoles(scale: float = 1.0) -> list[Atoms]:
    return [water(k, dipole=scale * vector) for k, vector in enumerate(VECTORS)]


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_row_of_the_table_is_complete(name):
    known = PROPERTIES[name]
    assert known.name == name in known.keys and known.predicted == (name in PREDICTED) != (name in CARRIED)
    assert next(iter(known.units.values())) == 1.0 and next(iter(known.signs.values()), 1.0) == 1.0
    assert known.per_atom == (known.shape[:1] == ("n",)) and known.shape_of(7)[:1] in ((), (7,), (3,))


@pytest.mark.parametrize("table", [ENERGY, LENGTH, FORCE, STRESS, DIPOLE])
def test_a_unit_is_known_as_it_is_called_here(table):
    assert all(spelled(unit.upper()) == unit for unit in table) and spelled("e*Ang") == "e*Angstrom"


@pytest.mark.parametrize("name", PROPERTIES)
def test_labels_must_be_of_the_shape_in_the_table(name, tmp_path):
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], cell=5 * np.eye(3), pbc=True, info={"x": np.ones(5)})
    ase.io.write(tmp_path / "a.xyz", atoms)
    with pytest.raises(DataError, match=rf"structure 0: {name} \(key 'x'\) has shape \(5,\) where"):
        read_dataset(tmp_path / "a.xyz", keys={name: "x"})


@pytest.mark.parametrize("file", ["a.xyz", "a.traj", "a.db"])
def test_dipoles_of_calculators_are_read_and_counted(file, tmp_path):
    ase.io.write(tmp_path / file, [*with_dipoles(), water(2)])
    data = read_dataset(tmp_path / file)
    np.testing.assert_allclose([s.dipole for s in data if s.dipole is not None], VECTORS, rtol=1e-7)
    assert data.census.labels == {"energy": 3, "forces": 3, "dipole": 2} and data[2].dipole is None
    who = "by the format" if file == "a.traj" else "assumed"
    assert f'dipole 2 (key "dipole", calculator, e*Angstrom {who})' in str(data.census)


def test_dipoles_under_a_key_that_is_named(tmp_path):
    atoms = with_dipoles()
    arrays = {"R": [a.positions for a in atoms], "Z": atoms[0].numbers, "E": [-1.0, -2.0], "D": VECTORS / units.Debye}
    np.savez(tmp_path / "a.npz", **arrays)
    assert read_dataset(tmp_path / "a.npz").census.labels == {"energy": 2}, "D may be anything"
    data = read_dataset(tmp_path / "a.npz", keys={"dipole": "D"}, units={"dipole": "Debye"})
    np.testing.assert_allclose([s.dipole for s in data], VECTORS, rtol=1e-14)
    assert 'dipole 2 (key "D", info, Debye as stated)' in str(data.census)
    assert "e*Angstrom assumed" in str(read_dataset(tmp_path / "a.npz", keys={"dipole": "D"}).census)


def test_the_factors_of_dipoles():
    assert DIPOLE["Debye"] == pytest.approx(0.20819434, rel=1e-6)  # CODATA
    assert DIPOLE["e*Bohr"] / DIPOLE["Debye"] == pytest.approx(2.541746, rel=1e-6)


@pytest.mark.parametrize(("unit", "factor"), [("Debye", units.Debye), ("a0 e", None)])
def test_a_unit_in_the_metadata_of_a_database_counts(unit, factor, tmp_path):
    with ase.db.connect(tmp_path / "a.db") as database:
        database.metadata = {"_distance_unit": "Ang", "_property_unit_dict": {"energy": "eV", "dipole": unit}}
        for vector in VECTORS:
            database.write(molecule("H2O"), data={"energy": -1.0, "dipole": vector})
    data = read_dataset(tmp_path / "a.db")
    if factor:
        np.testing.assert_allclose([s.dipole for s in data], factor * VECTORS, rtol=1e-12)
        assert "Debye by the file" in str(data.census)
    else:
        assert data.census.labels == {"energy": 2} and "'a0 e', a unit that is not known; say units.dipole" in str(
            data.census
        )
        assert read_dataset(tmp_path / "a.db", units={"dipole": "e*Bohr"}).census.labels["dipole"] == 2


@pytest.mark.parametrize("value", ["1.85", '"1 2 nan"', "strong"])
def test_a_dipole_that_nobody_asked_for_never_keeps_a_file_from_being_read(value, tmp_path):
    text = f"1\nenergy=-1.0 dipole={value} Properties=species:S:1:pos:R:3\nHe 0 0 0\n"
    (tmp_path / "a.xyz").write_text("2\nenergy=-2.0 Properties=species:S:1:pos:R:3\nHe 0 0 0\nHe 0 0 3\n" + text)
    data = read_dataset(tmp_path / "a.xyz")
    assert len(data) == 1 and data.isolated_atoms == {2: -1.0} and "left out: dipole (key 'dipole')" in str(data.census)
    with pytest.raises(DataError, match=r"structure 1: dipole \(key 'dipole'\)"):
        read_dataset(tmp_path / "a.xyz", keys={"dipole": "dipole"})


def test_dipoles_change_neither_fingerprint_nor_loss(tmp_path):
    ase.io.write(tmp_path / "with.xyz", with_dipoles())
    ase.io.write(tmp_path / "without.xyz", [water(k) for k in range(2)])
    sets = [read_dataset(tmp_path / f"{name}.xyz") for name in ("with", "without")]
    assert sets[0].fingerprint == sets[1].fingerprint
    sums = []
    for data in sets:
        batches = Batches([make_sample(structure, 3.0) for structure in data], batch_size=2)
        graph, labels = jax.tree.map(np.asarray, batches.build(*batches.plan(None)[0]))
        zero = Prediction(np.zeros(2, np.float32), np.zeros_like(graph.positions), None, graph.positions[:, 0])
        sums.append(losses.compare(zero, labels, graph, Loss(), 1.0))
    assert sums[0] == sums[1] and sums[0].forces > 0


def test_a_batch_carries_what_the_data_have():
    labelled = [Structure.from_atoms(water(k), energy=0.0, dipole=v) for k, v in enumerate(VECTORS)]
    bare = Structure.from_atoms(water(3), energy=1.0)
    batches = Batches([make_sample(structure, 3.0) for structure in (*labelled, bare)], batch_size=4)
    ((order, _, labels),) = batches.ordered()
    shape = batches.sizes[0].structures, 3
    assert labels.values["dipole"].shape == shape and labels.has["dipole"].tolist() == [k < 2 for k in order]
    np.testing.assert_allclose(labels.values["dipole"], [[*VECTORS, np.zeros(3)][k] for k in order], rtol=1e-6)
    ((_, _, labels),) = Batches([make_sample(bare, 3.0)]).ordered()
    assert labels.values.keys() == labels.has.keys() == set(PREDICTED), "no array where no structure has one"


def test_info_shows_dipoles(tmp_path):
    ase.io.write(tmp_path / "a.xyz", with_dipoles())
    console = Console(record=True, width=200)
    console.print(tables.data(read_dataset(tmp_path / "a.xyz"), tmp_path / "a.xyz"))
    text = console.export_text()
    assert f"RMS {np.sqrt(np.mean(VECTORS**2)):.4f}, largest 0.400 e·Å" in text and 'dipole 2 (key "dipole"' in text


@pytest.mark.parametrize("loss", [{"dipole": 1.0}, {"schedule": [{"start": 0.5, "dipole": 1.0}]}])
def test_a_dipole_is_no_term_of_the_loss(loss):
    with pytest.raises(ConfigError, match=r"'loss.*': dipole is no term of the loss, since no model predicts it"):
        make_config({"data": {"train": "a.xyz"}, "loss": loss})
