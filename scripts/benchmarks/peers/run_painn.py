"""PaiNN of schnetpack 2.1.1: 64 features, 3 layers, cutoff 5 Å."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # schnetpack unpickles its own model files as torch 2.4 did

import torch
from torch.utils.data import dataloader

for name in ("_collate_fn_t", "T_co"):  # type variables that 2.1.1 imports and newer torch no longer has
    if not hasattr(dataloader, name):
        setattr(dataloader, name, Any)

import schnetpack
from schnetpack.data.loader import _atoms_collate_fn
from schnetpack.interfaces import AtomsConverter, SpkCalculator
from schnetpack.transform import MatScipyNeighborList
from service import frames, least_squares, serve, time_calculator
from torch_training import Learner, train

SETTINGS = "PaiNN 64 features, 3 layers, 20 Gaussians, cutoff 5 Å; batch 5, Adam 1e-3, energy 0.01, forces 0.99"
CUTOFF = 5.0


def build() -> torch.nn.Module:
    """The model."""
    representation = schnetpack.representation.PaiNN(
        n_atom_basis=64,
        n_interactions=3,
        radial_basis=schnetpack.nn.GaussianRBF(n_rbf=20, cutoff=CUTOFF),
        cutoff_fn=schnetpack.nn.CosineCutoff(CUTOFF),
    )
    return schnetpack.model.NeuralNetworkPotential(
        representation=representation,
        input_modules=[schnetpack.atomistic.PairwiseDistances()],
        output_modules=[schnetpack.atomistic.Atomwise(n_in=64, output_key="energy"), schnetpack.atomistic.Forces()],
    )


def make(structures: list, per_element: dict) -> Learner:
    """A fresh model; energies in eV."""
    model = build()
    convert = AtomsConverter(MatScipyNeighborList(cutoff=CUTOFF), dtype=torch.float32)

    def compute(batch):
        out = model({key: value.clone() for key, value in batch.items()})
        return out["energy"], out["forces"]

    return Learner(SETTINGS, model, convert, _atoms_collate_fn, compute, 1e-3, 5, 0.01, 0.99, per_atom=False)


def save(model: torch.nn.Module, folder: str) -> None:
    """The whole module, as schnetpack's own files."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.spk_version = schnetpack.__version__
    torch.save(model, Path(folder) / "best_model")


def prepare(request: dict) -> None:
    """A file with random weights."""
    torch.manual_seed(0)
    save(build(), request["out"])


def speed(request: dict) -> dict:
    """Time per call."""

    def calculator(atoms):
        file = str(Path(request["out"]) / "best_model")
        return SpkCalculator(file, MatScipyNeighborList(cutoff=CUTOFF), energy_unit="eV", dtype=torch.float32)

    def bare(atoms, calculator):
        inputs = calculator.converter(atoms.copy())

        def call():
            out = calculator.model({key: value.clone() for key, value in inputs.items()})
            return out["energy"].item(), out["forces"].detach().numpy()

        return call

    return time_calculator(request, SETTINGS, calculator, bare)


serve(lambda request: train(request, make, least_squares(frames(request["train"])), save), prepare, speed)
