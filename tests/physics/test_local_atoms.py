"""Claims about any model: owned atoms and ghosts give what the whole gives, and the receptive field is what it says."""

from __future__ import annotations

import ase
import jax
import numpy as np
import pytest

from mlff.potential.local_atoms import LocalAtoms
from tests.conftest import MODELS
from tests.ghosts import with_ghosts

USUAL = ("lennard_jones",)


def each_model(*names: str):
    """Over every model; those not named run with the slow tests."""
    return pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in names else [pytest.mark.slow]) for n in MODELS])


def in_parts(local: LocalAtoms, atoms: ase.Atoms, parts: np.ndarray, reach: float):
    """Energies (n,), forces (n, 3) and dE/dε (3, 3) of atoms divided into `parts` (n,), all by one evaluator."""
    energies, forces, virial = np.zeros(len(atoms)), np.zeros((len(atoms), 3)), np.zeros((3, 3))
    for part in range(parts.max() + 1):
        mine = parts == part
        positions, owner = with_ghosts(atoms, mine, reach)
        local.build(atoms.numbers[owner], positions, int(mine.sum()))
        found = local.evaluate(positions)
        energies[mine] = found.energies
        np.add.at(forces, owner, found.forces)
        virial += found.virials.sum(axis=0)
    return energies, forces, virial


@each_model(*USUAL)
def test_parts_add_up_to_the_whole(name, potentials, silicon):
    """A skewed cell smaller than the cutoff, in three parts."""
    potential = potentials(name)
    atoms = silicon.repeat((2, 1, 1))
    atoms.rattle(0.03, seed=2)
    atoms.numbers[1] = 6
    (whole,) = potential.predict([atoms])
    local, parts = LocalAtoms(potential), np.array([0, 1, 2, 0])
    energies, forces, virial = in_parts(local, atoms, parts, potential.receptive_field)
    scale = np.abs(whole.forces).max()
    np.testing.assert_allclose(energies, whole.energies, rtol=1e-10)
    np.testing.assert_allclose(forces, whole.forces, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(virial / atoms.get_volume(), whole.stress, rtol=0, atol=1e-10 * np.abs(whole.stress).max())
    assert scale > 1e-2
    if potential.layers > 1:  # a halo of one cutoff is too short for messages
        _, forces, _ = in_parts(local, atoms, parts, potential.cutoff)
        assert np.abs(forces - whole.forces).max() > 1e-4 * scale


@each_model("morse", "schnet")
def test_the_receptive_field_is_how_far_influence_reaches(name, potentials):
    """Along a chain of atoms the energy of the first one depends on as many others as there are layers."""
    potential = potentials(name)
    chain = ase.Atoms("H6", [[0.9 * potential.cutoff * k, 0.1 * k * k, 0] for k in range(6)])
    graph = potential.graph_of(chain)
    with potential.scope():
        slope = jax.jit(jax.grad(lambda r: potential.energy(potential.device_params, graph._replace(positions=r))[0]))
        influence = np.linalg.norm(slope(graph.positions), axis=1)
    assert (influence > 1e-12).tolist() == [k <= potential.layers for k in range(6)]
    assert potential.receptive_field == potential.layers * potential.cutoff
