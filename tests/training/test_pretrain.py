"""Learning without labels: the loss, the run, and that fine-tuning starts from it."""

import json
import signal
from dataclasses import replace

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import write
from typer.testing import CliRunner

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError, DataError, ModelFileError
from mlff.basics.numerics import safe_norm
from mlff.cli import app
from mlff.config.load import make_config
from mlff.config.options import Pretraining
from mlff.data.batching import Sizes, make_graph, make_sample
from mlff.data.dataset import load_data
from mlff.data.structure import Structure
from mlff.data.views import PairsOfViews, rotated, supercell
from mlff.potential.potential import Potential
from mlff.training import contrastive as contrastive_learning
from mlff.training import pretrain as pretraining
from mlff.training import recipe, start, task, trainer
from mlff.training.contrastive import HEAD, Projection, both_ways, contrastive, head_params, info_nce, structure_features
from mlff.training.pretrain import check, load, pretrain
from mlff.training.pretrain import prepare as prepare_pretraining
from mlff.training.train import prepare, train
from mlff.training.trainer import Trainer
from tests.conftest import MODELS, make_potential

from .test_loop import write as write_labelled
from .toy import make_structures

MODEL = {"architecture": "schnet", "channels": 8, "layers": 1, "radial_basis": 8, "cutoff": 3.0, "zbl": False}


def unit_vectors(rng, m, d):
    x = rng.normal(size=(m, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def by_hand(first, second, comparable, temperature):
    """InfoNCE, row by row, as the formula says."""
    total, count = 0.0, 0
    for i in range(len(first)):
        candidates = [j for j in range(len(second)) if comparable[i, j]]
        if not comparable[i, i] or len(candidates) < 2:
            continue
        scores = {j: np.exp(first[i] @ second[j] / temperature) for j in candidates}
        total -= np.log(scores[i] / sum(scores.values()))
        count += 1
    return total, count


def some_pairs():
    rng = np.random.default_rng(0)
    kinds = np.array([1, 1, 6, 1, 6, 8, 0, 0])  # one that has no other, and padding
    comparable = (kinds[:, None] == kinds) & (kinds > 0)[:, None]
    return unit_vectors(rng, 8, 5), unit_vectors(rng, 8, 5), comparable


def test_info_nce_is_the_formula():
    views = some_pairs()
    for temperature in (0.07, 0.5):
        with jax.enable_x64(True):
            np.testing.assert_allclose(
                info_nce(*map(jnp.asarray, views), temperature), by_hand(*views, temperature), rtol=1e-12
            )
    assert by_hand(*views, 0.5)[1] == 5


def test_its_gradient_is_that_of_finite_differences():
    first, second, comparable = some_pairs()
    with jax.enable_x64(True):
        loss = jax.jit(lambda x: both_ways(x, jnp.asarray(second), comparable, 0.2))
        gradient = np.asarray(jax.grad(loss)(jnp.asarray(first)))
        for i, k in ((0, 0), (2, 3), (5, 1), (7, 2)):
            step = np.zeros_like(first)
            step[i, k] = 1e-6
            assert gradient[i, k] == pytest.approx(float(loss(first + step) - loss(first - step)) / 2e-6, abs=1e-7)
    assert np.all(gradient[5:] == 0) and np.abs(gradient[:5]).min() > 0


def test_a_network_that_knows_nothing_has_the_logarithm_of_the_candidates():
    same = np.ones((6, 3)) / 3**0.5
    assert both_ways(same, same, np.ones((6, 6), bool), 0.1) == pytest.approx(np.log(6), rel=1e-5)


@pytest.mark.parametrize(
    "name", ["schnet", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if "ace" in name)]
)
def test_a_rotated_view_has_the_same_features(name, potentials, ethanol, silicon):
    potential = potentials(name)
    for atoms in (ethanol, silicon):
        plain = supercell(Structure.from_atoms(atoms))
        views = [plain.structure, rotated(plain, np.random.default_rng(0)).structure]
        samples = [make_sample(view, potential.cutoff) for view in views]
        graph = make_graph(samples, Sizes(2, 2 * len(views[0]), max(s.sizes.neighbors for s in samples)), np.float64)
        with potential.scope():
            found = np.asarray(jax.jit(potential.features)(potential.device_params, graph))
        one, other = np.split(found, 2)
        np.testing.assert_allclose(one, other, atol=1e-10 * max(1.0, np.abs(one).max()))


def toy_batch(extra_structures=0, extra_atoms=0, extra_neighbors=0):
    """Pairs of views of ethanol and its like, padded with so many structures, atoms and neighbours more."""
    structures = [Structure.from_atoms(molecule(name)) for name in ("CH3CH2OH", "CH3OH", "CH4")]
    batches = PairsOfViews(structures, 4.0, Pretraining(), 3)
    atoms, neighbors = sum(len(s.numbers) for s in structures), max(s.sizes.neighbors for s in batches.samples)
    sizes = Sizes(3 + extra_structures, 2 * atoms + extra_atoms, neighbors + extra_neighbors)
    return batches.build(sizes, [(0, 5), (1, 6), (2, 7)])


def test_padding_does_not_leak_into_the_loss_or_its_gradient():
    def features(params, graph):
        r = safe_norm(graph.pair_vectors, graph.neighbor_mask)[..., None]
        shapes = jnp.where(graph.neighbor_mask[..., None], jnp.exp(-4 * (r - jnp.linspace(0.5, 3.5, 4)) ** 2), 0.0)
        return (shapes.sum(axis=1) @ params["params"]["w"] + 1.0,)  # not 0 where there is no atom

    params = {"params": {"w": np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32), HEAD: head_params(0, 8)}}
    losses = jax.jit(jax.value_and_grad(contrastive(features, Pretraining()), has_aux=True))
    (tight, _), gradient = losses(params, *toy_batch(), 1.0, jax.random.key(0))
    for extra in ((3, 21, 2), (0, 9, 0)):  # also atoms that are padding where no structure is
        (loose, _), other = losses(params, *toy_batch(*extra), 1.0, jax.random.key(0))
        assert float(loose) == pytest.approx(float(tight), rel=1e-5) and 0 < float(tight) < 10
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, other)


def test_structures_count_by_the_mean_of_their_atoms():
    graph, _ = toy_batch(1, 7)
    rows = np.random.default_rng(0).normal(size=(len(graph.atomic_numbers), 3)).astype(np.float32)
    found = structure_features(rows, graph)
    start = 0
    for one, n in zip(found, graph.n_atoms, strict=True):
        np.testing.assert_allclose(one, rows[start : start + n].mean(axis=0) if n else 0.0, atol=1e-6)
        start += n


def test_the_objective_is_the_share_of_both_terms():
    graph, partners = toy_batch()
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(len(graph.atomic_numbers), 8)).astype(np.float32)
    head = head_params(0, 8)
    objective = jax.jit(contrastive(lambda params, graph: (rows,), Pretraining(atoms=0.3)))
    total, _ = objective({"params": {HEAD: head}}, graph, partners, 1.0, None)
    project = {
        name: np.asarray(Projection().apply({"params": head[name]}, x), np.float64)
        for name, x in (("atoms", rows), ("structures", structure_features(rows, graph)))
    }
    real = np.ones((3, 3), bool)
    a, b = project["structures"][::2], project["structures"][1::2]
    (ab, n), (ba, _) = by_hand(a, b, real, 0.1), by_hand(b, a, real, 0.1)
    first = np.flatnonzero(partners.atoms >= 0)
    a, b, kinds = project["atoms"][first], project["atoms"][partners.atoms[first]], graph.atomic_numbers[first]
    alike = kinds[:, None] == kinds
    (one, m), (other, _) = by_hand(a, b, alike, 0.1), by_hand(b, a, alike, 0.1)
    assert float(total) == pytest.approx(0.7 * (ab + ba) / (2 * n) + 0.3 * (one + other) / (2 * m), rel=1e-4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Carbon and silicon without labels, and carbon with labels."""
    folder = tmp_path_factory.mktemp("pretrain")
    bare = make_structures(12, seed=0) + [replace(s, numbers=np.full(4, 14, np.int32)) for s in make_structures(12, seed=1)]
    write(folder / "bare.xyz", [s.to_atoms() for s in bare])
    return str(folder / "bare.xyz"), write_labelled(folder / "carbon.xyz", make_structures(16, seed=2))


def settings(files, method="contrastive", **changes):
    raw = {"data": {"train": files[0]}, "model": MODEL, "pretraining": {"method": method, "displacement": 0.1}}
    raw["training"] = {"epochs": 16, "batch_size": 6, "tensorboard": False}
    raw["optimizer"] = {"learning_rate": 0.02}
    return make_config(raw | changes)


@pytest.fixture(scope="module", autouse=True)
def trainers():
    """Trainers there were. Those of one method share what is compiled: they have the same model, config and shapes."""
    made, compiled = [], {}

    def shared(module, name):
        make = getattr(module, name)

        def cached(first, *rest):
            key = name, rest[0].pretraining.method if rest else "contrastive", rest and rest[0].finetune_from
            return compiled.setdefault(key, make(first, *rest))

        return cached

    class Remembered(Trainer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((trainer, "make_step"), (task, "make_eval_step"), (contrastive_learning, "make_loss_step")):
            patch.setattr(module, name, shared(module, name))
        patch.setattr(pretraining, "Trainer", Remembered)
        yield made


@pytest.fixture(scope="module", params=["contrastive", "denoising"])
def trained(request, files, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    return request.param, out, pretrain(settings(files, request.param), out, progress=False)


def test_the_file_says_that_no_labels_were_used_and_nobody_asks_it_for_energies(trained):
    method, out, potential = trained
    path = out / "model.safetensors"
    assert Potential.load(path, pretrained=True).metadata["pretraining"]["method"] == method
    assert potential.metadata["pretraining"]["labels"] == "none" and HEAD not in potential.params["params"]
    with pytest.raises(
        ModelFileError, match="model.safetensors: was trained without labels and has no energies: .*finetune"
    ):
        Potential.load(path)
    with pytest.raises(ModelFileError, match="this potential was trained without labels and has no energies"):
        potential.predict([bulk("Si", cubic=True)])
    silicon = bulk("Si", cubic=True)
    silicon.calc = MLFFCalculator(potential)
    for ask in (silicon.get_potential_energy, lambda: potential.hessian(silicon)):
        with pytest.raises(ModelFileError, match="has no energies"):
            ask()
    write(out / "silicon.xyz", silicon)
    structure, result = str(out / "silicon.xyz"), str(out / "result.xyz")
    for command, *options in (["predict", result], ["md", "--out", result], ["evaluate"], ["certify"]):
        found = CliRunner().invoke(app, [command, str(path), structure, *options])
        assert found.exit_code == 1 and "has no energies" in found.stderr and found.stderr.count("\n") == 1, found.stderr


def test_the_loss_falls(trained):
    _, out, _ = trained
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["valid_loss"] < lines[0]["valid_loss"] and lines[-1]["train_loss"] < lines[0]["train_loss"]


def test_a_stopped_run_goes_on_bitwise_as_if_never_stopped(trained, files, tmp_path, monkeypatch):
    method, _, straight = trained
    original, stopped = Trainer._tick, []

    def stop(self):
        original(self)
        if self.run.tried == 5 and not stopped:  # within the second epoch
            stopped.append(True)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "_tick", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(settings(files, method), tmp_path / "run", progress=False)
    assert stopped and not (tmp_path / "run" / "model.safetensors").exists()
    resumed = pretrain(settings(files, method), tmp_path / "run", progress=False)
    jax.tree.map(np.testing.assert_array_equal, straight.params, resumed.params)
    again = pretrain(settings(files, method), tmp_path / "run", progress=False)  # finished: loaded, not trained
    assert again.fingerprint == resumed.fingerprint
    with pytest.raises(ConfigError, match=r"differs in pretraining.temperature \(0.1 there, 0.2 here\)"):
        changed = {"method": method, "displacement": 0.1, "temperature": 0.2}
        pretrain(settings(files, method, pretraining=changed), tmp_path / "run", progress=False)


def test_nothing_compiles_while_it_runs(trained, trainers):
    method = trained[0]
    run = next(one for one in trainers if one.config.pretraining.method == method and one.run.epoch == 16)
    assert run.step._cache_size() == len(run.task.train.sizes) and run.measure._cache_size() == len(run.task.valid.sizes)


def test_fine_tuning_takes_the_weights_and_measures_the_scales(trained, files, tmp_path):
    _, out, before = trained
    config = make_config(
        {
            "finetune_from": str(out / "model.safetensors"),
            "data": {"train": files[1]},
            "model": MODEL,
            "training": {"epochs": 2, "tensorboard": False},
        }
    )
    splits = load_data(config.data, 0, config.loss)
    task = prepare(config, splits, beginning=start.load(config))
    fresh = prepare(config.model_copy(update={"finetune_from": None}), splits)
    assert task.elements == (6,) and before.elements == (6, 14)  # of silicon it knows no energies
    assert task.statistics.energy_scale == fresh.statistics.energy_scale
    assert task.statistics.atom_energies == fresh.statistics.atom_energies
    assert task.statistics.inner_cutoff == fresh.statistics.inner_cutoff
    assert task.statistics.mean_neighbors == before.statistics.mean_neighbors
    assert task.baseline == fresh.baseline
    chosen, _ = recipe.choose(config, splits.train, before)
    assert chosen.optimizer.learning_rate == config.optimizer.learning_rate  # not a quarter of it
    one, other = task.params["params"], before.params["params"]
    np.testing.assert_array_equal(one["embedding"], other["embedding"][:1])
    jax.tree.map(np.testing.assert_array_equal, one["layer_0"], other["layer_0"])
    if trained[0] == "denoising":
        return
    potential = train(config, tmp_path / "fine", progress=False)
    assert not potential.pretrained and np.isfinite(potential.predict([make_structures(1, 0)[0]])[0].energy)
    rows = start.before_and_after(before, potential, splits)
    assert rows[0]["forces_rmse_before"] is None and rows[0]["forces_rmse_after"] > 0


def test_other_elements_of_the_same_number_get_their_own_rows():
    old = replace(make_potential("schnet"), metadata={"pretraining": {}})  # of H, C, O, Si
    new, lines = start.with_elements(old, (1, 6, 8, 32))
    assert new.elements == (1, 6, 8, 32) and "Ge is new to the model: it begins as Si" in lines
    np.testing.assert_array_equal(new.params["params"]["embedding"], old.params["params"]["embedding"])
    new, _ = start.with_elements(old, (6, 14, 32))
    np.testing.assert_array_equal(
        new.params["params"]["embedding"], np.asarray(old.params["params"]["embedding"])[[1, 3, 3]]
    )


def test_what_cannot_be_learned_from_is_refused_in_one_line(files, trained, tmp_path):
    with pytest.raises(ConfigError, match="batch_size: 1: contrastive learning tells a structure from the others"):
        check(settings(files, training={"batch_size": 1, "epochs": 1}))
    with pytest.raises(ConfigError, match="finetune_from: pre-training starts from random weights"):
        check(settings(files, finetune_from="other.safetensors"))
    write(tmp_path / "atoms.xyz", [ase.Atoms("H", positions=[[x, 0, 0]]) for x in range(6)])
    with pytest.raises(
        DataError, match="atoms.xyz.*: 0 training structures have two atoms or more; .*denoising needs at least 1"
    ):
        pretrain(settings((str(tmp_path / "atoms.xyz"),), "denoising"), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="data.replay: the model to start from was trained without labels"):
        raw = {"finetune_from": str(trained[1] / "model.safetensors"), "data": {"train": files[1], "replay": files[1]}}
        train(make_config(raw | {"model": MODEL}), tmp_path / "out2", progress=False)
    with pytest.raises(ConfigError, match="'pretraining.method': input should be 'contrastive' or 'denoising'"):
        make_config({"data": {"train": "a.xyz"}, "pretraining": {"method": "simclr"}})


def test_denoising_has_forces_of_order_one_and_no_energies(files):
    config = settings(files, "denoising")
    task = prepare_pretraining(config, load(config))
    graph, labels = task.train.build(*task.train.plan(None)[0])
    real = graph.atomic_numbers > 0
    assert task.statistics.energy_scale == 1.0
    assert np.std(labels.values["forces"][real]) == pytest.approx(1.0, rel=0.35) and not labels.has["energy"].any()
