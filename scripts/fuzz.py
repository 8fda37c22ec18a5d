#!/usr/bin/env python3
"""Hostile inputs for every reader: each is read, or refused in mlff's own words, in bounded time and memory.

    .venv/bin/python scripts/fuzz.py [--targets extxyz npz ...] [--count 100000] [--seed 0]

Inputs are mutations of small valid files (tests/fuzzing). They are read in processes of their own under an audit hook that
forbids to start programs, open sockets, unpickle, or touch files outside the scratch folder; 2 s of CPU time and 512 MiB
of memory are the limits. The figures go to scripts/benchmarks/results/fuzz.json (those of the targets that were run; the
others stay), the first input of each fault to runs/fuzz. Ctrl-C ends it and keeps the figures so far. Exit code 1 if there
were faults.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "benchmarks")]

from machine import machine
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tests.fuzzing.engine import Tally, run, summary
from tests.fuzzing.guard import CPU_SECONDS, MEMORY
from tests.fuzzing.targets import TARGETS

SLOW = {"checkpoint files": 10}  #: so many times fewer inputs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--targets", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="TARGET", help=", ".join(TARGETS)
    )
    parser.add_argument("--count", type=int, default=100_000, help="inputs per target (checkpoint files: a tenth)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "scripts" / "benchmarks" / "results" / "fuzz.json")
    parser.add_argument("--save", type=Path, default=ROOT / "runs" / "fuzz", help="folder for inputs that show a fault")
    args = parser.parse_args()
    tallies: dict[str, Tally] = {}
    columns = (
        TextColumn("{task.description:16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    interrupted = False
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as bar:
        try:
            for name in args.targets:
                count = max(1, args.count // SLOW.get(name, 1))
                task = bar.add_task(name, total=count, note="")

                def show(tally: Tally, task=task, name=name) -> None:
                    tallies[name] = tally
                    bar.update(task, completed=tally.count, note=f"{tally.unclean} faults" if tally.unclean else "")

                tallies[name] = run(name, count, args.seed, show, args.save)
        except KeyboardInterrupt:
            interrupted = True
    table = Table("target", *(f"{name}" for name in ("inputs", "accepted", "refused", "faults", "slowest, s", "memory, MB")))
    for name, tally in tallies.items():
        figures = tally.count, tally.accepted, tally.refused, tally.unclean
        table.add_row(
            name, *(f"{value:,}" for value in figures), f"{tally.slowest_cpu_s:.2f}", f"{tally.peak_memory_mb:.0f}"
        )
    console.print(table)
    for name, tally in tallies.items():
        for signature, (count, index, _) in tally.findings.items():
            console.print(
                f"{name}: {signature} ({count} times; {args.save / name.replace(' ', '_') / str(index)})", markup=False
            )
    old = json.loads(args.out.read_text(encoding="utf-8"))["targets"] if args.out.exists() else {}
    limits = {"cpu_s": CPU_SECONDS, "memory_mb": MEMORY // 2**20}
    rows = {name: {"seed": args.seed, **summary(tally)} for name, tally in tallies.items()}
    content = {"machine": machine(), "limits": limits, "targets": old | rows}
    args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"{'interrupted; ' if interrupted else ''}figures: {args.out}", markup=False)
    return 1 if any(tally.unclean for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
