import numpy as np
import pytest

from mlff.basics.errors import DataError
from mlff.data.batching import make_sample
from mlff.data.structure import Structure
from mlff.training.statistics import measure

BOTH = "energy", "forces"


def sample(numbers, energy=None, forces=None):
    positions = 1.2 * np.arange(len(numbers))[:, None] * [1.0, 0, 0]
    labels = {"energy": energy, "forces": forces}
    structure = Structure(np.array(numbers, np.int32), positions, np.zeros((3, 3)), np.zeros(3, bool), **labels)
    return make_sample(structure, 1.5)


def test_scale_shifts_and_neighbors_of_labelled_data():
    samples = [sample([1, 8], -5.0, np.full((2, 3), 2.0)), sample([1, 1, 8], -6.0), sample([8, 8], -8.0)]
    statistics = measure(samples, (1, 8), BOTH)
    assert statistics.energy_scale == pytest.approx(2.0)
    assert statistics.atom_energies == pytest.approx((-1.0, -4.0))
    assert statistics.mean_neighbors == pytest.approx((2 + 4 + 2) / 7)


def test_energies_only_take_their_spread_per_atom_and_not_the_forces():
    samples = [sample([1, 1], energy, np.full((2, 3), 2.0)) for energy in (-2.2, -1.8)]
    assert measure(samples, (1,), ("energy",)).energy_scale == pytest.approx(0.1)


def test_forces_that_are_zero_by_symmetry_leave_the_scale_to_what_varies():
    """One-atom cells: energies and stresses of an equation of state, all forces zero or rounding."""

    def cell(energy, stress):
        labels = {"energy": energy, "forces": np.full((1, 3), 1e-9), "stress": stress * np.eye(3)}
        return make_sample(
            Structure(np.array([29], np.int32), np.zeros((1, 3)), 2 * np.eye(3), np.ones(3, bool), **labels), 2.5
        )

    assert measure([cell(-2.2, 0.1), cell(-1.8, 0.1)], (29,), BOTH).energy_scale == pytest.approx(0.2)
    same = [cell(-2.0, 0.3), cell(-2.0, -0.3)]
    assert measure(same, (29,), ("energy", "forces", "stress")).energy_scale == pytest.approx(0.3 * 8 / np.sqrt(3))
    with pytest.raises(
        DataError, match=r"no label .* varies \(forces RMS 1.0e-09, energy RMS .*\): nothing to learn; .*loss.stress"
    ):
        measure(same, (29,), BOTH)


def test_labels_that_do_not_vary_are_an_error():
    with pytest.raises(DataError, match="nothing to learn"):
        measure([sample([1, 1], -2.0), sample([1, 1], -2.0)], (1,), BOTH)
    with pytest.raises(DataError, match="nothing to learn"):
        measure([sample([1, 1], forces=np.ones((2, 3)))], (1,), ("energy",))


def test_the_core_is_a_little_less_than_the_shortest_distance_but_not_far_beyond_a_bond():
    def core(*positions):
        near = np.array([*positions, [5.0, 0, 0]])
        labels = {"forces": np.ones((3, 3))}
        structure = Structure(np.array([1, 8, 8], np.int32), near, np.zeros((3, 3)), np.zeros(3, bool), **labels)
        return np.array(measure([make_sample(structure, 2.5)], (1, 8), BOTH).inner_cutoff).reshape(2, 2)

    most = [[1.62, 1.97], [1.97, 2.32]]  # an ångström more than the sums of 0.31 and 0.66 Å
    assert core([0.0, 0, 0], [2.4, 0, 0]) == pytest.approx(np.array(most))
    assert core([0.0, 0, 0], [0.7, 0, 0]) == pytest.approx(np.array([[1.62, 0.665], [0.665, 2.32]]))
    assert core([0.0, 0, 0], [1.3, 0, 0]) == pytest.approx(np.array([[1.62, 1.235], [1.235, 2.32]]))
