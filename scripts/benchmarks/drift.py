"""How well energy is kept without a thermostat: drift over long runs, and the exponent of the error; writes results/drift.json.

    python scripts/benchmarks/drift.py malonaldehyde MODEL [--share 1.0] [--out FILE]
    python scripts/benchmarks/drift.py silicon MODEL [--share 1.0] [--out FILE]

MODEL is trained on `data/malonaldehyde` or `data/silicon`. NVE in float32 at about 300 K (from rest with velocities of 600 K):
1 ns of malonaldehyde, or 100 ps of 216 silicon atoms (times --share), added to what the file has. The drift is the slope of a straight line through the
means of 20 blocks of the total energy, with its standard error from what the blocks are off the line. In float64, the root mean
square of the total energy's error over 200 fs at steps of 0.125 to 1 fs, and the slope of its logarithm.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("PJRT_NPROC", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ase
import ase.io
import numpy as np
from ase.build import bulk
from machine import machine

from mlff.interfaces.ase import MLFFCalculator
from mlff.potential.potential import Potential
from mlff.simulation.md import run_md
from mlff.simulation.relax import relax
from mlff.simulation.velocities import maxwell_boltzmann

ROOT = Path(__file__).resolve().parents[2]
KELVIN, BLOCKS = 300.0, 20
RUNS = {"malonaldehyde": ((0.5, 1000.0), (0.25, 250.0)), "silicon": ((1.0, 100.0),)}  #: fs, ps
EXPONENT_STEPS = (0.125, 0.25, 0.5, 1.0)  #: fs


def energies(potential: Potential, atoms: ase.Atoms, timestep: float, steps: int, interval: int) -> tuple:
    """Times (ps) and total energies (meV/atom) of a run without a thermostat, and its summary."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "nve.jsonl"
        options = {
            "timestep": timestep,
            "steps": steps,
            "interval": interval,
            "log": log,
            "engine": "jax",
            "progress": False,
        }
        summary = run_md(atoms.copy(), MLFFCalculator(potential), ensemble="nve", keep_velocities=True, **options)
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    totals = np.array([line["etot_ev"] for line in lines]) * 1e3 / len(atoms)
    return np.array([line["time_ps"] for line in lines]), totals, summary


def drift(times: np.ndarray, totals: np.ndarray) -> tuple[float, float]:
    """Slope and its standard error, meV/atom/ps, from the means of blocks."""
    size = len(times) // BLOCKS
    x, y = (values[-size * BLOCKS :].reshape(BLOCKS, size).mean(axis=1) for values in (times, totals))
    slope, level = np.polyfit(x, y, 1)
    off = y - slope * x - level
    return float(slope), float(np.sqrt(np.sum(off**2) / (BLOCKS - 2) / np.sum((x - x.mean()) ** 2)))


def long_run(potential: Potential, atoms: ase.Atoms, timestep: float, picoseconds: float) -> dict:
    """A row of the drift."""
    steps = round(picoseconds * 1e3 / timestep)
    begin = time.perf_counter()
    times, totals, summary = energies(potential, atoms, timestep, steps, max(1, steps // 20_000))
    slope, error = drift(times, totals)
    return {
        "atoms": len(atoms),
        "timestep_fs": timestep,
        "time_ps": summary.time_ps,
        "drift_mev_atom_ps": slope,
        "standard_error": error,
        "fluctuation_mev_atom": float(totals.std()),
        "temperature_k": summary.temperature_mean,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def exponent(potential: Potential, atoms: ase.Atoms) -> dict:
    """Of the error of the total energy over the step, in float64."""
    errors = []
    for timestep in EXPONENT_STEPS:
        _, totals, _ = energies(potential.with_precision("float64"), atoms, timestep, round(200 / timestep), 1)
        errors.append(float(totals.std()))
    slope = float(np.polyfit(np.log(EXPONENT_STEPS), np.log(errors), 1)[0])
    return {"timesteps_fs": EXPONENT_STEPS, "errors_mev_atom": errors, "exponent": slope}


def start(name: str) -> ase.Atoms:
    """The structure that is simulated."""
    if name == "silicon":
        return bulk("Si", cubic=True) * (3, 3, 3)
    return ase.io.read(ROOT / "data" / "malonaldehyde" / "test_300K.xyz", index=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RUNS)
    parser.add_argument("model", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the simulated times")
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "benchmarks" / "results" / "drift.json")
    arguments = parser.parse_args()
    potential, atoms = Potential.load(arguments.model), start(arguments.name)
    relax(atoms, MLFFCalculator(potential), fmax=0.05, cell=bool(atoms.pbc.all()), progress=False)
    maxwell_boltzmann(atoms, 2 * KELVIN, np.random.default_rng(0))
    scale = np.sqrt(2 * KELVIN * (1 - 1 / len(atoms)) / atoms.get_temperature())
    atoms.set_momenta(atoms.get_momenta() * scale)
    row = {"machine": machine(), "model": repr(potential), "exponent": exponent(potential, atoms), "runs": []}
    for timestep, picoseconds in RUNS[arguments.name]:
        row["runs"].append(long_run(potential, atoms, timestep, picoseconds * arguments.share))
        print(arguments.name, json.dumps(row["runs"][-1]), flush=True)
        found = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
        arguments.out.write_text(json.dumps(found | {arguments.name: row}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
