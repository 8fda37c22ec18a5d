"""Where a trajectory of a molecule loses an atom or falls apart."""

from __future__ import annotations

from collections.abc import Sequence

import ase
import numpy as np
from ase.data import covalent_radii
from ase.neighborlist import natural_cutoffs, neighbor_list
from scipy.sparse.csgraph import connected_components

BROKEN = 1.6  #: sums of covalent radii: farther, and a bond between atoms other than hydrogen is broken
_LOST = 2.5  #: Å


def lost_hydrogen(frames: Sequence[ase.Atoms]) -> int | None:
    """The frame from which on a hydrogen that was bound stays more than 2.5 Å from every heavy atom; None if none does."""
    numbers = frames[0].numbers
    i, j = neighbor_list("ij", frames[0], [1.3 * radius for radius in natural_cutoffs(frames[0])])
    others = np.flatnonzero(numbers > 1)
    bound = sorted({int(a) for a, b in zip(i, j, strict=True) if numbers[a] == 1 and (numbers[b] > 1 or not len(others))})
    first = None
    for hydrogen in bound:
        partners = others if len(others) else np.delete(np.arange(len(numbers)), hydrogen)
        far = [frame.get_distances(hydrogen, partners, mic=frame.pbc.any()).min() > _LOST for frame in frames]
        if far[-1]:
            since = len(far) - int(np.argmin(far[::-1])) if not all(far) else 0
            first = since if first is None else min(first, since)
    return first


def apart(frames: Sequence[ase.Atoms]) -> int | None:
    """The first frame whose heavy atoms are in more pieces than those of frame 0; None if none is. Not for periodic cells."""
    heavy = frames[0].numbers > 1
    radii = covalent_radii[frames[0].numbers[heavy]]
    reach, before = BROKEN * (radii[:, None] + radii), None
    for number, frame in enumerate(frames):
        positions = frame.positions[heavy]
        near = np.linalg.norm(positions[:, None] - positions, axis=2) < reach
        pieces = connected_components(near, directed=False)[0]
        before = pieces if before is None else before
        if pieces > before:
            return number
    return None
