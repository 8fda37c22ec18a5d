"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax


def machine() -> dict:
    """CPU model, cores, load, versions and date, for the head of a results file."""
    model = platform.processor() or "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("mlff", "jax", "jaxlib", "numpy")},
        "date": time.strftime("%Y-%m-%d"),
    }
