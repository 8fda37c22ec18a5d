#!/usr/bin/env python3
"""Fine-tuning from GFN2-xTB to a reference method: which learning rates, with and without old data in mind.

    .venv/bin/python scripts/benchmarks/finetuning.py FOLDER --sizes 25 50 100 --seeds 3

FOLDER holds 3BPA's train_300K.xyz, test_300K.xyz and test_600K.xyz (public, not shipped). A model is trained on structures
sampled and labelled by GFN2-xTB (tblite), then fine-tuned on a few reference structures with each plasticity map, with and
without replay of the old data: equal numbers of steps on the new data. Rows: force RMSE and worst structure (meV/Å) on both
tests and on 200 structures of the old data, before and after, and the lines of the certificate that fail. They go into the
JSON one by one; a row that is there already is not repeated. --plot draws what the JSON holds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from ase.io import read, write
from machine import machine

from mlff import Potential, read_dataset
from mlff.basics.runtime import use_compilation_cache
from mlff.certificate.certificate import certify
from mlff.config.load import make_config
from mlff.simulation import sampling
from mlff.training import plasticity, second_readout
from mlff.training.evaluate import evaluate
from mlff.training.train import train

MAPS = {
    "scratch": None,
    "full": {},
    "frozen": {"embedding": 0, "pair_embedding": 0, "layer_0/*": 0, "head_0/*": 0},
    "graded": {"embedding": 0, "pair_embedding": 0.1, "layer_0/*": 0.1, "head_0/*": 0.3, "layer_1/*": 0.3},
    "fisher": "map",
}
KINDS = {False: "new", True: "replay", "own": "own"}  #: what is said of replay in the JSON -> in the name of a run
LOSS = {"stretched": 0.0}  #: as measured; the default teaches stretched bonds too
MODEL = {"channels": 32}
STEPS = 1000  #: of fine-tuning, those on replayed data not counted
BATCH = 5
TESTED = 300  #: structures of each test


def prepare(folder: Path, work: Path, count: int, hours: float) -> Potential:
    """The old data (train, held out) and the model trained on them, made once."""
    work.mkdir(parents=True, exist_ok=True)
    sampled = work / "sampled.xyz"
    if not (work / "old.xyz").exists():
        sampling.sample(read(folder / "train_300K.xyz", ":"), sampling.teacher("GFN2-xTB"), sampled, count, seed=0)
        frames = read(sampled, ":")
        order = np.random.default_rng(0).permutation(len(frames))
        write(work / "old_test.xyz", [frames[i] for i in order[:200]])
        write(work / "old.xyz", [frames[i] for i in order[200:]])
    data = {"train": str(work / "old.xyz"), "valid_fraction": 0.03, "reference_energies": "least_squares", "lint": "off"}
    training = {"max_hours": hours, "tensorboard": False}
    return train(make_config({"data": data, "model": MODEL, "loss": LOSS, "training": training}), work / "teacher")


def measured(potential: Potential, tests: dict, replayed: Potential | None = None) -> dict:
    """Force RMSE and worst structure of each test, meV/Å; `replayed`: the potential of the old data, where it is another."""
    row = {}
    for name, data in tests.items():
        found = evaluate(replayed if name == "old" and replayed is not None else potential, data)
        row[name] = [round(found.forces_rmse, 2), round(found.forces_rmse_of_structures["worst"], 1)]
    return row


def finetuned(arm: str, replay: bool | str, size: int, seed: int, args: argparse.Namespace, tests: dict) -> dict:
    """One fine-tuning: the row for the JSON."""
    work, rates = args.work, MAPS[arm]
    data = {"train": str(args.folder / "train_300K.xyz"), "n_train": size, "valid_fraction": 0.1, "lint": "off"}
    data |= {"replay": str(work / "old.xyz"), "replay_readout": "own" if replay == "own" else "shared"} if replay else {}
    config = {"seed": seed, "data": data, "model": MODEL, "loss": LOSS}
    if arm != "scratch":
        config["finetune_from"] = str(work / "teacher/model.safetensors")
    if isinstance(rates, dict):
        config["optimizer"] = {"plasticity": rates}
    elif rates == "map":
        config["optimizer"] = {"plasticity_map": str(work / "map.safetensors")}
    config["training"] = {"epochs": round(STEPS * BATCH / size), "batch_size": BATCH, "tensorboard": False}
    config["training"] |= {"validate_every": max(1, round(STEPS * BATCH / size / 20)), "checkpoint_every": 1000}
    out = work / f"{arm}_{KINDS[replay]}_{size}_{seed}"
    start = time.process_time()
    potential = train(make_config(config), out, progress=False)
    seconds = time.process_time() - start
    failed = [line.name for line in certify(potential).failed] if seed == 0 else None
    row = {"map": arm, "replay": replay, "size": size, "seed": seed, "cpu_s": round(seconds, 1), "failed": failed}
    return row | measured(potential, tests, Potential.load(out / second_readout.FILE) if replay == "own" else None)


def table(content: dict) -> str:
    """Means over seeds with their standard errors, markdown."""
    lines = ["| labels | map | replay | 300 K | 600 K | old data |", "|---|---|---|---|---|---|"]
    order = list(KINDS)
    keys = sorted({(r["size"], list(MAPS).index(r["map"]), order.index(r["replay"])) for r in content["rows"]})
    for size, arm, replay in keys:
        mine = [r for r in content["rows"] if (r["size"], r["map"], r["replay"]) == (size, list(MAPS)[arm], order[replay])]
        cells = []
        for test in ("300K", "600K", "old"):
            values = np.array([r[test][0] for r in mine])
            error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
            cells.append(f"{values.mean():.1f} ± {error:.1f}")
        lines.append(
            f"| {size} | {list(MAPS)[arm]} | {('no', 'yes', 'with a readout of its own')[replay]} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def draw(content: dict, path: Path) -> None:
    """Error on the new against error on the old data, a point for each kind of fine-tuning and size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), constrained_layout=True)
    colors = dict(zip(MAPS, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    sizes = sorted({row["size"] for row in content["rows"]})
    for panel, test in zip(axes, ("300K", "600K"), strict=True):
        for arm in MAPS:
            for replay, (marker, line) in zip(KINDS, (("o", "-"), ("s", "--"), ("^", ":")), strict=True):
                mine = [r for r in content["rows"] if r["map"] == arm and r["replay"] == replay]
                points = [
                    (
                        np.mean([r["old"][0] for r in mine if r["size"] == size]),
                        np.mean([r[test][0] for r in mine if r["size"] == size]),
                    )
                    for size in sizes
                    if any(r["size"] == size for r in mine)
                ]
                if points:
                    style = {"color": colors[arm], "marker": marker, "linestyle": line}
                    text = {False: "", True: ", replay", "own": ", replay, own readout"}[replay]
                    panel.plot(*zip(*points, strict=True), label=f"{arm}{text}", **style)
        panel.set(
            xscale="log", yscale="log", title=f"3BPA, {test.replace('K', ' K')}", xlabel="force RMSE on the old data, meV/Å"
        )
        for axis, ticks in ((panel.xaxis, (30, 100, 300)), (panel.yaxis, (25, 50, 100, 200))):
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("force RMSE on the new data, meV/Å")
    axes[1].legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--maps", nargs="+", choices=MAPS, default=list(MAPS))
    parser.add_argument("--replay", nargs="+", choices=KINDS.values(), default=list(KINDS.values()), help="new: none")
    parser.add_argument("--count", type=int, default=2500, help="structures labelled by GFN2-xTB")
    parser.add_argument("--hours", type=float, default=0.1, help="of training on them")
    parser.add_argument("--work", type=Path, default=Path("build/finetuning"))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "finetuning.json")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    args.folder, args.work = args.folder.resolve(), args.work.resolve()
    use_compilation_cache()
    teacher = prepare(args.folder, args.work, args.count, args.hours)
    files = {"300K": args.folder / "test_300K.xyz", "600K": args.folder / "test_600K.xyz", "old": args.work / "old_test.xyz"}
    tests = {name: read_dataset(str(file) if file.exists() else f"{file}.*") for name, file in files.items()}
    tests = {
        name: data.subset(np.linspace(0, len(data) - 1, min(TESTED, len(data))).astype(int)) for name, data in tests.items()
    }
    if not (args.work / "map.safetensors").exists():
        old = read_dataset(args.work / "old.xyz")
        plasticity.save(args.work / "map.safetensors", plasticity.importance(teacher, old.structures[:200]))
    content = json.loads(args.json.read_text()) if args.json.exists() else {"machine": machine(), "rows": []}
    content["what"] = (
        f"3BPA; {args.count} GFN2-xTB structures, {args.hours} h of training on them, {STEPS} steps of fine-tuning"
    )
    content["before"] = measured(teacher, tests) | {"failed": [line.name for line in certify(teacher).failed]}
    done = {(r["map"], r["replay"], r["size"], r["seed"]) for r in content["rows"]}
    for seed in range(args.seeds):
        for size in args.sizes:
            for arm in args.maps:
                for replay in [kind for kind in KINDS if KINDS[kind] in args.replay and (arm != "scratch" or not kind)]:
                    if (arm, replay, size, seed) not in done:
                        content["rows"].append(finetuned(arm, replay, size, seed, args, tests))
                        args.json.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))
    if args.plot is not None:
        draw(content, args.plot)


if __name__ == "__main__":
    main()
