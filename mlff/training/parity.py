"""Predictions beside reference labels: the points of parity plots, and the structures with the largest errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mlff.basics.errors import DataError, StructureError
from mlff.basics.files import write_text
from mlff.basics.properties import PREDICTED
from mlff.basics.statistics import rms
from mlff.basics.units import STRESS
from mlff.data.structure import Structure
from mlff.potential.domain import Environments

FILE = "parity.json"  #: in a run directory
WORST = 10  #: structures of a set that are kept
LARGEST = 500  #: atoms: larger structures are not kept
_POINTS = 10_000  #: of one quantity that are kept in a file
_DIGITS = 6


@dataclass(frozen=True, eq=False)
class Points:
    """One quantity of a set; the errors are those of all its values, also where a file keeps some of the points."""

    reference: np.ndarray  #: (n,)
    predicted: np.ndarray  #: (n,)
    rmse: float
    mae: float
    count: int  #: values compared

    @classmethod
    def of(cls, reference: np.ndarray, predicted: np.ndarray) -> Points:
        """Points of two arrays of one shape."""
        error = predicted - reference
        return cls(reference.ravel(), predicted.ravel(), rms(error), float(np.mean(np.abs(error))), error.size)

    def to_dict(self) -> dict:
        """Plain values, at most _POINTS points drawn at random."""
        kept = np.arange(len(self.reference))
        if len(kept) > _POINTS:
            kept = np.sort(np.random.default_rng(0).choice(kept, _POINTS, replace=False))
        points = {"reference": _rounded(self.reference[kept]), "predicted": _rounded(self.predicted[kept])}
        return points | {"rmse": self.rmse, "mae": self.mae, "count": self.count}

    @classmethod
    def from_dict(cls, values: dict) -> Points:
        """What `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        reference, predicted = (_numbers(values[name]) for name in ("reference", "predicted"))
        if reference.shape != predicted.shape or reference.ndim != 1 or not len(reference):
            raise ValueError("reference and predicted are not lists of one length")
        return cls(reference, predicted, float(values["rmse"]), float(values["mae"]), int(values["count"]))


@dataclass(frozen=True, eq=False)
class Worst:
    """A structure with one of the largest errors of its set."""

    structure: Structure
    index: int  #: in the set, from 0
    energy_error: float | None  #: meV per atom, predicted less reference
    forces_rmse: float | None  #: meV/Å
    force_errors: np.ndarray | None  #: (n, 3) eV/Å, predicted less reference
    distance: float | None  #: of its farthest atom from the training data (`mlff.potential.domain`)

    def to_dict(self) -> dict:
        """Plain values."""
        s = self.structure
        geometry = {"numbers": s.numbers.tolist(), "pbc": s.pbc.tolist(), "source": s.source}
        geometry |= {"positions": _rounded(s.positions), "cell": _rounded(s.cell)}
        errors = None if self.force_errors is None else _rounded(self.force_errors)
        figures = {"energy_error": self.energy_error, "forces_rmse": self.forces_rmse, "distance": self.distance}
        return geometry | figures | {"index": self.index, "force_errors": errors}

    @classmethod
    def from_dict(cls, values: dict) -> Worst:
        """What `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        positions = _numbers(values["positions"]).reshape(-1, 3)
        structure = Structure(
            np.asarray(values["numbers"], int),
            positions,
            _numbers(values["cell"]).reshape(3, 3),
            np.asarray(values["pbc"], bool),
            source=str(values["source"]),
        )
        try:
            structure.check()
        except StructureError as error:
            raise ValueError(str(error)) from None
        errors = values["force_errors"]
        if errors is not None and (errors := _numbers(errors)).shape != positions.shape:
            raise ValueError("force errors of another number of atoms")
        figures = [None if (x := values[name]) is None else float(x) for name in ("energy_error", "forces_rmse", "distance")]
        return cls(structure, int(values["index"]), *figures[:2], errors, figures[2])


@dataclass(frozen=True, eq=False)
class Parity:
    """One labelled set; None where no label is present."""

    energy: Points | None  #: meV per atom, less the mean of the references
    forces: Points | None  #: components, eV/Å
    stress: Points | None  #: components, GPa
    worst: tuple[Worst, ...]  #: by the RMSE of the forces, without forces by the energy per atom; the largest error first

    @classmethod
    def of(cls, structures: Sequence[Structure], results: Sequence, environments: Environments | None = None) -> Parity:
        """Compare `results` (as from Potential.predict) with the labels; with `environments` distances too."""
        pairs = list(zip(structures, results, strict=True))
        energies = np.array([(s.energy / len(s), r.energy / len(s)) for s, r in pairs if s.energy is not None and len(s)])
        energies = 1000 * (energies - energies[:, 0].mean()) if len(energies) else np.zeros((0, 2))
        forces = [(s.forces.ravel(), np.asarray(r.forces).ravel()) for s, r in pairs if s.forces is not None]
        stresses = [
            (s.stress.ravel() / STRESS["GPa"], np.asarray(r.stress).ravel() / STRESS["GPa"])
            for s, r in pairs
            if s.stress is not None and r.stress is not None
        ]
        points = (_points([tuple(energies.T)]), _points(forces), _points(stresses))
        return cls(*points, _worst(pairs, environments))

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        points = {name: None if (p := getattr(self, name)) is None else p.to_dict() for name in PREDICTED}
        return points | {"worst": [item.to_dict() for item in self.worst]}

    @classmethod
    def from_dict(cls, values: dict) -> Parity:
        """What `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        points = [None if values[name] is None else Points.from_dict(values[name]) for name in PREDICTED]
        return cls(*points, tuple(Worst.from_dict(item) for item in values["worst"]))


def write(path: Path, fingerprint: str, sets: dict[str, Parity]) -> None:
    """Keep what a potential (`fingerprint`) said of labelled sets, by name. Raises FileError."""
    content = {"potential": fingerprint, "sets": {name: parity.to_dict() for name, parity in sets.items()}}
    write_text(path, json.dumps(content, ensure_ascii=False) + "\n")


def read(path: Path, fingerprint: str) -> dict[str, Parity]:
    """What `write` wrote of this potential; {} without a file or where it is of another. Raises DataError: damaged."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["potential"] != fingerprint:
            return {}
        return {str(name): Parity.from_dict(values) for name, values in content["sets"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: is damaged ({problem}); remove it: `mlff evaluate` compares again") from None


def _points(sides: Sequence[tuple[np.ndarray, np.ndarray]]) -> Points | None:
    if not sides:
        return None
    reference, predicted = (np.concatenate(side) for side in zip(*sides, strict=True))
    return Points.of(reference, predicted) if len(reference) else None


def _worst(pairs: Sequence[tuple], environments: Environments | None) -> tuple[Worst, ...]:
    found = []
    for index, (structure, result) in enumerate(pairs):
        if not 0 < len(structure) <= LARGEST or structure.energy is None and structure.forces is None:
            continue
        energy = None if structure.energy is None else 1000 * (result.energy - structure.energy) / len(structure)
        errors = None if structure.forces is None else np.asarray(result.forces, np.float64) - structure.forces
        rmse = None if errors is None else float(1000 * np.sqrt(np.mean(errors**2)))
        found.append(Worst(structure, index, energy, rmse, errors, None))
    if any(item.forces_rmse is not None for item in found):
        found = [item for item in found if item.forces_rmse is not None]
        found.sort(key=lambda item: -item.forces_rmse)
    else:
        found.sort(key=lambda item: -abs(item.energy_error))
    return tuple(_with_distance(item, environments) for item in found[:WORST])


def _with_distance(item: Worst, environments: Environments | None) -> Worst:
    if environments is None:
        return item
    distance = float(environments.distances(item.structure).max())
    return replace(item, distance=distance if np.isfinite(distance) else None)


def _rounded(values: np.ndarray) -> list:
    """Nested lists of numbers with _DIGITS significant digits."""
    flat = [float(f"{x:.{_DIGITS}g}") for x in np.asarray(values, np.float64).ravel().tolist()]
    return np.array(flat).reshape(np.shape(values)).tolist()


def _numbers(values: list) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        raise ValueError("a value is not finite")
    return array
