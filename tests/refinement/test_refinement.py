"""Refinement: gradients of every kind of target, a target that is reached and one that the data forbid, restarts, wrong input."""

import json

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import write

from mlff.basics.errors import ConfigError, MLFFError, ModelFileError
from mlff.config.observables import Distribution, EnergyDifference, Frequencies, Pressure
from mlff.config.refinement import load_refinement, make_refinement
from mlff.config.sampling import Sampling
from mlff.potential.potential import Potential
from mlff.refinement.averages import MeanPressure, RadialDistribution
from mlff.refinement.ensembles import Ensemble
from mlff.refinement.observables import Difference, Goal, Wavenumbers, with_params
from mlff.refinement.outcome import Look, Outcome, row, verdicts
from mlff.refinement.refine import refine
from mlff.refinement.targets import make_targets
from tests.conftest import make_potential
from tests.refinement.slopes import direction, moved, slope

SAMPLING = {"structure": "cell.xyz", "temperature": 300.0, "frames": 4, "every": 5, "equilibration": 5, "least": 0.99}


@pytest.fixture(scope="module")
def model():
    return make_potential("schnet", "float64")


def water() -> ase.Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.1, seed=1)
    return atoms


def cell():
    atoms = bulk("Si", "diamond", a=5.6, cubic=True)
    atoms.rattle(0.05, seed=2)
    return atoms


@pytest.fixture(scope="module")
def ensemble(model):
    """Frames that need no run."""
    made = Ensemble(Sampling(**SAMPLING), model, "float64", cell(), 0)
    rng = np.random.default_rng(3)
    frames = made.atoms.positions + rng.normal(size=(6, 8, 3), scale=0.1)
    held = {"positions": frames, "momenta": np.zeros((8, 3)), "exponents": np.zeros(6), "runs": np.array(1)}
    with model.scope():
        made.restore(held)
        made.exponents = np.asarray(made._energies(model.device_params, made.graphs)) / (8.617333e-5 * 300)
    return made


@pytest.mark.slow
def test_gradient_of_frequencies(model):
    options = Frequencies(kind="frequencies", structure="", values=(100.0, 120.0), modes=(0, 2), error=10.0, weight=2.0)
    with model.scope():
        target = Wavenumbers(options, np.array(options.values), model, water())
        found, expected = slope(target, model.device_params, direction(model.params))
        assert found == pytest.approx(expected, rel=1e-5)
        values, _ = target.fresh(model)
        assert target.measure(model.device_params).values == pytest.approx(values, abs=1e-3)


def test_gradient_of_an_energy_difference(model):
    other = water()
    other.rattle(0.1, seed=5)
    options = EnergyDifference(kind="energy_difference", structures=("", ""), value=30.0, unit="meV", error=2.0)
    with model.scope():
        target = Difference(options, model, (water(), other))
        found, expected = slope(target, model.device_params, direction(model.params))
        assert found == pytest.approx(expected, rel=1e-6)
        assert target.measure(model.device_params).values == pytest.approx(target.fresh(model)[0], abs=1e-6)


def test_gradient_of_a_pressure(model, ensemble):
    options = Pressure(kind="pressure", value=1.0, error=0.1, sampling=SAMPLING)
    with model.scope():
        target = MeanPressure(options, ensemble, model)
        found, expected = slope(target, model.device_params, direction(model.params))
    assert found == pytest.approx(expected, rel=1e-5)


def test_gradient_of_a_distribution(model, ensemble):
    options = Distribution(kind="distribution", pair=("Si", "Si"), file="", error=0.1, sampling=SAMPLING)
    r = np.arange(2.05, 3, 0.1)
    with model.scope():
        target = RadialDistribution(options, np.stack([r, np.ones(10)], axis=1), ensemble)
        found, expected = slope(target, model.device_params, direction(model.params))
        assert found == pytest.approx(expected, rel=1e-5) and abs(found) > 1e-3
        at_them = target.measure(model.device_params)
    assert at_them.values == pytest.approx(
        target.look(ensemble).mean(axis=0)
    )  # at the parameters of the run all weights are equal


@pytest.mark.slow
def test_a_new_run_is_made_when_few_frames_count(model):
    made = Ensemble(Sampling(**SAMPLING), model, "float64", cell(), 0)
    target_options = Pressure(kind="pressure", value=1.0, error=0.1, sampling=SAMPLING)
    target = MeanPressure(target_options, made, model)
    with model.scope():
        params = model.device_params
        target.measure(params)
        assert made.runs == 1 and made.positions.shape == (4, 8, 3)
        target.measure(moved(params, direction(params), 1e-9))
        assert made.runs == 1
        made.exponents = made.exponents + np.array([0.0, 9.0, 9.0, 9.0])  # as if the run had been one of other parameters
        target.measure(params)
        assert made.runs == 2
        other = Ensemble(Sampling(**SAMPLING), model, "float64", cell(), 0)
        other.restore(made.state())
        values = MeanPressure(target_options, other, model).measure(params).values
        assert values == target.measure(params).values and other.runs == 2


@pytest.fixture(scope="module")
def case(tmp_path_factory, model):
    """A model in a file, and data that it labelled, with noise."""
    folder = tmp_path_factory.mktemp("refine")
    model.with_precision("float32").save(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    frames = []
    for seed in range(30):
        atoms = molecule("H2O")
        atoms.rattle(0.08, seed=seed)
        said = model.predict([atoms])[0]
        atoms.info["energy"] = said.energy + 0.1 * rng.normal()
        atoms.arrays["forces"] = said.forces + 0.3 * rng.normal(size=(3, 3))
        frames.append(atoms)
    write(folder / "data.xyz", frames, format="extxyz")
    far = molecule("H2O")
    far.positions[1] *= 1.6
    write(folder / "two.xyz", [molecule("H2O"), far], format="extxyz")
    write(folder / "cell.xyz", cell())
    gap = np.diff([result.energy for result in model.predict([molecule("H2O"), far])])[0]
    return folder, float(gap)


def config(folder, targets, **more):
    plain = {"model": "model.safetensors", "data": {"train": "data.xyz", "valid_fraction": 0.3}, "targets": targets}
    return make_refinement(
        plain | {"batch_size": 5, "check_every": 5, "steps": 60, "data_weight": 1.0} | more, "test", folder
    )


def difference(value: float, error: float = 0.01, frames=(0, 1), file="two.xyz") -> dict:
    return {"kind": "energy_difference", "structures": [file, file], "frames": frames, "value": value, "error": error}


@pytest.fixture(scope="module")
def reached(case, tmp_path_factory):
    """A refinement that reaches its target: config, folder, potential, outcome."""
    folder, gap = case
    out = tmp_path_factory.mktemp("reached") / "out"
    settings = config(folder, [difference(gap + 0.05)], optimizer={"learning_rate": 3e-3})
    return settings, out, *refine(settings, out, progress=False)


def test_a_target_is_reached_and_the_data_are_kept(case, reached):
    settings, out, refined, outcome = reached
    (one,) = outcome.targets
    assert one.before == pytest.approx([case[1]], abs=1e-4) and one.deviation_before == pytest.approx(5, abs=0.05)
    assert one.reached and outcome.verdicts == () and outcome.steps < 60
    errors = outcome.data["validation"]
    assert errors["after"]["forces_rmse"] < 1.1 * errors["before"]["forces_rmse"]
    again = Potential.load(out / "model.safetensors")
    assert again.precision == "float32" and again.fingerprint == refined.fingerprint
    assert again.metadata["refinement"]["targets"][0]["after"] == one.after
    assert Outcome.from_dict(json.loads((out / "refinement.json").read_text(encoding="utf-8"))) == outcome


@pytest.mark.slow
def test_a_target_that_the_data_contradict_is_said(case, tmp_path):
    folder, gap = case
    settings = config(folder, [difference(5.0, 0.001, (0, 1), "data.xyz")], optimizer={"learning_rate": 3e-3}, steps=40)
    _, outcome = refine(settings, tmp_path / "out", progress=False)
    assert not outcome.targets[0].reached
    (line,) = outcome.verdicts
    assert "not reached" in line and "the data contradict it" in line
    errors = outcome.data["validation"]
    assert errors["after"]["forces_rmse"] < 1.101 * errors["before"]["forces_rmse"]  # the limit holds


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not_been(reached, tmp_path, monkeypatch):
    settings, _, whole, outcome = reached
    calls, measure = [], Difference.measure

    def interrupted(self, params):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(self, params)

    monkeypatch.setattr(Difference, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        refine(settings, tmp_path, progress=False)
    assert not (tmp_path / "model.safetensors").exists()
    with pytest.raises(ConfigError, match="differs in data_weight"):
        refine(settings.model_copy(update={"data_weight": 2.0}), tmp_path, progress=False)
    parts, same = refine(settings, tmp_path, progress=False)
    assert parts.fingerprint == whole.fingerprint and same == outcome
    (tmp_path / "state.safetensors").write_bytes(b"no state")
    with pytest.raises(ModelFileError, match="delete it"):
        refine(settings, tmp_path, progress=False)


def test_verdicts_tell_trade_offs():
    goal = Goal("pressure", "GPa", np.zeros(1), np.ones(1), 1.0)
    start = Look(0, (10.0,), 100.0, 5.0, 1.0)
    rows = [row(goal, np.array([10.0]), np.array([6.0]), None)]
    (line,) = verdicts(rows, [start, Look(10, (2.0,), 130.0, 5.0, 1.3)], 0.1)
    assert "contradict" in line and "30 %" in line
    (line,) = verdicts(rows, [start, Look(10, (6.0,), 105.0, 5.0, 1.05)], 0.1)
    assert "pull the other way" in line
    (line,) = verdicts(rows, [start, Look(10, (6.0,), 100.0, 5.0, 1.0)], 0.1)
    assert "at no cost" in line
    rows = [row(goal, np.array([10.0]), np.array([9.5]), None)]
    (line,) = verdicts(rows, [start, Look(10, (9.5,), 100.0, 5.0, 1.0)], 0.1)
    assert "hardly moves" in line
    rows = [row(goal, np.array([10.0]), np.array([0.5]), np.array([3.0]))]
    (line,) = verdicts(rows, [start, Look(10, (0.5,), 100.0, 5.0, 1.0)], 0.1)
    assert "more frames" in line


WRONG = {
    "unknown kind": ({"kind": "viscosity"}, "unknown kind 'viscosity'; known: frequencies"),
    "no error bar": ({"kind": "pressure", "value": 1.0, "sampling": SAMPLING}, "targets.0.error' is missing"),
    "two sources": (
        {"kind": "frequencies", "structure": "two.xyz", "values": [1.0], "file": "f.txt", "error": 1.0},
        "either values or file",
    ),
    "no file": (difference(1.0, file="none.xyz"), r"targets.0 \(energy_difference\): .*none.xyz"),
    "no frame": (difference(1.0, frames=(0, 7)), "no structure number 7"),
    "modes": (
        {"kind": "frequencies", "structure": "two.xyz", "values": [1.0, 2.0], "error": 1.0},
        "2 wavenumbers are given for 3",
    ),
    "no cell": (
        {"kind": "pressure", "value": 1.0, "error": 1.0, "sampling": SAMPLING | {"structure": "two.xyz"}},
        "periodic in three directions",
    ),
    "no table": (
        {"kind": "distribution", "pair": ["Si", "Si"], "file": "none.txt", "error": 1.0, "sampling": SAMPLING},
        "none.txt: cannot be read",
    ),
    "columns": ({"kind": "distribution", "pair": ["Si", "Si"], "file": "g.txt", "sampling": SAMPLING}, "3 columns"),
    "uneven": (
        {"kind": "distribution", "pair": ["Si", "Si"], "file": "uneven.txt", "error": 1.0, "sampling": SAMPLING},
        "evenly spaced",
    ),
    "element": (
        {"kind": "distribution", "pair": ["Si", "O"], "file": "g.txt", "error": 1.0, "sampling": SAMPLING},
        "cell.xyz: has no O",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_target_is_one_line(name, case, model):
    folder, _ = case
    np.savetxt(folder / "g.txt", [[1.0, 0.0], [1.1, 1.0]])
    np.savetxt(folder / "uneven.txt", [[1.0, 0.0], [1.1, 1.0], [1.5, 1.0]])
    target, message = WRONG[name]
    with pytest.raises(MLFFError, match=message) as error, model.scope():
        make_targets(config(folder, [target]), model, "float32")
    assert "\n" not in str(error.value)


def test_a_wrong_model_or_data_is_one_line(case, tmp_path):
    folder, _ = case
    targets = [difference(1.0)]
    make_potential("morse").save(tmp_path / "morse.safetensors")
    with pytest.raises(ConfigError, match="morse has no parameters"):
        refine(config(folder, targets, model=str(tmp_path / "morse.safetensors")), tmp_path / "out", progress=False)
    data = {"train": "data.xyz", "units": {"energy": "kcal/mol", "forces": "kcal/mol/Angstrom"}}
    with pytest.raises(ConfigError, match=r"data.train: .*in other units"):
        refine(config(folder, targets, data=data), tmp_path / "out", progress=False)
    with pytest.raises(ConfigError, match="replay: data.train holds the model's own data"):
        config(folder, targets, data={"train": "data.xyz", "replay": "data.xyz"})
    with pytest.raises(ConfigError, match="replay_readout: nothing is replayed here"):
        config(folder, targets, data={"train": "data.xyz", "replay_readout": "own"})
    with pytest.raises(ConfigError, match="stretched: a refinement has no such term"):
        config(folder, targets, loss={"stretched": 0.1})
    (tmp_path / "bad.yaml").write_text("model: m\ndata: {train: d}\ntargts: []\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown key 'targts'; did you mean 'targets'"):
        load_refinement(tmp_path / "bad.yaml")
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_reweighting_agrees_with_a_run_at_the_new_parameters(model):
    options = Sampling(structure="", temperature=600.0, frames=500, every=20, equilibration=500, least=0.1)
    made = Ensemble(options, model, "float32", cell(), 0)
    target = MeanPressure(Pressure(kind="pressure", value=1.0, error=0.1, sampling=options), made, model)
    with model.scope():
        params = model.device_params
        start = target.measure(params).values
        other = moved(params, params["params"], 0.2)
        reweighted = target.measure(other).values
        assert made.runs == 1
        effective = float(target._ask(other)[1][1])
        direct, error = target.fresh(with_params(model, other))
    both = error[0] * np.sqrt(1 + options.frames / effective)  # of fewer frames the mean is less well known
    assert abs(reweighted - direct)[0] < 3 * both < abs(direct - start)[0], (start, reweighted, direct, both)
