#!/usr/bin/env python3
"""Learning without labels: which phase a crystal is in, and how many labels it saves.

    .venv/bin/python scripts/benchmarks/pretraining.py --plot docs/images/pretraining.png

Phases: copper, nickel and aluminium as diamond, fcc, bcc, hcp, liquid (molecular dynamics with ASE's EMT at 2,500 K) and gas.
A model learns by InfoNCE alone from structures without labels. Held-out structures take the phase of the five nearest
in the features (Mahalanobis distance): with all phases of the training structures known, with one structure of each
phase and element, and with those of two elements for the third; beside random weights. Curves: the force RMSE (meV/Å) on
300 K structures of data/malonaldehyde with few labels, from random weights, from both kinds of pre-training on the training
structures without their labels, and from a training on labels of GFN2-xTB (tblite) at these structures. Rows go into the JSON one by one; a row that is there already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk, hcp0001
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from machine import machine

from mlff import Potential, read_dataset
from mlff.basics.runtime import use_compilation_cache
from mlff.config.load import make_config
from mlff.models.parameters import initial_params
from mlff.properties.feature_map import features, nearest_kinds, principal_components, whitened
from mlff.simulation.sampling import teacher
from mlff.training.evaluate import evaluate
from mlff.training.pretrain import pretrain
from mlff.training.train import train

ROOT = Path(__file__).parents[2]
PHASES = ("diamond", "fcc", "bcc", "hcp", "liquid", "gas")
NEAREST = {"Cu": 2.56, "Ni": 2.49, "Al": 2.86}  #: Å, of the fcc metals
EACH = 16  #: structures of a phase of an element, in training and held out
LOSS = {"stretched": 0.0}  #: as measured; the default teaches stretched bonds too
MODEL = {"channels": 16, "cutoff": 4.5}
STARTS = ("random", "contrastive", "denoising", "GFN2-xTB")
STEPS, BATCH = 2000, 5  #: of training with labels
TESTED = 200


def crystal(phase: str, element: str, distance: float) -> Atoms:
    """About 32 atoms with this distance between nearest neighbours, Å."""
    if phase == "diamond":
        return bulk(element, "diamond", a=4 * distance / 3**0.5, cubic=True).repeat((2, 2, 1))
    if phase == "fcc":
        return bulk(element, "fcc", a=2**0.5 * distance, cubic=True).repeat(2)
    if phase == "bcc":
        return bulk(element, "bcc", a=2 * distance / 3**0.5, cubic=True).repeat((2, 2, 4))
    atoms = hcp0001(element, (3, 4, 2), a=distance, c=(8 / 3) ** 0.5 * distance, orthogonal=True, periodic=True)
    atoms.cell[2, 2] = (8 / 3) ** 0.5 * distance
    return atoms


def melt(element: str, rng: np.random.Generator, count: int) -> list[Atoms]:
    """Snapshots of the liquid, 5 % longer than the crystal along each direction."""
    atoms = crystal("fcc", element, 1.05 * NEAREST[element])
    atoms.positions += rng.normal(0, 0.6, (len(atoms), 3))
    atoms.calc = EMT()
    from ase.optimize import FIRE

    FIRE(atoms, logfile=None).run(fmax=5.0, steps=30)
    dynamics = Langevin(atoms, 3 * units.fs, temperature_K=2500, friction=0.02 / units.fs, rng=rng, fixcm=False)
    dynamics.run(300)
    frames = []
    for _ in range(count):
        dynamics.run(25)
        frames.append(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True))
    return frames


def gas(element: str, rng: np.random.Generator) -> Atoms:
    """Sixteen atoms in thirty times the crystal's volume, none nearer than 0.8 of the distance in it."""
    distance = NEAREST[element]
    side = (16 * 30 * distance**3 / 2**0.5) ** (1 / 3)
    points: list[np.ndarray] = []
    while len(points) < 16:
        new = rng.uniform(0, side, 3)
        away = [(d := new - p) - side * np.round(d / side) for p in points]
        if all(np.linalg.norm(d) > 0.8 * distance for d in away):
            points.append(new)
    return Atoms([element] * 16, points, cell=[side] * 3, pbc=True)


def phases(folder: Path) -> None:
    """Two files of structures without labels, to learn from and held out; the info key phase names the phase."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "held_out.xyz").exists():
        return
    for seed, name in enumerate(("train", "held_out")):
        rng, frames = np.random.default_rng(seed), []
        for element, distance in NEAREST.items():
            liquid = melt(element, rng, EACH)
            for phase in PHASES:
                for number in range(EACH):
                    if phase == "liquid":
                        atoms = liquid[number]
                    elif phase == "gas":
                        atoms = gas(element, rng)
                    else:
                        atoms = crystal(phase, element, rng.uniform(0.97, 1.03) * distance)
                        atoms.positions += rng.normal(0, rng.uniform(0.02, 0.05) * distance, (len(atoms), 3))
                    atoms.info = {"phase": phase}
                    frames.append(atoms)
        write(folder / f"{name}.xyz", frames, format="extxyz")


def heated(folder: Path) -> list[Atoms]:
    """A trajectory: copper heated from 300 to 3,500 K, which melts."""
    rng, atoms = np.random.default_rng(7), crystal("fcc", "Cu", 1.02 * NEAREST["Cu"])
    atoms.calc = EMT()
    dynamics, frames = Langevin(atoms, 3 * units.fs, temperature_K=300, friction=0.02 / units.fs, rng=rng, fixcm=False), []
    for temperature in np.linspace(300, 3500, 120):
        dynamics.set_temperature(temperature_K=temperature)
        dynamics.run(20)
        frames.append(Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True))
        frames[-1].info["energy_per_atom"] = atoms.get_potential_energy() / len(atoms)
    write(folder / "heated.xyz", frames, format="extxyz")
    return frames


def of_structures(potential: Potential, data) -> np.ndarray:
    """(structures, F) mean features."""
    return np.stack([rows.mean(axis=0) for rows in features(potential, data.structures)])


def classified(potential: Potential, work: Path, seed: int) -> dict:
    """Shares of held-out structures whose phase is that of the nearest known ones, %."""
    known, held_out = (read_dataset(work / f"{name}.xyz") for name in ("train", "held_out"))
    rows, others = of_structures(potential, known), of_structures(potential, held_out)
    rows, others = whitened(rows, rows), whitened(rows, others)
    kinds, truth = (np.array([s.info["phase"] for s in data]) for data in (known, held_out))
    metal, other_metal = (np.array([s.numbers[0] for s in data]) for data in (known, held_out))
    rng = np.random.default_rng(seed)
    few = [rng.choice(np.flatnonzero((kinds == k) & (metal == z))) for k in PHASES for z in set(metal)]
    right = {
        "all labels": np.mean(nearest_kinds(rows, kinds, others, 5) == truth),
        "one label each": np.mean(nearest_kinds(rows[few], kinds[few], others, 1) == truth),
        "another element": np.mean(
            np.concatenate(
                [
                    nearest_kinds(rows[metal != z], kinds[metal != z], others[other_metal == z], 5)
                    == truth[other_metal == z]
                    for z in set(metal)
                ]
            )
        ),
    }
    return {name: round(100 * float(share), 1) for name, share in right.items()}


def phase_rows(args: argparse.Namespace, content: dict, keep) -> None:
    """InfoNCE and random weights, several seeds."""
    phases(args.work)
    done = {(r["start"], r["seed"]) for r in content["phases"]}
    for seed in range(args.phase_seeds):
        config = make_config(
            {
                "seed": seed,
                "data": {"train": str(args.work / "train.xyz"), "valid": str(args.work / "held_out.xyz")},
                "model": {"channels": 16, "cutoff": 5.0, "l_max": 4, "l_message": 1},
                "pretraining": {"displacement": 0.15, "strain": 0.05, "atoms": args.atoms},
                "training": {"epochs": args.phase_epochs, "validate_every": 5, "tensorboard": False},
            }
        )
        begin = time.process_time()
        potential = pretrain(config, args.work / f"phases_{seed}", progress=False)
        row = {"start": "contrastive", "seed": seed, "cpu_s": round(time.process_time() - begin, 1)}
        if ("contrastive", seed) not in done:
            content["phases"].append(row | classified(potential, args.work, seed))
            keep()
    for seed in range(args.seeds):
        if ("random", seed) not in done:
            fresh = replace(potential, params=initial_params(potential.model, seed))
            content["phases"].append({"start": "random", "seed": seed} | classified(fresh, args.work, seed))
            keep()


def cheaply_labelled(work: Path) -> Path:
    """The training structures with energies and forces of GFN2-xTB, made once."""
    path = work / "gfn2.xyz"
    if not path.exists():
        frames, calculator = read(ROOT / "data/malonaldehyde/train.xyz", ":"), teacher("GFN2-xTB")
        for atoms in frames:
            atoms.calc = calculator
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        write(path, frames, format="extxyz")
    return path


def begun(start: str, args: argparse.Namespace) -> None:
    """What the trainings of `start` begin from, in `args.work / start`."""
    config = {
        "model": MODEL,
        "loss": LOSS,
        "training": {"epochs": args.epochs[start], "validate_every": 5, "tensorboard": False},
    }
    if start == "GFN2-xTB":
        config["data"] = {"train": str(cheaply_labelled(args.work)), "reference_energies": "least_squares", "lint": "off"}
        train(make_config(config), args.work / start, progress=False)
    else:
        config["data"], config["pretraining"] = {"train": str(ROOT / "data/malonaldehyde/train.xyz")}, {"method": start}
        pretrain(make_config(config), args.work / start, progress=False)


def curve_rows(args: argparse.Namespace, content: dict, keep) -> None:
    """Force errors by number of labels and start."""
    data = ROOT / "data/malonaldehyde"
    test = read_dataset(data / "test_300K.xyz")
    test = test.subset(np.linspace(0, len(test) - 1, TESTED).astype(int))
    for method in STARTS[1:]:
        begin = time.process_time()
        begun(method, args)
        if method not in content["pretraining_cpu_s"]:
            content["pretraining_cpu_s"][method] = round(time.process_time() - begin, 1)
            keep()
    done = {(r["start"], r["labels"], r["seed"]) for r in content["curves"]}
    for seed in range(args.seeds):
        for labels in args.labels:
            for start in STARTS:
                if (start, labels, seed) in done:
                    continue
                config = {"seed": seed, "model": MODEL, "loss": LOSS}
                config["data"] = {"train": str(data / "train.xyz"), "n_train": labels, "lint": "off"}
                config["data"]["reference_energies"] = "least_squares"
                epochs = round(STEPS * BATCH / labels)
                config["training"] = {"epochs": epochs, "batch_size": BATCH, "validate_every": max(1, epochs // 30)}
                config["training"] |= {"checkpoint_every": 1000, "tensorboard": False}
                if start != "random":
                    config["finetune_from"] = str(args.work / start / "model.safetensors")
                begin = time.process_time()
                potential = train(make_config(config), args.work / f"{start}_{labels}_{seed}", progress=False)
                found = evaluate(potential, test)
                row = {"start": start, "labels": labels, "seed": seed, "cpu_s": round(time.process_time() - begin, 1)}
                content["curves"].append(row | {"forces_rmse": round(found.forces_rmse, 1)})
                keep()


def table(content: dict) -> str:
    """Means over seeds with their standard errors, markdown."""

    def cell(rows: list[dict], key: str) -> str:
        values = np.array([row[key] for row in rows])
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
        return f"{values.mean():.1f} ± {error:.1f}"

    tests = ("all labels", "one label each", "another element")
    lines = ["| phases, % right | " + " | ".join(tests) + " |", "|---|---|---|---|"]
    for start in ("random", "contrastive"):
        rows = [r for r in content["phases"] if r["start"] == start]
        lines += [f"| {start} | " + " | ".join(cell(rows, name) for name in tests) + " |"] if rows else []
    labels = sorted({r["labels"] for r in content["curves"]})
    lines += ["", "| meV/Å | " + " | ".join(f"{n} labels" for n in labels) + " |", "|---" * (1 + len(labels)) + "|"]
    for start in STARTS:
        cells = [
            cell([r for r in content["curves"] if (r["start"], r["labels"]) == (start, n)], "forces_rmse") for n in labels
        ]
        lines.append(f"| {start} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(content: dict, work: Path, path: Path) -> None:
    """Held-out structures by phase, a heated crystal in the same plane, and the learning curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    potential = Potential.load(work / "phases_0/model.safetensors", pretrained=True)
    heated(work)
    held_out, hot = read_dataset(work / "held_out.xyz"), read_dataset(work / "heated.xyz")
    copper = held_out.subset([i for i, s in enumerate(held_out) if s.numbers[0] == 29])
    rows = np.concatenate([of_structures(potential, copper), of_structures(potential, hot)])
    points, _ = principal_components(rows)
    kinds = np.array([s.info["phase"] for s in copper])
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.9), constrained_layout=True)
    for panel in axes[:2]:
        for phase in PHASES:
            mine = points[: len(copper)][kinds == phase]
            panel.plot(*mine.T, "o", ms=4, label=phase, alpha=1.0 if panel is axes[0] else 0.15)
        panel.set(xlabel="first component", ylabel="second component")
    axes[0].legend(fontsize=8, frameon=False)
    axes[0].set_title("copper held out, after InfoNCE")
    energies = [s.info["energy_per_atom"] for s in hot]
    drawn = axes[1].scatter(*points[len(copper) :].T, c=energies, s=10, cmap="inferno")
    figure.colorbar(drawn, ax=axes[1], label="EMT energy per atom (eV)")
    axes[1].set_title("copper heated from 300 to 3,500 K")
    for start in STARTS:
        labels = sorted({r["labels"] for r in content["curves"]})
        found = [[r["forces_rmse"] for r in content["curves"] if (r["start"], r["labels"]) == (start, n)] for n in labels]
        means, errors = [np.mean(f) for f in found], [np.std(f, ddof=1) / np.sqrt(len(f)) for f in found]
        axes[2].errorbar(
            labels, means, errors, marker="o", capsize=3, label=f"from {start}" if start != "random" else "from scratch"
        )
    axes[2].set(xscale="log", yscale="log", xlabel="labels", ylabel="force RMSE (meV/Å)", title="malonaldehyde, 300 K")
    axes[2].set_xticks(labels, [str(n) for n in labels])
    axes[2].xaxis.set_minor_formatter(NullFormatter())
    axes[2].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["phases", "curves"], default=["phases", "curves"])
    parser.add_argument("--labels", type=int, nargs="+", default=[10, 25, 50, 100, 400])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--phase-seeds", type=int, default=3, help="of InfoNCE; those of random weights cost nothing")
    parser.add_argument("--phase-epochs", type=int, default=12)
    parser.add_argument("--atoms", type=float, default=0.0, help="share of the atoms' term, for the phases")
    parser.add_argument("--contrastive-epochs", type=int, default=20)
    parser.add_argument("--denoising-epochs", type=int, default=40)
    parser.add_argument("--work", type=Path, default=Path("build/pretraining"))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "pretraining.json")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.epochs = {"contrastive": args.contrastive_epochs, "denoising": args.denoising_epochs}
    args.epochs["GFN2-xTB"] = args.denoising_epochs
    use_compilation_cache()
    empty = {"machine": machine(), "phases": [], "pretraining_cpu_s": {}, "curves": []}
    content = json.loads(args.json.read_text()) if args.json.exists() else empty

    def keep() -> None:
        args.json.write_text(json.dumps(content, indent=1) + "\n")

    for part, run in (("phases", phase_rows), ("curves", curve_rows)):
        if part in args.parts:
            run(args, content, keep)
    print(table(content))
    if args.plot is not None:
        draw(content, args.work, args.plot)


if __name__ == "__main__":
    main()
