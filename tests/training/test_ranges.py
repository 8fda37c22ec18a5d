"""What a model has seen in training, and that it travels in its file."""

from __future__ import annotations

from dataclasses import replace

import ase
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlff import Potential
from mlff.basics.errors import ModelFileError
from mlff.config.load import make_config
from mlff.data.batching import Batches, make_sample
from mlff.data.structure import Structure
from mlff.models.ace import DENSITY
from mlff.potential.committee import committee
from mlff.training import ranges
from mlff.training.train import train
from tests.conftest import make_potential

from .test_loop import write
from .toy import make_structures

MODEL = {"channels": 4, "radial_basis": 4, "l_max": 1, "l_message": 1, "cutoff": 3.0}


def batches(structures, cutoff=4.0):
    return Batches([make_sample(s, cutoff) for s in structures], 2, None, np.dtype("float32"))


def water(scale: float) -> Structure:
    return Structure.from_atoms(ase.Atoms("OHH", scale * np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])))


def test_the_largest_of_the_structures_counts_and_what_the_start_knew_is_kept():
    potential = make_potential("ace")

    def measured(*structures, known=None):
        return ranges.measure(potential.model, potential.params, [batches(structures)], known)[ranges.NAME]["layer_1"]

    near, both = measured(water(1.0)), measured(water(1.0), water(1.5))
    far = measured(water(1.5))
    assert list(both) == [DENSITY] and both[DENSITY].shape == (4, 8) and (both[DENSITY] > 0).all()
    np.testing.assert_allclose(both[DENSITY], np.maximum(near[DENSITY], far[DENSITY]), rtol=1e-5)
    np.testing.assert_allclose(
        near[DENSITY][1], near[DENSITY][[0, 2]].max(axis=0), rtol=1e-6
    )  # no carbon there: as the others
    np.testing.assert_allclose(
        measured(water(1.0), known={"layer_1": {DENSITY: 2 * both[DENSITY]}})[DENSITY], 2 * both[DENSITY]
    )
    assert ranges.measure(make_potential("schnet").model, {}, [batches([water(1.0)])]) == {}


@pytest.mark.slow
def test_training_puts_them_into_the_file_and_on_training_data_nothing_changes(tmp_path):
    structures = make_structures(24, seed=0)
    raw = {"data": {"train": write(tmp_path / "data.xyz", structures)}, "model": MODEL, "training": {"epochs": 2}, "seed": 1}
    potential = train(make_config(raw), tmp_path / "run", progress=False)
    tensors = load_file(tmp_path / "run" / "model.safetensors")
    assert tensors["ranges/layer_1/density"].shape == (1, 4)
    free = replace(potential, params={"params": potential.params["params"]})
    known = [s for s in structures if len(s) == 4]
    for a, b in zip(free.predict(known[:3]), potential.predict(known[:3]), strict=True):
        np.testing.assert_allclose(
            a.forces, b.forces, rtol=0, atol=1e-6 * np.abs(b.forces).max()
        )  # two programs, in float32
    fine = train(
        make_config(raw | {"finetune_from": str(tmp_path / "run" / "model.safetensors")}), tmp_path / "fine", progress=False
    )
    assert (fine.params["ranges"]["layer_1"][DENSITY] >= potential.params["ranges"]["layer_1"][DENSITY]).all()
    other = train(make_config(raw | {"member": 1}), tmp_path / "other", progress=False)
    both = committee([potential, other])
    assert both.params["ranges"]["layer_1"][DENSITY].shape == (2, 1, 4)
    with pytest.raises(ModelFileError, match="older version"):
        committee([potential, replace(other, params={"params": other.params["params"]})])


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda r: r[:, :2], "has shape"), (lambda r: 0 * r, "not positive"), (lambda r: np.nan * r, "not finite")],
)
def test_damaged_ranges_are_refused(tmp_path, change, message):
    potential = make_potential("ace_saturated")
    damaged = replace(
        potential,
        params=potential.params | {"ranges": {"layer_1": {DENSITY: change(potential.params["ranges"]["layer_1"][DENSITY])}}},
    )
    damaged.save(tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match=f"ranges/layer_1/density.*{message}"):
        Potential.load(tmp_path / "model.safetensors")
