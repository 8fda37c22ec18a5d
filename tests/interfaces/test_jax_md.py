"""JAX MD's manner: energies and forces through a list of neighbours in its format, of which there is a stand-in."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, molecule

from mlff.basics.errors import StructureError
from mlff.interfaces.jax_md import energy_fn
from tests.conftest import BASELINE, MODELS
from tests.potentials import morse


class Neighbors(NamedTuple):
    """The fields of `jax_md.partition.NeighborList` that count, format Dense."""

    idx: jax.Array
    did_buffer_overflow: jax.Array


def periodic(side):
    """`jax_md.space.periodic(side)`."""
    return lambda a, b, **_: jnp.mod(a - b + side / 2, side) - side / 2


def listed(positions, side, reach, spare=3):
    """Up to `reach`, in a random order, with empty slots."""
    count, rng = len(positions), np.random.default_rng(0)
    steps = positions[None] - positions[:, None]
    steps -= side * np.round(steps / side)
    near = np.linalg.norm(steps, axis=2) < reach
    np.fill_diagonal(near, False)
    idx = np.full((count, near.sum(axis=1).max() + spare), count)
    for i in range(count):
        idx[i, : near[i].sum()] = rng.permutation(np.flatnonzero(near[i]))
    return Neighbors(jnp.asarray(idx), jnp.asarray(False))


@functools.cache
def compiled(energy):
    return jax.jit(jax.value_and_grad(energy))


def forces_of(potential, energy, positions, **options):
    with potential.scope():
        value, gradient = compiled(energy)(jnp.asarray(positions), **options)
        return float(value), -np.asarray(gradient)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_energies_and_forces_are_those_of_the_potential(potentials, name):
    potential, atoms = potentials(name), molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    (expected,) = potential.predict([atoms])
    energy, forces = forces_of(potential, energy_fn(potential, atoms.numbers), atoms.positions)
    assert energy == pytest.approx(expected.energy - sum(BASELINE[z] for z in atoms.numbers), abs=1e-10)
    np.testing.assert_allclose(forces, expected.forces, atol=1e-10)


def test_a_crystal_with_a_list(potentials):
    potential, atoms = potentials("ace"), bulk("Si", cubic=True, a=8.4)
    atoms.rattle(0.1, seed=1)
    (expected,) = potential.predict([atoms])
    side = atoms.cell[0, 0]
    energy = energy_fn(potential, atoms.numbers, periodic(side))
    neighbor = listed(atoms.positions, side, 4.6)
    value, forces = forces_of(potential, energy, atoms.positions, neighbor=neighbor)
    assert value == pytest.approx(expected.energy - BASELINE[14] * len(atoms), abs=1e-9)
    np.testing.assert_allclose(forces, expected.forces, atol=1e-9)
    full = neighbor._replace(did_buffer_overflow=jnp.asarray(True))
    assert np.isnan(forces_of(potential, energy, atoms.positions, neighbor=full)[0])


def test_the_box_reaches_the_displacement():
    potential, atoms = morse(precision="float64"), molecule("H2O")
    energy = energy_fn(potential, atoms.numbers, lambda a, b, box: box * (a - b))
    values = [forces_of(potential, energy, atoms.positions / box, box=box)[0] for box in (1.0, 20.0)]
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_what_does_not_fit_is_refused():
    energy = energy_fn(morse(), [8, 1, 1])
    with pytest.raises(StructureError, match=r"positions have the shape \(4, 3\), 3 atoms need"):
        energy(jnp.zeros((4, 3)))
    with pytest.raises(StructureError, match="format Dense is needed"):
        pairs = np.array(list(itertools.permutations(range(3), 2))).T  # the format Sparse
        energy(jnp.zeros((3, 3)), Neighbors(jnp.asarray(pairs), jnp.asarray(False)))
    with pytest.raises(StructureError, match="atom 1 is Fe"):
        energy_fn(morse(), [8, 26])


def test_one_atom_alone():
    potential = morse(precision="float64")
    assert forces_of(potential, energy_fn(potential, [8]), np.zeros((1, 3)))[0] == 0
