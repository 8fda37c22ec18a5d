"""Plots: whole PNG files of the right panels from what training and simulation write; one-line errors from anything else."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread

from mlff.basics.errors import DataError
from mlff.basics.files import replacing
from mlff.certificate.certificate import Certificate
from mlff.certificate.line import Line
from mlff.certificate.scans import Scan
from mlff.data.structure import Structure
from mlff.lint.lint import lint
from mlff.report import plots
from tests.data.labelled import crystals, dataset, molecules


def labelled(count, rng, stress=False, forces=True):
    structures, results = [], []
    for _ in range(count):
        f, s, e = rng.normal(size=(9, 3)), rng.normal(0, 0.01, (3, 3)), rng.normal(-7000, 0.3)
        numbers, cell = np.full(9, 14), np.eye(3) * 6
        positions = rng.uniform(0, 6, (9, 3))
        labels = {"energy": e, "forces": f if forces else None, "stress": s if stress else None}
        structures.append(Structure(numbers, positions, cell, np.ones(3, bool), **labels))
        results.append(SimpleNamespace(energy=e + rng.normal(0, 0.01), forces=f + rng.normal(0, 0.05, f.shape), stress=s))
    return structures, results


def width(path):
    """Pixels, after checking that something was drawn."""
    image = imread(path)
    assert image[..., :3].std() > 0.05
    return image.shape[1]


@pytest.mark.parametrize("count", [3, 250])
def test_parity(tmp_path, count):
    rng = np.random.default_rng(0)
    plots.parity(*labelled(count, rng), tmp_path / "two.png")
    plots.parity(*labelled(count, rng, stress=True), tmp_path / "three.png", title="silicon")
    plots.parity(*labelled(count, rng, forces=False), tmp_path / "one.png")
    assert width(tmp_path / "one.png") < width(tmp_path / "two.png") < width(tmp_path / "three.png")


def test_parity_without_labels(tmp_path):
    structures, results = labelled(2, np.random.default_rng(0), forces=False)
    bare = [Structure(s.numbers, s.positions, s.cell, s.pbc) for s in structures]
    with pytest.raises(DataError, match="no labels"):
        plots.parity(bare, results, tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []


def test_learning_curve(tmp_path):
    lines = [
        {"epoch": k, "train_loss": 1 / k, "train_forces_rmse": 300 / k, "valid_forces_rmse": 320 / k if k % 2 else None}
        for k in range(1, 40)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plots.learning_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    plots.learning_curve(tmp_path / "metrics.jsonl", tmp_path / "first.png")
    assert width(tmp_path / "curve.png") == width(tmp_path / "first.png")


def test_layers_and_starts(tmp_path):
    def draw(name, **more):
        lines = [{"epoch": k, "train_loss": 1 / k} | {key: value / k for key, value in more.items()} for k in range(1, 5)]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        plots.learning_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
        plots.layers(tmp_path / "metrics.jsonl", tmp_path / name)
        return width(tmp_path / name), imread(tmp_path / "curve.png")

    norms = {f"{kind}/{layer}": 0.1 for kind in ("gradient", "update", "ratio") for layer in ("layer_0", "head")}
    three, one_start = draw("three.png", **norms)
    four, two_starts = draw("four.png", **norms, **{"saturated/head/hidden": 0.3, "valid_loss/0": 0.5, "valid_loss/1": 0.7})
    assert three < four and not np.array_equal(one_start, two_starts)
    with pytest.raises(DataError, match="holds no norms of layers"):
        draw("none.png")


@pytest.mark.parametrize("moving", [True, False])
def test_md(tmp_path, moving):
    line = {"atoms": 4, "etot_ev": -1.0, "conserved_ev": None, "temperature_k": 300.0, "volume_a3": None}
    lines = [
        line | {"time_ps": 0.1 * k, "volume_a3": 100.0 + k if moving else None, "conserved_ev": -1.0} for k in range(20)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(item) + "\n" for item in lines))
    plots.md(tmp_path / "log.jsonl", tmp_path / "md.png", title="NVE")
    assert (imread(tmp_path / "md.png").shape[0] > 900) == moving


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("", "no records"), ("{a\n", "not a log")])
def test_logs_that_are_none(tmp_path, content, message):
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    for plot in (plots.md, plots.learning_curve):
        with pytest.raises(DataError, match=message):
            plot(tmp_path / "log.jsonl", tmp_path / "plot.png")


def test_a_file_is_whole_or_not_there(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
    with replacing(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    with pytest.raises(DataError, match="no such directory"), replacing(tmp_path / "no" / "out.txt"):
        pass


def test_lint(tmp_path):
    for structures in (crystals(16), molecules(16), molecules(2)):
        data = dataset(structures)
        plots.lint(structures, lint(data), tmp_path / "lint.png", title="data.xyz")
        assert width(tmp_path / "lint.png") == 1500
    bare = [Structure(s.numbers, s.positions, s.cell, s.pbc) for s in structures]
    plots.lint(bare, lint(dataset(bare)), tmp_path / "bare.png")
    with pytest.raises(DataError, match="no structures"):
        plots.lint([], lint(dataset([])), tmp_path / "none.png")


def test_certificate(tmp_path):
    r = np.linspace(0.5, 4.0, 100)
    scan = Scan("H-H", r, (r - 1) ** 2 - 1, 2 * (r - 1), kinks=(1.5,))
    lines = (
        Line("kinks", 1, "", 0, ""),
        Line("rounding", 0.01, "meV", 1.0, ""),
        Line("drift", None, "meV/atom/ps", 0.5, ""),
        Line("RMSE", 3.0, "meV", None, ""),
    )
    bins = [{"name": "inside", "forces_rmse": 10.0}, {"name": "beyond", "forces_rmse": 200.0}]
    long = (Line("stability", 0.3, "of 1", 1.0, "", least=True), Line("nothing held", 0.0, "of 1", 1.0, "", least=True))
    for measured in (
        Certificate(lines, (scan,) * 5, {"test": {"by_distance": bins}}, long),
        Certificate(lines, (scan,)),
        Certificate(lines),
        Certificate((), (scan,)),
    ):
        plots.certificate(measured, tmp_path / "certificate.png", title="model")
        assert width(tmp_path / "certificate.png") == 1920
    with pytest.raises(DataError, match="no curves"):
        plots.certificate(Certificate(()), tmp_path / "none.png")
