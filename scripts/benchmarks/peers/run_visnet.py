"""ViSNet of mlip 0.2.5: 64 channels, 2 layers, cutoff 5 Å.

Its data sets, loss, optimiser chain and training step in a loop of our own that ends with the clock; a last link of the
optimiser scales the updates by the share of the budget that is left.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from mlip.data import ASEAtomsReader, DatasetInfo, GraphDatasetBuilderConfig, SingleGraphDatasetBuilder
from mlip.inference import run_batched_inference
from mlip.models import ForceField, Visnet
from mlip.models.loss import MSELoss
from mlip.models.model_io import load_model_from_zip, save_model_to_zip
from mlip.simulation.ase.mlip_ase_calculator import MLIPForceFieldASECalculator
from mlip.training import OptimizerConfig
from mlip.training.ema import exponentially_moving_average, get_debiased_params
from mlip.training.optimizer import get_default_mlip_optimizer
from mlip.training.training_state import init_training_state
from mlip.training.training_step import make_train_step
from service import Clock, baseline, errors, force_scale, frames, labels, least_squares, serve, time_calculator

SETTINGS = "ViSNet 64 channels, 2 layers, cutoff 5 Å; batch 5, amsgrad 1e-3, energy 1 (per atom), forces 25"
CUTOFF, EMA = 5.0, 0.99


def build(elements: list[int], scale: float, neighbors: float, seed: int) -> ForceField:
    """A fresh force field."""
    info = DatasetInfo(
        atomic_energies_map=dict.fromkeys(elements, 0.0),
        graph_cutoff_angstrom=CUTOFF,
        avg_num_neighbors=neighbors,
        scaling_stdev=scale,
    )
    return ForceField.from_mlip_network(Visnet(Visnet.Config(num_layers=2, num_channels=64), info), seed=seed)


def dataset(structures: list, per_element: dict):
    """(mlip's data set of the structures without the baseline, pairs per atom)."""
    copies = []
    for atoms in structures:
        energy, forces = labels(atoms)
        copy = atoms.copy()
        copy.calc = SinglePointCalculator(copy, energy=energy - baseline(atoms, per_element), forces=forces)
        copies.append(copy)
    config = GraphDatasetBuilderConfig(graph_cutoff_angstrom=CUTOFF, batch_size=5)
    builder = SingleGraphDatasetBuilder(ASEAtomsReader(copies), config, dataset_info=True, shuffle=True)
    data = builder.get_dataset()
    return data, builder.dataset_info.avg_num_neighbors


def train(request: dict) -> dict:
    """Answer of a train task."""
    clock = Clock(request)
    structures = frames(request["train"])
    per_element = least_squares(structures)
    data, neighbors = dataset(structures, per_element)
    field = build(sorted(per_element), force_scale(structures), neighbors, request["seed"])
    rates = OptimizerConfig(init_learning_rate=1e-3, peak_learning_rate=1e-3, final_learning_rate=1e-3, warmup_steps=1)
    optimizer = optax.chain(get_default_mlip_optimizer(rates), optax.inject_hyperparams(optax.scale)(step_size=1.0))
    ema = exponentially_moving_average(EMA)
    loss = partial(MSELoss(), eval_metrics=False)
    step = make_train_step(field.predictor, loss, optimizer, ema, data.number_of_graphs() / len(data))
    state = init_training_state(field.params, optimizer, ema)
    steps, seen = 0, 0
    while clock.left() > 0:
        for batch in data:
            chain, scale = state.optimizer_state
            scale = scale._replace(hyperparams={"step_size": jnp.asarray(1 - clock.share(), jnp.float32)})
            state, _ = step(replace(state, optimizer_state=(chain, scale)), batch, 1)
            steps, seen = steps + 1, seen + int(np.sum(batch.graph_mask()))
            if steps % 10 == 0:
                jax.block_until_ready(state.params)
            if clock.left() <= 0:
                break
    jax.block_until_ready(state.params)
    spent = clock.spent()
    field = replace(field, params=get_debiased_params(state.ema_state, EMA))
    file = Path(request["out"]) / "model.zip"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_model_to_zip(file, field)

    def predict(structures):
        plain = [atoms.copy() for atoms in structures]
        results = run_batched_inference(plain, field, batch_size=16)
        energies = [float(one.energy) + baseline(atoms, per_element) for one, atoms in zip(results, plain, strict=True)]
        return energies, [np.asarray(one.forces) for one in results]

    return {
        "model": str(file),
        "settings": SETTINGS,
        "epochs": round(seen / len(structures), 1),
        "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(field.params)),
        **spent,
        "errors": errors(predict, request["tests"]),
    }


def prepare(request: dict) -> None:
    """A file with random weights."""
    atoms = read(request["structure"])
    file = Path(request["out"]) / "model.zip"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_model_to_zip(file, build(sorted({int(z) for z in atoms.numbers}), 1.0, 15.0, 0))


def speed(request: dict) -> dict:
    """Time per call."""

    def calculator(atoms):
        field = load_model_from_zip(Visnet, Path(request["out"]) / "model.zip")
        return MLIPForceFieldASECalculator(atoms, edge_capacity_multiplier=1.1, force_field=field)

    def bare(atoms, calculator):
        graph = calculator._prepare_graph(atoms)

        def call():
            result = calculator.model_apply_fun(graph).to_prediction()
            return np.asarray(result.energy), np.asarray(result.forces)

        return call

    return time_calculator(request, SETTINGS, calculator, bare)


serve(train, prepare, speed)
