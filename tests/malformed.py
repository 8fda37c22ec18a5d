"""Malformed inputs of every kind, and what `mlff` must say about each. `python -m tests.malformed` prints the table.

A case is a command line and the fragments that its one error line must contain: where the fault is, and what it is.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from filelock import FileLock
from safetensors.numpy import load_file, save_file

from mlff.config.options import SchNet
from mlff.models import registry
from mlff.models.common import Statistics
from mlff.models.parameters import initial_params
from mlff.potential.potential import Potential
from tests import samples

MODEL = {"architecture": "schnet", "cutoff": 4.0, "channels": 4, "layers": 1, "radial_basis": 4}
ISOLATED = {"H": -13.6, "O": -2041.5}
REFERENCE = {
    "numbers": [1], "positions": [[0, 0, 0]], "cell": np.zeros((3, 3)).tolist(), "pbc": [False] * 3,
    "energy": -13.6, "forces": [[0, 0, 0]], "stress": None,
}  # fmt: skip
CONFIG: dict = {
    "data": {"train": "train.xyz"},
    "model": MODEL,
    "training": {"epochs": 1, "batch_size": 4, "tensorboard": False},
}


@dataclass(frozen=True)
class Case:
    """`arguments(folder)` makes the malformed input in a folder that has good ones, and returns the command line."""

    what: str
    arguments: Callable[[Path], list]
    says: tuple[str, ...]
    code: int = 1


def prepare(folder: Path) -> None:
    """Good data (train.xyz, test.xyz, water.xyz), a good model (good.safetensors) and a finished run (run/)."""
    from mlff.config.load import make_config
    from mlff.training.train import train

    write(folder / "train.xyz", [*waters(12), *isolated_atoms()])
    write(folder / "test.xyz", waters(4, seed=1))
    write(folder / "water.xyz", molecule("H2O"))
    config = SchNet(**MODEL)
    params = initial_params(registry.build(config, (1, 8), Statistics()), seed=0)
    Potential(config, params, (1, 8), {1: -13.6, 8: -2041.5}).save(folder / "good.safetensors")
    train(make_config(CONFIG, base=folder), folder / "run", progress=False)


def waters(count: int, seed: int = 0) -> list[Atoms]:
    """Distorted molecules of water with made-up labels, eV and eV/Å."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        atoms = molecule("H2O")
        atoms.positions += rng.normal(0, 0.05, (3, 3))
        atoms.info["REF_energy"] = -2080.0 + rng.normal(0, 0.1)
        atoms.arrays["REF_forces"] = rng.normal(0, 1, (3, 3))
        frames.append(atoms)
    return frames


def isolated_atoms(unit: float = 1.0) -> list[Atoms]:
    return [Atoms(s, info={"REF_energy": unit * e, "config_type": "IsolatedAtom"}) for s, e in ISOLATED.items()]


# --- making inputs ----------------------------------------------------------------------------------------------------


def evaluate(make, name: str = "bad.xyz"):
    """`mlff evaluate` of the good model on frames that `make` returns, or on a file that it writes."""

    def arguments(folder: Path) -> list:
        made = make(folder / name)
        if made is not None:
            write(folder / name, made)
        return ["evaluate", folder / "good.safetensors", folder / name]

    return arguments


def train(change=None, frames=None, **sections):
    """`mlff train bad.yaml`: the good config with sections replaced, or with `frames` as training data, or as text."""

    def arguments(folder: Path) -> list:
        config = CONFIG | sections
        if frames is not None:
            write(folder / "bad.xyz", frames())
            config = config | {"data": {"train": "bad.xyz"}}
        (folder / "bad.yaml").write_text(change if change is not None else json.dumps(config))
        return ["train", folder / "bad.yaml", "--out", folder / "new", "--quiet"]

    return arguments


def info(make, name: str = "bad.safetensors"):
    """`mlff info` on a file that `make(path, good model)` writes."""

    def arguments(folder: Path) -> list:
        make(folder / name, folder / "good.safetensors")
        return ["info", folder / name]

    return arguments


def model(tensors=lambda tensors: None, header=lambda header: None):
    """The good model with tensors or header changed in place."""

    def make(path: Path, good: Path) -> None:
        from safetensors import safe_open

        arrays = load_file(good)
        with safe_open(good, framework="numpy") as file:
            entry = json.loads(file.metadata()["mlff"])
        tensors(arrays)
        header(entry)
        save_file(arrays, path, metadata={"mlff": json.dumps(entry)})

    return make


def changed(**labels):
    """Two waters, the second with changed `info` or `arrays`; None removes."""
    frames = waters(2)
    for name, value in labels.items():
        place = frames[1].info if name in frames[1].info or np.ndim(value) == 0 else frames[1].arrays
        place[name] = value
    return frames


def moved(atom: int, position) -> list[Atoms]:
    frames = waters(2)
    frames[1].positions[atom] = position
    return frames


def without(*keys: str) -> list[Atoms]:
    frames = waters(12)
    for atoms in frames:
        for key in keys:
            (atoms.info if key in atoms.info else atoms.arrays).pop(key)
    return frames


def text(content: str | bytes):
    def make(path: Path, good: Path | None = None) -> None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def cut_xyz(path: Path) -> None:
    write(path, waters(2))
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


def broken_gzip(path: Path) -> None:
    content = bytearray(gzip.compress(bytes(range(256)) * 20))
    content[12] ^= 0xFF
    path.write_bytes(bytes(content))


def twice_npz(path: Path) -> None:
    np.savez(path, R=np.zeros((1, 1, 3)), z=np.array([1]))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("R", b"another one")


def empty_npz(path: Path) -> None:
    """No bytes, and yet a billion symbols."""
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '%s', 'fortran_order': False, 'shape': %s}"
    with zipfile.ZipFile(path, "w") as archive:
        for key, kind, shape in (("R", b"<f8", b"(0, 1000000000, 3)"), ("z", b"<U0", b"(1000000000,)")):
            archive.writestr(f"{key}.npy", (header % (kind, shape)).ljust(127) + b"\n")


def ragged_mlearn() -> str:
    site = {"species": [{"element": "H", "occu": 1}], "xyz": [0, 0, 0]}
    structure = {"lattice": {"matrix": [[5, 0, 0], [0, 5, 0], [0, 0, 5]]}, "sites": [site]}
    return json.dumps([{"structure": structure, "outputs": {"energy": [[1], [2, 3]]}}])


def bomb() -> str:
    """Billion laughs."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 12)]
    return "\n".join([*lines, "data: {train: *a11}", ""])


def evaluate_model(make):
    """`mlff evaluate` with the model that `make(path, good model)` writes."""

    def arguments(folder: Path) -> list:
        make(folder / "bad.safetensors", folder / "good.safetensors")
        return ["evaluate", folder / "bad.safetensors", folder / "test.xyz"]

    return arguments


def hot_npz(path: Path) -> None:
    np.savez(path, R=np.zeros((1, 1, 3)), z=np.array([_Touch(str(path.parent / "executed"))], dtype=object))


def cut_npz(path: Path) -> None:
    np.savez(path, R=np.zeros((9, 3, 3)), z=np.array([8, 1, 1]), E=np.zeros(9))
    path.write_bytes(path.read_bytes()[:-99])


def deepmd(change=lambda system: None):
    """`mlff evaluate` on a DeePMD folder that was changed."""

    def arguments(folder: Path) -> list:
        system, _ = samples.deepmd(folder)
        change(system)
        return ["evaluate", folder / "good.safetensors", system]

    return arguments


def cut_gzip(path: Path) -> None:
    write(path.with_suffix(""), waters(20))
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes())[:-100])


def poisoned_pickle(path: Path, good: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": _Touch(str(path.parent / "executed"))}))


class _Touch:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def damaged_checkpoints(folder: Path) -> list:
    """The run was stopped, and the arrays of all its checkpoints are cut short."""
    shutil.copytree(folder / "run", folder / "bad_run")
    (folder / "bad_run" / "model.safetensors").unlink()
    for file in (folder / "bad_run" / "checkpoints").rglob("*"):
        if file.is_file() and "arrays" in file.parts and file.stat().st_size:
            os.truncate(file, file.stat().st_size // 2)
    (folder / "good.yaml").write_text(json.dumps(CONFIG))
    return ["train", folder / "good.yaml", "--out", folder / "bad_run", "--quiet"]


def good_config(folder: Path) -> Path:
    (folder / "ok.yaml").write_text(json.dumps(CONFIG))
    return folder


def busy_run(folder: Path) -> list:
    good_config(folder)
    _held.append(FileLock(folder / "run" / ".lock"))
    _held[-1].acquire()
    return ["train", folder / "ok.yaml", "--out", folder / "run", "--quiet"]


def busy_trajectory(folder: Path) -> list:
    _held.append(FileLock(folder / ".md.xyz.lock"))
    _held[-1].acquire()
    return ["md", folder / "good.safetensors", folder / "water.xyz", "--out", folder / "md.xyz", "--quiet"]


_held: list[FileLock] = []  #: locks that other processes would hold; until this one ends


def _damaged(folder: Path, name: str, change: Callable[[str], str]) -> list:
    """A stopped run, with the files of this name in its checkpoints changed."""
    shutil.copytree(folder / "run", folder / "bad_run")
    (folder / "bad_run" / "model.safetensors").unlink()
    for file in (folder / "bad_run" / "checkpoints").glob(f"*/{name}"):
        file.write_text(change(file.read_text()))
    (folder / "good.yaml").write_text(json.dumps(CONFIG))
    return ["train", folder / "good.yaml", "--out", folder / "bad_run", "--quiet"]


def damaged_list(folder: Path) -> list:
    return _damaged(folder, "_CHECKPOINT_METADATA", lambda text: json.dumps(json.loads(text) | {"item_handlers": 7}))


def damaged_record(folder: Path) -> list:
    return _damaged(folder, "record/metadata", lambda text: text.replace('"backoffs"', '"backoffz"'))


def other_run(folder: Path) -> list:
    (folder / "bad.yaml").write_text(json.dumps(CONFIG | {"seed": 7}))
    return ["train", folder / "bad.yaml", "--out", folder / "run", "--quiet"]


def structure(command: str, atoms: Callable[[], Atoms], *options):
    def arguments(folder: Path) -> list:
        write(folder / "bad.xyz", atoms())
        return [command, folder / "good.safetensors", folder / "bad.xyz", *options, "--out", folder / "out.xyz", "--quiet"]

    return arguments


def parallel() -> Atoms:
    return Atoms("OH", positions=[[0, 0, 0], [1, 0, 0]], cell=[[5, 0, 0], [9, 0, 0], [0, 0, 5]], pbc=(True, True, False))


def speck() -> Atoms:
    """One atom that would have 100 million images of itself within the cutoff."""
    return Atoms("O", cell=[0.008, 0.03, 0.01], pbc=True, info={"REF_energy": -2041.0})


def no_cell() -> Atoms:
    return Atoms("OH", positions=[[0, 0, 0], [1, 0, 0]], pbc=True)


def hot_pickle_tag(folder: Path) -> list:
    path = folder / "executed"
    return train(f'data: {{train: !!python/object/apply:os.system ["touch {path}"]}}\n')(folder)


def whole(arrays: dict) -> None:
    name = next(iter(arrays))
    arrays[name] = arrays[name].astype(np.int32)


def nested(arrays: dict) -> None:
    arrays[next(iter(arrays)) + "/x"] = np.zeros(1, np.float32)


def drop(name: str):
    return lambda arrays: arrays.pop(next(key for key in arrays if name in key))


def poison(arrays: dict) -> None:
    next(iter(arrays.values())).flat[0] = np.nan


def reshape(arrays: dict) -> None:
    name = next(key for key in arrays if "embedding" in key)
    arrays[name] = np.ascontiguousarray(arrays[name].T)


# --- the table --------------------------------------------------------------------------------------------------------

CASES = [
    # files
    Case("data file that is not there", lambda d: ["info", d / "gone.xyz"], ("gone.xyz", "no such file")),
    Case("data file without content", evaluate(text("")), ("bad.xyz", "empty")),
    Case("data file cut short", evaluate(cut_xyz), ("bad.xyz, structure 1", "cut short")),
    Case("compressed data file cut short", evaluate(cut_gzip, "bad.xyz.gz"), ("bad.xyz.gz", "cut short")),
    Case("data file that is noise", evaluate(text(bytes(range(256)))), ("bad.xyz", "number of atoms is expected")),
    Case("format nobody knows", evaluate(text("hello\nworld\n"), "bad.txt"), ("bad.txt", "not recognised")),
    Case("glob without a match", train(data={"train": "no*.xyz"}), ("no*.xyz", "no file matches")),
    Case("directory in place of a file", lambda d: ["evaluate", d / "good.safetensors", d], ("is a directory",)),
    Case("npz archive with a pickle in it", evaluate(hot_npz, "bad.npz"), ("bad.npz", "'z' holds Python objects")),
    Case("npz archive cut short", evaluate(cut_npz, "bad.npz"), ("bad.npz", "npz", "cut short")),
    Case(
        "npz archive of other keys",
        evaluate(lambda path: np.savez(path, a=np.zeros(3)), "bad.npz"),
        ("bad.npz", "found a", "sGDML: R, z"),
    ),
    Case("HDF5 file that is none", evaluate(text(b"\x89HDF\r\n\x1a\n"), "bad.h5"), ("bad.h5", "HDF5", "cut short")),
    Case(
        "JSON list of something else",
        evaluate(text('[{"a": 1}]'), "bad.json"),
        ("bad.json, structure 0", "lacks 'structure'"),
    ),
    Case(
        "DeePMD folder without its elements",
        deepmd(lambda system: (system / "type_map.raw").unlink()),
        ("deepmd", "type_map.raw", "no such file"),
    ),
    Case(
        "DeePMD folder with energies missing",
        deepmd(lambda system: np.save(system / "set.001" / "energy.npy", np.zeros(0))),
        ("deepmd, structure 3", "set.001/energy.npy", "shape (0,)"),
    ),
    Case(
        "compressed data file with a flipped byte",
        evaluate(broken_gzip, "bad.xyz.gz"),
        ("bad.xyz.gz", "cannot be decompressed"),
    ),
    Case(
        "name of a compressed file, other contents",
        evaluate(text(b"\xfd7zXZ\0\0\0" * 2), "bad.xyz.xz"),
        ("bad.xyz.xz", "cannot be decompressed"),
    ),
    Case(
        "damaged start of a compressed file", evaluate(text(b"\xfd7zXY\0\0\0" * 2), "bad.xz"), ("bad.xz", "not recognised")
    ),
    Case(
        "columns that the file cannot hold",
        evaluate(text("1\nProperties=species:S:1:pos:R:1000000000\nH 0 0 0\n")),
        ("bad.xyz, structure 0", "Properties must name the columns pos:R:3"),
    ),
    Case("npz archive with an array twice", evaluate(twice_npz, "bad.npz"), ("bad.npz", "'R' stands there twice")),
    Case("npz archive of atoms without a byte", evaluate(empty_npz, "bad.npz"), ("bad.npz", "key 'z'")),
    Case(
        "count of atoms that the file cannot hold",
        evaluate(text("1000000000\n\nH 0 0 0\n")),
        ("bad.xyz, structure 0", "1000000000 atoms"),
    ),
    # structures and labels
    Case(
        "energy that is NaN",
        evaluate(lambda _: changed(REF_energy=np.nan)),
        ("bad.xyz, structure 1", "REF_energy", "not finite"),
    ),
    Case(
        "force that is infinite",
        evaluate(lambda _: changed(REF_forces=np.full((3, 3), np.inf))),
        ("bad.xyz, structure 1", "REF_forces", "not finite"),
    ),
    Case(
        "forces of two components",
        evaluate(lambda _: changed(REF_forces=np.ones((3, 2)))),
        ("bad.xyz, structure 1", "REF_forces", "shape"),
    ),
    Case(
        "energy too large for another unit",
        lambda d: [*evaluate(lambda _: changed(REF_energy=1e308))(d), "--unit", "energy=Hartree"],
        ("bad.xyz, structure 1", "REF_energy", "too large"),
    ),
    Case(
        "energy that is a ragged list",
        evaluate(text(ragged_mlearn()), "bad.json"),
        ("bad.json, structure 0", "energy", "not a number"),
    ),
    Case(
        "cell so small that its images have no end",
        evaluate(text('1\nProperties=species:S:1:pos:R:3 Lattice="0.02 0 0 0 0.02 0 0 0 0.02"\nH 0 0 0\n')),
        ("bad.xyz, structure 0", "so small or flat", "images"),
    ),
    Case(
        "cell so flat that its images have no end",
        evaluate(text('1\nProperties=species:S:1:pos:R:3 Lattice="1e5 0 0 1e5 1e-3 0 0 0 1"\nH 0 0 0\n')),
        ("bad.xyz, structure 0", "so small or flat", "images"),
    ),
    Case(
        "energy that is a word",
        evaluate(lambda _: changed(REF_energy="low")),
        ("bad.xyz, structure 1", "REF_energy", "not a number"),
    ),
    Case("two energies that differ", evaluate(lambda _: changed(energy=-1.0)), ("bad.xyz", "'energy'", "'REF_energy'")),
    Case(
        "position that is NaN",
        evaluate(lambda _: moved(2, [0, np.nan, 0])),
        ("bad.xyz, structure 1", "atom 2", "not finite"),
    ),
    Case(
        "two atoms in one place",
        train(frames=lambda: moved(1, waters(2)[1].positions[0])),
        ("bad.xyz, structure 1", "atoms 0 and 1"),
    ),
    Case(
        "symbol that is no element",
        evaluate(text("1\nProperties=species:S:1:pos:R:3\nXq 0 0 0\n")),
        ("bad.xyz, structure 0", "Xq"),
    ),
    Case("periodic structure without a cell", structure("relax", no_cell), ("bad.xyz", "periodic along a", "zero")),
    Case(
        "slab whose two periodic vectors are parallel",
        structure("relax", parallel),
        ("bad.xyz", "periodic cell vectors", "no volume"),
    ),
    Case(
        "cell of a hundredth of its size",
        evaluate(lambda _: [speck()]),
        ("bad.xyz, structure 0", "of its images lie within", "in Å?"),
    ),
    Case("structure without atoms", structure("md", Atoms), ("bad.xyz",)),
    Case(
        "element the model does not know, in evaluate",
        evaluate(lambda _: [Atoms("Au", info={"REF_energy": -1.0}, cell=[5, 5, 5], pbc=True)]),
        ("bad.xyz, structure 0", "atom 0 is Au", "knows H O"),
    ),
    Case(
        "element the model does not know, in md",
        structure("md", lambda: bulk("Cu", cubic=True)),
        ("bad.xyz", "atom 0 is Cu", "knows H O"),
    ),
    Case(
        "label with weight that is absent",
        train(frames=lambda: without("REF_forces")),
        ("bad.xyz", "no training structure has forces", "loss.forces"),
    ),
    Case(
        "key that stands nowhere",
        train(data={"train": "train.xyz", "keys": {"energy": "REF_enrgy"}}),
        ("train.xyz", "REF_enrgy", "did you mean 'REF_energy'"),
    ),
    Case(
        "isolated atoms in Hartree, structures in eV",
        train(frames=lambda: waters(12) + isolated_atoms(1 / 27.2114)),
        ("bad.xyz", "reference energies do not belong", "units"),
    ),
    Case(
        "element in the test set that training lacks",
        lambda d: train(data={"train": "train.xyz", "test": "bad.xyz"})(write(d / "bad.xyz", molecule("CH4")) or d),
        ("bad.xyz, structure 0", "C occurs in the test set"),
    ),
    # configs
    Case("config that is not there", lambda d: ["train", d / "gone.yaml"], ("gone.yaml", "cannot be read")),
    Case("config that is not YAML", train("data: {train: [x\n"), ("bad.yaml", "not valid YAML", "line")),
    Case("config that is binary", lambda d: ["train", d / "good.safetensors"], ("good.safetensors", "not")),
    Case("config with a Python tag", hot_pickle_tag, ("bad.yaml", "not valid YAML", "python/object/apply")),
    Case("config with an alias bomb", train(bomb()), ("bad.yaml", "not valid YAML", "alias *a0", "line 2")),
    Case("config with an alias to itself", train("data: &a {train: *a}\n"), ("bad.yaml", "not valid YAML", "alias *a")),
    Case(
        "config nested without end",
        train("data: " + "[" * 5000 + "]" * 5000),
        ("bad.yaml", "not valid YAML", "nested too deeply"),
    ),
    Case("config with a number of 5,000 digits", train(f"seed: {'9' * 5000}\n"), ("bad.yaml", "not valid YAML", "digits")),
    Case(
        "config with a number of 80 bits", train("seed: 0xffffffffffffffffffff\n"), ("bad.yaml", "not valid YAML", "64 bits")
    ),
    Case(
        "config with a date that is none",
        train("data: {train: 2001-99-99}\n"),
        ("bad.yaml", "not valid YAML", "a value cannot be read"),
    ),
    Case(
        "config with a tag on another kind of value",
        train("data: !!map [train]\n"),
        ("bad.yaml", "not valid YAML", "expected keys and values"),
    ),
    Case(
        "config that names a home of nobody",
        train(data={"train": "~nobody_here/x.xyz"}),
        ("~nobody_here/x.xyz", "no such home directory"),
    ),
    Case("config that names a file with a null byte", train('data: {train: "a\\0b"}\n'), ("a\\x00b", "null")),
    Case("config that names a file with an endless name", train(data={"train": "x" * 5000}), ("xxx", "too long")),
    Case("config without data", train("model: {architecture: ace}\n"), ("bad.yaml", "'data' is missing")),
    Case("config that is a list", train("[data, model]\n"), ("bad.yaml", "expected keys and values")),
    Case("key nobody knows", train(training={"epoch": 3}), ("bad.yaml", "training.epoch", "did you mean 'epochs'")),
    Case(
        "architecture nobody knows",
        train(model={"architecture": "schnett"}),
        ("bad.yaml", "model", "schnett", "known: ace, schnet"),
    ),
    Case("negative cutoff", train(model=MODEL | {"cutoff": -4.0}), ("bad.yaml", "model.cutoff", "-4.0")),
    Case(
        "word where a number belongs",
        train(optimizer={"learning_rate": "fast"}),
        ("bad.yaml", "optimizer.learning_rate", "fast"),
    ),
    Case(
        "learning rate that is infinite",
        train("data: {train: train.xyz}\noptimizer: {learning_rate: .inf}\n"),
        ("bad.yaml", "learning_rate", "finite"),
    ),
    Case(
        "unit nobody knows",
        train(data={"train": "train.xyz", "units": {"energy": "kcal"}}),
        ("bad.yaml", "data.units.energy", "kcal/mol"),
    ),
    Case(
        "more training structures than there are",
        train(data={"train": "train.xyz", "n_train": 500}),
        ("train.xyz", "n_train is 500"),
    ),
    Case("option that is mistyped", lambda d: ["train", d / "bad.yaml", "--ouy", "x"], ("--ouy",), code=2),
    # models and runs
    Case("model that is not there", info(lambda path, good: None), ("bad.safetensors", "no such model file")),
    Case("model that is text", info(text("hello")), ("bad.safetensors", "not a safetensors file")),
    Case(
        "model cut short",
        info(lambda path, good: path.write_bytes(good.read_bytes()[:-50])),
        ("bad.safetensors", "truncated"),
    ),
    Case("model that is a pickle", info(poisoned_pickle), ("bad.safetensors", "not a safetensors file")),
    Case(
        "safetensors file of something else",
        info(lambda path, good: save_file({"x": np.zeros(2)}, path)),
        ("bad.safetensors", "not an mlff model"),
    ),
    Case("model that lacks a parameter", info(model(drop("head/output"))), ("bad.safetensors", "head/output", "missing")),
    Case("model with a parameter that is NaN", info(model(poison)), ("bad.safetensors", "parameter", "not finite")),
    Case("model with a parameter of another shape", info(model(reshape)), ("bad.safetensors", "embedding", "shape")),
    Case("model with parameters that are whole numbers", info(model(whole)), ("bad.safetensors", "parameter", "int32")),
    Case("model with a parameter inside another", info(model(nested)), ("bad.safetensors", "not that of an mlff model")),
    Case(
        "model that promises 10^9 layers",
        info(model(header=lambda h: h["model"].update(layers=10**9))),
        ("bad.safetensors", "1000000000 layers"),
    ),
    Case(
        "model that promises 10^9 channels",
        info(model(header=lambda h: h["model"].update(channels=10**9))),
        ("bad.safetensors", "1000000000 channels"),
    ),
    Case(
        "model with an endless cutoff",
        info(model(header=lambda h: h["model"].update(cutoff=1e300))),
        ("bad.safetensors", "less than or equal to 100"),
    ),
    Case(
        "model whose header holds an infinity",
        info(model(header=lambda h: h["metadata"].update(x=float("inf")))),
        ("bad.safetensors", "metadata"),
    ),
    Case(
        "model with an element of 400 digits",
        info(model(header=lambda h: h.update(baseline={"1": 10**400, "8": 0}))),
        ("bad.safetensors", "OverflowError"),
    ),
    Case(
        "model whose certificate is none",
        info(model(header=lambda h: h["metadata"].update(certificate=[1]))),
        ("bad.safetensors", "metadata"),
    ),
    Case(
        "model whose errors are none",
        info(model(header=lambda h: h["metadata"].update(errors={"x": {"a": 1}}))),
        ("bad.safetensors", "errors", "metadata"),
    ),
    Case(
        "model whose reference structures are ragged",
        evaluate_model(model(header=lambda h: h["metadata"].update(references=[REFERENCE | {"forces": [[0, 0, 0]] * 2}]))),
        ("bad.safetensors", "reference structures cannot be evaluated"),
    ),
    Case(
        "model whose reference structures hold an atom of 30 digits",
        evaluate_model(model(header=lambda h: h["metadata"].update(references=[REFERENCE | {"numbers": [10**30]}]))),
        ("bad.safetensors", "reference structures cannot be evaluated"),
    ),
    Case(
        "model file whose header has no end",
        info(text(b"\xff" * 8 + b"{}")),
        ("bad.safetensors", "not a safetensors file, or truncated"),
    ),
    Case(
        "model file whose header is larger than the file",
        info(text((10**9).to_bytes(8, "little") + b"{}")),
        ("bad.safetensors", "truncated"),
    ),
    Case(
        "model of a newer version",
        info(model(header=lambda h: h.update(format_version=99))),
        ("bad.safetensors", "format 99", "newer"),
    ),
    Case(
        "model with an unknown architecture",
        info(model(header=lambda h: h["model"].update(architecture="os.system"))),
        ("bad.safetensors", "os.system"),
    ),
    Case(
        "model whose header lacks the elements",
        info(model(header=lambda h: h.pop("elements"))),
        ("bad.safetensors", "elements"),
    ),
    Case(
        "run directory without a model",
        lambda d: ["info", (d / "empty").mkdir() or d / "empty"],
        ("empty", "no such model file"),
    ),
    Case(
        "run directory below a file",
        lambda d: ["train", d / "ok.yaml", "--out", good_config(d) / "train.xyz" / "run"],
        ("train.xyz/run", "not a directory"),
    ),
    Case("run directory that another process uses", busy_run, ("run", "another process trains there")),
    Case("trajectory that another process writes", busy_trajectory, ("md.xyz", "another process writes it")),
    Case(
        "errors to write where there is no directory",
        lambda d: ["evaluate", d / "good.safetensors", d / "test.xyz", "--json", d / "gone" / "errors.json", "--quiet"],
        ("gone/errors.json", "no such directory"),
    ),
    Case("run directory of another config", other_run, ("run", "seed (0 there, 7 here)", "choose another --out")),
    Case("run with a damaged list of checkpoints", damaged_list, ("bad_run", "checkpoints cannot be listed")),
    Case("run whose checkpoint has no counters", damaged_record, ("bad_run", "not that of a run of mlff")),
    Case("run whose checkpoints are all damaged", damaged_checkpoints, ("bad_run", "no checkpoint is whole")),
    Case(
        "trajectory that cannot be continued",
        lambda d: ["md", d / "good.safetensors", d / "water.xyz", "--restart", "--out", d / "gone.traj", "--quiet"],
        ("gone", "no"),
    ),
]


def copy(good: Path, folder: Path) -> Path:
    """A folder of its own for a case, with the good inputs."""
    return Path(shutil.copytree(good, folder))


def main() -> None:
    """Print case and answer, as a table."""
    import tempfile

    from rich.console import Console
    from rich.table import Table
    from typer.testing import CliRunner

    from mlff.cli import app

    table = Table("input", "what the user sees", title=f"{len(CASES)} malformed inputs", show_lines=True)
    with tempfile.TemporaryDirectory() as root:
        good = Path(root) / "good"
        good.mkdir()
        prepare(good)
        for number, case in enumerate(CASES):
            folder = copy(good, Path(root) / f"case{number}")
            result = CliRunner().invoke(app, [str(argument) for argument in case.arguments(folder)])
            answer = result.stderr.strip().replace(f"{folder}/", "").replace(str(folder), ".")
            table.add_row(case.what, f"{answer} [exit {result.exit_code}]".replace("[", r"\["))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main()
