#!/usr/bin/env python3
"""Copper and gold: the shares at which an alloy has a wanted volume, density and energy of mixing, by a model, and by its reference.

    .venv/bin/python scripts/benchmarks/composition.py --work WORK

The reference is ASE's effective medium theory (EMT), which labels small cells of random composition for the model. Rows: the share by
`mlff design`; the structures that were found, relaxed by EMT from there, and the share that follows for EMT by the slope of the model.
What is in WORK is not made again. Writes scripts/benchmarks/results/composition.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import ase
import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.io import write
from ase.optimize import LBFGS
from machine import machine

from mlff.basics.runtime import use_compilation_cache
from mlff.basics.units import DENSITY
from mlff.config.design import make_design
from mlff.config.load import make_config
from mlff.design.composition import find_composition
from mlff.training.train import train

RESULTS = Path(__file__).parent / "results" / "composition.json"
LATTICE = {"Cu": 3.59, "Au": 4.06}  #: Å, of EMT
TARGETS = (
    {"kind": "volume", "value": 14.0, "error": 0.05},
    {"kind": "density", "value": 14.0, "error": 0.05},
    {"kind": "mixing_energy", "value": 10.0, "error": 1.0},
)


def labelled(count: int) -> list[ase.Atoms]:
    """Cells of 32 atoms of random composition, strained and displaced, with labels of EMT."""
    rng, frames = np.random.default_rng(0), []
    for _ in range(count):
        share = rng.uniform(-0.05, 1.05)
        side = LATTICE["Cu"] + np.clip(share, 0, 1) * (LATTICE["Au"] - LATTICE["Cu"])
        atoms = bulk("Cu", a=side, cubic=True).repeat(2)
        atoms.numbers[rng.random(len(atoms)) < share] = 79
        strain = np.eye(3) * (1 + rng.uniform(-0.02, 0.04)) + rng.normal(scale=0.01, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += rng.normal(scale=rng.uniform(0.02, 0.12), size=(len(atoms), 3))
        atoms.calc = EMT()
        said = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **said)
        frames.append(atoms)
    return frames


def by_emt(frames: list[ase.Atoms]) -> list[ase.Atoms]:
    """Relaxed, atoms and cell."""
    relaxed = []
    for frame in frames:
        atoms = ase.Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True)
        atoms.calc = EMT()
        LBFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=300)
        relaxed.append(atoms)
    return relaxed


def value(kind: str, atoms: ase.Atoms, pure: dict[int, float]) -> float:
    """Of a structure that EMT relaxed, in the unit of the target."""
    if kind == "volume":
        return atoms.get_volume() / len(atoms)
    if kind == "density":
        return atoms.get_masses().sum() / atoms.get_volume() / DENSITY["g/cm^3"]
    return 1e3 * (atoms.get_potential_energy() - sum(pure[z] for z in atoms.numbers)) / len(atoms)


def case(target: dict, work: Path, pure: dict[int, float], decorations: int) -> list[dict]:
    """What was found for one target, and what EMT says of it."""
    plain = {"model": str(work / "model"), "structure": str(work / "lattice.xyz"), "decorations": decorations}
    began = time.process_time()
    frames, outcome = find_composition(make_design(plain | {"free": {"composition": ["Cu", "Au"]}, "targets": [target]}))
    seconds = round(time.process_time() - began)
    rows = []
    for found in outcome.solutions:
        row = {"share": found.share, "error": found.error, "seconds": seconds, "notes": outcome.notes}
        for name, end in (("lower", found.lower), ("upper", found.upper)):
            own = [atoms for atoms in frames if np.isclose(atoms.info["mlff_share"], end.share)]
            values = [value(target["kind"], atoms, pure) for atoms in by_emt(own)]
            row[name] = {"count": end.count, "mean": end.mean, "error": end.error, "emt": float(np.mean(values))}
        away = np.mean([row[end]["emt"] - row[end]["mean"] for end in ("lower", "upper")])
        row["share_emt"] = found.share - float(away) / found.slope
        print(target, row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/copper_gold"), help="folder of data and model")
    parser.add_argument("--structures", type=int, default=150, help="that are labelled")
    parser.add_argument("--epochs", type=int, default=60, help="of the training")
    parser.add_argument("--decorations", type=int, default=8, help="of a mixture")
    parser.add_argument("--repeat", type=int, default=2, help="of the cubic cell of 4 atoms in each direction")
    arguments = parser.parse_args()
    use_compilation_cache()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    write(work / "lattice.xyz", bulk("Cu", a=3.8, cubic=True).repeat(arguments.repeat))
    if not (work / "model" / "model.safetensors").exists():
        write(work / "data.xyz", labelled(arguments.structures))
        plain = {"data": {"train": str(work / "data.xyz")}, "model": {"channels": 8}, "loss": {"stress": 1.0}}
        train(make_config(plain | {"training": {"epochs": arguments.epochs, "tensorboard": False}}), work / "model")
    pure = {}
    for symbol, side in LATTICE.items():
        (atoms,) = by_emt([bulk(symbol, a=side)])
        pure[int(atoms.numbers[0])] = atoms.get_potential_energy()
    content = {"machine": machine(), "arguments": {k: v for k, v in vars(arguments).items() if k != "work"}}
    content["cases"] = [one | {"found": case(one, work, pure, arguments.decorations)} for one in TARGETS]
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
