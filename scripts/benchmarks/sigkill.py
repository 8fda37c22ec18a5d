#!/usr/bin/env python3
"""Kill training and molecular dynamics with SIGKILL at random moments, start them again, compare with a run left alone.

    .venv/bin/python scripts/benchmarks/sigkill.py --kills 20 [--seed 0] [--json results.json]

Checkpoints and states are written as often as possible (every epoch, every record), so that kills hit writes too. A
run passes if, restarted, its weights and metrics (times apart) or its trajectory, log and last state are bitwise those
of the run left alone. Exit code 1 unless all pass.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import machine
from rich.progress import track
from safetensors.numpy import load_file

DATA = Path(__file__).parents[2] / "data" / "malonaldehyde"
DRIVER = (
    "import mlff.training.trainer as trainer, mlff.simulation.driver as driver; trainer.OFTEN = driver.SAVE_EVERY = 0.0; "
    "from mlff.cli import main; main()"
)
CONFIG = """
data: {train: train.xyz}
model: {cutoff: 4.0, channels: 8, layers: 1, correlation: 2}
training: {epochs: 60, batch_size: 5, tensorboard: false}
"""


class Job:
    """A command that writes into `folder`: how it is started, started again, and what it leaves."""

    def __init__(self, name: str, first: Callable, again: Callable, content: Callable[[Path], dict]):
        self.name, self.first, self.again, self.content = name, first, again, content


def start(folder: Path, arguments: list) -> subprocess.Popen:
    command = [sys.executable, "-c", DRIVER, *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, error = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"error: {error.strip()}")


def training(folder: Path) -> Job:
    def arguments(name: str) -> list:
        return ["train", folder / "config.yaml", "--out", name, "--no-certify", "--quiet"]

    def content(out: Path) -> dict:
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        metrics = [{key: value for key, value in line.items() if "second" not in key} for line in lines]
        weights = load_file(out / "model.safetensors")
        return {"metrics": metrics, "weights": {name: array.tobytes() for name, array in weights.items()}}

    return Job("training", arguments, arguments, content)


def dynamics(folder: Path, model: Path) -> Job:
    def arguments(name: str, *more) -> list:
        (folder / name).mkdir(exist_ok=True)
        options = ["--ensemble", "nvt", "--timestep", 0.2, "--max-temperature", 1e6, "--steps", 5000, "--interval", 5]
        return ["md", model, folder / "train.xyz", "--frame", 0, *options, "--quiet", "--out", f"{name}/md.xyz", *more]

    def again(name: str) -> list:
        return arguments(name, "--restart" if (folder / name / "md.state.npz").exists() else "--force")

    def content(out: Path) -> dict:
        with np.load(out / "md.state.npz") as state:
            last = {name: state[name].tobytes() for name in state.files}
        return {"trajectory": (out / "md.xyz").read_bytes(), "log": (out / "md.jsonl").read_bytes(), "state": last}

    return Job("dynamics", arguments, again, content)


def kill(job: Job, folder: Path, kills: int, dice: random.Random) -> list[dict]:
    """Kill and restart `kills` runs; what became of each."""
    finish(start(folder, job.first("warm_up")))  # fills the compilation cache
    begun = time.monotonic()
    finish(start(folder, job.first("alone")))
    seconds = time.monotonic() - begun
    expected, rows = job.content(folder / "alone"), []
    for number in track(range(kills), job.name):
        name = f"killed_{number}"
        moment = dice.uniform(0.15, 1.0) * seconds
        process = start(folder, job.first(name))
        time.sleep(moment)
        process.kill()
        process.communicate()
        left = sorted(str(path.relative_to(folder / name)) for path in (folder / name).rglob("*") if "tmp" in path.name)
        finish(start(folder, job.again(name)))
        same = job.content(folder / name) == expected
        rows.append({"job": job.name, "killed_after_s": round(moment, 2), "unfinished_writes": left, "bitwise_equal": same})
        shutil.rmtree(folder / name)
    print(f"{job.name}: {sum(row['bitwise_equal'] for row in rows)} of {kills} bitwise equal (a run takes {seconds:.1f} s)")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of training, and as many of dynamics")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    dice = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.xyz").write_text("".join((DATA / "train.xyz").read_text().splitlines(keepends=True)[: 60 * 11]))
        (folder / "config.yaml").write_text(CONFIG)
        rows = kill(training(folder), folder, args.kills, dice)
        model = (folder / "alone").rename(folder / "model") / "model.safetensors"
        shutil.rmtree(folder / "warm_up")
        rows += kill(dynamics(folder, model), folder, args.kills, dice)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "runs": rows}, indent=1) + "\n")
    return 0 if all(row["bitwise_equal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
