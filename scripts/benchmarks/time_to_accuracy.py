#!/usr/bin/env python3
"""Errors after the same time on the same core and the same structures: mlff and its peers on 3BPA.

    .venv/bin/python scripts/benchmarks/time_to_accuracy.py FOLDER --minutes 15 --peers tensornet mace apax --core 1

FOLDER holds 3bpa/train_300K.xyz and 3bpa/train_mixedT_300K_600K.xyz (public, not shipped). Training: the 500 structures of
train_300K, shuffled with seed 0, 450 (or the first --structures of them) to train and 50 to validate. Tests, both from the mixed file: t300, its first third
less what train_300K holds too (136 structures), and t600, its last 167. The 1200 K structures are not touched. Every run is
a process of its own on one core with one thread; starting, setting up and compiling count. The peers' environments are made
by peers/environments.py. Rows go into the JSON one by one; a row that is there already is not repeated.

`--ours NAME=OPTION,OPTION` adds a config of mlff, e.g. --ours 64=model.channels=64,model.cutoff=4.0

Codes that are in the JSON for more than one time or number of structures, all else equal, are shown as curves: a table, and
a plot beside the JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from ase.io import read, write
from machine import machine

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from launch import OURS, launch, pin, versions

PEERS = ("tensornet", "mace", "painn", "apax", "nequip", "allegro", "visnet", "sgdml")


def split(folder: Path, out: Path, structures: int = 450) -> dict[str, str]:
    """Write train (the first `structures` of it), valid, t300 and t600 as extended XYZ; their paths."""
    known = read(folder / "3bpa/train_300K.xyz", ":")
    mixed = read(folder / "3bpa/train_mixedT_300K_600K.xyz", ":")
    seen = {atoms.positions.tobytes() for atoms in known}
    order = np.random.default_rng(0).permutation(len(known))
    parts = {
        "train": [known[k] for k in order[:450]],
        "valid": [known[k] for k in order[450:]],
        "t300": [atoms for atoms in mixed[:167] if atoms.positions.tobytes() not in seen],
        "t600": mixed[-167:],
    }
    sizes = {name: len(part) for name, part in parts.items()}
    if sizes != {"train": 450, "valid": 50, "t300": 136, "t600": 167}:
        sys.exit(f"error: {folder}/3bpa: these are not the files the split is made for, it gives {sizes}")
    for name, part in parts.items():
        for atoms in part:
            atoms.info.clear()
            atoms.set_cell(None)
            atoms.pbc = False
        write(out / f"{name}.xyz", part[:structures] if name == "train" else part, format="extxyz")
    return {name: str(out / f"{name}.xyz") for name in parts}


def table(rows: list[dict]) -> str:
    """Markdown, best at 300 K first."""
    lines = [
        "| code, configuration | wall / CPU s | epochs | t300 energy / force RMSE, meV, meV/Å | t600 |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["errors"]["t300"]["forces_rmse"] if "errors" in row else np.inf):
        if "errors" not in row:
            lines.append(f"| {row['code']} | {row.get('missing') or row.get('failed')} | | | |")
            continue
        pair = [
            f"{row['errors'][name]['energy_rmse']:.1f} / {row['errors'][name]['forces_rmse']:.1f}"
            for name in ("t300", "t600")
        ]
        seconds = f"{row['train_wall_s']:.0f} / {row['train_cpu_s']:.0f}"
        lines.append(f"| {row['code']}: {row['settings']} | {seconds} | {row['epochs']} | {pair[0]} | {pair[1]} |")
    return "\n".join(lines)


def curves(rows: list[dict], axis: str = "minutes") -> dict[str, dict[float, dict]]:
    """Errors by code and minutes (or structures), of the codes with more than one."""
    found: dict[str, dict[float, dict]] = {}
    for row in sorted((row for row in rows if "errors" in row), key=lambda row: row[axis]):
        found.setdefault(row["code"], {})[row[axis]] = row["errors"]
    return {code: points for code, points in found.items() if len(points) > 1}


def curve_table(found: dict[str, dict[float, dict]], axis: str = "minutes") -> str:
    """Markdown: force RMSE at 300 K / 600 K, meV/Å, one column for each time or number of structures."""
    ticks = sorted({point for points in found.values() for point in points})
    lines = [f"| {axis} | " + " | ".join(f"{tick:g}" for tick in ticks) + " |", "|---|" + "---|" * len(ticks)]
    for code, points in found.items():
        cells = [
            " / ".join(f"{points[t][name]['forces_rmse']:.1f}" for name in ("t300", "t600")) if t in points else ""
            for t in ticks
        ]
        lines.append(f"| {code} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(
    found: dict[str, dict[float, dict]], path: Path, axis: str = "minutes", title: str = "3BPA, 450 structures at 300 K"
) -> None:
    """Errors at 300 K (full lines) and 600 K (broken ones) against the time of training or the number of structures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4.2), layout="constrained")
    for number, (code, points) in enumerate(found.items()):
        for name, line in (("t300", "o-"), ("t600", "s--")):
            errors = [points[point][name]["forces_rmse"] for point in points]
            axes.plot(list(points), errors, line, color=f"C{number}", label=f"{code}, {name[1:]} K")
    label = {"minutes": "minutes of training on one core", "structures": "training structures"}[axis]
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="force RMSE, meV/Å")
    ticks = sorted({point for points in found.values() for point in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    ticks = (10, 20, 50, 100, 200, 500)
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--structures", type=int, default=450, help="to train on, at most 450")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--ours", action="append", default=[], help="a further config of mlff, NAME=OPTION,OPTION")
    parser.add_argument("--no-default", action="store_true", help="leave out mlff with its defaults")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a machine that others use meanwhile"
    )
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--environments", type=Path, default=Path("build/peers"))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "time_to_accuracy.json")
    args = parser.parse_args()
    if not 1 <= args.structures <= 450:
        parser.error(f"--structures: there are 1 to 450 to train on, not {args.structures}")
    pin(args.core)
    ours: dict[str, list[str]] = {} if args.no_default else {OURS: []}
    for item in args.ours:
        name, _, options = item.partition("=")
        ours[f"{OURS} {name}"] = [option for option in options.split(",") if option]
    rows = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else []
    key = {"minutes": args.minutes, "structures": args.structures, "clock": args.clock, "seed": args.seed}
    for code in (*ours, *args.peers):
        same = [row for row in rows if row["code"] == code and all(row[k] == v for k, v in key.items())]
        if any("errors" in row for row in same):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            files = split(args.folder, Path(scratch), args.structures)
            request = {"task": "train", "train": files["train"], "valid": files["valid"], "out": f"{scratch}/out"}
            request |= {"tests": {name: files[name] for name in ("valid", "t300", "t600")}}
            request |= {"seconds": 60 * args.minutes, "clock": args.clock, "seed": args.seed, "options": ours.get(code)}
            program = OURS if code in ours else code
            before = machine()
            answer = launch(program, request, args.environments, Path(scratch) / "cache", 300 * args.minutes + 900)
        answer.pop("model", None)
        row = {"code": code, **key, **answer, "machine": before, "load_after": machine()["load_average"]}
        if "errors" in row and code in args.peers:
            row["versions"] = versions(code, args.environments)
        rows = [old for old in rows if old not in same] + [row]
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(code, json.dumps(row.get("errors") or row.get("failed") or row.get("missing")), flush=True)
    print(table([row for row in rows if all(row[k] == v for k, v in key.items())]))
    for axis, other, title in (
        ("minutes", "structures", f"3BPA, {args.structures} structures at 300 K"),
        ("structures", "minutes", f"3BPA, {args.minutes:g} minutes"),
    ):
        alike = [row for row in rows if all(row[k] == key[k] for k in (other, "clock", "seed"))]
        if found := curves(alike, axis):
            print(curve_table(found, axis))
            plot(found, args.json.with_suffix(".png"), axis, title)


if __name__ == "__main__":
    main()
