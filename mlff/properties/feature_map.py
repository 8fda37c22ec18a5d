"""A map of structures, or of their atoms: principal components of a model's features, and who lies near whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from ase.data import chemical_symbols

from mlff.basics import compiler
from mlff.basics.errors import ConfigError, DataError
from mlff.data.batching import make_graph, make_sample
from mlff.data.dataset import Dataset
from mlff.data.structure import Structure
from mlff.potential.packing import ATOMS, pack, rungs
from mlff.potential.potential import Potential

ENERGY, ELEMENT = "energy", "element"  #: what a map is coloured by, beside info keys
_ROWS = 10  #: known for each component that distances count
_ROUNDING = 1e-5  #: of the largest standard deviation of a principal component
_BLOCK = 2**24  #: distances between points at once


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Points in the plane of the two largest principal components."""

    points: np.ndarray  #: (p, 2), in units of the features
    shares: np.ndarray  #: (2,) of the variance of the features
    structures: np.ndarray  #: (p,) int, the structure each point is, or whose atom it is
    color: str  #: what `values` are, with their unit
    values: np.ndarray  #: (p,) floats, or strings: kinds
    predicted: np.ndarray | None  #: (p,) the kind that the nearest other points have; None without kinds

    @property
    def kinds(self) -> list[str]:
        """The different values, where they are kinds."""
        return sorted(set(self.values.tolist())) if self.values.dtype.kind == "U" else []

    @property
    def right(self) -> float | None:
        """Share of the points whose kind is that of the nearest others."""
        return None if self.predicted is None else float(np.mean(self.predicted == self.values))

    def text(self) -> str:
        """One line about it."""
        first, second = 100 * self.shares
        line = f"{len(self.points):,} points; {first:.1f} % and {second:.1f} % of the variance along the two axes"
        if self.right is None:
            return line
        return f"{line}; the nearest others have the same {self.color} for {100 * self.right:.1f} % of the points"

    def to_dict(self) -> dict:
        """As plain values."""
        names = ("points", "shares", "structures", "values")
        predicted = None if self.predicted is None else self.predicted.tolist()
        return {name: getattr(self, name).tolist() for name in names} | {
            "color": self.color,
            "predicted": predicted,
            "right": self.right,
        }


def feature_map(
    potential: Potential, data: Dataset, color: str | None = None, atoms: bool = False, neighbors: int = 5
) -> FeatureMap:
    """The map of structures, of which each is the mean of its atoms' features, or of all `atoms`.

    color: "energy" (eV per atom, of the structure's label), "element" (with `atoms`), an info key, or None: the place in the
    file. Where the info key has text, or few different whole numbers, its values are kinds, and the `neighbors` nearest points
    vote. Raises DataError: fewer than three structures, values that some do not have; StructureError: an element that the model
    does not know; ConfigError: element without `atoms`.
    """
    if len(data) < 3:
        raise DataError(f"{data.census.source}: {len(data)} structures make no map; give three or more")
    if color == ELEMENT and not atoms:
        raise ConfigError("--color element is for the atoms' map: add --atoms, or colour by another key")
    values = None if color == ELEMENT else _values(data, color)
    found = features(potential, data.structures)
    owners = np.repeat(np.arange(len(data)), [len(s) for s in data])
    if atoms:
        rows, structures = np.concatenate(found), owners
        values = np.concatenate([_symbols(s) for s in data]) if values is None else values[owners]
    else:
        rows, structures = np.stack([one.mean(axis=0) for one in found]), np.arange(len(data))
    points, shares = principal_components(rows)
    classified = values.dtype.kind == "U" and color != ELEMENT and len(rows) > neighbors
    predicted = nearest_kinds(even := whitened(rows, rows), values, even, neighbors, itself=False) if classified else None
    label = {None: "place in the file", ENERGY: "energy per atom (eV)"}.get(color, color)
    return FeatureMap(points, shares, structures, label, values, predicted)


def features(potential: Potential, structures: Sequence[Structure]) -> list[np.ndarray]:
    """(n, F) features of the atoms of each structure; see `Potential.features`. Raises StructureError as `Potential.check`."""
    for structure in structures:
        potential.check_geometry(structure)
    samples = [make_sample(structure, potential.cutoff) for structure in structures]
    shifts = any(sample.shifts is not None for sample in samples)
    found: list[np.ndarray] = [np.zeros(0)] * len(samples)
    compiled = jax.jit(potential.features, compiler_options=compiler.quick())
    with potential.scope():
        params = potential.device_params
        for sizes, indices in pack(samples, ATOMS, potential.dtype).plan(None):
            chosen = [samples[k] for k in indices]
            rows = np.asarray(compiled(params, make_graph(chosen, rungs(sizes), potential.dtype, shifts)), np.float64)
            ends = np.cumsum([len(sample.numbers) for sample in chosen])
            for k, part in zip(indices, np.split(rows[: ends[-1]], ends[:-1]), strict=True):
                found[k] = part
    return found


def principal_components(rows: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (p, count) of rows (p, F) along the directions of largest variance, and their shares of it."""
    centered = rows - rows.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centered, full_matrices=False)
    points = np.zeros((len(rows), count))
    shares = np.zeros(count)
    kept = min(count, len(sizes))
    points[:, :kept] = (left * sizes)[:, :kept]
    shares[:kept] = sizes[:kept] ** 2 / max(np.sum(sizes**2), 1e-300)
    return points, shares


def whitened(known: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows (p, F) as (p, f) along the principal components of known rows (m, F), each over its standard deviation there.

    Distances of such rows are Mahalanobis distances: they do not depend on how features are scaled or mixed. Components that
    are rounding are left out, and those beyond one for ten known rows: too few rows would all come to be as far apart.
    """
    mean = known.mean(axis=0)
    _, sizes, directions = np.linalg.svd(known - mean, full_matrices=False)
    kept = (sizes > _ROUNDING * sizes[0]) & (np.arange(len(sizes)) < max(1, len(known) // _ROWS))
    return (rows - mean) @ (directions[kept].T / sizes[kept] * np.sqrt(len(known)))


def nearest_kinds(known: np.ndarray, kinds: np.ndarray, rows: np.ndarray, neighbors: int, itself: bool = True) -> np.ndarray:
    """(p,) the kind of most of the `neighbors` known rows (m, F) nearest to each row (p, F); of equally many the nearest.

    Distances are Euclidean (see `whitened`). `itself` False: rows are the known ones, and none votes for itself.
    """
    found = []
    block = max(1, _BLOCK // max(1, len(known)))
    squares = np.einsum("mf,mf->m", known, known)
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        distances = squares - 2 * part @ known.T
        if not itself:
            distances[np.arange(len(part)), start + np.arange(len(part))] = np.inf
        order = np.argsort(distances, axis=1, kind="stable")[:, :neighbors]
        found += [Counter(kinds[nearest].tolist()).most_common(1)[0][0] for nearest in order]  # counted in this order
    return np.array(found)


def _values(data: Dataset, color: str | None) -> np.ndarray:
    """(structures,) what they are coloured by."""
    if color is None:
        return np.arange(len(data), dtype=float)
    lacking = next((s for s in data if (s.energy is None if color == ENERGY else color not in s.info)), None)
    if lacking is not None:
        there = sorted({key for structure in data for key in structure.info})
        what = "no energy" if color == ENERGY else f"no info key {color!r} (there are {', '.join(there) or 'none'})"
        raise DataError(f"{lacking.source}: has {what}; name another with --color")
    if color == ENERGY:
        return np.array([s.energy / len(s) for s in data])
    values = [s.info[color] for s in data]
    try:
        return np.array([float(value) for value in values]) if not _kinds(values) else np.array([str(v) for v in values])
    except (TypeError, ValueError):
        raise DataError(
            f"{data.census.source}: the info key {color!r} has values that are neither text nor numbers"
        ) from None


def _kinds(values: list) -> bool:
    """Whether values name kinds: text, or at most ten different whole numbers."""
    whole = all(isinstance(value, bool | int | np.integer) for value in values)
    return all(isinstance(value, str) for value in values) or whole and len(set(values)) <= 10


def _symbols(structure: Structure) -> np.ndarray:
    return np.array([chemical_symbols[z] for z in structure.numbers])
