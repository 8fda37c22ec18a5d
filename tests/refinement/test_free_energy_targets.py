"""Free energy differences as targets: two atoms, whose distribution of distances is known exactly."""

import ase
import numpy as np
import pytest
from ase.io import write

from mlff.basics.errors import MLFFError
from mlff.basics.units import KB
from mlff.config.observables import FreeEnergyDifference
from mlff.config.refinement import make_refinement
from mlff.config.sampling import Sampling
from mlff.refinement.averages import FreeEnergyGap
from mlff.refinement.ensembles import Ensemble
from mlff.refinement.fixed_bias import FixedBias
from mlff.refinement.observables import with_params
from mlff.refinement.targets import make_targets
from mlff.simulation.guard import SimulationError
from tests.conftest import make_potential
from tests.refinement.slopes import direction, moved, slope

HOT = 2000.0  #: K
FIRST, SECOND = (1.2, 1.6), (1.8, 2.4)  #: Å
FREE = "variables:\n  d: {kind: distance, atoms: [0, 1]}\n"
HELD = FREE + "restraints:\n  - {variable: d, center: 2.0, stiffness: 1.0}\n"
HILLS = (
    "#! FIELDS time d sigma_d height biasf\n#! SET multivariate false\n#! SET kerneltype gaussian\n"
    "0.1 1.4 0.2 0.2 5\n0.2 1.5 0.2 0.1 5\n"
)


@pytest.fixture(scope="module")
def model():
    return make_potential("schnet", "float64")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "free.yaml").write_text(FREE, encoding="utf-8")
    (tmp_path / "held.yaml").write_text(HELD, encoding="utf-8")
    (tmp_path / "moving.yaml").write_text(HELD.replace("1.0}", "1.0, move_to: 3, move_steps: 9}"), encoding="utf-8")
    hills = "metadynamics: {variables: [d], height: 0.1, widths: [0.2], every: 10}\n"
    (tmp_path / "growing.yaml").write_text(FREE + hills, encoding="utf-8")
    (tmp_path / "run.hills").write_text(HILLS, encoding="utf-8")
    (tmp_path / "other.hills").write_text(HILLS.replace("time d sigma_d", "time q sigma_q"), encoding="utf-8")
    write(tmp_path / "two.xyz", pair(np.array([1.5]))[0])
    return tmp_path


def pair(distances: np.ndarray) -> list[ase.Atoms]:
    return [ase.Atoms("O2", [[0, 0, 0], [0.6 * d, 0, 0.8 * d]]) for d in distances]


def options(folder, bias: str, hills: str | None = None, **more) -> FreeEnergyDifference:
    files = {"structure": str(folder / "two.xyz"), "bias": str(folder / bias), "hills": hills and str(folder / hills)}
    sampling = Sampling(temperature=HOT, **files, **more)
    goal = {"variable": "d", "first": FIRST, "second": SECOND, "value": 0.1, "error": 0.05}
    return FreeEnergyDifference(kind="free_energy_difference", sampling=sampling, **goal)


def logarithm(model, distances: np.ndarray) -> np.ndarray:
    """Of the probability density of distances, without a constant."""
    energies = [result.energy for result in model.predict(pair(distances), check=False)]
    return 2 * np.log(distances) - np.array(energies) / (KB * HOT)


def exact(model) -> float:
    """eV."""
    shares = []
    for ends in (FIRST, SECOND):
        d = np.linspace(*ends, 81)
        shares.append(np.trapezoid(np.exp(logarithm(model, d)), d))
    return -KB * HOT * np.log(shares[1] / shares[0])


def bias_energy(bias: str, hills: str | None, d: np.ndarray) -> np.ndarray:
    """eV."""
    held = 0.5 * (d - 2.0) ** 2 if bias == "held.yaml" else 0.0 * d
    heights = ((1.4, 0.16), (1.5, 0.08))  # less than in the file by biasf/(biasf - 1)
    return held if hills is None else held + sum(h * np.exp(-0.5 * ((d - c) / 0.2) ** 2) for c, h in heights)


def drawn(model, one: FreeEnergyDifference, bias: str, hills: str | None, count: int = 300) -> Ensemble:
    """Frames that lie as those of an endless run would."""
    made = Ensemble(one.sampling, model, "float64", pair(np.array([1.5]))[0], 0)
    nodes, d = np.linspace(1.0, 2.8, 91), np.linspace(1.0, 2.8, 3001)
    density = np.exp(np.interp(d, nodes, logarithm(model, nodes)) - bias_energy(bias, hills, d) / (KB * HOT))
    whole = np.cumsum(density) / density.sum()
    distances = np.interp((np.arange(count) + 0.5) / count, whole, d)
    frames = np.array([atoms.positions for atoms in pair(distances)])
    with model.scope():
        made.restore({"positions": frames, "momenta": np.zeros((2, 3)), "exponents": np.zeros(count), "runs": np.array(1)})
        made.exponents = np.asarray(made._energies(model.device_params, made.graphs)) / (KB * HOT)
    return made


@pytest.mark.parametrize(
    ("bias", "hills"), [pytest.param("free.yaml", None, marks=pytest.mark.slow), ("held.yaml", "run.hills")]
)
def test_it_is_exact_with_and_without_a_bias_also_at_other_parameters(bias, hills, folder, model):
    one = options(folder, bias, hills, least=0.1)
    target = FreeEnergyGap(one, drawn(model, one, bias, hills))
    d = np.linspace(1.0, 2.8, 7)
    values, energies = target.ensemble.bias.at(np.array([atoms.positions for atoms in pair(d)]))
    expected = bias_energy(bias, hills, d)
    assert values[:, 0] == pytest.approx(d) and energies - energies[0] == pytest.approx(expected - expected[0])
    with model.scope():
        params = model.device_params
        other = moved(params, params["params"], 0.2)
        before, after = exact(model), exact(with_params(model, other))
        assert abs(after - before) > 0.02
        assert target.measure(params).values == pytest.approx([before], abs=3e-3)
        assert target.measure(other).values == pytest.approx([after], abs=3e-3)
        assert target.ensemble.runs == 1
        found, expected = slope(target, params, direction(model.params))
    assert found == pytest.approx(expected, rel=1e-5) and abs(found) > 1e-3


def test_a_range_that_no_run_visits_is_one_line(folder, model):
    one = options(folder, "free.yaml").model_copy(update={"second": (3.0, 3.5)})
    target = FreeEnergyGap(one, drawn(model, one, "free.yaml", None, 20))
    with pytest.raises(SimulationError, match=r"none of 20 frames lies between 3 and 3.5; d went from 1\.") as error:
        target.measure(model.params)
    assert "\n" not in str(error.value)


WRONG = {
    "no bias": ({"bias": None}, {}, "sampling.bias is missing"),
    "no variables": ({"bias": None, "hills": "run.hills"}, {}, "hills needs bias"),
    "order": ({}, {"first": [2.0, 1.0]}, "from a lower to an upper value"),
    "variable": ({}, {"variable": "q"}, "free.yaml: there is no variable 'q'; it has d"),
    "moves": ({"bias": "moving.yaml"}, {}, "moving.yaml: a restraint moves"),
    "grows": ({"bias": "growing.yaml"}, {}, "growing.yaml: hills would be added"),
    "other hills": ({"hills": "other.hills"}, {}, "hills on 'q'"),
    "no file": ({"bias": "none.yaml"}, {}, "none.yaml: cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(name, folder, model):
    of_sampling, of_target, message = WRONG[name]
    sampling = {"structure": "two.xyz", "temperature": HOT, "bias": "free.yaml"} | of_sampling
    target = {
        "kind": "free_energy_difference",
        "variable": "d",
        "first": FIRST,
        "second": SECOND,
        "value": 0.1,
        "error": 0.1,
    }
    plain = {"model": "m", "data": {"train": "d.xyz"}, "targets": [target | {"sampling": sampling} | of_target]}
    with pytest.raises(MLFFError, match=message) as error, model.scope():
        make_targets(make_refinement(plain, "test", folder), model, "float32")
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("hills", [None, "run.hills"])
def test_a_run_gives_it_within_its_error(hills, folder, model):
    """Walls keep the atoms together; weights take them off."""
    (folder / "walls.yaml").write_text(
        FREE + "restraints:\n  - {variable: d, lower: 1.1, upper: 2.6, stiffness: 50}\n", encoding="utf-8"
    )
    one = options(folder, "walls.yaml", hills, frames=4000, every=20, equilibration=500, timestep=0.5, tau=30.0)
    atoms = pair(np.array([1.5]))[0]
    target = FreeEnergyGap(one, Ensemble(one.sampling, model, "float32", atoms, 0))
    with model.scope():
        target.ensemble.positions, target.ensemble.cells = atoms.positions[None], atoms.cell.array[None]
        values, errors = target.fresh(model)
    assert abs(values[0] - exact(model)) < 3 * errors[0] and errors[0] < 0.03, (values, errors, exact(model))


def test_hills_push_as_they_weigh(folder, model):
    """Forces of the bias of a run are those of its energy."""
    one = options(folder, "held.yaml", "run.hills")
    fixed = FixedBias(one.sampling, pair(np.array([1.5]))[0])
    step = 1e-5
    distances = np.array([1.3, 1.3 - step, 1.3 + step])
    positions = np.array([atoms.positions for atoms in pair(distances)])
    with model.scope():
        cells, steps = np.broadcast_to(np.eye(3), (3, 3, 3)), np.zeros(3, np.int64)
        forces = np.asarray(fixed._pushed(positions, cells, steps).forces)
    energies = bias_energy("held.yaml", "run.hills", distances)
    assert forces[0, 1] @ [0.6, 0, 0.8] == pytest.approx(-(energies[2] - energies[1]) / (2 * step), rel=1e-6)
