"""Allegro 0.8.3 (nequip 0.19.1): l = 1, 64 scalar and 16 tensor features, 2 layers, cutoff 5 Å."""

from functools import partial

from allegro.model import AllegroModel
from nequip_runner import run

SETTINGS = "Allegro l 1, 64 scalar and 16 tensor features, 2 layers, cutoff 5 Å, eager; batch 5, Adam 2e-3, energy 1 (per atom), forces 1"
EMBEDDING = {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 8}

model = partial(
    AllegroModel, l_max=1, num_layers=2, num_scalar_features=64, num_tensor_features=16, radial_chemical_embed=EMBEDDING
)
run(SETTINGS, model, learning_rate=2e-3)
