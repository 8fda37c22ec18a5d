"""What a run was made with: versions, machine, command. Kept beside what it wrote, one entry for each start."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from mlff.basics.files import write_text

PACKAGES = ("mlff", "jax", "jaxlib", "flax", "optax", "numpy", "ase")


def versions() -> dict[str, str]:
    """Of mlff and the packages that decide about numbers."""
    return {name: version(name) for name in PACKAGES}


def machine() -> str:
    """System, Python and cores in words."""
    return f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores"


def record(path: Path, go_on: bool, **facts) -> None:
    """Add this start of a run to the JSON list in `path`; a run that does not `go_on` begins a new list."""
    entries = []
    if go_on and path.exists():
        try:
            entries = list(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            pass  # damaged: it only tells what was
    started = datetime.now(UTC).isoformat(timespec="seconds")
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    entries.append({"started": started, "command": command, "versions": versions(), "machine": machine(), **facts})
    write_text(path, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
