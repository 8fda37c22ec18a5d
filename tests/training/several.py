"""A training on several devices as a program of its own (JAX makes devices once): `python -m tests.training.several JOB`.

JOB is JSON: lists of runs {out, devices, epochs}, one after another in the same process. Prints a JSON line for each.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from mlff.training.checkpoint import Checkpoints
from mlff.training.devices import find_devices
from mlff.training.processes import processes
from mlff.training.runlog import RunLog, Silence
from mlff.training.trainer import Trainer


def run(group, out, devices, epochs):
    """Train, or go on; the parameters, and how often steps were compiled for how many shapes."""
    from .toy import make_config, make_structures, make_task  # computes: after the processes have met

    structures = make_structures(
        21, seed=3, sizes=(2, 8)
    )  # of unlike sizes: parts differ in atoms, the last batches are small
    found = find_devices(devices, group)
    config = make_config(training={"epochs": epochs, "batch_size": 4}, precision="float64")
    with jax.enable_x64(True), Checkpoints(Path(out) / "checkpoints") as saved:
        task = make_task(config, structures, devices=found)
        found.check(config.training, [len(structure) for structure in structures])
        trainer = Trainer(task, saved, (RunLog if group.first else Silence)(Path(out), False), {})
        trainer.resume()
        params = trainer.fit()
        shapes = {sizes for name, sizes in trainer._compiled if name == "step"}
        return {
            "params": np.asarray(params["w"]).tolist(),
            "state": np.asarray(trainer.state.params["w"]).tolist(),
            "steps": trainer.run.tried,
            "compiled": [trainer.step._cache_size(), len(shapes)],
            "batches": sorted({len(indices) for _, indices in task.train.plan(None)}),
        }


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    with processes(job[0]["devices"]) as group:
        for one in job:
            if group.first:
                Path(one["out"]).mkdir(parents=True, exist_ok=True)
            group.wait()
            print(json.dumps(run(group, **one)), flush=True)
