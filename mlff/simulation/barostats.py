"""Barostats: pure functions of JAX on the state of one system. The cell takes a random step, with positions and momenta.

- `rescale_cell`: the volume; first-order stochastic cell rescaling (Bernetti & Bussi, J. Chem. Phys. 153, 114107 (2020)).
- `strain_cell`: all six lengths and angles (Del Tatto, Raiteri, Bernetti & Bussi, Appl. Sci. 12, 1139 (2022)).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from mlff.basics.units import KB, STRESS
from mlff.simulation.state import Conditions, State, kinetic_energy, random_key, with_momenta

COMPRESSIBILITY = 0.1 / STRESS["GPa"]  #: Å³/eV: sets the pace of the volume, not what is sampled
_STRETCH = 0.1  #: largest strain that a full cell takes in one step


def rescale_cell(at: Conditions, state: State) -> State:
    """A random step of the volume V, by its square root, whose noise does not depend on it."""
    key = jax.random.split(random_key(at, state.step), 3)[2]
    volume = jnp.abs(jnp.linalg.det(state.cell))
    thermal = KB * at.temperature
    pressure = 2 * kinetic_energy(at, state) / (3 * volume) - jnp.trace(state.stress) / 3
    pace = COMPRESSIBILITY / (2 * at.tau_pressure)
    root = jnp.sqrt(volume)
    force = pressure - at.pressure + thermal / (2 * volume)
    noise = jnp.sqrt(thermal * pace * at.timestep) * jax.random.normal(key, (), jnp.float64)
    new = jnp.clip(root + pace * root * force * at.timestep + noise, 0.8 * root, 1.25 * root) ** 2
    scale = jnp.cbrt(new / volume)
    state = with_momenta(at, state, state.momenta / scale)
    return state._replace(positions=state.positions * scale, cell=state.cell * scale, strain=jnp.log(scale) * jnp.eye(3))


def strain_cell(at: Conditions, state: State) -> State:
    """A random step of the full cell h (rows are its vectors): h exp(ε), positions alike, momenta by exp(-ε).

    ε = β/(3τ) (P_int - P) dt + sqrt(2 β kT/(3 V τ) dt) η, with P_int the inner pressure (3, 3) and η symmetric: variance 1 on
    its diagonal and 1/2 beside it. The target is exp(-(K + U + PV)/kT) V⁻² dh = exp(-(K + U + PV)/kT) V dμ(h), where the
    measure μ, the positions and the momenta keep their volume under such steps. The factor V gives kT/V δ to the drift, and
    the noise, which depends on the volume, takes it away again: in the exponent no such term is left. A rotation afterwards
    keeps the direction of the first vector and the plane of the first two.
    """
    volume = jnp.abs(jnp.linalg.det(state.cell))
    inner = state.momenta.T @ (state.momenta / at.masses) / volume - state.stress
    pace = COMPRESSIBILITY / (3 * at.tau_pressure) * at.timestep
    normal = jax.random.normal(jax.random.split(random_key(at, state.step), 3)[2], (3, 3), jnp.float64)
    noise = jnp.sqrt(2 * KB * at.temperature * pace / volume) * 0.5 * (normal + normal.T)
    strain = jnp.clip(pace * (0.5 * (inner + inner.T) - at.pressure * jnp.eye(3)) + noise, -_STRETCH, _STRETCH)
    stretch, frame = _exponential(strain), _axes(state.cell)
    turn = _axes(state.cell @ stretch).T @ frame
    state = with_momenta(at, state, state.momenta @ _exponential(-strain) @ turn)
    return state._replace(
        positions=state.positions @ stretch @ turn,
        cell=state.cell @ stretch @ turn,
        stress=turn.T @ state.stress @ turn,
        strain=turn.T @ strain @ turn,
    )


def _exponential(small: Array) -> Array:
    """Of a (3, 3) matrix with entries up to `_STRETCH`, to rounding."""
    total = jnp.eye(3)
    for order in range(12, 0, -1):
        total = jnp.eye(3) + small @ total / order
    return total


def _axes(cell: Array) -> Array:
    """(3, 3) right-handed orthonormal rows: along the first vector, in the plane of the first two, across it."""
    first = cell[0] / jnp.sqrt(jnp.sum(cell[0] ** 2))
    across = jnp.cross(cell[0], cell[1])
    third = across / jnp.sqrt(jnp.sum(across**2))
    return jnp.stack([first, jnp.cross(third, first), third])
