#!/usr/bin/env python3
"""How force fields hold where their data end: mlff and peers on systems whose true energies cost milliseconds.

    .venv/bin/python scripts/benchmarks/edge.py --quick --peers tensornet mace --core 1
    .venv/bin/python scripts/benchmarks/edge.py --systems cysteine silicon --structures 100 400 --minutes 15 --seeds 5

Needs tblite and rdkit beside mlff (pip install tblite rdkit). Each system of `oracles.py` (molecules by GFN2-xTB, metals by
EMT, silicon by Stillinger and Weber, water by GFN1-xTB) gives training structures from dynamics at 300 K and tests from
300 K to where it melts or nearly breaks, for solids also strained, with a vacancy and a surface. Every code trains on the
same files for the same time on one core. Then its potential runs dynamics of 16 replicas at 300, 600 and 1,200 K
(`peers/dynamics.py`: NVT, then NVE), and the oracle labels frames of it: the closed loop, in which an error is met by going
where the potential leads. `--draw` with another number draws all structures anew.

--quick: four systems, 200 structures, five minutes of training, 2 ps of dynamics: about half an hour for one code.
Complete: all systems, 100 and 400 structures, 50 ps of NVE after 10 ps of NVT.

Rows go into the JSON one by one; a row that is there already is not repeated. `--ours NAME=OPTION,OPTION` adds a config of
mlff. Errors are of force components, meV/Å; quantiles are of the force RMSE of single structures.
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
from oracles import SYSTEMS, draw, label, structures

sys.path.insert(0, str(Path(__file__).parent / "peers"))
from launch import OURS, launch, pin, versions
from service import quantiles

PEERS = ("tensornet", "mace", "painn", "nequip", "allegro")  #: those whose runner knows dynamics
QUICK = ("malonaldehyde", "cysteine", "acetylacetone", "silicon")
TEMPERATURES = (300.0, 600.0, 1200.0)
LABELLED = 60  #: frames of the closed loop, of each temperature, that the oracle labels at most


def closed_loop(file: Path, system: str) -> dict[str, dict]:
    """Errors along the dynamics, by temperature: frames spread over its length, the forces of the potential against the oracle's."""
    frames = read(file, ":") if file.exists() and file.stat().st_size else []
    calculator, rows = SYSTEMS[system].oracle(), {}
    for kelvin in TEMPERATURES:
        mine = [atoms for atoms in frames if atoms.info["temperature"] == kelvin]
        mine = [mine[k] for k in np.linspace(0, len(mine) - 1, min(LABELLED, len(mine))).round().astype(int)]
        each, wrong = [], []
        for atoms in mine:
            try:
                truth = label(atoms, calculator).get_forces()
            except Exception:  # whatever an oracle says of what no nature would show it
                each.append(np.inf)
                continue
            off = 1000 * (atoms.arrays["predicted_forces"] - truth)
            each.append(float(np.sqrt(np.mean(off**2))))
            wrong.append(off.ravel())
        if each:
            off = np.concatenate(wrong) if wrong else np.array([np.inf])
            rows[f"{kelvin:g} K"] = {
                "structures": len(each),
                "forces_rmse": round(float(np.sqrt(np.mean(off**2))), 2),
                "forces_mae": round(float(np.mean(np.abs(off))), 2),
                "forces_rmse_of_structures": quantiles(each),
            }
    return rows


def measure(
    code: str, program: str, options: list[str] | None, system: str, args: argparse.Namespace, count: int, seed: int
) -> dict:
    """One training with its tests and its closed loop: the row for the JSON."""
    files = draw(system, args.data / str(args.draw), 400, 100, args.draw)
    with tempfile.TemporaryDirectory() as scratch:
        train, loop = Path(scratch) / "train.xyz", Path(scratch) / "loop.xyz"
        write(train, structures(files["train"], count), format="extxyz")
        request = {"task": "train", "train": str(train), "valid": str(files["valid"]), "out": f"{scratch}/out"}
        request |= {"tests": {name: str(file) for name, file in files.items() if name not in ("train", "valid")}}
        request |= {"seconds": 60 * args.minutes, "clock": args.clock, "seed": seed, "options": options}
        request["dynamics"] = {
            "starts": str(files["300 K"]),
            "temperatures": TEMPERATURES,
            "replicas": args.replicas,
            "nvt": round(1000 * args.nvt),
            "nve": round(1000 * args.nve),
            "every": max(10, round(1000 * (args.nvt + args.nve) / 40)),
            "fragments": SYSTEMS[system].fragments,
            "out": str(loop),
        }
        before = machine()
        answer = launch(program, request, args.environments, Path(scratch) / "cache", args.limit * 3600)
        row = {"loop": closed_loop(loop, system)} if "errors" in answer else {}
    answer.pop("model", None)
    row |= answer | {"machine": before}
    return row | ({"versions": versions(code, args.environments)} if "errors" in row and program != OURS else {})


def table(rows: list[dict]) -> str:
    """Markdown, one line for each code, system and number of structures; of several seeds the worst."""
    head = (
        "system, structures",
        "code",
        "epochs",
        "RMSE / median / worst at 300 K",
        "600 K",
        "hottest or worst other",
        "above 1 eV/Å",
    )
    lines = ["| " + " | ".join((*head, "alive", "along the path", "failed lines")) + " |", "|" + "---|" * 10]
    keys = sorted({(row["system"], row["structures"], row["code"]) for row in rows}, key=str)
    for system, count, code in keys:
        mine = [row for row in rows if (row["system"], row["structures"], row["code"]) == (system, count, code)]
        good = [row for row in mine if "errors" in row]
        if not good:
            lines.append(f"| {system}, {count} | {code} | {mine[0].get('missing') or mine[0].get('failed')} |" + " |" * 7)
            continue

        def figures(test: str, good=good) -> str:
            parts = [row["errors"][test] for row in good]
            q = [part["forces_rmse_of_structures"] for part in parts]
            return f"{max(p['forces_rmse'] for p in parts):.1f} / {max(x['median'] for x in q):.1f} / {max(x['worst'] for x in q):.0f}"

        others = [test for test in good[0]["errors"] if test not in ("300 K", "600 K")]
        far = max(others, key=lambda test: max(row["errors"][test]["forces_rmse"] for row in good))
        above = max(part["forces_rmse_of_structures"]["above 1 eV/Å"] for row in good for part in row["errors"].values())
        alive = " / ".join(f"{np.mean([row['dynamics'][k]['alive'] for row in good]):.2f}" for k in good[0]["dynamics"])
        path = " / ".join(
            f"{max(row['loop'][k]['forces_rmse'] for row in good if k in row['loop']):.0f}"
            if any(k in row["loop"] for row in good)
            else "-"
            for k in good[0]["dynamics"]
        )
        failed = [len(row["certificate"]) for row in good if row.get("certificate") is not None]
        passed = f"{sum(not n for n in failed)} of {len(failed)} pass" if failed else ""
        cells = (
            f"{system}, {count}",
            code,
            f"{good[0]['epochs']:g}",
            figures("300 K"),
            figures("600 K"),
            f"{far}: {figures(far)}",
        )
        lines.append("| " + " | ".join((*cells, f"{above:.3f}", alive, path, passed)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, help="default: all, or the four of --quick")
    parser.add_argument("--structures", nargs="*", type=int, help="to train on, at most 400; default: 100 400, or 200")
    parser.add_argument("--minutes", type=float, help="of training; default: 15, or 5")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of mlff for each system (of peers always one)")
    parser.add_argument("--nvt", type=float, help="ps; default: 10, or 0.5")
    parser.add_argument("--nve", type=float, help="ps; default: 50, or 1.5")
    parser.add_argument("--replicas", type=int, help="at each temperature; default: 16, or 4")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[])
    parser.add_argument("--ours", action="append", default=[], help="a further config of mlff, NAME=OPTION,OPTION")
    parser.add_argument("--no-default", action="store_true", help="leave out mlff with its defaults")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="cpu", help="cpu: for a machine that others use meanwhile"
    )
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--draw", type=int, default=0, help="seed of the structures")
    parser.add_argument("--data", type=Path, default=Path("runs/edge"))
    parser.add_argument("--limit", type=float, default=4.0, help="hours that one training with its dynamics may take")
    parser.add_argument("--environments", type=Path, default=Path("build/peers"))
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "edge.json")
    args = parser.parse_args()
    short = args.quick
    systems = args.systems or (QUICK if short else tuple(SYSTEMS))
    counts = args.structures or ([200] if short else [100, 400])
    args.minutes = args.minutes or (5.0 if short else 15.0)
    args.nvt, args.nve = args.nvt or (0.5 if short else 10.0), args.nve or (1.5 if short else 50.0)
    args.replicas = args.replicas or (4 if short else 16)
    if not all(1 <= count <= 400 for count in counts):
        parser.error("--structures: there are 1 to 400 to train on")
    pin(args.core)
    codes: dict[str, tuple[str, list[str] | None]] = {} if args.no_default else {OURS: (OURS, [])}
    for item in args.ours:
        name, _, options = item.partition("=")
        codes[f"{OURS} {name}"] = OURS, [option for option in options.split(",") if option]
    codes |= {peer: (peer, None) for peer in args.peers}
    rows = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else []
    for system in systems:
        for count in counts:
            for code, (program, options) in codes.items():
                for seed in range(args.seeds if program == OURS else 1):
                    key = {"code": code, "system": system, "structures": count, "seed": seed, "draw": args.draw}
                    key |= {
                        "minutes": args.minutes,
                        "clock": args.clock,
                        "ps": [args.nvt, args.nve],
                        "replicas": args.replicas,
                    }
                    same = [row for row in rows if all(row.get(k) == v for k, v in key.items())]
                    if any("errors" in row for row in same):
                        continue
                    row = key | measure(code, program, options, system, args, count, seed)
                    rows = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else []
                    rows = [old for old in rows if not all(old.get(k) == v for k, v in key.items())] + [row]
                    args.json.parent.mkdir(parents=True, exist_ok=True)
                    args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                    print(table([row]).splitlines()[-1], flush=True)
    print(table([row for row in rows if row["minutes"] == args.minutes and row["draw"] == args.draw]))


if __name__ == "__main__":
    main()
