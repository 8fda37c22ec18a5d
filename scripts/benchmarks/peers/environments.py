#!/usr/bin/env python3
"""Make one virtual environment per peer (other codes that benchmarks compare with), versions pinned.

    python scripts/benchmarks/peers/environments.py [--folder build/peers] [--only tensornet mace ...] [--pip "OPTIONS"]

Environments that are there already are left alone. FOLDER/environments.json says of every peer which versions it got, or
why it is missing: the benchmarks print that reason instead of a figure. PyTorch of the ordinary index brings gigabytes of
CUDA libraries on Linux; all measurements are on the CPU, so point pip at a CPU build of torch 2.13.0, for instance with
--pip "--find-links FOLDER_OF_WHEELS" or --pip "--extra-index-url INDEX". All eight environments take about 11 GB.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import venv
from pathlib import Path

TORCH = ["torch==2.13.0", "numpy==2.3.5", "ase==3.29.0"]  # first and by itself, so that nothing else chooses a build
JAX = ["jax==0.10.2", "jaxlib==0.10.2", "ase==3.29.0"]

PEERS = {  # name: (module that must import, pip's arguments step by step)
    "tensornet": (
        "torchmdnet.calculators",
        [
            TORCH,
            ["setuptools>=82", "h5py==3.16.0", "torch_geometric==2.8.1", "lightning==2.6.6", "tqdm", "warp-lang==1.19.0"],
            ["--no-deps", "torchmd-net==3.1.0"],
        ],
    ),
    "mace": ("mace.calculators", [TORCH, ["mace-torch==0.3.16"]]),
    "painn": (  # schnetpack pins torch 2.4.1; run_painn.py gives it two names that newer torch lacks, so it cannot import here
        "matscipy",
        [
            TORCH,
            ["sympy", "h5py", "pyyaml", "hydra-core", "hydra-colorlog", "pytorch_lightning==2.6.6", "torchmetrics", "rich"],
            ["fasteners", "dirsync", "torch-ema", "matscipy", "tensorboard", "tensorboardX", "tqdm", "progressbar", "vesin"],
            ["--no-deps", "schnetpack==2.1.1"],
        ],
    ),
    "apax": ("apax.md", [JAX, ["apax==0.14.0"]]),
    "nequip": ("nequip.ase", [TORCH, ["nequip==0.19.1"]]),
    "allegro": ("allegro.model", [TORCH, ["nequip==0.19.1", "nequip-allegro==0.8.3"]]),
    "visnet": ("mlip.simulation", [JAX, ["mlip==0.2.5"]]),
    "sgdml": ("sgdml.train", [TORCH, ["sgdml==1.0.3"]]),  # breaks on numpy >= 2.4
}


def run(command: list) -> None:
    """Run a command; its last line of output as the reason if it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        errors = [line for line in lines if "error" in line.lower()]
        raise RuntimeError(" | ".join(errors[-2:] or lines[-1:])[:500])


def make(name: str, folder: Path, options: list[str]) -> dict:
    """One environment: what it holds, or why there is none."""
    module, steps = PEERS[name]
    python = folder / name / "bin" / "python"
    if not python.exists():
        venv.create(folder / name, with_pip=True)
    try:
        for step in steps:
            run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options, *step])
        run([python, "-c", f"import {module}"])
    except RuntimeError as error:
        return {"missing": str(error)}
    freeze = subprocess.run(
        [python, "-m", "pip", "freeze", "--disable-pip-version-check"], capture_output=True, text=True, check=False
    )
    return {"python": str(python), "versions": dict(line.split("==") for line in freeze.stdout.splitlines() if "==" in line)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/peers"))
    parser.add_argument("--only", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--pip", default="", help="further options of pip install, one string")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "environments.json"
    for name in args.only:
        known = json.loads(record.read_text()) if record.exists() else {}
        if "python" not in known.get(name, {}):
            print(f"{name} ...", flush=True)
            known[name] = make(name, folder, shlex.split(args.pip))
            record.write_text(json.dumps(known, indent=1) + "\n")
        print(
            f"{name}: {'missing: ' + known[name]['missing'] if 'missing' in known[name] else known[name]['python']}",
            flush=True,
        )
    sys.exit(any("missing" in known[name] for name in args.only))


if __name__ == "__main__":
    main()
