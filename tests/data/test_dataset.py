"""Datasets: reading several files, splits, fingerprints, and the checks before training."""

import shutil
import warnings
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st

from mlff.basics.errors import ConfigError, DataError
from mlff.config.load import make_config
from mlff.config.options import Data, KeyNames, Loss
from mlff.data.census import Census
from mlff.data.dataset import Dataset, expand, load_data, read_dataset
from mlff.data.structure import Structure

SHARED = Path(__file__).parents[2].parent / "shared" / "datasets"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared reference sets are not at {SHARED}")


def frame(seed, symbols="H2O", labels=("energy", "forces"), **info):
    rng = np.random.default_rng(seed)
    atoms = Atoms(symbols, rng.uniform(0, 5, (len(Atoms(symbols)), 3)), info=info)
    values = {"energy": rng.normal(), "forces": rng.normal(size=(len(atoms), 3))}
    if labels:
        atoms.calc = SinglePointCalculator(atoms, **{label: values[label] for label in labels})
    return atoms


def isolated(symbol, energy):
    atoms = Atoms(symbol, info={"config_type": "IsolatedAtom"})
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


@pytest.fixture
def write(tmp_path):
    def write(name, frames):
        ase.io.write(tmp_path / name, frames)
        return str(tmp_path / name)

    return write


def memory(groups):
    zero = np.zeros((1, 3))
    structures = [
        Structure(
            np.array([1], np.int32),
            zero + k,
            np.zeros((3, 3)),
            np.zeros(3, bool),
            group=group,
            source=f"memory, structure {k}",
        )
        for k, group in enumerate(groups)
    ]
    return Dataset(tuple(structures), {}, Census("memory").counted(structures, 0))


# reading


def test_isolated_atoms_are_taken_out(write):
    path = write("a.xyz", [frame(0), isolated("H", -13.6), frame(1), isolated("O", -2041.0)])
    data = read_dataset(path)
    assert len(data) == 2 and data.elements == (1, 8)
    assert data.isolated_atoms == {1: -13.6, 8: -2041.0}
    assert data.census.structures == 2 and data.census.isolated == 2
    assert [s.source for s in data] == [f"{path}, structure 0", f"{path}, structure 2"]


def test_two_energies_of_one_isolated_atom_are_refused(write):
    path = write("a.xyz", [frame(0), isolated("H", -13.6), isolated("H", -13.6)])
    assert read_dataset(path).isolated_atoms == {1: -13.6}
    path = write("a.xyz", [frame(0), isolated("H", -13.6), isolated("H", -0.5)])
    with pytest.raises(DataError, match=r"a.xyz, structure 2: isolated H has -0.5.*-13.6.*structure 1"):
        read_dataset(path)


def test_lists_and_globs(write, tmp_path):
    for k in (1, 2, 10):
        write(f"run_{k}.xyz", [frame(k), frame(100 + k)])
    write("odd[1].xyz", [frame(7)])
    assert len(read_dataset(tmp_path / "run_*.xyz")) == 6
    assert len(read_dataset([tmp_path / "run_1.xyz", str(tmp_path / "run_?.xyz")])) == 4
    assert len(read_dataset(tmp_path / "odd[1].xyz")) == 1
    assert [p.name for p in expand(tmp_path / "run*")] == ["run_1.xyz", "run_10.xyz", "run_2.xyz"]
    assert "(4 files)" in str(read_dataset(tmp_path / "*.xyz").census)
    with pytest.raises(DataError, match=r"walk_\*.xyz: no file matches"):
        read_dataset(tmp_path / "walk_*.xyz")
    with pytest.raises(DataError, match="no such file"):
        read_dataset(tmp_path / "run_3.xyz")
    with pytest.raises(DataError, match="no files are named"):
        read_dataset([])


def test_a_named_key_may_stand_in_one_of_several_files(write):
    def renamed(atoms):
        atoms.info["E"], atoms.calc = atoms.calc.results["energy"], None
        return atoms

    first, second = write("a.xyz", [renamed(frame(0))]), write("b.xyz", [frame(1, labels=("forces",))])
    data = read_dataset([first, second], keys={"energy": "E"}, progress=True)
    assert data[0].energy is not None and data[1].energy is None
    with pytest.raises(DataError, match=r"no structure has the key 'energie' \(keys.energy\)"):
        read_dataset([first, second], keys={"energy": "energie"})
    with pytest.raises(ConfigError, match="keys|energi"):
        read_dataset(first, keys={"energi": "E"})
    with pytest.raises(ConfigError, match="stress"):
        read_dataset(first, units={"stress": "psi"})


def test_files_with_keys_and_units_of_their_own(write, tmp_path):
    def renamed(atoms):
        atoms.info["E"], atoms.calc = atoms.calc.results["energy"], None
        return atoms

    first, second = write("a.xyz", [frame(k) for k in range(4)]), write("b.xyz", [renamed(frame(9))])
    other = {"file": second, "keys": {"energy": "E"}, "units": {"energy": "Hartree"}}
    third = other | {"file": write("c.xyz", [renamed(frame(8))])}
    data = Data(train=[first, other], test={"far": third}, units={"length": "Bohr"})
    splits = load_data(data, 0, Loss(forces=0))
    both = sorted((*splits.train, *splits.valid), key=lambda s: s.source)
    for structure, k in ((both[4], 9), (splits.test["far"][0], 8)):
        assert structure.energy == pytest.approx(frame(k).calc.results["energy"] * 27.211386)
    assert both[0].energy == pytest.approx(frame(0).calc.results["energy"])
    np.testing.assert_allclose(both[4].positions, frame(9).positions * 0.529177, rtol=1e-5)
    wrong = other | {"keys": {"energy": "Etot"}}
    with pytest.raises(DataError, match=r"b.xyz: no structure has the key 'Etot'"):
        load_data(Data(train=[first, wrong]), 0, Loss(forces=0))
    config = make_config({"data": {"train": [{"file": "b.xyz", "units": {"energy": "eV"}}]}}, base=tmp_path)
    assert config.data.train[0].file == second
    assert make_config(config.model_dump(mode="json")) == config


def test_weights_and_groups_are_read(write):
    path = write("a.xyz", [frame(0, w=2, run=3), frame(1, w=0.5, run="x"), frame(2)])
    data = read_dataset(path, keys=KeyNames(weight="w", group="run"))
    assert [s.weight for s in data] == [2.0, 0.5, 1.0]
    assert [s.group for s in data] == ["3", "x", None]
    assert 'weight (key "w", info)' in str(data.census)
    with pytest.raises(DataError, match="structure 0: weight .*negative"):
        read_dataset(write("b.xyz", [frame(0, w=-1)]), keys={"weight": "w"})


# fingerprints


def test_the_fingerprint_is_of_the_content(write, tmp_path):
    frames = [frame(k) for k in range(4)]
    a = read_dataset(write("a.xyz", frames))
    shutil.copy(tmp_path / "a.xyz", tmp_path / "renamed.xyz")
    assert a.fingerprint == read_dataset(tmp_path / "renamed.xyz").fingerprint
    assert a.fingerprint == read_dataset(write("b.xyz", frames[::-1])).fingerprint
    assert a.fingerprint == read_dataset([write("c.xyz", frames[:1]), write("d.xyz", frames[1:])]).fingerprint
    seen = {a.fingerprint, read_dataset(write("e.xyz", frames[:3])).fingerprint}
    seen.add(read_dataset(write("f.xyz", [*frames, frames[0]])).fingerprint)
    seen.add(read_dataset(write("g.xyz", [*frames, isolated("H", -1.0)])).fingerprint)
    frames[0].calc.results["energy"] += 1e-6
    seen.add(read_dataset(write("h.xyz", frames)).fingerprint)
    assert len(seen) == 5 and all(len(f) == 64 for f in seen)


# splits


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_a_split_is_a_partition_and_follows_the_seed(n, fraction, seed):
    data = memory([None] * n)
    rest, part = data.split(fraction, seed)
    assert sorted(s.source for s in (*rest, *part)) == sorted(s.source for s in data)
    assert len(rest) >= 1 and len(part) == min(max(round(fraction * n), 1), n - 1)
    again = data.split(fraction, seed)
    assert [s.source for s in again[1]] == [s.source for s in part]
    assert rest.census.structures == len(rest)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40), st.floats(0.05, 0.6), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_groups_never_straddle(groups, fraction, seed):
    data = memory(groups)
    if len(set(groups)) < 2:
        with pytest.raises(DataError, match="all structures are of one group"):
            data.split(fraction, seed, by_group=True)
        return
    rest, part = data.split(fraction, seed, by_group=True)
    assert len(rest) and len(part) and len(rest) + len(part) == len(groups)
    assert not {s.group for s in rest} & {s.group for s in part}


def test_splits_that_cannot_be():
    with pytest.raises(DataError, match="1 structure"):
        memory([None]).split(0.5, 0)
    with pytest.raises(DataError, match="structure 1: has no group; name its info key with keys.group"):
        memory(["a", None]).split(0.5, 0, by_group=True)


def test_copies_stay_on_one_side(write):
    frames = [frame(k % 12) for k in range(36)]
    data = read_dataset(write("a.xyz", frames))
    for seed in range(5):
        rest, part = data.split(0.2, seed)
        assert len(rest) + len(part) == 36 and len(part)
        assert not {s.energy for s in rest} & {s.energy for s in part}
    rest, part = read_dataset(write("b.xyz", [frame(0)] * 4)).split(0.5, 0)
    assert len(rest) == len(part) == 2  # all the same: nothing else can be done


def test_different_seeds_differ():
    data = memory([None] * 50)
    assert len({tuple(s.source for s in data.split(0.2, seed)[1]) for seed in range(5)}) == 5


# what a run reads

ENERGY_ONLY = Loss(energy=1.0, forces=0.0)


def load(seed=0, loss=Loss(), **data):
    return load_data(Data(**data), seed, loss)


def test_validation_and_test_sets_are_read(write):
    train = write("train.xyz", [frame(k) for k in range(20)])
    test = [write("test_300K.xyz", [frame(50)]), write("test_600K.xyz", [frame(51), frame(52)])]
    splits = load(train=train, test=test)
    assert (len(splits.train), len(splits.valid)) == (18, 2)
    assert {name: len(data) for name, data in splits.test.items()} == {"test_300K": 1, "test_600K": 2}
    splits = load(train=train, valid=test[0], test={"hot": test[1]})
    assert (len(splits.train), len(splits.valid), len(splits.test["hot"])) == (20, 1, 2)
    assert load(train=train).test == {}


def test_n_train_is_what_training_gets_and_larger_ones_contain_smaller(write):
    train = write("train.xyz", [frame(k) for k in range(40)])
    sizes = {n: load(train=train, n_train=n) for n in (9, 18, 36)}
    assert [(len(s.train), len(s.valid)) for s in sizes.values()] == [(9, 1), (18, 2), (36, 4)]
    sources = {n: {s.source for s in splits.train} for n, splits in sizes.items()}
    assert sources[9] < sources[18] < sources[36]
    assert len(load(train=train, valid=write("valid.xyz", [frame(60)]), n_train=40).train) == 40
    with pytest.raises(DataError, match="data.n_train is 37, but only 36"):
        load(train=train, n_train=37)


def test_a_weighted_label_that_is_absent_stops_the_run(write, tmp_path):
    energies = write("e.xyz", [frame(k, labels=("energy",), density=1.0) for k in range(4)])
    with pytest.raises(
        DataError, match=r"e.xyz: no training structure has forces, but loss.forces.*energy \(calculator\).*density \(info\)"
    ):
        load(train=energies, test=str(tmp_path / "not_even_looked_at.xyz"))
    assert len(load(train=energies, loss=ENERGY_ONLY).train) == 3
    late = Loss(energy=1, forces=0, schedule=[{"start": 0.5, "forces": 10}])
    with pytest.raises(DataError, match="loss.forces has weight 10"):
        load(train=energies, loss=late)
    with pytest.raises(DataError, match="no training structure has stress, but loss.stress"):
        load(train=energies, loss=Loss(energy=1, forces=0, stress=1))
    slab = bulk("Si", cubic=True)
    slab.pbc = (1, 1, 0)
    slab.calc = SinglePointCalculator(slab, energy=-1.0, stress=np.zeros(6))
    with pytest.raises(DataError, match="stress on a fully periodic structure"):
        load(train=write("slab.xyz", [slab, slab]), loss=Loss(forces=0, stress=1))
    silent = write("s.xyz", [frame(k, labels=(), REF_energies=-1.0) for k in range(4)])
    with pytest.raises(DataError, match=r"has energy.*keys there: REF_energies \(info\); name it with data.keys.energy"):
        load(train=silent)


def test_a_validation_set_with_nothing_to_compare_stops_the_run(write):
    """Its loss of 0 in the first epoch would never be beaten."""
    train = write("train.xyz", [frame(k) for k in range(6)])
    hidden = write("valid.xyz", [frame(k, labels=(), E_dft=-1.0) for k in (10, 11)])
    with pytest.raises(
        DataError,
        match=r"valid.xyz: no validation structure has energy \(loss.energy: 0.5\) or forces \(loss.forces: 1\).*E_dft \(info\); "
        "name them with data.keys.energy, data.keys.forces, for this file alone as data.valid",
    ):
        load(train=train, valid=hidden)
    energies = write("energies.xyz", [frame(k, labels=("energy",)) for k in (10, 11)])
    with pytest.raises(DataError, match="energies.xyz: no validation structure has forces"):
        load(train=train, valid=energies, loss=Loss(energy=0))
    late = Loss(energy=1, forces=1, schedule=[{"start": 0.9, "energy": 0}])
    with pytest.raises(DataError, match="no validation structure has forces"):  # the score takes the last weights
        load(train=train, valid=energies, loss=late)
    with pytest.warns(UserWarning, match="no validation structure has forces: epochs are judged without"):
        assert len(load(train=train, valid=energies).valid) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(train=train, valid=energies, loss=ENERGY_ONLY)
    few = write("few.xyz", [frame(0), *(frame(k, labels=("energy",)) for k in range(1, 20))])
    with pytest.raises(
        DataError, match="few.xyz: no validation structure has forces.*another seed or a larger data.valid_fraction"
    ):
        load(train=few, loss=Loss(energy=0))


def test_structures_of_weight_0_are_no_labels(write):
    light = write("light.xyz", [frame(k, w=0.0) for k in range(3)])
    train = write("train.xyz", [frame(k, w=1.0) for k in range(6)])
    with pytest.raises(
        DataError, match=r"light.xyz: no training structure has energy and a weight above 0 \(data.keys.weight\)"
    ):
        load(train=light, keys={"weight": "w"})
    with pytest.raises(
        DataError, match=r"light.xyz: no validation structure has energy .*count with weight 0 \(data.keys.weight\)"
    ):
        load(train=train, valid=light, keys={"weight": "w"})


def test_a_test_set_without_labels_stops_the_run(write):
    train = write("train.xyz", [frame(k) for k in range(6)])
    bare = write("bare.xyz", [frame(10, labels=(), E_dft=-1.0)])
    with pytest.raises(
        DataError, match=r"bare.xyz: no structure has energy, forces or stress: nothing to compare.*E_dft \(info\)"
    ):
        load(train=train, test={"hot": bare})


def test_a_group_split_needs_groups(write):
    frames = [frame(k, trajectory=f"run {k // 5}") for k in range(20)]
    path = write("train.xyz", frames)
    splits = load(train=path, split="group", keys={"group": "trajectory"})
    assert {s.group for s in splits.train} & {s.group for s in splits.valid} == set()
    assert (len(splits.train), len(splits.valid)) == (15, 5)
    with pytest.raises(DataError, match="data.keys.group"):
        load(train=path, split="group")
    with pytest.raises(DataError, match="structure 20: has no group"):
        load(train=write("train.xyz", [*frames, frame(20)]), split="group", keys={"group": "trajectory"})


def test_unknown_elements_in_other_sets_are_refused(write):
    train = write("train.xyz", [frame(k) for k in range(4)])
    test = write("test.xyz", [frame(10), frame(11, "CH4")])
    with pytest.raises(
        DataError, match=r"test.xyz, structure 1: C occurs in the test set but not in the training set \(H O\)"
    ):
        load(train=train, test=test)
    with pytest.raises(DataError, match="C occurs in the validation set"):
        load(train=train, valid=test)


def test_empty_sets_are_refused(write):
    atoms_only = write("atoms.xyz", [isolated("H", -13.6)])
    with pytest.raises(DataError, match="holds no structures to train on besides isolated atoms"):
        load(train=atoms_only)
    train = write("train.xyz", [frame(k) for k in range(4)])
    with pytest.raises(DataError, match="the validation set .*holds no structures"):
        load(train=train, valid=atoms_only)
    with pytest.raises(DataError, match=r"1 structure\(s\) cannot be split"):
        load(train=write("one.xyz", [frame(0)]))


def test_structures_in_both_training_and_test_are_warned_of(write):
    train = write("train.xyz", [frame(k) for k in range(10)])
    copies = [frame(0), frame(1), frame(70)]
    copies[0].set_cell([50, 50, 50])
    copies[1].calc.results["energy"] += 1
    with pytest.warns(UserWarning, match="2 structures of the test set .*test.xyz.* are in the training set"):
        load(train=train, valid=write("valid.xyz", [frame(60)]), test=write("test.xyz", copies))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(train=train, test=write("other.xyz", [frame(71)]))


def test_keys_of_a_held_out_set_must_be_there_too(write):
    def renamed(atoms, key):
        atoms.info[key], atoms.calc = atoms.calc.results["energy"], None
        return atoms

    train = write("train.xyz", [renamed(frame(k), "E") for k in range(4)])
    test = write("test.xyz", [renamed(frame(9), "Etot")])
    with pytest.raises(DataError, match=r"test.xyz: no structure has the key 'E' \(keys.energy\)"):
        load(train=train, test=test, keys={"energy": "E"}, loss=ENERGY_ONLY)


@needs_shared
@pytest.mark.parametrize(
    ("train", "isolated_atoms", "elements"),
    [
        (["3bpa/train_300K.xyz", "3bpa/iso_atoms.xyz"], 4, (1, 6, 7, 8)),
        (["ethanol/*.xyz"], 4, (1, 6, 8)),
        (["mlearn_si/train.xyz.xz"], 0, (14,)),
        (["ecemc_liquid/train.xyz.xz"], 3, (1, 6, 8)),
    ],
)
def test_reference_sets_load_through_a_config(train, isolated_atoms, elements):
    config = make_config({"data": {"train": train, "n_train": 50}}, base=SHARED)
    splits = load_data(config.data, config.seed, config.loss)
    assert len(splits.train) == 50 and splits.train.elements == elements
    assert len(splits.train.isolated_atoms) == isolated_atoms


@needs_shared
def test_known_duplicates_of_3bpa_are_counted():
    data = Data(train=str(SHARED / "3bpa/train_300K.xyz"), valid=str(SHARED / "3bpa/train_mixedT_300K_600K.xyz"))
    with pytest.warns(UserWarning, match="^31 structures of the validation set"):
        load_data(data, 0, Loss())
