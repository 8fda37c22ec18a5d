#!/usr/bin/env python3
"""Error against cost: what each model of time_to_accuracy.py reached in its time, and what a step of it takes.

    .venv/bin/python scripts/benchmarks/front.py FOLDER --minutes 15 --rounds 3 --core 1

The errors are the rows of results/time_to_accuracy.json with this budget. Every code of them gets its cost here, in its
configuration there: energy and forces of the 27-atom molecule through the ASE calculator, as in cost_per_step.py, one after
the other and again, medians over rounds. A model is on the front if no other is both more accurate and faster. Writes JSON,
a plot beside it, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from cost_per_step import CALLS, structures
from machine import machine

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from launch import OURS, launch, pin

RESULTS = Path(__file__).parent / "results"
ATOMS = "27"


def options(row: dict) -> list[str]:
    """The options of mlff's config that a row was trained with."""
    given = row["settings"].removeprefix(f"{OURS}, ").removesuffix("; otherwise defaults")
    return [] if given == "defaults" else given.split(", ")


def on_front(rows: list[dict]) -> list[bool]:
    """Whether no other row has both a smaller error at 300 K and a smaller cost."""
    points = np.array([(row["t300"], row["us_per_atom"]) for row in rows])
    return [not (points < point).all(axis=1).any() for point in points]


def table(rows: list[dict], missing: dict[str, str]) -> str:
    """Markdown, the cheapest first; at the end what could not be timed, and why."""
    lines = ["| code | µs per atom and step | t300, meV/Å | t600 | on the front |", "|---|---|---|---|---|"]
    for row, first in zip(rows, on_front(rows), strict=True):
        figures = f"{row['us_per_atom']} | {row['t300']} | {row['t600']} | {'yes' if first else ''}"
        lines.append(f"| {row['code']}: {row['settings']} | {figures} |")
    lines += [f"| {code} | {reason} | | | |" for code, reason in missing.items()]
    return "\n".join(lines)


def plot(rows: list[dict], path: Path, minutes: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for row in rows:
        axes.plot(
            row["us_per_atom"],
            row["t300"],
            "o" if row["code"].startswith(OURS) else "s",
            color="C0" if row["code"].startswith(OURS) else "C1",
        )
        axes.annotate(row["code"], (row["us_per_atom"], row["t300"]), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set(
        xscale="log", yscale="log", xlabel="µs per atom and step (27 atoms, one core)", ylabel="force RMSE at 300 K, meV/Å"
    )
    axes.margins(x=0.12)  # room for the names
    axes.set_title(f"3BPA, {minutes:.0f} minutes of training on one core", fontsize=10)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=10.0, help="seconds of repeated calls at most, per measurement")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--environments", type=Path, default=Path("build/peers"))
    parser.add_argument("--errors", type=Path, default=RESULTS / "time_to_accuracy.json")
    parser.add_argument("--json", type=Path, default=RESULTS / "front.json")
    args = parser.parse_args()
    pin(args.core)
    trained = [row for row in json.loads(args.errors.read_text(encoding="utf-8")) if row["minutes"] == args.minutes]
    trained = [row for row in trained if "errors" in row]
    times: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        structure = structures(args.folder, Path(scratch))[ATOMS]
        for number in range(args.rounds):
            for row in trained:
                code = row["code"]
                program, work = code.split()[0], Path(scratch) / code.replace(" ", "_")
                request = {"structure": structure, "out": str(work / "model"), "calls": CALLS[ATOMS], "seconds": args.limit}
                request["options"] = options(row) if program == OURS else None
                if number == 0:
                    answer = launch(program, request | {"task": "prepare"}, args.environments, work / "cache", 300)
                    if reason := answer.get("missing") or answer.get("failed"):
                        missing[code] = reason
                if code in missing:
                    continue
                answer = launch(program, request | {"task": "speed"}, args.environments, work / "cache", 300)
                if "calculator" in answer:
                    times.setdefault(code, []).append(answer["calculator"]["cpu_ms"])
                print(number, code, answer.get("calculator") or answer, flush=True)
    rows = []
    for row in trained:
        if row["code"] in times:
            errors = {name: row["errors"][name]["forces_rmse"] for name in ("t300", "t600")}
            cost = round(1000 * float(np.median(times[row["code"]])) / int(ATOMS), 1)
            rows.append({"code": row["code"], "settings": row["settings"], "us_per_atom": cost, **errors})
    rows.sort(key=lambda row: row["us_per_atom"])
    content = {
        "machine": machine(),
        "minutes": args.minutes,
        "rounds": args.rounds,
        "times_ms": times,
        "missing": missing,
        "rows": rows,
    }
    args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    plot(rows, args.json.with_suffix(".png"), args.minutes)
    print(table(rows, missing))


if __name__ == "__main__":
    main()
