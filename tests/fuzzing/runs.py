"""What an interrupted run goes on from: checkpoints of training and states of simulations.

Orbax needs tens of milliseconds per checkpoint, so there are two targets: `checkpoint` lets mlff's own code read records and
arrays that come straight from a file (in Orbax's place), `checkpoint files` damages whole folders and reads them with Orbax.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import ase
import jax
import numpy as np
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones

from mlff.cli.options import about
from mlff.config.load import make_config
from mlff.data.structure import Structure
from mlff.potential.neighborlist import VerletList
from mlff.simulation.md import run_md
from mlff.training.checkpoint import Checkpoints
from mlff.training.identity import refuse_other
from mlff.training.progress import TrainingProgress
from tests.fuzzing import archives
from tests.fuzzing.mutations import dump_json, mutate_bytes, mutate_text, mutate_tree

_TREE = {
    "w": np.arange(6.0, dtype=np.float32).reshape(2, 3),
    "b": [np.float32([1.5]), np.zeros((0, 3), np.float32)],
    "step": np.int32(7),
}
_CONFIG = make_config({"data": {"train": "a.xyz"}})
_IDENTITY = {
    "config": {"seed": 0, "model": {"architecture": "ace", "cutoff": 5.0}},
    "content of data": {"train": "ab", "valid": "cd"},
}
_WORDS = [
    "run",
    "identity",
    "config",
    "record",
    "layout",
    "digest",
    "float32",
    "int32",
    "object",
    "V8",
    "epoch",
    "recent",
    "totals",
]
_FOLDER = "checkpoints"


def _record() -> dict:
    run = TrainingProgress(epoch=3, position=1, tried=40, recent=[0, 1, 0], best_score=0.5, best_epoch=2, seconds=12.5)
    return {"run": run.to_dict(), "identity": _IDENTITY}


# --- checkpoints ------------------------------------------------------------------------------------------------------


def prepare_checkpoints(folder: Path) -> list[dict[str, bytes]]:
    """The files of two checkpoints that Orbax wrote, and those of the second alone: nothing whole is left when it is damaged.

    Orbax names some of the files at random, so inputs of the same number differ from one process to the next.
    """
    logging.getLogger("mlff").addHandler(logging.NullHandler())
    logging.getLogger("mlff").propagate = False
    with Checkpoints(folder / _FOLDER) as checkpoints:
        for number in (20, 40):
            checkpoints.save(number, _TREE, _record())
    paths = sorted(file for file in (folder / _FOLDER).rglob("*") if file.is_file())
    files = {str(file.relative_to(folder)): file.read_bytes() for file in paths}
    shutil.rmtree(folder / _FOLDER)
    return [files, {name: content for name, content in files.items() if not name.startswith(f"{_FOLDER}/20/")}]


def prepare_records(folder: Path) -> list[dict[str, bytes]]:
    """Record and arrays of one checkpoint, taken out of Orbax."""
    prepare_checkpoints(folder)
    with Checkpoints(folder / _FOLDER) as checkpoints:
        checkpoints.save(40, _TREE, _record())
        checkpoints._manager.wait_until_finished()
        vectors, _ = checkpoints._read(40, _TREE)
        record = next((folder / _FOLDER).glob("40/record/metadata")).read_bytes()
    np.savez(folder / "arrays.npz", **vectors)
    arrays = (folder / "arrays.npz").read_bytes()
    shutil.rmtree(folder / _FOLDER)
    return [{f"{_FOLDER}/record.json": record, f"{_FOLDER}/arrays.npz": arrays}]


def mutate_records(rng: random.Random, seeds) -> dict[str, bytes]:
    files = dict(seeds[0])
    record, vectors = f"{_FOLDER}/record.json", f"{_FOLDER}/arrays.npz"
    if rng.random() < 0.8:
        content = json.loads(files[record])
        part = rng.choice(("record", "layout", None, None))
        if part is None:
            content = mutate_tree(rng, content, _WORDS)
        else:
            content[part] = mutate_tree(rng, content[part], _WORDS)
        files[record] = dump_json(rng, content) if rng.random() < 0.9 else mutate_text(rng, files[record])
    if rng.random() < 0.3:
        files[vectors] = archives.mutate_arrays(rng, archives.arrays(files[vectors]), ["float32", "int32", "object"])
    return files


class _Manager:
    """In place of Orbax's: one checkpoint, read from two plain files."""

    def __init__(self, folder: Path):
        self.folder = folder

    def all_steps(self):
        return [40]

    def restore(self, number, args):
        if "record" in args:
            return {"record": json.loads((self.folder / "record.json").read_bytes())}
        with np.load(self.folder / "arrays.npz", allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
        expected = args["arrays"]
        if {name: (a.shape, a.dtype) for name, a in found.items()} != {
            name: (a.shape, a.dtype) for name, a in expected.items()
        }:
            raise ValueError("other arrays are stored")
        return {"arrays": found}

    def delete(self, number):
        pass


def read_records(folder: Path) -> None:
    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints.directory, checkpoints._manager = folder / _FOLDER, _Manager(folder / _FOLDER)
    parts = {"Composite": dict, "StandardRestore": lambda arrays: arrays, "JsonRestore": lambda: None}
    checkpoints._orbax = SimpleNamespace(args=SimpleNamespace(**parts))
    _resume(checkpoints, folder)


def mutate_checkpoints(rng: random.Random, seeds) -> dict[str, bytes]:
    seed = rng.choice(seeds)
    files = dict(seed)
    for _ in range(rng.choice((1, 1, 2, 5))):
        name = rng.choice(list(files))
        kind = rng.randrange(6)
        if kind == 0:
            del files[name]
        elif kind == 1:
            files[name] = rng.choice(list(files.values()))
        elif name.endswith(("record/metadata", "_METADATA")) and kind <= 3:
            files[name] = dump_json(rng, mutate_tree(rng, json.loads(seed[name]), _WORDS))
        else:
            files[name] = mutate_bytes(rng, files[name])
        if not files:
            break
    files.setdefault(f"{_FOLDER}/x", b"")
    return files


def read_checkpoints(folder: Path) -> None:
    with Checkpoints(folder / _FOLDER) as checkpoints:
        _resume(checkpoints, folder)


def _resume(checkpoints: Checkpoints, folder: Path) -> None:
    """What training does with a run directory before it goes on."""
    record = checkpoints.record()
    refuse_other(folder / _FOLDER, _IDENTITY, record, _CONFIG)
    if record is not None:
        TrainingProgress.from_record(record, checkpoints.directory).over(_CONFIG)
    found = checkpoints.restore(_TREE)
    if found is None:
        return
    tree, record = found
    for expected, leaf in zip(jax.tree.leaves(_TREE), jax.tree.leaves(tree), strict=True):
        assert leaf.shape == expected.shape and leaf.dtype == expected.dtype, "arrays"
    run = TrainingProgress.from_record(record, checkpoints.directory)
    assert 0 <= run.share(_CONFIG, 10) <= 1 and 0 < run.factor <= 1 and run.unstable in (True, False), "run"


# --- states of simulations --------------------------------------------------------------------------------------------


class _Calculator(LennardJones):
    """With a neighbour list that travels in the state, as mlff's has."""

    def __init__(self):
        super().__init__(epsilon=0.01, sigma=1.0, rc=3.0)
        self.list = VerletList(3.0, 0.5, np.float32)

    def calculate(self, atoms=None, properties=("energy",), system_changes=("positions",)):
        Structure.from_atoms(atoms)  # StructureError where a simulation blew up, as mlff's own has it
        super().calculate(atoms, properties, system_changes)
        if not self.list.holds(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc):
            self.list.build(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)

    def neighbor_state(self):
        return self.list.state()

    def restore_neighbors(self, state):
        self.reset()
        self.list.restore(state)


def _start(kind: str) -> tuple[ase.Atoms, dict]:
    atoms = bulk("Ar", cubic=True, a=4.0) if kind == "npt" else molecule("H2O")
    ensemble = {"bussi": "nvt", "langevin": "nvt"}.get(kind, kind)
    options = {"thermostat": kind} if ensemble == "nvt" else {}
    return atoms, {"ensemble": ensemble, "temperature": 50.0, "timestep": 0.5, "interval": 1, "progress": False, **options}


def prepare_state(folder: Path) -> list[dict[str, bytes]]:
    """Trajectory, log and state of two steps in each ensemble."""
    seeds = []
    for kind in ("nve", "langevin", "bussi", "npt"):
        atoms, options = _start(kind)
        run_md(atoms, _Calculator(), steps=2, trajectory=folder / "md.xyz", log=folder / "md.jsonl", **options)
        files = {path.name: path.read_bytes() for path in folder.glob("md.*")}
        seeds.append(files | {"kind": kind.encode()})
    return seeds


def mutate_state(rng: random.Random, seeds) -> dict[str, bytes]:
    files = dict(rng.choice(seeds))
    kind = rng.random()
    if kind < 0.1:
        name = rng.choice(("md.xyz", "md.jsonl"))
        files[name] = mutate_text(rng, files[name]) if rng.random() < 0.5 else mutate_bytes(rng, files[name])
    elif kind < 0.3:
        files["md.state.npz"] = mutate_bytes(rng, files["md.state.npz"])
    else:
        content = archives.arrays(files["md.state.npz"])
        if rng.random() < 0.1:
            text = dump_json(rng, mutate_tree(rng, json.loads(str(content["rng"]))))
            content["rng"] = np.array(text.decode("utf-8", "replace"))
        files["md.state.npz"] = archives.mutate_arrays(rng, content, list(content))
    return files


def read_state(folder: Path) -> None:
    """Take the simulation up again for a step."""
    atoms, options = _start((folder / "kind").read_text())
    path = folder / "md.xyz"
    with about(path):
        summary = run_md(atoms, _Calculator(), steps=3, trajectory=path, log=folder / "md.jsonl", restart=True, **options)
    assert np.isfinite(atoms.positions).all() and np.isfinite(atoms.get_momenta()).all(), "atoms"
    assert summary.steps >= 0 and np.isfinite(summary.temperature_mean), "summary"
