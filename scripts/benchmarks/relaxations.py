"""Relaxation of many molecules side by side and one by one; writes results/relaxations.json.

    python scripts/benchmarks/relaxations.py MODEL [--count 200] [--alone 20] [--out FILE]

MODEL is one of malonaldehyde (configs/malonaldehyde.yaml). The structures are clusters of one to four of its molecules, 9 to 36
atoms, from dynamics at 600 K. One by one (ASE's BFGS, the choice of `mlff relax` for one structure) only every tenth of them
is relaxed. Compilation is left out: a few steps of each are run before.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import ase
import numpy as np
from ase.io import read
from machine import machine

from mlff import MLFFCalculator
from mlff.simulation.relax import relax
from mlff.simulation.relaxations import relax_many

DATA = Path(__file__).parents[2] / "data" / "malonaldehyde" / "test_600K.xyz"
FMAX = 0.02  #: eV/Å


def clusters(count: int) -> list[ase.Atoms]:
    """One to four molecules each, the centres 7 Å apart."""
    frames = read(DATA, ":")
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        whole = ase.Atoms()
        for place in range(rng.integers(1, 5)):
            part = frames[rng.integers(len(frames))].copy()
            part.positions += [7.0 * place, 0, 0] - part.positions.mean(axis=0)
            whole += ase.Atoms(part.numbers, part.positions)
        found.append(whole)
    return found


def side_by_side(structures: list[ase.Atoms], calculator: MLFFCalculator, steps: int = 500) -> dict:
    """Time and results of all of them in batches."""
    copies = [atoms.copy() for atoms in structures]
    return _row(copies, lambda: [r for _, r in relax_many(copies, calculator, fmax=FMAX, steps=steps, progress=False)])


def one_by_one(structures: list[ase.Atoms], calculator: MLFFCalculator, optimizer: str, steps: int = 500) -> dict:
    """The same through ASE."""
    copies = [atoms.copy() for atoms in structures]
    options = {"fmax": FMAX, "optimizer": optimizer, "steps": steps, "progress": False}
    return _row(copies, lambda: [relax(atoms, calculator, **options) for atoms in copies])


def _row(copies: list[ase.Atoms], work) -> dict:
    begin, cpu = time.perf_counter(), time.process_time()
    results = work()
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {
        "structures": len(copies),
        "wall_s": round(wall, 2),
        "cpu_s": round(cpu, 2),
        "structures_per_s": round(len(copies) / wall, 2),
        "structures_per_cpu_s": round(len(copies) / cpu, 2),
        "converged": sum(result.converged for result in results),
        "steps_mean": round(float(np.mean([result.steps for result in results])), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--alone", type=int, default=20, help="structures that are relaxed one by one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "relaxations.json")
    arguments = parser.parse_args()
    structures, calculator = clusters(arguments.count), MLFFCalculator(arguments.model)
    some = structures[:: max(1, len(structures) // arguments.alone)]
    calculator.potential.programs.steady = True  # no hasty programs
    side_by_side(structures, calculator, steps=5)
    one_by_one(some, calculator, "bfgs", steps=1)
    rows = {"side by side, FIRE": side_by_side(structures, calculator)}
    for optimizer in ("bfgs", "fire"):
        rows[f"one by one, ASE's {optimizer.upper()}"] = one_by_one(some, calculator, optimizer)
    for name, row in rows.items():
        print(f"{name}: {row}", flush=True)
    content = {"machine": machine(), "fmax_ev_per_a": FMAX, "model": repr(calculator.potential), "rows": rows}
    arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
