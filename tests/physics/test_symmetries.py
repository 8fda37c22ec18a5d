"""Claims about any model: what the energy and its derivatives must not depend on, and how they must turn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mlff.basics.errors import ConfigError
from tests.conftest import over_models

each_model = over_models()
turned_or_mirrored = pytest.mark.parametrize("improper", [1, -1], ids=["rotation", "reflection"])


@turned_or_mirrored
@over_models(also=("ace_l3",))
def test_energy_is_invariant_and_forces_turn_with_the_structure(name, improper, potentials, ethanol, silicon):
    turn_with_the_structure(potentials(name), improper, (ethanol, silicon), 1e-12)


@turned_or_mirrored
@each_model
def test_they_do_in_single_precision(name, improper, potentials, ethanol, silicon):
    turn_with_the_structure(potentials(name, "float32"), improper, (ethanol, silicon), 1e-6)


def turn_with_the_structure(potential, improper, structures, tolerance):
    turn = improper * Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    for atoms in structures:
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ turn.T)
        turned.positions = atoms.positions @ turn.T
        before, after = potential.predict([atoms, turned])
        without_baseline = abs(before.energy - potential.baseline_energy(atoms.numbers))
        assert abs(after.energy - before.energy) < tolerance * max(1.0, without_baseline)
        size = np.abs(before.forces).max()
        np.testing.assert_allclose(after.forces, before.forces @ turn.T, atol=100 * tolerance * max(1.0, size))
        if atoms.pbc.all():
            np.testing.assert_allclose(
                after.stress, turn @ before.stress @ turn.T, atol=100 * tolerance * max(1, np.abs(before.stress).max())
            )


@each_model
def test_translation_changes_nothing(name, potentials, ethanol, silicon):
    for atoms in (ethanol, silicon):
        moved = atoms.copy()
        moved.positions += [13.7, -4.2, 1.1]
        before, after = potentials(name).predict([atoms, moved])
        assert after.energy == pytest.approx(before.energy, rel=1e-12)
        np.testing.assert_allclose(after.forces, before.forces, atol=1e-9)


@each_model
def test_atoms_moved_by_cell_vectors_are_the_same_crystal(name, potentials, silicon):
    moved = silicon.copy()
    moved.positions[1] += np.array([3, -7, 2]) @ silicon.cell.array
    before, after = potentials(name).predict([silicon, moved])
    assert after.energy == pytest.approx(before.energy, rel=1e-12)
    np.testing.assert_allclose(after.forces, before.forces, atol=1e-9)


@each_model
def test_order_of_atoms_does_not_matter(name, potentials, ethanol):
    order = np.random.default_rng(0).permutation(len(ethanol))
    before, after = potentials(name).predict([ethanol, ethanol[order]])
    assert after.energy == pytest.approx(before.energy, rel=1e-13)
    np.testing.assert_allclose(after.forces, before.forces[order], atol=1e-10)
    np.testing.assert_allclose(after.energies, before.energies[order], atol=1e-10)


@each_model
def test_net_force_and_torque_of_a_molecule_vanish(name, potentials, ethanol):
    result, _ = potentials(name).predict([ethanol, ethanol])  # by the program for two
    np.testing.assert_allclose(result.forces.sum(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cross(ethanol.positions, result.forces).sum(axis=0), 0, atol=1e-9)


@each_model
def test_energy_of_a_supercell_is_that_of_its_cells(name, potentials, silicon):
    one, many = potentials(name).predict([silicon, silicon * (2, 1, 3)])
    assert many.energy == pytest.approx(6 * one.energy, rel=1e-12)
    np.testing.assert_allclose(many.stress, one.stress, atol=1e-10)


@each_model
def test_energies_of_molecules_out_of_reach_add_up(name, potentials, ethanol):
    potential = potentials(name)
    far = ethanol.copy()
    far.positions += [40.0, 0, 0]
    single, double = potential.predict([ethanol, ethanol + far])
    assert double.energy == pytest.approx(2 * single.energy, rel=1e-13)
    np.testing.assert_allclose(double.forces, np.concatenate([single.forces] * 2), atol=1e-9)


@each_model
def test_features_are_invariant_and_the_readout_makes_the_energy_of_them(name, potentials, ethanol):
    potential, turn = potentials(name), -Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    graph, params = potential.graph_of(ethanol), potential.device_params
    if not hasattr(potential.model, "features"):
        with pytest.raises(ConfigError, match="pair potential.*no features"):
            potential.features(params, graph)
        return
    with potential.scope():
        features = np.asarray(potential.features(params, graph))
        turned = np.asarray(potential.features(params, graph._replace(positions=graph.positions @ turn.T)))
        parts = potential.model.apply(params, graph, method="features")
        energies = potential.model.apply(params, graph, parts, method="readout")
        np.testing.assert_allclose(energies, potential.energy(params, graph), rtol=1e-12)
    assert features.shape == (len(ethanol), sum(part.shape[1] for part in parts)) and features.std(axis=0).all()
    np.testing.assert_allclose(turned, features, atol=1e-9 * np.abs(features).max())
