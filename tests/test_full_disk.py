"""A disk that fills up, or that nobody may write: one line that names file and remedy, and nothing is lost."""

import errno
import importlib.util
import io
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write
from safetensors.numpy import load_file
from typer.testing import CliRunner

from mlff.basics.errors import FileError
from mlff.basics.files import cannot_write, replacing, write_text
from mlff.certificate import certificate
from mlff.certificate.line import Line
from mlff.cli import app
from mlff.potential.potential import Potential
from mlff.simulation import driver
from mlff.simulation.record import state_path
from mlff.training import trainer
from tests.disks import small_disk
from tests.potentials import morse
from tests.training.conftest import compiled, shared_compilations  # noqa: F401

CONFIG = """
data: {train: train.xyz, lint: 'off'}
model: {architecture: schnet, cutoff: 4.0, channels: 8, layers: 1, radial_basis: 4}
training: {epochs: 4, batch_size: 4, tensorboard: %s}
"""
PAGE = 4096


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Data, a model and a config on a disk that has space."""
    folder, rng, oracle = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0), morse()
    frames = [molecule("H2O") for _ in range(24)]
    for atoms in frames:
        atoms.positions += rng.normal(0, 0.05, (3, 3))
    for atoms, result in zip(frames, oracle.predict(frames), strict=True):
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = result.energy, result.forces
    write(folder / "train.xyz", frames)
    write(folder / "many.xyz", 4 * frames)
    write(folder / "water.xyz", molecule("H2O"))
    for name in ("true", "false"):
        (folder / f"tensorboard_{name}.yaml").write_text(CONFIG % name)
    oracle.save(folder / "model.safetensors")
    return folder


@pytest.fixture
def quick(monkeypatch, shared_compilations):  # noqa: F811
    """One potential for all calls, a certificate that costs nothing, states and checkpoints as often as can be."""
    oracle, real = morse(), Potential.load.__func__

    def load(cls, path, *options, **names):
        quick = Path(path).name == "model.safetensors" and "inputs" in str(path)
        return oracle if quick else real(cls, path, *options, **names)

    monkeypatch.setattr(Potential, "load", classmethod(load))
    lines = tuple(Line(f"line {number}", 0.0, "", 1.0, "") for number in range(100))
    monkeypatch.setattr(certificate, "certify", lambda *_: certificate.Certificate(lines))
    monkeypatch.setattr(driver, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(trainer, "OFTEN", -1.0)


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def numbers_of(frames):
    return [array.tobytes() for atoms in frames for array in (atoms.positions, atoms.get_momenta())]


def training_result(out):
    times = ("seconds", "structures_per_second")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    weights = load_file(out / "model.safetensors")
    return [{k: v for k, v in line.items() if k not in times} for line in lines], {
        k: v.tobytes() for k, v in weights.items()
    }


def dynamics_result(out, name):
    with np.load(state_path(out / name)) as state:
        arrays = {key: state[key].tobytes() for key in state.files}
    text = (out / name).read_bytes() if name.endswith(".xyz") else b""
    return numbers_of(read(out / name, ":")), text, (out / name).with_suffix(".jsonl").read_text(), arrays


def dynamics(name):
    def command(inputs, out):
        goes_on = state_path(out / name).exists()
        arguments = ["md", inputs / "model.safetensors", inputs / "water.xyz", "--steps", 150, "--interval", 5, "--quiet"]
        return [*arguments, "--out", out / name, "--timestep", 0.2, "--restart" if goes_on else "--force"]

    return command, lambda out: dynamics_result(out, name)


def training(tensorboard):
    def command(inputs, out):
        return ["train", inputs / f"tensorboard_{tensorboard}.yaml", "--out", out / "run", "--quiet", "--no-certify"]

    return command, lambda out: training_result(out / "run")


def simple(name, *names):
    """A command that writes files of these names, all of them in one go."""

    def command(inputs, out):
        first = {
            "evaluate": ["evaluate", inputs / "model.safetensors", inputs / "train.xyz", "--json", out / "errors.json"],
            "lint": ["lint", inputs / "train.xyz", "--json", out / "lint.json"],
            "predict": ["predict", inputs / "model.safetensors", inputs / "many.xyz", out / "predicted.xyz"],
            "relax": ["relax", inputs / "model.safetensors", inputs / "water.xyz", "--out", out / "relaxed.xyz"],
            "certify": ["certify", out / "model.safetensors", "--json", out / "lines.json"],
        }[name]
        more = {"evaluate": ["--plot", out / "parity.png"], "relax": ["--trajectory", out / "steps.xyz"]}
        return [*first, *more.get(name, []), "--quiet"]

    return command, lambda out: [(out / file).read_bytes() for file in names]


JOBS = {
    "evaluate": simple("evaluate", "errors.json"),
    "lint": simple("lint", "lint.json"),
    "predict": simple("predict", "predicted.xyz"),
    "relax": simple("relax", "relaxed.xyz", "steps.xyz"),
    "certify": simple("certify", "model.safetensors", "lines.json"),
    "md, text": dynamics("md.xyz"),
    "md, binary": dynamics("md.traj"),
    "train": training("false"),
    "train with TensorBoard": training("true"),
}


def one_line(stderr):
    lines = [line for line in stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    return lines[0]


#: pages left on the disk; each makes the run fail at another write
QUICK = {"evaluate": (0,), "lint": (0,), "predict": (0, 1, 8), "relax": (0, 1, 2), "certify": (0, 1, 3)}
QUICK |= {"md, text": (0, 2, 8), "md, binary": (0, 2, 5), "train": (4,), "train with TensorBoard": ()}
ALL = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24)
CASES = [pytest.param(name, pages, id=name) for name, pages in QUICK.items() if pages]
CASES += [pytest.param(name, ALL, id=f"{name}, all", marks=pytest.mark.slow) for name in JOBS]


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(name, sizes, inputs, tmp_path, quick):
    """With no page left, with one, with a few more: each run fails where space ends, and ends well once there is some."""
    command, result = JOBS[name]
    with small_disk(tmp_path / "disk", "6m") as disk:

        def fresh(place):
            place.mkdir()
            if name == "certify":
                shutil.copy(inputs / "model.safetensors", place)
            return place

        alone = fresh(tmp_path / "alone")
        code, _, stderr = call(*command(inputs, alone))
        assert code == 0, stderr
        expected, failures = result(alone), 0
        for pages in sizes:
            place = fresh(disk.root / str(pages))
            before = {path: path.read_bytes() for path in place.iterdir()}
            disk.leave(pages * PAGE)
            code, _, stderr = call(*command(inputs, place))
            if code:
                failures += 1
                line = one_line(stderr)
                assert code == 1 and "no space left on device: free space and" in line and str(place) in line, line
                assert all(path.read_bytes() in (old, expected[0]) for path, old in before.items())
                assert not [path for path in place.iterdir() if "tmp" in path.name and path.is_file()]
            disk.empty()
            code, _, stderr = call(*command(inputs, place))
            assert code == 0, stderr
            assert result(place) == expected, f"after a failure with {pages} pages left"
            shutil.rmtree(place)
        assert failures == len(sizes) or sizes == ALL and failures


@pytest.mark.parametrize("name", JOBS)
def test_a_disk_that_nobody_may_write_is_one_line(name, inputs, tmp_path, quick):
    command, _ = JOBS[name]
    with small_disk(tmp_path / "disk") as disk:
        if name == "certify":
            shutil.copy(inputs / "model.safetensors", disk.root)
        disk.lock()
        code, _, stderr = call(*command(inputs, disk.root))
        assert code == 1
        line = one_line(stderr)
        assert "read-only file system: choose another place, or make it writable" in line and str(disk.root) in line


def test_the_same_lines_where_nothing_can_be_mounted(inputs, tmp_path, quick):
    """A place below a file can be written by nobody either."""
    (tmp_path / "file").write_text("")
    for name, (command, _) in JOBS.items():
        if name != "certify":
            code, _, stderr = call(*command(inputs, tmp_path / "file"))
            assert code == 1 and str(tmp_path / "file") in one_line(stderr), name


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission(inputs, tmp_path, quick):
    (tmp_path / "closed").mkdir(mode=0o500)
    for name, (command, _) in JOBS.items():
        if name != "certify":
            code, _, stderr = call(*command(inputs, tmp_path / "closed"))
            assert code == 1 and "permission denied: choose another place" in one_line(stderr), name


def test_a_full_standard_output_is_one_line():
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    import subprocess

    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", "from mlff.cli import main; main()", "schema"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert (
        done.stderr
        == "error: standard output: no space left on device: free space and run the same command again; nothing is lost\n"
    )


# --- the k-th call fails -------------------------------------------------------------------------------------------------


class FailAt:
    """Every write, fsync and rename counts; the k-th one fails."""

    def __init__(self, monkeypatch, number):
        self.left = 10**9
        for name in ("replace", "fsync", "open"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))
        real = io.open

        def opened(file, mode="r", *args, **options):
            if "r" not in mode:
                self.count()
            stream = real(file, mode, *args, **options)
            if "r" not in mode and isinstance(stream, io.TextIOWrapper):
                stream.write = self._counted(stream.write)
            return stream

        monkeypatch.setattr(io, "open", opened)
        monkeypatch.setattr("builtins.open", opened)
        self.number = number

    def count(self):
        self.left -= 1
        if self.left == 0:
            raise OSError(self.number, os.strerror(self.number))

    def _counted(self, function):
        def counted(*args, **options):
            self.count()
            return function(*args, **options)

        return counted


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_file_is_old_or_new_whichever_call_fails(tmp_path, monkeypatch, number):
    path = tmp_path / "file.json"
    path.write_text("old")
    disk, failed = FailAt(monkeypatch, number), 0
    for k in range(1, 40):
        disk.left = k
        try:
            write_text(path, "new")
        except FileError as error:
            failed += 1
            disk.left = 10**9
            assert str(error).startswith(
                f"{path}: {os.strerror(number).lower() if number != errno.EIO else 'cannot be written'}"
            )
            assert path.read_text() in ("old", "new")
            assert list(tmp_path.iterdir()) == [path]
            continue
        disk.left = 10**9
        break
    assert path.read_text() == "new" and failed >= 4


def test_what_a_library_quotes_of_the_system_is_recognised():
    text = "UNKNOWN: Error writing '/x/d/abc': No space left on device [source locations='...']"
    assert str(cannot_write("/x", RuntimeError(text))) == (
        "/x: no space left on device: free space and run the same command again; nothing is lost"
    )
    assert str(cannot_write("/x", RuntimeError("something\nelse"))) == "/x: cannot be written: something else"


def test_errors_of_the_block_are_not_those_of_the_file(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "x"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


# --- the records of the data generators ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records():
    path = Path(__file__).parents[1] / "scripts" / "data" / "records.py"
    spec = importlib.util.spec_from_file_location("records", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_records_of_the_generators_survive_a_full_disk(records, tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        path, kept = disk.root / "records.jsonl", 0
        disk.leave(3 * PAGE)
        with pytest.raises(SystemExit, match=r"records.jsonl: no space left on device: free space .* nothing is lost"):
            for number in range(100):
                records.append(path, {"number": number, "text": 500 * "x"})
                kept += 1
        assert [record["number"] for record in records.load(path)] == list(range(kept)) and kept > 5
        with pytest.raises(SystemExit, match="data.xyz: no space left"):
            records.atomic_write(disk.root / "data.xyz", 3 * PAGE * "x")
        assert sorted(p.name for p in disk.root.iterdir()) == ["filler", "records.jsonl"]
        disk.empty()
        records.append(path, {"number": kept})
        assert [record["number"] for record in records.load(path)] == list(range(kept + 1))
        disk.lock()
        with pytest.raises(SystemExit, match="records.jsonl: read-only file system"):
            records.append(path, {})


def test_a_torn_record_is_left_out_and_the_next_one_stands_on_its_own_line(records, tmp_path):
    path = tmp_path / "records.jsonl"
    records.append(path, {"number": 0})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole + whole[:cut])
        records.append(path, {"number": 1})
        assert [r["number"] for r in records.load(path)] in ([0, 1], [0, 0, 1])
