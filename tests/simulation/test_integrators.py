"""Integrators sample what they claim: thousands of independent copies of a small system against laws known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mlff.basics.units import FEMTOSECOND, KB, STRESS
from mlff.simulation import integrators, thermostats
from mlff.simulation.settings import Settings
from mlff.simulation.state import Outcome, conditions, fresh

METRIC = np.array([[9.0, 2.0, 1.0], [2.0, 8.0, -1.0], [1.0, -1.0, 10.0]])  # Å²
STIFFNESS_CELL = 0.05 * np.array([[1.0, 0.6, 0.8], [0.6, 1.5, 0.7], [0.8, 0.7, 1.2]])  # eV/Å⁴
TURNED = np.linalg.qr(np.array([[1.0, 2.0, 0.5], [0.3, -1.0, 2.0], [1.5, 0.2, 1.0]]))[0]
TURNED *= np.linalg.det(TURNED)
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


def elastic(cell):
    """Energy, eV, of a cell that resists changes of its lengths and angles."""
    metric = cell @ cell.T
    return 0.5 * jnp.sum(STIFFNESS_CELL * (metric - METRIC) ** 2)


def sample(
    settings, energy, freedom, steps, start=0.5, masses=(1.0, 4.0, 12.0), moving=(True, True, True), cell=None, elastic=None
):
    """The states of `COPIES` systems after `steps`, begun at `start` times the temperature, and the conditions."""
    name, masses = integrators.kind(settings), np.array(masses)
    n, rng = len(masses), np.random.default_rng(1)
    at = conditions(settings, 0, masses, np.array(moving), freedom)

    def outcome(positions, cell):
        value, slope = jax.value_and_grad(energy)(positions)
        if elastic is None:
            return Outcome(value, -slope, jnp.zeros((3, 3)))
        more, strained = jax.value_and_grad(lambda strain: elastic(cell @ (jnp.eye(3) + strain)))(jnp.zeros((3, 3)))
        return Outcome(value + more, -slope, 0.5 * (strained + strained.T) / jnp.abs(jnp.linalg.det(cell)))

    def run(key, positions, momenta, cell):
        mine = at._replace(key=key)
        zero = Outcome(0.0, np.zeros((n, 3)), np.zeros((3, 3)))
        state = jax.tree.map(jnp.asarray, fresh(np.zeros((n, 3)), np.zeros((n, 3)), np.eye(3), zero))
        first = outcome(positions, cell)
        state = state._replace(positions=positions, momenta=momenta, cell=cell)
        state = state._replace(energy=first.energy, forces=first.forces, stress=first.stress)

        def step(_, state):
            moved = integrators.begin(name, mine, state)
            return integrators.end(name, mine, moved, outcome(moved.positions, moved.cell))

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
        kinetic = thermostats.kinetic_energy(at, state)
        share = 1 + at.timestep / at.tau * (0.5 * at.freedom * KB * at.temperature / kinetic - 1)
        return thermostats.with_momenta(at, state, state.momenta * jnp.sqrt(share))

    monkeypatch.setattr(thermostats, "rescale_momenta", weak_coupling)
    states, _, at = sample(settings("bussi"), wells, 3 * ATOMS, 900)
    kinetic = 0.5 * np.sum(states.momenta**2 / at.masses, axis=(1, 2))
    assert kinetic.mean() == pytest.approx(1.5 * ATOMS * KB * KELVIN, rel=0.15)
    assert kinetic_law(states, at, 3 * ATOMS) < 1e-6


def test_fixed_atoms_stay_and_the_others_have_the_temperature():
    states, _, at = sample(settings("langevin"), wells, 6, 400, moving=(True, False, True))
    assert not states.momenta[:, 1].any() and not np.ptp(states.positions[:, 1] - states.positions[:, 1]).any()
    assert kinetic_law(states, at, 6) > 1e-3


@pytest.mark.parametrize("barostat", ["isotropic", pytest.param("full", marks=pytest.mark.slow)])
def test_the_volume_of_an_ideal_gas_follows_its_law(barostat):
    """p(V) ~ V^N exp(-PV/kT), a gamma distribution; the kinetic energy stays canonical beside it."""
    gigapascal, masses = 2.0, (1.0, 4.0, 2.0, 3.0)
    n = len(masses)
    options = {"ensemble": "npt", "pressure": gigapascal, "tau_pressure": 30.0, "temperature": 1500.0, "timestep": 0.5}
    options["barostat"] = barostat
    expected = stats.gamma(n + 1, scale=KB * 1500.0 / (gigapascal * STRESS["GPa"]))
    start = np.cbrt(0.5 * expected.mean()) * np.eye(3)
    run = functools.partial(sample, settings("langevin", **options), nothing, 3 * n, masses=masses, moving=(True,) * n)
    states, drift, at = run(1100, cell=start)
    volumes = np.abs(np.linalg.det(states.cell))
    assert stats.kstest(volumes, expected.cdf).pvalue > 1e-3
    assert kinetic_law(states, at, 3 * n) > 1e-3
    assert np.abs(drift).max() < 1e-9  # all energy is kinetic, and all its changes are heat


def shapes(cells):
    """(k, 6): lengths and cosines of the angles of cells (k, 3, 3)."""
    metric = cells @ cells.transpose(0, 2, 1)
    lengths = np.sqrt(np.diagonal(metric, axis1=1, axis2=2))
    cosines = [metric[:, i, j] / lengths[:, i] / lengths[:, j] for i, j in ((1, 2), (0, 2), (0, 1))]
    return np.column_stack([lengths, *cosines])


def shape_law(gigapascal, kelvin, n, count=200_000):
    """Lengths and cosines drawn from exp(-(U + PV)/kT) V^(N-2) dh by weights, with lower triangular cells: dh ~ a² b dL."""
    rng, lower = np.random.default_rng(5), np.tril_indices(3)
    centre, spread = np.linalg.cholesky(METRIC)[lower], 0.15 * np.eye(6)
    for _ in range(4):  # the weights of one round are the proposal of the next
        drawn, cells = rng.normal(size=(count, 6)), np.zeros((count, 3, 3))
        entries = centre + drawn @ spread.T
        cells[:, *lower] = entries
        volumes, diagonal = np.linalg.det(cells), np.diagonal(cells, axis1=1, axis2=2)
        energies = 0.5 * np.sum(STIFFNESS_CELL * (cells @ cells.transpose(0, 2, 1) - METRIC) ** 2, axis=(1, 2))
        logs = -(energies + gigapascal * STRESS["GPa"] * volumes) / (KB * kelvin) + (n - 2) * np.log(np.abs(volumes))
        logs += np.log(np.abs(diagonal)) @ [2, 1, 0] + 0.5 * np.sum(drawn**2, axis=1)
        weights = np.exp(logs - logs.max()) * (diagonal > 0).all(axis=1)
        centre = np.average(entries, axis=0, weights=weights)
        spread = 1.1 * np.linalg.cholesky(np.cov(entries.T, aweights=weights))
    assert weights.sum() ** 2 / np.sum(weights**2) > 50_000  # as good as so many draws
    return shapes(cells[rng.choice(count, 20_000, p=weights / weights.sum())])


@pytest.mark.slow
def test_the_shape_of_a_cell_follows_its_law():
    """Lengths and angles of a skewed, elastic cell with an ideal gas in it, at a pressure; the cell does not turn."""
    gigapascal, kelvin, masses = 3.0, 1500.0, (1.0, 4.0, 2.0, 3.0)
    options = {"ensemble": "npt", "barostat": "full", "pressure": gigapascal, "tau_pressure": 30.0, "timestep": 0.5}
    start = np.linalg.cholesky(METRIC) @ TURNED
    run = functools.partial(sample, settings("langevin", **options | {"temperature": kelvin}), nothing, 12, 600)
    states, drift, at = run(masses=masses, moving=(True,) * 4, cell=start, elastic=elastic, start=1.0)
    pvalues = stats.ks_2samp(shapes(states.cell), shape_law(gigapascal, kelvin, len(masses))).pvalue
    assert pvalues.min() > 1e-3, pvalues
    assert kinetic_law(states, at._replace(temperature=kelvin), 12) > 1e-3
    turned = states.cell @ TURNED.T
    assert np.abs(turned[:, [0, 0, 1], [1, 2, 2]]).max() < 1e-9  # still lower triangular
    assert np.sqrt(np.mean(drift**2)) < 0.05 * KB * kelvin * 12


def test_without_a_thermostat_energy_errors_fall_with_the_square_of_the_time_step_and_time_can_turn_back():
    errors = []
    for timestep in (0.4, 0.2, 0.1):
        options = {"ensemble": "nve", "timestep": timestep}
        _, drift, _ = sample(settings("langevin", **options), wells, 9, round(20 / timestep), start=1.0)
        errors.append(np.sqrt(np.mean(drift**2)))
    exponent = np.polyfit(np.log([0.4, 0.2, 0.1]), np.log(errors), 1)[0]
    assert exponent == pytest.approx(2.0, abs=0.1)
    at = conditions(settings("langevin", ensemble="nve"), 0, np.ones(3), np.ones(3, bool), 9)
    rng = np.random.default_rng(2)
    begin = rng.normal(0, 0.1, (3, 3)), rng.normal(0, 0.2, (3, 3))
    with jax.enable_x64(True):

        @jax.jit
        def walk(positions, momenta):
            def outcome(x):
                return Outcome(wells(x), -jax.grad(wells)(x), jnp.zeros((3, 3)))

            state = fresh(begin[0], begin[1], np.eye(3), Outcome(0.0, np.zeros((3, 3)), np.eye(3)))
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
    at = conditions(settings("bussi", timestep=2.0, tau=50.0), 0, np.ones(2), np.ones(2, bool), 6)
    assert at.timestep == pytest.approx(2 * FEMTOSECOND) and at.tau == pytest.approx(50 * FEMTOSECOND)
