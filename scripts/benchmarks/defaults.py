#!/usr/bin/env python3
"""Defaults alone on data sets at hand: one training each, tested on structures like those it saw and on the hottest.

    .venv/bin/python scripts/benchmarks/defaults.py ethanol=data/ethanol.xyz liquid=liquid.xyz --minutes 6
    .venv/bin/python scripts/benchmarks/defaults.py ta=ta/*.xyz --units stress=bar

A set is NAME=FILE[,FILE]. mlff reads it as `mlff train` does; structures without energy or forces are left out. Where all
structures have the same atoms, training takes four fifths of the colder half (by energy), "like" is the rest of that half,
and "hottest" the tenth with the highest energies. Elsewhere "like" is a random fifth. mlff is told nothing but the files and
the time, in CPU minutes of one core. Errors are of force components, meV/Å; quantiles are of the force RMSE of single
structures. Rows go into the JSON one by one; a row that is there already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from machine import machine

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from launch import OURS, launch, pin

from mlff import read_dataset

MOST = 1000  #: structures to train on
TESTED = 200  #: structures of each test


def labelled(structure):
    """The structure as ASE's atoms, with its labels where ASE looks for them."""
    atoms = structure.to_atoms()
    atoms.calc = SinglePointCalculator(atoms, energy=structure.energy, forces=structure.forces)
    return atoms


def parts(structures: list, seed: int) -> dict[str, list]:
    """train, valid, like and, where all have the same atoms, hottest."""
    rng = np.random.default_rng(seed)
    same = len({structure.formula for structure in structures}) == 1
    order = np.argsort([structure.energy for structure in structures]) if same else rng.permutation(len(structures))
    known = rng.permutation(order[: len(order) // 2]) if same else order
    share = len(known) // 5
    like, rest = known[:share], known[share : share + MOST]
    count = max(1, len(rest) // 10)
    chosen = {"valid": rest[:count], "train": rest[count:], "like": like[:TESTED]}
    if same:
        chosen["hottest"] = rng.permutation(order[-max(1, len(order) // 10) :])[:TESTED]
    return {name: [structures[k] for k in indices] for name, indices in chosen.items()}


def measure(name: str, files: list[str], units: dict[str, str], args: argparse.Namespace) -> dict:
    """One training with its tests: the row for the JSON."""
    structures = [s for s in read_dataset(files, units=units) if s.energy is not None and s.forces is not None]
    with tempfile.TemporaryDirectory() as scratch:
        split = parts(structures, args.seed)
        for part, chosen in split.items():
            write(f"{scratch}/{part}.xyz", [labelled(structure) for structure in chosen], format="extxyz")
        tests = {part: f"{scratch}/{part}.xyz" for part in split if part not in ("train", "valid")}
        request = {"task": "train", "train": f"{scratch}/train.xyz", "valid": f"{scratch}/valid.xyz", "tests": tests}
        request |= {"out": f"{scratch}/out", "seconds": 60 * args.minutes, "clock": args.clock, "seed": args.seed}
        before = machine()
        answer = launch(OURS, request | {"options": args.set}, Path(), Path(scratch) / "cache", 3600 * args.limit)
    answer.pop("model", None)
    sizes = sorted({len(s) for s in structures})
    facts = {"set": name, "trained_on": len(split["train"]), "atoms": [sizes[0], sizes[-1]], "minutes": args.minutes}
    return facts | {"seed": args.seed, "options": args.set, **answer, "machine": before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME=FILE[,FILE]")
    parser.add_argument("--units", action="append", default=[], metavar="LABEL=UNIT", help="of the files")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a config other than the defaults")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="cpu", help="cpu: for a machine that others use meanwhile"
    )
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--limit", type=float, default=2.0, help="hours that one training may take")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "defaults.json")
    args = parser.parse_args()
    pin(args.core)
    units = dict(unit.split("=", 1) for unit in args.units)
    rows = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else []
    for one in args.sets:
        name, _, files = one.partition("=")
        key = {"set": name, "minutes": args.minutes, "seed": args.seed, "options": args.set}
        if any(all(row.get(k) == value for k, value in key.items()) for row in rows):
            continue
        rows.append(measure(name, files.split(","), units, args))
        args.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        shown = rows[-1].get("errors") or rows[-1].get("failed") or rows[-1].get("missing")
        print(name, json.dumps(shown, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
