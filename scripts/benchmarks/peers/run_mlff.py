"""mlff itself, under the same rules as its peers: a config of a few lines, `options` of the request in it.

The options teacher.method, teacher.count and teacher.share put a pre-training first: that many structures sampled around
the training structures with that method, and that share of the time that is left after it; all of it counts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import yaml
from ase.io import read
from dynamics import explore
from service import Clock, cpu_seconds, errors, serve, time_calculator

from mlff import MLFFCalculator, Potential, load_config
from mlff.certificate.certificate import certify
from mlff.data.structure import Structure
from mlff.models import registry
from mlff.models.parameters import initial_params
from mlff.potential import selfcheck
from mlff.simulation import sampling
from mlff.training import train as training
from mlff.training import trainer

MODEL = "model.safetensors"


def configure(request: dict, **sections):
    """The config: files and time, the options ("model.channels=32", ...), defaults for the rest."""
    out = Path(request["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "given.yaml").write_text(yaml.safe_dump(sections), encoding="utf-8")
    options = [option for option in request["options"] if not option.startswith("teacher.")]
    return load_config(out / "given.yaml", options)


def describe(request: dict) -> str:
    """One line for the table."""
    return f"mlff, {', '.join(request['options'])}; otherwise defaults" if request["options"] else "mlff, defaults"


def train(request: dict) -> dict:
    """Answer of a train task."""
    clock = Clock(request)
    if clock.cpu:
        training.time = trainer.time = SimpleNamespace(monotonic=cpu_seconds)
    start = pretrain(request, clock)
    data = {"train": str(Path(request["train"]).resolve()), "valid": str(Path(request["valid"]).resolve())}
    potential = fit(request, "run", clock.left(), finetune_from=start, data=data)
    spent = clock.spent()

    def predict(structures):
        plain = [atoms.copy() for atoms in structures]
        results = potential.predict(plain, stress=False)
        return [result.energy for result in results], [result.forces for result in results]

    return {
        "model": str(Path(request["out"]) / "run" / MODEL),
        "settings": describe(request),
        "epochs": potential.metadata["training"]["epochs"],
        "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(potential.params["params"])),
        **spent,
        "errors": errors(predict, request["tests"]),
        "dynamics": explore(predict, request),
        "certificate": [line.name for line in certify(potential).failed] if request.get("dynamics") else None,
    }


def pretrain(request: dict, clock: Clock) -> str | None:
    """The model file that training starts from, if the options name a teacher."""
    teacher = dict(
        option.removeprefix("teacher.").split("=") for option in request["options"] if option.startswith("teacher.")
    )
    if not teacher:
        return None
    out = Path(request["out"])
    out.mkdir(parents=True, exist_ok=True)
    calculator, sampled = sampling.teacher(teacher["method"]), (out / "sampled.xyz").resolve()
    sampling.sample(
        read(request["train"], ":"), calculator, sampled, int(teacher["count"]), seed=request["seed"], progress=False
    )
    data = {"train": str(sampled), "valid_fraction": 0.03, "reference_energies": "least_squares", "lint": "off"}
    first = request | {"options": [option for option in request["options"] if "learning_rate" not in option]}
    fit(first, "first", float(teacher["share"]) * clock.left(), data=data)
    return str((out / "first" / MODEL).resolve())


def fit(request: dict, name: str, seconds: float, **sections) -> Potential:
    """A training run of so many seconds."""
    config = configure(
        request, seed=request["seed"], training={"max_hours": seconds / 3600, "tensorboard": False}, **sections
    )
    return training.train(config, Path(request["out"]) / name, progress=False)


def prepare(request: dict) -> None:
    """A model file with random weights; like those of trained models it brings a structure that is computed again."""
    atoms = read(request["structure"])
    config = configure(request, data={"train": "none.xyz"})
    elements = tuple(sorted({int(z) for z in atoms.numbers}))
    params = initial_params(registry.build(config.model, elements), seed=0)
    potential = Potential(config.model, params, elements, dict.fromkeys(elements, 0.0))
    known = Structure.from_atoms(atoms[: selfcheck.LARGEST])
    potential = replace(potential, metadata={selfcheck.KEY: selfcheck.record(potential, [known])})
    potential.save(Path(request["out"]) / MODEL)


def speed(request: dict) -> dict:
    """Time per call."""

    def calculator(atoms):
        return MLFFCalculator(Path(request["out"]) / MODEL)

    def bare(atoms, calculator):
        graph = calculator._list.graph_at(atoms.positions)

        def call():
            prediction = calculator.potential.compute(graph)
            return np.asarray(prediction.energies), np.asarray(prediction.forces)

        return call

    return time_calculator(request, describe(request), calculator, bare)


serve(train, prepare, speed)
