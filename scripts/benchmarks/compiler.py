#!/usr/bin/env python3
"""What XLA's fusions into its CPU library (YNN) cost or gain: energy, energy and forces, and a training step with each choice.

    .venv/bin/python scripts/benchmarks/compiler.py FILE.xyz --core 0

FILE holds labelled structures; the first batch of them is computed again and again. Choices: what this version of XLA does by
itself (`xla's default`), products by themselves (`products`, all that is handed over where the default is wrong), none (`none`). Each is compiled once; then
they are timed in turn, so that a busy machine does not favour one. CPU milliseconds, medians over the rounds. Run it with
each version of JAX: rows go into the JSON by version. Whether a program computes right is a matter for `mlff.basics.compiler`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from machine import machine

from mlff.basics import compiler
from mlff.config.load import load_config
from mlff.data.dataset import load_data
from mlff.potential.derivatives import predict
from mlff.training.step import initial_state, make_step
from mlff.training.train import prepare

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from launch import pin

CHOICES = {"xla's default": None, "products": compiler.PRODUCTS, "none": ""}


def programs(file: Path, options: list[str]) -> dict[str, tuple]:
    """Name -> (function, arguments)."""
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.yaml"
        data = {"train": str(file.resolve()), "reference_energies": "least_squares"}
        given.write_text(json.dumps({"data": data}), encoding="utf-8")
        config = load_config(given, options)
        task = prepare(config, load_data(config.data, config.seed, config.loss))
    graph, labels = task.train.build(*task.train.plan(None)[0])

    def energy(params, graph):
        return predict(lambda g: task.apply(params, g), graph, forces=False).energy

    def forces(params, graph):
        return predict(lambda g: task.apply(params, g), graph)[:2]

    step = make_step(task.objective, config).__wrapped__
    training = initial_state(config, task.params), np.array([0.5, 1.0], graph.positions.dtype), graph, labels
    two = task.params, graph
    return {"energy": (energy, two), "energy and forces": (forces, two), "training step": (step, training)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="options of mlff's config")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "compiler.json")
    args = parser.parse_args()
    pin(args.core)
    rows = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else []
    row = {"jax": jax.__version__, "file": args.file.name, "options": args.set, "machine": machine(), "cpu_ms": {}}
    for name, (function, arguments) in programs(args.file, args.set).items():
        compiled = {}
        for choice, fusions in CHOICES.items():
            options = compiler.quick() | ({} if fusions is None else {compiler.FUSIONS: fusions})
            if fusions is None:
                options.pop(compiler.FUSIONS, None)
            compiled[choice] = jax.jit(function, compiler_options=options).lower(*arguments).compile()
        spent: dict[str, list[float]] = {choice: [] for choice in CHOICES}
        for number in range(args.rounds + 1):
            for choice, program in compiled.items():
                start = time.process_time()
                for _ in range(args.calls):
                    jax.block_until_ready(program(*arguments))
                if number:
                    spent[choice].append(1000 * (time.process_time() - start) / args.calls)
        row["cpu_ms"][name] = {choice: round(float(np.median(times)), 3) for choice, times in spent.items()}
        print(jax.__version__, name, row["cpu_ms"][name], flush=True)
    key = {name: row[name] for name in ("jax", "file", "options")}
    rows = [old for old in rows if any(old[name] != value for name, value in key.items())] + [row]
    args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
