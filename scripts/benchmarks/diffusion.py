#!/usr/bin/env python3
"""Liquid argon: a model of a wrong method refined towards the self-diffusion coefficient of a better one, wrong data kept.

    .venv/bin/python scripts/benchmarks/liquid.py --work WORK
    .venv/bin/python scripts/benchmarks/diffusion.py --work WORK

The first command makes the data and the model (σ 2 % too small), and frames of the better method; both are Lennard-Jones
potentials. Rows: D of the better method from short runs, as the target has it, and from its mean-square displacement; D and errors
of forces before and after `mlff refine`; what was said about the noise. Writes scripts/benchmarks/results/diffusion.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from ase.io import read
from liquid import RUN, SIGMA, TEMPERATURE, errors, labelled, method
from machine import machine

from mlff import MLFFCalculator, Potential
from mlff.basics.runtime import use_compilation_cache
from mlff.config.observables import SelfDiffusion
from mlff.config.refinement import make_refinement
from mlff.properties.averages import block_error
from mlff.properties.frames import read_frames
from mlff.properties.motion import diffusion
from mlff.refinement.ensembles import Ensemble
from mlff.refinement.refine import refine
from mlff.refinement.transport import Diffusion
from mlff.simulation.md import run_md

RESULTS = Path(__file__).parent / "results" / "diffusion.json"


def of_short_runs(potential: Potential, target: dict, frames: list) -> tuple[float, float]:
    """D from these frames, and its error."""
    options = SelfDiffusion(**target)
    potential = potential.with_precision("float64")
    ensemble = Ensemble(options.sampling, potential, "float64", frames[0], 0)
    positions = np.array([frame.positions for frame in frames])
    momenta = np.zeros_like(positions[0])
    with potential.scope():
        ensemble.restore(
            {"positions": positions, "momenta": momenta, "exponents": np.zeros(len(frames)), "runs": np.array(1)}
        )
        values = Diffusion(options, ensemble, potential, "float64").runs.values(potential.device_params, ensemble)
    return float(values.mean()), block_error(values) or float(values.std() / np.sqrt(len(values)))


def of_long_run(potential: Potential, target: dict, frames: int) -> tuple[float, float]:
    """D of a model from more frames than a refinement takes, and its error."""
    options = SelfDiffusion(**target | {"sampling": target["sampling"] | {"frames": frames}})
    double = potential.with_precision("float64")
    ensemble = Ensemble(options.sampling, double, potential.precision, read(options.sampling.structure), 7)
    with double.scope():
        ensemble.sample(double.device_params)
        runs = Diffusion(options, ensemble, double, potential.precision).runs
        values = runs.values(double.device_params, ensemble)
    return float(values.mean()), block_error(values) or float(values.std() / np.sqrt(len(values)))


def of_displacements(potential: Potential, frames: list, work: Path) -> tuple[float, float]:
    """D from the mean-square displacements of runs of 30 ps at constant energy from these frames, and its error."""
    found = []
    for number, frame in enumerate(frames):
        file = work / f"displacement_{number}.traj"
        if not file.exists():
            calculator = MLFFCalculator(potential)
            run_md(
                frame.copy(),
                calculator,
                ensemble="nve",
                temperature=TEMPERATURE,
                timestep=10.0,
                steps=3000,
                interval=10,
                seed=number,
                trajectory=file,
                progress=False,
            )
        found.append(10 * diffusion(read_frames(file))[0].coefficient)
    return float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(len(found)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/liquid"), help="folder of scripts/benchmarks/liquid.py")
    parser.add_argument("--percent", type=float, default=2.0, help="σ of the wrong method is smaller by, %%")
    parser.add_argument("--frames", type=int, default=100, help="of a run")
    parser.add_argument("--window", type=float, default=1000.0, help="of the integral, fs")
    parser.add_argument("--error", type=float, default=0.1, help="error bar of D, 1e-9 m²/s")
    parser.add_argument("--steps", type=int, default=20, help="of the refinement at most")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate")
    arguments = parser.parse_args()
    use_compilation_cache()
    right, folder = method(SIGMA), arguments.work / f"{arguments.percent:g}"
    wrong = method(SIGMA * (1 - arguments.percent / 100))
    run = RUN | {"timestep": 10.0, "structure": str(folder / "start.xyz")}
    sampling = run | {"frames": arguments.frames, "every": 20, "equilibration": 400}
    target = {"kind": "diffusion", "element": "Ar", "value": 1.0, "error": arguments.error, "window": arguments.window}
    target["sampling"] = sampling
    reference = of_short_runs(right, target, read(arguments.work / "right.traj", "1::4"))
    displaced = of_displacements(right, read(arguments.work / "right.traj", "50::75"), arguments.work)
    content = {"machine": machine(), "arguments": {k: v for k, v in vars(arguments).items() if k != "work"}}
    content |= {"reference": reference, "reference_displacement": displaced}
    print(content, flush=True)
    config = {
        "model": str(folder / "model"),
        "data": {"train": str(folder / "data.xyz"), "lint": "off", "valid_fraction": 0.3},
        "targets": [target | {"value": reference[0]}],
        "steps": arguments.steps,
        "check_every": 5,
        "optimizer": {"learning_rate": arguments.rate},
    }
    began = time.process_time()
    after, outcome = refine(make_refinement(config), folder / "diffusion")
    content["cpu_seconds"] = round(time.process_time() - began)
    kept_aside = labelled(wrong, read(folder / "wrong.traj", ":")[251:])
    before = Potential.load(folder / "model" / "model.safetensors")
    content["forces"] = {n: errors(p, kept_aside, wrong, right) for n, p in (("before", before), ("after", after))}
    content["long_runs"] = {
        n: of_long_run(p, target, 3 * arguments.frames) for n, p in (("before", before), ("after", after))
    }
    content["outcome"] = outcome.to_dict()
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
