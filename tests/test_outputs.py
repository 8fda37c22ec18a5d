"""Outputs are checked before the work: names, folders, formats; and the code page of the terminal is no reason to fail."""

import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import read, write
from typer.testing import CliRunner

from mlff.basics.errors import DataError, FileError
from mlff.basics.files import check_output, check_outputs
from mlff.cli import app
from mlff.report.structures import check_relaxed
from tests.potentials import lennard_jones, morse


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    morse().save(folder / "model.safetensors")
    lennard_jones().save(folder / "copper.safetensors")
    write(folder / "water.xyz", molecule("H2O"))
    copper = bulk("Cu", cubic=True)
    copper.rattle(0.05, seed=0)
    write(folder / "copper.xyz", copper)
    (folder / "folder.html").mkdir()
    (folder / "folder.png").mkdir()
    (folder / "folder.xyz").mkdir()
    return folder


@pytest.fixture
def no_work(monkeypatch):
    """Nothing may be loaded, read or computed."""

    def work(*arguments, **options):
        raise AssertionError("the work began")

    for name in ("simulate.load", "simulate.make_calculator", "dynamics.make_calculator"):
        monkeypatch.setattr(f"mlff.cli.{name}", work)
    for name in ("load", "read_data"):
        monkeypatch.setattr(f"mlff.cli.measure.{name}", work)
    monkeypatch.setattr("mlff.cli.learn.load", work)
    monkeypatch.setattr("mlff.cli.pretraining.load", work)


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("relax M water.xyz --out relaxed", "relaxed: the name tells no format that ASE writes and reads"),
        ("relax M water.xyz --out relaxed.lmp", "relaxed.lmp: the name tells no format"),
        ("relax M water.xyz --out relaxed.png", "relaxed.png: the name tells no format"),
        ("relax M water.xyz --out POSCAR", "POSCAR: vasp does not hold this structure"),
        ("relax M water.xyz --out folder.xyz", "folder.xyz: is a directory"),
        ("relax M water.xyz --out no/relaxed.xyz", "no such directory"),
        ("relax M water.xyz --out a.xyz --trajectory a.xyz.gz", "a.xyz.gz: the name must end in .traj, .xyz, .extxyz"),
        ("relax M water.xyz --out a.xyz --trajectory a.xyz", "a.xyz: is to be written twice"),
        ("md M water.xyz --out folder.xyz --force", "folder.xyz: is a directory"),
        ("md M water.xyz --out a.xyz.gz", "a.xyz.gz: the name must end in .traj"),
        ("md M water.xyz --out a.traj --log a.txt", "a.txt: the name must end in .jsonl"),
        ("md M water.xyz --out a.traj --log no/a.csv", "no such directory"),
        ("md M water.xyz --out a.xyz --log a.xyz", "a.xyz: is to be written twice"),
        ("md M water.xyz --out a.traj --bias no.yaml", "no.yaml: cannot be read (No such file or directory)"),
        ("md M water.xyz --out a.traj --plot a.pdf", "a.pdf: the name must end in .png"),
        ("predict M water.xyz predicted.xyz.gz", "predicted.xyz.gz: the name must end in .xyz, .extxyz"),
        ("predict M water.xyz no/predicted.xyz", "no such directory"),
        ("sample M water.xyz --out a.traj", "a.traj: the name must end in .xyz, .extxyz"),
        ("evaluate M water.xyz --plot folder.png", "folder.png: is a directory"),
        ("evaluate M water.xyz --json a.json.gz", "a.json.gz: is not written compressed; choose a name without .gz"),
        ("evaluate M water.xyz --html a.htm", "a.htm: the name must end in .html"),
        ("evaluate M water.xyz --html no/a.html", "no such directory"),
        ("info M --html folder.html", "folder.html: is a directory"),
        ("info M --html no/a.html", "no such directory"),
        ("lint water.xyz --plot a.svg", "a.svg: the name must end in .png"),
        ("lint water.xyz --json no/a.json", "no such directory"),
        ("free-energy a.jsonl --plot a.pdf", "a.pdf: the name must end in .png"),
        ("map M water.xyz --out a.pdf", "a.pdf: the name must end in .png"),
        ("map M water.xyz --out water.png --json no/a.json", "no such directory"),
        ("certify M --plot a.pdf", "a.pdf: the name must end in .png"),
        ("committee M M --out committee", "committee: the name must end in .safetensors"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_the_work(folder, monkeypatch, no_work, arguments, message):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    code, stderr = call(*arguments.replace("M ", "model.safetensors ").split())
    assert code == 1 and message in stderr and stderr.count("\n") == 1, stderr
    assert sorted(folder.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match="permission denied"):
        check_output(tmp_path / "a.xyz")
    tmp_path.chmod(0o700)


def test_a_disk_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr("mlff.basics.files.tempfile.TemporaryFile", full)
    with pytest.raises(FileError, match="a.xyz: read-only file system: choose another place"):
        check_outputs([(None, ()), (tmp_path / "a.xyz", ())], [])


NAMES = ["r.xyz.gz", "r.extxyz.bz2", "r.xyz.xz", "r.traj", "r.json", "POSCAR", "r.vasp", "r.cif", "r.xsf"]


@pytest.mark.parametrize("name", NAMES)
def test_what_can_be_held_is_saved(folder, tmp_path, name):
    out = tmp_path / name
    inputs = folder / "copper.safetensors", folder / "copper.xyz"
    code, stderr = call("relax", *inputs, "--steps", 2, "--out", out, "--quiet")
    assert code == 1 and "not converged" in stderr
    relaxed = read(out)
    assert len(relaxed) == 4 and relaxed.get_volume() == pytest.approx(read(folder / "copper.xyz").get_volume(), rel=1e-4)
    if "xyz" in name:
        assert "mlff_energy" in relaxed.info and relaxed.arrays["mlff_forces"].shape == (4, 3)
    if name.endswith(".gz"):
        assert gzip.open(out, "rt", encoding="utf-8").readline() == "4\n"
    assert list(tmp_path.iterdir()) == [out]


def test_a_format_that_loses_the_cell_is_refused(tmp_path):
    copper = bulk("Cu", cubic=True)
    with pytest.raises(DataError, match="a.mol: mol does not hold this structure .it is read back as another"):
        check_relaxed(copper, tmp_path / "a.mol")
    check_relaxed(copper, tmp_path / "a.gen")
    assert not list(tmp_path.iterdir())


PAGES = [
    pytest.param("gbk", "relax", marks=pytest.mark.slow),
    ("ascii", "relax"),
    ("cp1252", "schema"),
    ("cp932", "md --help"),
]


@pytest.mark.parametrize(("page", "command"), PAGES)
def test_any_code_page_will_do(folder, tmp_path, page, command):
    arguments = command.split()
    if command == "relax":
        arguments += [folder / "model.safetensors", folder / "water.xyz", "--out", tmp_path / "naïve.xyz"]
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": page}
    line = [sys.executable, "-c", "from mlff.cli import main; main()", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, env=environment)
    assert done.returncode == 0 and done.stderr == b"", done.stderr.decode("ascii", "replace")
    if command == "schema":
        assert "optimizer" in json.loads(done.stdout.decode("ascii"))["properties"]
    if command == "relax":
        assert len(read(tmp_path / "naïve.xyz")) == 3 and b"largest force" in done.stdout


def test_tables_and_errors_obey_the_code_page(folder, tmp_path):
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    line = [sys.executable, "-c", "from mlff.cli import main; main()"]
    done = subprocess.run(
        [*line, "info", str(folder / "water.xyz"), "--unit", "length=Angstrom"], capture_output=True, env=environment
    )
    assert done.returncode == 0 and done.stderr == b"" and b"?" in done.stdout
    done = subprocess.run([*line, "info", str(tmp_path / "水.xyz")], capture_output=True, env=environment)
    assert done.returncode == 1 and done.stderr.endswith(b"?.xyz: no such file\n")
    assert np.all(np.frombuffer(done.stderr, np.uint8) < 128)
