#!/usr/bin/env python3
"""Four starts in one program against four trainings: CPU seconds; writes results/starts.json.

    PJRT_NPROC=1 .venv/bin/python scripts/benchmarks/starts.py [--channels 16 64] [--rounds 7] [--out FILE]

Malonaldehyde, five structures a step, one thread. For each number of channels

    step:  one step of four starts as four programs, as one program that takes them one after another (what `mlff train` does on a CPU),
           and as one that takes all at once (what it does elsewhere), ms
    epoch: an epoch of 80 structures as `mlff train` does it, batches included: four times one start, and four starts, s

Cases alternate; medians over rounds of CPU time, without compilation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import jax
import numpy as np
from machine import machine

from mlff.basics.runtime import set_up_process, use_compilation_cache
from mlff.config.load import load_config
from mlff.config.options import Config
from mlff.data.dataset import Splits, load_data
from mlff.training import recipe, starts
from mlff.training.checkpoint import Checkpoints
from mlff.training.runlog import Silence
from mlff.training.step import initial_state, make_step
from mlff.training.task import Task
from mlff.training.train import prepare
from mlff.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
STARTS, STRUCTURES, EPOCHS = 4, 100, 4


def settings(channels: int, count: int) -> tuple[Config, Splits]:
    options = {"max_hours": "null", "epochs": EPOCHS + 1, "batch_size": 5, "starts": count, "tensorboard": "false"}
    changes = [f"training.{name}={value}" for name, value in options.items()]
    changes += [f"data.n_train={STRUCTURES}", "data.test=null", "data.lint=off", f"model.channels={channels}"]
    changes += ["data.valid_fraction=0.2"]
    config = load_config(ROOT / "configs" / "malonaldehyde.yaml", changes)
    splits = load_data(config.data, config.seed, config.loss)
    return recipe.choose(config, splits.train)[0], splits


def steps(task: Task, rounds: int) -> dict[str, float]:
    """CPU milliseconds of a step of all starts."""
    graph, labels = jax.device_put(task.train.build(*task.train.plan(None)[0]))
    controls = np.array([0.1, 1.0, 0.0], np.float32)
    every = np.broadcast_to(controls, (STARTS, 3)).copy()
    one, ordered = make_step(task.objective, task.config), make_step(task.objective, task.config, starts=STARTS)
    with patch.object(jax, "default_backend", lambda: "another"):
        at_once = make_step(task.objective, task.config, starts=STARTS)
    states = [initial_state(task.config, task.params) for _ in range(STARTS)]
    together = [starts.side_by_side(states) for _ in range(2)]

    def separate() -> None:
        for k in range(STARTS):
            states[k], report = one(states[k], controls, graph, labels)
            jax.block_until_ready(report)

    def joint(number: int, function) -> None:
        together[number], report = function(together[number], every, graph, labels)
        jax.block_until_ready(report)

    cases = {
        "four programs": separate,
        "one after another": lambda: joint(0, ordered),
        "all at once": lambda: joint(1, at_once),
    }
    for run in cases.values():
        run()
    begin = time.process_time()
    separate()
    repeats = max(1, round(0.2 / (time.process_time() - begin)))
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            begin = time.process_time()
            for _ in range(repeats):
                run()
            found[name].append((time.process_time() - begin) / repeats * 1e3)
    return {name: round(float(np.median(times)), 2) for name, times in found.items()}


def epochs(task: Task) -> list[float]:
    """CPU seconds of each epoch but the first, which compiles."""
    times, original = [], Trainer._train_epoch

    def timed(self: Trainer) -> None:
        begin = time.process_time()
        original(self)
        times.append(time.process_time() - begin)

    with tempfile.TemporaryDirectory() as out, Checkpoints(Path(out) / "checkpoints") as saved:
        with patch.object(Trainer, "_train_epoch", timed):
            Trainer(task, saved, Silence(Path(out), False), {}).fit()
    return times[1:]


def compare(channels: int, rounds: int) -> dict:
    """The figures of one size of model."""
    tasks = {count: prepare(*settings(channels, count)) for count in (1, STARTS)}
    step = steps(tasks[1], rounds)
    found: dict[int, list[float]] = {count: [] for count in tasks}
    for _ in range(2):
        for count, task in tasks.items():
            found[count] += epochs(task)
    four, together = STARTS * float(np.median(found[1])), float(np.median(found[STARTS]))
    epoch = {"four times one start": round(four, 3), "four starts": round(together, 3), "ratio": round(together / four, 3)}
    ratios = {name: round(value / step["four programs"], 3) for name, value in step.items()}
    return {"step_ms": step, "step_ratio": ratios, "epoch_s": epoch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "starts.json")
    arguments = parser.parse_args()
    set_up_process()
    use_compilation_cache()
    content = {"machine": machine(), "starts": STARTS}
    for channels in arguments.channels:
        content[f"{channels} channels"] = compare(channels, arguments.rounds)
        print(json.dumps(content[f"{channels} channels"]), flush=True)
    arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
