"""What a step of molecular dynamics takes: the bare model, the compiled engine, replicas, ASE's loop; writes results/md.json.

    python scripts/benchmarks/md.py MALONALDEHYDE SILICON [--steps 1000] [--rounds 9] [--out FILE]

MALONALDEHYDE and SILICON are models trained on `data/malonaldehyde` and `data/silicon`. All runs are Langevin dynamics at 300 K
with one thread. "bare" is energy and forces in a compiled loop, with the shapes of the engine; of replicas a step is one step
of one of them. CPU and wall milliseconds a step, medians of rounds in which all take turns; on a busy machine believe the CPU ones.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("PJRT_NPROC", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ase
import ase.io
import jax
import numpy as np
from ase.build import bulk
from ase.md.langevin import Langevin
from machine import machine

from mlff.basics import compiler
from mlff.basics.units import FEMTOSECOND
from mlff.interfaces.ase import MLFFCalculator
from mlff.potential import derivatives, device_list
from mlff.potential.potential import Potential
from mlff.simulation.guard import Guard, Limits
from mlff.simulation.md import run_md
from mlff.simulation.replicas import Replicas
from mlff.simulation.settings import Settings
from mlff.simulation.velocities import maxwell_boltzmann

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(temperature=300.0, timestep=0.5)


class Task(NamedTuple):
    """What takes steps, and how many of them in one round."""

    run: Callable[[], object]
    steps: int
    copies: int = 1


def measure(tasks: dict[str, Task], rounds: int) -> dict[str, dict[str, float]]:
    """CPU and wall time of a step of one copy in ms: medians of rounds in which all tasks take turns."""
    spent = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            cpu, wall = time.process_time(), time.perf_counter()
            task.run()
            spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    medians = {name: np.median(values, axis=0) for name, values in spent.items()}
    return {
        name: {
            kind: round(1e3 * value / tasks[name].steps / tasks[name].copies, 4)
            for kind, value in zip(("cpu_ms", "wall_ms"), medians[name], strict=True)
        }
        for name in tasks
    }


def start(potential: Potential, atoms: ase.Atoms, seed: int) -> ase.Atoms:
    """Atoms at 300 K."""
    copy = atoms.copy()
    maxwell_boltzmann(copy, SETTINGS.temperature, np.random.default_rng(seed))
    copy.calc = MLFFCalculator(potential)
    return copy


def replicas(potential: Potential, atoms: ase.Atoms, count: int) -> Replicas:
    """Ready to go on."""
    copies = [start(potential, atoms, seed) for seed in range(count)]
    guards = [Guard(copy, Limits(), SETTINGS.temperature, 3 * len(atoms) - 3) for copy in copies]
    return Replicas(copies, [SETTINGS] * count, guards, list(range(count)), [3 * len(atoms) - 3] * count)


def engine(potential: Potential, atoms: ase.Atoms, count: int, steps: int) -> tuple[Task, Replicas, float]:
    """The compiled engine, where it is, and how long its first call took, s."""
    made = replicas(potential, atoms, count)

    def run(more: int) -> None:
        last = made.members[0].step + more
        while made.members[0].step < last:
            made.advance(last - made.members[0].step)
        assert not any(member.error for member in made.members)

    begin = time.perf_counter()
    made.advance(1)
    first = time.perf_counter() - begin
    run(20)
    return Task(lambda: run(steps), steps, count), made, round(first, 2)


def bare(potential: Potential, made: Replicas, steps: int) -> Task:
    """Energy and forces again and again, in one compiled loop."""
    plan, system = made._plan, made._system
    with jax.enable_x64(True):
        cell = made.host.cell
        box = cell if all(plan.search.pbc) else np.broadcast_to(system.box, cell.shape)
        graph = device_list.graph_at(plan.search, made._listed, system.numbers, made.host.positions, cell, box)

    def loop(params, graph, steps):
        def step(_, positions):
            said = derivatives.predict(
                functools.partial(potential.energy, params),
                graph._replace(positions=positions),
                stress=all(plan.search.pbc),
            )
            return positions + 1e-9 * said.forces

        return jax.lax.fori_loop(0, steps, step, graph.positions)

    program = jax.jit(loop, compiler_options=compiler.quick())
    jax.block_until_ready(program(potential.device_params, graph, 5))
    return Task(lambda: jax.block_until_ready(program(potential.device_params, graph, steps)), steps)


def by_ase(potential: Potential, atoms: ase.Atoms, steps: int) -> Task:
    """ASE's own Langevin with the calculator."""
    copy = start(potential, atoms, 0)
    dynamics = Langevin(copy, SETTINGS.timestep * FEMTOSECOND, temperature_K=300.0, friction=0.01 / FEMTOSECOND, fixcm=False)
    potential.programs.steady = True
    dynamics.run(50)
    return Task(lambda: dynamics.run(steps), steps)


def command(potential: Potential, atoms: ase.Atoms, engine: str, steps: int, folder: Path) -> Task:
    """`run_md` with trajectory and log, a frame every 10 steps; compiled before."""
    files = {"trajectory": folder / "md.traj", "log": folder / "md.jsonl"}

    def run():
        run_md(atoms.copy(), MLFFCalculator(potential), steps=steps, engine=engine, progress=False, **files)

    run()
    return Task(run, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("malonaldehyde", type=Path, metavar="MALONALDEHYDE")
    parser.add_argument("silicon", type=Path, metavar="SILICON")
    parser.add_argument("--steps", type=int, default=1000, help="of one round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "md.json")
    arguments = parser.parse_args()
    systems = {
        "malonaldehyde, 9 atoms": (arguments.malonaldehyde, ase.io.read(ROOT / "data/malonaldehyde/test_300K.xyz", 0), 1),
        "silicon, 64 atoms": (arguments.silicon, bulk("Si", cubic=True).repeat(2), 5),
    }
    rows = {}
    for name, (file, atoms, share) in systems.items():
        potential, steps = Potential.load(file, verify=False), arguments.steps // share
        one, made, first = engine(potential, atoms, 1, steps)
        many, _, first_of_many = engine(potential, atoms, 64, max(10, steps // 40))
        tasks = {"engine": one, "bare": bare(potential, made, steps), "ase_langevin": by_ase(potential, atoms, steps)}
        tasks["64_replicas"] = many
        for kind in ("jax", "ase"):
            tasks[f"run_md_{kind}"] = command(potential, atoms, kind, steps, arguments.out.parent)
        rows[name] = {"model": repr(potential), "first_call_s": {"engine": first, "64_replicas": first_of_many}}
        rows[name] |= measure(tasks, arguments.rounds)
        print(name, rows[name], flush=True)
    for file in ("md.traj", "md.jsonl", "md.state.npz", "md.run.json"):
        (arguments.out.parent / file).unlink(missing_ok=True)
    content = {"machine": machine(), "unit": "ms per step of one copy", "rows": rows}
    arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
