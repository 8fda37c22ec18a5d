"""What a model or a data file is, as tables for the terminal."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from ase.data import chemical_symbols
from rich.console import Group
from rich.table import Table

from mlff.data.dataset import Dataset
from mlff.data.neighbors import neighbor_list
from mlff.potential import Potential
from mlff.training.metrics import Metrics

_LOOK_AT = 200  #: structures whose distances are measured


def model(potential: Potential, path: Path) -> Group:
    """Architecture, elements, errors and origin of a potential."""
    options = potential.config.model_dump()
    metadata = potential.metadata
    rows = [
        ("architecture", options.pop("architecture")),
        ("options", ", ".join(f"{key} {value}" for key, value in options.items() if key != "cutoff")),
        ("cutoff", f"{potential.cutoff:g} Å"),
        ("parameters", f"{sum(np.size(leaf) for leaf in jax.tree.leaves(potential.params)):,}"),
        ("precision", potential.precision),
        (
            "reference energies",
            ", ".join(f"{chemical_symbols[z]} {potential.baseline[z]:.4f} eV" for z in potential.elements),
        ),
    ]
    rows += [(name, _flat(value)) for name, value in metadata.items() if name not in ("config", "errors", "references", "certificate")]
    tables = [_rows(str(path), rows)]
    for name, errors in (metadata.get("errors") or {}).items():
        tables.append(Metrics(**errors).table(f"errors: {name}"))
    return Group(*tables)


def data(dataset: Dataset, path: Path) -> Group:
    """Counts, ranges and closest contacts of a dataset."""
    structures = dataset.structures
    sizes = [len(structure) for structure in structures]
    rows = [
        ("census", str(dataset.census)),
        ("structures", f"{len(structures):,}"),
        ("elements", ", ".join(chemical_symbols[z] for z in dataset.elements)),
        (
            "isolated atoms",
            ", ".join(f"{chemical_symbols[z]} {e:.4f} eV" for z, e in dataset.isolated_atoms.items()) or "none",
        ),
        ("fingerprint", dataset.fingerprint),
    ]
    if structures:
        rows.insert(2, ("atoms", f"{sum(sizes):,}; {min(sizes)} to {max(sizes)} per structure"))
        rows.insert(3, ("periodic", f"{sum(bool(s.pbc.any()) for s in structures):,} of {len(structures):,}"))
        per_atom = np.array([s.energy / len(s) for s in structures if s.energy is not None])
        if len(per_atom):
            rows.append(("energy", f"{per_atom.min():.4f} to {per_atom.max():.4f} eV/atom"))
        forces = [s.forces for s in structures if s.forces is not None]
        if forces:
            together = np.concatenate(forces)
            rows.append(("forces", f"RMS {np.sqrt(np.mean(together**2)):.4f}, largest {np.abs(together).max():.3f} eV/Å"))
        rows += _contacts(structures[:: max(1, len(structures) // _LOOK_AT)])
    return Group(_rows(str(path), rows))


def _contacts(structures) -> list[tuple[str, str]]:
    """The shortest distance of each pair of elements in some of the structures."""
    shortest: dict[tuple[int, int], float] = {}
    for s in structures:
        i, j, shifts = neighbor_list(s.positions, s.cell, s.pbc, 4.0)
        distances = np.linalg.norm(s.positions[j] - s.positions[i] + shifts @ s.cell, axis=1)
        low, high = np.sort([s.numbers[i], s.numbers[j]], axis=0)
        for pair in set(zip(low.tolist(), high.tolist(), strict=True)):
            nearest = float(distances[(low == pair[0]) & (high == pair[1])].min())
            shortest[pair] = min(nearest, shortest.get(pair, np.inf))
    text = ", ".join(f"{chemical_symbols[a]}-{chemical_symbols[b]} {d:.2f}" for (a, b), d in sorted(shortest.items()))
    return [("shortest distances", f"{text} Å ({len(structures)} structures looked at)")] if text else []


def _rows(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _flat(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    return str(value)
