"""Files that are whole or not there, that one process works on at a time, and that are not among those read."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mlff.basics.errors import ConfigError, DataError, FileError

COMPRESSED = (".gz", ".bz2", ".xz")
PNG = (".png",)
HTML = (".html",)
EXTXYZ = (".xyz", ".extxyz")
AGAIN = "run the same command again"  #: what to do once there is space
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def cannot_write(path: str | Path, error: Exception, again: str = AGAIN) -> FileError:
    """The one line about a file that cannot be written, and what to do; `error` from the system or quoting it."""
    text = str(error).lower()
    for number in (*_FULL, *_CLOSED):
        if getattr(error, "errno", None) == number or os.strerror(number).lower() in text:
            reason = os.strerror(number).lower()
            if number in _FULL:
                return FileError(f"{path}: {reason}: free space and {again}; nothing is lost")
            return FileError(f"{path}: {reason}: choose another place, or make it writable and {again}")
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
    return FileError(f"{path}: cannot be written: {reason}")


@contextmanager
def writing(path: str | Path, again: str = AGAIN) -> Iterator[None]:
    """The block writes `path`: what the system says against it becomes a FileError that names it."""
    try:
        yield
    except FileError:  # of a file that the block writes besides
        raise
    except OSError as error:
        raise cannot_write(path, error, again) from error


def refuse_filled(folder: Path) -> None:
    """Raise ConfigError for a folder to write that is a file, or holds files."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already; choose another folder")


def sync(path: str | Path) -> None:
    """Force a file, or the names in a directory, to disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, whole and on disk, when the block ends well.

    Raises DataError: no such directory; FileError: no space, no permission. What was at `path` is then still there.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a directory")
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such directory: {path.parent}")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    with writing(path):
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()
        with suppress(OSError):  # some file systems cannot
            sync(path.parent)


@contextmanager
def alone(lock: str | Path, busy: str) -> Iterator[None]:
    """Hold the lock file `lock` in the block; the system releases it when the process ends, however it ends.

    A block that ends removes the file; a killed process leaves it, unlocked.

    Raises ConfigError with the message `busy` when another process (or another block of this one) holds it; FileError.
    """
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise ConfigError(busy) from None
    except OSError as error:
        raise cannot_write(lock, error) from error
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock).unlink()
        held.release()


def write_text(path: str | Path, text: str) -> None:
    """Write a whole file in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_output(path: Path, suffixes: Sequence[str] = ()) -> None:
    """Raise DataError or FileError, before any work, if a file of this name cannot be written.

    With `suffixes` the name must end in one of them; without, in none of compressed files.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a directory")
    if suffixes and path.suffix not in suffixes:
        raise DataError(f"{path}: the name must end in {', '.join(suffixes)}")
    if not suffixes and path.suffix in COMPRESSED:
        raise DataError(f"{path}: is not written compressed; choose a name without {path.suffix}")
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such directory: {path.parent}")
    with writing(path), tempfile.TemporaryFile(dir=path.parent):
        pass
    if path.exists() and not os.access(path, os.W_OK):
        raise cannot_write(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def check_outputs(outputs: Sequence[tuple[Path | None, Sequence[str]]], inputs: Sequence[Path]) -> None:
    """`check_output` of all that are not None; DataError too if one is read, or written twice."""
    seen: set[Path] = set()
    for out, suffixes in outputs:
        if out is None:
            continue
        if any(out.resolve() == path.resolve() for path in inputs):
            raise DataError(f"{out}: is an input and would be overwritten; choose another name")
        if out.resolve() in seen:
            raise DataError(f"{out}: is to be written twice; choose another name for one of them")
        seen.add(out.resolve())
        check_output(out, suffixes)
