"""All that a trajectory and its log tell: means, distributions, diffusion, vibrations."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mlff.basics.errors import ConfigError, DataError
from mlff.properties.averages import Average, average, equilibration
from mlff.properties.distribution import Distribution, RadialDistribution, bonds_and_angles, radial_distributions
from mlff.properties.frames import Frames
from mlff.properties.motion import Diffusion, VibrationalDensity, diffusion, vibrational_density

_NO_COLUMNS = ("step", "time_ps", "atoms")  #: of a log: nothing to average
_SETTLING = ("epot_ev", "temperature_k", "volume_a3")  #: columns that say whether a run is in equilibrium
_FEWEST = 10  #: frames that have to be left


@dataclass(frozen=True, eq=False)
class Analysis:
    """What `analyze` finds."""

    frames: int  #: that were used
    interval: float  #: ps between them
    skipped: float  #: ps at the start that were left out
    averages: dict[str, Average]  #: by column of the log
    spacing: float  #: ps between values of the columns
    radial: list[RadialDistribution]
    bonds: list[Distribution]
    angles: list[Distribution]
    broken: float  #: share of the bonds of the first frame that are 1.5 times as long at some time
    diffusion: list[Diffusion]
    vibrations: VibrationalDensity | None  #: None: no velocities, or too few frames
    warnings: list[str]

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return _plain(asdict(self))


def analyze(
    frames: Frames,
    log: dict[str, np.ndarray] | None = None,
    *,
    skip_ps: float | None = None,
    r_max: float | None = None,
) -> Analysis:
    """Analyse `frames` after the first `skip_ps` (ps).

    By default so much is left out as the columns of the log (or of the frames, without one) take to settle, half at most; in
    each column's own mean as much as that column takes. Raises ConfigError: fewer than ten frames left, r_max no length.
    """
    columns = frames.columns if log is None else log
    spacing = frames.interval if log is None else _spacing(log, frames.interval)
    averages = {}
    for name, values in columns.items():
        if name not in _NO_COLUMNS and len(values):
            start = None if skip_ps is None else min(round(skip_ps / spacing), len(values) - 1)
            averages[name] = average(values, start)
    skipped = _settling(columns, spacing, frames.duration) if skip_ps is None else skip_ps
    first = round(skipped / frames.interval)
    if not (np.isfinite(skipped) and skipped >= 0) or len(frames) - first < min(_FEWEST, len(frames)):
        raise ConfigError(f"--skip-ps {skipped:g} leaves fewer than {_FEWEST} of {len(frames)} frames: skip less")
    used = frames.without(first)
    bonds, angles, broken = bonds_and_angles(used)
    vibrations = vibrational_density(used)
    return Analysis(
        len(used),
        frames.interval,
        skipped,
        averages,
        spacing,
        radial_distributions(used, r_max),
        bonds,
        angles,
        broken,
        diffusion(used),
        vibrations,
        _warnings(averages, used, vibrations, broken),
    )


def read_log(path: str | Path) -> dict[str, np.ndarray]:
    """The columns of numbers in a log of `mlff md` (.jsonl or .csv); those with gaps are left out. Raises DataError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        records = (
            list(csv.DictReader(lines)) if path.suffix == ".csv" else [json.loads(line) for line in lines if line.strip()]
        )
        columns = {name: [record.get(name) for record in records] for name in (records[0] if records else ())}
        result = {name: np.array(values, np.float64) for name, values in columns.items() if not {None, ""} & set(values)}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a log of numbers, one record per line ({type(error).__name__})") from None
    if not result:
        raise DataError(f"{path}: holds no records")
    return {name: values for name, values in result.items() if np.isfinite(values).all()}


def _spacing(log: dict[str, np.ndarray], interval: float) -> float:
    times = log.get("time_ps", ())
    return float(times[1] - times[0]) if len(times) > 1 and times[1] > times[0] else interval


def _settling(columns: dict[str, np.ndarray], spacing: float, duration: float) -> float:
    """ps until the columns that tell of equilibrium have settled; at most half the trajectory."""
    starts = [equilibration(columns[name]) * spacing for name in _SETTLING if name in columns]
    return min(max(starts, default=0.0), 0.5 * duration)


def _warnings(averages: dict[str, Average], frames: Frames, vibrations, broken: float) -> list[str]:
    drifting = [name for name, column in averages.items() if not column.settled and name in _SETTLING]
    found = []
    if drifting:
        found.append(f"{', '.join(drifting)}: the halves of the run differ: it is not in equilibrium; simulate longer")
    if frames.velocities is None:
        found.append("the trajectory has no velocities: no autocorrelation and no vibrational density of states")
    elif vibrations is None:
        found.append("too few frames for a vibrational density of states")
    if broken:
        found.append(
            f"{100 * broken:.2g} % of the bonds of the first frame break: lengths and angles of bonds go on with them"
        )
    return found


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
