"""Files that are whole or not there, that one process works on at a time, and that are not among those read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mlff.errors import ConfigError, DataError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well. Raises DataError: no such directory."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a directory")
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such directory: {path.parent}")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone(lock: str | Path, busy: str) -> Iterator[None]:
    """Hold the lock file `lock` in the block; the system releases it when the process ends, however it ends.

    A block that ends removes the file; a killed process leaves it, unlocked.

    Raises ConfigError with the message `busy` when another process (or another block of this one) holds it.
    """
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise ConfigError(busy) from None
    try:
        yield
    finally:
        Path(lock).unlink(missing_ok=True)
        held.release()


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def keep_inputs(outputs: list[Path | None], inputs: list[Path]) -> None:
    """Raise DataError if a file to write is one that is read."""
    for out in outputs:
        if out is not None and any(out.resolve() == path.resolve() for path in inputs):
            raise DataError(f"{out}: is an input and would be overwritten; choose another name")
