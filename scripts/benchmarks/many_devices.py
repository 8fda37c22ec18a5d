#!/usr/bin/env python3
"""Training on one device and on two: structures per second; writes results/many_devices.json.

    .venv/bin/python scripts/benchmarks/many_devices.py [--rounds 3] [--epochs 4] [--config FILE] [--out FILE]

A device is a process on one core with one thread; two of them meet over loopback. Cases: one device with the batch of one,
one with a batch twice as large, two that share the latter. Each process trains the model of the config (32 channels) on
256 structures at most, as `mlff train` does, batches included; the first epoch, which compiles, does not count. Figures:

    strong: time of a large batch on one device / (2 x time of it on two)
    weak:   time of the batch of one device / time of the large one on two

From wall-clock time, and from CPU time of the process that took most (without waiting for the other: what is left is what
sums over devices and equal shapes cost). On a machine that others use believe the CPU time. Cases alternate; medians over
epochs, then rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import machine

ROOT = Path(__file__).resolve().parents[2]
CASES = {
    "one, batch": (1, 1),
    "one, twice the batch": (1, 2),
    "two, twice the batch": (2, 2),
}  #: devices, batches of one device


def work(config_file: str, out: str, devices: int, batch: int, epochs: int) -> None:
    """One process: prints wall-clock and CPU seconds of each epoch after the first, and its structures."""
    from mlff.basics.runtime import use_compilation_cache
    from mlff.config.load import load_config
    from mlff.training.train import train
    from mlff.training.trainer import Trainer

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("JAX_PROCESS_ID", "0")) % len(cores)]})
    rows, original = [], Trainer._train_epoch

    def timed(self: Trainer) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        original(self)
        rows.append([time.perf_counter() - wall, time.process_time() - cpu])

    Trainer._train_epoch = timed
    use_compilation_cache()
    options = {"max_hours": "null", "epochs": epochs + 1, "batch_size": batch, "devices": devices, "tensorboard": "false"}
    changes = [f"training.{name}={value}" for name, value in options.items()]
    changes += ["data.n_train=256", "data.test=null", "data.lint=off", "model.channels=32"]
    train(load_config(Path(config_file), changes), out, progress=False)
    print(json.dumps(rows[1:]))


def launch(config: Path, devices: int, batch: int, epochs: int) -> np.ndarray:
    """(processes, epochs, 2): wall-clock and CPU seconds."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    environment = os.environ | {
        "PJRT_NPROC": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    with tempfile.TemporaryDirectory() as out:
        job = json.dumps([str(config), f"{out}/run", devices, batch, epochs])
        running = []
        for index in range(devices):
            own = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(devices), "JAX_PROCESS_ID": str(index)}
            command = [sys.executable, __file__, "--worker", job]
            running.append(subprocess.Popen(command, env=environment | own, stdout=subprocess.PIPE, text=True))
        printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a training failed")
    return np.array([json.loads(text.splitlines()[-1]) for text in printed])


def summarize(rounds: list[dict[str, np.ndarray]]) -> dict:
    """Seconds per epoch of each case, and the efficiencies."""
    summary = {}
    for number, clock in enumerate(("wall", "cpu")):
        times = [
            {case: float(np.median(rows[..., number].max(axis=0))) for case, rows in round_.items()} for round_ in rounds
        ]
        alone, large, shared = CASES
        summary[clock] = {
            "seconds_per_epoch": {case: round(float(np.median([one[case] for one in times])), 3) for case in CASES},
            "strong": round(float(np.median([one[large] / (2 * one[shared]) for one in times])), 3),
            "weak": round(float(np.median([one[alone] / (2 * one[shared]) for one in times])), 3),
        }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "malonaldehyde.yaml")
    parser.add_argument("--batch", type=int, default=8, help="structures of a step on one device")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="that count")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "many_devices.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(*json.loads(arguments.worker))
        return
    rounds = []
    for _ in range(arguments.rounds):
        rounds.append(
            {
                case: launch(arguments.config, devices, batches * arguments.batch, arguments.epochs)
                for case, (devices, batches) in CASES.items()
            }
        )
        print(json.dumps(summarize(rounds)), flush=True)
        setup = {
            "config": arguments.config.name,
            "batch": arguments.batch,
            "rounds": len(rounds),
            "epochs": arguments.epochs,
        }
        content = {
            "machine": machine(),
            "setup": setup,
            **summarize(rounds),
        }  # written after each round: what is there stays
        arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
