"""What large systems take: time and memory per atom from a thousand atoms to a million; writes results/large.json.

    python scripts/benchmarks/large.py [--sizes 1000 10000 100000 1000000] [--presets fast default] [--out FILE]

Copper, displaced by 0.05 Å, with about 43 neighbours of each atom within 5 Å (44 slots), and models with random weights, on
which neither time nor memory depends: `fast` is the model of `configs/fast.yaml`, `default` the default one. Energy, forces
and stress, in one piece and in chunks, each in a process of its own, which says what its stages took: the search for
neighbours, the arrays of the graph, the first call (with compilation), the later ones. Memory is resident memory; "grown"
is the peak less what the process had before the structure was made. More than 110,000 atoms are not tried in one piece. Rows
that FILE has already stay as they are: stopped and started again, it continues.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import ase
import numpy as np
from ase.build import bulk

PRESETS = {"fast": {"channels": 16, "l_max": 2, "l_message": 1}, "default": {}}
ONE_PIECE = 110_000  #: atoms up to which one piece is tried
CALLS, SECONDS = 3, 60.0  #: calls that are timed, at most; and after so long no other


def cells(atoms: int) -> int:
    """Cubic cells along each edge of a cube of about so many atoms."""
    return round((atoms / 4) ** (1 / 3))


def copper(atoms: int) -> ase.Atoms:
    """A cube of about so many atoms."""
    crystal = bulk("Cu", cubic=True).repeat(cells(atoms))
    crystal.rattle(0.05, seed=0)
    return crystal


def resident(peak: bool = False) -> int:
    """Bytes of resident memory, or their peak so far."""
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(preset: str, size: int, way: str) -> dict:
    """One row; in a process of its own."""
    import jax

    from mlff.config import options
    from mlff.data.batching import make_graph, make_sample
    from mlff.data.structure import Structure
    from mlff.models import registry
    from mlff.models.common import Statistics
    from mlff.models.parameters import initial_params
    from mlff.potential import compiled
    from mlff.potential.potential import Potential

    config, statistics = options.ACE(**PRESETS[preset]), Statistics(0.3, 42.0, (-3.5,), inner_cutoff=(1.8,))
    params = initial_params(registry.build(config, (29,), statistics), 0)
    potential = Potential(config, params, (29,), {29: 0.0}, statistics)
    compiled._LARGE = 0 if way == "chunks" else float("inf")
    row, before = {"preset": preset, "way": way}, resident()

    def stage(name: str, function):
        cpu, wall = time.process_time(), time.perf_counter()
        result = function()
        spent = time.process_time() - cpu, time.perf_counter() - wall
        row[name] = {
            "cpu_s": round(spent[0], 2),
            "wall_s": round(spent[1], 2),
            "grown_mib": round((resident(peak=True) - before) / 2**20),
        }
        return result

    structure = Structure.from_atoms(copper(size))
    row["atoms"] = len(structure)
    sample = stage("neighbours", lambda: make_sample(structure, config.cutoff, reverse=way == "one piece"))
    graph = stage("arrays", lambda: jax.device_put(make_graph([sample], sample.sizes, potential.dtype)))
    row["slots"] = graph.neighbors.shape[1]
    sample = structure = None
    first = stage("first_call", lambda: jax.device_get(potential.compute(graph, stress=True)))
    row["energy"], row["rms_force"] = float(first.energies.sum(dtype=float)), float(np.sqrt(np.mean(first.forces**2)))
    row["pressure"] = float(np.trace(first.stress[0]))
    calls, begin = [], time.perf_counter()
    while len(calls) < CALLS and (not calls or time.perf_counter() - begin < SECONDS):
        cpu, wall = time.process_time(), time.perf_counter()
        jax.block_until_ready(potential.compute(graph, stress=True))
        calls.append((time.process_time() - cpu, time.perf_counter() - wall))
    for place, clock in enumerate(("cpu", "wall")):
        row[f"{clock}_us_per_atom"] = round(1e6 * min(call[place] for call in calls) / row["atoms"], 1)
    row["peak_gib"] = round(resident(peak=True) / 2**30, 2)
    row["grown_bytes_per_atom"] = round((resident(peak=True) - before) / row["atoms"])
    row["chunk"] = list(potential.programs._chunks.values())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--ways", nargs="+", choices=("one piece", "chunks"), default=["one piece", "chunks"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "large.json")
    parser.add_argument("--one", nargs=3, metavar=("PRESET", "SIZE", "WAY"), help="one row, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        preset, size, way = arguments.one
        print(json.dumps(measure(preset, int(size), way)))
        return
    rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"] if arguments.out.exists() else []
    for preset in arguments.presets:
        for size in arguments.sizes:
            for way in arguments.ways:
                wanted = preset, way, len(bulk("Cu", cubic=True)) * cells(size) ** 3
                if any((row["preset"], row["way"], row["atoms"]) == wanted for row in rows):
                    continue
                if way == "one piece" and size > ONE_PIECE:
                    continue
                command = [sys.executable, __file__, "--one", preset, str(size), way]
                done = subprocess.run(
                    command, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
                )
                lines = done.stdout.splitlines() if done.returncode == 0 else done.stderr.splitlines()
                row = json.loads(lines[-1]) if done.returncode == 0 else {"preset": preset, "atoms": wanted[2], "way": way}
                rows.append(row if done.returncode == 0 else row | {"failed": lines[-1]})
                print(rows[-1], flush=True)
                write(arguments.out, rows)
    print(arguments.out)


def write(file: Path, rows: list[dict]) -> None:
    """Also how many atoms of each preset 20 GiB would hold, extrapolated from the growth between its two largest sizes."""
    from machine import machine

    largest = {}
    for preset in PRESETS:
        mine = sorted((row["atoms"], row["peak_gib"]) for row in rows if row["preset"] == preset and row["way"] == "chunks")
        if len(mine) > 1 and mine[-1][1] > mine[-2][1]:
            (fewer, less), (more, most) = mine[-2:]
            largest[preset] = int(more + (20 - most) * (more - fewer) / (most - less))
    content = {"machine": machine(), "extrapolated_atoms_in_20_gib": largest, "rows": rows}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
