"""The pains of users of this kind of software, one test each: what they ran into elsewhere must not happen here.

Numbers are those of docs/PAINS.md, which says what mlff does about each. Deeper tests of the parts stand beside the parts.
"""

import json
import pickle
import signal
import struct
from dataclasses import replace
from pathlib import Path

import ase.io
import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.neighborlist import neighbor_list as ase_neighbors
from ase.stress import full_3x3_to_voigt_6_stress

from mlff import MLFFCalculator, Potential, read_dataset, train
from mlff.basics.errors import DataError, MLFFError
from mlff.config.load import make_config
from mlff.data import baseline
from mlff.data.dataset import load_data
from mlff.data.neighbors import neighbor_list
from mlff.lint.lint import lint
from mlff.simulation.md import run_md
from mlff.simulation.relax import relax
from mlff.training import task, trainer
from mlff.training.evaluate import evaluate
from mlff.training.runlog import RunLog
from tests.data import labelled
from tests.potentials import lennard_jones, morse
from tests.training.toy import make_structures


def write(path: Path, structures, place: str = "calculator") -> str:
    """Extended XYZ with the labels where ASE puts them, or in info and arrays under names of their own."""
    frames = []
    for structure in structures:
        atoms = structure.to_atoms()
        if place == "calculator":
            atoms.calc = SinglePointCalculator(atoms, energy=structure.energy, forces=structure.forces)
        else:
            atoms.info[f"{place}energy"], atoms.arrays[f"{place}forces"] = structure.energy, structure.forces
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return str(path)


def settings(train_file: str, **changes):
    raw = {
        "data": {"train": train_file, "reference_energies": "none"},
        "model": {"architecture": "schnet", "channels": 8, "layers": 1, "radial_basis": 8, "cutoff": 3.0, "zbl": False},
        "training": {"epochs": 2, "batch_size": 4, "tensorboard": False},
    }
    for key, value in changes.items():
        raw[key] = raw.get(key, {}) | value if isinstance(value, dict) else value
    return make_config(raw)


@pytest.fixture(scope="module", autouse=True)
def one_compilation():
    """All runs here have the same model and the same shapes: their steps are compiled once."""
    made = {}

    def once(make):
        return lambda apply, config, *rest: made.setdefault((make.__name__, rest), make(apply, config, *rest))

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((trainer, "make_step"), (task, "make_eval_step")):
            patch.setattr(module, name, once(getattr(module, name)))
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "train.xyz", make_structures(20, seed=0))


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    """A directory of a finished run, and its potential."""
    out = tmp_path_factory.mktemp("runs") / "one"
    return out, train(settings(file), out, progress=False)


def same_parameters(one: Potential, other: Potential) -> bool:
    pairs = zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_pain_01_labels_silently_not_read(tmp_path, file):
    known = read_dataset(file)
    for place in ("", "REF_", "dft_"):
        data = read_dataset(write(tmp_path / "other.xyz", known, place))
        assert data.fingerprint == known.fingerprint
        assert f'key "{place}energy"' in str(data.census)
    hidden = write(tmp_path / "hidden.xyz", known, "my_")
    with pytest.raises(DataError, match=r"no training structure has energy.*my_energy \(info\).*data.keys.energy"):
        train(settings(hidden), tmp_path / "run", progress=False)
    keys = {"keys": {"energy": "my_energy", "forces": "my_forces"}}
    assert load_data(settings(hidden, data=keys).data, 0, settings(hidden).loss).train.census.labels["forces"] == 18
    with pytest.raises(DataError, match="no training structure has stress, but loss.stress has weight 1"):
        train(settings(file, loss={"stress": 1.0}), tmp_path / "run", progress=False)


def test_pain_02_forces_of_constrained_atoms_read_as_zero(tmp_path):
    structures = make_structures(3, seed=1)
    frames = []
    for structure in structures:
        atoms = structure.to_atoms()
        atoms.calc = SinglePointCalculator(atoms, energy=structure.energy, forces=structure.forces)
        atoms.set_constraint(FixAtoms([0, 1]))
        frames.append(atoms)
    ase.io.write(tmp_path / "a.traj", frames)
    ase.io.write(tmp_path / "a.xyz", frames, columns=["symbols", "positions", "forces", "move_mask"])
    assert not ase.io.read(tmp_path / "a.traj").get_forces()[0].any()  # what others would learn from
    for name in ("a.traj", "a.xyz"):
        for read, structure in zip(read_dataset(tmp_path / name), structures, strict=True):
            np.testing.assert_allclose(read.forces, structure.forces, atol=1e-7)
    molecules = labelled.molecules(40)  # written as zeros already: nothing to save, but it is said
    frozen = [replace(s, forces=np.vstack([0 * s.forces[:3], s.forces[3:]])) for s in molecules]
    (finding,) = [item for item in lint(labelled.dataset(frozen)).findings if item.code == "net-force"]
    assert "without constraints" in finding.do


def test_pain_04_neighbour_overflow(monkeypatch):
    """Denser and denser: more neighbours than any shape so far has room for, in a cell smaller than the cutoff at last."""
    potential = lennard_jones()
    atoms = bulk("Cu", a=5.5, cubic=True)
    atoms.rattle(0.05, seed=0)
    atoms.calc = calculator = MLFFCalculator(potential)
    widths = []
    for _ in range(9):
        atoms.set_cell(0.92 * atoms.cell.array, scale_atoms=True)
        fresh = potential.predict([atoms])[0]
        assert atoms.get_potential_energy() == pytest.approx(fresh.energy, rel=1e-9)
        assert np.abs(atoms.get_forces() - fresh.forces).max() < 1e-5 * max(np.abs(fresh.forces).max(), 1)
        widths.append(calculator._list.graph.neighbors.shape[1])
    assert widths[-1] > 2 * widths[0] and widths == sorted(widths) and atoms.cell.lengths()[0] < potential.cutoff
    atoms.positions += 1000.0  # far outside of the cell
    assert np.abs(atoms.get_forces() - fresh.forces).max() < 1e-4 * np.abs(fresh.forces).max()


def test_pain_05_silently_wrong_neighbour_lists():
    rng = np.random.default_rng(0)
    for case in range(60):
        pbc = rng.random(3) < 0.5
        cell = np.diag(rng.uniform(1.5, 6, 3)) + rng.uniform(-1, 1, (3, 3))
        cell = cell[rng.permutation(3)] if np.linalg.det(cell) else cell  # either hand
        atoms = Atoms("H5", rng.uniform(-1, 2, (5, 3)) @ cell, cell=cell, pbc=pbc)
        i, j, shifts = neighbor_list(atoms.positions, cell, pbc, 3.0)
        mine = np.sort(np.linalg.norm(atoms.positions[j] - atoms.positions[i] + shifts @ cell, axis=1))
        images = np.array(np.meshgrid(*[np.arange(-9, 10) if p else [0] for p in pbc])).reshape(3, -1).T @ cell
        vectors = atoms.positions[None, :, None] - atoms.positions[:, None, None] + images
        lengths = np.linalg.norm(vectors, axis=-1).ravel()
        brute = np.sort(lengths[(lengths < 3.0) & (lengths > 0)])
        assert len(mine) == len(brute), case
        np.testing.assert_allclose(mine, brute, atol=1e-10)
        if pbc.any():
            np.testing.assert_allclose(mine, np.sort(ase_neighbors("d", atoms, 3.0)), atol=1e-8)
    alone = Atoms("H2", [[0, 0, 0], [0, 0, 1.9]], cell=[2, 2, 2], pbc=False)  # a cell that means nothing
    assert len(neighbor_list(alone.positions, alone.cell.array, alone.pbc, 3.0)[0]) == 2


def test_pain_06_a_compilation_for_every_size():
    potential = morse()
    calculator = MLFFCalculator(potential)
    rng = np.random.default_rng(0)
    grid = 1.3 * np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3)
    clusters = [Atoms(f"C{n}", grid[:n] + rng.normal(0, 0.05, (n, 3))) for n in range(20, 60)]
    for atoms in clusters:
        atoms.calc = calculator
        atoms.get_forces()
    assert calculator.compilations <= 15  # for forty sizes, and as many numbers of neighbours, in the worst of orders
    done = calculator.compilations
    for atoms in clusters:
        atoms.rattle(0.02, seed=len(atoms))
        atoms.get_forces()
    assert calculator.compilations == done
    potential.predict(clusters)
    batched = potential.programs.compilations
    potential.predict(clusters[::-1])
    assert potential.programs.compilations == batched <= done + 6


def test_pain_09_reference_energies():
    """Compositions that cannot tell elements apart, energies of atomisation, given atoms."""
    water = [s for s in labelled.molecules(6, names=("H2O",))]
    with pytest.warns(UserWarning, match=r"reference energies of H, O apart \(rank 1 of 2"):
        fitted = baseline.fit(water)
    left = [s.energy - baseline.energy(fitted, s.numbers) for s in water]
    assert np.abs(left).max() < 5 and all(np.isfinite(list(fitted.values())))  # of least norm, no exploding solution
    assert "composition-rank" in {item.code for item in lint(labelled.dataset(water)).findings}
    formation = [replace(s, energy=-3.0 * len(s)) for s in water]
    with pytest.raises(DataError, match="atomisation or formation energies already.*none or least_squares"):
        baseline.fit(formation, {"H": -13.6, "O": -2041.0})
    assert baseline.fit(water, {"H": -100.0, "O": -100.5}) == {1: -100.0, 8: -100.5}
    with pytest.raises(DataError, match="no reference energy for O"):
        baseline.fit(water, {"H": -100.0})


def test_pain_10_sign_and_unit_of_the_stress():
    potential = lennard_jones(precision="float64")
    atoms = bulk("Cu", a=3.5, cubic=True)
    atoms.rattle(0.05, seed=0)
    atoms.calc = MLFFCalculator(potential)
    energies = []
    for scale in (1 - 1e-5, 1 + 1e-5):
        other = atoms.copy()
        other.set_cell(scale ** (1 / 3) * atoms.cell.array, scale_atoms=True)
        energies.append(potential.predict([other])[0].energy)
    slope = (energies[1] - energies[0]) / (2e-5 * atoms.get_volume())  # dE/dV
    assert np.trace(atoms.get_stress(voigt=False)) / 3 == pytest.approx(slope, rel=1e-4) and slope < 0  # compressed
    np.testing.assert_allclose(atoms.get_stress(), full_3x3_to_voigt_6_stress(atoms.get_stress(voigt=False)))
    crystals = labelled.crystals(60)
    assert not lint(labelled.dataset(crystals)).of("error")
    for factor, code in ((-1, "stress-sign"), (1602.1766, "stress-unit")):  # a pressure; kbar
        (error,) = lint(labelled.dataset(labelled.changed(crystals, stress=factor))).of("error")
        assert error.code == code and "units.stress" in error.do


def test_pain_11_models_that_a_new_version_cannot_load(run):
    """The file of the first format still loads and gives the energies that travel in it; so does one of today."""
    for path in (Path(__file__).parent / "formats" / "model_1.safetensors", run[0] / "model.safetensors"):
        potential = Potential.load(path)  # compares, on the first load on a machine
        assert len(potential.reference_structures)
        results = potential.predict(potential.reference_structures)
        for result, entry in zip(results, potential.metadata["references"], strict=True):
            assert result.energy == pytest.approx(entry["energy"], abs=1e-4 * max(len(result.forces), 1))


def test_pain_12_a_model_file_that_runs_code(run, tmp_path):
    content = (run[0] / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])  # a header of JSON and numbers: nothing else is in the file
    sizes = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert len(content) == 8 + length + max(sizes)

    class Trap:
        def __reduce__(self):
            return pytest.fail, ("code of a file was run",)

    for name in ("model.safetensors", "model.pt", "model.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(MLFFError, match=f"{name}: not a safetensors file"):
            Potential.load(tmp_path / name)
    np.savez(tmp_path / "data.npz", R=np.zeros((2, 1, 3)), z=np.array([Trap()], dtype=object), E=np.zeros(2))
    with pytest.raises(DataError, match="Python objects, which are not loaded"):
        read_dataset(tmp_path / "data.npz")


def test_pain_14_energy_drift_in_nve(run):
    """Half the time step, a quarter of the fluctuation of the total energy: forces are derivatives of one smooth energy."""
    potential = run[1].with_precision("float64")
    spread = {}
    for timestep in (0.8, 0.4):
        atoms = make_structures(1, seed=3)[0].to_atoms()
        log = run[0] / f"nve_{timestep}.jsonl"
        options = {"ensemble": "nve", "temperature": 300, "timestep": timestep, "interval": 1, "progress": False}
        summary = run_md(atoms, MLFFCalculator(potential), steps=round(60 / timestep), log=log, **options)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        total, kinetic = (np.array([line[name] for line in lines]) for name in ("etot_ev", "ekin_ev"))
        spread[timestep] = np.ptp(total)
        assert np.ptp(total) < 0.02 * np.ptp(kinetic) and summary.drift is not None
    assert 3 < spread[0.8] / spread[0.4] < 5


def test_pain_16_relaxations_below_the_rounding_of_float32():
    single, double = (MLFFCalculator(morse(precision=precision)) for precision in ("float32", "float64"))
    told = relax(molecule("H2O"), single, fmax=1e-8, steps=40, progress=False)
    assert not told.converged and "within the rounding of float32" in told.warning and "float64" in told.warning
    assert relax(molecule("H2O"), double, fmax=1e-8, steps=100, progress=False).converged
    assert relax(molecule("H2O"), single, fmax=0.02, progress=False).warning is None
    atoms = bulk("Cu", cubic=True)  # -180,000 eV of reference energies: float32 alone would keep 16 meV of it
    atoms.rattle(0.05, seed=0)
    low, high = (lennard_jones(precision=precision).predict([atoms])[0].energy for precision in ("float32", "float64"))
    assert low == pytest.approx(high, abs=1e-4) and abs(low) > 1e5


def test_pain_17_units_and_meaning_of_outputs(run, file):
    potential = run[1]
    atoms = read_dataset(file)[0].to_atoms()
    result = potential.predict([atoms])[0]
    assert result.energies.shape == (len(atoms),) and result.energies.sum() == pytest.approx(result.energy)  # totals
    atoms.calc = MLFFCalculator(potential)
    assert atoms.get_potential_energy() == pytest.approx(result.energy, abs=1e-5)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    data = read_dataset(file)
    errors = evaluate(potential, data).to_dict()
    results = potential.predict(data)
    wrong = [r.energy - s.energy for r, s in zip(results, data, strict=True)]
    assert errors["energy_rmse"] == pytest.approx(1000 * np.sqrt(np.mean(np.square(wrong))), rel=1e-4)  # meV, of totals
    per_atom = [value / len(s) for value, s in zip(wrong, data, strict=True)]
    assert errors["energy_rmse_per_atom"] == pytest.approx(1000 * np.sqrt(np.mean(np.square(per_atom))), rel=1e-4)
    components = np.concatenate([(r.forces - s.forces).ravel() for r, s in zip(results, data, strict=True)])
    assert errors["forces_rmse"] == pytest.approx(1000 * np.sqrt(np.mean(components**2)), rel=1e-4)


def test_pain_18_a_restart_that_does_not_restart(run, file, tmp_path, monkeypatch):
    record = RunLog.record

    def stop(self, line):
        record(self, line)
        if line["epoch"] == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunLog, "record", stop)
    with pytest.raises(KeyboardInterrupt):
        train(settings(file), tmp_path / "run", progress=False)
    resumed = train(settings(file), tmp_path / "run", progress=False)
    assert same_parameters(resumed, run[1])
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2]


def test_pain_19_the_same_seed_and_another_result(run, file, tmp_path):
    np.random.seed(123)  # the state of others is neither used nor changed
    before = np.random.get_state()[1].copy()
    again = train(settings(file), tmp_path / "again", progress=False)
    assert np.array_equal(np.random.get_state()[1], before)
    assert same_parameters(again, run[1]) and again.metadata["errors"] == run[1].metadata["errors"]
    assert {"config", "data", "versions", "machine"} <= set(again.metadata)  # what it takes to do it once more
    first, second = (load_data(settings(file, seed=seed).data, seed, settings(file).loss) for seed in (0, 1))
    assert first.valid.fingerprint != second.valid.fingerprint
