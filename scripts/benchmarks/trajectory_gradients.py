"""Memory, time and size of gradients through molecular dynamics; writes results/trajectory_gradients.json and a picture.

    python scripts/benchmarks/trajectory_gradients.py MODEL [--longest 100000] [--out FILE] [--plot FILE]

MODEL is trained on `data/malonaldehyde` (as ./scripts/quickstart leaves it). The observable is the distance between the two
oxygen atoms at 300 K. Each case is a process of its own with one thread: Langevin dynamics of 100, 1,000, ... steps forwards
alone, with its gradient by the adjoint (also without that by the parameters), and by backpropagation with checkpoints up to 10,000
steps. Rows give the peak resident
memory of the process (of checkpoints with what compiling takes), that which the compiled program says it needs, and CPU
seconds without compilation. Then the length of the gradient with respect to the positions is followed back from the last frame
of runs with and without friction.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("PJRT_NPROC", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ase.io
import jax.numpy as jnp
import numpy as np
from machine import machine

from mlff.potential.potential import Potential
from mlff.simulation.settings import Settings
from mlff.simulation.trajectory_gradient import DifferentiableRun
from mlff.simulation.velocities import maxwell_boltzmann

ROOT = Path(__file__).resolve().parents[2]
INPUTS = ("params", "temperature", "positions", "momenta", "timestep")
SETTINGS = {
    "friction of 1/(100 fs)": Settings(temperature=300.0, timestep=0.5, tau=100.0),
    "no friction": Settings(ensemble="nve", temperature=300.0, timestep=0.5),
}
WITHOUT = "adjoint without parameters"
LONGEST_CHECKPOINTED = 10_000  #: steps; a hundred states of a stretch and their residuals
NORMS = 4_000  #: steps of the runs whose gradients are followed


def oxygens(frame):
    """Å between atoms 0 and 4."""
    return jnp.sqrt(jnp.sum((frame.positions[0] - frame.positions[4]) ** 2))


def prepare(model: Path, settings: Settings, every: int) -> DifferentiableRun:
    """A run of malonaldehyde at 300 K."""
    atoms = ase.io.read(ROOT / "data" / "malonaldehyde" / "test_300K.xyz", 0)
    maxwell_boltzmann(atoms, 300.0, np.random.default_rng(0))
    return DifferentiableRun(oxygens, Potential.load(model, verify=False), atoms, settings, every)


def take(run: DifferentiableRun, method: str, steps: int) -> float:
    """The value of the observable."""
    if method == "forward":
        return run.value(steps)
    if method == WITHOUT:
        return run.gradient(steps, INPUTS[1:], "adjoint").value
    return run.gradient(steps, INPUTS, method).value


def case(model: Path, method: str, steps: int) -> dict:
    """One row, in this process."""
    run = prepare(model, next(iter(SETTINGS.values())), every=10)
    take(run, method, steps if method == "checkpointed" else 10)  # compile; the program of checkpoints is of one length
    begin = time.process_time(), time.perf_counter()
    value = take(run, method, steps)
    cpu, wall = time.process_time() - begin[0], time.perf_counter() - begin[1]
    return {
        "method": method,
        "steps": steps,
        "peak_resident_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "program_mib": round(run.memory() / 2**20, 3),
        "cpu_s": round(cpu, 3),
        "wall_s": round(wall, 3),
        "value": value,
    }


def apart(model: Path, method: str, steps: int) -> dict:
    """The same in a process of its own."""
    command = [sys.executable, __file__, str(model), "--case", method, str(steps)]
    answer = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if answer.returncode:
        return {"method": method, "steps": steps, "failed": answer.stderr.strip().splitlines()[-1]}
    return json.loads(answer.stdout.strip().splitlines()[-1])


def norms(model: Path) -> dict:
    """How long the gradient of the last frame is, going back."""
    found = {}
    for name, settings in SETTINGS.items():
        result = prepare(model, settings, every=0).gradient(NORMS, ("positions",))
        found[name] = {"fs": (result.norms[:, 0] * settings.timestep).tolist(), "norm": result.norms[:, 1].tolist()}
    return found


def plot(rows: list[dict], found: dict, file: Path) -> None:
    """Memory, time and norms."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (memory, cost, growth) = plt.subplots(1, 3, figsize=(10, 3.1), layout="constrained")
    for method, color in (("forward", "#8a8f98"), ("adjoint", "#3f51b5"), (WITHOUT, "#7fa7e0"), ("checkpointed", "#d9534f")):
        mine = [row for row in rows if row["method"] == method and "failed" not in row]
        steps = [row["steps"] for row in mine]
        if method != WITHOUT:  # as with them
            memory.loglog(steps, [row["program_mib"] for row in mine], "o-", ms=4, color=color, label=method)
        cost.loglog(steps, [row["cpu_s"] for row in mine], "o-", ms=4, color=color, label=method)
    for name, line in found.items():
        growth.semilogy(line["fs"], line["norm"], lw=1, label=name)
    memory.set(title="memory of the program, MiB", xlabel="steps")
    cost.set(title="CPU time, s", xlabel="steps")
    growth.set(title="length of the gradient", xlabel="fs before the last frame")
    for axes in (memory, cost, growth):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--longest", type=int, default=100_000)
    parser.add_argument("--case", nargs=2, metavar=("METHOD", "STEPS"), help="one row as JSON, in this process")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "trajectory_gradients.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "trajectory_gradients.png")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(case(arguments.model, arguments.case[0], int(arguments.case[1]))))
        return
    content = {"machine": machine(), "model": repr(Potential.load(arguments.model, verify=False)), "rows": [], "norms": {}}

    def keep() -> None:
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    lengths = [10**power for power in range(2, 7) if 10**power <= arguments.longest]
    for method in ("forward", "adjoint", WITHOUT, "checkpointed"):
        apart(
            arguments.model, method, lengths[0]
        )  # compiles; later processes find the program, and their memory is that of the run
        for steps in lengths:
            if method != "checkpointed" or steps <= LONGEST_CHECKPOINTED:
                content["rows"].append(apart(arguments.model, method, steps))
                print(content["rows"][-1], flush=True)
                keep()
        if method == "adjoint":
            content["norms"] = norms(arguments.model)
            keep()
    rows = content["rows"]
    plot(rows, content["norms"], arguments.plot)
    print(arguments.out, arguments.plot)


if __name__ == "__main__":
    main()
