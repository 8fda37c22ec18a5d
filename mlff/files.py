"""Files that are either whole or not there, and never one that is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlff.errors import DataError


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


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def keep_inputs(outputs: list[Path | None], inputs: list[Path]) -> None:
    """Raise DataError if a file to write is one that is read."""
    for out in outputs:
        if out is not None and any(out.resolve() == path.resolve() for path in inputs):
            raise DataError(f"{out}: is an input and would be overwritten; choose another name")
