"""Pairs of structures with the same atoms that are near each other: energy differences, and what the labels say they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.geometry import complete_cell
from scipy.spatial.distance import cdist

from mlff.data.structure import Structure

_MEMBERS = 250  # of one composition that nearest neighbours are looked for among
_CONSECUTIVE = 300  # pairs of frames that follow each other, at most
_MOST_ATOMS = 200_000  # in the structures looked at; of more, frames with their successors are taken evenly
_FARTHEST = 1.0  # Å, root mean square displacement
_STRAINED = 1e-4  # a larger strain counts as another cell
_LARGEST_STRAIN = 0.2
_SHEAR = (1, 2), (0, 2), (0, 1)  # yz, xz, xy


@dataclass(frozen=True, eq=False)
class Pairs:
    """p pairs; the second structure is turned onto the first, and moved as a whole."""

    first: np.ndarray  #: (p,) indices of structures
    second: np.ndarray  #: (p,)
    distance: np.ndarray  #: (p,) Å, root mean square displacement of the atoms
    strain: np.ndarray  #: (p,) largest strain from the first cell to the second
    atoms: np.ndarray  #: (p,) number of atoms
    volume: np.ndarray  #: (p,) Å³, mean; 0 without a cell
    dilation: np.ndarray  #: (p,) trace of the strain: logarithm of the ratio of the volumes
    energy: np.ndarray  #: (p,) eV, of the second less that of the first
    force_work: np.ndarray  #: (p,) eV, -mean(F)·dR; nan without forces
    stress_work: np.ndarray  #: (p, 3, 3) eV, mean(stress · volume) times strain, entry by entry; nan without stress
    swapped_work: np.ndarray  #: (p, 6) eV, the same summed up, with the shear components in the orders of SHEAR_ORDERS

    def __len__(self) -> int:
        return len(self.first)

    def where(self, chosen) -> Pairs:
        """Those chosen by a mask or by indices."""
        return Pairs(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


#: Orders in which yz, xz, xy may have been meant to stand: ASE's first, VASP's (xy, yz, xz) second.
SHEAR_ORDERS = (0, 1, 2), (1, 2, 0), (2, 1, 0), (0, 2, 1), (1, 0, 2), (2, 0, 1)


def find_pairs(structures: Sequence[Structure]) -> Pairs:
    """Consecutive frames, and nearest neighbours within 1 Å (RMS), with energies and forces or stresses."""
    groups: dict[tuple, list[int]] = {}
    for index in _looked_at(structures):
        s = structures[index]
        if s.energy is not None and (s.forces is not None or s.stress is not None):
            key = s.numbers.tobytes(), s.pbc.tobytes(), s.forces is None, s.stress is None
            groups.setdefault(key, []).append(index)
    found = [_measure(structures, members) for members in groups.values() if len(members) > 1]
    if not found:
        return Pairs(*(np.zeros((0, *shape)) for shape in ((),) * 9 + ((3, 3), (6,))))
    return Pairs(*(np.concatenate([getattr(p, name) for p in found]) for name in Pairs.__dataclass_fields__))


def _looked_at(structures) -> np.ndarray:
    share = _MOST_ATOMS / max(sum(map(len, structures)), 1)
    if share >= 1:
        return np.arange(len(structures))
    begin = np.linspace(0, len(structures) - 2, max(int(share * len(structures) / 2), 1)).astype(int)
    return np.union1d(begin, begin + 1)


def _measure(structures, members: list[int]) -> Pairs:
    """The pairs among structures with the same atoms."""
    chosen = [structures[k] for k in members]
    periodic = bool(chosen[0].pbc.any())
    candidates = _candidates(chosen, periodic)
    parts = []
    step = max(int(5e5 / len(chosen[0])), 1)  # keeps arrays below some 100 MB
    for begin in range(0, len(candidates), step):
        first, second = candidates[begin : begin + step].T
        parts.append((_compare_cells if periodic else _compare_molecules)(chosen, first, second))
    pairs = Pairs(*(np.concatenate([getattr(p, name) for p in parts]) for name in Pairs.__dataclass_fields__))
    members = np.array(members)
    pairs = Pairs(
        members[pairs.first], members[pairs.second], *(getattr(pairs, n) for n in list(Pairs.__dataclass_fields__)[2:])
    )
    return pairs.where(
        (pairs.distance < _FARTHEST) & (pairs.strain < _LARGEST_STRAIN) & (pairs.distance + pairs.strain > 1e-9)
    )


def _candidates(chosen: list[Structure], periodic: bool) -> np.ndarray:
    """(p, 2) indices, the first always the smaller."""
    count = len(chosen)
    begin = np.arange(count - 1)[:: max(1, (count - 1) // _CONSECUTIVE)]
    candidates = [np.stack([begin, begin + 1], axis=1)]
    most = int(min(_MEMBERS, max((4e7 / len(chosen[0])) ** 0.5, 10)))
    some = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
    metric, strained = (_cell_metric if periodic else _molecule_metric)([chosen[k] for k in some])
    for kind in (strained, ~strained):
        apart = np.where(kind, metric, np.inf)
        np.fill_diagonal(apart, np.inf)
        for rank in range(min(2, len(some) - 1)):
            nearest = np.argpartition(apart, rank, axis=1)[:, rank]
            is_there = np.isfinite(apart[np.arange(len(some)), nearest])
            candidates.append(np.stack([some[is_there], some[nearest[is_there]]], axis=1))
    return np.unique(np.sort(np.concatenate(candidates), axis=1), axis=0)


def _molecule_metric(chosen):
    """(m, m) differences of interatomic distances, and that no cell is strained."""
    atoms = np.unique(np.linspace(0, len(chosen[0]) - 1, min(len(chosen[0]), 40)).round().astype(int))
    low, high = np.triu_indices(len(atoms), 1)
    positions = np.stack([s.positions[atoms] for s in chosen])
    distances = np.linalg.norm(positions[:, low] - positions[:, high], axis=2)
    metric = cdist(distances, distances) if len(low) else np.zeros((len(chosen),) * 2)
    return metric, np.zeros(metric.shape, bool)


def _cell_metric(chosen):
    """(m, m) root mean square displacements plus strain (times 3 Å), and whether the cells differ."""
    cells, fractional, pbc = _cells(chosen)
    count = len(chosen)
    metric, strained = np.full((count, count), np.inf), np.zeros((count, count), bool)
    for k in range(count):
        _, strain, largest, _ = _strain(cells[k], cells)
        moved = _displaced(fractional[k], fractional, pbc) @ cells[k]
        metric[k] = np.sqrt((moved**2).sum(axis=2).mean(axis=1)) + 3.0 * largest
        metric[k, largest > _LARGEST_STRAIN] = np.inf
        strained[k] = largest > _STRAINED
    return metric, strained


def _compare_molecules(chosen, first, second) -> Pairs:
    a, b = (np.stack([chosen[k].positions for k in side]) for side in (first, second))
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    left, _, right = np.linalg.svd(np.swapaxes(b, 1, 2) @ a)
    proper = np.ones((len(a), 3))
    proper[:, 2] = np.sign(np.linalg.det(left @ right))
    turn = (left * proper[:, None]) @ right
    moved = b @ turn - a
    zeros = np.zeros(len(first))
    return _pairs(chosen, first, second, moved, turn, zeros, zeros, np.zeros((len(first), 3, 3)))


def _compare_cells(chosen, first, second) -> Pairs:
    cells, fractional, pbc = _cells(chosen)
    turn, strain, largest, stretch = _strain(cells[first], cells[second])
    back = np.swapaxes(turn, 1, 2)
    mean = (cells[first] + cells[first] @ stretch) / 2
    moved = _displaced(fractional[first], fractional[second], pbc) @ mean
    volume = abs(np.linalg.det(mean)) if pbc.all() else np.zeros(len(first))
    return _pairs(chosen, first, second, moved, back, largest, volume, strain)


def _pairs(chosen, first, second, moved, turn, largest, volume, strain) -> Pairs:
    """`turn` takes row vectors of the second structure to the first's orientation."""
    energies = np.array([s.energy for s in chosen])
    work = np.full(len(first), np.nan)
    if chosen[0].forces is not None:
        before, after = (np.stack([chosen[k].forces for k in side]) for side in (first, second))
        work = -((before + after @ turn) / 2 * moved).sum(axis=(1, 2))
    stress_work, swapped = np.full((len(first), 3, 3), np.nan), np.full((len(first), len(SHEAR_ORDERS)), np.nan)
    if chosen[0].stress is not None:
        labels = np.stack([s.stress * s.volume for s in chosen])
        back = np.swapaxes(turn, 1, 2)
        for column, order in enumerate(SHEAR_ORDERS):
            mean = (reordered(labels[first], order) + back @ reordered(labels[second], order) @ turn) / 2
            swapped[:, column] = (mean * strain).sum(axis=(1, 2))
            if column == 0:
                stress_work = mean * strain
    distance = np.sqrt((moved**2).sum(axis=2).mean(axis=1))
    atoms = np.full(len(first), len(chosen[0]))
    gain = energies[second] - energies[first]
    dilation = np.trace(strain, axis1=1, axis2=2)
    return Pairs(first, second, distance, largest, atoms, volume, dilation, gain, work, stress_work, swapped)


def reordered(tensors: np.ndarray, order) -> np.ndarray:
    """Tensors (..., 3, 3) whose k-th shear label (of yz, xz, xy) is taken to be number order[k]."""
    moved = tensors.copy()
    for k, source in enumerate(order):
        i, j = _SHEAR[k]
        moved[..., i, j] = moved[..., j, i] = tensors[..., *_SHEAR[source]]
    return moved


def _cells(chosen):
    """Cells (m, 3, 3), made whole where not periodic with the vectors of the first, and fractional positions (m, n, 3)."""
    pbc = chosen[0].pbc
    cells = np.stack([complete_cell(s.cell * s.pbc[:, None]) for s in chosen])
    if not pbc.all():
        cells[:, ~pbc] = cells[0, ~pbc]
    return cells, np.stack([s.positions for s in chosen]) @ np.linalg.inv(cells), pbc


def _strain(before, after):
    """after = before (1 + strain) turn: turn, logarithmic strain, its largest eigenvalue and 1 + strain; (..., 3, 3)."""
    left, stretch, right = np.linalg.svd(np.linalg.inv(before) @ after)
    log = np.log(np.maximum(stretch, 1e-12))
    back = np.swapaxes(left, -1, -2)
    return left @ right, (left * log[..., None, :]) @ back, np.abs(log).max(axis=-1), (left * stretch[..., None, :]) @ back


def _displaced(before, after, pbc):
    """Fractional displacements (..., n, 3), nearest image, without that of the whole."""
    moved = after - before
    moved = moved - moved[..., :1, :]
    moved = moved - np.round(moved) * pbc
    return moved - moved.mean(axis=-2, keepdims=True)
