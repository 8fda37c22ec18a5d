"""Errors of predictions against reference labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from rich.markup import escape
from rich.table import Table

from mlff.basics.errors import printable
from mlff.basics.properties import MILLI
from mlff.basics.statistics import rms
from mlff.data.structure import Structure
from mlff.potential.domain import BINS, NAMES, Environments

_COUNTS = ("structures", "energies", "force_components", "stress_components", "atoms")
_DICTIONARIES = ("forces_rmse_by_element", "forces_rmse_of_structures")
_QUANTILES = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "worst": 1.0}
_ROW = {"name", "structures", "atoms", "energy_rmse_per_atom", "forces_rmse"}  # of by_distance


@dataclass(frozen=True)
class Metrics:
    """Errors over a set of structures; None where no label is present.

    Energies are totals, per-atom figures divide by the number of atoms; forces and stresses count components.
    """

    structures: int  #: structures compared
    energies: int  #: of them with an energy
    force_components: int  #: force components with a label
    stress_components: int  #: stress components with a label
    energy_rmse: float | None = None  #: meV
    energy_mae: float | None = None  #: meV
    energy_rmse_per_atom: float | None = None  #: meV per atom
    energy_mae_per_atom: float | None = None  #: meV per atom
    forces_rmse: float | None = None  #: meV/Å
    forces_mae: float | None = None  #: meV/Å
    forces_rms: float | None = None  #: meV/Å, of the labels themselves: what predicting zero would give
    forces_rmse_by_element: dict[str, float] = dataclasses.field(default_factory=dict)  #: meV/Å
    #: meV/Å, of the force RMSE of single structures: median, "90 %", "99 %", worst; which structure is the worst (from 0)
    forces_rmse_of_structures: dict[str, float] = dataclasses.field(default_factory=dict)
    stress_rmse: float | None = None  #: meV/Å³
    stress_mae: float | None = None  #: meV/Å³
    #: by distance from the training data (`mlff.potential.domain`): energies by the farthest atom, forces atom by atom
    by_distance: list[dict] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict:
        """Plain numbers, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Metrics:
        """What `to_dict` wrote. Raises ValueError or TypeError for anything else."""
        metrics = cls(**values)
        figures = [item for item in vars(metrics).items() if item[0] not in _DICTIONARIES + ("by_distance",)]
        for name in _DICTIONARIES:
            figures += getattr(metrics, name).items()
        for row in metrics.by_distance:
            if set(row) != _ROW or row["name"] not in NAMES:
                raise ValueError("by_distance has other entries")
            figures += [item for item in row.items() if item[0] != "name"]
        for name, value in figures:
            number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
            if not (number or value is None and name not in _COUNTS):
                raise ValueError(f"{name} is no number")
        return metrics

    def table(self, title: str | None = None) -> Table:
        """A rich table of the errors."""
        table = Table(title=title, title_justify="left")
        for heading in ("", "RMSE", "MAE"):
            table.add_column(heading, justify="left" if not heading else "right")
        table.add_column("unit")
        table.add_column("over", justify="right")
        if self.energies:
            count = f"{self.energies:,} structures"
            table.add_row("energy", _number(self.energy_rmse), _number(self.energy_mae), "meV", count)
            per_atom = _number(self.energy_rmse_per_atom), _number(self.energy_mae_per_atom)
            table.add_row("energy per atom", *per_atom, "meV", count)
        if self.force_components:
            count = f"{self.force_components:,} components"
            table.add_row("forces", _number(self.forces_rmse), _number(self.forces_mae), "meV/Å", count)
            if self.forces_rmse_of_structures:
                found = " / ".join(_number(self.forces_rmse_of_structures[name]) for name in _QUANTILES)
                worst = f"worst: number {self.forces_rmse_of_structures['index']:.0f}"
                table.add_row("  median / 90 % / 99 % / worst structure", found, "", "meV/Å", worst)
            for element, rmse in self.forces_rmse_by_element.items():
                table.add_row(f"  on {escape(printable(element))}", _number(rmse), "", "meV/Å", "")
        for row in self.by_distance:
            name = f"  {row['name']}"
            if row["forces_rmse"] is not None:
                table.add_row(f"{name}, forces", _number(row["forces_rmse"]), "", "meV/Å", f"{row['atoms']:,} atoms")
            if row["energy_rmse_per_atom"] is not None:
                count = f"{row['structures']:,} structures"
                table.add_row(f"{name}, energy per atom", _number(row["energy_rmse_per_atom"]), "", "meV", count)
        if self.stress_components:
            count = f"{self.stress_components:,} components"
            table.add_row("stress", _number(self.stress_rmse), _number(self.stress_mae), "meV/Å³", count)
        if not table.rows:
            table.add_row("no labels to compare with", "", "", "", f"{self.structures:,} structures")
        return table

    def __str__(self) -> str:
        parts = []
        if self.energies:
            per_atom = _number(self.energy_rmse_per_atom)
            parts.append(f"energy RMSE {_number(self.energy_rmse)} meV ({per_atom} meV/atom)")
        if self.force_components:
            worst = self.forces_rmse_of_structures.get("worst")
            parts.append(
                f"force RMSE {_number(self.forces_rmse)} meV/Å" + (f" (worst structure {_number(worst)})" if worst else "")
            )
        if self.stress_components:
            parts.append(f"stress RMSE {_number(self.stress_rmse)} meV/Å³")
        return ", ".join(parts) + f" over {self.structures:,} structures" if parts else "no labels to compare with"


def compare(structures: Iterable[Structure], results: Iterable, environments: Environments | None = None) -> Metrics:
    """Metrics of `results` (energy eV, forces (n, 3) eV/Å, stress (3, 3) eV/Å³ or None) against the labels, in float64.

    With `environments` also by distance from the training data.
    """
    far: list[tuple[float, float]] = []  # distance of the farthest atom, energy error per atom
    near: list[tuple[np.ndarray, np.ndarray]] = []  # distances and squared force errors of atoms
    energies, atoms, forces, references, elements, stresses, single = [], [], [], [], [], [], []
    count = 0
    for structure, result in zip(structures, results, strict=True):
        count += 1
        away = None if environments is None else environments.distances(structure)
        if structure.energy is not None:
            energies.append(result.energy - structure.energy)
            atoms.append(len(structure))
            if away is not None:
                far.append((float(away.max(initial=0.0)), energies[-1] / max(1, len(structure))))
        if structure.forces is not None:
            forces.append(np.asarray(result.forces, np.float64) - structure.forces)
            references.append(structure.forces)
            elements.append(structure.numbers)
            if len(structure):
                single.append((_rms(forces[-1]), count - 1))
            if away is not None:
                near.append((away, np.mean(forces[-1] ** 2, axis=1)))
        if structure.stress is not None and result.stress is not None:
            stresses.append(np.asarray(result.stress, np.float64) - structure.stress)
    values = {}
    if energies:
        difference, n = np.array(energies, np.float64), np.array(atoms)
        values |= {"energy_rmse": _rms(difference), "energy_mae": _mean(difference)}
        values |= {"energy_rmse_per_atom": _rms(difference / n), "energy_mae_per_atom": _mean(difference / n)}
    if forces:
        difference, z = np.concatenate(forces), np.concatenate(elements)
        values |= {"forces_rmse": _rms(difference), "forces_mae": _mean(difference)}
        if single:
            values["forces_rmse_of_structures"] = _quantiles(single)
        values["forces_rms"] = _rms(np.concatenate(references))
        values["forces_rmse_by_element"] = {chemical_symbols[e]: _rms(difference[z == e]) for e in np.unique(z)}
    if stresses:
        difference = np.array(stresses)
        values |= {"stress_rmse": _rms(difference), "stress_mae": _mean(difference)}
    if far or near:
        values["by_distance"] = _binned(far, near)
    return Metrics(count, len(energies), 3 * sum(map(len, forces)), 9 * len(stresses), **values)


def _binned(far: list, near: list) -> list[dict]:
    """One entry for each range of distances in which there is an atom or a structure."""
    reach, errors = np.array(far, np.float64).reshape(-1, 2).T
    away, squares = (np.concatenate(side) for side in zip(*near, strict=True)) if near else np.zeros((2, 0))
    rows = []
    for number, name in enumerate(NAMES):
        energies, forces = (
            errors[np.digitize(reach, BINS, right=True) == number],
            squares[np.digitize(away, BINS, right=True) == number],
        )
        if len(energies) or len(forces):
            row = {"name": name, "structures": len(energies), "atoms": len(forces)}
            row["energy_rmse_per_atom"] = _rms(energies) if len(energies) else None
            row["forces_rmse"] = MILLI * float(np.sqrt(np.mean(forces))) if len(forces) else None
            rows.append(row)
    return rows


def _quantiles(single: list[tuple[float, int]]) -> dict[str, float]:
    errors = np.array([error for error, _ in single])
    found = {name: float(np.quantile(errors, q, method="inverted_cdf")) for name, q in _QUANTILES.items()}
    return found | {"index": max(single, key=lambda pair: (np.nan_to_num(pair[0], nan=np.inf), -pair[1]))[1]}


def _rms(difference: np.ndarray) -> float:
    return MILLI * rms(difference)


def _mean(difference: np.ndarray) -> float:
    return MILLI * float(np.mean(np.abs(difference)))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
