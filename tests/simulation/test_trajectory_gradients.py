"""Gradients of runs: all ways agree with each other, with differences of whole runs, with the engine and with laws in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLengths

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError
from mlff.basics.units import KB
from mlff.simulation import fixed_point
from mlff.simulation import trajectory_gradient as trajectory_gradient_module
from mlff.simulation.differentiable import System
from mlff.simulation.guard import SimulationError
from mlff.simulation.md import run_md
from mlff.simulation.settings import Settings
from mlff.simulation.trajectory_gradient import DifferentiableRun, trajectory_gradient
from mlff.simulation.velocities import maxwell_boltzmann
from tests.potentials import lennard_jones, morse

INPUTS = ("temperature", "positions", "momenta", "cell", "timestep")
LANGEVIN = Settings(timestep=2.0, tau=50.0)
NVE = Settings(ensemble="nve", timestep=2.0)
STEPS, EVERY = 20, 5


def everything(frame):
    """Depends on all that a frame has, in no symmetric way."""
    volume = jnp.linalg.det(frame.cell)
    return jnp.sum((frame.positions[0] - frame.positions[1]) ** 2) + 0.01 * jnp.sum(frame.momenta**2) + 0.01 * volume


def apart(frame):
    """Å between the first two atoms."""
    return jnp.sqrt(jnp.sum((frame.positions[0] - frame.positions[1]) ** 2))


def warm(atoms, seed=0):
    maxwell_boltzmann(atoms, 300.0, np.random.default_rng(seed))
    return atoms


def crystal():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=0)
    return warm(atoms)


def water():
    atoms = molecule("H2O")
    atoms.rattle(0.03, seed=1)
    return warm(atoms)


def difference(run, name, direction, steps, size, **options):
    """The slope of the value along a direction of one input, by runs on both sides."""

    def at(side):
        moved = jax.tree.map(lambda x, d: x + side * size * d, getattr(run.inputs, name), direction)
        return run.gradient(steps, inputs=run.inputs._replace(**{name: moved}), **options).value

    return (at(1) - at(-1)) / (2 * size)


@pytest.fixture(scope="module")
def runs():
    """A crystal with and without friction, the latter with a loss of two means; each compiled once."""
    potential, atoms = lennard_jones(precision="float64"), crystal()

    def both(frame):
        return jnp.stack([apart(frame), everything(frame)])

    return {
        "langevin": DifferentiableRun(everything, potential, atoms, LANGEVIN, EVERY),
        "nve": DifferentiableRun(both, potential, atoms, NVE, EVERY, loss=lambda mean: mean[0] * mean[1] ** 2),
    }


@pytest.fixture(scope="module")
def found(runs):
    """Gradients by the adjoint with respect to all that there is."""
    wanted = {"langevin": INPUTS, "nve": INPUTS[1:]}
    return {name: run.gradient(STEPS, wanted[name], seed=3) for name, run in runs.items()}


@pytest.mark.parametrize("name", ["langevin", "nve"])
def test_the_adjoint_is_the_slope_of_the_run(runs, found, name):
    """Finite differences of whole runs, to 1e-6 of the slope, for every input."""
    rng = np.random.default_rng(1)
    for wanted, slope in found[name].gradient.items():
        direction = rng.normal(size=np.shape(slope))
        size = 1e-5 * max(1.0, float(np.abs(getattr(runs[name].inputs, wanted)).max()))
        options = {"with_respect_to": tuple(found[name].gradient), "seed": 3}
        expected = difference(runs[name], wanted, direction, STEPS, size, **options)
        assert np.sum(slope * direction) == pytest.approx(expected, rel=1e-6), wanted
        assert expected != 0


@pytest.mark.parametrize("truncate", [None, 7])
def test_adjoint_and_checkpoints_agree(runs, found, truncate):
    """The latter differentiates the engine's own steps; truncated ones forget at the same places."""
    run = runs["langevin"]
    one = found["langevin"] if truncate is None else run.gradient(STEPS, INPUTS, seed=3, truncate=truncate)
    other = run.gradient(STEPS, INPUTS, "checkpointed", seed=3, truncate=truncate)
    assert one.value == pytest.approx(other.value, rel=1e-10)
    for wanted in INPUTS:
        np.testing.assert_allclose(one.gradient[wanted], other.gradient[wanted], rtol=1e-8, atol=1e-10, err_msg=wanted)
    if truncate:
        assert not np.allclose(one.gradient["positions"], found["langevin"].gradient["positions"], rtol=0.01)


@pytest.mark.slow
def test_the_way_back_is_the_same_where_forces_are_computed_for_themselves(runs, found, monkeypatch):
    """As it is done where the last bits of all kicks would take too much memory."""
    monkeypatch.setattr(trajectory_gradient_module, "_DIGITS", (0, 0))
    for name, run in runs.items():
        other = run.gradient(STEPS, tuple(found[name].gradient), seed=3)
        assert other.value == pytest.approx(found[name].value, rel=1e-12)
        for wanted, slope in found[name].gradient.items():
            np.testing.assert_allclose(other.gradient[wanted], slope, rtol=1e-9, atol=1e-12, err_msg=wanted)


def test_the_run_is_the_engines():
    """The last frame of `mlff md` with the same seed and momenta."""
    atoms, potential = water(), morse(precision="float64")
    mine = trajectory_gradient(apart, potential, atoms, Settings(timestep=0.5), 30, ("positions",), seed=5)
    moved = atoms.copy()
    options = {"timestep": 0.5, "steps": 30, "seed": 5, "keep_velocities": True, "progress": False}
    run_md(moved, MLFFCalculator(potential), **options)
    assert mine.value == pytest.approx(moved.get_distance(0, 1), abs=1e-9)


@pytest.mark.slow
def test_parameters_of_a_network(potentials):
    """ACE: along a random direction of all its parameters; the gradient has their form."""
    potential = potentials("ace")
    run = DifferentiableRun(apart, potential, water(), Settings(timestep=0.5, tau=20.0), every=2)
    result = run.gradient(6, ("params",), seed=2)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: rng.normal(size=np.shape(x)), run.inputs.params)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float(np.sum(g * d)), result.gradient["params"], direction)))
    assert slope == pytest.approx(difference(run, "params", direction, 6, 1e-5, seed=2), rel=1e-6)


def test_a_long_run_is_undone_to_the_last_bit_in_float32():
    """Also where remainders of the friction are put aside on the way; else the gradient would raise SimulationError."""
    settings = Settings(temperature=300.0, timestep=1.0, tau=4.0)  # a remainder lasts for 121 steps
    result = trajectory_gradient(apart, morse(), water(), settings, 1000, ("positions",), every=100)
    assert len(result.norms) == 167 and np.isfinite(result.norms).all()
    assert result.norms[0, 0] == 5 and result.norms[-1, 0] == 1000


def test_a_wrong_way_back_is_noticed(monkeypatch):
    monkeypatch.setattr(fixed_point, "stretch", lambda factors, momenta, remainder: (momenta, remainder))
    with pytest.raises(SimulationError, match="did not end where it had begun"):
        trajectory_gradient(apart, morse(), water(), Settings(timestep=0.5), 5, ("positions",))


def test_forces_of_the_way_back_may_round_otherwise(monkeypatch):
    """By 1e-4 eV/Å in float32: the run comes back to the bits of its start all the same."""
    exact = System.pull_forces

    def rounded(*arguments):
        forces, found = exact(*arguments)
        return forces + 1e-4, found

    monkeypatch.setattr(System, "pull_forces", rounded)
    result = trajectory_gradient(apart, morse(), water(), Settings(timestep=0.5), 20, ("positions",))
    assert np.isfinite(result.gradient["positions"]).all()


def test_the_last_bits_restore_a_number_from_one_nearby():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        values = jnp.asarray(rng.normal(size=1000))
        for coarse in (1, 2**14):
            exact = fixed_point.whole(values, coarse)
            low = fixed_point.low(exact, coarse)
            near = exact + coarse * jnp.asarray(rng.integers(-(2**15) + 1, 2**15, 1000))
            assert jnp.array_equal(fixed_point.restored(near, low, coarse), exact)
            assert not jnp.array_equal(fixed_point.restored(exact + coarse * (2**15 + 1), low, coarse), exact)


def test_whole_numbers_forget_nothing():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for kept in (0.995, 0.3):
            begin = start = fixed_point.whole(jnp.asarray(rng.normal(size=50)))
            remainder = jnp.zeros_like(start)
            count = min(fixed_point.lifetime(kept), 30)
            factors = fixed_point.factors(jnp.float64(kept))
            for _ in range(count):
                start, remainder = fixed_point.squeeze(factors, start, remainder)
            exact = fixed_point.real(begin) * kept**count
            np.testing.assert_allclose(fixed_point.real(start), exact, atol=1e-11)
            for _ in range(count):
                start, remainder = fixed_point.stretch(factors, start, remainder)
            assert jnp.array_equal(start, begin) and not remainder.any()


def test_fixed_atoms_stay_and_have_no_momentum_to_differentiate():
    atoms = water()
    atoms.set_constraint(FixAtoms([0]))
    run = DifferentiableRun(apart, morse(precision="float64"), atoms, Settings(timestep=0.5))
    result = run.gradient(10, ("momenta", "positions"))
    assert not result.gradient["momenta"][0].any() and result.gradient["momenta"][1].any()
    direction = np.random.default_rng(0).normal(size=(3, 3))
    expected = difference(run, "positions", direction, 10, 1e-5, with_respect_to=("momenta", "positions"))
    assert np.sum(result.gradient["positions"] * direction) == pytest.approx(expected, rel=1e-6)


def test_reweighting_is_the_slope_of_the_weighted_mean(runs):
    """Of the same frames; the kinetic energy, whose mean is 3/2 N kT, shows the law within its error."""

    def kinetic(frame):
        return 0.5 * jnp.sum(frame.momenta**2) / 63.546 + 0.1 * everything(frame)

    run = DifferentiableRun(kinetic, lennard_jones(precision="float64"), crystal(), LANGEVIN, every=5)
    wanted = ("temperature", "cell")
    result = run.gradient(500, wanted, "reweighting")
    assert result.sampled and result.effective == pytest.approx(100)
    direction = np.random.default_rng(0).normal(size=(3, 3))
    for name, along, size in (("temperature", np.float64(1.0), 1e-2), ("cell", direction, 1e-5)):
        middle = getattr(run.inputs, name)
        moved = [run.inputs._replace(**{name: np.asarray(middle + s * size * along)}) for s in (1, -1)]
        up, down = (run.gradient(500, wanted, "reweighting", inputs=inputs) for inputs in moved)
        assert not up.sampled and up.effective < 100
        assert np.sum(result.gradient[name] * along) == pytest.approx((up.value - down.value) / (2 * size), rel=1e-6)
    far = run.gradient(500, wanted, "reweighting", inputs=run.inputs._replace(temperature=np.float64(500.0)))
    assert far.sampled and far.effective == pytest.approx(100)


@pytest.mark.slow
def test_reweighting_obeys_equipartition():
    """dK/dT = 3/2 N k, with the center of mass at rest."""

    def kinetic(frame):
        return 0.5 * jnp.sum(frame.momenta**2) / 63.546

    settings = Settings(timestep=2.0, tau=20.0, temperature=300.0)
    result = trajectory_gradient(
        kinetic, lennard_jones(precision="float64"), crystal(), settings, 80_000, ("temperature",), "reweighting", every=40
    )
    assert float(result.gradient["temperature"]) == pytest.approx(1.5 * 3 * KB, rel=0.15)


@pytest.mark.slow
def test_the_continuous_limit_is_that_of_an_ordinary_differential_equation():
    """Newton's equation by another library, its adjoint solved as an equation of its own (Chen et al., NeurIPS 2018)."""
    diffrax = pytest.importorskip("diffrax", reason="a cross-check: pip install diffrax")
    potential, atoms = morse(precision="float64"), water()
    steps, settings = 400, Settings(ensemble="nve", timestep=0.02)
    run = DifferentiableRun(apart, potential, atoms, settings)
    mine = run.gradient(steps, ("positions", "momenta"))
    masses = atoms.get_masses()[:, None]
    time = steps * float(run.system.conditions(300.0, 0.02, None).timestep)

    def flow(t, state, args):
        return state[1] / masses, run.system.forces({}, state[0], run.inputs.cell)

    @jax.jit
    @jax.grad
    def slope(state):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(flow),
            diffrax.Tsit5(),
            0.0,
            time,
            time / 200,
            state,
            stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-9),
            adjoint=diffrax.BacksolveAdjoint(),
        )
        return jnp.sqrt(jnp.sum((solution.ys[0][-1, 0] - solution.ys[0][-1, 1]) ** 2))

    with jax.enable_x64(True):
        positions, momenta = jax.device_get(slope((jnp.asarray(run.inputs.positions), jnp.asarray(run.inputs.momenta))))
    np.testing.assert_allclose(mine.gradient["positions"], positions, atol=1e-4)
    np.testing.assert_allclose(mine.gradient["momenta"], momenta, atol=1e-4)


def test_a_list_that_an_atom_has_left_is_an_error():
    hot = water()
    hot.set_momenta(60 * hot.get_momenta())
    with pytest.raises(SimulationError, match="step [0-9]+: an atom has moved farther than the neighbour list reaches"):
        trajectory_gradient(apart, morse(), hot, NVE, 200, ("positions",), skin=0.3)


@pytest.mark.slow
def test_with_checkpoints_the_list_follows_the_atoms():
    turning, short = water(), Settings(ensemble="nve", timestep=0.5)
    arms = turning.positions - turning.get_center_of_mass()
    turning.set_momenta(turning.get_masses()[:, None] * np.cross([0.3, 0.0, 0.0], arms))  # once around in 200 fs
    run = DifferentiableRun(apart, morse(), turning, short, skin=1.5)
    with pytest.raises(SimulationError, match="an atom has moved farther"):
        run.value(400)
    followed = run.gradient(400, ("positions",), "checkpointed")
    whole = DifferentiableRun(apart, morse(), turning, short).gradient(400, ("positions",), "checkpointed")
    assert followed.value == pytest.approx(whole.value, rel=1e-5)
    np.testing.assert_allclose(followed.gradient["positions"], whole.gradient["positions"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "shooting"}, "unknown method 'shooting'; known: adjoint, checkpointed, reweighting"),
        ({"with_respect_to": ("weights",)}, "with_respect_to holds names of params, temperature"),
        ({"with_respect_to": "params"}, "with_respect_to holds names of"),
        ({"with_respect_to": ("cell",)}, "the atoms are not periodic"),
        ({"settings": NVE, "with_respect_to": ("temperature",)}, "nve has no temperature"),
        ({"settings": Settings(thermostat="bussi")}, "not bussi; take the method checkpointed"),
        ({"settings": Settings(ensemble="npt")}, "gradients through npt are not there"),
        ({"method": "reweighting", "with_respect_to": ("timestep",), "every": 1}, "does not depend on timestep"),
        ({"method": "reweighting"}, "takes the mean over each `every`th frame"),
        (
            {"observable": lambda frame: frame.positions},
            r"the observable has the shape \(3, 3\); the loss must make one number",
        ),
        ({"steps": 0}, "a run of 0 steps"),
        ({"with_respect_to": ()}, "with_respect_to holds names of"),
        ({"every": -1}, "every must be a number of steps"),
    ],
)
def test_what_cannot_be_differentiated_is_said_first(changed, message):
    asked = {"observable": apart, "potential": morse(), "atoms": water(), "settings": LANGEVIN, "steps": 5}
    with pytest.raises(ConfigError, match=message):
        trajectory_gradient(**(asked | changed))


def test_other_constraints_are_refused():
    atoms = water()
    atoms.set_constraint(FixBondLengths([[0, 1]]))
    with pytest.raises(ConfigError, match="do not know the constraint FixBondLengths"):
        trajectory_gradient(apart, morse(), atoms, LANGEVIN, 5)


def test_inputs_of_another_shape_are_named():
    run = DifferentiableRun(apart, morse(), water(), LANGEVIN)
    with pytest.raises(ConfigError, match=r"inputs: positions has the shape \(2, 3\), where \(3, 3\) is expected"):
        run.gradient(5, inputs=run.inputs._replace(positions=np.zeros((2, 3))))


def test_nothing_compiles_anew_in_a_loop():
    run = DifferentiableRun(apart, morse(), water(), LANGEVIN, every=2)
    for steps, seed in ((4, 0), (6, 1), (9, 2)):
        run.gradient(
            steps, ("positions",), seed=seed, inputs=run.inputs._replace(temperature=np.float64(100.0 * (seed + 1)))
        )
    assert len(run._programs) == 1
