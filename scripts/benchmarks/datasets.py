#!/usr/bin/env python3
"""Train the same few-line config on many reference sets and tabulate held-out errors.

    .venv/bin/python scripts/benchmarks/datasets.py FOLDER --minutes 3 [--only 3bpa ethanol] [--json results.json]

FOLDER holds the sets under the paths of `SETS` below (they are public, and not shipped). Where a set has no test file,
a fifth of its structures, chosen by seed 0, is kept aside. Results are appended to the JSON after each set.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import tempfile
import time
from pathlib import Path

from mlff.basics.runtime import use_compilation_cache
from mlff.config.load import make_config
from mlff.data.dataset import Splits, read_dataset
from mlff.training.evaluate import evaluate
from mlff.training.train import train

SETS = {  # name: (training files, test files, what differs from the defaults)
    "3bpa": (
        ["3bpa/train_300K.xyz", "3bpa/iso_atoms.xyz"],
        {"300 K": "3bpa/test_300K.xyz.xz", "600 K": "3bpa/test_600K.xyz.xz"},
        {},
    ),
    "ethanol": (["ethanol/train_ethanol.xyz", "ethanol/isolated_atoms.xyz"], {}, {}),
    "rmd17_aspirin": (["rmd17_aspirin/train.xyz.xz"], {}, {}),
    "spice_subset": (["spice_subset/train.xyz.xz"], {}, {}),
    "water_optb88": (["water_optb88/train.xyz.xz"], {}, {}),
    "mlearn_si": (["mlearn_si/train.xyz.xz"], {"test": "mlearn_si/test.xyz"}, {"loss": {"stress": 1.0}}),
    "mlearn_cu": (["mlearn_cu/train.xyz.xz"], {"test": "mlearn_cu/test.xyz"}, {"loss": {"stress": 1.0}}),
    "inp": (["inp/train.xyz.xz"], {}, {"loss": {"stress": 1.0}}),
}


def run(name: str, folder: Path, minutes: float, seed: int) -> dict:
    """Train on one set; its errors (meV, meV/Å) on what was kept aside."""
    files, tests, changes = SETS[name]
    data = read_dataset([str(folder / file) for file in files])
    held_out = {key: read_dataset(str(folder / file)) for key, file in tests.items()}
    if not held_out:
        data, held_out["test (a fifth)"] = data.split(0.2, seed)
    rest, valid = data.split(0.1, seed)
    config = make_config(
        {
            "seed": seed,
            "data": {"train": [str(folder / file) for file in files]},
            "model": {"channels": 32},
            "loss": changes.get("loss", {}),
            "training": {"max_hours": minutes / 60} | changes.get("training", {}),
        }
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as out:
        potential = train(config, out, data=Splits(rest, valid, {}), progress=False)
    seconds = time.monotonic() - started
    errors = {key: evaluate(potential, dataset).to_dict() for key, dataset in held_out.items()}
    return {
        "set": name,
        "train": len(rest),
        "valid": len(valid),
        "seconds": round(seconds, 1),
        "epochs": potential.metadata["training"]["epochs"],
        "errors": errors,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="training time for each set, loading and compiling included"
    )
    parser.add_argument("--only", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("scripts/benchmarks/results/datasets.json"))
    args = parser.parse_args()
    use_compilation_cache()
    rows = json.loads(args.json.read_text()) if args.json.exists() else []
    for name in args.only:
        row = run(name, args.folder, args.minutes, args.seed)
        rows = [old for old in rows if old["set"] != name] + [row]
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
        print(name, json.dumps(row["errors"]), flush=True)


if __name__ == "__main__":
    main()
