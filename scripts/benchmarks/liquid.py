#!/usr/bin/env python3
"""Liquid argon: a model of a wrong method refined towards the radial distribution function of a better one, wrong data kept.

    .venv/bin/python scripts/benchmarks/liquid.py --work WORK

Both methods are Lennard-Jones potentials (64 atoms, 94 K, 1.374 g/cm³): the better one has σ = 3.405 Å, the wrong one a σ that
is 1 or 2 % smaller. The labels of the wrong one have noise, as those of a stochastic method have; without any, no model could
give another g(r) and keep its force error within 10 %. Rows, before and after `mlff refine`: deviation of g(r), and errors of
the forces (meV/Å) against the noisy labels, the wrong method and the better method. What is in WORK is not made again. Writes
scripts/benchmarks/results/liquid.json and docs/images/liquid.png. --plot draws what the JSON holds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers
from ase.io import read, write
from machine import machine

from mlff import MLFFCalculator, Potential
from mlff.basics.runtime import use_compilation_cache
from mlff.basics.statistics import rms
from mlff.config.load import make_config
from mlff.config.options import LennardJones
from mlff.config.refinement import make_refinement
from mlff.properties.distribution import pair_counts, shell_volumes
from mlff.refinement.outcome import Outcome
from mlff.refinement.refine import refine
from mlff.simulation.md import run_md
from mlff.training.train import train

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "liquid.json"
SIGMA, EPSILON, CUTOFF = 3.405, 0.01032, 6.5  #: Å, eV, Å
TEMPERATURE, SIDE = 94.0, 14.55  #: K, Å
NOISE = 20.0, 2.0  #: of a component of a force, meV/Å, and of an energy, meV/atom
EDGES = np.linspace(3.0, 7.0, 41)  #: Å
ERROR = 0.03  #: of g
RUN = {"temperature": TEMPERATURE, "timestep": 5.0, "tau": 500.0}
AR = atomic_numbers["Ar"]


def method(sigma: float) -> Potential:
    """A Lennard-Jones potential of argon."""
    return Potential(LennardJones(cutoff=CUTOFF, epsilon=EPSILON, sigma=sigma), {}, (AR,), {AR: 0.0})


def simulate(potential: Potential, file: Path, frames: int, every: int) -> list[ase.Atoms]:
    """Frames of the liquid, made once."""
    if not file.exists():
        grid = (np.stack(np.meshgrid(*3 * [np.arange(4)]), axis=-1).reshape(-1, 3) + 0.5) * SIDE / 4
        atoms = ase.Atoms("Ar64", positions=grid, cell=3 * [SIDE], pbc=True)
        calculator = MLFFCalculator(potential)
        run_md(atoms, calculator, ensemble="nvt", steps=3000, seed=1, progress=False, **RUN)
        length = {"steps": frames * every, "interval": every, "trajectory": file}
        run_md(atoms, calculator, ensemble="nvt", seed=2, keep_velocities=True, progress=False, **length, **RUN)
    return read(file, ":")[1:]


def distribution(frames: list[ase.Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """g (m,), and its statistical error from ten blocks."""
    cell, pbc = frames[0].cell.array, frames[0].pbc
    counts = [pair_counts(f.numbers, f.positions, cell, pbc, [(AR, AR)], EDGES)[AR, AR] for f in frames]
    each = np.array(counts) * frames[0].get_volume() / len(frames[0]) / shell_volumes(EDGES)
    blocks = np.array([block.mean(axis=0) for block in np.array_split(each, 10)])
    return each.mean(axis=0), blocks.std(axis=0, ddof=1) / np.sqrt(len(blocks))


def labelled(potential: Potential, frames: list[ase.Atoms]) -> list[ase.Atoms]:
    """With energies and forces, and noise on both."""
    rng, made = np.random.default_rng(0), []
    for frame, result in zip(frames, potential.predict(frames, stress=False), strict=True):
        atoms = ase.Atoms(frame.numbers, positions=frame.positions, cell=frame.cell, pbc=True)
        energy = result.energy + 1e-3 * NOISE[1] * len(atoms) * rng.normal()
        forces = result.forces + 1e-3 * NOISE[0] * rng.normal(size=result.forces.shape)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        made.append(atoms)
    return made


def errors(potential: Potential, frames: list[ase.Atoms], wrong: Potential, right: Potential) -> dict[str, float]:
    """RMS errors of forces, meV/Å, on labelled frames."""
    own = np.array([result.forces for result in potential.predict(frames, stress=False)])
    against = {
        name: [r.forces for r in one.predict(frames, stress=False)] for name, one in (("wrong", wrong), ("right", right))
    }
    against["labels"] = [frame.get_forces() for frame in frames]
    return {name: round(1e3 * rms(own - np.array(forces)), 2) for name, forces in against.items()}


def case(percent: float, work: Path, goal: Path, arguments: argparse.Namespace) -> dict:
    """One wrong method."""
    folder = work / f"{percent:g}"
    folder.mkdir(parents=True, exist_ok=True)
    wrong, right = method(SIGMA * (1 - percent / 100)), method(SIGMA)
    frames = simulate(wrong, folder / "wrong.traj", 300, 40)
    write(folder / "data.xyz", labelled(wrong, frames[:250]))
    kept_aside = labelled(wrong, frames[250:])
    write(folder / "start.xyz", frames[-1])
    if not (folder / "model" / "model.safetensors").exists():
        data = {"train": str(folder / "data.xyz"), "lint": "off", "reference_energies": {"Ar": 0.0}}
        plain = {"data": data, "model": {"cutoff": CUTOFF, "channels": 8}}
        train(make_config(plain | {"training": {"epochs": arguments.epochs, "tensorboard": False}}), folder / "model")
    before = Potential.load(folder / "model" / "model.safetensors")
    sampling = RUN | {"structure": str(folder / "start.xyz"), "frames": 120, "every": 40, "equilibration": 800}
    target = {"kind": "distribution", "pair": ["Ar", "Ar"], "file": str(goal), "error": ERROR, "sampling": sampling}
    config = make_refinement(
        {
            "model": str(folder / "model"),
            "data": {"train": str(folder / "data.xyz"), "lint": "off", "valid_fraction": 0.3},
            "targets": [target],
            "steps": arguments.steps,
            "data_weight": arguments.data_weight,
            "optimizer": {"learning_rate": arguments.rate},
        }
    )
    report = folder / "refined" / "refinement.json"
    if not report.exists():
        refine(config, folder / "refined", progress=True)
    outcome = Outcome.from_dict(json.loads(report.read_text(encoding="utf-8")))
    after = Potential.load(folder / "refined" / "model.safetensors")
    (row,) = outcome.targets
    found = {name: errors(one, kept_aside, wrong, right) for name, one in (("before", before), ("after", after))}
    content = {
        "percent": percent,
        "deviations": [row.deviation_before, row.deviation_after],
        "reached": row.reached,
        "verdicts": outcome.verdicts,
        "validation": outcome.data["validation"],
        "force_size": round(1e3 * rms(np.array([r.forces for r in wrong.predict(kept_aside, stress=False)])), 2),
        "forces": found,
        "before": np.round(row.before, 4).tolist(),
        "after": np.round(row.after, 4).tolist(),
        "steps": outcome.steps,
        "kept": outcome.kept,
    }
    print(content)
    return content


def draw(content: dict) -> None:
    from matplotlib.figure import Figure

    r, goal, cases = content["r"], content["goal"], content["cases"]
    figure = Figure(figsize=(4.5 * len(cases), 3.4), layout="constrained", dpi=120)
    for axes, row in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        axes.plot(r, goal, color="black", lw=3, alpha=0.3, label="better method")
        for name, color in (("before", "tab:gray"), ("after", "tab:blue")):
            axes.plot(r, row[name], color=color, label=f"{name} refinement")
        axes.set(xlabel="r, Å", ylabel="g(r)", title=f"σ of the data {row['percent']:g} % too small")
        axes.legend(frameon=False)
    figure.savefig(ROOT / "docs" / "images" / "liquid.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/liquid"), help="folder of runs, data and models")
    parser.add_argument("--epochs", type=int, default=30, help="of the training of each model")
    parser.add_argument("--steps", type=int, default=30, help="of a refinement at most")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate of a refinement")
    parser.add_argument("--data-weight", type=float, default=10.0, help="of the data in a refinement")
    parser.add_argument(
        "--smaller", type=float, nargs="+", default=[1.0, 2.0], help="σ of the wrong method is smaller by, %%"
    )
    parser.add_argument("--plot", action="store_true", help="only draw")
    arguments = parser.parse_args()
    if not arguments.plot:
        use_compilation_cache()
        work = arguments.work
        work.mkdir(parents=True, exist_ok=True)
        g, statistical = distribution(simulate(method(SIGMA), work / "right.traj", 600, 40))
        r = 0.5 * (EDGES[1:] + EDGES[:-1])
        np.savetxt(work / "g.txt", np.stack([r, g], axis=1))
        content = {"machine": machine(), "rate": arguments.rate, "data_weight": arguments.data_weight, "error": ERROR}
        content |= {"r": r.round(4).tolist(), "goal": g.round(4).tolist(), "goal_statistical_error": rms(statistical)}
        content["cases"] = []
        for percent in arguments.smaller:
            content["cases"].append(case(percent, work, work / "g.txt", arguments))
            RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(json.loads(RESULTS.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
