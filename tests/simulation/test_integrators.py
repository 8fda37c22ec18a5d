"""Integrators sample what they claim: thousands of independent copies of a small system against laws known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mlff.basics.units import FEMTOSECOND, KB, STRESS
from mlff.simulation import integrators
from mlff.simulation.integrators import Outcome
from mlff.simulation.settings import Settings

COPIES, ATOMS, KELVIN = 600, 3, 400.0
STIFFNESS, COUPLING = 4.0, 60.0  # eV/Å², eV/Å⁴: strongly coupled, so that energy flows between all coordinates


def wells(positions):
    """Coordinates in harmonic wells that feel each other."""
    squares = jnp.sum(positions**2)
    return 0.5 * STIFFNESS * squares + 0.25 * COUPLING * (squares**2 - jnp.sum(positions**4))


def springs(positions):
    """Every atom to every other: forces cancel, the center of mass stays where it is."""
    return 0.25 * STIFFNESS * jnp.sum((positions[:, None] - positions) ** 2)


def nothing(positions):
    """An ideal gas."""
    return 0.0 * jnp.sum(positions)


def sample(settings, energy, freedom, steps, start=0.5, masses=(1.0, 4.0, 12.0), moving=(True, True, True), cell=None):
    """The states of `COPIES` systems after `steps`, begun at `start` times the temperature, and the conditions."""
    name, masses = integrators.kind(settings), np.array(masses)
    n, rng = len(masses), np.random.default_rng(1)
    at = integrators.conditions(settings, 0, masses, np.array(moving), freedom)

    def outcome(positions):
        value, slope = jax.value_and_grad(energy)(positions)
        return Outcome(value, -slope, jnp.zeros((3, 3)))

    def run(key, positions, momenta, cell):
        mine = at._replace(key=key)
        zero = Outcome(0.0, np.zeros((n, 3)), np.zeros((3, 3)))
        state = jax.tree.map(jnp.asarray, integrators.fresh(np.zeros((n, 3)), np.zeros((n, 3)), np.eye(3), zero))
        first = outcome(positions)
        state = state._replace(positions=positions, momenta=momenta, cell=cell, energy=first.energy, forces=first.forces)

        def step(_, state):
            moved = integrators.begin(name, mine, state)
            return integrators.end(name, mine, moved, outcome(moved.positions))

        before = integrators.conserved(name, mine, state)
        state = jax.lax.fori_loop(0, steps, step, state)
        return state, integrators.conserved(name, mine, state) - before

    momenta = rng.normal(size=(COPIES, n, 3)) * np.sqrt(masses[:, None] * KB * start * settings.temperature) * at.moving
    if freedom < 3 * np.count_nonzero(moving):
        momenta -= masses[:, None] / masses.sum() * momenta.sum(axis=1, keepdims=True)
    positions = rng.normal(size=(COPIES, n, 3)) * np.sqrt(KB * start * settings.temperature / STIFFNESS)
    cells = np.broadcast_to(np.eye(3) if cell is None else cell, (COPIES, 3, 3))
    keys = np.stack([np.full(COPIES, 7, np.uint32), np.arange(COPIES, dtype=np.uint32)], axis=1)
    with jax.enable_x64(True):
        states, drift = jax.device_get(jax.jit(jax.vmap(run))(keys, positions, momenta, cells))
    return states, drift, at


def kinetic_law(states, at, freedom):
    """p-value of the kinetic energies against the chi-square law."""
    kinetic = 0.5 * np.sum(states.momenta**2 / at.masses, axis=(1, 2))
    return stats.kstest(2 * kinetic / (KB * float(at.temperature)), stats.chi2(freedom).cdf).pvalue


def coordinates_law(states, energy, freedom):
    """How many standard errors the mean of r dU/dr is off from freedom kT (equipartition)."""
    with jax.enable_x64(True):
        slopes = np.asarray(jax.vmap(jax.grad(energy))(jnp.asarray(states.positions)))
    virial = np.sum(slopes * states.positions, axis=(1, 2)) / (freedom * KB * KELVIN)
    return (virial.mean() - 1) / (virial.std() / np.sqrt(len(virial)))


def settings(thermostat, **options):
    return Settings(**{"thermostat": thermostat, "temperature": KELVIN, "timestep": 0.25, "tau": 10.0} | options)


@pytest.mark.parametrize("thermostat", ["langevin", "bussi", "nose_hoover"])
def test_a_thermostat_samples_the_canonical_law(thermostat):
    """From half the temperature to that which was asked for: its distribution, and that of the coordinates."""
    if thermostat == "langevin":
        energy, freedom = springs, 3 * ATOMS - 3  # the center of mass rests
    else:
        energy, freedom = wells, 3 * ATOMS
    states, drift, at = sample(settings(thermostat), energy, freedom, 900)
    assert kinetic_law(states, at, freedom) > 1e-3
    assert abs(coordinates_law(states, energy, freedom)) < 4
    assert np.abs(drift).max() < 0.02 * KB * KELVIN * freedom  # energy less heat is conserved
    if thermostat == "langevin":
        assert np.abs(states.momenta.sum(axis=1)).max() < 1e-9
        apart = states.positions - states.positions.mean(axis=1, keepdims=True)
        variance = KB * KELVIN / (STIFFNESS * ATOMS) * (1 - 1 / ATOMS)  # exactly, whatever the time step
        assert np.mean(apart**2) == pytest.approx(variance, rel=0.05)


def test_the_law_catches_a_thermostat_that_only_has_the_right_mean(monkeypatch):
    """Rescaling towards the target, as Berendsen's, gives the temperature and too small fluctuations."""

    def weak_coupling(at, state):
        kinetic = integrators.kinetic_energy(at, state)
        share = 1 + at.timestep / at.tau * (0.5 * at.freedom * KB * at.temperature / kinetic - 1)
        return integrators._with_momenta(at, state, state.momenta * jnp.sqrt(share))

    monkeypatch.setattr(integrators, "_rescale_momenta", weak_coupling)
    states, _, at = sample(settings("bussi"), wells, 3 * ATOMS, 900)
    kinetic = 0.5 * np.sum(states.momenta**2 / at.masses, axis=(1, 2))
    assert kinetic.mean() == pytest.approx(1.5 * ATOMS * KB * KELVIN, rel=0.15)
    assert kinetic_law(states, at, 3 * ATOMS) < 1e-6


def test_fixed_atoms_stay_and_the_others_have_the_temperature():
    states, _, at = sample(settings("langevin"), wells, 6, 400, moving=(True, False, True))
    assert not states.momenta[:, 1].any() and not np.ptp(states.positions[:, 1] - states.positions[:, 1]).any()
    assert kinetic_law(states, at, 6) > 1e-3


def test_the_volume_of_an_ideal_gas_follows_its_law():
    """p(V) ~ V^N exp(-PV/kT), a gamma distribution; the kinetic energy stays canonical beside it."""
    gigapascal, masses = 2.0, (1.0, 4.0, 2.0, 3.0)
    n = len(masses)
    options = {"ensemble": "npt", "pressure": gigapascal, "tau_pressure": 30.0, "temperature": 1500.0, "timestep": 0.5}
    expected = stats.gamma(n + 1, scale=KB * 1500.0 / (gigapascal * STRESS["GPa"]))
    start = np.cbrt(0.5 * expected.mean()) * np.eye(3)
    run = functools.partial(sample, settings("langevin", **options), nothing, 3 * n, masses=masses, moving=(True,) * n)
    states, drift, at = run(1100, cell=start)
    volumes = np.abs(np.linalg.det(states.cell))
    assert stats.kstest(volumes, expected.cdf).pvalue > 1e-3
    assert kinetic_law(states, at, 3 * n) > 1e-3
    assert np.abs(drift).max() < 1e-9  # all energy is kinetic, and all its changes are heat


def test_without_a_thermostat_energy_errors_fall_with_the_square_of_the_time_step_and_time_can_turn_back():
    errors = []
    for timestep in (0.4, 0.2, 0.1):
        options = {"ensemble": "nve", "timestep": timestep}
        _, drift, _ = sample(settings("langevin", **options), wells, 9, round(20 / timestep), start=1.0)
        errors.append(np.sqrt(np.mean(drift**2)))
    exponent = np.polyfit(np.log([0.4, 0.2, 0.1]), np.log(errors), 1)[0]
    assert exponent == pytest.approx(2.0, abs=0.1)
    at = integrators.conditions(settings("langevin", ensemble="nve"), 0, np.ones(3), np.ones(3, bool), 9)
    rng = np.random.default_rng(2)
    begin = rng.normal(0, 0.1, (3, 3)), rng.normal(0, 0.2, (3, 3))
    with jax.enable_x64(True):

        @jax.jit
        def walk(positions, momenta):
            def outcome(x):
                return Outcome(wells(x), -jax.grad(wells)(x), jnp.zeros((3, 3)))

            state = integrators.fresh(begin[0], begin[1], np.eye(3), Outcome(0.0, np.zeros((3, 3)), np.eye(3)))
            state = jax.tree.map(jnp.asarray, state)
            state = state._replace(positions=positions, momenta=momenta, forces=outcome(positions).forces)

            def step(_, state):
                moved = integrators.begin("nve", at, state)
                return integrators.end("nve", at, moved, outcome(moved.positions))

            state = jax.lax.fori_loop(0, 200, step, state)
            return state.positions, state.momenta

        there = walk(*begin)
        back = walk(there[0], -there[1])
        there, back = jax.device_get((there, back))
    assert np.abs(there[0] - begin[0]).max() > 0.05
    assert np.abs(back[0] - begin[0]).max() < 1e-10 and np.abs(back[1] + begin[1]).max() < 1e-10


def test_time_steps_are_in_femtoseconds():
    at = integrators.conditions(settings("bussi", timestep=2.0, tau=50.0), 0, np.ones(2), np.ones(2, bool), 6)
    assert at.timestep == pytest.approx(2 * FEMTOSECOND) and at.tau == pytest.approx(50 * FEMTOSECOND)
