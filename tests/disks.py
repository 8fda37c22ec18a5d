"""Disks that fill up, that nobody may write, and moments at which a process may die: for tests of what survives."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A file system of its own in memory."""

    def __init__(self, root: Path):
        self.root = root
        self._filler = root / "filler"

    def leave(self, free: int) -> None:
        """Fill it up to `free` bytes (whole pages)."""
        self.empty()
        with open(self._filler, "wb", buffering=0) as file:
            file.write(bytes(max(0, self.free() - free)))
        assert self.free() <= max(free, 4096)

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)

    def free(self) -> int:
        numbers = os.statvfs(self.root)
        return numbers.f_bavail * numbers.f_bsize

    def lock(self) -> None:
        """Nothing can be written from now on, by root neither."""
        subprocess.run(["mount", "-o", "remount,ro", str(self.root)], check=True)


@contextlib.contextmanager
def small_disk(root: Path, size: str = "4m") -> Iterator[SmallDisk]:
    """A tmpfs at `root`; skips the test where it may not be mounted."""
    root.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "mlff-test", str(root)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(root)
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


class Moments:
    """Copies of a folder as it is whenever a file in it is about to be made, renamed or removed: what a kill would leave."""

    EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
    _active: Moments | None = None
    _hooked = False

    def __init__(self, folder: Path, copies: Path):
        self.folder, self.copies = folder, copies
        self.count = 0
        self._busy = threading.Lock()

    def __enter__(self) -> Moments:
        if not Moments._hooked:
            sys.addaudithook(_hook)  # stays for ever, and idle
            Moments._hooked = True
        Moments._active = self
        return self

    def __exit__(self, *_) -> None:
        Moments._active = None

    def all(self) -> list[Path]:
        return [self.copies / str(number) for number in range(self.count)]

    def notice(self, event: str, args: tuple) -> None:
        if not isinstance(args[0], str | bytes | os.PathLike) or not os.fsdecode(args[0]).startswith(str(self.folder)):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if not self._busy.acquire(blocking=False):
            return  # the copy itself, or another thread in the same moment
        try:
            if self.folder.exists():
                _copy(self.folder, self.copies / str(self.count))
                self.count += 1
        finally:
            self._busy.release()


def _copy(folder: Path, to: Path) -> None:
    """As far as files are there: other threads may take some away meanwhile."""
    to.mkdir(parents=True)
    for path in sorted(folder.rglob("*")):
        target = to / path.relative_to(folder)
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def _hook(event: str, args: tuple) -> None:
    if Moments._active is not None and event in Moments.EVENTS:
        Moments._active.notice(event, args)
