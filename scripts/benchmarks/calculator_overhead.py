"""What the ASE calculator adds to the compiled potential, per MD step; writes results/calculator_overhead.json.

    python scripts/benchmarks/calculator_overhead.py [--steps 1000] [--out FILE]

"step" moves all atoms a little and asks for forces and energy, "bare" is the compiled call alone with the result on the
host, "overhead" the difference. CPU and wall microseconds; on a busy machine believe the CPU ones.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from ase.build import bulk, molecule
from machine import machine

from mlff.config.options import ACE, LennardJones, SchNet
from mlff.interfaces.ase import MLFFCalculator
from mlff.models import registry
from mlff.models.parameters import initial_params
from mlff.potential.potential import Potential

BASELINE = {1: -13.6, 6: -1035.0, 8: -2043.0, 14: -7885.0}
SYSTEMS = {"ethanol, 9 atoms": molecule("CH3CH2OH"), "silicon, 64 atoms": bulk("Si", cubic=True).repeat(2)}
MODELS = {"lennard_jones": LennardJones(sigma=1.0), "schnet": SchNet(), "ace": ACE()}


def per_call(function, count: int) -> dict[str, float]:
    """Mean CPU and median wall time of one call, µs."""
    walls = []
    begin = time.process_time()
    for _ in range(count):
        start = time.perf_counter()
        function()
        walls.append(time.perf_counter() - start)
    return {
        "cpu_us": round(1e6 * (time.process_time() - begin) / count, 1),
        "wall_us": round(1e6 * float(np.median(walls)), 1),
    }


def measure(potential: Potential, atoms, steps: int) -> dict:
    """One row: bare call, whole step, neighbour search."""
    calculator = MLFFCalculator(potential)
    atoms = atoms.copy()
    atoms.calc = calculator
    start = time.perf_counter()
    atoms.get_forces()
    first = time.perf_counter() - start
    jump = np.random.default_rng(0).normal(0, 0.002, atoms.positions.shape)
    sign = [1]

    def step():
        sign[0] = -sign[0]
        atoms.positions += sign[0] * jump
        atoms.get_forces()
        atoms.get_potential_energy()

    graph = calculator._list.graph_at(atoms.positions)

    def bare():
        prediction = potential.compute(graph)
        np.asarray(prediction.energies), np.asarray(prediction.forces)

    geometry = atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc
    for function in (step, bare):
        per_call(function, 20)
    row = {"first_call_s": round(first, 2), "shape": list(graph.neighbors.shape)}
    row |= {"bare": per_call(bare, steps), "step": per_call(step, steps)}
    row["overhead"] = {key: round(row["step"][key] - row["bare"][key], 1) for key in row["bare"]}
    row["neighbour_search"] = per_call(lambda: calculator._list.build(*geometry), 50)
    return row | {"rebuilds": calculator.rebuilds - 50, "compilations": calculator.compilations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "calculator_overhead.json")
    arguments = parser.parse_args()
    rows = {}
    for name, config in MODELS.items():
        params = initial_params(registry.build(config, tuple(BASELINE)), seed=0)
        potential = Potential(config, params, tuple(BASELINE), BASELINE)
        for system, atoms in SYSTEMS.items():
            rows[f"{name}, {system}"] = row = measure(
                potential, atoms, arguments.steps if name == "lennard_jones" else arguments.steps // 5
            )
            print(f"{name}, {system}: step {row['step']}, overhead {row['overhead']}", flush=True)
    content = {"machine": machine(), "unit": "microseconds per call", "rows": rows}
    arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
