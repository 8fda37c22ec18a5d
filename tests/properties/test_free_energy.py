"""Free energies of distributions that are known: plain, under a bias, under hills; errors that are as large as the scatter."""

import json

import numpy as np
import pytest
from scipy.stats import norm
from typer.testing import CliRunner

from mlff.basics.errors import ConfigError, DataError
from mlff.basics.units import KB
from mlff.cli import app
from mlff.properties.free_energy import free_energy, histogram_profile, offsets, sum_of_hills
from mlff.simulation.hills import HillsTable, read_hills

KELVIN = 400.0
THERMAL = KB * KELVIN


def gaussian(rng, count, keep=0.9):
    """Correlated values (count,) of mean 0 and variance 1."""
    values, noise = np.empty(count), rng.standard_normal(count)
    values[0] = noise[0]
    for k in range(1, count):
        values[k] = keep * values[k - 1] + np.sqrt(1 - keep**2) * noise[k]
    return values


def write_log(path, values, bias=None):
    records = [
        {"step": k, "time_ps": 0.1 * k, "cv_q": float(value), "bias_ev": 0.0 if bias is None else float(bias[k])}
        for k, value in enumerate(values)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def hills():
    rng = np.random.default_rng(2)
    centers = rng.uniform(-1, 1, (300, 1))
    return HillsTable(
        ("q",), 0.1 * np.arange(1, 301), centers, np.full((300, 1), 0.2), np.full(300, 0.01), 5.0, np.array([np.inf])
    )


def test_a_gaussian_is_a_parabola_with_honest_errors():
    """Twenty runs: the errors that are told are the scatter that there is."""
    rng, edges = np.random.default_rng(0), np.linspace(-1.75, 1.75, 8)
    runs = [histogram_profile(gaussian(rng, 4000), np.zeros(4000), edges, KELVIN) for _ in range(20)]
    exact = -THERMAL * np.log(np.diff(norm.cdf(edges)))
    energies = np.array([run[0] - run[0][3] for run in runs])
    np.testing.assert_allclose(energies.mean(axis=0), exact - exact[3], atol=0.0015)
    told = np.array([run[1] for run in runs])[:, [0, 6]].mean()
    seen = energies.std(axis=0, ddof=1)[[0, 6]].mean()
    assert 0.6 < told / seen < 1.5
    naive = THERMAL / np.sqrt(4000 * 0.05)
    assert told > 2 * naive, "values that are correlated count less"


def test_a_bias_is_taken_off_by_weights(tmp_path):
    """A variance of 1 under the bias kT q²/4: without it 2."""
    values = gaussian(np.random.default_rng(1), 20_000, keep=0.5)
    log = write_log(tmp_path / "md.jsonl", values, THERMAL * values**2 / 4)
    found = free_energy([log], temperature=KELVIN, bins=11, skip=0.0, limits=(-2.2, 2.2))
    exact = THERMAL * found.values**2 / 4
    away = np.abs(found.energies - exact - (found.energies[5] - exact[5]))
    assert (away < 4 * found.errors + 1e-3).all() and found.from_hills is None
    assert found.energies[0] < 0.7 * THERMAL * found.values[0] ** 2 / 2, "the biased distribution is narrower"


def test_hills_are_summed_with_the_well_tempered_factor(hills):
    grid = np.linspace(-0.5, 0.5, 11)
    piled = np.sum(0.01 * np.exp(-0.5 * ((grid - hills.centers) / 0.2) ** 2), axis=0)
    np.testing.assert_allclose(sum_of_hills(hills, "q", grid, KELVIN), -piled * 5 / 4, atol=1e-12)


def test_a_second_variable_is_integrated_out(hills):
    """A dihedral on which the hills do not depend: the profile is that of the first."""
    wide = np.concatenate([hills.centers, np.zeros((300, 1))], axis=1)
    widths = np.array([[0.2, 1e6]] * 300)
    both = HillsTable(("q", "t"), hills.times, wide, widths, hills.heights, 5.0, np.array([np.inf, 360.0]))
    grid = np.linspace(-0.5, 0.5, 11)
    np.testing.assert_allclose(sum_of_hills(both, "q", grid, KELVIN), sum_of_hills(hills, "q", grid, KELVIN), atol=1e-6)


def test_offsets_are_those_of_a_flat_bias(hills):
    """c(t) of Tiwary and Parrinello: of a bias that is V everywhere it is V, and it lies within any other."""
    flat = HillsTable(("t",), hills.times, np.zeros((300, 1)), np.full((300, 1), 1e6), hills.heights, 5.0, np.array([360.0]))
    np.testing.assert_allclose(offsets(flat, np.array([0.0, 0.1, 30.0]), KELVIN), [0, 0.01, 3.0], atol=1e-6)
    times = np.linspace(0, 30, 20)
    grown = offsets(hills, times, KELVIN)
    assert (np.diff(grown) > 0).all()
    assert grown[-1] <= np.sum(0.01 * np.exp(-0.5 * ((np.linspace(-1, 1, 200) - hills.centers) / 0.2) ** 2), axis=0).max()


def test_the_command(tmp_path):
    log = write_log(tmp_path / "md.jsonl", gaussian(np.random.default_rng(3), 3000))
    (tmp_path / "md.run.json").write_text(json.dumps([{"settings": {"temperature": KELVIN}}]))

    def call(*more):
        return CliRunner().invoke(app, [str(word) for word in ("free-energy", log, *more)])

    files = tmp_path / "profile.json", tmp_path / "profile.png"
    result = call("--bins", 10, "--json", files[0], "--plot", files[1])
    assert result.exit_code == 0, result.stderr
    written = json.loads(files[0].read_text())
    assert "free energy at 400 K" in result.stdout and files[1].stat().st_size > 1000
    assert written["variable"] == "q" and min(x for x in written["free_energy_ev"] if x is not None) == 0.0
    assert "there is no variable 'p'; known: q" in call("--variable", "p").stderr
    (tmp_path / "md.run.json").unlink()
    assert "does not say the temperature of the run; give --temperature" in call().stderr
    assert "would overwrite" in call("--json", log).stderr or call("--json", log).exit_code == 1


def test_logs_and_hills_that_do_not_fit_are_said(tmp_path):
    short = write_log(tmp_path / "short.jsonl", np.zeros(20))
    with pytest.raises(DataError, match="20 values are too few for a profile"):
        free_energy([short], temperature=KELVIN)
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"step": 0, "time_ps": 0.0}\n')
    with pytest.raises(DataError, match="has no collective variables; run mlff md with --bias"):
        free_energy([plain], temperature=KELVIN)
    (tmp_path / "short.run.json").write_text('[{"bias": {"restraints": [{"move_to": 1.0}]}}]')
    with pytest.raises(DataError, match="a restraint of this run moved"):
        free_energy([short], temperature=KELVIN)
    (tmp_path / "short.run.json").write_text('[{"bias": null}]')
    with pytest.raises(ConfigError, match="the temperature must be positive"):
        free_energy([short], temperature=0.0)
    for text in ("", "#! FIELDS time q\n1 2\n", "#! FIELDS time q sigma_q height biasf\n1 2 nan 4 5\n", "\x00"):
        (tmp_path / "md.hills").write_text(text)
        with pytest.raises(DataError, match="md.hills: "):
            read_hills(tmp_path / "md.hills")
