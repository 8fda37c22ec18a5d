"""One system in molecular dynamics: its state, the conditions it is run at, and what the potential says of it.

Units are ASE's: eV, Å, amu, and Å sqrt(amu/eV) for times.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics.units import FEMTOSECOND, KB, STRESS
from mlff.simulation.bonds import Bonds, kept_momenta
from mlff.simulation.settings import Settings

CHAIN = 3  #: thermostats of a Nosé-Hoover chain


class State(NamedTuple):
    """One system of n atoms, float64; the engine has R of them, with an axis in front."""

    step: Array  #: () int64
    positions: Array  #: (n, 3) Å
    momenta: Array  #: (n, 3)
    cell: Array  #: (3, 3) Å
    forces: Array  #: (n, 3) eV/Å, on fixed atoms too
    energy: Array  #: () eV, potential, reference energies not added
    stress: Array  #: (3, 3) eV/Å³, +(1/V) dE/dε; zeros without three periodic directions
    heat: Array  #: () eV that thermostat and barostat have put in
    chain: Array  #: (2, 3) positions (no unit) and momenta of the Nosé-Hoover chain
    strain: Array  #: (3, 3) logarithm of the stretch by which the barostat has changed the cell in this step, symmetric


class Conditions(NamedTuple):
    """What a simulation is run at. An array, so that no other value compiles anew; of R systems with an axis in front."""

    temperature: Array  #: () K, at the start
    temperature_end: Array  #: () K
    key: Array  #: (2,) uint32, of the random numbers; each step folds in its number
    masses: Array  #: (n, 1) amu
    moving: Array  #: (n, 1) bool, False for fixed atoms
    freedom: Array  #: () degrees of freedom, float
    resting: Array  #: () bool, whether the center of mass is kept at rest by Langevin
    timestep: Array
    tau: Array
    tau_pressure: Array
    pressure: Array  #: () eV/Å³, at the start
    pressure_end: Array  #: () eV/Å³
    ramp_steps: Array  #: () steps in which temperature and pressure go to their end values
    bonds: Bonds | None = None  #: distances that are kept


class Outcome(NamedTuple):
    """What the potential says of a state, float64."""

    energy: Array  #: () eV
    forces: Array  #: (n, 3) eV/Å
    stress: Array  #: (3, 3) eV/Å³


def conditions(
    settings: Settings, seed: int, masses: np.ndarray, moving: np.ndarray, freedom: int, bonds: Bonds | None = None
) -> Conditions:
    """The conditions of one system: masses (n,) amu, moving (n,) bool."""
    return Conditions(
        temperature=np.float64(settings.temperature),
        temperature_end=np.float64(settings.temperature_end),
        key=np.asarray(jax.random.key_data(jax.random.key(seed % 2**63, impl="threefry2x32"))),
        masses=np.asarray(masses, np.float64)[:, None],
        moving=np.asarray(moving, bool)[:, None],
        freedom=np.float64(freedom),
        resting=np.bool_(len(masses) > 1 and np.all(moving)),
        timestep=np.float64(settings.timestep * FEMTOSECOND),
        tau=np.float64(settings.tau * FEMTOSECOND),
        tau_pressure=np.float64(settings.tau_pressure * FEMTOSECOND),
        pressure=np.float64(settings.pressure * STRESS["GPa"]),
        pressure_end=np.float64(settings.pressure_end * STRESS["GPa"]),
        ramp_steps=np.float64(max(settings.ramp_steps, 1)),
        bonds=bonds,
    )


def fresh(positions: np.ndarray, momenta: np.ndarray, cell: np.ndarray, outcome: Outcome) -> State:
    """The state at step 0: positions and momenta (n, 3), cell (3, 3)."""
    arrays = (
        positions,
        momenta,
        cell,
        outcome.forces,
        outcome.energy,
        outcome.stress,
        0.0,
        np.zeros((2, CHAIN)),
        np.zeros((3, 3)),
    )
    return State(np.int64(0), *(np.array(array, np.float64) for array in arrays))


def at_step(at: Conditions, step: Array) -> Conditions:
    """The conditions with temperature and pressure of a step (of a ramp in a straight line, by its number alone)."""
    share = jnp.clip(step / at.ramp_steps, 0.0, 1.0)
    return at._replace(
        temperature=at.temperature + (at.temperature_end - at.temperature) * share,
        pressure=at.pressure + (at.pressure_end - at.pressure) * share,
    )


def kinetic_energy(at: Conditions, state: State) -> Array:
    """() eV; of arrays of JAX or NumPy, as the next two."""
    return 0.5 * (state.momenta**2 / at.masses).sum()


def temperature(at: Conditions, state: State) -> Array:
    """() K."""
    return 2 * kinetic_energy(at, state) / (at.freedom * KB)


def with_momenta(at: Conditions, state: State, momenta: Array) -> State:
    """Other momenta; the difference of kinetic energies is heat."""
    changed = state._replace(momenta=momenta)
    return changed._replace(heat=state.heat + kinetic_energy(at, changed) - kinetic_energy(at, state))


def inverse_masses(at: Conditions) -> Array:
    """(n, 1) 1/amu, 0 for fixed atoms."""
    return jnp.where(at.moving, 1 / at.masses, 0.0)


def along_bonds(at: Conditions, positions: Array, momenta: Array) -> Array:
    """Momenta (n, 3) that leave the distances that are kept as they are."""
    return momenta if at.bonds is None else kept_momenta(at.bonds, inverse_masses(at), positions, momenta)


def random_key(at: Conditions, step: Array) -> Array:
    """The key of the random numbers of a step."""
    return jax.random.fold_in(jax.random.wrap_key_data(at.key, impl="threefry2x32"), step.astype(jnp.uint32))
