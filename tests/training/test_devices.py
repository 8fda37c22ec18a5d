"""Training on several devices and processes is the training on one, to rounding."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlff.basics.errors import ConfigError
from mlff.config.options import Training
from mlff.data.batching import Batches, make_sample
from mlff.data.division import Division
from mlff.training.devices import Devices, find_devices
from mlff.training.processes import Group, processes
from tests.conftest import MODELS

from .toy import CUTOFF, make_structures

ROOT = Path(__file__).parents[2]
NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
TIMING = ("seconds", "structures_per_second")


@pytest.fixture(scope="module")
def batches():
    samples = [make_sample(s, CUTOFF) for s in make_structures(23, seed=0, sizes=(2, 8))]
    return Batches(samples, batch_size=5)


def port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(arguments, **variables):
    """A process of its own, with these variables of the environment."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment |= {name: str(value) for name, value in variables.items()} | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, **pipes)


def start_two(arguments):
    """Two processes that meet over loopback."""
    address = f"127.0.0.1:{port()}"
    return [start(arguments, **dict(zip(NAMES, (address, 2, index), strict=True))) for index in range(2)]


def results(process):
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def several(*jobs):
    return [
        "-m",
        "tests.training.several",
        json.dumps([dict(zip(("out", "devices", "epochs"), job, strict=True)) for job in jobs]),
    ]


def metrics(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


def assert_same_curve(run, other):
    """All that is told of each epoch, to the six digits that are written."""
    for line, expected in zip(metrics(run), metrics(other), strict=True):
        assert line.keys() == expected.keys()
        np.testing.assert_allclose(list(line.values()), list(expected.values()), rtol=2e-6)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """100 steps and more on one device, and on four of one process; half of them on four and the rest on two."""
    out = tmp_path_factory.mktemp("devices")
    jobs = [(out / "one", 1, 17), (out / "four", 4, 17), (out / "fewer", 4, 8), (out / "fewer", 2, 17)]
    # the first job says that no others are to be met
    found = results(start(several(*((str(path), *rest) for path, *rest in jobs)), JAX_NUM_CPU_DEVICES=4))
    return out, dict(zip(("one", "four", "begun", "fewer"), found, strict=True))


@pytest.mark.parametrize("name", ["four", "fewer"])
def test_several_devices_follow_the_curve_of_one(one_device, name):
    out, found = one_device
    assert found["one"]["steps"] == found[name]["steps"] > 100 and min(found["one"]["batches"]) < 4
    for what in ("params", "state"):
        np.testing.assert_allclose(found[name][what], found["one"][what], rtol=1e-10)
    assert_same_curve(out / name, out / "one")


def test_each_shape_is_compiled_once(one_device):
    for run in one_device[1].values():
        compiled, shapes = run["compiled"]
        assert compiled == shapes <= 6


@pytest.mark.slow
def test_two_processes_follow_the_curve_of_one(one_device, tmp_path):
    """Half of it, and from its checkpoint the rest."""
    first, second = (results(process) for process in start_two(several((str(tmp_path), 2, 8), (str(tmp_path), 2, 17))))
    assert first == second and first[0]["steps"] < first[1]["steps"]
    for what in ("params", "state"):
        np.testing.assert_allclose(first[1][what], one_device[1]["one"][what], rtol=1e-10)
    assert_same_curve(tmp_path, one_device[0] / "one")


@pytest.mark.slow
def test_loss_and_gradient_of_every_model_are_those_of_one_device():
    (found,) = results(start(["-m", "tests.training.every_model"], JAX_NUM_CPU_DEVICES=4))
    assert found.keys() == MODELS.keys()
    for name, (loss, of_loss, of_gradient) in found.items():
        assert loss > 0 and of_loss < 1e-12 and of_gradient < 1e-10, name


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_hold_each_structure_once_and_have_one_shape(batches, count):
    division = Division(batches, count)
    atoms = [sample.sizes.atoms for sample in batches.samples]
    shapes = set()
    for epoch in range(30):
        for sizes, indices in batches.plan(np.random.default_rng(epoch)):
            shape, parts = division.parts(sizes, indices)
            assert len(parts) == count and sorted(sum(parts, [])) == sorted(indices)
            loads = [sum(atoms[index] for index in part) for part in parts]
            assert max(loads) <= shape.atoms and max(map(len, parts)) <= shape.structures
            assert max(loads) - min(loads) <= max(atoms[index] for index in indices)
            shapes.add(shape)
            graph, labels = batches.build(shape, parts[-1])
            assert graph.positions.shape == (shape.atoms, 3) and len(labels.weight) == shape.structures
    assert len(shapes) <= 2 * len(batches.sizes)


def test_equal_molecules_need_no_padding():
    batches = Batches([make_sample(s, CUTOFF) for s in make_structures(16, seed=0)], batch_size=4)
    assert {Division(batches, 2).parts(*planned)[0][:2] for planned in batches.plan(None)} == {(2, 8)}


@pytest.mark.parametrize(
    ("training", "count", "line"),
    [
        ({"batch_size": 5}, 2, "training.batch_size: 5 structures do not divide over 2 devices; write a multiple of 2"),
        ({}, 4, "5 structures by default do not divide over 4 devices; .* e.g. training.batch_size: 8"),
        ({"max_atoms": 9}, 4, "training.max_atoms: 9 atoms are 1 structures of the mean size, fewer than the 4 devices"),
        ({"batch_size": 24}, 24, "training.devices: 24: there are 23 training structures"),
    ],
)
def test_batches_that_do_not_divide_are_refused(batches, training, count, line):
    devices = Devices()
    devices.count = count
    with pytest.raises(ConfigError, match=line):
        devices.check(Training(**training), [sample.sizes.atoms for sample in batches.samples])


@pytest.mark.parametrize(
    ("wanted", "group", "line"),
    [
        (
            4096,
            Group(0, 1),
            r"training.devices: 4096: there are \d+ of the 4096 that it takes \(on a CPU .* JAX_NUM_CPU_DEVICES",
        ),
        (3, Group(0, 2), "training.devices: 3 do not divide over 2 processes"),
    ],
)
def test_devices_that_are_not_there_are_refused(wanted, group, line):
    with pytest.raises(ConfigError, match=line):
        find_devices(wanted, group)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (("localhost:1", None, "0"), "JAX_NUM_PROCESSES: not set; with JAX_COORDINATOR_ADDRESS it must be a number"),
        (("localhost:1", "2", "x"), "JAX_PROCESS_ID: x; "),
        (("localhost:1", "2", "2"), "JAX_PROCESS_ID: 2; of 2 processes the numbers are 0 to 1"),
    ],
)
def test_a_wrong_environment_is_refused(monkeypatch, values, line):
    for name, value in zip(NAMES, values, strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=line), processes("auto"):
        pass


def test_one_device_meets_nobody(monkeypatch):
    monkeypatch.setenv(NAMES[0], "nowhere:1")
    with processes(1) as group:
        assert group.first and group.count == 1 and group.agree(1.5, 2.5, 2) == (1.5, 2.5, 2)


MEET = "from mlff.training import processes as p; p.START = 2; p.processes(2).__enter__()"


@pytest.mark.parametrize("index", [0, 1])
def test_a_host_that_is_not_reached_is_one_line(index):
    begin = time.monotonic()
    process = start(["-c", MEET], **dict(zip(NAMES, (f"127.0.0.1:{port()}", 2, index), strict=True)))
    _, said = process.communicate(timeout=100)
    others = "process 0 at 127" if index else "all of the 1 others at 127"
    assert process.returncode == 1 and len(said.splitlines()) == 1, said
    assert said.startswith(f"error: process {index} of 2 has not met {others}") and time.monotonic() - begin < 60
