"""Relaxation of many molecules, and of many crystals with their cells, side by side and one by one; writes results/relaxations.json.

    python scripts/benchmarks/relaxations.py MALONALDEHYDE SILICON [--count 200] [--cells 60] [--alone 20] [--out FILE]

Two models (configs/malonaldehyde.yaml, configs/silicon.yaml). The molecules are clusters of one to four of malonaldehyde, 9 to
36 atoms, from dynamics at 600 K; the crystals are silicon of 8 to 64 atoms, strained by up to 4 % and displaced by 0.05 Å. One
by one (by L-BFGS too, and by ASE's FIRE) only some of them are relaxed. Compilation is left
out: a few steps of each are run before.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import ase
import numpy as np
from ase.build import bulk
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


def crystals(count: int) -> list[ase.Atoms]:
    """Silicon, one to eight cubic cells each."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        atoms = bulk("Si", cubic=True).repeat(rng.integers(1, 3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.04, 0.04, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        found.append(atoms)
    return found


def side_by_side(structures: list[ase.Atoms], calculator: MLFFCalculator, **options) -> dict:
    """Time and results of all of them in batches."""
    copies, options = [atoms.copy() for atoms in structures], {"fmax": FMAX, "progress": False} | options
    return _row(copies, lambda: [result for _, result in relax_many(copies, calculator, **options)])


def one_by_one(structures: list[ase.Atoms], calculator: MLFFCalculator, **options) -> dict:
    """The same through ASE."""
    copies, options = [atoms.copy() for atoms in structures], {"fmax": FMAX, "progress": False} | options
    return _row(copies, lambda: [relax(atoms, calculator, **options) for atoms in copies])


def compare(model: Path, structures: list[ase.Atoms], alone: int, cell: bool) -> dict:
    """All side by side, and so many of them one by one."""
    calculator = MLFFCalculator(model)
    some = structures[:: max(1, len(structures) // alone)]
    calculator.potential.programs.steady = True  # no hasty programs
    side_by_side(structures, calculator, cell=cell, steps=5)
    one_by_one(some, calculator, cell=cell, steps=1)
    rows = {"side by side, L-BFGS": side_by_side(structures, calculator, cell=cell)}
    for optimizer, name in (("lbfgs", "L-BFGS"), ("fire", "ASE's FIRE")):
        rows[f"one by one, {name}"] = one_by_one(some, calculator, cell=cell, optimizer=optimizer)
    for name, row in rows.items():
        print(f"{name}: {row}", flush=True)
    return {"model": repr(calculator.potential), "rows": rows}


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
    parser.add_argument("malonaldehyde", type=Path)
    parser.add_argument("silicon", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--cells", type=int, default=60)
    parser.add_argument("--alone", type=int, default=20, help="structures that are relaxed one by one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "relaxations.json")
    arguments = parser.parse_args()
    found = {"molecules": compare(arguments.malonaldehyde, clusters(arguments.count), arguments.alone, cell=False)}
    found["crystals and their cells"] = compare(arguments.silicon, crystals(arguments.cells), arguments.alone, cell=True)
    content = {"machine": machine(), "fmax_ev_per_a": FMAX, **found}
    arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
