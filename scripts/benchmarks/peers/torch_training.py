"""The training loop of the PyTorch peers: their model and graphs, one loop, so that all see the same budget.

Adam, learning rate on a cosine over the budget of time (1 % of linear warm-up), exponential moving average of the weights,
the loss weights that the peer's own examples use. No validation on the way: the last average is the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from dynamics import explore
from service import Clock, baseline, errors, frames, labels

EMA = 0.99


@dataclass
class Learner:
    """What differs from peer to peer."""

    settings: str  #: one line for the table
    model: torch.nn.Module
    prepare: Callable[[Any], Any]  #: ase.Atoms -> the peer's structure, neighbours included where it wants them
    collate: Callable[[list], Any]  #: such structures -> one batch
    compute: Callable[[Any], tuple[torch.Tensor, torch.Tensor]]  #: batch -> energies [B], forces [N, 3]
    learning_rate: float
    batch_size: int
    weight_energy: float  #: of (dE)², or of (dE / atoms)² with `per_atom`
    weight_forces: float  #: of the mean of the squared force components
    per_atom: bool = True
    amsgrad: bool = False
    clip: float = 10.0


def train(request: dict, make: Callable[[list, dict], Learner], per_element: dict, save: Callable) -> dict:
    """Answer of a train task; `make(structures, per_element)` builds the learner, `save(model, folder)` the file."""
    clock = Clock(request)
    torch.manual_seed(request["seed"])
    torch.set_num_threads(1)
    structures = frames(request["train"])
    learner = make(structures, per_element)
    model = learner.model
    prepared = [learner.prepare(atoms) for atoms in structures]
    energies = torch.tensor([labels(atoms)[0] - baseline(atoms, per_element) for atoms in structures], dtype=torch.float32)
    forces = [torch.tensor(labels(atoms)[1], dtype=torch.float32) for atoms in structures]
    sizes = torch.tensor([len(atoms) for atoms in structures], dtype=torch.float32)
    parameters = [p for p in model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.Adam(parameters, lr=learner.learning_rate, amsgrad=learner.amsgrad)
    rng = np.random.default_rng(request["seed"])
    steps, order = 0, np.array([], int)
    model.train()
    while clock.left() > 0:
        if len(order) < learner.batch_size:
            order = np.concatenate([order, rng.permutation(len(structures))])
        batch, order = order[: learner.batch_size], order[learner.batch_size :]
        share = clock.share()
        rate = learner.learning_rate * min(1.0, (steps + 1) / 50) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        energy, force = learner.compute(learner.collate([prepared[k] for k in batch]))
        wrong = energy - energies[batch]
        if learner.per_atom:
            wrong = wrong / sizes[batch]
        loss = learner.weight_energy * (wrong**2).mean()
        loss = loss + learner.weight_forces * ((force - torch.cat([forces[k] for k in batch])) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, learner.clip)
        optimizer.step()
        steps += 1
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - min(EMA, steps / (steps + 10)))
    spent = clock.spent()
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    model.eval()
    save(model, request["out"])

    def ask(asked):
        return predict(learner, asked, per_element)

    return {
        "model": request["out"],
        "settings": learner.settings,
        "epochs": round(steps * learner.batch_size / len(structures), 1),
        "parameters": sum(p.numel() for p in parameters),
        **spent,
        "errors": errors(ask, request["tests"]),
        "dynamics": explore(ask, request),
    }


def predict(learner: Learner, structures: list, per_element: dict) -> tuple[list, list]:
    """Total energies (eV) and forces (eV/Å), 16 structures at once."""
    energies, forces = [], []
    for start in range(0, len(structures), 16):
        part = structures[start : start + 16]
        energy, force = learner.compute(learner.collate([learner.prepare(atoms) for atoms in part]))
        energies += [e + baseline(atoms, per_element) for e, atoms in zip(energy.tolist(), part, strict=True)]
        forces += [f.numpy() for f in torch.split(force.detach(), [len(atoms) for atoms in part])]
    return energies, forces
