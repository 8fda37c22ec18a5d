"""NequIP 0.19.1: l = 1, 32 features, 4 layers, cutoff 5 Å."""

from functools import partial

from nequip.model import NequIPGNNModel
from nequip_runner import run

SETTINGS = "NequIP l 1, 32 features, 4 layers, cutoff 5 Å, eager; batch 5, Adam 5e-3, energy 1 (per atom), forces 1"

run(SETTINGS, partial(NequIPGNNModel, num_layers=4, l_max=1, num_features=32), learning_rate=5e-3)
