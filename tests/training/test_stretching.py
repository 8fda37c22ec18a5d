"""The term for stretched bonds: what it is, and that a model learns from it."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule

from mlff.basics.errors import ConfigError
from mlff.config.options import Config, Data, Loss
from mlff.data.batching import Batches, Sizes, make_graph, make_labels, make_sample
from mlff.data.stretched import stretched
from mlff.data.structure import Structure
from mlff.graph import Prediction
from mlff.training import stretching
from mlff.training.objectives import supervised
from tests.conftest import make_potential, over_models

CUTOFF, SCALE = 4.0, 0.8


def molecules(count: int = 4) -> list:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        atoms = molecule("CH3CH2OH")
        atoms.positions += 0.03 * rng.normal(size=atoms.positions.shape)
        labels = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}
        found.append(replace(Structure.from_atoms(atoms), **labels))
    return [make_sample(one, CUTOFF) for one in found]


@pytest.fixture(scope="module")
def batch():
    """A structure with labels and two with stretched bonds, in float64, and what was drawn."""
    known = molecules()
    drawn = stretched(known, 2, CUTOFF, np.random.default_rng(0))
    sizes = Sizes(4, 40, 8)
    arrays = [known[0], *drawn], sizes, np.float64
    return make_graph(*arrays, shifts=False), make_labels(*arrays, stretched=True), drawn


def lacking(batch, slopes, error="mae", scale=SCALE):
    """The term for given slopes dE/dr of the two stretched structures."""
    graph, labels, drawn = batch
    along = [s * d.direction / np.sum(d.direction**2) for s, d in zip(slopes, drawn, strict=True)]
    forces = np.zeros((40, 3))
    forces[:9], forces[9:27] = 1.0, -np.concatenate(along)  # those of the labelled structure do not count
    total, count = stretching.compare(
        Prediction(None, jnp.array(forces), None, None), labels, graph, Loss(error=error), scale
    )
    return float(total), int(count)


def test_what_pulls_back_enough_costs_nothing_and_the_rest_what_it_lacks(batch):
    with jax.enable_x64(True):
        margin = min(SCALE, stretching.MARGIN)
        assert lacking(batch, (margin + 0.01, 7.0)) == (0.0, 2)
        total, _ = lacking(batch, (margin - 0.2, -1.0))
        assert total == pytest.approx((0.2 + margin + 1.0) / SCALE)
        squares, _ = lacking(batch, (margin - 0.2, -1.0), "mse")
        assert squares == pytest.approx((0.2**2 + (margin + 1.0) ** 2) / SCALE**2)
        assert lacking(batch, (stretching.MARGIN, 9.0), scale=50.0)[0] == 0.0, "no more than the margin is asked"


@over_models("schnet", "ace", "ace_l3", "ace_saturated")
def test_the_term_is_the_slope_of_the_energy(name, batch):
    """The objective with the term less that without is what the slope by finite differences lacks to the margin."""
    potential = make_potential(name, "float64")
    graph, labels, drawn = batch
    with jax.enable_x64(True):
        apply, params = potential.model.apply, jax.tree.map(jnp.asarray, potential.params)
        energy = jax.jit(lambda positions: jnp.sum(apply(params, graph._replace(positions=positions))))
        step, margin, expected = 1e-5, min(SCALE, stretching.MARGIN), []
        for number, one in enumerate(drawn):
            move = np.zeros((40, 3))
            move[9 * (number + 1) : 9 * (number + 2)] = step * one.direction
            slope = (energy(graph.positions + move) - energy(graph.positions - move)) / (2 * step)
            expected.append(max(margin - float(slope), 0.0) / SCALE)
        values = [
            jax.jit(supervised(apply, Loss(stretched=weight), SCALE))(params, graph, labels, 1.0, None)[0]
            for weight in (0.0, 0.5)
        ]
        assert float(values[1] - values[0]) == pytest.approx(0.5 * np.mean(expected), abs=1e-6)


def test_the_pool_is_that_of_seed_and_member_and_empty_where_the_term_is_off():
    known = molecules()

    def drawn(member=0, **loss):
        found = stretching.pool(Config(data=Data(train="unused.xyz"), loss=Loss(**loss), member=member), known)
        return [sample.positions.tolist() for sample in found]

    assert len(drawn(stretched=0.1)) == 16
    assert drawn(stretched=0.1) == drawn(stretched=0.1) != drawn(stretched=0.1, member=1)
    assert drawn() == drawn(stretched=0.1), "on where nothing is said"
    assert drawn(stretched=0) == drawn(forces=0) == []
    with pytest.raises(ConfigError, match="loss.stretched: needs a weight of the forces"):
        drawn(stretched=0.1, forces=0)


def test_an_epoch_has_its_share_of_stretched_structures_and_other_ones_each_time():
    known = molecules(18)
    drawn = stretched(known, 30, CUTOFF, np.random.default_rng(0))
    batches = Batches(known, 3, stretched=drawn, stretched_share=0.1)
    plans = [batches.plan(np.random.default_rng(seed)) for seed in range(3)]
    taken = [sorted(index for _, batch in plan for index in batch) for plan in plans]
    assert all(len(indices) == 20 and indices[:18] == list(range(18)) for indices in taken)
    assert len({tuple(indices[18:]) for indices in taken}) > 1
    assert len(batches.sizes) == 1
    shapes = {tuple(np.shape(a) for a in jax.tree.leaves(batches.build(*batch))) for plan in plans for batch in plan}
    assert len(shapes) == 1, "one program for batches with and without stretched structures"
