"""Free energy of the proton transfer in malonaldehyde; writes results/proton_transfer.json and .png.

    python scripts/benchmarks/proton_transfer.py MODEL [--work DIR] [--out FILE] [--short]

MODEL is trained on `data/malonaldehyde`. The variable is q = d(O1-H) - d(O2-H). Profiles: plain Langevin dynamics at 600 K (32 replicas in one
call), well-tempered metadynamics at 600 K and at 300 K (4 replicas each); all with a wall that keeps the oxygen atoms
together. Both are symmetric in q: "symmetry" is the largest difference of the two sides in units of its error.
The energy along the path: single points of the model on the images of the DFT path, and relaxations of the model at the
same q.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("PJRT_NPROC", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
from machine import machine
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.optimize import minimize

from mlff.basics.errors import MLFFError
from mlff.config.bias import make_bias
from mlff.interfaces.ase import MLFFCalculator
from mlff.potential.potential import Potential
from mlff.properties.free_energy import free_energy
from mlff.simulation.replica_run import replica_path, run_replicas

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "malonaldehyde"
VARIABLES = {
    "variables": {
        "q": {"kind": "difference_of_distances", "atoms": [0, 5, 4, 5]},
        "oo": {"kind": "distance", "atoms": [0, 4]},
    },
    "restraints": [{"variable": "oo", "upper": 2.9, "stiffness": 20.0}],
}
HILLS = {"variables": ["q"], "height": 0.005, "widths": [0.1], "every": 50, "bias_factor": 4.0}
LIMITS = -1.3, 1.3  #: Å
BINS = 39  #: odd: one in the middle
RUNS = {  #: replicas, steps of 0.5 fs, temperature, hills
    "plain, 600 K": (32, 8_000, 600.0, False),
    "metadynamics, 600 K": (4, 40_000, 600.0, True),
    "metadynamics, 300 K": (4, 40_000, 300.0, True),
}


def profile(potential: Potential, name: str, work: Path, shorter: int) -> dict:
    """The profile of one entry of `RUNS`."""
    count, steps, kelvin, hills = RUNS[name]
    raw = VARIABLES | ({"metadynamics": HILLS} if hills else {})
    log = work / f"{name.replace(', ', '_').replace(' ', '')}.jsonl"
    atoms = ase.io.read(DATA / "path.xyz", 0)
    cpu, wall = time.process_time(), time.perf_counter()
    options = {"temperature": kelvin, "steps": steps // shorter, "interval": 50, "progress": True}
    trajectory = log.with_suffix(".traj") if hills else None
    results = run_replicas(
        atoms, MLFFCalculator(potential), count, bias=make_bias(raw), log=log, trajectory=trajectory, **options
    )
    good = [index for index, result in enumerate(results) if not isinstance(result, MLFFError)]
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    logs = [replica_path(log, index) for index in good]
    found = free_energy(logs, "q", kelvin, bins=BINS, limits=LIMITS, skip=0.2 if hills else 0.1)
    row = found.to_dict() | {
        "replicas": count,
        "done": len(good),
        "steps_each": steps // shorter,
        "hills": HILLS if hills else None,
    }
    middle = BINS // 2
    side = int(np.nanargmin(found.energies))
    known = [k for k in range(middle) if np.isfinite(found.errors[k]) and np.isfinite(found.errors[-1 - k])]
    apart = [
        abs(found.energies[k] - found.energies[-1 - k]) / np.hypot(found.errors[k], found.errors[-1 - k]) for k in known
    ]
    both = 0.5 * (found.energies + found.energies[::-1])
    row |= {
        "barrier_mev": round(1e3 * float(both[middle] - np.nanmin(both)), 2),
        "barrier_error_mev": round(1e3 * float(found.errors[middle]), 2),
        "minimum_a": round(abs(float(found.values[side])), 3),
        "symmetry": round(float(max(apart, default=np.nan)), 2),
        "cpu_s": round(cpu, 1),
        "wall_s": round(wall, 1),
        "cpu_ms_per_step_of_one": round(1e3 * cpu / (steps // shorter) / count, 4),
    }
    if found.from_hills is not None:
        summed = 0.5 * (found.from_hills + found.from_hills[::-1])
        row["barrier_from_hills_mev"] = round(1e3 * float(summed[middle] - summed.min()), 2)
    print(name, {key: value for key, value in row.items() if not isinstance(value, list | dict)}, flush=True)
    return row


def energy_path(potential: Potential) -> dict:
    """meV along the DFT path: DFT, the model on its images, the model relaxed at the same q; at planar and at any geometry."""
    frames = ase.io.read(DATA / "path.xyz", ":")
    exact = potential.with_precision("float64")
    reference = np.array([frame.get_potential_energy() for frame in frames])
    points = np.array([result.energy for result in exact.predict(frames)])
    relaxed = np.array([_relaxed(exact, frame) for frame in frames])
    return {
        "q_a": [float(frame.info["q"]) for frame in frames],
        "dft_mev": (1e3 * (reference - reference.min())).round(3).tolist(),
        "model_mev": (1e3 * (points - points.min())).round(3).tolist(),
        "model_relaxed_mev": (1e3 * (relaxed - relaxed.min())).round(3).tolist(),
    }


def _relaxed(potential: Potential, frame: ase.Atoms) -> float:
    """eV, minimum of the potential with q held by a stiff restraint whose energy is taken off."""
    with jax.enable_x64(True):
        numbers, stiffness = frame.copy(), 500.0

        def q_of(x: np.ndarray) -> tuple[float, np.ndarray]:
            one, other = x[5] - x[0], x[5] - x[4]
            a, b = np.linalg.norm(one), np.linalg.norm(other)
            slope = np.zeros_like(x)
            slope[5], slope[0], slope[4] = one / a - other / b, -one / a, other / b
            return a - b, slope

        target = q_of(frame.positions)[0]

        def both(flat: np.ndarray):
            x = flat.reshape(-1, 3)
            numbers.positions = x
            said = potential.predict([numbers])[0]
            q, slope = q_of(x)
            energy = said.energy + 0.5 * stiffness * (q - target) ** 2
            return energy, (-said.forces + stiffness * (q - target) * slope).ravel()

        found = minimize(both, frame.positions.ravel(), jac=True, method="BFGS", options={"gtol": 2e-3, "maxiter": 200})
        numbers.positions = found.x.reshape(-1, 3)
        return float(jnp.asarray(potential.predict([numbers])[0].energy))


def draw(content: dict, path: Path) -> None:
    """Profiles with error bars, and the energy along the path."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, row), color in zip(content["profiles"].items(), ("#4063d8", "#389826", "#cb3c33"), strict=True):
        values, energies, errors = (np.array(row[key], float) for key in ("values", "free_energy_ev", "error_ev"))
        left.errorbar(values, 1e3 * energies, 1e3 * np.nan_to_num(errors), color=color, lw=1, capsize=2, label=name)
        if row["from_hills_ev"] is not None:
            left.plot(
                values,
                1e3 * np.array(row["from_hills_ev"], float),
                color=color,
                lw=1,
                ls="--",
                label=f"{name}, sum of hills",
            )
    left.set(xlabel="d(O1-H) - d(O2-H) (Å)", ylabel="free energy (meV)", title="free energy", ylim=(-10, 260))
    steps = content["path"]
    right.plot(steps["q_a"], steps["dft_mev"], "ko", label="PBE0-D3")
    right.plot(steps["q_a"], steps["model_mev"], "-", color="#4063d8", label="model, same structures")
    right.plot(steps["q_a"], steps["model_relaxed_mev"], "--", color="#cb3c33", label="model, relaxed")
    right.set(xlabel="d(O1-H) - d(O2-H) (Å)", ylabel="energy (meV)", title="energy along the path")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=7)
        axes.grid(color="0.9")
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--work", type=Path, default=Path("build/proton_transfer"), help="folder for logs and trajectories")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "proton_transfer.json")
    parser.add_argument("--short", action="store_true", help="a hundredth of the steps, to try it out")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    potential = Potential.load(arguments.model)
    content = {"machine": machine(), "model": repr(potential), "unit": "eV, Å unless the name says otherwise"}
    content["path"] = energy_path(potential)
    shorter = 100 if arguments.short else 1
    content["profiles"] = {name: profile(potential, name, arguments.work, shorter) for name in RUNS}
    arguments.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    draw(content, arguments.out.with_suffix(".png"))
    print(arguments.out)


if __name__ == "__main__":
    main()
