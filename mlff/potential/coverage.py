"""How far bond lengths, contacts and bond angles lie outside those of the training data.

Two atoms are bonded up to 0.45 Å beyond the sum of their covalent radii (the rule of Open Babel: O'Boyle et al., J.
Cheminform. 3, 33 (2011)); up to 1.5 Å beyond they are in contact. Lengths of bonds and angles between bonds are collected over
the training data by the bonding of both atoms, and of an angle's centre, where enough atoms had them (an atom's bonding is the
number of its bonds to each element); else, and for contacts, by elements. Towards the end of a contact or a bond all that is
said of it fades.

The values, sorted, are cut at wide gaps. The scale at each end of a piece is that of the normal distribution with
the mean excess of its tail over the tail's threshold (peaks over threshold: Davison & Smith, J. R. Stat. Soc. B 52, 393
(1990)), drawn to a prior where data are few. A value's standard score in that scale is turned from Student's into the normal
distribution (Wallace, Ann. Math. Stat. 30, 1118 (1959)). An atom's excess is the root of the summed squares of what its
scores exceed two by. Its rim, for each element, is what 99 % of the training atoms keep, measured on a fifth of the
structures left out at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii
from scipy.special import ndtri

from mlff.data.neighbors import neighbor_list, pair_vectors
from mlff.data.structure import Structure

_FIRM, _BONDED, _CONTACT = 0.25, 0.45, 1.5  #: Å beyond the sum of covalent radii
_MOST_BONDS = 24  #: of an atom, the shortest, whose angles are looked at
_GAP, _PRIOR = np.array([0.15, 0.3]), np.array([0.04, 0.06])  #: Å, rad: what cuts values; scale where there are no data
_PRIOR_COUNT = 5.0  #: values that the prior counts as
_ENOUGH = 20  #: atoms that are needed of a bonding
_TAIL, _TAIL_COUNT = 0.05, 10  #: share and least number of values in a tail
_FREE, _UNKNOWN = 2.0, 8.0  #: score up to which nothing counts; score of a pair or angle of elements never seen
_RIM, _LEAST_RIM, _LARGEST_RIM = 0.99, 1.0, 6.0  #: share of training atoms within the rim; its bounds
_FOLDS = 5
_TERMS, _INTERVALS = 1_000_000, 8_192  #: distances and angles of training that are looked at; intervals that are kept
_CHUNK, _BATCH = 200_000, 500  #: distances and angles, and atoms of training, at once
_SPAN = 16.0  #: more than any distance (Å) or angle (rad) here


class _Terms(NamedTuple):
    """Distances and angles of a structure."""

    keys: np.ndarray  #: (t, 2) uint64: by bonding, by elements; they may be the same
    values: np.ndarray  #: (t,) Å or rad
    kinds: np.ndarray  #: (t,) 0 distance, 1 angle
    atoms: np.ndarray  #: (t, 3); of a distance the second twice
    weights: np.ndarray  #: (t,) 1, going to 0 where a bond or a contact ends


@dataclass(frozen=True, eq=False)
class Coverage:
    """What distances and angles the training data had; small enough to travel in the model file."""

    keys: np.ndarray  #: (k,) uint64 ascending, what elements and bonding an interval belongs to
    intervals: np.ndarray  #: (k, 6) float32: lower, upper threshold; scales below, above; score there; degrees of freedom
    rims: dict[int, float]  #: Z -> excess that counts as distance 1

    def distances(self, structure: Structure) -> np.ndarray:
        """(n,) distance of each atom from the training data: up to 1 is inside, 2 is one and a half rims."""
        rims = np.array([self.rims.get(z, _LEAST_RIM) for z in structure.numbers.tolist()])
        part = self._excess([structure]) / rims
        return np.where(part > 1, 2 * part - 1, part)

    def _excess(self, structures: Sequence[Structure]) -> np.ndarray:
        squares = np.zeros(sum(map(len, structures)))
        for terms in _terms(structures):
            _add(squares, terms, _scores(terms, *_sets(self.keys), self.intervals))
        return np.sqrt(squares)

    def pack(self) -> tuple[dict, dict[str, np.ndarray]]:
        """Plain values for a header, and arrays by name."""
        return {"rims": {str(z): rim for z, rim in self.rims.items()}}, {"keys": self.keys, "intervals": self.intervals}

    @classmethod
    def unpack(cls, header: dict, arrays: dict[str, np.ndarray]) -> Coverage:
        """What `pack` gave. Raises KeyError, TypeError or ValueError for anything else."""
        rims = {int(z): float(rim) for z, rim in header["rims"].items()}
        keys, intervals = arrays["keys"], arrays["intervals"]
        if len(arrays) != 2 or keys.dtype != np.uint64 or keys.ndim != 1 or intervals.dtype != np.float32:
            raise ValueError("the training environments' distances and angles are not what they should be")
        if intervals.shape != (len(keys), 6):
            raise ValueError(f"the training environments' intervals have shape {intervals.shape}, expected ({len(keys)}, 6)")
        lower, upper, *scales, score, freedom = intervals.T
        sense = np.isfinite(intervals).all() and all((positive > 0).all() for positive in (*scales, freedom))
        sense = sense and ((0 <= lower) & (lower <= upper) & (upper < _SPAN) & (0 <= score) & (score < 9)).all()
        order = (keys[1:] > keys[:-1]) | (keys[1:] == keys[:-1]) & (lower[1:] >= upper[:-1])
        if not sense or not order.all() or not all(0 < rim < np.inf for rim in rims.values()):
            raise ValueError("the training environments hold distances and angles that make no sense")
        return cls(keys, intervals, rims)


def cover(structures: Sequence[Structure], elements: tuple[int, ...], seed: int = 0) -> Coverage:
    """What distances and angles a training set has; of many, as many structures as have a million of them."""
    terms, numbers, owners = _collected(structures, np.random.default_rng(seed))
    distinct = np.ones(terms.keys.shape, dtype=bool)
    distinct[:, 1] = terms.keys[:, 0] != terms.keys[:, 1]
    rows, levels = np.nonzero(distinct)
    keys, sets = np.unique(terms.keys[rows, levels], return_inverse=True)
    coarse = np.isin(keys, terms.keys[:, 1])
    order = np.argsort(sets + terms.values[rows] / _SPAN)  # np.lexsort takes minutes for a million
    rows, sets = rows[order], sets[order]
    values, kinds, n = terms.values[rows], terms.kinds[rows], len(numbers)
    folds = max(1, min(_FOLDS, len(np.unique(owners))))
    centers = np.unique(sets * n + terms.atoms[rows, 0])  # each once, however many values it has
    counts = np.bincount(centers // n * folds + owners[centers % n] % folds if n else centers, minlength=len(keys) * folds)
    counts = counts.reshape(len(keys), folds)
    excess = np.zeros(n)
    for fold in range(folds if folds > 1 else 0):
        out = owners[terms.atoms[:, 0]] % folds == fold
        seen = ~out[rows]
        enough = coarse | (counts.sum(axis=1) - counts[:, fold] >= _ENOUGH * (1 - 1 / folds))
        found, intervals = _fit(sets[seen], values[seen], kinds[seen], enough)
        part, squares = _Terms(*(column[out] for column in terms)), np.zeros(n)
        _add(squares, part, _scores(part, *_sets(keys[found]), intervals))
        excess[owners % folds == fold] = np.sqrt(squares[owners % folds == fold])
    rims = {z: float(np.quantile(excess[numbers == z], _RIM)) for z in elements if (numbers == z).any()}
    rims = {z: min(max(rim, _LEAST_RIM), _LARGEST_RIM) for z, rim in rims.items()}
    ranks = np.where(coarse, np.inf, counts.sum(axis=1))
    found, intervals = _fit(sets, values, kinds, ranks >= _ENOUGH)
    if len(found) > _INTERVALS:
        most = ranks[found] > np.sort(ranks[found])[-_INTERVALS]
        found, intervals = found[most], intervals[most]
    return Coverage(keys[found], intervals, rims)


def _collected(structures: Sequence[Structure], rng: np.random.Generator) -> tuple[_Terms, np.ndarray, np.ndarray]:
    """Terms of the training data, atomic numbers (n,) and structures (n,) of their atoms."""
    parts, numbers, owners, total, atoms = [_nothing()], [np.zeros(0, int)], [np.zeros(0, int)], 0, 0
    order = rng.permutation(len(structures))
    start = 0
    while start < len(order) and total < _TERMS:
        some = [structures[order[start]]]
        while start + len(some) < len(order) and sum(map(len, some)) < _BATCH:
            some.append(structures[order[start + len(some)]])
        for terms in _terms(some):
            parts.append(terms._replace(atoms=terms.atoms + atoms))
            total += len(terms.values)
        numbers += [s.numbers for s in some]
        owners += [np.full(len(s), start + k) for k, s in enumerate(some)]
        atoms += sum(map(len, some))
        start += len(some)
    return _Terms(*map(np.concatenate, zip(*parts, strict=True))), np.concatenate(numbers), np.concatenate(owners)


def _terms(structures: Sequence[Structure]) -> Iterator[_Terms]:
    """Distances and angles of structures, a chunk at a time; atoms are counted through all of them."""
    numbers = np.concatenate([s.numbers for s in structures])
    i, j, vectors = _pairs(structures)
    r = np.sqrt(np.einsum("pa,pa->p", vectors, vectors))
    beyond = r - covalent_radii[numbers[i]] - covalent_radii[numbers[j]]
    bonded = beyond < _BONDED
    element = _hash(numbers)
    neighbors = np.zeros(len(numbers), np.uint64)
    np.add.at(neighbors, i[bonded], _hash(numbers[j[bonded]], 1))
    bonding = _hash(element + neighbors)
    once = np.flatnonzero((i < j) | (i == j) & _forward(vectors))
    for start in range(0, len(once), _CHUNK):
        part = once[start : start + _CHUNK]
        a, b, near = i[part], j[part], bonded[part]
        by_element = _hash(element[a] + element[b], 2)
        fine = np.where(near, _hash(bonding[a] + bonding[b], 3), by_element)
        fade = np.clip((beyond[part] - _BONDED) / (_CONTACT - _BONDED), 0, 1)
        keys, atoms = np.stack([fine, by_element], axis=1), np.stack([a, b, b], axis=1)
        yield _Terms(keys, r[part], np.zeros(len(part), int), atoms, 0.5 + 0.5 * np.cos(np.pi * fade))
    order = np.flatnonzero(bonded)
    order = order[np.lexsort((r[order], i[order]))]
    starts = np.searchsorted(i[order], np.arange(len(numbers)))
    order = order[np.arange(len(order)) - starts[i[order]] < _MOST_BONDS]
    i, j, directions = i[order], j[order], vectors[order] / np.maximum(r[order], 1e-12)[:, None]
    firm = np.clip((_BONDED - beyond[order]) / (_BONDED - _FIRM), 0, 1)
    counts = np.bincount(i, minlength=len(numbers))
    left = np.cumsum(counts)[i] - np.arange(len(i)) - 1  # bonds of the same centre that come after
    for start, end in _chunks(np.cumsum(left)):
        first = np.repeat(np.arange(start, end), left[start:end])
        before = np.repeat(np.cumsum(left[start:end]) - left[start:end], left[start:end])
        second = first + 1 + np.arange(len(first)) - before
        cosines = np.einsum("pa,pa->p", directions[first], directions[second])
        c, a, b = i[first], j[first], j[second]
        ends = element[a] + element[b]
        keys = np.stack([_hash(_hash(bonding[c], 4) + ends), _hash(_hash(element[c], 5) + ends)], axis=1)
        angles, atoms = np.arccos(np.clip(cosines, -1, 1)), np.stack([c, a, b], axis=1)
        yield _Terms(keys, angles, np.ones(len(c), int), atoms, firm[first] * firm[second])


def _pairs(structures: Sequence[Structure]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centers, neighbours and vectors of all pairs in contact, atoms counted through the structures."""
    parts, before = [], 0
    for s in structures:
        radii = covalent_radii[s.numbers]
        i, j, shifts = neighbor_list(s.positions, s.cell, s.pbc, 2 * float(radii.max(initial=0.0)) + _CONTACT)
        vectors = pair_vectors(s.positions, s.cell, i, j, shifts)
        near = np.einsum("pa,pa->p", vectors, vectors) < (radii[i] + radii[j] + _CONTACT) ** 2
        parts.append((i[near] + before, j[near] + before, vectors[near]))
        before += len(s)
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _forward(vectors: np.ndarray) -> np.ndarray:
    """One of each vector and its opposite, (p,) bool."""
    x, y, z = vectors.T
    return (x > 0) | (x == 0) & ((y > 0) | (y == 0) & (z > 0))


def _chunks(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of bonds with about _CHUNK angles each; `ends` (b,) angles up to and with a bond."""
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + _CHUNK, side="right")))
        yield start, end
        start = end


def _nothing() -> _Terms:
    return _Terms(np.zeros((0, 2), np.uint64), np.zeros(0), np.zeros(0, int), np.zeros((0, 3), int), np.zeros(0))


def _hash(values: np.ndarray, salt: int = 0) -> np.ndarray:
    """SplitMix64 of integers (Steele, Lea & Flood, OOPSLA 2014), uint64."""
    with np.errstate(over="ignore"):
        x = values.astype(np.uint64) + np.uint64(salt + 1) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _fit(sets, values, kinds, enough) -> tuple[np.ndarray, np.ndarray]:
    """Sets (k,) and intervals (k, 6) of values (v,) sorted by set and value, of the sets that have `enough`."""
    kept = enough[sets]
    sets, values, kinds = sets[kept], values[kept], kinds[kept]
    if not len(sets):
        return np.zeros(0, int), np.zeros((0, 6), np.float32)
    starts = np.r_[0, np.flatnonzero((sets[1:] != sets[:-1]) | (np.diff(values) > _GAP[kinds[1:]])) + 1]
    ends = np.r_[starts[1:], len(sets)]
    count = ends - starts
    few = count <= 2 * _TAIL_COUNT
    tail = np.where(few, (count + 1) // 2, np.maximum(_TAIL_COUNT, np.round(_TAIL * count).astype(int)))
    sums = np.r_[0.0, np.cumsum(values)]
    median = 0.5 * (values[starts + (count - 1) // 2] + values[starts + count // 2])
    lower = np.where(few, median, values[np.minimum(starts + tail, ends - 1)])
    upper = np.where(few, median, values[np.maximum(ends - tail - 1, starts)])
    share = np.where(few, 0.5, tail / count)
    score = -ndtri(share)
    expected = np.exp(-0.5 * score**2) / np.sqrt(2 * np.pi) / share - score  # mean excess of a normal tail
    below, above = lower - (sums[starts + tail] - sums[starts]) / tail, (sums[ends] - sums[ends - tail]) / tail - upper
    known = np.where(count < 3, count - 1, tail)
    prior = _PRIOR_COUNT * _PRIOR[kinds[starts]] ** 2
    scales = [np.sqrt((prior + known * (np.maximum(x, 0) / expected) ** 2) / (_PRIOR_COUNT + known)) for x in (below, above)]
    freedom = _PRIOR_COUNT + count / 4
    return sets[starts], np.stack([lower, upper, *scales, np.abs(score), freedom], axis=1).astype(np.float32)


def _sets(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys (s,), and which of them (k,) each interval has."""
    return np.unique(keys, return_inverse=True)


def _scores(terms: _Terms, keys: np.ndarray, which: np.ndarray, intervals: np.ndarray) -> np.ndarray:
    """(t,) standard scores of terms, by bonding where it is known, else by elements."""
    level = np.full(len(terms.values), -1)
    for column in terms.keys.T[::-1]:
        place = np.minimum(np.searchsorted(keys, column), len(keys) - 1)
        if len(keys):
            level = np.where(keys[place] == column, place, level)
    scores, known = np.full(len(level), _UNKNOWN), level >= 0
    level, values = level[known], terms.values[known]
    after = np.searchsorted(which + intervals[:, 0] / _SPAN, level + values / _SPAN, side="right")
    best = np.full(len(level), np.inf)
    for place in (after - 1, after):
        row = np.clip(place, 0, max(0, len(which) - 1))
        same = (place == row) & (which[row] == level) if len(which) else np.zeros(len(row), bool)
        lower, upper, below, above, score, freedom = intervals[row[same]].T.astype(np.float64)
        outside = np.maximum((lower - values[same]) / below, (values[same] - upper) / above)
        t = np.where(outside > 0, score + outside, 0.0)
        normal = np.sqrt(freedom * np.log1p(t**2 / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)
        best[same] = np.minimum(best[same], normal)
    scores[known] = best
    return scores * terms.weights


def _add(squares: np.ndarray, terms: _Terms, scores: np.ndarray) -> None:
    """Add what scores exceed _FREE by, squared, to each atom concerned."""
    more = np.flatnonzero(scores > _FREE)
    excess, atoms = (scores[more] - _FREE) ** 2, terms.atoms[more]
    for column in range(3):
        concerned = terms.kinds[more] >= column - 1  # the third only of an angle
        np.add.at(squares, atoms[concerned, column], excess[concerned])
