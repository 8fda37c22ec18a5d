"""The structures with the largest errors, in tables and in a viewer that rotates them (viewer.js)."""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from scipy.spatial.transform import Rotation

from mlff.data.structure import Structure
from mlff.report.markup import Markup, data, note, number, table, tag
from mlff.training.parity import LARGEST, Parity, Worst

_TILT = Rotation.from_euler("yx", (-25, 15), degrees=True).as_matrix()  #: how a cell is seen at first


def worst_structures(sets: dict[str, Parity]) -> list[Markup]:
    """Tables of the worst structures of each set beside the viewer; empty without one."""
    found = [(name, item) for name, parity in sets.items() for item in parity.worst]
    if not found:
        return []
    tables, first = [], 0
    for name, parity in sets.items():
        if parity.worst:
            tables += [tag("h3", name), _table(parity.worst, first)]
            first += len(parity.worst)
    elements = sorted({int(z) for _, item in found for z in item.structure.numbers})
    content = {
        "elements": {chemical_symbols[z]: _look(z) for z in elements},
        "structures": [_scene(name, item) for name, item in found],
    }
    explanation = (
        f"The structures of up to {LARGEST} atoms with the largest force errors (without forces: energy errors). "
        "A number shows the structure: drag to rotate, wheel or two fingers to zoom, click an atom for its name and error. "
        "Arrows are predicted less reference forces. The distance is that of the farthest atom from the training data."
    )
    grid = tag("div", _canvas(), tag("div", *tables), class_="worst")
    return [note(explanation), grid, data("structures", content)]


def _canvas() -> Markup:
    label = "Structure: drag to rotate, wheel to zoom, arrow keys and + and - do the same"
    switch = tag("label", Markup('<input type="checkbox" id="arrows" checked> '), "force errors")
    below = tag("div", switch, tag("span", id="viewer-atom"), class_="controls")
    caption = tag("figcaption", "Without JavaScript there are the tables only.", id="viewer-caption")
    return tag("figure", tag("canvas", id="viewer", tabindex=0, role="img", aria_label=label), below, caption)


def _table(worst: tuple[Worst, ...], first: int) -> Markup:
    headings = ["number", "structure", "forces (meV/Å)", "energy (meV/atom)", "distance"]
    rows = [
        [
            tag("button", f"{item.index}", type="button", data_structure=first + k),
            [item.structure.formula, tag("div", item.structure.source.rpartition("/")[2], class_="note")],
            number(item.forces_rmse),
            number(item.energy_error, "+"),
            number(item.distance),
        ]
        for k, item in enumerate(worst)
    ]
    return table(headings, rows, texts=2)


def _scene(name: str, item: Worst) -> dict:
    s = item.structure
    rms = "" if item.forces_rmse is None else f"; forces {number(item.forces_rmse)} meV/Å"
    return {
        "caption": f"{name}, number {item.index}, {s.formula}{rms}",
        "symbols": [chemical_symbols[z] for z in s.numbers],
        "positions": np.round(_near(s), 3).ravel().tolist(),
        "errors": None if item.force_errors is None else np.round(item.force_errors, 4).ravel().tolist(),
        "cell": np.round(s.cell, 3).ravel().tolist() if s.pbc.any() else None,
        "view": np.round(_view(s), 4).ravel().tolist(),
    }


def _near(structure: Structure) -> np.ndarray:
    """Positions (n, 3; Å): as given, but within the cell where dynamics has carried atoms far out of it."""
    atoms = structure.to_atoms()
    if structure.pbc.any():
        scaled = atoms.cell.scaled_positions(atoms.positions)[:, structure.pbc] if structure.pbc.all() else np.zeros(1)
        if scaled.min() < -0.5 or scaled.max() > 1.5:
            atoms.wrap()
    return atoms.positions


def _view(structure: Structure) -> np.ndarray:
    """(3, 3) rows are the directions to the right, up and towards the reader: a molecule lies in the page."""
    if structure.pbc.any() or len(structure) < 2:
        return _TILT
    away = structure.positions - structure.positions.mean(axis=0)
    _, second, first = np.linalg.eigh(away.T @ away)[1].T  # by ascending extent
    return np.array([first, second, np.cross(first, second)])


def _look(z: int) -> dict:
    return {
        "colour": np.round(255 * jmol_colors[min(z, len(jmol_colors) - 1)]).astype(int).tolist(),
        "radius": round(float(covalent_radii[z]), 3),
    }
