"""apax 0.14: Gaussian-moment network (GMNN) with the defaults of its full example, cutoff 5 Å.

Its data pipeline, loss, optimiser and training step in a loop of our own, because apax anneals over a number of epochs and
here the budget is a time: a last link in the chain of the optimiser scales the updates by what is left of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from apax.config import parse_config
from apax.md import ASECalculator
from apax.optimizer import get_opt
from apax.train.checkpoints import create_params, create_train_state
from apax.train.metrics import initialize_metrics
from apax.train.run import initialize_datasets, initialize_loss_fn
from apax.train.trainer import make_step_fns
from apax.utils.random import seed_py_np_tf
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from service import Clock, baseline, errors, frames, labels, least_squares, serve, time_calculator

SETTINGS = "GMNN (n_radial 5, n_contr 8, nn 256 256, 16 Bessel), cutoff 5 Å; batch 4, Adam 1e-3, energy 1, forces 4"
FOREVER = 100_000  # epochs, for apax's own schedule and pipeline: the clock ends the run


def configure(folder: Path, train: Path, valid: Path, seed: int):
    """apax's config; the model's folder is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    config = parse_config(
        {
            "n_epochs": FOREVER,
            "seed": seed,
            "data": {
                "directory": str(folder.parent),
                "experiment": folder.name,
                "train_data_path": str(train),
                "val_data_path": str(valid),
                "batch_size": 4,
                "valid_batch_size": 10,
            },
            "model": {"name": "gmnn", "basis": {"name": "bessel", "n_basis": 16, "r_max": 5.0}},
            "loss": [
                {"name": "energy", "weight": 1.0, "atoms_exponent": 1},
                {"name": "forces", "weight": 4.0, "atoms_exponent": 1},
            ],
            "metrics": [{"name": "forces", "reductions": ["mae"]}],
        }
    )
    config.data.model_version_path.mkdir(parents=True)
    config.dump_config(config.data.model_version_path)
    return config


def start(config):
    """(data, model, optimiser's state), as apax's own `run` makes them."""
    seed_py_np_tf(config.seed)
    data, _, statistics = initialize_datasets(config)
    sample, box = data.init_input()
    builder = config.model.get_builder()(config.model.model_dump())
    model = builder.build_energy_derivative_model(
        scale=statistics.elemental_scale, shift=statistics.elemental_shift, apply_mask=True, init_box=box
    )
    params, _ = create_params(model, jax.random.PRNGKey(config.seed), sample, 1)
    optimizer = optax.chain(
        get_opt(params, FOREVER, data.steps_per_epoch(), **config.optimizer.model_dump()),
        optax.inject_hyperparams(optax.scale)(step_size=1.0),
    )
    return data, create_train_state(jax.vmap(model.apply, in_axes=(None, 0, 0, 0, 0, 0)), params, optimizer)


def save(state, config) -> None:
    """The weights where apax's calculator looks for them."""
    folder = (config.data.model_version_path / "best").resolve()
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=1)) as manager:
        manager.save(0, args=ocp.args.StandardSave({"model": {"params": state.params}, "epoch": 0}))


def without_baseline(structures: list, per_element: dict, file: Path) -> Path:
    """Write the structures with energies relative to the baseline."""
    copies = []
    for atoms in structures:
        energy, forces = labels(atoms)
        copy = atoms.copy()
        copy.calc = SinglePointCalculator(copy, energy=energy - baseline(atoms, per_element), forces=forces)
        copies.append(copy)
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, copies, format="extxyz")
    return file


def train(request: dict) -> dict:
    """Answer of a train task."""
    clock = Clock(request)
    out = Path(request["out"]).resolve()
    structures = frames(request["train"])
    per_element = least_squares(structures)
    files = (
        without_baseline(structures, per_element, out / "train.xyz"),
        without_baseline(frames(request["valid"]), per_element, out / "valid.xyz"),
    )
    config = configure(out / "model", *files, request["seed"])
    data, state = start(config)
    loss, metrics = initialize_loss_fn(config.loss), initialize_metrics(config.metrics)
    step, _ = make_step_fns(loss, metrics, model=state.apply_fn, is_ensemble=False)
    batches = data.shuffle_and_batch()
    seen, steps = metrics.empty(), 0
    while clock.left() > 0:
        chain, scale = state.opt_state
        scale = scale._replace(hyperparams={"step_size": jnp.asarray(1 - clock.share(), jnp.float32)})
        (state, seen), value = step((state.replace(opt_state=(chain, scale)), seen), next(batches))
        steps += 1
        if steps % 10 == 0:
            jax.block_until_ready(value)
    jax.block_until_ready(state.params)
    spent = clock.spent()
    save(state, config)
    calculator = ASECalculator(config.data.model_version_path)

    def predict(structures):
        plain = [atoms.copy() for atoms in structures]
        done = [atoms.calc.results for atoms in calculator.batch_eval(plain, batch_size=16, silent=True)]
        energies = [result["energy"] + baseline(atoms, per_element) for result, atoms in zip(done, plain, strict=True)]
        return energies, [result["forces"] for result in done]

    return {
        "model": str(config.data.model_version_path),
        "settings": SETTINGS,
        "epochs": round(steps * config.data.batch_size / len(structures), 1),
        "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(state.params)),
        **spent,
        "errors": errors(predict, request["tests"]),
    }


def prepare(request: dict) -> None:
    """A model with random weights; zeros as labels."""
    atoms = read(request["structure"])
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.random.default_rng(0).normal(size=(len(atoms), 3)))
    out = Path(request["out"]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    write(out / "one.xyz", [atoms] * 10, format="extxyz")
    config = configure(out / "model", out / "one.xyz", out / "one.xyz", 0)
    save(start(config)[1], config)


def speed(request: dict) -> dict:
    """Time per call."""

    def calculator(atoms):
        return ASECalculator(Path(request["out"]).resolve() / "model")

    def bare(atoms, calculator):
        if not calculator.neigbor_from_jax:
            box = np.asarray(atoms.cell.array)
            positions = np.array(atoms.positions @ np.linalg.inv(box))

            def call():
                result = calculator.step(positions, calculator.neighbors, box, calculator.offsets)
                return {key: np.asarray(value) for key, value in result.items()}

            return call
        positions, box = jnp.asarray(atoms.positions), jnp.asarray(atoms.cell.array)

        def call():
            result, _ = calculator.step(positions, calculator.neighbors, box)
            return {key: np.asarray(value) for key, value in result.items()}

        return call

    return time_calculator(request, SETTINGS, calculator, bare)


serve(train, prepare, speed)
