"""All derivatives of one energy by reverse mode, forward mode and finite differences; writes results/reverse_mode.json and a picture.

    python scripts/benchmarks/reverse_mode.py [--directions 2499] [--out FILE] [--plot FILE]

A cluster of 833 silicon atoms (2,499 coordinates), the default model with random weights in float32, one thread. Forward mode
carries several directions at once; the number that is fastest is found first. With fewer `--directions` the first so many
derivatives are timed and the time of all is scaled from them, which the results say. CPU seconds without compilation; memory is
what the compiled program says that it needs besides its inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("PJRT_NPROC", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
from ase.build import bulk
from machine import machine

from mlff.basics import compiler
from mlff.config.options import ACE
from mlff.graph import Graph
from mlff.models import registry
from mlff.models.common import Statistics
from mlff.models.parameters import initial_params
from mlff.potential.potential import Potential

ROOT = Path(__file__).resolve().parents[2]
ATOMS = 833
AT_ONCE = (1, 8)  #: directions that forward mode carries
STEP = 1e-3  #: Å, of the finite differences: float32 has seven digits


def cluster() -> tuple[Potential, Graph]:
    """The atoms nearest to the center of a silicon crystal, displaced by some 0.05 Å, and the default model."""
    atoms = bulk("Si", cubic=True).repeat(7)
    atoms.pbc = False
    order = np.linalg.norm(atoms.positions - atoms.positions.mean(axis=0), axis=1).argsort(kind="stable")
    atoms = atoms[order[:ATOMS]]
    atoms.set_cell(None)
    atoms.rattle(0.05, seed=0)
    config, statistics = ACE(), Statistics(1.0, 20.0, (-4.0,))
    params = initial_params(registry.build(config, (14,), statistics), seed=0)
    potential = Potential(config, params, (14,), {14: 0.0}, statistics)
    return potential, potential.graph_of(atoms)


def compiled(function, *arguments):
    """A program, and the MiB that it needs."""
    program = jax.jit(function, compiler_options=compiler.quick()).lower(*arguments).compile()
    sizes = program.memory_analysis()
    return program, round((sizes.temp_size_in_bytes + sizes.output_size_in_bytes) / 2**20, 1)


def seconds(function, repeats: int = 3) -> float:
    """CPU seconds of a call, the least of some."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        jax.block_until_ready(function())
        times.append(time.process_time() - begin)
    return min(times)


def measure(directions: int) -> dict:
    """The rows."""
    potential, graph = cluster()
    params, start = potential.device_params, jnp.asarray(graph.positions)
    count = start.size

    def energy(params, positions):
        return jnp.sum(potential.energy(params, graph._replace(positions=positions)))

    rows = {}
    value, mib = compiled(energy, params, start)
    rows["energy"] = {"cpu_s": seconds(lambda: value(params, start)), "program_mib": mib}
    reverse, mib = compiled(jax.value_and_grad(energy, argnums=1), params, start)
    rows["reverse mode"] = {"cpu_s": seconds(lambda: reverse(params, start)), "program_mib": mib, "passes": 1}
    gradient = np.asarray(reverse(params, start)[1]).ravel()

    def slopes(params, positions, vectors):
        return jax.vmap(lambda v: jax.jvp(lambda x: energy(params, x), (positions,), (v,))[1])(vectors)

    best = None
    for size in AT_ONCE:
        basis = jnp.eye(count, dtype=start.dtype)[:size].reshape(size, -1, 3)
        program, mib = compiled(slopes, params, start, basis)
        each = seconds(lambda program=program, basis=basis: program(params, start, basis), 2) / size
        print(f"forward mode, {size} directions at once: {each:.4f} s each, {mib} MiB", flush=True)
        if best is None or each < best[0]:
            best = each, size, program, mib
    _, size, program, mib = best
    chosen = list(range(0, min(directions, count) // size * size, size)) or [0]
    found, begin = [], time.process_time()
    for first in chosen:
        vectors = jnp.zeros((size, count), start.dtype).at[jnp.arange(size), first + jnp.arange(size)].set(1.0)
        found.append(np.asarray(program(params, start, vectors.reshape(size, -1, 3))))
    spent, done = time.process_time() - begin, len(chosen) * size
    off = float(np.abs(np.concatenate(found) - gradient[:done]).max())
    rows["forward mode"] = scaled(spent, done, count, mib, off) | {"at_once": size}
    found, begin = [], time.process_time()
    for k in range(min(directions, count)):
        moved = np.asarray(start).ravel().copy()
        ends = []
        for side in (1, -1):
            moved[k] = np.asarray(start).ravel()[k] + side * STEP
            ends.append(float(value(params, moved.reshape(-1, 3))))
        found.append((ends[0] - ends[1]) / (2 * STEP))
    spent, done = time.process_time() - begin, len(found)
    rows["finite differences"] = scaled(
        spent, done, count, rows["energy"]["program_mib"], np.abs(found - gradient[:done]).max()
    )
    for row in rows.values():
        row["cpu_s"] = round(row["cpu_s"], 4)
        row["over_energy"] = round(row["cpu_s"] / rows["energy"]["cpu_s"], 2)
        row["over_reverse"] = round(row["cpu_s"] / rows["reverse mode"]["cpu_s"], 2)
    shape = {"atoms": ATOMS, "coordinates": count, "neighbours": int(graph.neighbors.shape[1])}
    return shape | {"model": repr(potential), "rows": rows, "largest_derivative": float(np.abs(gradient).max())}


def scaled(spent: float, done: int, count: int, mib: float, off: float) -> dict:
    """A row of a method that takes one direction after the other."""
    return {
        "cpu_s": spent * count / done,
        "program_mib": mib,
        "directions_timed": done,
        "directions": count,
        "largest_difference_ev_per_angstrom": float(off),
    }


def plot(content: dict, file: Path) -> None:
    """Time and memory as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 2.4), layout="constrained", sharey=True)
    names = list(content["rows"])[::-1]
    for ax, key, title in ((axes[0], "cpu_s", "CPU time, s"), (axes[1], "program_mib", "memory, MiB")):
        values = [content["rows"][name][key] for name in names]
        bars = ax.barh(names, values, color=["#8a8f98" if name == "energy" else "#3f51b5" for name in names])
        ax.bar_label(bars, [f"{value:.3g}" for value in values], padding=2, fontsize=8)
        ax.set(xscale="log", title=title)
        ax.set_xlim(right=max(values) * 4)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directions", type=int, default=3 * ATOMS, help="derivatives that are timed; default: all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "reverse_mode.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "reverse_mode.png")
    arguments = parser.parse_args()
    content = {"machine": machine()} | measure(arguments.directions)
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    plot(content, arguments.plot)
    print(json.dumps(content["rows"], indent=1))


if __name__ == "__main__":
    main()
