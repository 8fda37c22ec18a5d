"""Records of labels on disk, shared by the generators: one JSON object a line, whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()


def progress() -> Progress:
    """A rich progress bar with counts and times."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console)


def load(path: Path) -> list[dict]:
    """Complete records of a JSON-lines file (torn lines are ignored)."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return records


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says against writing `path` ends the program with one line; what was written before stays."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SystemExit(
            f"error: {path}: {reason}: free space or make it writable, and run the same again; nothing is lost"
        ) from None


def append(path: Path, record: dict) -> None:
    """Append one record and force it to disk; if that fails, nothing of it stays. Raises SystemExit with one line."""
    with writing(path):
        size = path.stat().st_size if path.exists() else 0
        torn = size > 0 and path.read_bytes()[-1:] != b"\n"
        try:
            with open(path, "ab") as f:
                f.write((("\n" if torn else "") + json.dumps(record) + "\n").encode())
                f.flush()
                os.fsync(f.fileno())
        except OSError:
            with suppress(OSError):
                os.truncate(path, size)
            raise


def atomic_write(path: Path, text: str) -> None:
    """Write a file in one step, or leave what was there. Raises SystemExit with one line."""
    tmp = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(tmp, "w", encoding="utf-8") as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
            os.replace(tmp, path)
        finally:
            with suppress(OSError):
                tmp.unlink()
