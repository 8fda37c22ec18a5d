"""MACE of mace-torch 0.3.16: 32 invariant channels, two layers, l_max 3, correlation 3, cutoff 5 Å."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn 0.4.4 unpickles its tables, as mace itself lets it

import numpy as np
import torch
from ase.io import read
from e3nn import o3
from mace import data, modules
from mace.calculators import MACECalculator
from mace.tools import AtomicNumberTable, torch_geometric
from service import force_scale, frames, least_squares, serve, time_calculator
from torch_training import Learner, train

SETTINGS = "MACE 32x0e, 2 layers, l_max 3, correlation 3, cutoff 5 Å; batch 5, Adam (amsgrad) 1e-2, energy 1, forces 100"
CUTOFF = 5.0


def build(numbers: list[int], scale: float, neighbors: float) -> torch.nn.Module:
    """The model for these elements."""
    return modules.ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        num_interactions=2,
        num_elements=len(numbers),
        hidden_irreps=o3.Irreps("32x0e"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(numbers)),
        avg_num_neighbors=neighbors,
        atomic_numbers=numbers,
        correlation=3,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=scale,
        atomic_inter_shift=0.0,
    )


def graph(atoms, table: AtomicNumberTable):
    """One structure with its neighbours."""
    return data.AtomicData.from_config(data.config_from_atoms(atoms), z_table=table, cutoff=CUTOFF)


def mean_neighbors(graphs: list) -> float:
    """Pairs per atom."""
    return sum(g.edge_index.shape[1] for g in graphs) / sum(g.num_nodes for g in graphs)


def make(structures: list, per_element: dict) -> Learner:
    """A fresh model scaled by the force RMS."""
    torch.set_default_dtype(torch.float32)
    numbers = sorted(per_element)
    table = AtomicNumberTable(numbers)
    neighbors = mean_neighbors([graph(atoms, table) for atoms in structures[:50]])
    model = build(numbers, force_scale(structures), neighbors)

    def compute(batch):
        out = model(batch.to_dict(), training=model.training, compute_force=True)
        return out["energy"], out["forces"]

    return Learner(
        SETTINGS,
        model,
        lambda atoms: graph(atoms, table),
        torch_geometric.Batch.from_data_list,
        compute,
        learning_rate=1e-2,
        batch_size=5,
        weight_energy=1.0,
        weight_forces=100.0,
        amsgrad=True,
    )


def save(model: torch.nn.Module, folder: str) -> None:
    """The whole module, as MACE's own files."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    torch.save(model, Path(folder) / "mace.model")


def prepare(request: dict) -> None:
    """A file with random weights, for the elements of the structure."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    atoms = read(request["structure"])
    numbers = sorted({int(z) for z in atoms.numbers})
    save(build(numbers, 1.0, mean_neighbors([graph(atoms, AtomicNumberTable(numbers))])), request["out"])


def speed(request: dict) -> dict:
    """Time per call."""

    def calculator(atoms):
        file = str(Path(request["out"]) / "mace.model")
        device = {"cpu": "cpu", "gpu": "cuda"}[request.get("device", "cpu")]
        return MACECalculator(model_paths=file, device=device, default_dtype="float32")

    def bare(atoms, calculator):
        inputs = calculator._atoms_to_batch(atoms)
        model = calculator.models[0]

        def call():
            out = model(inputs.clone().to_dict(), compute_force=True)
            return out["energy"].item(), out["forces"].cpu().numpy()

        return call

    return time_calculator(request, SETTINGS, calculator, bare)


serve(lambda request: train(request, make, least_squares(frames(request["train"])), save), prepare, speed)
