"""L-BFGS, the quasi-Newton method with a short memory, of one structure or of many side by side.

J. Nocedal, Math. Comput. 35, 773 (1980). It takes whole steps up to a largest one and searches no line, so that each step costs
one evaluation; it knows forces only. Unlike ASE's it guesses the curvature in new directions from the last step, which takes half
as many steps in a crystal, and leaves out steps along which the energy curves down.
"""

from __future__ import annotations

from typing import NamedTuple

import ase
import numpy as np
from ase.filters import Filter
from ase.optimize.optimize import Optimizer

_MEMORY = 20  #: steps that curvature is taken from
_STIFF = 70.0  #: eV/Å², curvature before anything is known; that of ASE
_FARTHEST = 0.2  #: Å that a row moves in a step
_LEAST = 1e-10  #: of |s||y|: a step whose curvature is not larger tells nothing, ...
_NOTHING = 1e-60  #: eV, ... nor one that is this small


class State(NamedTuple):
    """Where L-BFGS stands with some structures, one after the other. Letters: N rows, B structures, M steps, the last one first."""

    moves: np.ndarray  #: (M, N, 3) Å, what was moved ...
    changes: np.ndarray  #: (M, N, 3) eV/Å, ... and by how much the gradient changed; zeros where there is nothing
    move: np.ndarray  #: (N, 3) Å, the last move, ...
    forces: np.ndarray  #: (N, 3) eV/Å, ... and the forces before it


def start(n: int) -> State:
    """Of one structure of n rows that has not moved yet; takes no memory."""
    nothing, rows = np.broadcast_to(0.0, (_MEMORY, n, 3)), np.broadcast_to(0.0, (n, 3))
    return State(nothing, nothing, rows, rows)


def join(states: list[State]) -> State:
    """One state of several."""
    return State(*(np.concatenate(parts, axis=-2) for parts in zip(*states, strict=True)))


def split(state: State, sizes: np.ndarray) -> list[State]:
    """The states of the single structures of these sizes, (B,)."""
    ends = np.cumsum(sizes)[:-1]
    return [State(*parts) for parts in zip(*(np.split(values, ends, axis=-2) for values in state), strict=True)]


def step(state: State, forces: np.ndarray, sizes: np.ndarray) -> tuple[State, np.ndarray]:
    """One step of each structure by itself: the new state and the displacements (N, 3), Å.

    forces (N, 3), eV/Å; sizes (B,), rows of each structure, none of them 0.
    """
    begins = np.cumsum(sizes) - sizes

    def dot(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.einsum("...na,...na->...n", one, other), begins, axis=-1)

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, sizes, axis=-1)[..., None]

    change = state.forces - forces
    curvature = dot(state.move, change)
    told = curvature > _NOTHING + _LEAST * np.sqrt(dot(state.move, state.move) * dot(change, change))
    fresh = spread(told)
    moves, changes = state.moves, state.changes
    moves = np.where(fresh, np.concatenate([state.move[None], moves[:-1]]), moves)
    changes = np.where(fresh, np.concatenate([change[None], changes[:-1]]), changes)
    products = dot(moves, changes)  # (M, B)
    inverse = np.where(products > 0, 1 / np.where(products > 0, products, 1.0), 0.0)
    lengths = dot(changes[0], changes[0])
    scale = np.where(lengths > 0, products[0] / np.where(lengths > 0, lengths, 1.0), 1 / _STIFF)
    ahead, weights = forces.copy(), []
    for s, y, rho in zip(moves, changes, inverse, strict=True):
        weights.append(rho * dot(s, ahead))
        ahead -= spread(weights[-1]) * y
    ahead *= spread(scale)
    for s, y, rho, weight in list(zip(moves, changes, inverse, weights, strict=True))[::-1]:
        ahead += spread(weight - rho * dot(y, ahead)) * s
    longest = np.sqrt(np.maximum.reduceat(np.einsum("na,na->n", ahead, ahead), begins))
    ahead *= spread(_FARTHEST / np.maximum(longest, _FARTHEST))
    return State(moves, changes, ahead, forces), ahead


class LBFGS(Optimizer):
    """The same as an optimizer of ASE, for any calculator, constraints and filters of cells."""

    def __init__(self, atoms: ase.Atoms | Filter, logfile=None):
        super().__init__(atoms, logfile=logfile)
        self._state: State | None = None

    def step(self) -> None:
        """Move once."""
        here = self.optimizable.get_x()
        forces = -self.optimizable.get_gradient().reshape(-1, 3)
        state = start(len(forces)) if self._state is None else self._state
        state, move = step(state, forces, np.array([len(forces)]))
        self.optimizable.set_x(here + move.ravel())
        moved = self.optimizable.get_x() - here  # constraints may have changed it
        self._state = state._replace(move=moved.reshape(-1, 3))
