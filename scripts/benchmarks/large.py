"""What large systems take: time and memory per atom from a thousand atoms to a million; writes results/large.json.

    python scripts/benchmarks/large.py [--sizes 1000 10000 100000 1000000] [--presets fast default] [--out FILE]
    python scripts/benchmarks/large.py --ways search engines "jax engine" "ase engine" --presets fast --sizes 4000 11000 100000

Copper, displaced by 0.05 Å, with about 43 neighbours of each atom within 5 Å (44 slots), and models with random weights, on
which neither time nor memory depends: `fast` is the model of `configs/fast.yaml`, `default` the default one. Energy, forces
and stress, in one piece and in chunks, each in a process of its own, which says what its stages took: the search for
neighbours, the arrays of the graph, the first call (with compilation), the later ones. Memory is resident memory; "grown"
is the peak less what the process had before the structure was made. More than 110,000 atoms are not tried in one piece.

"jax engine" and "ase engine" are steps of dynamics without a thermostat at 300 K, 2 fs each, with a skin of 0.5 Å, by the two
engines of `mlff md`, searches for neighbours within; "engines" both in one process, in turn: believe that on a busy machine.
"search" is one search by the host and one on the device.
Rows that FILE has already stay as they are: stopped and started again, it continues.
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
WAYS = ("one piece", "chunks", "search", "engines", "jax engine", "ase engine")
SKIN = 0.5  #: Å
STEPS, ATOM_STEPS, ROUNDS = (
    20,
    400_000,
    4,
)  #: steps of dynamics that are timed, at most; in all, times atoms; in so many parts
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


def random_potential(preset: str):
    """A model with random weights for copper."""
    from mlff.config import options
    from mlff.models import registry
    from mlff.models.common import Statistics
    from mlff.models.parameters import initial_params
    from mlff.potential.potential import Potential

    config, statistics = options.ACE(**PRESETS[preset]), Statistics(0.3, 42.0, (-3.5,), inner_cutoff=(1.8,))
    params = initial_params(registry.build(config, (29,), statistics), 0)
    return Potential(config, params, (29,), {29: 0.0}, statistics)


def spent(function) -> tuple[float, float, object]:
    """CPU and wall seconds that it takes, and what it returns."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def measure(preset: str, size: int, way: str) -> dict:
    """One row; in a process of its own."""
    potential, crystal = random_potential(preset), copper(size)
    row = {"preset": preset, "way": way, "atoms": len(crystal)}
    if way == "search":
        return row | measure_search(potential, crystal)
    if "engine" in way:
        return row | measure_dynamics(potential, crystal, ["jax", "ase"] if way == "engines" else way.split()[:1])
    return row | measure_calls(potential, crystal, way)


def measure_search(potential, crystal: ase.Atoms) -> dict:
    """µs of CPU time per atom of a search by the host and of one on the device, with and without reverse pairs."""
    import functools

    import jax

    from mlff.basics import compiler
    from mlff.potential import capacity, device_list
    from mlff.potential.capacity import Search
    from mlff.potential.neighborlist import VerletList

    host = VerletList(potential.cutoff, SKIN, potential.dtype)
    geometry = crystal.numbers, crystal.positions, crystal.cell.array, crystal.pbc
    seconds = {"host": min(spent(lambda: host.build(*geometry))[0] for _ in range(2))}
    search = Search((True,) * 3, potential.cutoff, SKIN, potential.dtype)
    room = capacity.allocate(search, crystal.positions, crystal.cell.array)
    with jax.enable_x64(True):
        geometry = crystal.positions[None], crystal.cell.array[None], crystal.cell.array[None]
        for name, chunk in (("device", 512), ("device_with_reverse", 0)):
            build = functools.partial(device_list.build, search, room._replace(chunk=chunk))
            program = jax.jit(build, compiler_options=compiler.quick())
            seconds[f"{name}_first"] = spent(lambda program=program: jax.block_until_ready(program(*geometry)))[0]
            seconds[name] = min(
                spent(lambda program=program: jax.block_until_ready(program(*geometry)))[0] for _ in range(3)
            )
    grid = {"grid": room.grid, "occupants": room.occupants, "slots": room.neighbors}
    return grid | {f"{name}_us_per_atom": round(1e6 * value / len(crystal), 2) for name, value in seconds.items()}


def measure_dynamics(potential, crystal: ase.Atoms, names: list[str]) -> dict:
    """Steps of NVE by one or both engines of `mlff md`, in turn: CPU and wall ms a step, of all steps and of the fastest round."""
    from mlff.interfaces.ase import MLFFCalculator
    from mlff.simulation.ase_engine import make_engine
    from mlff.simulation.guard import Guard, Limits
    from mlff.simulation.jax_engine import JaxEngine
    from mlff.simulation.settings import Settings
    from mlff.simulation.velocities import maxwell_boltzmann

    settings, freedom = Settings(ensemble="nve", temperature=300.0, timestep=2.0), 3 * len(crystal) - 3
    maxwell_boltzmann(crystal, settings.temperature, np.random.default_rng(0))
    potential.programs.steady, engines = True, {}
    for name in names:
        atoms = crystal.copy()
        atoms.calc = MLFFCalculator(potential, skin=SKIN)
        atoms.calc.always_stress = name == "jax"
        guard = Guard(atoms, Limits(drift=1e9, temperature=1e9), settings.temperature, freedom)
        if name == "jax":
            engines[name] = JaxEngine(atoms, settings, guard, 0, freedom)
        else:
            engines[name] = make_engine(atoms, settings, guard, np.random.default_rng(0), freedom)

    def advance(engine, steps: int) -> None:
        last = engine.step + steps
        while engine.step < last:
            engine.advance(last - engine.step)

    row, steps = {}, max(1, min(STEPS, ATOM_STEPS // len(crystal)) // ROUNDS)
    for name, engine in engines.items():
        row[f"{name}_start_cpu_s"] = round(spent(lambda engine=engine: advance(engine, 2))[0], 2)
    rounds = [
        {name: spent(lambda engine=engine: advance(engine, steps))[:2] for name, engine in engines.items()}
        for _ in range(ROUNDS)
    ]
    for name in engines:
        for place, clock in enumerate(("cpu", "wall")):
            taken = [1e3 * each[name][place] / steps for each in rounds]
            row[f"{name}_{clock}_ms_per_step"] = round(float(np.mean(taken)), 2)
            row[f"{name}_{clock}_ms_per_step_lowest"] = round(min(taken), 2)
    row |= {"steps": steps * ROUNDS, "peak_gib": round(resident(peak=True) / 2**30, 2)}
    if "jax" in engines:
        row["room"] = engines["jax"]._replicas._plan.room._asdict()
    if "ase" in engines:
        row["ase_searches"] = engines["ase"].atoms.calc.rebuilds
    return row


def measure_calls(potential, crystal: ase.Atoms, way: str) -> dict:
    """Energy, forces and stress, stage by stage."""
    import jax

    from mlff.data.batching import make_graph, make_sample
    from mlff.data.structure import Structure
    from mlff.potential import compiled

    compiled._LARGE = 0 if way == "chunks" else float("inf")
    row, before, atoms = {}, resident(), len(crystal)

    def stage(name: str, function):
        cpu, wall, result = spent(function)
        row[name] = {"cpu_s": round(cpu, 2), "wall_s": round(wall, 2)}
        row[name]["grown_mib"] = round((resident(peak=True) - before) / 2**20)
        return result

    structure = Structure.from_atoms(crystal)
    sample = stage("neighbours", lambda: make_sample(structure, potential.cutoff, reverse=way == "one piece"))
    graph = stage("arrays", lambda: jax.device_put(make_graph([sample], sample.sizes, potential.dtype)))
    row["slots"] = graph.neighbors.shape[1]
    sample = structure = None
    first = stage("first_call", lambda: jax.device_get(potential.compute(graph, stress=True)))
    row["energy"], row["rms_force"] = float(first.energies.sum(dtype=float)), float(np.sqrt(np.mean(first.forces**2)))
    row["pressure"] = float(np.trace(first.stress[0]))
    calls, begin = [], time.perf_counter()
    while len(calls) < CALLS and (not calls or time.perf_counter() - begin < SECONDS):
        calls.append(spent(lambda: jax.block_until_ready(potential.compute(graph, stress=True)))[:2])
    for place, clock in enumerate(("cpu", "wall")):
        row[f"{clock}_us_per_atom"] = round(1e6 * min(call[place] for call in calls) / atoms, 1)
    row["peak_gib"] = round(resident(peak=True) / 2**30, 2)
    row["grown_bytes_per_atom"] = round((resident(peak=True) - before) / atoms)
    row["chunk"] = list(potential.programs._chunks.values())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS[:2])
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
