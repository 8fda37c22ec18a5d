"""Claims about any model: computed in chunks of atoms a graph has the energies, forces and stresses that it has in one piece."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from mlff.data.batching import Sizes, make_graph, make_sample
from mlff.data.structure import Structure
from mlff.potential import chunks, derivatives
from tests.conftest import over_models


@pytest.fixture
def batch(ethanol, silicon):
    """A molecule and a periodic crystal of nine and 16 atoms, a structure, atoms and slots of padding: (cutoff, dtype) -> Graph."""

    def build(cutoff, dtype):
        crystal = silicon.repeat((2, 2, 2))
        crystal.rattle(0.03, seed=2)
        samples = [make_sample(Structure.from_atoms(atoms), cutoff) for atoms in (ethanol, crystal)]
        return make_graph(samples, Sizes(3, 29, max(s.sizes.neighbors for s in samples) + 2), dtype)

    return build


def both(potential, graph, size):
    """What the two ways say."""
    with potential.scope():
        whole = jax.jit(
            lambda params, graph: derivatives.predict(functools.partial(potential.energy, params), graph, stress=True)
        )(potential.device_params, graph)
        parts = jax.jit(lambda params, graph: chunks.predict(potential.model, params, graph, size, stress=True))(
            potential.device_params, graph._replace(reverse=None)
        )
    return whole, parts


@over_models()
def test_chunks_agree_with_one_piece(name, potentials, batch):
    """Four chunks of eight atoms for 29: the last one has three, no padding, that were there before."""
    potential = potentials(name)
    whole, parts = both(potential, batch(potential.cutoff, np.float64), 8)
    for field in ("energy", "energies", "forces", "stress"):
        expected = np.asarray(getattr(whole, field))
        np.testing.assert_allclose(
            getattr(parts, field), expected, rtol=0, atol=1e-12 * np.abs(expected).max(), err_msg=field
        )
        assert np.abs(expected).max() > 1e-3


def test_single_precision_agrees_to_rounding(potentials, batch):
    potential = potentials("ace_messages2", "float32")
    whole, parts = both(potential, batch(potential.cutoff, np.float32), 64)
    for field in ("energies", "forces", "stress"):
        expected = np.asarray(getattr(whole, field))
        np.testing.assert_allclose(
            getattr(parts, field), expected, rtol=0, atol=2e-5 * np.abs(expected).max(), err_msg=field
        )
        assert getattr(parts, field).dtype == np.float32
