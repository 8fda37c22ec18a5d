"""Self-diffusion as a target: its gradient, its noise, lists that follow the atoms, and that it is what `mlff analyze` finds."""

import ase
import jax
import numpy as np
import pytest
from ase.build import bulk

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError
from mlff.basics.units import KB
from mlff.config.observables import SelfDiffusion
from mlff.config.options import LennardJones
from mlff.config.refinement import make_refinement
from mlff.config.sampling import Sampling
from mlff.potential.potential import Potential
from mlff.properties.frames import read_frames
from mlff.properties.motion import diffusion
from mlff.refinement.ensembles import Ensemble
from mlff.refinement.short_runs import ShortRuns, mean_gradient
from mlff.refinement.transport import Diffusion
from mlff.simulation.md import run_md
from tests.conftest import make_potential

KELVIN = 3000.0
SAMPLING = {"structure": "cell.xyz", "temperature": KELVIN, "timestep": 2.0, "frames": 4, "every": 5, "least": 0.5}
TARGET = {"kind": "diffusion", "element": "Si", "value": 30.0, "error": 10.0, "window": 24.0, "sampling": SAMPLING}


@pytest.fixture(scope="module")
def model():
    return make_potential("schnet", "float64")


@pytest.fixture(scope="module")
def target(model):
    """With frames that need no run."""
    atoms = bulk("Si", "diamond", a=5.6, cubic=True)
    ensemble = Ensemble(Sampling(**SAMPLING), model, "float64", atoms, 0)
    frames = atoms.positions + np.random.default_rng(3).normal(size=(4, 8, 3), scale=0.1)
    held = {"positions": frames, "momenta": np.zeros((8, 3)), "exponents": np.zeros(4), "runs": np.array(1)}
    with model.scope():
        ensemble.restore(held)
        ensemble.exponents = energies(ensemble, model.device_params) / (KB * KELVIN)
        made = Diffusion(SelfDiffusion(**TARGET), ensemble, model, "float64")
        made.measure(model.device_params)
    return made


def energies(ensemble, params):
    return np.asarray(ensemble._energies(params, ensemble.graphs))


def moved(params, along, by):
    return {**params, "params": jax.tree.map(lambda p, d: p + by * d, params["params"], along)}


def product(one, other):
    return sum(np.vdot(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.slow
def test_the_gradient_is_the_difference_of_short_runs(model, target):
    """Same frames, same velocities: of the runs and of the weights of the frames, float64."""
    found, step = target._found, 1e-4
    rng = np.random.default_rng(0)
    along = jax.tree.map(lambda p: rng.normal(size=p.shape) / 40, model.params["params"])
    with model.scope():
        params = model.device_params
        sides = [moved(params, along, by) for by in (-step, step)]
        runs = [target.runs.values(side, target.ensemble).mean() for side in sides]
        exponents = [energies(target.ensemble, side) / (KB * KELVIN) for side in sides]
        assert target.runs.values(params, target.ensemble) == pytest.approx(found.values, rel=1e-9)
    shares = [np.exp(target.ensemble.exponents - there) for there in exponents]
    weighted = [(share * found.values).sum() / share.sum() for share in shares]
    of_runs, of_weights = product(found.runs.mean, along), product(found.weights.mean, along)
    assert of_runs == pytest.approx(np.diff(runs)[0] / (2 * step), rel=1e-5)
    assert of_weights == pytest.approx(np.diff(weighted)[0] / (2 * step), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("drowned", [False, True])
def test_the_weights_of_frames_count_unless_noise_drowns_them(model, target, drowned, monkeypatch):
    step, found = 1e-4, target._found
    monkeypatch.setattr(target, "_found", found._replace(weights=found.weights._replace(noise=1.0 if drowned else 0.1)))
    along = jax.tree.map(lambda p: np.full(p.shape, 0.02), model.params["params"])
    with model.scope():
        params = model.device_params
        here, *sides = (target.measure(moved(params, along, by)) for by in (0.0, -step, step))
    assert here.values == pytest.approx(found.values.mean())
    penalties = [((one.values[0] - 30) / 10) ** 2 for one in sides]
    slope = product(here.gradient["params"], along)
    assert slope == pytest.approx(np.diff(penalties)[0] / (2 * step), rel=1e-5)
    expected = product(found.runs.mean, along) + (0 if drowned else product(found.weights.mean, along))
    assert slope == pytest.approx(expected * 2 * (here.values[0] - 30) / 100, rel=1e-6)
    assert ("is left out" in target.remarks()[0]) == drowned


@pytest.mark.slow
def test_a_restart_makes_no_short_runs_anew(model, target, monkeypatch):
    other = Diffusion(SelfDiffusion(**TARGET), target.ensemble.again(), model, "float64")
    monkeypatch.setattr(ShortRuns, "values", None)
    with model.scope():
        other.restore(target.state())
        params = moved(model.device_params, model.params["params"], 1e-4)
        there, here = other.measure(params), target.measure(params)
    assert here.values == there.values and other.remarks() == target.remarks()
    for one, same in zip(jax.tree.leaves(here.gradient), jax.tree.leaves(there.gradient), strict=True):
        assert np.array_equal(one, same)


@pytest.mark.slow
def test_it_is_what_the_mean_square_displacement_gives(tmp_path):
    """Liquid argon; runs at constant energy, as friction slows diffusion."""
    argon = Potential(LennardJones(cutoff=6.5, epsilon=0.01032, sigma=3.405), {}, (18,), {18: 0.0})
    grid = (np.stack(np.meshgrid(*3 * [np.arange(4)]), axis=-1).reshape(-1, 3) + 0.5) * 14.55 / 4
    start = ase.Atoms("Ar64", positions=grid, cell=3 * [14.55], pbc=True)
    more = {"temperature": 94.0, "timestep": 10.0, "tau": 500.0, "frames": 80, "every": 40, "equilibration": 800}
    options = SelfDiffusion(**TARGET | {"element": "Ar", "window": 2000.0, "sampling": SAMPLING | more})
    double = argon.with_precision("float64")
    with double.scope():
        ensemble = Ensemble(options.sampling, double, "float32", start, 0)
        ensemble.sample(double.device_params)
        (value,), (error,) = Diffusion(options, ensemble, double, "float32").fresh(argon)
    found = []
    for number in range(6):
        atoms, file = start.copy(), tmp_path / f"{number}.traj"
        atoms.positions = ensemble.positions[13 * number]
        run = {"ensemble": "nve", "temperature": 94.0, "timestep": 10.0, "steps": 3000, "interval": 10, "seed": number}
        run_md(atoms, MLFFCalculator(argon), trajectory=file, progress=False, **run)
        found.append(10 * diffusion(read_frames(file))[0].coefficient)  # 1e-9 m²/s
    both = np.hypot(error, np.std(found, ddof=1) / np.sqrt(6))
    assert abs(value - np.mean(found)) < 3 * both < 0.4 * value, (value, error, found)


def test_noise_is_the_standard_error_over_the_length():
    rows = np.random.default_rng(0).normal(size=(50, 30)) + 0.2
    total, squares = {"a": rows[:, :10].sum(axis=0), "b": rows[:, 10:].sum(axis=0)}, (rows**2).sum()
    found = mean_gradient(total, squares, 50)
    error = np.sqrt((rows.var(axis=0, ddof=1) / 50).sum())
    assert found.noise == pytest.approx(error / np.linalg.norm(rows.mean(axis=0))) and not found.drowned
    assert mean_gradient({"a": np.zeros(3)}, 10.0, 50).drowned


def test_wrong_input_is_one_line():
    model = make_potential("morse", "float64")
    ensemble = Ensemble(Sampling(**SAMPLING), model, "float64", bulk("Si", cubic=True), 0)
    with pytest.raises(ConfigError, match=r"cell.xyz: has no Ar, whose diffusion is asked for"):
        Diffusion(SelfDiffusion(**TARGET | {"element": "Ar"}), ensemble, model, "float64")
    plain = {"model": "m", "data": {"train": "d"}, "targets": [TARGET | {"window": 1.0}]}
    with pytest.raises(ConfigError, match=r"window: shorter than sampling.timestep"):
        make_refinement(plain)
    with pytest.raises(ConfigError, match=r"sampling.bias: diffusion is that of plain dynamics"):
        make_refinement(plain | {"targets": [TARGET | {"sampling": SAMPLING | {"bias": "bias.yaml"}}]})
    with pytest.raises(ConfigError, match="unit"):
        make_refinement(plain | {"targets": [TARGET | {"unit": "m^2/s"}]})
