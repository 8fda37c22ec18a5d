"""A short slice of the fuzzing: the same inputs every time (scripts/fuzz.py is the long run)."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlff.basics.errors import DataError, ModelFileError
from mlff.config.plainyaml import plain_values
from mlff.data.dataset import read_dataset
from mlff.potential.neighborlist import VerletList
from mlff.report import tables
from mlff.simulation.md import run_md
from mlff.training.checkpoint import Checkpoints
from mlff.training.progress import TrainingProgress
from tests import samples
from tests.conftest import make_potential
from tests.fuzzing import runs
from tests.fuzzing.engine import Job, Tally, make_input, run_jobs
from tests.fuzzing.targets import TARGETS

COUNTS = {"extxyz": 800, "npz": 500, "hdf5": 250, "json": 600, "n2p2": 250, "deepmd": 100, "config": 300, "model": 150}
COUNTS |= {"checkpoint": 400, "checkpoint files": 20, "state": 60}


@pytest.fixture(scope="module")
def tallies():
    found = {target: Tally() for target in COUNTS}
    run_jobs([Job(target, 0, count) for target, count in COUNTS.items()], seed=20261121, tallies=found)
    return found


def test_every_reader_is_fuzzed():
    assert COUNTS.keys() == TARGETS.keys()


@pytest.mark.parametrize("target", COUNTS)
def test_hostile_inputs_are_read_or_refused_in_plain_words(target, tallies):
    tally = tallies[target]
    assert not tally.findings, "\n".join(why for _, _, why in tally.findings.values())
    assert tally.count == COUNTS[target]
    assert tally.accepted > 0 and tally.refused > 0, "the inputs are all alike"


# --- what the long run found and no command line shows ----------------------------------------------------------------


def test_messages_are_one_printable_line_whatever_a_file_holds():
    text = str(DataError("a.xyz:\n key '\x1b[31m\x00\u2028' " + "x" * 9000))
    assert text.isprintable() and "\\x1b[31m\\x00" in text and len(text) < 2200
    assert str(DataError("Å stays")) == "Å stays"


def test_tables_show_what_a_file_holds_as_it_stands():
    from rich.console import Console

    potential = replace(make_potential("morse"), metadata={"machine": "[/x] [red]\x1b[31m", "versions": {"[b]": "1"}})
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables.model(potential, Path("[/a].safetensors")))
    text = console.export_text()
    assert "[/x] [red]\\x1b[31m" in text and "[b] 1" in text and "[/a].safetensors" in text


def test_an_extra_array_named_positions_does_not_replace_the_geometry(tmp_path):
    other = np.full((2, 2, 3), 7.0) * np.arange(2)[:, None]
    positions = np.array([[[0, 0, 0], [0, 0, 1.0]]] * 2)
    np.savez(tmp_path / "a.npz", R=positions, z=[1, 1], positions=other, numbers=other)
    np.testing.assert_array_equal([s.positions for s in read_dataset(tmp_path / "a.npz")], positions)


def test_a_checkpoint_does_not_allocate_what_its_layout_promises(tmp_path):
    tree = {"w": np.zeros(3, np.float32)}
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, tree, {"run": {}})
    (file,) = (tmp_path / "c").glob("1/record/metadata")
    file.write_text(file.read_text().replace('"float32", [3]', '"float32", [1000000000000]'))
    with (
        Checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(ModelFileError, match="belongs to another model.*1000000000000"),
    ):
        checkpoints.restore(tree)


@pytest.mark.parametrize(
    "change", [{"epoch": -1}, {"epoch": 1.5}, {"seconds": "1"}, {"recent": [2]}, {"totals": []}, {"backoffs": 99}, {"x": 1}]
)
def test_the_counters_of_a_run_are_checked(change):
    record = {"run": TrainingProgress().to_dict()}
    assert TrainingProgress.from_record(record, "runs/x") == TrainingProgress()
    with pytest.raises(ModelFileError, match="runs/x: the record"):
        TrainingProgress.from_record({"run": record["run"] | change}, "runs/x")


STATES = {
    "positions": (lambda state: state.update(positions=np.zeros((2, 3))), "'positions' is float64 of shape"),
    "momenta": (lambda state: state.update(momenta=np.full((3, 3), np.nan)), "'momenta' is not finite"),
    "missing": (lambda state: state.pop("step"), "'step' is missing"),
    "negative step": (lambda state: state.update(step=np.array(-(10**9))), "'step' is too small"),
    "rng": (lambda state: state.update(rng=np.array('{"bit_generator": "MT19937"}')), "'rng' is not the state"),
    "deep rng": (lambda state: state.update(rng=np.array("[" * 5000)), "'rng' is not the state"),
    "freedom": (lambda state: state.update(degrees_of_freedom=np.array(0)), "'degrees_of_freedom' is too small"),
    "list": (lambda state: state.update(neighbors_numbers=np.zeros(3, int)), "belongs to other atoms"),
    "objects": (lambda state: state.update(step=np.zeros((), "V8")), "'step' is no array of numbers"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_is_none_is_refused(name, tmp_path):
    change, says = STATES[name]
    atoms, options = runs._start("langevin")
    path = tmp_path / "md.xyz"
    run_md(atoms, runs._Calculator(), steps=2, trajectory=path, **options)
    with np.load(tmp_path / "md.state.npz", allow_pickle=False) as archive:
        state = dict(archive)
    change(state)
    np.savez(tmp_path / "md.state.npz", **state)
    with pytest.raises(DataError, match=says) as error:
        run_md(atoms, runs._Calculator(), steps=3, trajectory=path, restart=True, **options)
    assert "md.state.npz" in str(error.value)


def test_a_neighbour_list_is_not_padded_to_what_a_state_promises():
    lists = VerletList(3.0, 0.5, np.float32)
    state = {"positions": np.eye(3), "cell": np.zeros((3, 3)), "pbc": np.zeros(3, bool), "numbers": np.ones(3, int)}
    lists.restore(state | {"sizes": np.array([1, 10**9, 10**9])})
    assert lists.graph.neighbors.shape == (3, 2)


def attribute_of_another_type(content: bytearray) -> None:
    content[content.index(b"units\0\x19\x01") + 7] = 5  # a list in place of a string


def heap_with_an_endless_entry(content: bytearray) -> None:
    place = content.index(b"GCOL") + 24
    content[place : place + 8] = b"\xff" * 8


@pytest.mark.parametrize("change", [attribute_of_another_type, heap_with_an_endless_entry])
def test_what_the_hdf5_library_crashes_or_hangs_on_is_not_handed_to_it(change, tmp_path):
    buffer = io.BytesIO()
    with h5py.File(samples.spice(tmp_path)[0]) as old, h5py.File(buffer, "w", libver="latest") as new:
        for key in old:
            old.copy(key, new)
    content = bytearray(buffer.getvalue())
    change(content)
    (tmp_path / "a.h5").write_bytes(content)
    command = "import sys; from mlff.data.dataset import read_dataset; from mlff.basics.errors import DataError\n"
    command += "try: read_dataset(sys.argv[1])\nexcept DataError: pass"
    command = [sys.executable, "-c", command, tmp_path / "a.h5"]
    ended = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_what_is_stored_once_is_not_read_a_thousand_times(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        first = file.create_group("a")
        first["species"] = [1, 1, 1]
        first.create_dataset("coordinates", data=np.zeros((30_000, 3, 3)), compression="gzip")
        for number in range(99):
            file[f"b{number}"] = first
            group = file.create_group(f"c{number}")
            group["species"], group["coordinates"] = first["species"], first["coordinates"]
    with pytest.raises(DataError, match="promises .* GB, but only"):
        read_dataset(tmp_path / "a.h5")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_yaml_gives_plain_values_or_says_that_it_is_none(text, depth):
    for candidate in (text, "[" * depth + text + "]" * depth):
        try:
            plain_values(candidate)
        except yaml.YAMLError:
            pass


@pytest.mark.parametrize("target", ["json", "config", "checkpoint"])
def test_an_input_can_be_made_again(target, tmp_path):
    seeds = TARGETS[target].prepare(tmp_path)
    first = make_input(target, 0, 5, seeds)
    for index in range(300):
        make_input(target, 0, index, seeds)
    assert make_input(target, 0, 5, seeds) == first
