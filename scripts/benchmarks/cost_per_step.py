#!/usr/bin/env python3
"""What energy and forces cost: mlff and its peers, one after the other and again, in one run on one core.

    .venv/bin/python scripts/benchmarks/cost_per_step.py FOLDER --peers tensornet mace apax --rounds 3 --core 1

Random weights (the time does not depend on them), the configurations of time_to_accuracy.py. Structures: a 27-atom molecule
of 3BPA (FOLDER/3bpa/train_300K.xyz, public, not shipped), 256 and 4,000 copper atoms, periodic, displaced by 0.05 Å. In every
round each code gets a new process on each structure: from its start to the first force (the first time with empty caches of
compiled programs: cold; later warm), the ASE calculator while atoms move as in molecular dynamics, the bare model on a fixed
prepared structure, the peak of resident memory. The figures are CPU milliseconds, medians over calls, then over rounds; a
ratio is one of medians of the same round, then the median over rounds. The peers' environments: peers/environments.py.

With --device gpu the figures are wall-clock milliseconds and nothing is pinned; mlff and mace-torch know how. --work FOLDER
keeps the models with random weights, so that --rounds 0 makes them (on the CPU) and a later run only times.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.io import read, write
from machine import machine

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from launch import OURS, launch, pin, versions

PEERS = ("tensornet", "mace", "painn", "apax", "nequip", "allegro", "visnet", "sgdml")
CALLS = {"27": 300, "256": 30, "4000": 3}


def structures(folder: Path, out: Path) -> dict[str, str]:
    """Files of the structures, by their number of atoms."""
    molecule = read(folder / "3bpa/train_300K.xyz", 0)
    molecule.calc = None
    molecule.info.clear()
    molecule.set_cell(None)
    molecule.pbc = False
    found = {"27": molecule}
    for name, repeats in (("256", 4), ("4000", 10)):
        found[name] = bulk("Cu", cubic=True).repeat(repeats)
        found[name].rattle(0.05, seed=0)
    for name, atoms in found.items():
        write(out / f"{name}.xyz", atoms, format="extxyz")
    return {name: str(out / f"{name}.xyz") for name in found}


def summarize(rows: list[dict], clock: str) -> dict:
    """Medians and ratios to mlff per code and structure; `clock`: cpu_ms or wall_ms."""
    summary = {}
    for code, case in dict.fromkeys((row["code"], row["case"]) for row in rows):
        mine = [row for row in rows if (row["code"], row["case"]) == (code, case)]
        done = [row for row in mine if "calculator" in row]
        entry = summary.setdefault(code, {})[case] = {}
        if not done:
            entry["reason"] = mine[-1].get("missing") or mine[-1].get("failed")
            continue
        base = {row["round"]: row for row in rows if (row["code"], row["case"]) == (OURS, case) and "calculator" in row}
        for kind in ("calculator", "bare"):
            timed = [row for row in done if row[kind]]
            if timed:
                entry[f"{kind}_ms"] = round(float(np.median([row[kind][clock] for row in timed])), 3)
            ratios = [row[kind][clock] / base[row["round"]][kind][clock] for row in timed if row["round"] in base]
            if ratios:
                entry[f"{kind}_ratio"] = round(float(np.median(ratios)), 2)
        entry["us_per_atom"] = round(1000 * entry["calculator_ms"] / int(case), 1)
        cold = [row["first_force_s"] for row in done if row["round"] == 0]
        warm = [row["first_force_s"] for row in done if row["round"] > 0]
        if cold:
            entry["first_force_cold_s"] = round(cold[0], 1)
        if warm:
            entry["first_force_warm_s"] = round(float(np.median(warm)), 1)
        entry["peak_memory_mib"] = int(np.median([row["peak_memory_mib"] for row in done]))
    return summary


def table(summary: dict, cases: list[str]) -> str:
    """Markdown, one row per code and structure."""
    lines = [
        "| atoms | code | ASE calculator, ms (µs/atom) | bare, ms | times mlff: ASE / bare | first force cold / warm, s | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        for code, entries in summary.items():
            entry = entries.get(case, {})
            if "reason" in entry:
                lines.append(f"| {case} | {code} | {entry['reason']} | | | | |")
            elif entry:
                ratio = f"{entry.get('calculator_ratio', '')} / {entry.get('bare_ratio', '')}"
                first = f"{entry.get('first_force_cold_s', '')} / {entry.get('first_force_warm_s', '')}"
                calculator = f"{entry['calculator_ms']} ({entry['us_per_atom']})"
                lines.append(
                    f"| {case} | {code} | {calculator} | {entry.get('bare_ms', '')} | {ratio} | {first} | {entry['peak_memory_mib']} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--ours", default="model.channels=32", help="options of mlff's config, separated by commas")
    parser.add_argument("--cases", nargs="*", choices=CALLS, default=list(CALLS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=30.0, help="seconds of repeated calls at most, per measurement")
    parser.add_argument("--core", type=int, nargs="+", default=[0], help="more than one: for start-up as users see it")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--work", type=Path, help="folder to keep models in; default: one that is thrown away")
    parser.add_argument("--environments", type=Path, default=Path("build/peers"))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "cost_per_step.json")
    args = parser.parse_args()
    clock = "cpu_ms" if args.device == "cpu" else "wall_ms"
    if args.device == "cpu":
        pin(*args.core)
    with tempfile.TemporaryDirectory() if args.work is None else nullcontext(args.work.resolve()) as scratch:
        work = Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        files, failed = structures(args.folder, work), {}
        pairs = [(case, code) for case in args.cases for code in (OURS, *args.peers)]

        def request(task: str, case: str, code: str, **more) -> dict:
            return {
                "task": task,
                "structure": files[case],
                "out": str(work / code / case / "model"),
                "options": args.ours.split(","),
            } | more

        for case, code in pairs:
            if not (work / code / case / "model").exists():
                answer = launch(code, request("prepare", case, code), args.environments, work / "other", 300)
                if answer.keys() & {"failed", "missing"}:
                    failed[case, code] = answer
        if not args.rounds:
            return
        content = {
            "machine": machine(),
            "clock": clock,
            "unit": "milliseconds per call",
            "rounds": args.rounds,
            "versions": {},
            "rows": [],
        }
        if args.device == "cpu":
            content["cores"] = args.core
        for number in range(args.rounds):
            for case, code in pairs:
                if number and (case, code) in failed:
                    continue
                answer = failed.get((case, code))
                if answer is None:
                    more = {"calls": CALLS[case], "seconds": args.limit, "device": args.device}
                    answer = launch(
                        code,
                        request("speed", case, code, **more),
                        args.environments,
                        work / code / case / "cache",
                        10 * args.limit,
                    )
                    if "calculator" not in answer:
                        failed[case, code] = answer
                content["rows"].append({"code": code, "case": case, "round": number, **answer})
                if code in args.peers and "missing" not in answer:
                    content["versions"][code] = versions(code, args.environments)
                content["summary"] = summarize(content["rows"], clock)
                content["load_after"] = machine()["load_average"]
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
                print(number, case, code, json.dumps(answer), flush=True)
    print(table(content["summary"], args.cases))


if __name__ == "__main__":
    main()
