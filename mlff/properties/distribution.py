"""Where atoms are with respect to each other: radial distribution functions, bond lengths and angles."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from mlff.basics.errors import ConfigError
from mlff.data.neighbors import neighbor_list, pair_vectors
from mlff.properties.frames import Frames

_BIN = 0.02  #: Å
_FARTHEST = 10.0  #: Å, of a radial distribution function unless it is asked for more
_FRAMES = 400  #: frames looked at, spread over the trajectory
_SMOOTH = 0.04  #: Å; peaks and minima are those of the function smoothed so much
_BOND = 1.25  #: times the sum of the covalent radii: a bond of the first frame
_BROKEN = 1.5  #: times its length in the first frame


@dataclass(frozen=True, eq=False)
class RadialDistribution:
    """g(r) of one pair of elements: density of the second at the distance r from one of the first, over its mean density."""

    pair: str  #: e.g. Si-Si
    r: np.ndarray  #: (m,) Å, middle of each bin
    g: np.ndarray  #: (m,)
    coordination: np.ndarray  #: (m,) atoms of the second element up to the end of each bin, around one of the first
    peak: float | None  #: Å, first maximum; None: there is none
    minimum: float | None  #: Å, first minimum behind it
    neighbors: float | None  #: coordination at the minimum


@dataclass(frozen=True, eq=False)
class Distribution:
    """Bond lengths (Å) or angles (degrees) of one kind over all frames."""

    name: str  #: e.g. C-H or H-C-H
    count: int  #: in one frame
    mean: float
    std: float
    low: float  #: the smallest that was met
    high: float  #: the largest
    edges: np.ndarray  #: (m + 1,)
    density: np.ndarray  #: (m,) integrates to 1


def radial_distributions(frames: Frames, r_max: float | None = None) -> list[RadialDistribution]:
    """Of every pair of elements, up to `r_max` (Å; by default half the smallest width of the cell, up to 10 Å).

    Periodic images are counted as atoms, so that cells of any shape and size will do; density is number over volume, so an
    ideal gas of N atoms has 1 - 1/N within half the cell. None without a cell that is periodic in three directions.
    """
    if not frames.pbc.all():
        return []
    heights = 1 / np.linalg.norm(np.linalg.inv(frames.cells), axis=1)
    r_max = min(_FARTHEST, 0.5 * float(heights.min())) if r_max is None else r_max
    if not (np.isfinite(r_max) and r_max > _BIN):
        raise ConfigError(f"--r-max must be a length above {_BIN} Å, not {r_max:g}")
    edges = np.linspace(0, r_max, max(2, round(r_max / _BIN)) + 1)
    kinds = sorted(set(frames.numbers.tolist()))
    pairs = list(itertools.combinations_with_replacement(kinds, 2))
    chosen = _spread(len(frames))
    normal, plain = ({pair: np.zeros(len(edges) - 1) for pair in pairs} for _ in range(2))
    for k in chosen:
        volume = abs(np.linalg.det(frames.cells[k]))
        found = pair_counts(frames.numbers, frames.positions[k], frames.cells[k], frames.pbc, pairs, edges)
        for (a, b), counts in found.items():
            plain[a, b] += counts / len(chosen)
            normal[a, b] += counts / len(chosen) * volume / np.count_nonzero(frames.numbers == b)
    shells = shell_volumes(edges)
    return [_described(pair, edges, normal[pair] / shells, plain[pair].cumsum()) for pair in pairs]


def pair_counts(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    pairs: list[tuple[int, int]],
    edges: np.ndarray,
) -> dict[tuple[int, int], np.ndarray]:
    """Of each pair (a, b) of atomic numbers: (m,) atoms b in each shell between `edges` (m + 1,), Å, around an atom a, on average."""
    i, j, shifts = neighbor_list(positions, cell, pbc, float(edges[-1]))
    distances = np.linalg.norm(pair_vectors(positions, cell, i, j, shifts), axis=1)
    return {
        (a, b): np.histogram(distances[(numbers[i] == a) & (numbers[j] == b)], edges)[0] / np.count_nonzero(numbers == a)
        for a, b in pairs
    }


def shell_volumes(edges: np.ndarray) -> np.ndarray:
    """(m,) Å³ of the spherical shells between `edges` (m + 1,), Å."""
    return 4 / 3 * np.pi * np.diff(edges**3)


def bonds_and_angles(frames: Frames) -> tuple[list[Distribution], list[Distribution], float]:
    """Lengths of the bonds of the first frame and the angles between them, by element, followed through all frames.

    A bond is a pair nearer than 1.25 times the sum of the covalent radii. Third: the share of the bonds that become 1.5 times
    as long as in the first frame at some time.
    """
    radii = np.nan_to_num(covalent_radii, nan=1.0)[frames.numbers]
    i, j, shifts = neighbor_list(frames.positions[0], frames.cells[0], frames.pbc, 2 * _BOND * float(radii.max()))
    start = np.linalg.norm(pair_vectors(frames.positions[0], frames.cells[0], i, j, shifts), axis=1)
    near = start < _BOND * (radii[i] + radii[j])
    i, j, shifts, start = i[near], j[near], shifts[near], start[near]
    if not len(i):
        return [], [], 0.0
    first, second = _at_one_center(i)
    lengths, cosines = [], []
    for k in _spread(len(frames)):
        vectors = pair_vectors(frames.positions[k], frames.cells[k], i, j, shifts)
        lengths.append(np.linalg.norm(vectors, axis=1))
        unit = vectors / lengths[-1][:, None]
        cosines.append(np.einsum("ak,ak->a", unit[first], unit[second]))
    lengths, angles = np.array(lengths), np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    z = frames.numbers
    names = [_name((a, b)) for a, b in zip(*np.sort([z[i], z[j]], axis=0), strict=True)]
    ends = np.sort([z[j[first]], z[j[second]]], axis=0)
    triples = [_name(triple) for triple in zip(ends[0], z[i[first]], ends[1], strict=True)]
    broken = float((lengths > _BROKEN * start).any(axis=0).mean())
    return _distributions(names, lengths, 2), _distributions(triples, angles, 1), broken


def _at_one_center(i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (a,) of two bonds that share their center, each pair once; `i` is sorted."""
    starts = np.flatnonzero(np.diff(i, prepend=-1))
    found = [np.array(np.triu_indices(stop - start, 1)) + start for start, stop in itertools.pairwise([*starts, len(i)])]
    first, second = np.concatenate(found, axis=1)
    return first, second


def _distributions(names: list[str], values: np.ndarray, listed: int) -> list[Distribution]:
    """Of each name, from values (frames, items); every item is `listed` times among them."""
    result = []
    for name in dict.fromkeys(sorted(names)):
        of_name = values[:, np.array(names) == name]
        spread = max(float(np.ptp(of_name)), 1e-6)
        low, high = float(of_name.min()), float(of_name.max())
        density, edges = np.histogram(of_name, bins=60, range=(low - 0.05 * spread, high + 0.05 * spread), density=True)
        count = of_name.shape[1] // listed
        result.append(Distribution(name, count, float(of_name.mean()), float(of_name.std()), low, high, edges, density))
    return result


def _described(pair, edges: np.ndarray, g: np.ndarray, coordination: np.ndarray) -> RadialDistribution:
    r = 0.5 * (edges[1:] + edges[:-1])
    smooth = gaussian_filter1d(g, _SMOOTH / (edges[1] - edges[0]), mode="constant")
    maxima = find_peaks(smooth, height=1.0, prominence=0.3)[0]
    peak = minimum = neighbors = None
    if len(maxima):
        peak = float(r[maxima[0]])
        end = maxima[1] if len(maxima) > 1 else len(r)
        valley = smooth[maxima[0] : end]
        lowest = maxima[0] + (len(valley) - 1 + valley.argmin() - valley[::-1].argmin()) // 2  # the middle of an empty gap
        if lowest < len(r) - 1:
            minimum, neighbors = float(r[lowest]), float(coordination[lowest])
    return RadialDistribution(_name(pair), r, g, coordination, peak, minimum, neighbors)


def _spread(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, _FRAMES)).astype(int))


def _name(numbers) -> str:
    return "-".join(chemical_symbols[z] for z in numbers)
