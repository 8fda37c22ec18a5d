import numpy as np
import pytest

from mlff.data.batching import make_sample
from mlff.data.structure import Structure
from mlff.errors import DataError
from mlff.training.statistics import measure


def sample(numbers, energy=None, forces=None):
    positions = 1.2 * np.arange(len(numbers))[:, None] * [1.0, 0, 0]
    labels = {"energy": energy, "forces": forces}
    structure = Structure(np.array(numbers, np.int32), positions, np.zeros((3, 3)), np.zeros(3, bool), **labels)
    return make_sample(structure, 1.5)


def test_scale_shifts_and_neighbors_of_labelled_data():
    samples = [sample([1, 8], -5.0, np.full((2, 3), 2.0)), sample([1, 1, 8], -6.0), sample([8, 8], -8.0)]
    statistics = measure(samples, (1, 8), forces=True)
    assert statistics.energy_scale == pytest.approx(2.0)
    assert statistics.shifts == pytest.approx((-1.0, -4.0))
    assert statistics.mean_neighbors == pytest.approx((2 + 4 + 2) / 7)


def test_energies_only_take_their_spread_per_atom_and_not_the_forces():
    samples = [sample([1, 1], energy, np.full((2, 3), 2.0)) for energy in (-2.2, -1.8)]
    assert measure(samples, (1,), forces=False).energy_scale == pytest.approx(0.1)


def test_labels_that_do_not_vary_are_an_error():
    with pytest.raises(DataError, match="do not vary"):
        measure([sample([1, 1], -2.0), sample([1, 1], -2.0)], (1,), forces=True)
    with pytest.raises(DataError, match="nothing to learn"):
        measure([sample([1, 1], forces=np.ones((2, 3)))], (1,), forces=False)


def test_the_core_is_a_little_less_than_the_shortest_distance_but_not_far_beyond_a_bond():
    def core(*positions):
        near = np.array([*positions, [5.0, 0, 0]])
        labels = {"forces": np.ones((3, 3))}
        structure = Structure(np.array([1, 8, 8], np.int32), near, np.zeros((3, 3)), np.zeros(3, bool), **labels)
        return np.array(measure([make_sample(structure, 2.5)], (1, 8), forces=True).core).reshape(2, 2)

    most = [[1.62, 1.97], [1.97, 2.32]]  # an ångström more than the sums of 0.31 and 0.66 Å
    assert core([0.0, 0, 0], [2.4, 0, 0]) == pytest.approx(np.array(most))
    assert core([0.0, 0, 0], [0.7, 0, 0]) == pytest.approx(np.array([[1.62, 0.665], [0.665, 2.32]]))
    assert core([0.0, 0, 0], [1.3, 0, 0]) == pytest.approx(np.array([[1.62, 1.235], [1.235, 2.32]]))
