"""Where structures stand side by side, and the steps of L-BFGS that bring them down: of atoms, or of atoms and cells.

Letters: N atoms and B structures, one after the other; R rows that L-BFGS moves.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.linalg import expm

from mlff.simulation import lbfgs
from mlff.simulation.mover import SKIN, Mover

_GROWN = 1.5  #: times the length at the last search, from which on a cell is looked at again


class Descent:
    """Atoms of structures whose cells stay: each atom is one row of L-BFGS."""

    extra = 0  #: rows that a structure has besides those of its atoms

    def __init__(self, movers: list[Mover]):
        self.movers = movers
        self.counts = np.array([len(mover) for mover in movers])
        self.begins = np.cumsum(self.counts) - self.counts
        self.cells = np.stack([mover.structure.cell for mover in movers])  #: (B, 3, 3) Å
        self._rows = self.counts + self.extra
        self._listed = np.concatenate([mover.sample.positions for mover in movers])  # wrapped or centred, and not
        self._given = np.concatenate([mover.listed for mover in movers])
        self._fixed = np.zeros(len(self._listed), bool)
        for begin, mover in zip(self.begins, movers, strict=True):
            self._fixed[begin + mover.fixed] = True
        self._state = lbfgs.join([mover.state for mover in movers])
        moved = np.concatenate([mover.structure.positions for mover in movers]) - self._follow(self._given)
        self.positions = self._follow(self._listed) + moved

    def write_back(self) -> None:
        """Each mover learns where it stands."""
        moved = self.positions - self._follow(self._listed)
        positions = np.split(self._follow(self._given) + moved, self.begins[1:])
        states = lbfgs.split(self._state, self._rows)
        for mover, state, moved, cell in zip(self.movers, states, positions, self.cells, strict=True):
            mover.state, mover.structure = state, replace(mover.structure, positions=moved, cell=cell)

    def outgrown(self, cutoff: float) -> np.ndarray:
        """(B,) bool: whose atoms have moved too far for their neighbour lists, of `cutoff` (Å) and skin."""
        return 2 * self._farthest() > SKIN

    def pull(self, forces: np.ndarray, stresses: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What moves the rows (R, 3), eV/Å; per structure the longest force on an atom and what has to fall below fmax, (B,).

        forces (N, 3), eV/Å; stresses (B, 3, 3), eV/Å³.
        """
        forces = np.where(self._fixed[:, None], 0.0, forces)
        longest = self._longest(forces)
        return forces, longest, longest

    def step(self, pull: np.ndarray) -> None:
        """All take a step; `pull` (R, 3) is that of where they stand."""
        self._state, moves = lbfgs.step(self._state, pull, self._rows)
        self.positions = self.positions + moves

    def rows_of(self, structures: np.ndarray) -> np.ndarray:
        """(R,) bool: the rows of these structures, (B,) bool."""
        return np.repeat(structures, self._rows)

    def _follow(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (N, 3) of when neighbours were searched, as the cells of now have them."""
        return vectors

    def _farthest(self) -> np.ndarray:
        return self._longest(self.positions - self._follow(self._listed))

    def _longest(self, vectors: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum.reduceat(np.einsum("na,na->n", vectors, vectors), self.begins))


class CellDescent(Descent):
    """Atoms and cells: three more rows of L-BFGS hold the logarithm U of the deformation F = exp(U) since the start.

    Coordinates, pull and convergence are those of ASE's FrechetCellFilter: the atoms have the rows z with positions z Fᵀ, the
    cell is H₀ Fᵀ, and the rows of U count n times, for n atoms. A pressure P adds P V to the energy.
    """

    extra = 3

    def __init__(self, movers: list[Mover], pressure: float):
        """`pressure` in eV/Å³."""
        self._pressure = pressure
        self._strains = np.stack([mover.strain for mover in movers])
        self._which = np.repeat(np.arange(len(movers)), [len(mover) for mover in movers])
        self._before = np.stack([mover.sample.cell for mover in movers])
        super().__init__(movers)
        ends = np.cumsum(self._rows)
        self._cell_rows = ends[:, None] + np.arange(-3, 0)
        self._atom_rows = np.delete(np.arange(ends[-1]), self._cell_rows)

    def write_back(self) -> None:
        super().write_back()
        for mover, strain in zip(self.movers, self._strains, strict=True):
            mover.strain = strain

    def outgrown(self, cutoff: float) -> np.ndarray:
        """Lengths shrink at most by the smallest singular value of the deformation since the search, and by what atoms moved."""
        stretches = np.linalg.svd(self._deformations(), compute_uv=False)
        lost = stretches[:, -1] * (cutoff + SKIN) - 2 * self._farthest() < cutoff
        return lost | (stretches[:, 0] > _GROWN)

    def pull(self, forces: np.ndarray, stresses: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        forces, longest, _ = super().pull(forces, stresses)
        volumes = np.abs(np.linalg.det(self.cells))[:, None, None]
        virials = -volumes * (stresses + self._pressure * np.eye(3))
        pull = np.empty((self._rows.sum(), 3))
        pull[self._atom_rows] = np.einsum("na,nab->nb", forces, expm(self._strains)[self._which])
        pull[self._cell_rows] = cell_pull(self._strains, virials) / self.counts[:, None, None]
        squares = np.einsum("na,na->n", pull, pull)
        return pull, longest, np.sqrt(np.maximum.reduceat(squares, np.cumsum(self._rows) - self._rows))

    def step(self, pull: np.ndarray) -> None:
        self._state, moves = lbfgs.step(self._state, pull, self._rows)
        back = np.linalg.inv(expm(self._strains)).swapaxes(1, 2)
        self._strains = self._strains + moves[self._cell_rows] / self.counts[:, None, None]
        there = expm(self._strains).swapaxes(1, 2)
        unstrained = np.einsum("na,nab->nb", self.positions, back[self._which]) + moves[self._atom_rows]
        self.positions = np.einsum("na,nab->nb", unstrained, there[self._which])
        self.cells = self.cells @ back @ there

    def _deformations(self) -> np.ndarray:
        """(B, 3, 3), what takes the cells of the last search to those of now."""
        return np.linalg.solve(self._before, self.cells)

    def _follow(self, vectors: np.ndarray) -> np.ndarray:
        return np.einsum("na,nab->nb", vectors, self._deformations()[self._which])


def cell_pull(strains: np.ndarray, virials: np.ndarray) -> np.ndarray:
    """(B, 3, 3), eV: minus the derivative of the energy by the logarithms U of the deformations exp(U), atoms carried along.

    strains (B, 3, 3): U; virials (B, 3, 3), eV: minus the derivative by a further small strain, W. With L(U, ·) the derivative
    of the matrix exponential at U, the pull is L(Uᵀ, W exp(U)⁻ᵀ): a block of the exponential of a matrix of twice the size
    (N. J. Higham, Functions of Matrices (2008), theorem 3.6). NaN where a virial is not finite.
    """
    known = np.isfinite(virials).all(axis=(1, 2))[:, None, None]
    across = strains.swapaxes(1, 2)
    direction = np.where(known, virials, 0.0) @ expm(-across)
    size = np.abs(direction).max(axis=(1, 2), keepdims=True) + np.finfo(float).tiny  # the block is linear in it
    blocks = np.block([[across, direction / size], [np.zeros_like(across), across]])
    return np.where(known, expm(blocks)[:, :3, 3:] * size, np.nan)
