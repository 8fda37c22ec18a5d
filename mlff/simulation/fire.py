"""FIRE, the fast inertial relaxation engine, of many structures side by side.

E. Bitzek, P. Koskinen, F. Gähler, M. Moseler and P. Gumbsch, PRL 97, 170201 (2006), with the numbers given there. All masses
are one, so a time step is in Å (eV)^-1/2.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_FIRST_STEP, _LONGEST_STEP = 0.1, 1.0
_GROW, _SHRINK = 1.1, 0.5
_MIXING, _LESS_MIXING = 0.1, 0.99
_PATIENCE = 5  #: steps downhill before the time step grows
_FARTHEST = 0.2  #: Å that an atom moves in a step


class State(NamedTuple):
    """Where FIRE stands with some structures, one after the other. Letters: N atoms, B structures."""

    velocities: np.ndarray  #: (N, 3)
    timestep: np.ndarray  #: (B,)
    mixing: np.ndarray  #: (B,) how far velocities turn towards the forces
    downhill: np.ndarray  #: (B,) steps since the last one uphill


def start(n: int) -> State:
    """Of one structure of n atoms, at rest."""
    return State(np.zeros((n, 3)), np.array([_FIRST_STEP]), np.array([_MIXING]), np.array([0]))


def join(states: list[State]) -> State:
    """One state of several."""
    return State(*(np.concatenate(parts) for parts in zip(*states, strict=True)))


def split(state: State, sizes: np.ndarray) -> list[State]:
    """The states of the single structures of these sizes, (B,)."""
    velocities = np.split(state.velocities, np.cumsum(sizes)[:-1])
    rows = range(len(sizes))
    return [State(velocities[b], *(values[b : b + 1] for values in state[1:])) for b in rows]


def step(state: State, forces: np.ndarray, sizes: np.ndarray) -> tuple[State, np.ndarray]:
    """One step of each structure by itself: the new state and the displacements (N, 3), Å.

    forces (N, 3), eV/Å; sizes (B,), atoms of each structure, none of them 0.
    """
    begins = np.cumsum(sizes) - sizes

    def total(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.einsum("na->n", values), begins)

    def spread(values: np.ndarray) -> np.ndarray:
        return np.repeat(values, sizes)[:, None]

    velocities = state.velocities
    power = total(forces * velocities)
    speed, force = np.sqrt(total(velocities**2)), np.sqrt(total(forces**2))
    falls, rises = power > 0, (power <= 0) & (speed > 0)
    turned = state.mixing * speed / np.where(force > 0, force, 1.0)
    velocities = np.where(spread(falls), spread(1 - state.mixing) * velocities + spread(turned) * forces, 0.0)
    steady = falls & (state.downhill > _PATIENCE)
    timestep = np.where(steady, np.minimum(_GROW * state.timestep, _LONGEST_STEP), state.timestep)
    timestep = np.where(rises, _SHRINK * timestep, timestep)
    mixing = np.where(rises, _MIXING, np.where(steady, _LESS_MIXING * state.mixing, state.mixing))
    downhill = np.where(falls, state.downhill + 1, 0)
    velocities = velocities + spread(timestep) * forces
    moves = spread(timestep) * velocities
    longest = np.sqrt(np.maximum.reduceat(np.einsum("na,na->n", moves, moves), begins))
    moves = moves * spread(_FARTHEST / np.maximum(longest, _FARTHEST))
    return State(velocities, timestep, mixing, downhill), moves
