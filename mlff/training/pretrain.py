"""Pre-training: a model learns from structures without labels, by contrastive learning or by denoising.

The model that is saved has features and no energies; fine-tuning starts from its weights.
"""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mlff.basics import provenance
from mlff.basics.errors import ConfigError, DataError
from mlff.basics.files import write_text
from mlff.config.load import dump_config
from mlff.config.options import Config, Loss
from mlff.data.batching import make_sample
from mlff.data.dataset import Dataset, Splits, load_data
from mlff.data.views import NoisyBatches, PairsOfViews, bare, repeats
from mlff.models import registry
from mlff.models.common import Statistics
from mlff.models.parameters import initial_params
from mlff.potential import modelfile
from mlff.potential.potential import Potential
from mlff.training import recipe
from mlff.training.checkpoint import Checkpoints
from mlff.training.contrastive import HEAD, Contrastive, head_params
from mlff.training.identity import MODEL, options_of, refuse_other
from mlff.training.objectives import Params
from mlff.training.progress import TrainingProgress
from mlff.training.runlog import RunLog
from mlff.training.task import Task
from mlff.training.train import begin, claimed, optimise, origin
from mlff.training.trainer import Trainer

STRUCTURES = 16  #: of a step of contrastive learning, where no batch size is given: the more, the harder to tell apart
_SCALE = 1.0  #: eV/Å: of forces that are displacements over their standard deviation


def pretrain(config: Config, out_dir: str | Path, *, progress: bool = True) -> Potential:
    """Train without labels and save the model as `out_dir`/model.safetensors; a directory with a checkpoint is resumed.

    `config.pretraining` says how; labels that the files have, `config.loss` and test sets do not count. Stopping, resuming
    and errors are as those of `train`; besides DataError where too few structures have two atoms, ConfigError for
    contrastive batches of one structure.
    """
    started = time.monotonic()
    out = begin(out_dir)
    check(config)
    journal = RunLog(out, progress, config.training.tensorboard)
    splits = load(config, progress)
    with claimed(out):
        return _pretrain(config, out, splits, journal, started)


def _pretrain(config: Config, out: Path, splits: Splits, journal: RunLog, started: float) -> Potential:
    config, choices = choose(config, splits.train)
    identity = _identity(config, splits)
    with jax.enable_x64(config.precision == "float64"), Checkpoints(out / "checkpoints") as saved:
        record = saved.record()
        refuse_other(out, identity, record, config)
        if record is not None and TrainingProgress.from_record(record, out).over(config) and (out / MODEL).exists():
            journal.say(f"this run is finished: its model is {out / MODEL}")
            return Potential.load(out / MODEL, pretrained=True)
        for choice in choices:
            journal.say(choice)
        write_text(out / "config.yaml", dump_config(config))
        provenance.record(out / "run.json", go_on=record is not None, seed=config.seed, data=identity["content of data"])
        task = prepare(config, splits)
        journal.say(task.describe())
        ((params, run),) = optimise(Trainer(task, saved, journal, identity), out, started)
    potential = finish(task, splits, params, run)
    potential.save(out / MODEL)
    journal.say(f"saved {out / MODEL}")
    return potential


def check(config: Config) -> None:
    """Raise ConfigError for what cannot be: another model to start from, pairs of views with nothing to tell them from."""
    if config.training.devices != 1:
        raise ConfigError("training.devices: learning without labels runs on one device; leave it out")
    if config.training.starts != 1:
        raise ConfigError("training.starts: learning without labels has one start; leave it out")
    if config.finetune_from is not None:
        raise ConfigError("finetune_from: pre-training starts from random weights; leave it out")
    if config.pretraining.method == "contrastive" and config.training.batch_size == 1:
        raise ConfigError(
            "training.batch_size: 1: contrastive learning tells a structure from the others of its batch; take 2 or more, better 16"
        )


def load(config: Config, progress: bool = False) -> Splits:
    """Training and validation structures without their labels, less those of which no view can be made (single atoms).

    Raises DataError: as `load_data`, and where too few structures are left.
    """
    files = config.data.model_copy(update={"test": None, "replay": None})
    splits = load_data(files, config.seed, None, progress)
    parts = [_usable(part) for part in (splits.train, splits.valid)]
    least = 2 if config.pretraining.method == "contrastive" else 1
    for name, part in zip(("training", "validation"), parts, strict=True):
        if len(part) < least:
            raise DataError(
                f"{part.census.source}: {len(part)} {name} structures have two atoms or more; "
                f"pretraining.method: {config.pretraining.method} needs at least {least}; give more"
            )
    return Splits(*parts, {})


def _usable(data: Dataset) -> Dataset:
    kept = [bare(structure) for structure in data if len(structure) * repeats(structure).prod() > 1]
    return replace(data, structures=tuple(kept))


def choose(config: Config, data: Dataset) -> tuple[Config, list[str]]:
    """The config with nothing left open, and one line for each choice; its loss is that of denoising, whatever it was."""
    training, lines = config.training, []
    if config.pretraining.method == "contrastive" and training.batch_size is None and training.max_atoms is None:
        training = training.model_copy(update={"batch_size": STRUCTURES})
        lines.append(f"training.batch_size: {STRUCTURES} structures, each in two views")
    config = config.model_copy(update={"training": training, "loss": Loss(energy=0.0, error="mse")})
    config, choices = recipe.choose(config, data)
    return config, lines + choices


def prepare(config: Config, splits: Splits) -> Task:
    """Batches of views and initial parameters. Raises StructureError: atoms on top of each other, or too many pairs."""
    elements, dtype = splits.train.elements, np.dtype(config.precision)
    undisturbed = [make_sample(structure, config.model.cutoff) for structure in splits.train]
    pairs, atoms = (sum(counts) for counts in zip(*((s.mask.sum(), len(s.numbers)) for s in undisturbed), strict=True))
    statistics = Statistics(_SCALE, max(float(pairs / atoms), 1.0))
    noise = config.pretraining.method == "denoising"
    sizes = config.training.batch_size, config.training.max_atoms
    make = NoisyBatches if noise else PairsOfViews
    train, valid = (
        make(part.structures, config.model.cutoff, config.pretraining, *sizes, dtype)
        for part in (splits.train, splits.valid)
    )
    module = registry.build(config.model.model_copy(update={"zbl": False}), elements, statistics)
    params = {"params": initial_params(module, config.seed)["params"]}
    fields = config, elements, dict.fromkeys(elements, 0.0), statistics
    if noise:
        return Task(*fields, module.apply, _cast(params, dtype), train, valid)
    features = functools.partial(module.apply, method="features")
    graph, _ = train.build(*train.plan(None)[0])
    width = sum(leaf.shape[1] for leaf in jax.eval_shape(features, params, graph))
    params["params"] |= {HEAD: head_params(config.seed, width)}
    return Contrastive(*fields, features, _cast(params, dtype), train, valid)


def finish(task: Task, splits: Splits, params: Params, run: TrainingProgress) -> Potential:
    """The model, without the head of contrastive learning; its metadata say that no labels were used."""
    learned = {name: leaf for name, leaf in jax.device_get(params)["params"].items() if name != HEAD}
    kind = {"method": task.config.pretraining.method, "labels": "none", "structures": len(splits.train)}
    return Potential(
        config=task.config.model,
        params={"params": learned},
        elements=task.elements,
        baseline=task.baseline,
        statistics=task.statistics,
        precision=task.config.precision,
        metadata=origin(task.config, splits, run) | {modelfile.PRETRAINING: kind | {"validation loss": run.best_score}},
    )


def _cast(params: Params, dtype: np.dtype) -> Params:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def _identity(config: Config, splits: Splits) -> dict:
    """What two runs must share for one to continue the other."""
    options = options_of(config)
    del options["loss"]
    data = {name: getattr(splits, name).fingerprint for name in ("train", "valid")}
    return {"config": options, "content of data": data}
