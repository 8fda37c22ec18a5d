"""What every runner shares: one request in, one answer out; the clock; baseline, errors, timing. Needs numpy and ASE only.

A runner `run_NAME.py` is started in its peer's own environment with one JSON object on standard input and prints one
JSON line, the last one, on standard output. Three tasks:

train  {"task": "train", "train": FILE, "valid": FILE, "tests": {NAME: FILE}, "seconds": BUDGET,
        "clock": "wall" or "cpu", "started": TIME, "out": FOLDER, "seed": 0, "dynamics": see `dynamics.py` (may be left out)}
       -> {"model", "settings", "epochs", "parameters", "errors": {NAME: ...}, "train_wall_s", "train_cpu_s", "dynamics"}
prepare {"task": "prepare", "structure": FILE, "out": FOLDER} -> {}: a model file with random weights for such a structure
speed  {"task": "speed", "structure": FILE, "out": FOLDER, "started": TIME, "calls": COUNT, "seconds": LIMIT,
        "device": "cpu" or "gpu" (mlff and mace; without it, cpu)}
       -> {"settings", "atoms", "calculator", "bare", "first_force_s", "peak_memory_mib"}

TIME is time.time() just before the process was started, so that starting Python and importing count. Files are extended
XYZ in eV and Å. Energies of errors are meV of a structure, forces meV/Å.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback

import numpy as np
from ase.io import read


def serve(train, prepare, speed) -> None:
    """Read the request, call the function of that name, print the answer; what it prints goes to stderr."""
    request = json.loads(sys.stdin.read())
    answer, sys.stdout = sys.stdout, sys.stderr
    keep = os.dup(1)
    os.dup2(2, 1)  # programs below Python print too
    try:
        result = {"train": train, "prepare": prepare, "speed": speed}[request["task"]](request) or {}
    except Exception as error:
        traceback.print_exc()
        result = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
    result["peak_memory_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    os.dup2(keep, 1)
    print(json.dumps(result), file=answer, flush=True)
    os._exit(0)  # libraries that hang at exit are no part of the measurement


class Clock:
    """The budget of a training run, from the start of the process on: wall time, or CPU time on a machine that others use."""

    def __init__(self, request: dict):
        self.started, self.seconds, self.cpu = request["started"], request["seconds"], request["clock"] == "cpu"

    def used(self) -> float:
        """Seconds of the budget that are used."""
        return cpu_seconds() if self.cpu else time.time() - self.started

    def share(self) -> float:
        """Share of the budget that is used, 0 to 1."""
        return min(1.0, self.used() / self.seconds)

    def left(self) -> float:
        """Seconds left, negative when over."""
        return self.seconds - self.used()

    def spent(self) -> dict:
        """Wall and CPU seconds so far."""
        return {"train_wall_s": round(time.time() - self.started, 1), "train_cpu_s": round(cpu_seconds(), 1)}


def cpu_seconds() -> float:
    """CPU seconds of this process and its children since they started."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def frames(file: str) -> list:
    """The structures of a file; energy and forces come with `labels`."""
    return read(file, ":")


def labels(atoms) -> tuple[float, np.ndarray]:
    """(energy eV, forces eV/Å) of a structure read from a file."""
    return atoms.calc.results["energy"], atoms.calc.results["forces"]


def least_squares(structures: list) -> dict[int, float]:
    """Energy per element (eV) that fits total energies best; of many solutions the smallest. All peers take off this one."""
    elements = sorted({int(z) for atoms in structures for z in atoms.numbers})
    counts = np.array([[np.sum(atoms.numbers == z) for z in elements] for atoms in structures], float)
    energies = np.array([labels(atoms)[0] for atoms in structures])
    return dict(zip(elements, np.linalg.lstsq(counts, energies, rcond=None)[0].tolist(), strict=True))


def baseline(atoms, per_element: dict[int, float]) -> float:
    """Sum of the energies per element, eV."""
    return float(sum(per_element[int(z)] for z in atoms.numbers))


def force_scale(structures: list) -> float:
    """Root mean square of the force components, eV/Å."""
    return float(np.sqrt(np.mean(np.concatenate([labels(atoms)[1].ravel() for atoms in structures]) ** 2)))


def errors(predict, tests: dict[str, str]) -> dict:
    """RMSE and MAE on each file; `predict(structures)` gives total energies (eV) and a list of forces (eV/Å)."""
    result = {}
    for name, file in tests.items():
        structures = frames(file)
        energies, forces = predict(structures)
        truth = [labels(atoms) for atoms in structures]
        wrong = 1000 * (np.asarray(energies, float).ravel() - np.array([energy for energy, _ in truth]))
        off = 1000 * np.concatenate([(np.asarray(f, float) - g).ravel() for f, (_, g) in zip(forces, truth, strict=True)])
        each = [np.sqrt(np.mean((1000 * (np.asarray(f, float) - g)) ** 2)) for f, (_, g) in zip(forces, truth, strict=True)]
        result[name] = {
            "structures": len(structures),
            "forces_rmse_of_structures": quantiles(each),
            "energy_rmse": round(float(np.sqrt(np.mean(wrong**2))), 2),
            "energy_mae": round(float(np.mean(np.abs(wrong))), 2),
            "forces_rmse": round(float(np.sqrt(np.mean(off**2))), 2),
            "forces_mae": round(float(np.mean(np.abs(off))), 2),
        }
    return result


def quantiles(each: list[float]) -> dict[str, float]:
    """Of the force RMSE of single structures (meV/Å): 50, 90, 99 %, the worst; share above 1 eV/Å."""
    each = np.nan_to_num(np.asarray(each, float), nan=np.inf)
    names = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "worst": 1.0}
    row = {name: float(f"{np.quantile(each, q, method='inverted_cdf'):.4g}") for name, q in names.items()}
    return row | {"above 1 eV/Å": round(float(np.mean(each > 1000)), 4)}


def time_calculator(request: dict, settings: str, make_calculator, make_bare) -> dict:
    """Answer of a speed task.

    `make_calculator(atoms)` gives an ASE calculator for such atoms. `make_bare(atoms, calculator)` gives a function without
    arguments: energy and forces of one fixed, prepared structure, the results on the host as NumPy arrays; or None.
    A call of the calculator moves all atoms by about 0.002 Å and asks for the forces, as a step of molecular dynamics does.
    """
    atoms = read(request["structure"])
    atoms.calc = calculator = make_calculator(atoms)
    atoms.get_forces()
    first = time.time() - request["started"]
    jump = np.random.default_rng(0).normal(0, 0.002, atoms.positions.shape)
    sign = [1]

    def step():
        sign[0] = -sign[0]
        atoms.positions += sign[0] * jump
        atoms.get_forces()

    bare = make_bare(atoms, calculator)
    answer = {"settings": settings, "atoms": len(atoms), "first_force_s": round(first, 2)}
    answer["calculator"] = per_call(step, request["calls"], request["seconds"])
    answer["bare"] = per_call(bare, request["calls"], request["seconds"]) if bare else None
    return answer


def per_call(function, calls: int, limit: float) -> dict[str, float]:
    """Median wall and CPU milliseconds of a call, after a tenth as many to warm up; fewer calls when `limit` seconds pass."""
    walls, cpus = [], []
    warm = max(1, calls // 10)
    begin = time.perf_counter()
    while len(walls) < calls + warm and (len(walls) <= warm or time.perf_counter() - begin < limit):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        cpus.append(1000 * (time.process_time() - cpu))
        walls.append(1000 * (time.perf_counter() - wall))
    return {
        "wall_ms": round(float(np.median(walls[warm:])), 3),
        "cpu_ms": round(float(np.median(cpus[warm:])), 3),
        "calls": len(walls) - warm,
    }
