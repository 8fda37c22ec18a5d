"""What NequIP and Allegro share: data, training and timing of a model of the nequip framework, eager.

Its TorchScript export is refused on torch >= 2.10.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols
from ase.io import read
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.integrations.ase import NequIPCalculator
from nequip.utils.global_state import set_global_state
from service import force_scale, frames, least_squares, serve, time_calculator
from torch_training import Learner, train

CUTOFF = 5.0


def transforms(numbers: list[int]) -> list:
    """Types of atoms and neighbours."""
    names = [chemical_symbols[z] for z in numbers]
    return [ChemicalSpeciesToAtomTypeMapper(model_type_names=names), NeighborListTransform(r_max=CUTOFF)]


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


def run(settings: str, build: Callable, learning_rate: float) -> None:
    """Serve one request. `build(type_names=..., avg_num_neighbors=..., per_type_energy_scales=..., ...)` gives a model."""

    def model(numbers: list[int], scale: float, structures: list) -> torch.nn.Module:
        set_global_state()
        return build(
            seed=0,
            model_dtype="float32",
            r_max=CUTOFF,
            type_names=[chemical_symbols[z] for z in numbers],
            avg_num_neighbors=mean_neighbors([convert(atoms, transforms(numbers)) for atoms in structures[:50]]),
            per_type_energy_scales=scale,
            per_type_energy_shifts=0.0,
        )

    def untrained(atoms) -> torch.nn.Module:
        return model(elements(atoms), 1.0, [atoms])

    def make(structures: list, per_element: dict) -> Learner:
        """A fresh model scaled by the force RMS."""
        numbers = sorted(per_element)
        steps = transforms(numbers)
        network = model(numbers, force_scale(structures), structures)

        def compute(batch):
            out = network(dict(batch))
            return out[AtomicDataDict.TOTAL_ENERGY_KEY].squeeze(-1), out[AtomicDataDict.FORCE_KEY]

        return Learner(
            settings,
            network,
            lambda atoms: convert(atoms, steps),
            AtomicDataDict.batched_from_list,
            compute,
            learning_rate=learning_rate,
            batch_size=5,
            weight_energy=1.0,
            weight_forces=1.0,
        )

    def prepare(request: dict) -> None:
        """Random weights, for the elements of the structure."""
        save(untrained(read(request["structure"])), request["out"])

    def speed(request: dict) -> dict:
        """Time per call."""

        def calculator(atoms):
            network = untrained(atoms)
            network.load_state_dict(torch.load(Path(request["out"]) / "model.pt"))
            return NequIPCalculator(network.eval(), "cpu", transforms=transforms(elements(atoms)))

        def bare(atoms, calculator):
            data = convert(atoms, calculator.transforms)

            def call():
                out = calculator.model(dict(data))
                return out[AtomicDataDict.TOTAL_ENERGY_KEY].item(), out[AtomicDataDict.FORCE_KEY].detach().numpy()

            return call

        return time_calculator(request, settings, calculator, bare)

    serve(lambda request: train(request, make, least_squares(frames(request["train"])), save), prepare, speed)


def elements(atoms) -> list[int]:
    """Atomic numbers that occur."""
    return sorted({int(z) for z in atoms.numbers})


def save(model: torch.nn.Module, folder: str) -> None:
    """The weights."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), Path(folder) / "model.pt")
