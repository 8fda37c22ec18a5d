"""A potential as an object: what it answers, in what precision, how often it compiles, and its file."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace

import ase
import jax
import numpy as np
import pytest
from ase.build import bulk
from ase.neighborlist import neighbor_list as ase_neighbors
from flax import traverse_util
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mlff.basics.errors import DataError, ModelFileError, StructureError
from mlff.config.options import SchNet
from mlff.data.structure import Structure
from mlff.models import registry
from mlff.models.common import Statistics
from mlff.models.parameters import initial_params
from mlff.potential import modelfile
from mlff.potential.committee import committee
from mlff.potential.modelfile import FORMAT_VERSION
from mlff.potential.potential import Potential
from tests.conftest import BASELINE, ELEMENTS, MODELS, make_potential

PAIR = {"lennard_jones": MODELS["lennard_jones"], "morse": MODELS["morse"]}


def _pair(name: str = "morse", precision: str = "float64", baseline=BASELINE) -> Potential:
    return Potential(PAIR[name], {}, ELEMENTS, dict(baseline), precision=precision)


@pytest.fixture(scope="module")
def schnet() -> Potential:
    config = SchNet(cutoff=4.0, channels=4, layers=1, radial_basis=4)
    statistics = Statistics(0.3, 12.0, (-1.0, -5.0, -2.0, -4.0))
    params = jax.device_get(initial_params(registry.build(config, ELEMENTS, statistics), seed=3))
    metadata = {"config": {"seed": 3}, "errors": {"test": {"forces_rmse": 0.01}}, "versions": {"mlff": "0.1.0"}}
    return Potential(config, params, ELEMENTS, BASELINE, statistics, metadata=metadata)


def _programs(potential: Potential) -> int:
    """Programs compiled so far."""
    return potential.programs.compilations


def _clusters(count: int, seed: int = 0) -> list[ase.Atoms]:
    """Rattled lattices of 1 to 60 atoms; a third of them periodic."""
    rng = np.random.default_rng(seed)
    structures = []
    for i, n in enumerate(rng.integers(1, 61, count)):
        cell = np.full(3, 1.9 * 4)
        grid = 1.9 * np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3)
        positions = rng.permutation(grid)[:n] + rng.normal(scale=0.1, size=(n, 3))
        structures.append(ase.Atoms(rng.choice(ELEMENTS, n), positions=positions, cell=cell, pbc=i % 3 == 0))
    return structures


def _neighbour_sum(atoms: ase.Atoms) -> float:
    """The Morse energy of a structure by itself, eV."""
    r = ase_neighbors("d", atoms, cutoff=4.0)
    x = r / 4.0
    return 0.5 * np.sum(0.5 * ((1 - np.exp(-1.5 * (r - 2.0))) ** 2 - 1) * (1 - 28 * x**6 + 48 * x**7 - 21 * x**8))


# --- answers --------------------------------------------------------------------------------------------------------


def test_results_stand_in_the_order_of_the_structures():
    potential = _pair()
    structures = _clusters(40)
    together = potential.predict(structures)
    turned = potential.predict(structures[::-1])[::-1]
    bonds = [_neighbour_sum(atoms) for atoms in structures]
    for atoms, result, alone, expected in zip(structures, together, turned, bonds, strict=True):
        assert result.energy == pytest.approx(alone.energy, rel=1e-13)
        assert result.energy == pytest.approx(expected + potential.baseline_energy(atoms.numbers), abs=1e-9)
        np.testing.assert_allclose(result.forces, alone.forces, atol=1e-11)
        assert result.energies.sum() == pytest.approx(result.energy, rel=1e-14)
        assert result.forces.shape == (len(atoms), 3) and result.forces.dtype == result.energies.dtype == np.float64
        assert (result.stress is None) == (not atoms.pbc.all())
        if result.stress is not None:
            np.testing.assert_allclose(result.stress, alone.stress, atol=1e-12)
    assert all(result.stress is None for result in potential.predict(structures[:4], stress=False))


def test_nothing_to_compute():
    potential = _pair()
    assert potential.predict([]) == []
    empty, single = potential.predict([ase.Atoms(), ase.Atoms("C")])
    assert empty.energy == 0 and empty.forces.shape == (0, 3) and empty.energies.shape == (0,) and empty.stress is None
    assert single.energy == BASELINE[6] and np.all(single.forces == 0)
    assert _pair().predict([ase.Atoms()])[0].energy == 0


def test_generators_and_structures_are_taken_one_structure_alone_is_not(ethanol):
    potential = _pair()
    first, second = potential.predict(iter([ethanol, Structure.from_atoms(ethanol)]))
    assert first.energy == second.energy
    with pytest.raises(TypeError, match="a list of structures"):
        potential.predict(ethanol)


@pytest.mark.parametrize(
    "atoms, expected",
    [
        (
            ase.Atoms("CU", positions=[[0, 0, 0], [2, 0, 0]]),
            "structure 1: atom 1 is U, which this potential does not know; it knows H C O Si",
        ),
        (ase.Atoms("CX", positions=[[0, 0, 0], [2, 0, 0]]), "structure 1: atom 1 has atomic number 0, which is no element"),
        (
            ase.Atoms("CO", positions=[[0, 0, 0], [np.nan, 0, 0]]),
            "structure 1: position of atom 1 is not finite, or beyond 1e+09 Å",
        ),
        (ase.Atoms("CO", positions=[[0, 0, 0], [1e-5, 0, 0]]), "structure 1: atoms 0 and 1 are on top of each other"),
        (ase.Atoms("C", pbc=True), "structure 1: periodic along a, but the cell vector a is zero; set the cell or pbc"),
    ],
)
def test_structures_that_cannot_be_evaluated_are_named(atoms, expected, ethanol):
    with pytest.raises(StructureError) as caught:
        _pair().predict([ethanol, atoms])
    assert str(caught.value) == expected


def test_labelled_structures_with_bad_geometry_are_named_too():
    numbers, positions = np.array([6], np.int32), np.full((1, 3), np.inf)
    structure = Structure(numbers, positions, np.zeros((3, 3)), np.zeros(3, bool), source="a.xyz, structure 3")
    with pytest.raises(StructureError, match="a.xyz, structure 3: position of atom 0 is not finite"):
        _pair().predict([structure])


def test_a_large_baseline_costs_no_digits(ethanol):
    """A baseline of thousands of eV is added in float64: differences of energies are those without it."""
    moved = [ethanol.copy() for _ in range(4)]
    for i, atoms in enumerate(moved):
        atoms.positions[0, 0] += 1e-4 * i
    large = {z: -27211.386245988 * z for z in ELEMENTS}
    bare, heavy = (
        np.array([r.energy for r in _pair(precision="float32", baseline=baseline).predict(moved)])
        for baseline in (dict.fromkeys(ELEMENTS, 0.0), large)
    )
    offset = large[1] * 6 + large[6] * 2 + large[8]
    np.testing.assert_allclose(np.diff(heavy), np.diff(bare), atol=5e-9)
    np.testing.assert_allclose(heavy - offset, bare, atol=5e-9)
    assert np.abs(np.diff(bare)).min() > 1e-6
    assert _pair(baseline=large).baseline_energy(ethanol.numbers) == pytest.approx(offset, rel=1e-15)


# --- precision ------------------------------------------------------------------------------------------------------


def test_float64_is_a_matter_of_the_potential_and_not_of_the_process(schnet, ethanol, silicon):
    assert not jax.config.jax_enable_x64
    double = schnet.with_precision("float64")
    single_results, double_results = schnet.predict([ethanol, silicon]), double.predict([ethanol, silicon])
    assert not jax.config.jax_enable_x64 and jax.numpy.zeros(1).dtype == np.float32
    for low, high in zip(single_results, double_results, strict=True):
        assert 0 < np.abs(low.forces - high.forces).max() < 1e-4
        assert low.energy == pytest.approx(high.energy, abs=1e-4)
    again = schnet.predict([ethanol, silicon])
    assert [r.energy for r in again] == [r.energy for r in single_results]
    assert double.with_precision("float64") is double and double.with_precision("float32").precision == "float32"
    with pytest.raises(ValueError, match="float32 or float64"):
        schnet.with_precision("float16")


@pytest.mark.parametrize("name", ["schnet", "ace"])
def test_float32_stays_float32_where_the_process_computes_in_float64(name, potentials, silicon):
    potential = replace(potentials(name, "float32"))
    with jax.enable_x64(True):
        program = potential.programs.jitted("stress")
        graph = potential.graph_of(silicon)
        shapes = jax.eval_shape(program, potential.device_params, graph)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(shapes))


# --- derivatives ----------------------------------------------------------------------------------------------------


def test_hessian_is_symmetric_and_compiled_once(silicon):
    potential = _pair()
    matrix = potential.hessian(silicon)
    assert matrix.shape == (6, 6)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12 * np.abs(matrix).max())
    np.testing.assert_allclose(matrix.reshape(2, 3, 2, 3).sum(axis=2), 0, atol=1e-10 * np.abs(matrix).max())
    vector = np.arange(6.0)
    product = potential.hessian_vector_product(silicon, vector)
    np.testing.assert_allclose(product.ravel(), matrix @ vector, rtol=1e-12)
    programs = _programs(potential)
    silicon.rattle(1e-3)
    potential.hessian(silicon)
    potential.hessian_vector_product(silicon, -vector)
    assert _programs(potential) == programs == 2


def test_hessian_of_one_atom_and_of_none():
    potential = _pair()
    assert np.all(potential.hessian(ase.Atoms("H")) == 0) and potential.hessian(ase.Atoms("H")).shape == (3, 3)
    assert potential.hessian(ase.Atoms()).shape == (0, 0)


# --- compilations ---------------------------------------------------------------------------------------------------


def test_structures_of_all_sizes_need_few_programs():
    potential = _pair(precision="float32")
    structures = _clusters(50, seed=1)
    first = potential.predict(structures)
    assert _programs(potential) <= 3
    count = _programs(potential)
    second = potential.predict(structures)
    assert _programs(potential) == count
    assert [r.energy for r in first] == [r.energy for r in second]
    for atoms in structures:
        atoms.rattle(0.02)
    potential.predict(structures)
    potential.predict(structures[::-1])
    assert _programs(potential) <= count + 1


def test_one_structure_at_a_time_needs_few_programs():
    potential = _pair(precision="float32")
    structures = [atoms for atoms in _clusters(60, seed=2) if not atoms.pbc.any() and 20 <= len(atoms) <= 40]
    for atoms in structures:
        potential.predict([atoms], stress=False)
    assert len(structures) > 10 and _programs(potential) <= 8
    count = _programs(potential)
    for atoms in structures:
        potential.predict([atoms], stress=False)
    assert _programs(potential) == count


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(schnet, tmp_path):
    path = tmp_path / "model.safetensors"
    schnet.save(path)
    return path


def test_save_and_load_bit_by_bit(schnet, saved, ethanol, silicon):
    loaded = Potential.load(saved)
    assert loaded.config == schnet.config and loaded.elements == ELEMENTS and loaded.baseline == BASELINE
    assert loaded.statistics == schnet.statistics and loaded.precision == "float32" and loaded.metadata == schnet.metadata
    assert jax.tree.structure(loaded.params) == jax.tree.structure(schnet.params)
    for before, after in zip(jax.tree.leaves(schnet.params), jax.tree.leaves(loaded.params), strict=True):
        assert before.dtype == after.dtype and before.tobytes() == np.asarray(after).tobytes()
    for before, after in zip(schnet.predict([ethanol, silicon]), loaded.predict([ethanol, silicon]), strict=True):
        assert before.energy == after.energy and before.forces.tobytes() == after.forces.tobytes()
    loaded.save(saved)
    assert Potential.load(saved).metadata == schnet.metadata


def test_every_architecture_and_precision_comes_back(potentials, tmp_path):
    for name in MODELS:
        potential = potentials(name)
        potential.save(tmp_path / "model")
        loaded = Potential.load(tmp_path / "model")
        assert loaded.config == potential.config and loaded.precision == "float64" and loaded.cutoff == potential.cutoff


def test_what_the_header_tells(schnet, saved):
    with safe_open(saved, framework="numpy") as file:
        header = json.loads(file.metadata()["mlff"])
        assert set(file.keys()) == {"/".join(name) for name in traverse_util.flatten_dict(schnet.params)}
    assert header["format_version"] == FORMAT_VERSION and header["mlff_version"]
    assert header["model"] == schnet.config.model_dump() and header["cutoff"] == 4.0
    assert header["elements"] == [1, 6, 8, 14] and header["baseline"] == {"1": -0.5, "6": -1.0, "8": -2.0, "14": -3.0}
    assert header["units"] == {"energy": "eV", "length": "Angstrom", "forces": "eV/Angstrom", "stress": "eV/Angstrom^3"}
    assert header["metadata"]["errors"]["test"]["forces_rmse"] == 0.01


def test_a_failed_save_leaves_the_file_as_it_was(schnet, saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        replace(schnet, metadata={}).save(saved)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]
    with pytest.raises(ValueError, match="JSON"):
        replace(schnet, metadata={"error": float("nan")}).save(saved)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]
    with pytest.raises(DataError, match="no such directory"):
        schnet.save(saved.parent / "nowhere" / "model")


def _rewrite(path, change) -> None:
    """Apply change(header, tensors) to a model file."""
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["mlff"])
    tensors = load_file(path)
    change(header, tensors)
    save_file(tensors, path, metadata={"mlff": json.dumps(header)})


def _set(*keys, value):
    def change(header, tensors):
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


def _remove(*keys):
    def change(header, tensors):
        for key in keys[:-1]:
            header = header[key]
        del header[keys[-1]]

    return change


WEIGHT = "params/head/output"


@pytest.mark.parametrize(
    "change, expected",
    [
        (_set("format_version", value=FORMAT_VERSION + 1), f"in format {FORMAT_VERSION + 1} by mlff .*newer than this"),
        (_set("format_version", value="two"), "a safetensors file, but not an mlff model"),
        (_set("format", value="other"), "a safetensors file, but not an mlff model"),
        (_set("model", "architecture", value="os.system"), "unknown architecture 'os.system'; known: ace, schnet"),
        (_set("model", "architecture", value=["ace"]), "the header is not that of an mlff model"),
        (_set("model", "channels", value=-1), "the model section is not valid"),
        (_set("model", "channel", value=3), "the model section is not valid"),
        (_set("model", "channels", value=5), "has shape .* expected"),
        (_set("model", value=None), "the header is not that of an mlff model"),
        (_remove("elements"), "the header is not that of an mlff model .KeyError: 'elements'"),
        (_remove("statistics", "atom_energies"), "the header is not that of an mlff model"),
        (_set("statistics", "energy_scale", value="large"), "the header is not that of an mlff model"),
        (_set("statistics", "atom_energies", value=[1.0]), "baseline or statistics are not those of its elements"),
        (_set("statistics", "mean_neighbors", value=0.0), "hold values that make no sense"),
        (_set("elements", value=[1, 6, 8]), "baseline or statistics are not those of its elements"),
        (_set("elements", value=[1, 6, 14, 8]), "elements are not atomic numbers in ascending order"),
        (_set("elements", value=[]), "elements are not atomic numbers in ascending order"),
        (_set("elements", value=[1, 6, 8, 140]), "elements are not atomic numbers in ascending order"),
        (_set("baseline", "1", value=float("nan")), "hold values that make no sense"),
        (_set("baseline", "1", value=None), "the header is not that of an mlff model"),
        (_set("precision", value="float16"), "unknown precision 'float16'"),
        (lambda header, tensors: tensors.pop(WEIGHT), f"parameter {WEIGHT} is missing"),
        (lambda header, tensors: tensors.update({WEIGHT: tensors[WEIGHT].T}), r"has shape \(1, 2\), expected \(2, 1\)"),
        (lambda header, tensors: tensors[WEIGHT].fill(np.inf), f"parameter {WEIGHT} holds values that are not finite"),
        (lambda header, tensors: tensors.update({"params/extra": np.zeros(2)}), "unknown parameter params/extra"),
    ],
)
def test_damaged_contents_are_named(saved, change, expected):
    _rewrite(saved, change)
    with pytest.raises(ModelFileError, match=expected) as caught:
        Potential.load(saved)
    assert str(caught.value).startswith(f"{saved}: ") and "\n" not in str(caught.value)


def test_older_formats_are_brought_up_one_version_after_the_other(schnet, saved, monkeypatch):
    """As it will be: today there is one format."""

    def renamed(new, old):
        return lambda header: {new if key == old else key: value for key, value in header.items()}

    _rewrite(saved, lambda header, tensors: header.update(atoms=header.pop("elements")))
    monkeypatch.setattr(modelfile, "FORMAT_VERSION", 3)
    monkeypatch.setattr(modelfile, "MIGRATIONS", {1: renamed("kinds", "atoms"), 2: renamed("elements", "kinds")})
    assert Potential.load(saved).fingerprint == schnet.fingerprint


def test_a_file_from_before_the_first_release_says_so(saved):
    _rewrite(saved, _set("mlff_version", value="0.1.0"))
    with pytest.raises(ModelFileError, match="before the first release.*train it anew"):
        Potential.load(saved)


def _content(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "not a safetensors file, or truncated"),
        (b"some text that is no model at all", "not a safetensors file, or truncated"),
        (b"\x80\x04\x95pickle", "not a safetensors file, or truncated"),
        (_content(b"{}"), "a safetensors file, but not an mlff model"),
        (_content(b'{"__metadata__": {"mlff": "no json"}}'), "a safetensors file, but not an mlff model"),
        (_content(b'{"__metadata__": {"mlff": "[1]"}}'), "a safetensors file, but not an mlff model"),
        (_content(b'{"__metadata__": {"mlff": "' + b"[" * 100000 + b'"}}'), "a safetensors file, but not an mlff model"),
    ],
    ids=["empty", "text", "pickle", "no header", "no json", "list", "deep"],
)
def test_other_files_are_refused(tmp_path, content, expected):
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=expected):
        Potential.load(path)


def test_truncated_and_absent_files(saved, tmp_path):
    content = saved.read_bytes()
    for length in (4, 100, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match="not a safetensors file, or truncated"):
            Potential.load(saved)
    with pytest.raises(ModelFileError, match="nothing: no such model file"):
        Potential.load(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match="not a file"):
        Potential.load(tmp_path)


def test_a_potential_cannot_be_changed(schnet):
    with pytest.raises(AttributeError):
        schnet.precision = "float64"


def test_a_crystal_larger_than_the_usual_batch():
    (result,) = _pair("lennard_jones").predict([bulk("Si", cubic=True).repeat(5)])
    (cell,) = _pair("lennard_jones").predict([bulk("Si", cubic=True)])
    assert result.energy == pytest.approx(125 * cell.energy, rel=1e-12)
    assert np.abs(result.forces).max() < 1e-10


def test_energy_is_a_pure_function_that_jax_may_transform(ethanol, silicon):
    """Of one model and of a committee: gradients are the forces, and vmap computes many geometries at once."""
    one, other = make_potential("ace", "float64"), make_potential("ace", "float64")
    other = replace(other, params=jax.tree.map(lambda x: 1.1 * x, other.params))
    both = committee([one, other], ["a", "b"])
    for potential, atoms in ((one, silicon), (both, ethanol)):
        (result,) = potential.predict([atoms])
        graph, params = potential.graph_of(atoms), potential.device_params
        with potential.scope():

            def total(positions, params=params, graph=graph, potential=potential):
                return potential.energy(params, graph._replace(positions=positions)).sum()

            energies = np.asarray(jax.jit(potential.energy)(params, graph))
            forces = -jax.jit(jax.grad(total))(graph.positions)
            many = jax.jit(jax.vmap(total))(np.stack([graph.positions, graph.positions + 0.01]))
        base = potential.baseline_energy(atoms.numbers)
        np.testing.assert_allclose(energies.sum() + base, result.energy, rtol=1e-12)
        np.testing.assert_allclose(forces, result.forces, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(many, result.energy - base, rtol=1e-9)
    assert (
        repr(one).startswith("Potential(ace, H C O Si, cutoff 4 Å, ") and "members" in repr(both) and "\n" not in repr(both)
    )
