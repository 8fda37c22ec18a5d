#!/usr/bin/env python3
"""Liquid argon: a model of a wrong method refined towards the density of a better one, wrong data kept.

    .venv/bin/python scripts/benchmarks/liquid.py --work WORK
    .venv/bin/python scripts/benchmarks/density.py --work WORK

The first command makes the data and the model (σ 1 % too small); both methods are Lennard-Jones potentials. Rows: density of both
methods, and of the model before and after `mlff refine`, from runs of their own, with the error of the estimate and that of the mean
volume alone; errors of forces before and after. Writes scripts/benchmarks/results/density.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from ase.io import read
from liquid import RUN, SIGMA, errors, labelled, method
from machine import machine

from mlff import Potential
from mlff.basics.runtime import use_compilation_cache
from mlff.config.observables import Density
from mlff.config.refinement import make_refinement
from mlff.properties.averages import block_error
from mlff.refinement.averages import MeanDensity
from mlff.refinement.ensembles import Ensemble
from mlff.refinement.refine import refine

RESULTS = Path(__file__).parent / "results" / "density.json"


def of_run(potential: Potential, target: dict, frames: int) -> dict[str, float | None]:
    """Density of a run of its own, g/cm³, its error, and the relative error of the mean volume without the pressures."""
    options = Density(**target | {"sampling": target["sampling"] | {"frames": frames}})
    double = potential.with_precision("float64")
    ensemble = Ensemble(options.sampling, double, potential.precision, read(options.sampling.structure), 7)
    one = MeanDensity(options, ensemble, double)
    with double.scope():
        ensemble.sample(double.device_params)
        values, found = one.estimates(double.device_params, ensemble)
    volumes = np.linalg.det(ensemble.cells)
    error = block_error(volumes)
    plain = None if error is None else round(100 * error / volumes.mean(), 2)
    return {"density": round(float(values[0]), 4), "error": round(float(found[0]), 4), "volume_error_percent": plain}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/liquid"), help="folder of scripts/benchmarks/liquid.py")
    parser.add_argument("--percent", type=float, default=1.0, help="σ of the wrong method is smaller by, %%")
    parser.add_argument("--pressure", type=float, default=0.15, help="GPa")
    parser.add_argument("--frames", type=int, default=100, help="of a run; methods take four times as many")
    parser.add_argument("--error", type=float, default=0.01, help="error bar, g/cm³")
    parser.add_argument("--steps", type=int, default=20, help="of the refinement at most")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate")
    arguments = parser.parse_args()
    use_compilation_cache()
    folder = arguments.work / f"{arguments.percent:g}"
    right, wrong = method(SIGMA), method(SIGMA * (1 - arguments.percent / 100))
    sampling = RUN | {"structure": str(folder / "start.xyz"), "pressure": arguments.pressure, "tau_pressure": 500.0}
    sampling |= {"frames": arguments.frames, "every": 100, "equilibration": 4000}
    target = {"kind": "density", "value": 1.0, "error": arguments.error, "sampling": sampling}
    content = {"machine": machine(), "arguments": {k: v for k, v in vars(arguments).items() if k != "work"}}
    content["methods"] = {n: of_run(p, target, 4 * arguments.frames) for n, p in (("right", right), ("wrong", wrong))}
    print(content, flush=True)
    config = {
        "model": str(folder / "model"),
        "data": {"train": str(folder / "data.xyz"), "lint": "off", "valid_fraction": 0.3},
        "targets": [target | {"value": content["methods"]["right"]["density"]}],
        "steps": arguments.steps,
        "check_every": 5,
        "optimizer": {"learning_rate": arguments.rate},
    }
    began = time.process_time()
    after, outcome = refine(make_refinement(config), folder / "density")
    content["cpu_seconds"] = round(time.process_time() - began)
    kept_aside = labelled(wrong, read(folder / "wrong.traj", ":")[251:])
    before = Potential.load(folder / "model" / "model.safetensors")
    models = {"before": before, "after": after}
    content["forces"] = {name: errors(one, kept_aside, wrong, right) for name, one in models.items()}
    content["outcome"] = outcome.to_dict()
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
