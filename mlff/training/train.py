"""Training: from a config to a potential, top to bottom.

Load the data, choose what the config leaves open, look for contradictions, take off the baseline, batch, initialise, optimise with checkpoints, evaluate, save.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from mlff.basics import provenance
from mlff.basics.errors import ConfigError, DataError, FileError, StructureError
from mlff.basics.files import alone, write_text, writing
from mlff.basics.runtime import refuse_forked, set_up_process
from mlff.basics.signals import Terminated
from mlff.config.load import dump_config
from mlff.config.options import Config
from mlff.data import baseline as baselines
from mlff.data.batching import Batches, Sample, make_sample
from mlff.data.dataset import Dataset, Splits, check_labels, load_data
from mlff.lint.lint import lint
from mlff.models import registry
from mlff.models.parameters import initial_params
from mlff.potential import domain, selfcheck
from mlff.potential.committee import committee
from mlff.potential.potential import Potential
from mlff.training import (
    activations,
    losses,
    parity,
    plasticity,
    ranges,
    recipe,
    second_readout,
    start,
    starts,
    statistics,
    stretching,
)
from mlff.training.checkpoint import Checkpoints
from mlff.training.devices import Devices, find_devices
from mlff.training.evaluate import predict
from mlff.training.identity import MODEL, identity_of, refuse_other
from mlff.training.metrics import compare
from mlff.training.objectives import Params
from mlff.training.parity import Parity
from mlff.training.processes import Group, processes
from mlff.training.progress import TrainingProgress
from mlff.training.range_test import RangeTest, range_test
from mlff.training.runlog import RunLog, Silence, duration
from mlff.training.task import Task
from mlff.training.trainer import Trainer

_WARNINGS = 5  # lines
_FORMULAS = 12  # that are named
_MEMBER = 1_000_003  # between the seeds of a committee's members


def train(config: Config, out_dir: str | Path, *, progress: bool = True, data: Splits | None = None) -> Potential:
    """Train a potential and save it as `out_dir`/model.safetensors; a directory with a checkpoint is resumed.

    `data` replaces what `config.data` names. A finished run is not repeated: its potential is loaded. An epoch-driven
    run that was stopped and resumed on the same CPU ends bitwise as if it had never stopped.

    Raises ConfigError when the directory holds a run with another configuration or other data, or one at work; DataError
    for unusable data, TrainingError when training keeps diverging, FileError where nothing can be written,
    ProcessError in a process that was forked after JAX had started, or when another process of the training is gone
    (`mlff.training.processes`), KeyboardInterrupt (Terminated) after Ctrl-C (SIGTERM), once a checkpoint is written.

    Of several processes each returns the potential, and the first alone writes files and shows progress.
    """
    started = time.monotonic()
    out = begin(out_dir)
    with processes(config.training.devices) as group:
        progress = progress and group.first
        journal = RunLog(out, progress, config.training.tensorboard) if group.first else Silence(out, progress)
        found = find_devices(config.training.devices, group)
        splits = load_data(config.data, config.seed, config.loss, progress) if data is None else data
        if data is not None and len(data.valid):
            check_labels(data, config.loss)
        found.check(config.training, [len(structure) for structure in splits.learned])
        with claimed(out, group):
            return _train(config, out, splits, journal, found, progress, started)


def begin(out_dir: str | Path) -> Path:
    """Set up the process; the directory of the run, which need not exist. Raises ConfigError: a file; ProcessError, see `train`."""
    refuse_forked()
    set_up_process()
    out = Path(out_dir)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file, not a run directory; choose another --out")
    return out


@contextlib.contextmanager
def claimed(out: Path, group: Group | None = None) -> Iterator[None]:
    """Make the directory of a run and keep other trainings out of it. Raises FileError; ConfigError: another is at work there.

    Of several processes the first does so; ConfigError in another one that does not see the same directory.
    """
    if group is not None and not group.first:
        group.wait()
        if not (out / ".lock").exists():
            raise ConfigError(
                f"{out}: process {group.index} does not see what the first one wrote there; choose a shared --out"
            )
        yield
        return
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with alone(out / ".lock", f"{out}: another process trains there; wait for it or choose another --out"):
        if group is not None:
            group.wait()
        yield


def _train(
    config: Config, out: Path, splits: Splits, journal: RunLog, devices: Devices, progress: bool, started: float
) -> Potential:
    beginning = start.load(config)
    config, choices = recipe.choose(config, splits.train, beginning)
    choices += start.check(beginning, config, splits)
    identity = identity_of(config, splits, beginning)
    with jax.enable_x64(config.precision == "float64"), Checkpoints(out / "checkpoints") as saved:
        record = saved.record()
        refuse_other(out, identity, record, config)
        before = [] if record is None else starts.from_record(record, out)
        if before and all(run.over(config) for run in before) and (out / MODEL).exists():
            journal.say(f"this run is finished: its potential is {out / MODEL}")
            return Potential.load(out / MODEL)
        journal.say(str(splits.train.census))
        for choice in choices:
            journal.say(choice)
        inspect(config, splits, journal.warn)
        if devices.group.first:
            write_text(out / "config.yaml", dump_config(config))
            provenance.record(out / "run.json", go_on=record is not None, seed=config.seed, data=identity["content of data"])

        task = prepare(config, splits, progress, beginning, devices)
        journal.say(task.describe())
        for line in plasticity.describe(config.optimizer, task.params):
            journal.say(line)
        ends = optimise(Trainer(task, saved, journal, identity), out, started)
    potential, parities = finish(task, splits, ends, journal, progress)
    if not devices.group.first:
        return potential
    potential.save(out / MODEL)
    journal.say(f"saved {out / MODEL}")
    if second_readout.there(task.params):
        baseline = start.replay_baseline(beginning, task.statistics)
        second_readout.potential(potential, ends[0][0], baseline, splits.replay).save(out / second_readout.FILE)
        journal.say(f"saved {out / second_readout.FILE}: of the data that were replayed")
    try:
        parity.write(out / parity.FILE, potential.fingerprint, parities)
    except FileError as error:  # the model is saved
        journal.warn(f"{error}; the report will lack predictions: mlff evaluate {out} DATA --html FILE makes them again")
    return potential


def optimise(trainer: Trainer, out: Path, started: float) -> list[tuple[Params, TrainingProgress]]:
    """Of each start that is kept the parameters of the best validation, and how it went; goes on from a checkpoint.

    Raises as `Trainer.fit`.
    """
    trainer.resume()
    trainer.run.overhead += time.monotonic() - started
    try:
        params = trainer.fit()
    except (KeyboardInterrupt, Terminated):
        trainer.journal.say(f"stopped after {trainer.run.epoch} epochs; the same command on {out} goes on from here")
        raise
    runs, chosen = trainer.runs, starts.kept(trainer.config, trainer.runs)
    trainer.journal.say(_outcome(runs[starts.leader(runs)]))
    if len(runs) > 1:
        trainer.journal.say(f"{starts.outcome(runs)}; kept: {', '.join(map(str, chosen))}")
    return [(starts.of_start(params, k, len(runs)), runs[k]) for k in chosen]


def find_learning_rate(config: Config) -> RangeTest:
    """The learning-rate range test on the data of a config; raises as `train`. Nothing is written."""
    refuse_forked()
    set_up_process()
    splits = load_data(config.data, config.seed, config.loss)
    beginning = start.load(config)
    config, _ = recipe.choose(config, splits.train, beginning)
    start.check(beginning, config, splits)
    with jax.enable_x64(config.precision == "float64"):
        return range_test(prepare(config, splits, beginning=beginning))


def inspect(config: Config, splits: Splits, warn: Callable[[str], None]) -> None:
    """Lint the training set: warn of what is suspicious. Raises DataError for a contradiction unless `data.lint` is warn."""
    if config.data.lint == "off":
        return
    held_out = {"validation": splits.valid, **{f"test {name}": data for name, data in splits.test.items()}}
    report = lint(splits.train, held_out, config.data.reference_energies)
    source, errors = splits.train.census.source, report.of("error")
    if errors and config.data.lint == "stop":
        more = f"; and {len(errors) - 1} more (mlff lint)" if len(errors) > 1 else ""
        raise DataError(f"{source}: {errors[0].line()}{more}; with data.lint: warn training goes on nevertheless")
    found = [item for item in (*errors, *report.of("warning")) if item.code != "duplicate-held-out"]  # load_data tells those
    for item in found[:_WARNINGS]:
        warn(f"{item.severity}: {item.line()}")
    if len(found) > _WARNINGS:
        warn(f"and {len(found) - _WARNINGS} more warnings: mlff lint shows them")


def prepare(
    config: Config,
    splits: Splits,
    progress: bool = False,
    beginning: Potential | None = None,
    devices: Devices | None = None,
) -> Task:
    """Baseline, statistics, batches and initial parameters, of `beginning` if given; `devices`: more than one.

    Raises DataError, StructureError.
    """
    if not len(splits.valid):
        raise DataError("no validation structures: give data.valid, or more training structures to split them from")
    elements, source = splits.train.elements, splits.train.census.source
    try:
        baseline = baselines.fit(splits.train, config.data.reference_energies)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    present = elements
    if beginning is not None:
        beginning, _ = start.with_elements(beginning, elements)
        elements = beginning.elements
        baseline = beginning.baseline | baseline

    def samples(structures: Dataset, name: str, baseline: dict[int, float]) -> list[Sample]:
        listed = track(structures, f"neighbours ({name})", disable=not progress, transient=True)
        return [make_sample(structure, config.model.cutoff, baseline) for structure in listed]

    new, held_out = samples(splits.train, "training", baseline), samples(splits.valid, "validation", baseline)
    measured = statistics.measure(new, elements, losses.learned(config.loss))
    old = []
    if beginning is not None:
        measured = start.statistics(beginning, measured, present)
    if beginning is not None and splits.replay is not None:
        old = samples(splits.replay, "replay", start.replay_baseline(beginning, measured))
        measured = measured._replace(inner_cutoff=statistics.inner_cutoffs([*new, *old], elements))
    dtype, sizes = np.dtype(config.precision), (config.training.batch_size, config.training.max_atoms)
    twice = bool(old) and config.data.replay_readout == "own"
    drawn = {"replayed": old, "replay_share": config.data.replay_share, "mark_replayed": twice}
    drawn |= {"stretched": stretching.pool(config, [*new, *old]), "stretched_share": stretching.SHARE}
    train = Batches(new, *sizes, dtype, **drawn)
    valid = Batches(held_out, *sizes, dtype)
    module = registry.build(config.model, elements, measured)
    if beginning is not None:
        initial = [{"params": beginning.params["params"]}]
        initial = list(map(second_readout.doubled, initial)) if twice else initial
    else:
        members = range(config.member, config.member + config.training.starts)
        initial = [initial_params(module, config.seed + _MEMBER * member) for member in members]
    params, *others = jax.tree.map(lambda p: jnp.asarray(p, dtype), initial)
    known = {} if beginning is None else beginning.params.get(ranges.NAME, {})
    apply = second_readout.energies(module) if twice else module.apply
    fields = config, elements, baseline, measured, apply, params, train, valid, known, devices or Devices()
    return Task(*fields, activations.shares(module), tuple(others))


def finish(
    task: Task,
    splits: Splits,
    ends: list[tuple[Params, TrainingProgress]],
    journal: RunLog,
    progress: bool = False,
) -> tuple[Potential, dict[str, Parity]]:
    """The potential with its final errors in the metadata, and what it says of each set that was kept aside.

    `ends`: parameters and how it went, of each start that is kept; several become a committee.
    """
    environments = domain.summarise(splits.learned, task.elements, task.config.model.cutoff)
    members = [_potential(task, splits, environments, *end) for end in ends]
    potential = members[0] if len(members) == 1 else committee(members)
    errors, parities = {}, {}
    for name, dataset in _held_out(splits):
        try:
            structures, results = predict(potential, dataset, progress)
        except StructureError as error:  # what was learned is worth more than its errors on one set
            journal.warn(f"{name}: no errors: {error}")
            continue
        metrics = compare(structures, results, potential.environments)
        errors[name] = metrics.to_dict()
        parities[name] = Parity.of(structures, results, potential.environments)
        journal.print(metrics.table(name))
    return dataclasses.replace(potential, metadata=potential.metadata | {"errors": errors}), parities


def _potential(
    task: Task, splits: Splits, environments: domain.Environments, params: Params, run: TrainingProgress
) -> Potential:
    """The potential of one start, without errors."""
    metadata = origin(task.config, splits, run)
    potential = Potential(
        config=task.config.model,
        params=jax.device_get(second_readout.first(params)),
        elements=task.elements,
        baseline=task.baseline,
        statistics=task.statistics,
        precision=task.config.precision,
        metadata=metadata,
        environments=environments,
    )
    found = ranges.measure(potential.model, second_readout.first(params), (task.train, task.valid), task.ranges)
    potential = dataclasses.replace(potential, params=potential.params | found)
    metadata[selfcheck.KEY] = selfcheck.record(potential, selfcheck.choose(splits.valid))
    return potential


def origin(config: Config, splits: Splits, run: TrainingProgress) -> dict:
    """What a model file says of its training."""
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "config": config.model_dump(mode="json"),
        "formulas": _formulas(splits.train),
        "data": {"train": splits.train.fingerprint, "valid": splits.valid.fingerprint}
        | {f"test {name}": data.fingerprint for name, data in splits.test.items()},
        "training": {"epochs": run.epoch, "best_epoch": run.best_epoch, "seconds": round(run.seconds + run.overhead, 1)}
        | {"finished": finished},
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }


def _formulas(data: Dataset) -> dict[str, int]:
    """The most frequent formulas and how many structures have each; the others together."""
    counts = Counter(structure.formula for structure in data)
    kept = dict(counts.most_common(_FORMULAS))
    others = counts.total() - sum(kept.values())
    return kept | ({"others": others} if others else {})


def _held_out(splits: Splits) -> Iterator[tuple[str, Dataset]]:
    yield "validation", splits.valid
    for name, dataset in splits.test.items():
        if len(dataset):
            yield (name if name.startswith("test") else f"test {name}"), dataset


def _outcome(run: TrainingProgress) -> str:
    text = f"trained {run.epoch} epochs in {duration(run.seconds + run.overhead)}, the best is epoch {run.best_epoch}"
    skipped = f", {run.skipped} steps skipped" if run.skipped else ""
    spikes = f", {run.spikes} jumps of the error undone" if run.spikes else ""
    backoffs = f", learning rate halved {run.backoffs} times" if run.backoffs else ""
    return text + skipped + spikes + backoffs
