#!/usr/bin/env python3
"""Vibrational frequencies of malonaldehyde towards those of PBE0-D3(BJ)/def2-SVP, energies and forces kept.

    .venv/bin/python scripts/benchmarks/refinement.py runs/malonaldehyde/model.safetensors

Takes configs/refine/malonaldehyde.yaml, with that model. Rows: wavenumbers (cm⁻¹) of the reference, before and after, and errors of
forces (meV/Å) and energies (meV/atom) on structures kept aside, before and after. Writes scripts/benchmarks/results/refinement.json
and docs/images/refinement.png. --plot draws what the JSON holds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import machine

from mlff.basics.runtime import use_compilation_cache
from mlff.config.refinement import load_refinement
from mlff.refinement.refine import refine
from mlff.refinement.state import FILE, read_looks

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "refinement.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--set", action="append", default=[], help="override a key of the config")
    parser.add_argument("--out", type=Path, help="folder of the run; default: a temporary one")
    parser.add_argument("--plot", action="store_true", help="only draw")
    arguments = parser.parse_args()
    if not arguments.plot:
        if arguments.model is None:
            parser.error("a model file, or --plot")
        with tempfile.TemporaryDirectory() as folder:
            content = measure(arguments.model, arguments.out or Path(folder), arguments.set)
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(json.loads(RESULTS.read_text(encoding="utf-8")))


def measure(model: Path, out: Path, overrides: list[str]) -> dict:
    use_compilation_cache()
    head = machine()
    config = load_refinement(ROOT / "configs" / "refine" / "malonaldehyde.yaml", overrides)
    begun, cpu = time.perf_counter(), time.process_time()
    _, outcome = refine(config.model_copy(update={"model": str(model)}), out, progress=True)
    seconds = {"seconds": round(time.perf_counter() - begun, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    looks = read_looks(out / FILE)
    print(*outcome.verdicts, sep="\n")
    return {
        "machine": head,
        **seconds,
        "learning_rate": config.optimizer.learning_rate,
        "outcome": outcome.to_dict(),
        "looks": looks,
    }


def draw(content: dict) -> None:
    from matplotlib.figure import Figure

    row, looks = content["outcome"]["targets"][0], content["looks"]
    target, before, after = (np.array(row[name]) for name in ("target", "before", "after"))
    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    place = np.arange(len(target))
    for values, name, color, shift in ((before, "before", "tab:gray", -0.2), (after, "after", "tab:blue", 0.2)):
        rms = np.sqrt(np.mean((values - target) ** 2))
        left.bar(place + shift, values - target, 0.4, color=color, label=f"{name}: {rms:.1f} cm⁻¹ RMS")
    left.axhline(0, color="black", lw=0.8)
    left.set(xlabel="mode", ylabel="wavenumber less PBE0's, cm⁻¹", title="malonaldehyde, harmonic frequencies")
    left.legend(frameon=False)
    steps = [look["step"] for look in looks]
    bars = row["error_bars"][0]
    right.plot(steps, [bars * look["deviations"][0] for look in looks], "o-", ms=3, color="tab:blue")
    right.set(xlabel="step", ylabel="RMS deviation of frequencies, cm⁻¹", ylim=(0, None))
    right.yaxis.label.set_color("tab:blue")
    other = right.twinx()
    other.plot(steps, [look["forces"] for look in looks], "s-", ms=3, color="tab:red")
    other.set(ylabel="force error, validation, meV/Å", ylim=(0, None))
    other.yaxis.label.set_color("tab:red")
    figure.savefig(ROOT / "docs" / "images" / "refinement.png")


if __name__ == "__main__":
    main()
