"""Progress bars of simulations."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class MDProgress:
    """A bar with temperature, drift, speed in ns/day and the time left; on stderr, at most a few updates a second."""

    def __init__(self, show: bool, done: int, total: int, timestep: float):
        self._bar = Progress(
            TextColumn("MD"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not show or not sys.stderr.isatty(),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("", total=total, completed=done, note="")
        self._timestep = timestep
        self._begin = (time.perf_counter(), done)
        self._shown_at = 0.0

    def __enter__(self) -> MDProgress:
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def update(self, step: int, temperature: float, drift: float | None) -> None:
        now = time.perf_counter()
        if now - self._shown_at < 0.25:
            return
        self._shown_at = now
        begin, first = self._begin
        speed = (step - first) * self._timestep * 1e-6 / max(now - begin, 1e-9) * 86400
        wander = "" if drift is None else f"  drift {drift:+.3f} meV/atom/ps"
        self._bar.update(self._task, completed=step, note=f"{temperature:4.0f} K{wander}  {speed:.2f} ns/day")
