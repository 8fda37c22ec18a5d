#!/usr/bin/env python3
"""Long trainings against published errors: one recipe for each set that has a published figure.

    .venv/bin/python scripts/benchmarks/records.py FOLDER --only rmd17_ethanol mlearn_si --core 0

FOLDER holds the sets under the paths below (public, not shipped); tblite is needed for GFN2-xTB, spglib for copper. A recipe
with a teacher first samples structures around the training structures (`mlff sample`, no reference data, no test structure)
and trains on them, then on the training structures. Everything is done by the command line on files kept in OUT/SET:
interrupted, the same command goes on. Splits are drawn with seed 0. Hours are wall-clock time of one core. Rows go into the
JSON one by one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from machine import machine
from peers.launch import pin

from mlff import Potential, evaluate, read_dataset

Parts = dict[str, list[Atoms]]  #: train, valid and the tests


@dataclass(frozen=True)
class Recipe:
    split: Callable[[Path], Parts]
    published: dict[str, dict[str, float | str]]  #: test -> meV (per atom where the metric says so), meV/Å, source
    hours: float
    model: dict
    loss: dict = field(default_factory=lambda: {"error": "mse", "energy": 10.0})
    isolated_atoms: str = ""
    optimizer: dict = field(default_factory=dict)
    teacher: str = ""
    sampled: int = 0
    teacher_hours: float = 0.0
    teacher_training: dict = field(default_factory=dict)
    teacher_optimizer: dict = field(default_factory=dict)
    temperatures: tuple[float, ...] = ()  #: K, that the teacher samples at; () for those of `mlff sample`
    members: int = 1  #: of a committee, each trained for `hours`
    weights: dict[str, float] = field(
        default_factory=dict
    )  #: of training structures in the loss, by config_type; 1 for others
    last: dict = field(
        default_factory=dict
    )  #: sections of the config of a last training, from where `run` ended, on train and valid
    last_weights: dict[str, float] = field(default_factory=dict)  #: in it, as `weights`
    primitive: bool = (
        False  #: training structures that repeat themselves as their primitive cells (with spglib): the same labels for less
    )


def shuffled(file: str, tests: dict[str, str] | None = None, **sizes: int | None) -> Callable[[Path], Parts]:
    """Parts of these sizes (None: what is left) of one file's structures, in an order drawn with seed 0; `tests`: files of their own."""

    def split(folder: Path) -> Parts:
        structures = read(folder / file, ":")
        if len(structures) < sum(size or 1 for size in sizes.values()):
            sys.exit(f"error: {folder / file}: {len(structures)} structures, the split is {sizes}")
        order, parts = np.random.default_rng(0).permutation(len(structures)), {}
        for name, size in sizes.items():
            parts[name], order = [structures[k] for k in order[:size]], order[size:] if size else order[:0]
        return parts | {name: read(folder / test, ":") for name, test in (tests or {}).items()}

    return split


def primitive(structure: Atoms) -> Atoms:
    """The primitive cell of a perfect crystal, which has no forces, with config_type primitive; other structures as they are."""
    import spglib

    cell = structure.cell.array, structure.get_scaled_positions(), structure.numbers
    cell, places, numbers = spglib.standardize_cell(cell, to_primitive=True, no_idealize=True, symprec=1e-4) or cell
    if len(numbers) == len(structure) or np.abs(structure.get_forces()).max() > 0.01:
        return structure
    found = Atoms(numbers, cell=cell, scaled_positions=places, pbc=True, info={"config_type": "primitive"})
    energy = structure.get_potential_energy() * len(found) / len(structure)
    found.calc = SinglePointCalculator(found, energy=energy, forces=np.zeros((len(found), 3)))
    return found


def weigh(structures: list[Atoms], weights: dict[str, float]) -> None:
    """Give each structure the weight of its config_type, 1 where there is none; without weights leave them alone."""
    for structure in structures if weights else ():
        structure.info["weight"] = weights.get(structure.info["config_type"], 1.0)


RECIPES = {
    "3bpa": Recipe(
        shuffled(
            "3bpa/train_300K.xyz", {"t300": "3bpa/test_300K.xyz.xz", "t600": "3bpa/test_600K.xyz.xz"}, valid=25, train=None
        ),
        {
            "t300": {"energy_rmse": 3.0, "forces_rmse": 8.8, "source": "MACE, NeurIPS 2022, Table 2"},
            "t600": {"energy_rmse": 9.7, "forces_rmse": 21.8, "source": "the same"},
        },
        hours=0.6,
        model={"channels": 128, "cutoff": 4.0},
        isolated_atoms="3bpa/iso_atoms.xyz",
        optimizer={"learning_rate": 0.0015},
        teacher="GFN2-xTB",
        sampled=12000,
        teacher_hours=0.7,
        teacher_optimizer={"weight_decay": 0.01},
    ),
    "rmd17_aspirin": Recipe(
        shuffled("rmd17_aspirin/train.xyz.xz", train=950, valid=50, test=200),
        {"test": {"energy_mae": 1.6, "forces_mae": 5.7, "source": "GotenNet, arXiv:2510.03046, Table 3 (MACE: 2.2, 6.6)"}},
        hours=0.43,  # this and teacher_hours: of an AMD EPYC core; twice as long on one that makes 10 steps a second
        model={"channels": 128, "cutoff": 6.0, "layers": 3},  # energies want the whole molecule in reach
        loss={"energy": 0.5, "error": "mae"},
        optimizer={"learning_rate": 0.0015},
        teacher="GFN2-xTB",
        sampled=44000,
        teacher_hours=0.55,
        members=3,
    ),
    "rmd17_ethanol": Recipe(
        shuffled("ethanol/train_ethanol.xyz", train=850, valid=50, test=100),
        {
            "test": {
                "energy_mae": 0.3,
                "forces_mae": 2.1,
                "source": "GotenNet, arXiv:2510.03046, Table 3 (MACE: 0.4, 2.1); 950 to train",
            }
        },
        hours=0.33,
        model={"channels": 128, "cutoff": 5.0, "cutoff_power": 3},
        loss={"energy": 0.5, "error": "mae"},
        isolated_atoms="ethanol/isolated_atoms.xyz",
        optimizer={"learning_rate": 0.0015},
        teacher="GFN2-xTB",
        sampled=24000,
        teacher_hours=0.4,
        teacher_training={"batch_size": 8},
        teacher_optimizer={"weight_decay": 0.02},
        members=3,
    ),
    "mlearn_si": Recipe(
        shuffled("mlearn_si/train.xyz.xz", {"test": "mlearn_si/test.xyz"}, valid=14, train=None),
        {
            "test": {
                "energy_mae_per_atom": 2.21,
                "forces_mae": 60.0,
                "source": "MTP, Zuo et al. 2020, to two digits in forces",
            }
        },
        hours=0.05,  # longer, or wider, over-fits so few structures
        model={"channels": 32},
        loss={
            "error": "mse",
            "energy": 1.0,
            "stress": 1.0,
            "schedule": [{"start": 0.6, "energy": 100.0}],
        },  # energies late: their weight costs forces
        members=4,
    ),
    "mlearn_cu": Recipe(
        shuffled("mlearn_cu/train.xyz.xz", {"test": "mlearn_cu/test.xyz"}, valid=14, train=None),
        {
            "test": {
                "energy_mae_per_atom": 0.23,
                "forces_mae": 5.0,
                "source": "linear ACE of a thousand functions, ACEpotentials.jl 2023, not looked up (MTP, Zuo et al. 2020: 0.41, 10)",
            }
        },
        hours=0.2,
        model={"channels": 32, "l_max": 4, "radial_basis": 24},
        loss={"error": "mae", "energy": 2.0},  # no stresses: they are 2.3 GPa off what the energies say (mlff lint)
        optimizer={"learning_rate": 0.002, "weight_decay": 0.005},
        teacher="ase.calculators.emt:EMT",
        sampled=3000,
        temperatures=(300, 1000, 2000, 3500),
        teacher_hours=0.2,
        teacher_optimizer={"learning_rate": 0.003, "weight_decay": 0.005},
        members=3,
        weights={"Surface": 50.0, "primitive": 20.0},  # 9 and 103 of 248 structures; several of them make one step
        last={  # energies: large steps' worth of structures, small rates, and weights that clipping does not undo
            "loss": {"error": "mae", "energy": 5.0},
            "optimizer": {"learning_rate": 0.0003, "clip": None},
            "training": {"max_hours": 0.133, "batch_size": 8, "validate_every": 20},
        },
        last_weights={"Surface": 3.0, "primitive": 3.0},
        primitive=True,  # strained crystals of 108 atoms
    ),
}


def mlff(*arguments: str) -> None:
    """One command of mlff, in a process of its own. Ends the benchmark if it fails."""
    code = "import sys; from mlff.cli import main; sys.exit(main())"
    if subprocess.run([sys.executable, "-c", code, *arguments]).returncode:
        sys.exit(f"error: mlff {' '.join(arguments)} failed")


def fit(out: Path, name: str, config: dict) -> Potential:
    """Train by a config written to OUT/NAME.yaml, or go on with it; the model."""
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    mlff("train", str(path), "--out", str(out / name))
    return Potential.load(out / name / "model.safetensors")


def run(recipe: Recipe, folder: Path, out: Path) -> dict:
    """Train as the recipe says; the row for the JSON."""
    out.mkdir(parents=True, exist_ok=True)
    parts = recipe.split(folder)
    if recipe.primitive:
        parts["train"] = [primitive(structure) for structure in parts["train"]]
    weigh(parts["train"], recipe.weights)
    for name, structures in parts.items():
        if not (out / f"{name}.xyz").exists():
            write(out / f"{name}.xyz", structures, format="extxyz")
    row = {"structures": {name: len(structures) for name, structures in parts.items()}, "published": recipe.published}
    config: dict = {
        "data": {"train": ["train.xyz"], "valid": "valid.xyz", "test": {name: f"{name}.xyz" for name in recipe.published}},
        "model": recipe.model,
        "loss": recipe.loss,
        "training": {"max_hours": recipe.hours},
    }
    if recipe.weights:
        config["data"]["keys"] = {"weight": "weight"}
    if recipe.isolated_atoms:
        write(out / "isolated_atoms.xyz", read(folder / recipe.isolated_atoms, ":"), format="extxyz")
        config["data"]["train"].append("isolated_atoms.xyz")
    if recipe.optimizer:
        config["optimizer"] = recipe.optimizer
    if recipe.teacher:
        at = [word for kelvin in recipe.temperatures for word in ("--temperature", str(kelvin))]
        mlff(
            "sample",
            recipe.teacher,
            str(out / "train.xyz"),
            "--out",
            str(out / "sampled.xyz"),
            "--count",
            str(recipe.sampled),
            *at,
        )
        first: dict = {
            "data": {"train": "sampled.xyz", "valid_fraction": 0.03, "reference_energies": "least_squares", "lint": "off"},
            "model": recipe.model,
            "loss": {"error": "mse", "energy": 10.0},
            "optimizer": recipe.teacher_optimizer,
            "training": {"max_hours": recipe.teacher_hours, **recipe.teacher_training},
        }
        row["teacher"] = {"method": recipe.teacher, "structures": recipe.sampled, "config": first}
        config["finetune_from"] = "first/model.safetensors"
    row["config"] = config
    if recipe.last:
        everything = parts["train"] + parts["valid"]
        weigh(everything, recipe.last_weights)
        write(out / "all.xyz", everything, format="extxyz")
        row["last"] = {
            "data": config["data"] | {"train": "all.xyz", "valid": "all.xyz", "lint": "off"},
            "model": recipe.model,
            **recipe.last,
        }
    names = ["run", *(f"run_{member}" for member in range(1, recipe.members))]
    trained = []
    for member, name in enumerate(names):
        own: dict = {"member": member} if member else {}
        if recipe.teacher:  # members that begin alike would err alike
            start = name.replace("run", "first")
            learner = fit(out, start, first | own)
            own["finetune_from"] = f"{start}/model.safetensors"
            if not member:
                row["teacher"] |= learned(learner, out / start)
        trained.append(fit(out, name, config | own))
        if recipe.last:
            own["finetune_from"] = f"{name}/model.safetensors"
            trained[-1] = fit(out, name.replace("run", "last"), row["last"] | own)
    if recipe.last:
        names = [name.replace("run", "last") for name in names]
    row |= learned(trained[0], out / names[0])
    if recipe.members > 1:
        mlff("committee", *(str(out / name) for name in names), "--out", str(out / "committee.safetensors"))
        committee = Potential.load(out / "committee.safetensors")
        row["members"] = [potential.metadata["errors"] for potential in trained]
        row["errors"] = {
            "test" if name == "test" else f"test {name}": evaluate(
                committee, read_dataset(out / f"{name}.xyz"), False
            ).to_dict()
            for name in recipe.published
        }
    return row


def learned(potential: Potential, run: Path) -> dict:
    """Errors, epochs, about twenty lines of the log."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    keys = ("epoch", "seconds", "train_forces_rmse", "valid_energy_rmse", "valid_forces_rmse")
    curve = [{key: line.get(key) for key in keys} for line in lines[:: max(1, len(lines) // 20)] + lines[-1:]]
    return {"training": potential.metadata["training"], "errors": potential.metadata["errors"], "curve": curve}


def table(rows: dict[str, dict]) -> str:
    """Markdown: what was reached beside what is published."""
    lines = ["| set | test | measure | mlff | published | source |", "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        for test, figures in row["published"].items():
            for measure in (key for key in figures if key != "source"):
                reached = row["errors"]["test" if test == "test" else f"test {test}"][measure]
                lines.append(f"| {name} | {test} | {measure} | {reached:.3g} | {figures[measure]} | {figures['source']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/records"))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "records.json")
    args = parser.parse_args()
    pin(args.core)
    rows: dict[str, dict] = {}
    for name in args.only:
        before = machine()
        row = run(RECIPES[name], args.folder.resolve(), (args.out / name).resolve()) | {"machine": before}
        rows = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
        rows[name] = row
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
