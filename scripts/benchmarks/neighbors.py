"""Neighbour lists: mlff's own entry point, vesin, matscipy and ASE; writes results/neighbors.json.

    python scripts/benchmarks/neighbors.py [--repeats 5] [--out FILE]

Full lists within 5 Å. CPU milliseconds per call, median. The number of pairs is compared, too.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import ase
import matscipy.neighbours
import numpy as np
import vesin
from ase.build import bulk, molecule
from ase.neighborlist import primitive_neighbor_list
from machine import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mlff.data.neighbors import neighbor_list

CUTOFF = 5.0
SLOW = 2000  #: atoms above which ASE is asked once only


def systems() -> dict[str, ase.Atoms]:
    """A molecule, and silicon from a primitive cell to 8,000 atoms, rattled."""
    silicon = bulk("Si", cubic=True)
    found = {"ethanol, 9 atoms": molecule("CH3CH2OH"), "silicon, 2 atoms": bulk("Si")}
    found |= {f"silicon, {8 * n**3:,} atoms": silicon.repeat(n) for n in (2, 3, 5, 10)}
    droplet = silicon.repeat(5)
    droplet.pbc = False
    found["silicon, 1,000 atoms, not periodic"] = droplet
    for atoms in found.values():
        atoms.rattle(0.05, seed=0)
    return found


def with_mlff(atoms: ase.Atoms) -> int:
    return len(neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)[0])


def with_vesin(atoms: ase.Atoms) -> int:
    calculator = vesin.NeighborList(cutoff=CUTOFF, full_list=True, sorted=True, n_threads=1)
    return len(calculator.compute(points=atoms.positions, box=atoms.cell.array, periodic=atoms.pbc, quantities="ijS")[0])


def with_matscipy(atoms: ase.Atoms) -> int:
    cell = atoms.cell.array if atoms.cell.rank == 3 else np.diag(np.ptp(atoms.positions, axis=0) + 1)
    search = matscipy.neighbours.neighbour_list
    return len(search("ijS", positions=atoms.positions, cell=cell, pbc=atoms.pbc, cutoff=CUTOFF)[0])


def with_ase(atoms: ase.Atoms) -> int:
    return len(primitive_neighbor_list("ijS", atoms.pbc, atoms.cell.array, atoms.positions, CUTOFF)[0])


LIBRARIES = {"mlff": with_mlff, "vesin": with_vesin, "matscipy": with_matscipy, "ase": with_ase}


def milliseconds(function, atoms: ase.Atoms, repeats: int) -> float:
    """Median CPU time of a call; short calls are repeated to 20 ms and more."""
    start = time.process_time()
    function(atoms)
    once = time.process_time() - start
    if len(atoms) > SLOW and once > 1:
        return round(1e3 * once, 1)
    count = max(1, int(0.02 / max(once, 1e-5)))
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(count):
            function(atoms)
        times.append((time.process_time() - start) / count)
    return round(1e3 * float(np.median(times)), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "neighbors.json")
    arguments = parser.parse_args()
    rows, table = {}, Table("system", "pairs", *(f"{name}, ms" for name in LIBRARIES))
    for name, atoms in track(systems().items(), "neighbour lists"):
        pairs = {library: function(atoms) for library, function in LIBRARIES.items()}
        if len(set(pairs.values())) > 1:
            raise SystemExit(f"{name}: the libraries do not agree on the number of pairs: {pairs}")
        times = {library: milliseconds(function, atoms, arguments.repeats) for library, function in LIBRARIES.items()}
        rows[name] = {"atoms": len(atoms), "pairs": pairs["mlff"], "cpu_ms": times}
        table.add_row(name, f"{pairs['mlff']:,}", *(f"{value:.3g}" for value in times.values()))
    Console(width=110).print(table)
    versions = {name: version(name) for name in ("vesin", "matscipy", "ase")}
    content = {"machine": machine(), "libraries": versions, "cutoff_angstrom": CUTOFF, "rows": rows}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
