"""Structures displaced beyond the data: energies and forces there against those of harmonic springs.

Bonds are changed by -12 to +20 %, as they are at 1,000 to 1,500 K. The springs are the potential's own: its curvature at
the start along the displacement. True energies lie at 0.5 to 1.5 times theirs, and true forces are below 28 eV/Å (GFN2-xTB
on four molecules, Stillinger-Weber silicon, effective medium theory on copper-gold).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ase
import numpy as np
from ase.data import covalent_radii

from mlff.certificate.line import Line
from mlff.certificate.probe import Probe
from mlff.certificate.scans import BONDED, Path, bond_paths, pair_name
from mlff.data.neighbors import neighbor_list, pair_vectors

DEEPEST = 1.0  #: of the harmonic energy, below which the energy is by so much: from there on it falls where it should rise
STEEPEST = 2.5  #: of the largest harmonic force; true forces reach 1.2 times that
_FORCES = 20.0, 100.0  #: eV/Å: in between lies the limit that this makes
_BOND = 0.88, 1.20  #: of its length at the start: what a bond keeps
_NEAREST = 0.85  #: the same of pairs that are not bonded
_REACH = 4.0  #: Å: pairs that are looked at
_SIZE = 0.3  #: Å, root mean square over atoms, before bonds are put right
_BOND_CHANGES = (-0.12, -0.09, -0.06, 0.05, 0.10, 0.15, 0.20)  #: share of the length
_SHARES = (0.25, 0.5, 0.75, 1.0)  #: of the whole displacement
_SMALL = 0.02, 0.1  #: Å of a bond, share of a whole displacement: the step that gives the curvature
_SOFT = 0.5  #: eV: a harmonic energy below is set to this where something is divided by it
_FRAMES, _ATOMS = 9, 6000  #: displaced structures along a path, about; atoms in all of them
_PATHS = 6, 32  #: of one structure, at least and at most; up to half of them bonds


@dataclass(frozen=True)
class Displacement:
    """One displaced structure and what the potential says of it."""

    path: Path
    step: float  #: along the path, from the start
    share: float  #: energy over the harmonic one
    force: float  #: eV/Å, the largest on an atom
    harmonic: float  #: eV/Å, the largest on an atom by the springs
    where: str  #: structure, atoms and displacement


def displacements(ask: Probe, structures: Sequence[ase.Atoms], rng: np.random.Generator) -> list[Displacement]:
    """Bonds changed one at a time, and all atoms displaced at once."""
    paths: list[tuple[Path, float, np.ndarray]] = []
    each = int(np.clip(_ATOMS / _FRAMES / sum(map(len, structures)), *_PATHS))
    for number, atoms in enumerate(structures):
        bonds = list(bond_paths(atoms, f"of structure {number}", each // 2, repeat=True))
        for path in bonds:
            steps = path.at * np.array(_BOND_CHANGES)
            paths.append((path, _SMALL[0], steps[[_has_room(path, s) for s in steps]]))
        for _ in range(each - len(bonds)):
            path = Path(f"structure {number}", atoms, 0.0, thermal(atoms, _SIZE, rng), np.array(_SHARES))
            paths.append((path, _SMALL[1], path.distances))
    results = iter(ask([path.frame(path.at + s) for path, small, steps in paths for s in (0.0, -small, small, *steps)]))
    found = []
    for path, small, steps in paths:
        start, before, after = (next(results) for _ in range(3))
        springs = (after.forces - before.forces) / (2 * small)
        slope, curvature = -np.sum(start.forces * path.direction), -np.sum(springs * path.direction)
        for s in steps.tolist():
            result = next(results)
            harmonic = 0.5 * curvature * s**2
            excess = result.energy - start.energy - slope * s - harmonic
            share = float(1 + excess / max(abs(harmonic), _SOFT))
            forces = np.linalg.norm([result.forces, start.forces + s * springs], axis=-1)
            where = _where(path, s, int(np.argmax(forces[0])))
            found.append(Displacement(path, s, share, *forces.max(axis=1).tolist(), where))
    return found


def _has_room(path: Path, step: float) -> bool:
    """Whether all pairs but the bond of the path keep _NEAREST of their distance: an atom may run into the next."""
    start, frame = path.start, path.frame(path.at + step)
    moving = (path.direction != 0).any(axis=1)
    i, j, shifts = neighbor_list(start.positions, start.cell.array, start.pbc, _REACH)
    across = moving[i] & ~moving[j] & ((i != path.bond[1]) | (j != path.bond[0]))
    before, after = (
        np.linalg.norm(pair_vectors(a.positions, a.cell.array, i[across], j[across], shifts[across]), axis=1)
        for a in (start, frame)
    )
    return bool((after >= _NEAREST * before).all())


def thermal(atoms: ase.Atoms, size: float, rng: np.random.Generator) -> np.ndarray:
    """(n, 3) Å: random displacements of `size` (root mean square), put right until bonds keep their bounds."""
    i, j, shifts = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, _REACH)
    once = i < j
    i, j, shifts = i[once], j[once], shifts[once]
    lengths = np.linalg.norm(pair_vectors(atoms.positions, atoms.cell.array, i, j, shifts), axis=1)
    bonded = lengths < BONDED * (covalent_radii[atoms.numbers[i]] + covalent_radii[atoms.numbers[j]])
    least, most = np.where(bonded, _BOND[0], _NEAREST) * lengths, np.where(bonded, _BOND[1], np.inf) * lengths
    moves = rng.normal(size=(len(atoms), 3)) * size / np.sqrt(3)

    def errors() -> tuple[np.ndarray, np.ndarray]:
        vectors = pair_vectors(atoms.positions + moves, atoms.cell.array, i, j, shifts)
        distances = np.linalg.norm(vectors, axis=1)
        change = np.clip(distances, least, most) - distances
        return np.where(np.abs(change) > 0.005 * distances, change, 0.0), vectors / np.maximum(distances, 1e-9)[:, None]

    for _ in range(200):
        change, units = errors()
        if not change.any():
            return moves
        wrong = change != 0
        half = 0.5 * (change[:, None] * units)[wrong]
        correction, counts = np.zeros_like(moves), np.zeros(len(atoms))
        for ends, sign in ((i[wrong], -1), (j[wrong], 1)):
            np.add.at(correction, ends, sign * half)
            np.add.at(counts, ends, 1 / 1.5)
        moves += correction / np.maximum(1, counts)[:, None]
    while errors()[0].any():
        moves *= 0.9
    return moves


def energies_and_forces(found: Sequence[Displacement]) -> list[Line]:
    """How far the energy falls below the harmonic one, and the largest force, among displaced structures."""
    starts = len({id(d.path.start) for d in found})
    many = f"{len(found)} displacements of {starts} structures, bonds by -12 to +20 %"
    limit = float(np.clip(STEEPEST * max(d.harmonic for d in found), *_FORCES))
    low, high = min(found, key=lambda d: d.share), max(found, key=lambda d: d.force)
    depth, force = max(0.0, 1 - low.share), high.force
    if lost := [d for d in found if not np.isfinite([d.share, d.force]).all()]:
        low, high, depth, force = lost[0], lost[0], None, None
    hole = f"{many}; {low.where}; a failure means a hole where no data reach"
    wall = f"{many}; {high.where}; a failure means errors that end dynamics where no data reach"
    return [
        Line("displaced structures, energy below harmonic", depth, "of the harmonic", DEEPEST, hole),
        Line("displaced structures, largest force", force, "eV/Å", limit if np.isfinite(limit) else _FORCES[0], wall),
    ]


def _where(path: Path, step: float, atom: int) -> str:
    """Names the bond; or the atom with the largest force, and its pair that changed most."""
    if path.bond is not None:
        return f"{path.name} at {path.at + step:.2f} Å instead of {path.at:.2f} Å"
    size = step * np.sqrt((path.direction**2).sum(axis=1).mean())
    text = f"{path.name}, all atoms displaced by {size:.2f} Å"
    start, frame = path.start, path.frame(path.at + step)
    i, j, shifts = neighbor_list(frame.positions, frame.cell.array, frame.pbc, _REACH)
    mine = (i == atom) & (j != atom)
    if not mine.any():
        return text
    i, j, shifts = i[mine], j[mine], shifts[mine]
    after, before = (np.linalg.norm(pair_vectors(a.positions, a.cell.array, i, j, shifts), axis=1) for a in (frame, start))
    radii = covalent_radii[frame.numbers]
    change = np.abs(np.log(after / before)) * (after < BONDED * (radii[i] + radii[j]))
    k = int(change.argmax()) if change.any() else int(after.argmin())
    return f"{text}, {pair_name(frame.numbers, atom, int(j[k]))} at {after[k]:.2f} Å instead of {before[k]:.2f} Å"
