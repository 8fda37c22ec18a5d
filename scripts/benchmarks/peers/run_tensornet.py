"""TensorNet of torchmd-net 3.1: 64 channels, 1 layer, cutoff 5 Å."""

from __future__ import annotations

from pathlib import Path

import torch
from service import force_scale, frames, least_squares, serve, time_calculator
from torch_training import Learner, train
from torchmdnet.calculators import TMDNETCalculator
from torchmdnet.models.model import create_model, load_model

SETTINGS = "TensorNet 64 channels, 1 layer, 32 radial functions, cutoff 5 Å; batch 5, Adam 2e-3, energy 0.05, forces 0.95"
OPTIONS = {  # of create_model
    "model": "tensornet",
    "embedding_dimension": 64,
    "num_layers": 1,
    "num_rbf": 32,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "cutoff_lower": 0.0,
    "cutoff_upper": 5.0,
    "max_z": 100,
    "max_num_neighbors": 64,
    "equivariance_invariance_group": "O(3)",
    "output_model": "Scalar",
    "reduce_op": "add",
    "prior_model": None,
    "atom_filter": -1,
    "precision": 32,
    "derivative": True,
    "remove_ref_energy": False,
}


def make(structures: list, per_element: dict) -> Learner:
    """A fresh model, its outputs in units of the force RMS."""
    model = create_model(dict(OPTIONS), mean=torch.tensor(0.0), std=torch.tensor(force_scale(structures)))

    def compute(batch):
        energy, forces = model(*batch)
        return energy.squeeze(-1), forces

    return Learner(SETTINGS, model, convert, collate, compute, 2e-3, 5, 0.05, 0.95, per_atom=False)


def convert(atoms):
    """Numbers and positions; the model searches neighbours itself."""
    return torch.tensor(atoms.numbers), torch.tensor(atoms.positions, dtype=torch.float32)


def collate(items):
    """Atoms one after the other, and the number of the structure of each."""
    batch = torch.repeat_interleave(torch.arange(len(items)), torch.tensor([len(numbers) for numbers, _ in items]))
    return torch.cat([numbers for numbers, _ in items]), torch.cat([positions for _, positions in items]), batch


def save(model: torch.nn.Module, folder: str) -> None:
    """A checkpoint as torchmd-net's training writes it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": dict(OPTIONS)}, Path(folder) / "model.ckpt")


def prepare(request: dict) -> None:
    """A file with random weights."""
    torch.manual_seed(0)
    save(create_model(dict(OPTIONS), mean=torch.tensor(0.0), std=torch.tensor(1.0)), request["out"])


def speed(request: dict) -> dict:
    """Time per call."""
    file = str(Path(request["out"]) / "model.ckpt")

    def calculator(atoms):
        atoms.info["charge"] = 0
        return TMDNETCalculator(file, remove_ref_energy=False)

    def bare(atoms, calculator):
        numbers, positions, batch = collate([convert(atoms)])
        model = load_model(file, derivative=True).eval().requires_grad_(False)
        box = torch.tensor(atoms.cell.array, dtype=torch.float32) if atoms.pbc.any() else None

        def call():
            energy, forces = model(numbers, positions, batch, box)
            return energy.item(), forces.numpy()

        return call

    return time_calculator(request, SETTINGS, calculator, bare)


serve(lambda request: train(request, make, least_squares(frames(request["train"])), save), prepare, speed)
