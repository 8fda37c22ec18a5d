"""Frames that broke a limit: what a calculator says against them, and the file in which they wait to be labelled."""

from __future__ import annotations

from pathlib import Path

import ase
import ase.io
import numpy as np

from mlff.basics.errors import ConfigError, DataError
from mlff.basics.files import writing
from mlff.data.writing import write_frames
from mlff.simulation.guard import Limits

WHY = "why_flagged"  #: info key of the reason


def check_limits(limits: Limits, calculator) -> None:
    """Raise ConfigError for a limit that is none, or that this calculator cannot tell."""
    for name in ("drift", "distance", "spread"):
        value = getattr(limits, name)
        if value is not None and not value > 0:
            raise ConfigError(f"the limit of {name} must be positive, not {value:g}")
    potential = getattr(calculator, "potential", None)
    if limits.distance is not None and getattr(potential, "environments", None) is None:
        raise ConfigError("a limit of the distance needs a model of mlff that knows its training data")
    if limits.spread is not None and getattr(potential, "members", 1) < 2:
        raise ConfigError("a limit of the spread needs a committee; make one with mlff committee")
    if limits.mark and limits.distance is None and limits.spread is None:
        raise ConfigError("mark has no effect without a limit of distance or spread: give one, or leave mark out")


def objection(limits: Limits, distance: float | None, atoms: ase.Atoms) -> str | None:
    """Which soft limit a frame breaks; `distance` of its farthest atom, if it was looked at."""
    if limits.distance is not None and distance is not None and not distance <= limits.distance:
        return f"an atom is {distance:.2g} times as far from the training data as these reach (limit {limits.distance:g})"
    if limits.spread is not None:
        spread = float(np.linalg.norm(atoms.calc.get_property("forces_std", atoms), axis=1).max())
        if not spread <= limits.spread:
            return f"the committee's forces on an atom differ by {spread:.2g} eV/Å (limit {limits.spread:g})"
    return None


def flagged_path(trajectory: str | Path) -> Path:
    """Where flagged frames stand, beside the trajectory."""
    return Path(trajectory).with_suffix(".flagged.xyz")


class FlaggedFrames:
    """An extended XYZ file of structures without labels; it comes into being with the first frame."""

    def __init__(self, path: Path, keep_until: int | None = None):
        """With `keep_until` frames of earlier steps (<= keep_until) stay."""
        self.path, self.count, kept = path, 0, []
        if keep_until is not None and path.exists():
            try:
                kept = [frame for frame in ase.io.read(path, ":") if frame.info["step"] <= keep_until]
            except Exception as error:
                raise DataError(
                    f"{path}: cannot be read as frames of this run ({type(error).__name__}); move it away"
                ) from None
        with writing(path):
            path.unlink(missing_ok=True)
        if kept:
            self._append(kept)

    def add(self, atoms: ase.Atoms, step: int, time_ps: float, why: str) -> None:
        """One frame, if its positions are numbers."""
        if np.isfinite(atoms.positions).all():
            info = {"step": step, "time_ps": time_ps, WHY: why}
            self._append([ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=info)])

    def _append(self, frames: list[ase.Atoms]) -> None:
        with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            write_frames(file, frames)
        self.count += len(frames)
