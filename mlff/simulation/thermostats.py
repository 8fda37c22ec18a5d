"""Thermostats: pure functions of JAX on the state of one system.

- `langevin`: the exact Ornstein-Uhlenbeck step (Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34).
- `rescale_momenta`: the kinetic energy takes a random step that keeps its canonical distribution (Bussi, Donadio & Parrinello,
  J. Chem. Phys. 126, 014101 (2007)).
- `half_chain`: half a step of a chain of three thermostats (Martyna, Tuckerman, Tobias & Klein, Mol. Phys. 87, 1117 (1996)).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics.units import KB
from mlff.simulation.state import CHAIN, Conditions, State, along_bonds, kinetic_energy, random_key, with_momenta

_YOSHIDA = (1 / (2 - 2 ** (1 / 3)), 1 - 2 / (2 - 2 ** (1 / 3)), 1 / (2 - 2 ** (1 / 3)))


def share_kept(at: Conditions) -> Array:
    """() share of the momenta that Langevin's friction leaves in a step."""
    return jnp.exp(-at.timestep / at.tau)


def friction(at: Conditions, step: Array) -> tuple[Array, Array]:
    """Langevin's friction in a step: () the share of the momenta that is kept, and (n, 3) what the noise adds, whoever moves."""
    kept = share_kept(at)
    noise = jax.random.normal(random_key(at, step), (len(at.masses), 3), jnp.float64)
    return kept, jnp.sqrt(at.masses * KB * at.temperature * (1 - kept**2)) * noise


def at_rest(at: Conditions, momenta: Array) -> Array:
    """Momenta (n, 3) of the atoms that move, without the motion of their center of mass where that rests."""
    momenta = jnp.where(at.moving, momenta, 0.0)
    drifting = at.masses * (jnp.sum(momenta, axis=0) / jnp.sum(at.masses))
    return momenta - jnp.where(at.resting, drifting, 0.0)


def langevin(at: Conditions, state: State) -> State:
    """Friction and noise of a whole step."""
    kept, noise = friction(at, state.step)
    return with_momenta(at, state, along_bonds(at, state.positions, at_rest(at, kept * state.momenta + noise)))


def rescale_momenta(at: Conditions, state: State) -> State:
    """All momenta by one factor, whose sign may change."""
    first, rest, _ = jax.random.split(random_key(at, state.step), 3)
    normal = jax.random.normal(first, (), jnp.float64)
    others = jax.random.normal(rest, (state.momenta.size,), jnp.float64)
    others = jnp.sum(jnp.where(jnp.arange(others.size) < at.freedom - 1, others**2, 0.0))
    kinetic = kinetic_energy(at, state)
    kept = jnp.exp(-at.timestep / at.tau)
    share = (1 - kept) * KB * at.temperature / 2 / jnp.where(kinetic > 0, kinetic, 1.0)
    scale = jnp.sqrt(jnp.maximum(kept + share * (normal**2 + others) + 2 * normal * jnp.sqrt(kept * share), 0.0))
    sign = jnp.where(normal + jnp.sqrt(kept / jnp.maximum(share, 1e-300)) < 0, -1.0, 1.0)
    return with_momenta(at, state, state.momenta * jnp.where(kinetic > 0, sign * scale, 1.0))


def chain_energy(at: Conditions, state: State) -> Array:
    """() eV, of the Nosé-Hoover chain."""
    places, momenta = state.chain
    return (0.5 * momenta**2 / _inertia(at) + KB * at.temperature * places * _shares(at)).sum()


def half_chain(at: Conditions, state: State) -> State:
    """Half a time step of the chain; three sweeps of fourth order (Yoshida)."""
    thermal, inertia, shares = KB * at.temperature, _inertia(at), _shares(at)
    (places, momenta), twice, scale = state.chain, 2 * kinetic_energy(at, state), 1.0

    def pushed(momenta, j, twice, time):
        drive = twice if j == 0 else momenta[j - 1] ** 2 / inertia[j - 1]
        push = 0.5 * time * (drive - shares[j] * thermal)
        if j == CHAIN - 1:
            return momenta.at[j].add(push)
        damping = jnp.exp(-0.25 * time * momenta[j + 1] / inertia[j + 1])
        return momenta.at[j].set((momenta[j] * damping + push) * damping)

    for weight in _YOSHIDA:
        time = 0.5 * weight * at.timestep
        for j in reversed(range(CHAIN)):
            momenta = pushed(momenta, j, twice, time)
        factor = jnp.exp(-time * momenta[0] / inertia[0])
        scale, twice = scale * factor, twice * factor**2
        places = places + time * momenta / inertia
        for j in range(CHAIN):
            momenta = pushed(momenta, j, twice, time)
    return state._replace(momenta=state.momenta * scale, chain=jnp.stack([places, momenta]))


def _shares(at: Conditions) -> Array:
    """(3,) degrees of freedom that each thermostat of the chain holds."""
    return 1.0 + (at.freedom - 1.0) * (np.arange(CHAIN) == 0)


def _inertia(at: Conditions) -> Array:
    return _shares(at) * KB * at.temperature * at.tau**2
