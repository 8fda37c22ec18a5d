"""Integrators of molecular dynamics as pure functions of JAX on the state of one system.

A step is `begin` (up to the new positions), then forces at these positions, then `end`. All are splittings around velocity
Verlet (kick B, drift A):

- `nve`: B A B.
- `langevin`: B A O A B with the exact Ornstein-Uhlenbeck step O (Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34).
- `bussi`: B A B, then the kinetic energy takes a random step that keeps its canonical distribution (Bussi, Donadio &
  Parrinello, J. Chem. Phys. 126, 014101 (2007)).
- `nose_hoover`: half a step of a chain of three thermostats before and after (Martyna, Tuckerman, Tobias & Klein, Mol. Phys.
  87, 1117 (1996)).
- `npt`: `bussi`, and the volume takes a random step with the positions (Bernetti & Bussi, J. Chem. Phys. 153, 114107 (2020)):
  the first-order stochastic cell rescaling of an isotropic cell.
- `npt_full`: the same with all six lengths and angles of the cell (Del Tatto, Raiteri, Bernetti & Bussi, Appl. Sci. 12, 1139
  (2022)), see `_strain_cell`.

Units are ASE's: eV, Å, amu, and Å sqrt(amu/eV) for times.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics.units import FEMTOSECOND, KB, STRESS
from mlff.simulation.settings import Settings

CHAIN = 3  #: thermostats of a Nosé-Hoover chain
COMPRESSIBILITY = 0.1 / STRESS["GPa"]  #: Å³/eV: sets the pace of the volume, not what is sampled
_STRETCH = 0.1  #: largest strain that a full cell takes in one step
_YOSHIDA = (1 / (2 - 2 ** (1 / 3)), 1 - 2 / (2 - 2 ** (1 / 3)), 1 / (2 - 2 ** (1 / 3)))


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


class Outcome(NamedTuple):
    """What the potential says of a state, float64."""

    energy: Array  #: () eV
    forces: Array  #: (n, 3) eV/Å
    stress: Array  #: (3, 3) eV/Å³


def kind(settings: Settings) -> str:
    """The integrator: nve, langevin, bussi, nose_hoover, npt or npt_full."""
    if settings.ensemble == "npt":
        return "npt_full" if settings.barostat == "full" else "npt"
    return settings.thermostat if settings.ensemble == "nvt" else settings.ensemble


def conditions(settings: Settings, seed: int, masses: np.ndarray, moving: np.ndarray, freedom: int) -> Conditions:
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
    )


def begin(name: str, at: Conditions, state: State) -> State:
    """A step up to its new positions (and cell)."""
    before, at = at_step(at, state.step - 1), at_step(at, state.step)
    if name == "nose_hoover":
        retuned = _chain_energy(at, state) - _chain_energy(before, state)
        state = _chain(at, state._replace(heat=state.heat + retuned))
    state = _kick(at, state)
    if name == "langevin":
        return _drift(at, _friction(at, _drift(at, state, 0.5)), 0.5)
    state = _drift(at, state, 1.0)
    if name == "npt_full":
        return _strain_cell(at, state)
    return _rescale_cell(at, state) if name == "npt" else state


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
        return _chain(at, state)
    return _rescale_momenta(at, state) if name in ("bussi", "npt", "npt_full") else state


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


def conserved(name: str, at: Conditions, state: State) -> Array:
    """() eV: energy less what thermostat and barostat have put in, which an exact integration keeps."""
    total = state.energy + kinetic_energy(at, state) - state.heat
    return total + _chain_energy(at_step(at, state.step - 1), state) if name == "nose_hoover" else total


def _kick(at: Conditions, state: State) -> State:
    return state._replace(momenta=state.momenta + 0.5 * at.timestep * jnp.where(at.moving, state.forces, 0.0))


def _drift(at: Conditions, state: State, share: float) -> State:
    return state._replace(positions=state.positions + share * at.timestep * state.momenta / at.masses)


def _key(at: Conditions, step: Array) -> Array:
    return jax.random.fold_in(jax.random.wrap_key_data(at.key, impl="threefry2x32"), step.astype(jnp.uint32))


def friction(at: Conditions, step: Array) -> tuple[Array, Array]:
    """Langevin's friction in a step: () the share of the momenta that is kept, and (n, 3) what the noise adds, whoever moves."""
    kept = jnp.exp(-at.timestep / at.tau)
    noise = jax.random.normal(_key(at, step), (len(at.masses), 3), jnp.float64)
    return kept, jnp.sqrt(at.masses * KB * at.temperature * (1 - kept**2)) * noise


def at_rest(at: Conditions, momenta: Array) -> Array:
    """Momenta (n, 3) of the atoms that move, without the motion of their center of mass where that rests."""
    momenta = jnp.where(at.moving, momenta, 0.0)
    drifting = at.masses * (jnp.sum(momenta, axis=0) / jnp.sum(at.masses))
    return momenta - jnp.where(at.resting, drifting, 0.0)


def _friction(at: Conditions, state: State) -> State:
    kept, noise = friction(at, state.step)
    return _with_momenta(at, state, at_rest(at, kept * state.momenta + noise))


def _rescale_momenta(at: Conditions, state: State) -> State:
    first, rest, _ = jax.random.split(_key(at, state.step), 3)
    normal = jax.random.normal(first, (), jnp.float64)
    others = jax.random.normal(rest, (state.momenta.size,), jnp.float64)
    others = jnp.sum(jnp.where(jnp.arange(others.size) < at.freedom - 1, others**2, 0.0))
    kinetic = kinetic_energy(at, state)
    kept = jnp.exp(-at.timestep / at.tau)
    share = (1 - kept) * KB * at.temperature / 2 / jnp.where(kinetic > 0, kinetic, 1.0)
    scale = jnp.sqrt(jnp.maximum(kept + share * (normal**2 + others) + 2 * normal * jnp.sqrt(kept * share), 0.0))
    sign = jnp.where(normal + jnp.sqrt(kept / jnp.maximum(share, 1e-300)) < 0, -1.0, 1.0)
    return _with_momenta(at, state, state.momenta * jnp.where(kinetic > 0, sign * scale, 1.0))


def _rescale_cell(at: Conditions, state: State) -> State:
    key = jax.random.split(_key(at, state.step), 3)[2]
    volume = jnp.abs(jnp.linalg.det(state.cell))
    thermal = KB * at.temperature
    pressure = 2 * kinetic_energy(at, state) / (3 * volume) - jnp.trace(state.stress) / 3
    pace = COMPRESSIBILITY / (2 * at.tau_pressure)
    root = jnp.sqrt(volume)  # its noise does not depend on it
    force = pressure - at.pressure + thermal / (2 * volume)
    noise = jnp.sqrt(thermal * pace * at.timestep) * jax.random.normal(key, (), jnp.float64)
    new = jnp.clip(root + pace * root * force * at.timestep + noise, 0.8 * root, 1.25 * root) ** 2
    scale = jnp.cbrt(new / volume)
    state = _with_momenta(at, state, state.momenta / scale)
    return state._replace(positions=state.positions * scale, cell=state.cell * scale, strain=jnp.log(scale) * jnp.eye(3))


def _strain_cell(at: Conditions, state: State) -> State:
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
    normal = jax.random.normal(jax.random.split(_key(at, state.step), 3)[2], (3, 3), jnp.float64)
    noise = jnp.sqrt(2 * KB * at.temperature * pace / volume) * 0.5 * (normal + normal.T)
    strain = jnp.clip(pace * (0.5 * (inner + inner.T) - at.pressure * jnp.eye(3)) + noise, -_STRETCH, _STRETCH)
    stretch, frame = _exponential(strain), _axes(state.cell)
    turn = _axes(state.cell @ stretch).T @ frame
    state = _with_momenta(at, state, state.momenta @ _exponential(-strain) @ turn)
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


def _with_momenta(at: Conditions, state: State, momenta: Array) -> State:
    """Other momenta; the difference of kinetic energies is heat."""
    changed = state._replace(momenta=momenta)
    return changed._replace(heat=state.heat + kinetic_energy(at, changed) - kinetic_energy(at, state))


def _shares(at: Conditions) -> Array:
    """(3,) degrees of freedom that each thermostat of the chain holds."""
    return 1.0 + (at.freedom - 1.0) * (np.arange(CHAIN) == 0)


def _inertia(at: Conditions) -> Array:
    return _shares(at) * KB * at.temperature * at.tau**2


def _chain_energy(at: Conditions, state: State) -> Array:
    places, momenta = state.chain
    return (0.5 * momenta**2 / _inertia(at) + KB * at.temperature * places * _shares(at)).sum()


def _chain(at: Conditions, state: State) -> State:
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
