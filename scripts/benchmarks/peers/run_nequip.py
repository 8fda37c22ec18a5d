"""NequIP 0.19.1: l = 1, 32 features, 4 layers, cutoff 5 Å, eager (its TorchScript export is refused on torch >= 2.10)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols
from ase.io import read
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.integrations.ase import NequIPCalculator
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state
from service import force_scale, frames, least_squares, serve, time_calculator
from torch_training import Learner, train

SETTINGS = "NequIP l 1, 32 features, 4 layers, cutoff 5 Å, eager; batch 5, Adam 5e-3, energy 1 (per atom), forces 1"
CUTOFF = 5.0


def transforms(numbers: list[int]) -> list:
    """Types of atoms and neighbours."""
    names = [chemical_symbols[z] for z in numbers]
    return [ChemicalSpeciesToAtomTypeMapper(model_type_names=names), NeighborListTransform(r_max=CUTOFF)]


def build(numbers: list[int], scale: float, neighbors: float) -> torch.nn.Module:
    """The model for these elements."""
    set_global_state()
    return NequIPGNNModel(
        seed=0,
        model_dtype="float32",
        r_max=CUTOFF,
        type_names=[chemical_symbols[z] for z in numbers],
        num_layers=4,
        l_max=1,
        num_features=32,
        avg_num_neighbors=neighbors,
        per_type_energy_scales=scale,
        per_type_energy_shifts=0.0,
    )


def convert(atoms, steps: list) -> dict:
    """One structure with its neighbours, without labels."""
    plain = atoms.copy()
    data = from_ase(plain)
    for step in steps:
        data = step(data)
    return data


def mean_neighbors(items: list) -> float:
    """Pairs per atom."""
    pairs = [item[AtomicDataDict.EDGE_INDEX_KEY].shape[1] for item in items]
    return float(np.sum(pairs) / np.sum([len(item[AtomicDataDict.POSITIONS_KEY]) for item in items]))


def make(structures: list, per_element: dict) -> Learner:
    """A fresh model scaled by the force RMS."""
    numbers = sorted(per_element)
    steps = transforms(numbers)
    model = build(numbers, force_scale(structures), mean_neighbors([convert(atoms, steps) for atoms in structures[:50]]))

    def compute(batch):
        out = model(dict(batch))
        return out[AtomicDataDict.TOTAL_ENERGY_KEY].squeeze(-1), out[AtomicDataDict.FORCE_KEY]

    return Learner(
        SETTINGS,
        model,
        lambda atoms: convert(atoms, steps),
        AtomicDataDict.batched_from_list,
        compute,
        learning_rate=5e-3,
        batch_size=5,
        weight_energy=1.0,
        weight_forces=1.0,
    )


def save(model: torch.nn.Module, folder: str) -> None:
    """The weights, and what the model is built with again."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), Path(folder) / "model.pt")


def prepare(request: dict) -> None:
    """Random weights, for the elements of the structure."""
    atoms = read(request["structure"])
    save(model_for(atoms), request["out"])


def model_for(atoms) -> torch.nn.Module:
    """The untrained model for such a structure."""
    numbers = sorted({int(z) for z in atoms.numbers})
    return build(numbers, 1.0, mean_neighbors([convert(atoms, transforms(numbers))]))


def speed(request: dict) -> dict:
    """Time per call."""

    def calculator(atoms):
        model = model_for(atoms)
        model.load_state_dict(torch.load(Path(request["out"]) / "model.pt"))
        return NequIPCalculator(model.eval(), "cpu", transforms=transforms(sorted({int(z) for z in atoms.numbers})))

    def bare(atoms, calculator):
        data = convert(atoms, calculator.transforms)

        def call():
            out = calculator.model(dict(data))
            return out[AtomicDataDict.TOTAL_ENERGY_KEY].item(), out[AtomicDataDict.FORCE_KEY].detach().numpy()

        return call

    return time_calculator(request, SETTINGS, calculator, bare)


serve(lambda request: train(request, make, least_squares(frames(request["train"])), save), prepare, speed)
