"""A neighbour list that outlives small moves: built at cutoff + skin on the host, kept on the device."""

from __future__ import annotations

import jax
import numpy as np

from mlff.data.batching import Sample, Sizes, make_graph, round_up
from mlff.data.pairs import find_pairs
from mlff.graph import Graph

SLACK = 0.1  #: spare neighbour slots, as a share of the largest count


class VerletList:
    """Neighbours of one structure at a time.

    The list is valid for a geometry R, H if every pair within the cutoff was within cutoff + skin at the reference R0, H0.
    With F = H0⁻¹ H and displacements u_i = R_i - R0_i F, lengths obey |r| >= s |r0| - |u_j - u_i| (s: smallest singular
    value of F), so the list is kept while s (cutoff + skin) - 2 max|u_i - mean u| >= cutoff.
    """

    def __init__(self, cutoff: float, skin: float, dtype):
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.dtype = dtype
        self.rebuilds = 0  #: times a list was built
        self.sizes: list[Sizes] = []  #: padded shapes in use so far; structures are put into these where they fit
        self.graph: Graph | None = None
        self._positions = self._cell = self._pbc = self._numbers = None

    def graph_at(self, positions: np.ndarray) -> Graph:
        """The graph with these positions (n, 3), float64, Å, moved to where float32 keeps its digits."""
        moved = (positions + self._offsets).astype(self.dtype)
        spare = self.graph.atomic_numbers.shape[0] - len(moved)
        if spare:
            moved = np.concatenate([moved, np.zeros((spare, 3), self.dtype)])
        return self.graph._replace(positions=moved)

    def build(self, numbers, positions, cell, pbc, sizes: Sizes | None = None) -> None:
        """Search neighbours around this geometry; `sizes` asks for a padded shape (where it suffices).

        Raises StructureError when two atoms are on top of each other.
        """
        self.graph = None
        self._positions, self._cell = np.array(positions, np.float64), np.array(cell, np.float64)
        self._pbc, self._numbers = np.array(pbc, bool), np.array(numbers, np.int32)
        wrapped = self._wrap()
        found = find_pairs(wrapped, self._cell, self._pbc, self.cutoff + self.skin, reverse=False)
        if found.moves is not None:
            self._lattice, self._center = self._lattice + found.moves[0], self._center - found.moves[1]
            self._offsets = self._lattice @ self._cell - self._center
        neighbors, periodic = found.neighbors, bool(self._pbc.any())
        arrays = neighbors, found.mask, found.reverse, found.shifts if periodic else None
        sample = Sample(self._numbers, self._positions + self._offsets, self._cell, self._pbc, *arrays)
        chosen = self._choose(len(numbers), max(1, neighbors.shape[1]), periodic, sizes)
        with jax.enable_x64(self.dtype == np.float64):
            self.graph = jax.device_put(make_graph([sample], chosen, self.dtype, shifts=periodic))
        self._graph_cell = self._cell
        self.rebuilds += 1

    def state(self) -> dict[str, np.ndarray]:
        """The reference geometry and the padded shape: what `restore` needs to build the same list again."""
        if self.graph is None:
            return {}
        sizes = np.array([1, *self.graph.neighbors.shape])
        return {"positions": self._positions, "cell": self._cell, "pbc": self._pbc, "numbers": self._numbers, "sizes": sizes}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        sizes = Sizes(*(int(size) for size in state["sizes"]))
        self.build(state["numbers"], state["positions"], state["cell"], state["pbc"], sizes)

    def holds(self, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        """Whether the list is good for this geometry (float64, Å); False too for positions that are not finite."""
        if self.graph is None or not (np.array_equal(numbers, self._numbers) and np.array_equal(pbc, self._pbc)):
            return False
        if not np.array_equal(cell, self._graph_cell) and not self._follow(cell):
            return False
        return self.covers(positions)

    def covers(self, positions: np.ndarray) -> bool:
        """`holds` for the same elements, cell and periodicity as at the last call of it."""
        if self.graph is None:
            return False
        spare = 0.5 * (self._shrink * (self.cutoff + self.skin) - self.cutoff)
        if spare <= 0:
            return False
        moved = positions - self._affine
        largest = max(moved.max(initial=0.0), -moved.min(initial=0.0))
        if largest <= 0.577 * spare:
            return True
        if not largest <= self.skin + self.cutoff:
            return False
        moved -= moved.mean(axis=0)
        return bool(np.einsum("na,na->n", moved, moved).max() <= spare * spare)

    def _follow(self, cell: np.ndarray) -> bool:
        """Carry the reference along with a new cell; False if the list must be built anew."""
        if not self._pbc.any():
            self._graph_cell = np.array(cell, np.float64)
            self.graph = self.graph._replace(cell=self._device_cell(cell))
            return True
        if abs(np.linalg.det(self._cell)) < 1e-6 or not np.isfinite(cell).all():
            return False
        deformation = np.linalg.solve(self._cell, cell)
        self._shrink = min(1.0, float(np.linalg.svd(deformation, compute_uv=False)[-1]))
        self._affine = self._positions @ deformation
        self._offsets = self._lattice @ cell - self._center
        self._graph_cell = np.array(cell, np.float64)
        self.graph = self.graph._replace(cell=self._device_cell(cell))
        return True

    def _device_cell(self, cell: np.ndarray):
        with jax.enable_x64(self.dtype == np.float64):
            return jax.device_put(np.asarray(cell, self.dtype)[None])

    def _wrap(self) -> np.ndarray:
        """Reference positions moved by whole cell vectors and to around the origin, so that float32 keeps its digits."""
        positions, pbc = self._positions, self._pbc
        self._lattice = np.zeros((len(positions), 3))
        if pbc.any() and len(positions):
            self._lattice[:, pbc] = -np.floor(positions @ np.linalg.pinv(self._cell[pbc]))
        wrapped = positions + self._lattice @ self._cell
        self._center = wrapped.mean(axis=0) if len(positions) else np.zeros(3)
        self._offsets = self._lattice @ self._cell - self._center
        self._affine, self._shrink = self._positions, 1.0
        return wrapped - self._center

    def _choose(self, n: int, k: int, periodic: bool, wanted: Sizes | None) -> Sizes:
        """A padded shape for n atoms with up to k neighbours: one in use if it is not much too large, else a new one."""
        if wanted is not None and n <= wanted.atoms <= 2 * n + 8 and k <= wanted.neighbors <= 2 * k + 8:
            fitting = [wanted]
        else:
            fitting = [s for s in self.sizes if n <= s.atoms <= 2 * n + 8 and k <= s.neighbors <= 2 * k + 8]
        if fitting:
            chosen = min(fitting, key=lambda sizes: sizes.atoms * sizes.neighbors)
        else:
            atoms = round_up(n) if self.sizes else n
            width = round_up(int(np.ceil(k * (1 + SLACK))), 0.0625)
            chosen = Sizes(1, max(1, atoms), width if periodic else min(width, max(1, atoms - 1)))
        if chosen not in self.sizes:
            self.sizes.append(chosen)
        return chosen
