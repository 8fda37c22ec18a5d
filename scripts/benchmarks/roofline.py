#!/usr/bin/env python3
"""What a step needs on paper against what the machine reaches: energy, energy and forces, and a training step, per stage.

    .venv/bin/python scripts/benchmarks/roofline.py FILE.xyz --set model.channels=32 --core 0

FILE holds labelled structures; the first batch of them is computed again and again. Floating-point operations and bytes
are counted in the traced program (the jaxpr): 2 MNK for a matrix product, one per element for any other operation; bytes are
the operands and results of matrix products, gathers, scatters and reductions, each read or written once, as if all else were
fused into them. The machine's rates are measured in the same run: a float32 matrix product of 1,024 x 1,024 and a copy of an
array that does not fit into the caches, and of one that does. What is attainable in a stage is the larger of operations over
the product's rate and bytes over the copy's (from memory: pessimistic where the caches hold the arrays). The time of a stage
is its share in a profile of the compiled program, which tells the stage of each operation by name, times the time of a step
without the profiler. A fused operation counts where its last part belongs.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
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

METHODS = {"radial_features": "radial", "products": "products", "update": "mixing", "readout": "mixing"}
SHAPES = ("reshape", "transpose", "broadcast_in_dim", "squeeze", "slice", "concatenate", "convert_element_type")
MOVES = ("gather", "scatter", "scatter-add", "dynamic_slice")


def stage(scope: str) -> str:
    """The stage an operation belongs to, by the names of the functions it stands in."""
    methods = re.findall(r"ACE\.(\w+)", scope)
    if not methods:
        return "geometry, loss" if "ACE" in scope or "jvp" in scope else "optimizer"
    if methods[0] != "density":
        return METHODS.get(methods[0], "mixing")
    if "contraction" in scope:
        return "contraction"
    if "linear" in scope:
        return "radial"  # the product that gives the radial weights, by far the largest there
    return "gather, message"


def count(jaxpr, scope: str = "") -> dict[str, Counter]:
    """Operations and bytes per stage of a jaxpr, those inside it included."""
    total: dict[str, Counter] = defaultdict(Counter)
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        here = f"{scope}/{eqn.source_info.name_stack}"
        inner = [value for value in eqn.params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
        if inner:
            for value in inner:
                for key, counts in count(getattr(value, "jaxpr", value), here).items():
                    total[key] += counts
            continue
        outs = sum(_size(v) for v in eqn.outvars)
        ins = sum(_size(v) for v in eqn.invars)
        counts = total[stage(here)]
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = int(np.prod([eqn.invars[0].aval.shape[axis] for axis in contracted]))
            counts["flops"] += 2 * outs * depth
            counts["product_flops"] += 2 * outs * depth
        elif name.startswith(("reduce_", "cumsum", "argmax")):
            counts["flops"] += ins
        elif name not in (*SHAPES, *MOVES):
            counts["flops"] += outs
        if name == "dot_general" or name.startswith("reduce_") or name in MOVES:
            counts["bytes"] += 4 * (outs + (outs if name in MOVES else ins))
    return total


def _size(variable) -> int:
    return int(np.prod(getattr(variable.aval, "shape", ())))


def rates() -> dict[str, float]:
    """What the machine reaches: GFLOP/s of a matrix product, GB/s (read and written) of copies."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(1024, 1024)), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    found = {"product_gflops": 2 * 1024**3 / _seconds(lambda: product(a), 20) / 1e9}
    for name, size in (("memory", 2**26), ("cache", 2**17)):
        source = np.ones(size, np.float32)
        target = np.empty_like(source)
        found[f"copy_{name}_gbs"] = 8 * size / _seconds(lambda s=source, t=target: np.copyto(t, s), 20) / 1e9
    return {key: round(value, 1) for key, value in found.items()}


def _seconds(function, calls: int) -> float:
    """Median CPU seconds of a call."""
    times = []
    for number in range(calls + 3):
        start = time.process_time()
        jax.block_until_ready(function())
        if number >= 3:
            times.append(time.process_time() - start)
    return float(np.median(times))


def times_as_long(second, first, args, calls: int, options: dict, rounds: int = 5) -> float:
    """CPU seconds of `second` in those of `first`: both in turn, the median over rounds."""
    programs = [jax.jit(function, compiler_options=options).lower(*args).compile() for function in (second, first)]
    spent = [[_seconds(lambda p=program: p(*args), calls) for program in programs] for _ in range(rounds)]
    return float(np.median([long / short for long, short in spent]))


def profile(compiled, call, calls: int) -> Counter:
    """Seconds per stage in a profile of `calls` calls."""
    scopes = {}
    for line in compiled.as_text().splitlines():
        found = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = \S+ [\w\-]+\(", line)
        if found:
            scope = re.search(r'op_name="([^"]*)"', line)
            scopes[found[1]] = scope[1] if scope else ""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(call())
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
        seconds: Counter = Counter()
        for plane in data.planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in scopes:
                        seconds[stage(scopes[event.name])] += event.duration_ns / 1e9
    return seconds


def measure(name: str, function, args, rate: dict, calls: int, options: dict, donated: bool = False) -> dict:
    """One program: its stages on paper and in time."""
    counts = count(
        jax.make_jaxpr(inspect.unwrap(function))(*args).jaxpr
    )  # a program with options of the compiler is not to be traced
    jitted = function if donated else jax.jit(function, compiler_options=options)
    compiled = jitted.lower(*args).compile()
    state = [jax.tree.map(jnp.copy, args[0])]

    def call():
        if not donated:
            return compiled(*args)
        state[0], report = compiled(state[0], *args[1:])
        return report

    spent = _seconds(call, calls)
    shares = profile(compiled, call, max(3, calls // 4))
    whole = sum(shares.values())
    rows = {}
    for key in sorted(counts.keys() | shares.keys()):
        flops, moved = counts[key]["flops"], counts[key]["bytes"]
        attainable = max(flops / rate["product_gflops"], moved / rate["copy_memory_gbs"]) / 1e9
        rows[key] = {
            "mflop": round(flops / 1e6, 2),
            "of_it_products": round(counts[key]["product_flops"] / 1e6, 2),
            "mb": round(moved / 1e6, 2),
            "attainable_ms": round(1e3 * attainable, 3),
            "ms": round(1e3 * spent * shares[key] / whole, 3),
        }
    attainable = sum(row["attainable_ms"] for row in rows.values())
    flops = sum(row["mflop"] for row in rows.values())
    return {
        "program": name,
        "ms": round(1e3 * spent, 3),
        "mflop": round(flops, 1),
        "gflops": round(flops / 1e3 / spent, 1),
        "attainable_ms": round(attainable, 3),
        "reached": round(attainable / (1e3 * spent), 3),
        "stages": rows,
    }


def table(content: dict) -> str:
    """Markdown."""
    lines = ["| program, stage | MFLOP (in products) | MB | attainable ms | ms | reached |", "|---|---|---|---|---|---|"]
    for row in content["programs"]:
        lines.append(
            f"| **{row['program']}** | {row['mflop']} | | {row['attainable_ms']} | {row['ms']} | {row['reached']:.0%} |"
        )
        for name, part in row["stages"].items():
            reached = f"{part['attainable_ms'] / part['ms']:.0%}" if part["ms"] else ""
            paper = f"{part['mflop']} ({part['of_it_products']}) | {part['mb']} | {part['attainable_ms']}"
            lines.append(f"| {name} | {paper} | {part['ms']} | {reached} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="options of mlff's config")
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "roofline.json")
    args = parser.parse_args()
    pin(args.core)
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.yaml"
        data = {"train": str(args.file.resolve()), "reference_energies": "least_squares"}
        given.write_text(json.dumps({"data": data}), encoding="utf-8")
        config = load_config(given, args.set)
        task = prepare(config, load_data(config.data, config.seed, config.loss))
    graph, labels = task.train.build(*task.train.plan(None)[0])
    params = task.params

    def energy(params, graph):
        return predict(lambda g: task.apply(params, g), graph, forces=False).energy

    def forces(params, graph):
        return predict(lambda g: task.apply(params, g), graph)[:2]

    step = make_step(task.objective, config)
    rate = rates()
    quick = compiler.quick()
    training = (initial_state(config, params), np.array([0.5, 1.0, 0.0], graph.positions.dtype), graph, labels)
    programs = [
        measure("energy", energy, (params, graph), rate, args.calls, quick),
        measure("energy and forces", forces, (params, graph), rate, args.calls, quick),
        measure("training step", step, training, rate, args.calls, {}, donated=True),
    ]
    content = {
        "machine": machine(),
        "rates": rate,
        "model": config.model.model_dump(),
        "batch": {
            "structures": int(labels.weight.size),
            "atoms": len(graph.atomic_numbers),
            "slots": graph.neighbors.shape[1],
            "pairs": int(graph.neighbor_mask.sum()),
        },
        "forces_over_energy": round(times_as_long(forces, energy, (params, graph), args.calls, quick), 2),
        "programs": programs,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"rates: {rate}; energy and forces cost {content['forces_over_energy']} times the energy")
    print(table(content))


if __name__ == "__main__":
    main()
