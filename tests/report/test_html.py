"""The HTML report: whole, without network, everything in it, and harmless whatever names and texts files hold."""

import base64
import hashlib
import json
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase.build import bulk, molecule
from typer.testing import CliRunner

from mlff.basics.errors import DataError, ModelFileError
from mlff.certificate.certificate import Certificate
from mlff.certificate.line import Line
from mlff.certificate.scans import Scan
from mlff.cli import app
from mlff.data.structure import Structure
from mlff.report.html import write_report
from mlff.training import parity
from mlff.training.metrics import compare
from mlff.training.parity import Parity, Points
from tests.conftest import over_models
from tests.potentials import lennard_jones, morse

VOID = {"meta", "input"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>$x^$ & \"'"


class Page(HTMLParser):
    """What a browser makes of a page: elements, attributes, texts; balanced or an AssertionError."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.links, self.open, self.texts, self.scripts = [], [], [], [], []
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)) and not any(name.startswith("on") for name in names), (tag, names)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def structures(self) -> list[dict]:
        """What the viewer is given."""
        return json.loads(self.scripts[0])["structures"] if len(self.scripts) > 1 else []


def waters(count, rng, stress=False, source="water.xyz", repeat=1):
    """Labelled structures, and results with larger errors the later they come."""
    structures, results = [], []
    for k in range(count):
        atoms = molecule("H2O") if not stress else bulk("Cu", cubic=True)
        atoms = atoms * (repeat, 1, 1) if stress else atoms
        f, e, s = rng.normal(size=(len(atoms), 3)), rng.normal(-100, 1), rng.normal(0, 0.01, (3, 3)) if stress else None
        structure = Structure.from_atoms(atoms, source=f"{source}, structure {k}", energy=e, forces=f, stress=s)
        structures.append(structure)
        off = 0.01 * (k + 1)
        results.append(SimpleNamespace(energy=e + off, forces=f + off, stress=None if s is None else s + off))
    return structures, results


def measured(structures, results, environments=None):
    return compare(structures, results, environments), Parity.of(structures, results, environments)


def certificate(name="kinks"):
    r = np.linspace(0.5, 4.0, 300)
    scans = (Scan("H-H", r, (r - 1) ** 2 - 1, 2 * (r - 1), kinks=(1.5,)), Scan(f"{name} 1 of structure 0", r, r**2, 2 * r))
    lines = (
        Line(name, 1, "", 0, f"a note on {name}"),
        Line("rounding", 0.01, "meV", 1.0, "3 structures"),
        Line("drift", None, "meV/atom/ps", 0.5, "could not be run"),
        Line("RMSE", 3.0, "meV", None, "for information"),
    )
    return Certificate(lines, scans, full=(Line("stability", 0.3, "of 1", 0.9, "long", least=True),))


def make_run(folder, name="validation", potential=None, note="kinks"):
    """A run directory with everything that training and the certificate write."""
    folder.mkdir(parents=True)
    data = waters(14, np.random.default_rng(0), source=name)
    metadata = {
        "config": {"data": {"train": name}, "seed": 0},
        "formulas": {"H2O": 14},
        "data": {"train": "ab" * 32},
        "training": {"epochs": 3, "best_epoch": 2, "seconds": 5.0, "finished": "2026-11-29T12:00:00+00:00"},
        "versions": {"mlff": "0.1.0"},
        "errors": {name: measured(*data)[0].to_dict()},
        "certificate": certificate(note).to_dict(),
    }
    potential = replace(potential or morse(), metadata=metadata)
    potential.save(folder / "model.safetensors")
    parity.write(folder / parity.FILE, potential.fingerprint, {name: measured(*data)[1]})
    lines = [{"epoch": k, "train_loss": 1 / k, "train_forces_rmse": 9 / k, "valid_forces_rmse": 9 / k} for k in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.json").write_text(json.dumps([{"started": "2026-11-29T11:59:00+00:00", "command": f"mlff train {name}"}]))
    return potential


def report(potential, model, out, sets=None):
    """The page of a report that is written; what holds for all of them is looked at."""
    write_report(potential, model, out, sets)
    page = Page(out)
    assert "http" not in page.source.replace("http-equiv", "")
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not set(page.tags) & {"link", "img", "iframe", "object", "embed", "base", "form"}
    assert out.stat().st_size < 5_000_000
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.source, "the browser runs no other script"
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []
    return page


def test_a_run(tmp_path):
    run = tmp_path / "water"
    potential = make_run(run)
    page = report(potential, run / "model.safetensors", run / "report.html")
    for text in ("water", "H2O (14)", "2026-11-29 12:00 UTC", "3 epochs", "mlff train validation", "ab" * 32, "4.00 Å"[:3]):
        assert text in page.text, text
    for line in (*certificate().lines, *certificate().full):
        assert line.name in page.text and line.note in page.text
    assert "Certificate: 3 of 4 lines fail: kinks; drift; stability" in page.text
    assert page.tags.count("svg") == 2 + 2 + 2, "curves, parity of energies and forces, scans"
    assert [item["caption"].split(",")[1] for item in page.structures] == [f" number {k}" for k in range(13, 3, -1)]
    assert page.structures[0]["symbols"] == ["O", "H", "H"] and len(page.structures[0]["errors"]) == 9


@over_models()
def test_a_model_file_alone_says_what_is_missing(name, tmp_path, potentials):
    potential = potentials(name, "float32")
    potential.save(tmp_path / "m.safetensors")
    page = report(potential, tmp_path / "m.safetensors", tmp_path / "r.html")
    assert "H C O Si" in page.text and "No certificate" in page.text
    for missing in (
        "holds no errors",
        "No metrics.jsonl",
        "no predictions are stored beside this model",
        "mlff certify MODEL",
    ):
        assert missing in page.text, missing
    assert not page.structures and "svg" not in page.tags


def test_names_are_harmless(tmp_path):
    run = tmp_path / "<script>alert(2)"
    potential = make_run(run, name=HOSTILE, note=HOSTILE)
    page = report(
        potential,
        run / "model.safetensors",
        run / "report.html",
        {f"b{HOSTILE}": measured(*waters(2, np.random.default_rng(1), source=HOSTILE))},
    )
    assert page.tags.count("script") == 2 and "alert" not in page.scripts[1]
    assert HOSTILE in page.text and f"b{HOSTILE}" in page.text
    assert page.structures[0]["caption"].startswith(f"b{HOSTILE}, number 1")


def test_a_committee(tmp_path):
    run = tmp_path / "committee"
    potential = replace(make_run(run), members=2)
    page = report(potential, tmp_path / "committee.safetensors", tmp_path / "r.html")
    assert "Of validation: no predictions are stored beside this model" in page.text
    assert "mean of 2 members" in page.text and "validation" in page.text and "No metrics.jsonl" in page.text


def test_cells_and_stresses(tmp_path):
    sets = {"copper": measured(*waters(3, np.random.default_rng(0), stress=True))}
    page = report(lennard_jones(), tmp_path / "m.safetensors", tmp_path / "r.html", sets)
    assert page.structures[0]["cell"] == pytest.approx(np.diag([3.61] * 3).ravel())
    assert "stress (meV/Å³)" in page.text and page.tags.count("svg") == 3


def test_single_atoms_and_sets_without_forces(tmp_path):
    atoms = [Structure([z], np.zeros((1, 3)), np.zeros((3, 3)), [False] * 3, energy=-float(z)) for z in (1, 6)]
    results = [SimpleNamespace(energy=-z + 0.1 * z, forces=np.zeros((1, 3)), stress=None) for z in (1, 6)]
    page = report(morse(), tmp_path / "m.safetensors", tmp_path / "r.html", {"atoms": measured(atoms, results)})
    assert [item["symbols"] for item in page.structures] == [["C"], ["H"]]
    assert page.structures[0]["errors"] is None and page.structures[0]["cell"] is None


def test_many_large_sets_stay_small(tmp_path):
    rng = np.random.default_rng(0)
    sets = {f"set {k}": measured(*waters(12, rng, stress=True, repeat=125)) for k in range(2)}
    sets |= {f"set {k}": sets["set 0"] for k in range(2, 12)}
    page = report(lennard_jones(), tmp_path / "m.safetensors", tmp_path / "r.html", sets)
    assert all(f"set {k}" in page.text for k in range(12)) and len(page.structures) == 80
    assert "The first 8 of 12 sets" in page.text


@pytest.mark.parametrize(
    "metadata",
    [
        {"errors": {"a": 3}},
        {"errors": {"a": {"structures": "many"}}},
        {"certificate": {"lines": [{"name": "x", "passed": True}]}},
        {"certificate": {"lines": [], "scans": [{"name": "x", "distances": [1, 1], "energies": [0, 0], "kinks": []}]}},
        {"training": 5},
        {"training": {"seconds": "long", "epochs": 1}},
        {"versions": [1]},
        {"formulas": {"H2O": "many"}},
    ],
)
def test_metadata_that_make_no_sense(metadata, tmp_path):
    (tmp_path / "r.html").write_text("old")
    with pytest.raises(ModelFileError, match=r"m\.safetensors: its metadata or the files beside it cannot be shown"):
        write_report(replace(morse(), metadata=metadata), tmp_path / "m.safetensors", tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "old"


def test_parity_keeps_the_largest_errors():
    structures, results = waters(30, np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(30)
    structures, results = [structures[k] for k in order], [results[k] for k in order]
    found = Parity.of(structures, results)
    errors = [np.sqrt(np.mean((r.forces - s.forces) ** 2)) for s, r in zip(structures, results, strict=True)]
    assert [item.index for item in found.worst] == np.argsort(errors)[::-1][:10].tolist()
    assert found.worst[0].index == compare(structures, results).forces_rmse_of_structures["index"]
    assert found.worst[0].energy_error == pytest.approx(1000 * 0.3 / 3)
    assert found.forces.rmse == pytest.approx(np.sqrt(np.mean(np.square(errors))))


def test_large_structures_and_many_points_are_not_kept():
    large = waters(2, np.random.default_rng(0), stress=True, repeat=126)
    assert len(large[0][0]) > parity.LARGEST and Parity.of(*large).worst == ()
    x = np.random.default_rng(0).normal(size=30_000)
    points = Points.of(x, x + 0.1)
    again = Points.from_dict(json.loads(json.dumps(points.to_dict())))
    assert len(again.reference) == 10_000 and again.count == 30_000 and again.rmse == pytest.approx(0.1)
    assert set(again.reference) <= {float(f"{v:.6g}") for v in x.tolist()}


def test_parity_files(tmp_path):
    file, compared = tmp_path / "parity.json", measured(*waters(3, np.random.default_rng(0)))[1]
    assert parity.read(file, "a") == {}
    parity.write(file, "a", {"test": compared})
    again = parity.read(file, "a")["test"]
    assert np.allclose(again.forces.predicted, compared.forces.predicted, rtol=1e-5)
    assert [item.structure.source for item in again.worst] == [f"water.xyz, structure {k}" for k in (2, 1, 0)]
    assert parity.read(file, "b") == {}, "of another potential"
    content = json.loads(file.read_text())
    for damage in ({"worst": [{}]}, {"energy": {"reference": [1], "predicted": [1, 2], "rmse": 0, "mae": 0, "count": 1}}):
        file.write_text(json.dumps(content | {"sets": {"test": content["sets"]["test"] | damage}}))
        with pytest.raises(DataError, match=r"parity\.json: is damaged .* remove it"):
            parity.read(file, "a")


def test_scans_keep_their_minima():
    r = np.arange(0.5, 5, 0.01)
    scan = Scan("H-H", r, np.sin(20 * r) / r, np.cos(r), kinks=(1.0, 2.5))
    again = Scan.from_dict(json.loads(json.dumps(scan.to_dict())))
    assert len(scan.minima) > 10 and again.minima == pytest.approx(scan.minima) and again.kinks == scan.kinks
    assert len(again.distances) < 0.4 * len(r)
    many = Certificate((), (scan, *[replace(scan, name=f"{k}", kinks=()) for k in range(60)]))
    assert len(many.to_dict()["scans"]) == 24 and many.shown_scans[0] is scan


def test_commands(tmp_path):
    run = tmp_path / "run"
    make_run(run)
    result = CliRunner().invoke(app, ["info", str(run), "--html", str(tmp_path / "a.html")])
    assert result.exit_code == 0 and "lines fail" in Page(tmp_path / "a.html").text
    from ase.io import write

    atoms = molecule("H2O")
    atoms.info["REF_energy"] = -2069.0
    write(tmp_path / "one.xyz", atoms)
    arguments = [
        "evaluate",
        str(run),
        str(tmp_path / "one.xyz"),
        "--key",
        "energy=REF_energy",
        "--html",
        str(tmp_path / "b.html"),
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    page = Page(tmp_path / "b.html")
    assert "one.xyz" in page.text and len(page.structures) == 11
    result = CliRunner().invoke(app, ["info", str(tmp_path / "one.xyz"), "--html", str(tmp_path / "c.html")])
    assert result.exit_code == 1 and "--html has no effect on data" in result.stderr and not (tmp_path / "c.html").exists()


def test_the_files_of_the_page_are_in_the_package():
    listed = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    there = {path.name for path in files("mlff.report").iterdir() if path.name.endswith((".js", ".css"))}
    assert set(listed["mlff.report"]) == there
