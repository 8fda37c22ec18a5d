"""The hills of metadynamics as a file, in the columns of PLUMED's HILLS; in ps, Å, degrees and eV."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlff.basics.errors import DataError
from mlff.basics.files import writing
from mlff.config.bias import Bias, period
from mlff.simulation.bias import Hills


def hills_path(trajectory: str | Path) -> Path:
    """Where the hills of a run stand, beside the trajectory (and its log)."""
    return Path(trajectory).with_suffix(".hills")


class HillsFile:
    """Hills are appended as they come; heights are written times γ/(γ - 1), as PLUMED writes them: their sum is minus the free
    energy."""

    def __init__(self, path: Path, bias: Bias, timestep: float):
        """Begins anew: what `write` is given holds all hills from the start. timestep in fs."""
        self.path, self._written = path, 0
        self._rules, self._timestep = bias.metadynamics, timestep
        factor = self._rules.bias_factor
        self._factor, self._scale = (1.0, 1.0) if factor is None else (factor, factor / (factor - 1))
        with writing(path):
            self._file = open(path, "w", encoding="utf-8")
            self._file.write(self._header(bias))
            self._file.flush()

    def _header(self, bias: Bias) -> str:
        names = self._rules.variables
        fields = ["time", *names, *(f"sigma_{name}" for name in names), "height", "biasf"]
        lines = [f"#! FIELDS {' '.join(fields)}", "#! SET multivariate false", "#! SET kerneltype gaussian"]
        for name in names:
            if span := period(bias.variables[name]):
                lines += [f"#! SET min_{name} {-span / 2:g}", f"#! SET max_{name} {span / 2:g}"]
        lines.append("# time in ps, lengths in Å, angles in degrees, height in eV, times biasf/(biasf - 1)")
        return "\n".join(lines) + "\n"

    def write(self, hills: Hills) -> None:
        """Those that are not in the file yet, of one replica."""
        count = int(hills.counts)
        widths = " ".join(f"{width:.9g}" for width in self._rules.widths)
        lines = []
        for index in range(self._written, count):
            time = (index + 1) * self._rules.every * self._timestep * 1e-3
            center = " ".join(f"{value:.12g}" for value in hills.centers[index])
            lines.append(f"{time:.9g} {center} {widths} {self._scale * hills.heights[index]:.12g} {self._factor:g}\n")
        with writing(self.path):
            self._file.writelines(lines)
            self._file.flush()
        self._written = count

    def close(self) -> None:
        """What was written is there already."""
        with suppress(OSError):
            self._file.close()


@dataclass(frozen=True, eq=False)
class HillsTable:
    """What a file of hills holds: m hills on k variables."""

    names: tuple[str, ...]
    times: np.ndarray  #: (m,) ps
    centers: np.ndarray  #: (m, k)
    widths: np.ndarray  #: (m, k)
    heights: np.ndarray  #: (m,) eV, as they were put down
    bias_factor: float  #: infinite: all hills are as high
    periods: np.ndarray  #: (k,) infinite for what is not periodic


def read_hills(path: str | Path) -> HillsTable:
    """A file that `HillsFile` or PLUMED wrote (heights in eV). Raises DataError."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        heads = [line.split()[1:] for line in lines if line.startswith("#!")]
        fields = next(head[1:] for head in heads if head[0] == "FIELDS")
        named = {head[1]: head[2] for head in heads if head[0] == "SET"}
        rows = np.array([line.split() for line in lines if line.strip() and not line.startswith("#")], np.float64)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, IndexError, StopIteration):
        raise DataError(f"{path}: not a file of hills in PLUMED's columns") from None
    names = tuple(field.removeprefix("sigma_") for field in fields if field.startswith("sigma_"))
    wanted = ["time", *names, *(f"sigma_{name}" for name in names), "height", "biasf"]
    if not names or fields != wanted or rows.ndim != 2 or rows.shape[1] != len(wanted) or not np.isfinite(rows).all():
        raise DataError(f"{path}: expected rows of the columns {' '.join(wanted)}, all finite")
    count, factors = len(names), rows[:, -1]
    if (factors != factors[0]).any() or factors[0] < 1:
        raise DataError(f"{path}: biasf must be one number of at least 1")
    factor = float(factors[0]) if factors[0] > 1 else np.inf
    scale = 1.0 if np.isinf(factor) else (factor - 1) / factor
    try:
        periods = [
            float(named[f"max_{name}"]) - float(named[f"min_{name}"]) if f"min_{name}" in named else np.inf for name in names
        ]
    except (KeyError, ValueError):
        raise DataError(f"{path}: min and max of a variable must be numbers") from None
    centers, widths = rows[:, 1 : 1 + count], rows[:, 1 + count : 1 + 2 * count]
    return HillsTable(names, rows[:, 0], centers, widths, scale * rows[:, -2], factor, np.array(periods))
