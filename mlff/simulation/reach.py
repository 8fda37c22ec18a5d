"""How far a simulation goes from the training data."""

from __future__ import annotations

import time

import ase
import numpy as np

from mlff.data.structure import Structure
from mlff.potential.domain import BINS

_SHARE = 0.02  #: of the running time that may be spent on looking ...
_AT_ONCE = 40  #: ... after so many frames


class Reach:
    """The farthest atom of frames (see `mlff.potential.domain`), the first forty, then as many as cost a fiftieth of the time."""

    def __init__(self, calculator, always: bool = False):
        """`calculator`: one whose potential knows its training data; of others nothing is said. `always`: every frame."""
        self._environments = getattr(getattr(calculator, "potential", None), "environments", None)
        self._next = float("-inf")
        self._always = always
        self.farthest: list[float] = []  #: of each frame looked at

    def look(self, atoms: ase.Atoms) -> float | None:
        """The distance of the farthest atom of a frame, if it is time to look at one."""
        begin = time.perf_counter()
        if self._environments is None or (begin < self._next and not self._always):
            return None
        self.farthest.append(float(self._environments.distances(Structure.from_atoms(atoms)).max()))
        if len(self.farthest) >= _AT_ONCE:
            end = time.perf_counter()
            self._next = end + (end - begin) / _SHARE
        return self.farthest[-1]

    @property
    def largest(self) -> float | None:
        """Of all frames; None if none was looked at."""
        return max(self.farthest, default=None)

    @property
    def beyond(self) -> float | None:
        """Share of the frames with an atom more than twice as far as the rim of the data; None if none was looked at."""
        return float(np.mean(np.array(self.farthest) > BINS[-1])) if self.farthest else None
