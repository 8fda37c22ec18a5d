"""The map of structures: principal components and nearest neighbours against their definitions, and the command."""

import json

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import write
from typer.testing import CliRunner

from mlff.basics.errors import DataError
from mlff.cli import app
from mlff.data.dataset import read_dataset
from mlff.properties.feature_map import feature_map, features, nearest_kinds, principal_components, whitened
from tests.conftest import make_potential


def test_principal_components_are_those_of_the_covariance():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 4)) * [5.0, 2.0, 0.5, 0.1] + 7
    points, shares = principal_components(rows)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    np.testing.assert_allclose(shares, values[::-1][:2] / values.sum(), rtol=1e-10)
    np.testing.assert_allclose(np.abs(points), np.abs((rows - rows.mean(axis=0)) @ vectors[:, ::-1][:, :2]), atol=1e-9)
    flat, none = principal_components(np.ones((5, 1)))
    assert flat.shape == (5, 2) and np.all(flat == 0) and np.all(none == 0)


def test_the_nearest_vote_and_none_for_itself():
    known = np.array([[0.0], [1.0], [10.0], [11.0], [12.0]])
    kinds = np.array(["a", "b", "b", "c", "c"])
    assert nearest_kinds(known, kinds, np.array([[0.1], [11.4]]), 3).tolist() == ["b", "c"]
    assert nearest_kinds(known, kinds, known, 1, itself=False).tolist() == ["b", "a", "c", "b", "c"]
    assert nearest_kinds(known, kinds, known, 1).tolist() == kinds.tolist()
    assert nearest_kinds(known, kinds, np.array([[0.4]]), 2).tolist() == ["a"]  # of equally many the nearest


def test_few_points_are_not_whitened_until_all_are_as_far_apart():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 6)) * [9.0, 3.0, 1.0, 0.3, 0.1, 1e-5] @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    even = whitened(rows, rows)
    np.testing.assert_allclose(np.cov(even.T, bias=True), np.eye(5), atol=1e-8)
    mixed = rows @ rng.normal(size=(6, 6))
    distances = [np.linalg.norm(x[:20] - x[20:40], axis=1) for x in (even, whitened(mixed, mixed))]
    np.testing.assert_allclose(*distances, rtol=1e-2)
    assert whitened(rows[:25], rows).shape == (300, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng, frames = tmp_path_factory.mktemp("map"), np.random.default_rng(0), []
    for number in range(12):
        atoms = bulk("Si", cubic=True) if number % 2 else molecule("CH3OH")
        atoms.rattle(0.02, rng=rng)
        atoms.info = {"phase": "crystal" if number % 2 else "molecule", "time": 0.5 * number}
        frames.append(atoms)
    write(folder / "data.xyz", frames)
    make_potential("schnet").save(folder / "model.safetensors")
    return folder


def test_batches_do_not_mix_features_of_structures(data):
    potential, structures = make_potential("schnet"), read_dataset(data / "data.xyz").structures
    together = features(potential, structures)
    for structure, rows in zip(structures[:3], together, strict=False):
        (alone,) = features(potential, [structure])
        assert len(rows) == len(structure)
        np.testing.assert_allclose(alone, rows, atol=1e-4 * np.abs(rows).max())


def test_kinds_are_classified_and_numbers_are_not(data):
    potential, read = make_potential("schnet"), read_dataset(data / "data.xyz")
    found = feature_map(potential, read, "phase")
    assert found.right == 1.0 and found.kinds == ["crystal", "molecule"] and "for 100.0 % of the points" in found.text()
    found = feature_map(potential, read, "time")
    assert found.right is None and found.values.tolist() == [0.5 * k for k in range(12)]
    atoms = feature_map(potential, read, "element", atoms=True)
    assert len(atoms.points) == 6 * (8 + 6) and atoms.kinds == ["C", "H", "O", "Si"]
    with pytest.raises(DataError, match=r"structure 0: has no info key 'color' \(there are phase, time\)"):
        feature_map(potential, read, "color")
    with pytest.raises(DataError, match="2 structures make no map"):
        feature_map(potential, read.subset([0, 1]))


def call(folder, *arguments):
    files = folder / "model.safetensors", folder / "data.xyz", "--out", folder / "map.png", "--quiet"
    return CliRunner().invoke(app, ["map", *map(str, files), *arguments])


def test_the_command_draws_the_map_and_writes_its_numbers(data):
    result = call(data, "--color", "phase", "--json", str(data / "map.json"))
    assert result.exit_code == 0 and "12 points" in result.stdout, result.stderr
    content = json.loads((data / "map.json").read_text())
    assert np.shape(content["points"]) == (12, 2) and content["right"] == 1.0 and len(content["predicted"]) == 12
    assert (data / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--color", "element"], "add --atoms"),
        (["--color", "energy"], "structure 0: has no energy"),
        (["--json", "map.png.gz"], "not written compressed"),
    ],
)
def test_wrong_use_is_one_line(data, arguments, message):
    result = call(data, *arguments)
    assert result.exit_code == 1 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr
