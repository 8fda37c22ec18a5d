"""What a training run would do and need, without doing it: `mlff train --dry-run`."""

from __future__ import annotations

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.syntax import Syntax

from mlff.config.load import dump_config
from mlff.config.options import Config
from mlff.data.batching import Sizes
from mlff.data.dataset import load_data
from mlff.training import recipe, start
from mlff.training.devices import find_devices
from mlff.training.processes import Group
from mlff.training.step import make_step
from mlff.training.task import Task
from mlff.training.train import inspect, prepare


def print_plan(config: Config, out: Path) -> None:
    """Read the data, build the model, compile the largest step; print config, data, shapes, steps and memory.

    Nothing is written. Raises what `train` would raise before its first step.
    """
    console = Console()
    devices = find_devices(config.training.devices, Group(0, 1))
    splits = load_data(config.data, config.seed, config.loss, progress=True)
    devices.check(config.training, [len(structure) for structure in splits.learned])
    beginning = start.load(config)
    config, choices = recipe.choose(config, splits.train, beginning)
    choices += start.check(beginning, config, splits)
    console.print(Syntax(dump_config(config), "yaml", background_color="default"))
    for choice in choices:
        console.print(choice, markup=False, highlight=False, soft_wrap=True)
    for name, dataset in (("train", splits.train), ("valid", splits.valid), *splits.test.items()):
        console.print(f"{name}: {dataset.census}", highlight=False, soft_wrap=True)
    inspect(config, splits, lambda text: console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True))
    with jax.enable_x64(config.precision == "float64"):
        task = prepare(config, splits, beginning=beginning, devices=devices)
        console.print(task.describe(), highlight=False, soft_wrap=True)
        sizes = max(task.train.sizes, key=lambda size: size.atoms * size.neighbors)
        with console.status("compiling the largest step"):
            begin = time.perf_counter()
            needed = step_memory(task, sizes)
            seconds = time.perf_counter() - begin
    samples = sum(
        array.nbytes
        for sample in (*task.train.samples, *task.valid.samples)
        for array in (sample.positions, sample.neighbors, sample.mask, sample.shifts, sample.labels.get("forces"))
        if array is not None
    )
    shapes = len(task.train.sizes) + len(task.valid.sizes)
    where = f" on each of {devices.count} devices" if devices.count > 1 else ""
    console.print(
        f"memory: {needed / 2**20:,.0f} MiB{where} for the largest step ({sizes.atoms} atoms x {sizes.neighbors} neighbours), "
        f"{samples / 2**20:,.0f} MiB for the data, beside about 500 MiB for Python and XLA",
        highlight=False,
        soft_wrap=True,
    )
    epochs = config.training.epochs
    total = (
        f"{epochs * task.train.steps_per_epoch:,} steps in {epochs:,} epochs"
        if epochs
        else f"{config.training.max_hours:g} hours"
    )
    console.print(
        f"time: {total}; one step takes {seconds:.0f} s to compile, {shapes} shapes in all", highlight=False, soft_wrap=True
    )
    console.print(f"dry run: all is well, nothing was written; the run would go to {out}", highlight=False, soft_wrap=True)


def step_memory(task: Task, sizes: Sizes) -> int:
    """Bytes that a training step at this padded size needs on a device, parameters and optimiser included, as XLA plans it."""
    indices = next(indices for planned, indices in task.train.plan(None) if planned == sizes)
    _, graph, labels = task.devices.place(task.train, sizes, indices)
    step = make_step(task.objective, task.config, starts=task.starts)
    controls = jnp.asarray(np.zeros(3 if task.starts == 1 else (task.starts, 3), task.train.dtype))
    state = task.devices.replicated(task.initial_state())
    plan = step.lower(state, controls, graph, labels).compile().memory_analysis()
    return plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
