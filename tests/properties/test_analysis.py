"""Trajectories whose distributions, diffusion and vibrations are known."""

import json

import ase
import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.io import read, write
from typer.testing import CliRunner

from mlff.basics.errors import ConfigError, DataError
from mlff.cli import app
from mlff.properties.analysis import analyze
from mlff.properties.distribution import bonds_and_angles, radial_distributions
from mlff.properties.frames import Frames, read_frames
from mlff.properties.motion import diffusion, mean_square_displacement, vibrational_density
from tests.potentials import lennard_jones

SKEWED = np.array([[9.0, 0, 0], [5.0, 8.0, 0], [-3.0, 4.0, 9.0]])


def frames(positions, numbers, cell=None, interval=0.01, velocities=None, masses=None) -> Frames:
    """Frames of positions (t, n, 3) as they are."""
    count, n = positions.shape[:2]
    pbc = np.full(3, cell is not None)
    cells = np.broadcast_to(np.zeros((3, 3)) if cell is None else cell, (count, 3, 3))
    masses = np.ones(n) if masses is None else masses
    return Frames("test", np.asarray(numbers), masses, pbc, cells, positions, velocities, interval, {})


@pytest.mark.parametrize("r_max", [None, 10.0])  # 10 Å is more than half the cell: images count
def test_an_ideal_gas_has_no_structure(r_max):
    rng = np.random.default_rng(0)
    gas = frames(rng.random((60, 60, 3)) @ SKEWED, [18] * 36 + [29] * 24, SKEWED)
    for item in radial_distributions(gas, r_max):
        shells = np.array_split(np.arange(len(item.r)), 4)[2:]
        means = [np.average(item.g[shell], weights=item.r[shell] ** 2) for shell in shells]
        assert means == pytest.approx([1.0, 1.0], abs=0.06), item.pair


def test_a_crystal_has_its_shells_whatever_the_cell():
    conventional, primitive = bulk("Cu", cubic=True), bulk("Cu")
    sheared = primitive.copy()
    sheared.set_cell(np.array([[1, 0, 0], [2, 1, 0], [-1, 1, 1]]) @ primitive.cell.array)
    shells = {2.5526: 12, 3.61: 6, 4.4213: 24}
    for atoms in (conventional, primitive, sheared):
        still = frames(np.repeat(atoms.positions[None], 2, axis=0), atoms.numbers, atoms.cell.array)
        (item,) = radial_distributions(still, 4.9)
        assert item.r[0] == pytest.approx(0.5 * (item.r[1] - item.r[0])), "the middle of a bin"
        assert item.pair == "Cu-Cu" and item.peak == pytest.approx(2.5526, abs=0.02)
        assert item.neighbors == pytest.approx(12) and 2.6 < item.minimum < 3.6
        for (distance, count), before in zip(shells.items(), (0, 12, 18), strict=True):
            around = (item.r > distance - 0.1) & (item.r < distance + 0.1)
            assert item.coordination[around][[0, -1]] == pytest.approx([before, before + count]), distance


def test_bonds_and_angles_of_water_across_the_boundary():
    water = molecule("H2O", cell=SKEWED, pbc=True)
    water.positions += 0.02
    rng = np.random.default_rng(1)
    moved = water.positions + rng.normal(0, 0.02, (200, 3, 3))
    for cell in (None, SKEWED):
        bonds, angles, broken = bonds_and_angles(frames(moved, water.numbers, cell))
        assert [(b.name, b.count) for b in bonds] == [("H-O", 2)] and [(a.name, a.count) for a in angles] == [("H-O-H", 1)]
        assert bonds[0].mean == pytest.approx(water.get_distance(0, 1), abs=0.005)
        assert bonds[0].std == pytest.approx(0.02 * np.sqrt(2), rel=0.15)
        assert angles[0].mean == pytest.approx(water.get_angle(1, 0, 2), abs=0.5) and broken == 0
        assert np.sum(bonds[0].density * np.diff(bonds[0].edges)) == pytest.approx(1)
    moved[100:, 1] += 3.0
    assert bonds_and_angles(frames(moved, water.numbers))[2] == 0.5


def walk(seed: int, count: int = 2000, atoms: int = 60, coefficient: float = 0.5, interval: float = 0.01) -> np.ndarray:
    """Random walk (t, n, 3) with this diffusion coefficient, Å²/ps."""
    steps = np.random.default_rng(seed).normal(0, np.sqrt(2 * coefficient * interval), (count, atoms, 3))
    return np.cumsum(steps, axis=0)


def test_diffusion_of_a_random_walk():
    found = [diffusion(frames(walk(seed), [18] * 60, 20 * np.eye(3)))[0] for seed in range(8)]
    exact = 0.5 * (1 - 1 / 60)  # the center of mass is taken as at rest
    values = np.array([item.coefficient for item in found])
    assert all(abs(item.exponent - 1) < 0.1 for item in found)
    assert values.mean() == pytest.approx(exact, abs=3 * values.std() / np.sqrt(8))
    assert all(abs(item.coefficient - exact) < 5 * item.error for item in found)
    assert np.mean([item.error for item in found]) == pytest.approx(values.std(), rel=0.8)


def test_atoms_that_stay_have_no_diffusion_coefficient():
    rng = np.random.default_rng(0)
    (found,) = diffusion(frames(rng.normal(0, 0.1, (500, 10, 3)), [14] * 10, 10 * np.eye(3)))
    assert found.coefficient is None and abs(found.exponent) < 0.1


def test_mean_square_displacement_is_the_sum_it_says():
    moved = walk(0, 50, 3)
    expected = [np.mean(np.sum((moved[lag:] - moved[: 50 - lag]) ** 2, axis=2)) for lag in range(50)]
    np.testing.assert_allclose(mean_square_displacement(moved), expected, atol=1e-9)


def oscillators(count=4000, interval=0.002) -> Frames:
    """Hydrogen at 60 THz and oxygen at 10 THz with random phases, of equal kinetic energy."""
    rng = np.random.default_rng(0)
    time = interval * np.arange(count)[:, None, None]
    rates = np.array([60.0] * 5 + [10.0] * 5)[None, :, None]
    masses = np.array([1.0] * 5 + [16.0] * 5)
    phases = 2 * np.pi * (rates * time + rng.random((1, 10, 3)))
    size = 1 / (2 * np.pi * rates * np.sqrt(masses)[None, :, None])
    velocities = 2 * np.pi * rates * size * np.cos(phases)
    return frames(size * np.sin(phases), [1] * 5 + [8] * 5, None, interval, velocities, masses)


def test_harmonic_oscillators_vibrate_at_their_frequencies():
    found = vibrational_density(oscillators())
    assert sorted(found.peaks) == pytest.approx([10.0, 60.0], abs=0.1)
    assert found.highest == pytest.approx(250.0)
    assert np.trapezoid(found.density, found.frequency) == pytest.approx(1)
    shares = {symbol: np.trapezoid(part, found.frequency) for symbol, part in found.by_element.items()}
    assert shares["H"] == pytest.approx(0.5, abs=0.02) and shares["O"] == pytest.approx(0.5, abs=0.02)
    expected = 0.5 * np.cos(2 * np.pi * 60 * found.time) + 0.5 * np.cos(2 * np.pi * 10 * found.time)
    np.testing.assert_allclose(found.correlation, expected, atol=0.03)


def written(path, positions, numbers, cell, **info) -> str:
    """A trajectory of positions that are wrapped into the cell, 10 fs apart."""
    images = [ase.Atoms(numbers, positions=p, cell=cell, pbc=cell is not None) for p in positions]
    for k, image in enumerate(images):
        image.wrap()
        image.info |= {name: value(k) for name, value in info.items()}
    write(path, images)
    return str(path)


def test_wrapped_atoms_are_followed_across_the_boundary(tmp_path):
    moved = walk(3, 300, 8) + 5
    path = written(tmp_path / "walk.traj", moved, [18] * 8, SKEWED, time_ps=lambda k: 0.01 * k)
    found = read_frames(path)
    assert found.interval == pytest.approx(0.01) and found.velocities is None
    steps = np.diff(found.positions, axis=0)
    np.testing.assert_allclose(steps, np.diff(moved, axis=0), atol=1e-9)


def test_what_frames_are_refused(tmp_path):
    jump = np.zeros((3, 2, 3))
    jump[:, 1] = 4.0
    jump[2, 0] = np.array([0.45, 0, 0]) @ SKEWED
    with pytest.raises(DataError, match="atom 0 moves by 0.45 of a cell vector between structures 1 and 2"):
        read_frames(written(tmp_path / "jump.traj", jump, [18, 18], SKEWED), 10.0)
    still = np.zeros((12, 1, 3))
    with pytest.raises(ConfigError, match="give --interval-fs"):
        read_frames(written(tmp_path / "timeless.traj", still, [18], SKEWED))
    with pytest.raises(DataError, match="structures 3 and 4 are"):
        read_frames(written(tmp_path / "uneven.traj", still, [18], SKEWED, time_ps=lambda k: 0.1 * k + 0.05 * (k > 3)))
    path = written(tmp_path / "even.traj", still, [18], SKEWED, time_ps=lambda k: min(0.1 * k, 1.05))
    assert len(read_frames(path)) == 11  # the last one follows sooner
    with pytest.raises(ConfigError, match="are 100 fs apart, not 5"):
        read_frames(path, 5.0)
    with pytest.raises(ConfigError, match="leaves fewer than 10"):
        analyze(read_frames(path), skip_ps=0.5)
    other = read(path, ":")
    other[3].numbers[:] = 10
    write(tmp_path / "other.traj", other)
    with pytest.raises(DataError, match="structure 3: has other atoms"):
        read_frames(tmp_path / "other.traj")
    write(tmp_path / "one.traj", other[:1])
    with pytest.raises(DataError, match="has 1 frame"):
        read_frames(tmp_path / "one.traj", 1.0)


def test_analyze_reads_what_md_writes(tmp_path):
    model, structure = tmp_path / "copper.safetensors", tmp_path / "copper.xyz"
    lennard_jones().save(model)
    write(structure, bulk("Cu", cubic=True).repeat(2))

    def call(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    out, figures = tmp_path / "run.xyz", (tmp_path / "run.json", tmp_path / "run.png")
    call("md", model, structure, "--out", out, "--steps", 200, "--interval", 4, "--temperature", 300, "-q")
    result = call("analyze", out, "--json", figures[0], "--plot", figures[1], "--r-max", 5)
    assert result.exit_code == 0, result.stderr
    assert "Cu-Cu" in result.stdout and "temperature" in result.stdout and figures[1].stat().st_size > 10_000
    content = json.loads(figures[0].read_text())
    assert content["interval"] == pytest.approx(0.002) and content["vibrations"]["highest"] == pytest.approx(250)
    assert content["radial"][0]["neighbors"] == pytest.approx(12, abs=0.3)
    log = [json.loads(line)["temperature_k"] for line in out.with_suffix(".jsonl").read_text().splitlines()]
    kept = log[content["averages"]["temperature_k"]["discarded"] :]
    assert content["averages"]["temperature_k"]["mean"] == pytest.approx(np.mean(kept))
    frames_read = read_frames(out)
    assert frames_read.columns["temperature_k"] == pytest.approx(log, rel=1e-3)  # velocities and masses are there
    squares = np.sum(frames_read.velocities[-1] ** 2, axis=1) / (units.fs * 1e3) ** 2
    assert 0.5 * np.sum(frames_read.masses * squares) == pytest.approx(1.5 * units.kB * 31 * log[-1], rel=1e-3)
    result = call("analyze", structure)
    assert result.exit_code == 1 and "has 1 frame" in result.stderr
