"""Fine-tuning: what training takes over from a potential, what it does not, and what is refused."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from ase.build import molecule

from mlff.basics.errors import ConfigError, ModelFileError
from mlff.config.load import load_config, make_config
from mlff.data.batching import Sizes, make_graph
from mlff.data.dataset import load_data
from mlff.models.common import Statistics
from mlff.potential.potential import Potential
from mlff.training import second_readout, start
from mlff.training.train import prepare, train
from tests.conftest import make_potential

from .test_loop import write
from .toy import make_structures

MODEL = {"architecture": "schnet", "channels": 8, "layers": 1, "radial_basis": 8, "cutoff": 3.0, "zbl": False}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model of carbon and silicon, trained for an epoch, and carbon data with another zero of energy."""
    folder = tmp_path_factory.mktemp("start")
    carbon = make_structures(24, seed=0)
    silicon = [replace(s, numbers=np.full(4, 14, np.int32), energy=s.energy - 3) for s in make_structures(24, seed=1)]
    first = make_config(
        {"data": {"train": write(folder / "both.xyz", carbon + silicon)}, "model": MODEL, "training": {"epochs": 6}}
    )
    train(first, folder / "first", progress=False)
    moved = [replace(s, energy=s.energy + 40, forces=2 * s.forces) for s in make_structures(24, seed=2)]
    return folder / "first" / "model.safetensors", write(folder / "moved.xyz", moved)


def settings(files, **changes):
    raw = {"finetune_from": str(files[0]), "data": {"train": files[1]}, "model": MODEL, "training": {"epochs": 2}}
    return make_config(raw | changes)


def task(config):
    return prepare(config, load_data(config.data, 0, config.loss), beginning=start.load(config))


def test_weights_elements_and_scales_are_those_of_the_start_and_energies_those_of_the_data(files):
    old, new = Potential.load(files[0]), task(settings(files))
    jax.tree.map(np.testing.assert_array_equal, new.params, old.params)
    assert new.elements == old.elements == (6, 14)
    assert new.statistics.energy_scale == old.statistics.energy_scale
    assert new.statistics.mean_neighbors == old.statistics.mean_neighbors
    assert new.baseline[14] == old.baseline[14] and new.baseline[6] == pytest.approx(old.baseline[6] + 10, abs=0.1)
    assert new.statistics.atom_energies[1] == old.statistics.atom_energies[1]


def test_the_core_is_that_of_the_new_data():
    old = Potential(None, {}, (1, 8), {}, Statistics(2.0, 5.0, (-1.0, -2.0), (0.9, 1.0, 1.0, 1.1)))
    new = start.statistics(old, Statistics(3.0, 6.0, (-4.0, 0.0), (0.8, 1.2, 1.2, 1.0)), present=(1,))
    assert new == Statistics(2.0, 5.0, (-4.0, -2.0), (0.8, 1.2, 1.2, 1.0))


def test_training_goes_on_from_there_and_the_result_knows_both_elements(files, tmp_path):
    potential = train(settings(files), tmp_path / "fine", progress=False)
    assert potential.elements == (6, 14)
    scratch = train(settings(files, finetune_from=None), tmp_path / "scratch", progress=False)
    errors = [p.metadata["errors"]["validation"]["forces_rmse"] for p in (potential, scratch)]
    assert errors[0] < errors[1]
    again = train(settings(files), tmp_path / "fine", progress=False)  # finished: loaded, not trained
    assert again.fingerprint == potential.fingerprint


def test_a_run_does_not_go_on_from_another_start(files, tmp_path):
    train(settings(files), tmp_path / "fine", progress=False)
    for other in (None, str(tmp_path / "fine" / "model.safetensors")):
        with pytest.raises(ConfigError, match=r"differs in finetune_from \(.*choose another --out"):
            train(settings(files, finetune_from=other), tmp_path / "fine", progress=False)


def test_what_cannot_be_started_from_is_refused_by_name(files, tmp_path):
    with pytest.raises(ModelFileError, match="none.safetensors: no such model file"):
        train(settings(files, finetune_from=str(tmp_path / "none.safetensors")), tmp_path / "out", progress=False)
    other = MODEL | {"channels": 16, "cutoff": 2.5}
    with pytest.raises(ConfigError, match=r"channels \(8 there, 16 here\), cutoff \(3.0 there, 2.5 here\); write the same"):
        train(settings(files, model=other), tmp_path / "out", progress=False)
    members = replace(Potential.load(files[0]), members=2, metadata={})
    members = replace(members, params=jax.tree.map(lambda p: np.stack([p, p + 1]), members.params))
    members.save(tmp_path / "committee.safetensors")
    with pytest.raises(ConfigError, match="is a committee; start from one of its members"):
        train(settings(files, finetune_from=str(tmp_path / "committee.safetensors")), tmp_path / "out", progress=False)


def test_the_path_is_relative_to_the_config_file(tmp_path):
    (tmp_path / "a.yaml").write_text("{finetune_from: first.safetensors, data: {train: a.xyz}}")
    assert load_config(tmp_path / "a.yaml").finetune_from == str(tmp_path / "first.safetensors")
    (tmp_path / "b.yaml").write_text("{finetune_from: ~no_such_user/first.safetensors, data: {train: a.xyz}}")
    with pytest.raises(
        ConfigError, match="b.yaml: finetune_from: ~no_such_user/first.safetensors: there is no such home directory"
    ):
        load_config(tmp_path / "b.yaml")


@pytest.mark.parametrize("name", [pytest.param("ace", marks=pytest.mark.slow), "schnet"])
def test_a_new_element_begins_as_the_one_most_like_it(name):
    old = make_potential(name)  # of H, C, O, Si
    new, lines = start.with_elements(old, (1, 5, 16))
    assert new.elements == (1, 5, 6, 8, 14, 16)
    assert lines == ["B is new to the model: it begins as C", "S is new to the model: it begins as O"]
    known = molecule("CH3OH")
    disguised = known.copy()
    disguised.numbers = [{6: 5, 8: 16}.get(z, z) for z in known.numbers]
    (before,) = replace(old, statistics=new.statistics._replace(atom_energies=old.statistics.atom_energies)).predict([known])
    same, other = new.predict([known, disguised])
    np.testing.assert_allclose(same.forces, before.forces, atol=1e-5)
    off = np.abs(other.forces - before.forces).max()
    assert off < 50 and (off > 0 or name == "schnet"), (
        "bond lengths and the repulsion of nuclei are those of the element itself"
    )


@pytest.mark.parametrize("z, like", [(9, 8), (35, 17), (22, 26), (3, 11), (1, 6), (64, 57)])
def test_of_the_same_group_or_else_the_nearest_number(z, like):
    known = {9: (6, 8), 35: (8, 17, 29), 22: (16, 26), 3: (1, 2, 11), 1: (6, 17), 64: (57, 50)}[z]
    assert min(known, key=lambda other: start._unlike(z, other)) == like


def test_training_with_a_new_element(files, tmp_path):
    germanium = [replace(s, numbers=np.full(4, 32, np.int32)) for s in make_structures(12, seed=3)]
    config = settings(files, data={"train": write(tmp_path / "ge.xyz", germanium)})
    potential = train(config, tmp_path / "out", progress=False)
    assert potential.elements == (6, 14, 32)


def old_data(seed=0):
    return [replace(s, energy=s.energy) for s in make_structures(24, seed=seed)]


def test_replayed_data_keep_their_own_zero_and_take_their_share(files, tmp_path):
    data = {"train": files[1], "replay": write(tmp_path / "old.xyz", old_data()), "replay_share": 0.25}
    new = task(settings(files, data=data))
    plan = new.train.plan(np.random.default_rng(0))
    taken = [index for _, indices in plan for index in indices]
    count = new.train._first_replayed
    replayed = sorted(index for index in taken if index >= count)
    assert sorted(index for index in taken if index < count) == list(range(count))
    assert len(replayed) == round(count / 3) == len(set(replayed))
    others = [i for _, indices in new.train.plan(np.random.default_rng(1)) for i in indices if i >= count]
    assert sorted(others) != replayed
    old = Potential.load(files[0])
    predicted = old.predict([s.to_atoms() for s in old_data()])
    apply = jax.jit(new.apply)
    for (energy, *_), sample, structure in zip(predicted, new.train.samples[count:], old_data(), strict=True):
        graph = make_graph([sample], Sizes(1, 4, 4))
        error = float(apply(new.params, graph).sum()) - sample.labels["energy"]
        assert error == pytest.approx(energy - structure.energy, abs=1e-4)


def test_replayed_data_of_another_method_have_a_readout_of_their_own(files, tmp_path):
    """Opposite forces at the same structures: one network cannot give both, two readouts can; and a run goes on bit by bit."""
    opposite = [replace(s, energy=-s.energy, forces=-s.forces) for s in make_structures(24, seed=0)]
    data = {"train": write(tmp_path / "new.xyz", opposite), "replay": write(tmp_path / "old.xyz", old_data())}
    readout = {"replay_readout": "own"}
    new = task(settings(files, data=data | readout))
    graph, labels = next(new.train.epoch(np.random.default_rng(0)))
    assert labels.replayed.any() and not labels.replayed[: len(labels.replayed)].all()
    doubled = jax.jit(new.apply)(new.params, graph, labels.replayed)
    np.testing.assert_array_equal(doubled, jax.jit(new.apply)(new.params, graph))  # at the start both are one
    other = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * (2 - ("replay_" in str(path))), new.params)
    changed = np.asarray(jax.jit(new.apply)(other, graph, labels.replayed))
    plain = np.asarray(jax.jit(new.apply)(other, graph))
    mine = labels.replayed[graph.structure]
    assert np.array_equal(changed[~mine], plain[~mine]) and not np.allclose(changed[mine], plain[mine])


@pytest.mark.slow
def test_both_potentials_of_a_run_with_two_readouts_are_written(files, tmp_path):
    """Each is best on its own data."""
    opposite = [replace(s, energy=-s.energy, forces=-s.forces) for s in make_structures(24, seed=0)]
    data = {"train": write(tmp_path / "new.xyz", opposite), "replay": write(tmp_path / "old.xyz", old_data())}
    config = settings(
        files, data=data | {"replay_readout": "own"}, training={"epochs": 10}, optimizer={"learning_rate": 0.02}
    )
    new = train(config, tmp_path / "out", progress=False)
    old = Potential.load(tmp_path / "out" / second_readout.FILE)
    forces = [np.concatenate([r.forces for r in p.predict(opposite, stress=False)]) for p in (new, old)]
    wanted = np.concatenate([s.forces for s in opposite])
    errors = {sign: [np.sqrt(np.mean((f - sign * wanted) ** 2)) for f in forces] for sign in (1, -1)}
    assert errors[1][0] < errors[1][1] and errors[-1][1] < errors[-1][0], errors
    rows = start.before_and_after(Potential.load(files[0]), new, load_data(config.data, 0, config.loss), old)
    assert rows[1]["data"] == "replay" and rows[1]["forces_rmse_after"] < 1.5 * rows[1]["forces_rmse_before"]


def test_a_second_readout_without_data_is_refused(files):
    config = settings(files, data={"train": files[1], "replay_readout": "own"})
    with pytest.raises(ConfigError, match="replay_readout: own: there is no data.replay"):
        start.check(start.load(config), config, load_data(config.data, 0, config.loss))


def test_replay_that_cannot_be_is_refused(files, tmp_path):
    def refused(match, structures, **changes):
        data = {"train": files[1], "replay": write(tmp_path / "old.xyz", structures)}
        with pytest.raises(ConfigError, match=match):
            train(settings(files, data=data, **changes), tmp_path / "out", progress=False)

    refused("there is no finetune_from", old_data(), finetune_from=None)
    refused(
        "has Ge, which the model to start from does not know",
        [replace(s, numbers=np.full(4, 32, np.int32)) for s in old_data()],
    )
    refused(r"best factor between them is .*other units", [replace(s, forces=23.06 * s.forces) for s in old_data()])
