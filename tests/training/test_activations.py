"""The share of saturated activations: those whose derivative is next to nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlff.basics.numerics import smooth_silu
from mlff.data.batching import Sizes, make_graph, make_sample
from mlff.data.structure import Structure
from mlff.models import ace, schnet
from mlff.models.activation import saturated
from mlff.training.activations import shares
from tests.conftest import over_models

EDGES = {  # where the derivative falls below a hundredth of the largest: sigmoids log(0.01 / 0.99) = -4.595 for its derivative
    "softplus": (schnet.shifted_softplus, [-4.61, -4.58, 0.0, 9.0], [True, False, False, False]),
    "sigmoid": (jax.nn.sigmoid, [-6.1, -5.9, 0.0, 5.9, 6.1], [True, False, False, False, True]),
    "rectifier": (jax.nn.relu, [-1e-3, 1e-3, 50.0], [True, False, False]),
    "smooth_silu": (smooth_silu, [-7.0, -3.0, -1.2785, 0.0, 5.0], [True, False, True, False, False]),
}


@pytest.mark.parametrize("name", EDGES)
def test_where_an_activation_is_saturated(name):
    function, x, expected = EDGES[name]
    assert saturated(function, jnp.array([x])).tolist() == [expected]


@pytest.fixture
def graphs(ethanol):
    """A molecule by itself, and with padding."""
    sample = make_sample(Structure.from_atoms(ethanol), 4.0)
    return [make_graph([sample], Sizes(structures, atoms, 12)) for structures, atoms in ((1, 9), (3, 20))]


def test_a_filter_that_is_dead_is_seen_and_padding_does_not_count(potentials, graphs):
    potential = potentials("schnet", "float32")
    params = jax.tree.map(np.array, potential.params)
    params["params"]["layer_1"]["filter_0_bias"] -= 100.0
    params["params"]["head"]["hidden_bias"][: len(params["params"]["head"]["hidden_bias"]) // 2] = -1000.0
    found = [jax.device_get(shares(potential.model)(params, graph)) for graph in graphs]
    assert found[0]["layer_1/filter_0"] == 1.0 and found[0]["layer_0/filter_0"] < 0.1 and found[0]["head/hidden"] == 0.5
    for name, share in found[0].items():
        assert found[1][name] == pytest.approx(share), name


@over_models("ace_l3")
def test_every_activation_of_a_model_is_looked_at_and_nothing_is_computed_unless_asked(
    name, potentials, graphs, monkeypatch
):
    potential = potentials(name, "float32")
    layers = range(getattr(potential.config, "layers", 0))
    names = {
        "ace": {f"head_{len(layers) - 1}/hidden"},
        "schnet": {"head/hidden", *(f"layer_{k}/{part}_0" for k in layers for part in ("filter", "out"))},
    }
    trace = jax.make_jaxpr(lambda params, graph: potential.model.apply(params, graph))
    looked = jax.eval_shape(shares(potential.model), potential.params, graphs[0])
    assert set(looked) == names.get(potential.config.architecture, set())
    program = str(trace(potential.params, graphs[0]))
    for module in (ace, schnet):
        monkeypatch.setattr(module, "activate", lambda module, name, function, x: function(x))
    assert str(trace(potential.params, graphs[0])) == program
