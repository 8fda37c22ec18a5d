"""Free-energy profiles along a collective variable: from a histogram, reweighted where there was a bias, and from hills."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlff.basics.errors import ConfigError, DataError
from mlff.basics.units import KB
from mlff.properties.analysis import read_log
from mlff.properties.averages import block_error, equilibration
from mlff.simulation.hills import HillsTable, hills_path, read_hills
from mlff.simulation.record import record_path

_FEWEST = 10  #: values in a bin, below which nothing is said of it
_GRID = 200, 100  #: points along each variable of one or two, where hills are summed
_MARGIN = 1.0  #: widths of a hill by which that grid reaches beyond the hills


@dataclass(frozen=True, eq=False)
class FreeEnergy:
    """A profile, zero in its lowest bin. Without the volume element of the variable: the logarithm of its probability density."""

    variable: str
    temperature: float  #: K
    values: np.ndarray  #: (b,) middle of each bin
    energies: np.ndarray  #: (b,) eV; NaN: fewer than ten values in the bin
    errors: (
        np.ndarray
    )  #: (b,) eV, standard error of the difference from the lowest bin, from blocks; NaN: runs too short to tell
    from_hills: np.ndarray | None  #: (b,) eV, minus the sum of hills with the well-tempered factor, the mean over runs
    samples: int  #: values that were used
    skipped: float  #: share of the runs that was left out at the start

    def to_dict(self) -> dict:
        """Plain values for JSON; None for what is not known."""

        def plain(array: np.ndarray | None):
            return None if array is None else [float(x) if np.isfinite(x) else None for x in array]

        return {
            "variable": self.variable,
            "temperature_k": self.temperature,
            "values": plain(self.values),
            "free_energy_ev": plain(self.energies),
            "error_ev": plain(self.errors),
            "from_hills_ev": plain(self.from_hills),
            "samples": self.samples,
            "skipped_share": self.skipped,
        }


def free_energy(
    logs: Sequence[str | Path],
    variable: str | None = None,
    temperature: float | None = None,
    *,
    bins: int = 40,
    skip: float | None = None,
    limits: tuple[float, float] | None = None,
) -> FreeEnergy:
    """The profile from logs of `mlff md --bias`, of one run or of several alike.

    variable: by default the first of the log; temperature (K): by default that of the .run.json beside the log. skip: share of each run to
    leave out, by default until variable and bias have settled, half at most. limits: ends of the bins. A bias is
    taken off by weights exp((V - c)/kT); with hills beside the log c(t) is that of Tiwary & Parrinello, J. Phys. Chem. B
    119, 736 (2015). Raises DataError, ConfigError.
    """
    if bins < 2:
        raise ConfigError(f"at least two bins are needed, not {bins}")
    for path in logs:
        if any(restraint.get("move_to") is not None for restraint in (_run(path).get("bias") or {}).get("restraints", ())):
            raise DataError(f"{path}: a restraint of this run moved: it was not in equilibrium and gives no profile")
    tables = [read_log(path) for path in logs]
    name = _variable(variable, tables[0], logs[0])
    kelvin = _temperature(logs) if temperature is None else temperature
    if not (np.isfinite(kelvin) and kelvin > 0):
        raise ConfigError(f"the temperature must be positive, not {kelvin:g} K")
    values, weights, shares, hills = [], [], [], []
    for path, table in zip(logs, tables, strict=True):
        if f"cv_{name}" not in table:
            raise DataError(f"{path}: has no column cv_{name}; is it the log of another run?")
        column, bias = table[f"cv_{name}"], table.get("bias_ev", np.zeros(len(table[f"cv_{name}"])))
        if (beside := hills_path(path)).is_file():
            hills.append(read_hills(beside))
            bias = bias - offsets(hills[-1], table["time_ps"], kelvin)
        start = _start(column, bias) if skip is None else int(skip * len(column))
        values.append(column[start:])
        weights.append(bias[start:] / (KB * kelvin))
        shares.append(start / len(column))
    values, weights = np.concatenate(values), np.concatenate(weights)
    if len(values) < 10 * _FEWEST:
        raise DataError(f"{logs[0]}: {len(values)} values are too few for a profile; simulate longer, or log more often")
    edges = np.linspace(*(limits or (values.min(), values.max())), bins + 1)
    energies, errors = histogram_profile(values, weights, edges, kelvin)
    middles = 0.5 * (edges[1:] + edges[:-1])
    summed = _mean_of_hills(hills, name, middles, kelvin, energies) if hills else None
    return FreeEnergy(name, kelvin, middles, energies, errors, summed, len(values), float(np.mean(shares)))


def histogram_profile(
    values: np.ndarray, exponents: np.ndarray, edges: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Free energies (b,) in eV from values (t,) with weights exp(exponents (t,)), and their errors, in bins of edges (b + 1,).

    The error is that of the difference from the lowest bin: the block error of what each value adds to the logarithm of the ratio.
    """
    thermal = KB * temperature
    weights = np.exp(exponents - exponents.max())
    weights /= weights.mean()
    places = np.digitize(values, edges) - 1
    places[values == edges[-1]] = len(edges) - 2
    count = len(edges) - 1
    inside = (places >= 0) & (places < count)
    shares = np.bincount(places[inside], weights[inside], count) / len(values)
    enough = (np.bincount(places[inside], minlength=count) >= _FEWEST) & (shares > 0)
    if not enough.any():
        raise DataError(f"no bin holds {_FEWEST} values: take fewer bins, or simulate longer")
    energies = np.where(enough, -thermal * np.log(np.where(enough, shares / np.diff(edges), 1.0)), np.nan)
    lowest = int(np.nanargmin(energies))
    errors = np.full(count, np.nan)
    reference = (places == lowest) / shares[lowest]
    for index in np.flatnonzero(enough):
        error = block_error(thermal * weights * ((places == index) / shares[index] - reference))
        errors[index] = np.nan if error is None else error
    return energies - energies[lowest], errors


def sum_of_hills(hills: HillsTable, name: str, values: np.ndarray, temperature: float) -> np.ndarray:
    """(b,) eV at `values` of one of the variables: minus the hills times γ/(γ - 1); another variable is integrated out."""
    axes = _axes(hills)
    own = hills.names.index(name)
    axes[own] = np.asarray(values, np.float64)
    scale = 1.0 if np.isinf(hills.bias_factor) else hills.bias_factor / (hills.bias_factor - 1)
    free = -scale * sum(_each_hill(hills, axes)).reshape([len(axis) for axis in axes])
    if free.ndim == 1:
        return free
    thermal, lowest = KB * temperature, free.min()
    return lowest - thermal * np.log(np.exp(-(free - lowest) / thermal).mean(axis=1 - own))


def offsets(hills: HillsTable, times: np.ndarray, temperature: float) -> np.ndarray:
    """(t,) eV at times (t,) in ps: c(t), which the bias is counted from when values are weighted."""
    thermal, factor = KB * temperature, hills.bias_factor
    first, second = (1.0, 0.0) if np.isinf(factor) else (factor / (factor - 1), 1 / (factor - 1))
    found, total = [0.0], 0.0
    for hill in _each_hill(hills, _axes(hills)):
        total = total + hill
        most = total.max()
        upper = np.log(np.mean(np.exp(first * (total - most) / thermal))) + first * most / thermal
        lower = np.log(np.mean(np.exp(second * (total - most) / thermal))) + second * most / thermal
        found.append(thermal * (upper - lower))
    return np.array(found)[np.searchsorted(hills.times, times + 1e-9, side="right")]


def _axes(hills: HillsTable) -> list[np.ndarray]:
    points = _GRID[len(hills.names) - 1]
    low = hills.centers.min(axis=0) - _MARGIN * hills.widths.max(axis=0)
    high = hills.centers.max(axis=0) + _MARGIN * hills.widths.max(axis=0)
    return [
        np.linspace(a, b if np.isinf(p) else min(b, a + p), points) for a, b, p in zip(low, high, hills.periods, strict=True)
    ]


def _each_hill(hills: HillsTable, axes: list[np.ndarray]):
    """The hills one by one, (points,) eV on the product of the axes."""
    points = np.array(list(itertools.product(*axes)))
    spans = np.where(np.isfinite(hills.periods), hills.periods, 0.0)
    for center, width, height in zip(hills.centers, hills.widths, hills.heights, strict=True):
        away = points - center
        away = (away - spans * np.round(away / np.where(spans > 0, spans, 1.0))) / width
        yield height * np.exp(-0.5 * np.sum(away**2, axis=1))


def _mean_of_hills(
    hills: list[HillsTable], name: str, values: np.ndarray, kelvin: float, like: np.ndarray
) -> np.ndarray | None:
    """The mean over runs, shifted so that it agrees with `like` (b,) in the mean where that is known."""
    if not all(name in each.names for each in hills):
        return None
    summed = [sum_of_hills(each, name, values, kelvin) for each in hills]
    known = np.isfinite(like)
    return np.mean([each - np.mean(each[known] - like[known]) for each in summed], axis=0)


def _variable(variable: str | None, table: dict[str, np.ndarray], path) -> str:
    names = [column.removeprefix("cv_") for column in table if column.startswith("cv_")]
    if not names:
        raise DataError(f"{path}: has no collective variables; run mlff md with --bias, whose variables it logs")
    if variable is not None and variable not in names:
        raise ConfigError(f"{path}: there is no variable {variable!r}; known: {', '.join(names)}")
    return variable or names[0]


def _run(log: str | Path) -> dict:
    """What the .run.json beside a log says of the run; nothing if there is none."""
    try:
        return dict(json.loads(record_path(log).read_text(encoding="utf-8"))[-1])
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _temperature(logs: Sequence[str | Path]) -> float:
    found = set()
    for path in logs:
        try:
            found.add(float(_run(path)["settings"]["temperature"]))
        except (LookupError, TypeError, ValueError):
            raise ConfigError(f"{record_path(path)}: does not say the temperature of the run; give --temperature") from None
    if len(found) > 1:
        kelvins = ", ".join(f"{kelvin:g}" for kelvin in sorted(found))
        raise ConfigError(f"the runs have the temperatures {kelvins} K; give those of one")
    return found.pop()


def _start(values: np.ndarray, bias: np.ndarray) -> int:
    """How many values are left out until variable and bias have settled; half of them at most."""
    return min(max(equilibration(values), equilibration(bias)), len(values) // 2)
