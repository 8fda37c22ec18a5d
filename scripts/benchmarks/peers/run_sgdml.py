"""sGDML 1.0.3: kernel ridge regression on forces, closed form; 300 structures (500 want about 37 GB of memory).

The budget ends no training on the way: the number of structures follows from it (300 from 5 minutes on, 100 below).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch  # noqa: F401  sgdml looks for it
from ase.io import read
from service import Clock, errors, frames, labels, serve, time_calculator
from sgdml.intf.ase_calc import SGDMLCalculator
from sgdml.predict import GDMLPredict
from sgdml.train import GDMLTrain
from sgdml.utils import io

SETTINGS = "sGDML, sigma 20, lambda 1e-10, symmetries of the training set"


def dataset(structures: list) -> dict:
    """sgdml's data set, eV and Å."""
    pairs = [labels(atoms) for atoms in structures]
    data = {
        "type": "d",
        "code_version": "1.0.3",
        "name": "benchmark",
        "theory": "unknown",
        "R": np.array([atoms.positions for atoms in structures]),
        "z": structures[0].numbers,
        "E": np.array([energy for energy, _ in pairs]),
        "F": np.array([forces for _, forces in pairs]),
        "r_unit": "Ang",
        "e_unit": "eV",
    }
    data = {key: np.asarray(value) for key, value in data.items()}
    return data | {"md5": np.asarray(io.dataset_md5(data))}


def fit(structures: list, valid: list, count: int) -> dict:
    """The model of `count` structures, symmetries found by sgdml."""
    trainer = GDMLTrain(max_processes=1)
    known, other = dataset(structures), dataset(valid)
    task = trainer.create_task(known, count, other, len(valid), sig=20, lam=1e-10, perms=None, use_sym=True)
    return trainer.train(task)


def train(request: dict) -> dict:
    """Answer of a train task."""
    clock = Clock(request)
    structures, valid = frames(request["train"]), frames(request["valid"])
    count = min(len(structures), 300 if request["seconds"] >= 300 else 100)
    model = fit(structures, valid, count)
    spent = clock.spent()
    out = Path(request["out"])
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "model.npz", **model)
    predictor = GDMLPredict(model, max_processes=1, use_torch=False)

    def predict(structures):
        energies, forces = predictor.predict(np.array([atoms.positions.ravel() for atoms in structures]))
        return energies, [f.reshape(-1, 3) for f in forces]

    return {
        "model": str(out / "model.npz"),
        "settings": f"{SETTINGS}; {count} structures",
        "epochs": 1,
        "parameters": int(np.size(model["R_d_desc_alpha"])),
        **spent,
        "errors": errors(predict, request["tests"]),
    }


def prepare(request: dict) -> None:
    """A model cannot be made without labels."""
    if len(read(request["structure"])) > 100:
        raise ValueError("one molecule of fixed size only: no periodic cells")
    raise ValueError("needs a trained model: no random weights")


def speed(request: dict) -> dict:
    """Time per call of a trained model in `out`."""
    file = str(Path(request["out"]) / "model.npz")
    return time_calculator(request, SETTINGS, lambda atoms: SGDMLCalculator(file), lambda atoms, calculator: None)


serve(train, prepare, speed)
