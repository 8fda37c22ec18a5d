"""What a run tells: the progress bar, metrics as JSON lines, TensorBoard events, and messages."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from mlff.basics.errors import FileError
from mlff.basics.files import write_text, writing

_log = logging.getLogger("mlff")
_QUIET = 30.0  #: seconds between lines where there is no terminal to draw a bar on


class RunLog:
    """Used as a context manager around the optimisation. Without `progress` messages go to the logger "mlff" only."""

    def __init__(self, out: Path, progress: bool, tensorboard: bool = False):
        self.metrics = out / "metrics.jsonl"
        self._events = out / "tensorboard" if tensorboard else None
        self._writer = None
        self._excepthook = None
        self._console = Console(stderr=True) if progress else None
        self._bar: Progress | None = None
        self._task = None
        self._last_line = -math.inf

    def __enter__(self) -> RunLog:
        if self._console is not None and self._console.is_terminal:
            fields = [TextColumn("{task.fields[" + name + "]}") for name in ("epoch", "rate", "errors", "left")]
            columns = fields[0], BarColumn(bar_width=12), *fields[1:]
            self._bar = Progress(*columns, console=self._console, refresh_per_second=2)
            self._task = self._bar.add_task("", total=1.0, epoch="", rate="", errors="", left="")
            self._bar.start()
        if self._events is not None:
            from tensorboard.summary import Writer  # a slow import that only a run needs

            self._excepthook, threading.excepthook = threading.excepthook, self._silence
            with writing(self._events):
                self._writer = Writer(str(self._events))
        return self

    def __exit__(self, kind, *_) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                with writing(self._events):
                    writer.close()
        except FileError:
            if kind is None:  # else the first error is the one to tell
                raise
        finally:
            if self._excepthook is not None:
                threading.excepthook, self._excepthook = self._excepthook, None

    def _silence(self, failed) -> None:
        """TensorBoard's thread dies with an OSError and hands it to the next `record`: no traceback on the way."""
        if not isinstance(failed.exc_value, OSError):
            self._excepthook(failed)

    def say(self, text: str) -> None:
        """A message for the user."""
        if self._console is None:
            _log.info(text)
        else:
            self._console.print(text, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Something went wrong that the run can live with."""
        if self._console is None:
            _log.warning(text)
        else:
            self._console.print(f"[yellow]{text}[/yellow]", highlight=False, soft_wrap=True)

    def print(self, renderable) -> None:
        """A table or the like for the user."""
        if self._console is not None:
            self._console.print(renderable)

    def show(self, **fields) -> None:
        """Move the bar: completed (share), epoch, rate, errors, left (texts); empty texts leave what is there."""
        fields = {name: value for name, value in fields.items() if value != ""}
        if self._bar is not None and fields:
            self._bar.update(self._task, **fields)

    def record(self, line: dict) -> None:
        """Append one line of metrics (six digits; what is not finite becomes null) and its TensorBoard events."""
        clean = {key: _rounded(value) if isinstance(value, float) else value for key, value in line.items()}
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")
        if self._writer is not None:
            with writing(self._events):
                self._add_events(clean)
        self.show(errors=errors(clean))
        if self._bar is None and time.monotonic() - self._last_line > _QUIET:
            self._last_line = time.monotonic()
            self.say(f"epoch {clean['epoch']}  loss {_text(clean['train_loss'])}  {errors(clean)}")

    def _add_events(self, line: dict) -> None:
        for key, value in line.items():
            if key not in ("epoch", "step") and value is not None:
                group, _, name = key.partition("_")
                tag = f"{name}/{group}" if group in ("train", "valid") else key
                self._writer.add_scalar(tag, float(value), step=line["step"])

    def rewind(self, epochs: int) -> None:
        """Drop the lines of metrics past `epochs`: a resumed run writes them again."""
        if not self.metrics.exists():
            return
        kept = []
        for text in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(text)["epoch"] <= epochs:
                    kept.append(text + "\n")
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # a line cut short when the process was killed
        write_text(self.metrics, "".join(kept))


class Silence(RunLog):
    """Of a process that has nothing to tell, because the first one does."""

    def __enter__(self) -> Silence:
        return self

    def say(self, text: str) -> None:
        """Nothing."""

    warn = print = record = rewind = say

    def show(self, **fields) -> None:
        """Nothing."""


def errors(line: dict) -> str:
    """Validation errors of a line of metrics, in a few words; empty where nothing was validated."""
    parts = []
    if line.get("valid_energy_rmse") is not None:
        parts.append(f"E {_text(line['valid_energy_rmse'])} meV ({_text(line['valid_energy_rmse_per_atom'])}/atom)")
    if line.get("valid_forces_rmse") is not None:
        parts.append(f"F {_text(line['valid_forces_rmse'])} meV/Å")
    if line.get("valid_stress_rmse") is not None:
        parts.append(f"S {_text(line['valid_stress_rmse'])} meV/Å³")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """3725 -> '1 h 02 min'."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
