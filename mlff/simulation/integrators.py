"""Integrators of molecular dynamics as pure functions of JAX on the state of one system.

A step is `begin` (up to the new positions), then forces at these positions, then `end`. All are splittings around velocity
Verlet (kick B, drift A):

- `nve`: B A B.
- `langevin`: B A O A B with the thermostat's exact step O (BAOAB).
- `bussi`: B A B, then the thermostat scales the momenta.
- `nose_hoover`: half a step of a chain of thermostats before and after.
- `npt`, `npt_full`: `bussi`, and the barostat changes the volume or the full cell.

Thermostats are in `thermostats`, barostats in `barostats`, distances that are kept in `bonds`, with their papers.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from mlff.simulation import barostats, thermostats
from mlff.simulation.bonds import kept_positions
from mlff.simulation.settings import Settings
from mlff.simulation.state import Conditions, Outcome, State, along_bonds, at_step, inverse_masses, kinetic_energy


def kind(settings: Settings) -> str:
    """The integrator: nve, langevin, bussi, nose_hoover, npt or npt_full."""
    if settings.ensemble == "npt":
        return "npt_full" if settings.barostat == "full" else "npt"
    return settings.thermostat if settings.ensemble == "nvt" else settings.ensemble


def begin(name: str, at: Conditions, state: State) -> State:
    """A step up to its new positions (and cell)."""
    before, at = at_step(at, state.step - 1), at_step(at, state.step)
    if name == "nose_hoover":
        retuned = thermostats.chain_energy(at, state) - thermostats.chain_energy(before, state)
        state = thermostats.half_chain(at, state._replace(heat=state.heat + retuned))
    state = _kick(at, state)
    if name == "langevin":
        return _drift(at, thermostats.langevin(at, _drift(at, state, 0.5)), 0.5)
    state = _drift(at, state, 1.0)
    if name == "npt_full":
        return barostats.strain_cell(at, state)
    return barostats.rescale_cell(at, state) if name == "npt" else state


def end(name: str, at: Conditions, state: State, outcome: Outcome) -> State:
    """The rest of the step, with what the potential says of the new positions."""
    at = at_step(at, state.step)
    if name in ("npt", "npt_full"):
        volume, grown = jnp.abs(jnp.linalg.det(state.cell)), jnp.exp(jnp.trace(state.strain))
        work = 0.5 * volume * jnp.sum((state.stress / grown + outcome.stress) * state.strain)
        state = state._replace(heat=state.heat + work, strain=jnp.zeros_like(state.strain))
    state = state._replace(
        step=state.step + 1,
        energy=outcome.energy,
        forces=outcome.forces,
        stress=outcome.stress,
    )
    state = _kick(at, state)
    if name == "nose_hoover":
        return thermostats.half_chain(at, state)
    return thermostats.rescale_momenta(at, state) if name in ("bussi", "npt", "npt_full") else state


def conserved(name: str, at: Conditions, state: State) -> Array:
    """() eV: energy less what thermostat and barostat have put in, which an exact integration keeps."""
    total = state.energy + kinetic_energy(at, state) - state.heat
    return total + thermostats.chain_energy(at_step(at, state.step - 1), state) if name == "nose_hoover" else total


def _kick(at: Conditions, state: State) -> State:
    momenta = state.momenta + 0.5 * at.timestep * jnp.where(at.moving, state.forces, 0.0)
    return state._replace(momenta=along_bonds(at, state.positions, momenta))


def _drift(at: Conditions, state: State, share: float) -> State:
    time = share * at.timestep
    positions = state.positions + time * state.momenta / at.masses
    if at.bonds is None:
        return state._replace(positions=positions)
    held = kept_positions(at.bonds, inverse_masses(at), state.positions, positions)
    momenta = state.momenta + at.masses * (held - positions) / time
    return state._replace(positions=held, momenta=along_bonds(at, held, momenta))
