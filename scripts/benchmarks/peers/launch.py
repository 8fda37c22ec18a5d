"""Run one request in a code's own environment, in a process of its own with one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
OURS = "mlff"
THREADS = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM", "TF_INTRAOP", "TF_INTEROP")


def interpreter(name: str, environments: Path) -> str:
    """Python of a code's environment. Raises LookupError with the reason if there is none."""
    if name == OURS:
        return sys.executable
    record = environments / "environments.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    found = known.get(name, {"missing": f"no environment: python {HERE.relative_to(ROOT)}/environments.py --only {name}"})
    if "missing" in found:
        raise LookupError(found["missing"])
    return found["python"]


def versions(name: str, environments: Path) -> dict:
    """The versions that a peer's results depend on most."""
    known = json.loads((environments / "environments.json").read_text(encoding="utf-8"))[name]["versions"]
    wanted = ("torch", "jax", "torchmd-net", "mace-torch", "schnetpack", "apax", "nequip", "nequip-allegro", "mlip", "sgdml")
    return {package: known[package] for package in wanted if package in known}


def pin(*cores: int) -> None:
    """Keep this process, and those that it starts, on these cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def launch(name: str, request: dict, environments: Path, cache: Path, limit: float) -> dict:
    """The answer of `run_NAME.py`, or {"failed": reason}; `cache` holds the programs that JAX compiled."""
    try:
        python = interpreter(name, environments)
    except LookupError as error:
        return {"missing": str(error)}
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XLA_", "JAX_"))}
    environment |= {f"{key}_NUM_THREADS": "1" for key in THREADS}
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])) if name == OURS else "",
    }
    if request.get("device", "cpu") == "cpu":
        environment["JAX_PLATFORMS"] = "cpu"
    if request["task"] == "speed":  # in training the kernels of TensorNet, the same for all data, count as installed
        environment["WARP_CACHE_PATH"] = str(cache / "warp")
    command = [python, str(HERE / f"run_{name}.py")]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request | {"started": time.time()}),
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        words = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"failed": f"exit code {done.returncode}: {words}"[:500]}
    return json.loads(lines[-1])
