import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from mlff.basics.errors import DataError
from mlff.data.census import Census
from mlff.data.dataset import Dataset
from mlff.data.structure import Structure
from mlff.training.evaluate import evaluate
from mlff.training.metrics import compare


def structure(numbers, **labels):
    n = len(numbers)
    return Structure(np.array(numbers, np.int32), np.zeros((n, 3)), np.zeros((3, 3)), np.zeros(3, bool), **labels)


def test_errors_by_hand():
    structures = [
        structure([1, 8], energy=-1000.0, forces=np.ones((2, 3))),
        structure([1], energy=-20.0, stress=np.zeros((3, 3))),
        structure([1, 1], forces=np.zeros((2, 3))),
    ]
    results = [
        SimpleNamespace(energy=-1000.004, forces=np.ones((2, 3)) + [[0.001], [0.002]], stress=None),
        SimpleNamespace(energy=-19.998, forces=np.zeros((1, 3)), stress=np.full((3, 3), 0.003)),
        SimpleNamespace(energy=5.0, forces=np.zeros((2, 3)), stress=None),
    ]
    metrics = compare(structures, results)
    assert (metrics.structures, metrics.energies, metrics.force_components, metrics.stress_components) == (3, 2, 12, 9)
    assert metrics.energy_rmse == pytest.approx(np.sqrt((16 + 4) / 2))
    assert metrics.energy_mae == pytest.approx(3.0)
    assert metrics.energy_rmse_per_atom == pytest.approx(2.0)
    assert metrics.forces_rmse == pytest.approx(np.sqrt((3 * 1 + 3 * 4) / 12))
    assert metrics.forces_mae == pytest.approx((3 * 1 + 3 * 2) / 12)
    assert metrics.forces_rms == pytest.approx(1000 * np.sqrt(0.5))
    assert metrics.forces_rmse_by_element == pytest.approx({"H": np.sqrt(3 / 9), "O": 2.0})
    single = {"median": 0.0, "90 %": np.sqrt(2.5), "99 %": np.sqrt(2.5), "worst": np.sqrt(2.5), "index": 0}
    assert metrics.forces_rmse_of_structures == pytest.approx(single)
    assert metrics.stress_rmse == pytest.approx(3.0)
    assert json.loads(json.dumps(metrics.to_dict()))["energy_mae"] == pytest.approx(3.0)
    console = Console(record=True, width=100)
    console.print(metrics.table("test"))
    text = console.export_text()
    assert "meV/Å³" in text and "0 / 1.58 / 1.58 / 1.58" in text and "worst: number 0" in text
    assert "force RMSE 1.12 meV/Å (worst structure 1.58)" in str(metrics)


def test_without_labels():
    metrics = compare([structure([1])], [SimpleNamespace(energy=0.0, forces=np.zeros((1, 3)), stress=None)])
    assert metrics.energy_rmse is None and metrics.stress_rmse is None
    assert "no labels" in str(metrics)
    console = Console(record=True, width=100)
    console.print(metrics.table())
    assert "no labels to compare with" in console.export_text()


def test_nothing_to_compare_is_refused_before_anything_is_computed():
    with pytest.raises(DataError, match="structure: no structure has energy, forces or stress: nothing to compare with"):
        evaluate(None, [structure([1])])
    data = Dataset((structure([1]),), {}, Census("a.xyz", keys=(("E_dft", "info"),)))
    with pytest.raises(
        DataError, match=r"a.xyz: no structure has energy.*keys there: E_dft \(info\); name them with keys.energy"
    ):
        evaluate(None, data)
