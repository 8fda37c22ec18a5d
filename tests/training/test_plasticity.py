"""A learning rate for every parameter: what is frozen stays, what is refused, and what the Fisher information says."""

import jax
import numpy as np
import pytest
from ase.build import molecule
from safetensors.numpy import save_file

from mlff.basics.errors import ConfigError
from mlff.config.load import make_config
from mlff.config.options import Optimizer
from mlff.data.structure import Structure
from mlff.training import plasticity
from mlff.training.objectives import supervised
from mlff.training.step import initial_state, make_step
from tests.conftest import make_potential

from .test_loop import write
from .test_start import MODEL
from .toy import make_structures

PARAMS = {"params": {"layer_0": {"mix": np.ones((2, 3), np.float32)}, "head": {"out": np.ones(3, np.float32)}}}


def at(progress, **options):
    return jax.device_get(plasticity.factors(Optimizer(**options), PARAMS)(np.float32(progress)))["params"]


def test_the_last_pattern_that_matches_counts():
    found = at(0.0, plasticity={"*": 0.5, "layer_*": 0})
    assert found == {"layer_0": {"mix": 0.0}, "head": {"out": 0.5}}
    assert plasticity.factors(Optimizer(), PARAMS) is None


def test_a_factor_can_change_in_the_course_of_training():
    assert [float(at(share, plasticity={"head/*": [0, 1]})["head"]["out"]) for share in (0, 0.25, 1)] == [0, 0.25, 1]


def test_a_map_and_patterns_are_multiplied(tmp_path):
    save_file({"head/out": np.array([0.0, 0.5, 1.0], np.float32)}, tmp_path / "map.safetensors")
    found = at(0.0, plasticity={"head/*": 0.5}, plasticity_map=str(tmp_path / "map.safetensors"))
    np.testing.assert_array_equal(found["head"]["out"], [0, 0.25, 0.5])
    assert found["layer_0"]["mix"] == 1


def test_what_fits_no_parameter_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"'layer_7/\*' matches no parameter; there are layer_0/mix, head/out"):
        at(0.0, plasticity={"layer_7/*": 0})
    file = tmp_path / "map.safetensors"
    for arrays, match in (
        ({"head/in": np.ones(3, np.float32)}, "'head/in' is no parameter"),
        ({"head/out": np.ones(4, np.float32)}, r"head/out has the shape \(4,\), that of the parameter is \(3,\)"),
        ({"head/out": -np.ones(3, np.float32)}, "negative or not finite"),
    ):
        save_file(arrays, file)
        with pytest.raises(ConfigError, match=match):
            at(0.0, plasticity_map=str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        at(0.0, plasticity_map=str(tmp_path / "none.safetensors"))
    with pytest.raises(ConfigError, match=r"optimizer.plasticity.*greater than or equal to 0"):
        make_config({"data": {"train": "a.xyz"}, "optimizer": {"plasticity": {"*": -1}}})


@pytest.mark.parametrize("name", ["muon", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adamw", "momentum"))])
def test_what_is_frozen_stays_bit_by_bit_and_the_rest_moves_as_told(name, tmp_path):
    """Also with momentum and weight decay, and the free ones as without a frozen one."""
    from mlff.data.dataset import load_data
    from mlff.training.train import prepare

    train = write(tmp_path / "a.xyz", make_structures(12, seed=0))

    def after(plastic):
        optimizer = {"name": name, "weight_decay": 0.1, "learning_rate": 0.01, "plasticity": plastic, "clip": None}
        schedule = {"kind": "constant", "warmup_fraction": 0}
        config = make_config({"data": {"train": train}, "model": MODEL, "optimizer": optimizer | {"schedule": schedule}})
        task = prepare(config, load_data(config.data, 0, config.loss))
        objective = supervised(task.apply, config.loss, task.statistics.energy_scale)
        step = make_step(objective, config, plasticity.factors(config.optimizer, task.params))
        state = initial_state(config, task.params)
        batch = task.train.build(*task.train.plan(None)[0])
        state, _ = step(state, np.array([0.5, 1.0, 0.0], np.float32), *batch)
        moved = jax.tree.map(lambda new, old: np.asarray(new - old), state.params, task.params)
        return plasticity._named(moved)

    free, frozen, half = after({}), after({"layer_0/*": 0}), after({"*": 0.5})
    assert any(key.startswith("layer_0/") for key in free)
    for key, moved in free.items():
        if key.startswith("layer_0/"):
            assert np.any(moved) and not np.any(frozen[key])
        else:
            np.testing.assert_allclose(frozen[key], moved, atol=1e-7)
        np.testing.assert_allclose(half[key], 0.5 * moved, atol=1e-7)


@pytest.mark.slow
def test_importance_is_the_mean_of_squared_derivatives():
    """Against all outputs differentiated one by one, averaged over the signs of the projection."""
    potential = make_potential("schnet", precision="float64")
    structures = [Structure.from_atoms(molecule(name)) for name in ("H2O", "CH4")]
    found = plasticity.importance(potential, structures * 40)
    information = {name: 1 / value.astype(float) - 1 for name, value in found.items()}
    mean = sum(v.sum() for v in information.values()) / sum(v.size for v in information.values())
    assert mean == pytest.approx(1, rel=1e-3)
    exact = exact_information(potential, structures)
    for name, value in exact.items():
        rough = information[name]
        assert np.corrcoef(np.ravel(rough), np.ravel(value))[0, 1] > 0.8 or value.size < 3
    total = {name: value.sum() for name, value in exact.items()}
    for name in total:
        share = total[name] / sum(total.values())
        assert information[name].sum() / sum(v.sum() for v in information.values()) == pytest.approx(
            share, rel=0.5, abs=0.02
        )


def exact_information(potential, structures):
    from mlff.potential.derivatives import predict

    def outputs(params, graph):
        found = predict(lambda g: potential.model.apply(params, g), graph, forces=True, stress=False)
        n = graph.n_atoms[0]
        forces = found.forces.ravel() / np.sqrt(3 * n)
        return jax.numpy.concatenate([found.energy / n, forces]) / potential.statistics.energy_scale

    total = {}
    with potential.scope():
        for structure in structures:
            jacobian = jax.jacrev(outputs)(potential.device_params, potential.graph_of(structure))
            for name, leaf in plasticity._named(jacobian).items():
                total[name] = total.get(name, 0.0) + np.sum(np.asarray(leaf) ** 2, axis=0)
    return total
