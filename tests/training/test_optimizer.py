import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from mlff.config.options import Optimizer, Schedule
from mlff.training import optimizer

NAMES = typing.get_args(Optimizer.model_fields["name"].annotation)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_reduces_a_quadratic(name):
    target = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
    config = Optimizer(name=name, learning_rate=0.05, schedule=Schedule(kind="constant", warmup_fraction=0))

    def loss(params):
        return jnp.sum((params["w"] - target) ** 2) + jnp.sum((params["b"] - 0.5) ** 2)

    def step(carry, _):
        params, state = carry
        rate = optimizer.learning_rate(config, 0.5)
        updates, state = optimizer.make_optimizer(config, rate).update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"w": jnp.zeros((4, 3)), "b": jnp.zeros(2)}
    state = optimizer.make_optimizer(config, 0.0).init(params)
    (end, state), _ = jax.lax.scan(step, (params, state), length=150)
    assert loss(end) < 0.05 * loss(params)


def share(progress, **options):
    return float(optimizer.schedule(Schedule(**options), progress))


def test_warm_up_is_linear_from_zero():
    assert [share(p, kind="constant", warmup_fraction=0.2) for p in (0.0, 0.05, 0.1, 0.2, 1.0)] == pytest.approx(
        [0, 0.25, 0.5, 1, 1]
    )


def test_cosine_falls_from_one_to_final():
    values = [share(p, kind="cosine", warmup_fraction=0.0, final_fraction=0.1) for p in (0.0, 0.5, 1.0)]
    assert values == pytest.approx([1.0, 0.55, 0.1])


def test_exponential_falls_by_equal_factors():
    values = [share(p, kind="exponential", warmup_fraction=0.5, final_fraction=0.01) for p in (0.5, 0.75, 1.0)]
    assert values == pytest.approx([1.0, 0.1, 0.01], rel=1e-5)


def test_warm_restarts_are_cosines_each_twice_as_long_from_the_full_rate():
    def at(progress):
        return share(progress, kind="restarts", cycles=3, warmup_fraction=0.0, final_fraction=0.1)

    begins = [0.0, 1 / 7, 3 / 7]
    assert [at(begin + 1e-4) for begin in begins] == pytest.approx([1.0] * 3, abs=1e-3)
    assert [at(end - 1e-4) for end in (*begins[1:], 1.0)] == pytest.approx([0.1] * 3, abs=1e-3)
    assert [at(begin + 0.5 * 2**k / 7) for k, begin in enumerate(begins)] == pytest.approx([0.55] * 3, abs=1e-3)
    assert at(1.0) == pytest.approx(0.1)
    shares = np.linspace(0, 1, 15)
    restarts = Schedule(kind="restarts", cycles=3, warmup_fraction=0.0)
    assert [optimizer.cycle(restarts, p) for p in shares] == [0] * 2 + [1] * 4 + [2] * 9
    assert {optimizer.cycle(Schedule(), p) for p in shares} == {0}


def test_clip_limits_the_global_norm_only_when_it_is_larger():
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    clipped = optimizer.clip(gradient, optax.tree.norm(gradient), 1.0)
    np.testing.assert_allclose(clipped["a"], [0.6, 0.0], rtol=1e-6)
    assert optimizer.clip(gradient, optax.tree.norm(gradient), 10.0)["b"] == pytest.approx(4.0)
    assert optimizer.clip(gradient, optax.tree.norm(gradient), None) is gradient


def test_matrices_of_one_shape_are_made_orthogonal_each_by_itself():
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 3), "b": (4, 3), "c": (3, 5), "d": (3,), "e": (3,)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    plain = contrib.muon(0.1, adam_b1=0.9, adam_b2=0.999, consistent_rms=0.2)
    ours = optimizer.make_optimizer(Optimizer(name="muon"), 0.1)
    states = plain.init(params), ours.init(params)
    for _ in range(3):
        gradient = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
        expected, first = plain.update(gradient, states[0], params)
        updates, second = ours.update(gradient, states[1], params)
        states = first, second
        for name in shapes:  # float32: products of a stack add up in another order
            np.testing.assert_allclose(updates[name], expected[name], rtol=2e-5, atol=2e-6)
