"""What is fuzzed: for each reader its seeds (small valid inputs), how they are mutated, and how they are read and checked.

An input is a dictionary of file names and bytes. Every target reads through the entry that the commands use.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import random
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from mlff.basics.errors import DataError
from mlff.config.load import dump_config, load_config
from mlff.data.dataset import expand, read_dataset
from mlff.data.formats import _plain_file
from mlff.report import tables
from tests import samples
from tests.fuzzing import archives, hdf5, models, runs
from tests.fuzzing.mutations import dump_json, mutate_bytes, mutate_text, mutate_tree

Files = dict[str, bytes]
CANARY = -31337.0  #: eV; the energy in a file beside the scratch folder, which no input may bring in


class Target(NamedTuple):
    """`prepare(folder)` makes the seeds; `mutate(rng, seeds)` one input; `read(folder)` reads the input that lies there.

    `read` raises AssertionError where what was accepted is not finite or not consistent.
    """

    prepare: Callable[[Path], Any]
    mutate: Callable[[random.Random, Any], Files]
    read: Callable[[Path], None]
    names: tuple[str, ...]  #: one of which an error must contain


# --- reference data ---------------------------------------------------------------------------------------------------


def _sample(*names: str):
    """[(files, options)] of samples by these makers."""

    def prepare(folder: Path) -> list[tuple[Files, dict]]:
        seeds = []
        for name in names:
            path, options = samples.FORMATS[name](folder)
            seeds.append((_files(path), options))
        return seeds

    return prepare


def _files(path: Path) -> Files:
    if path.is_file():
        return {path.name: path.read_bytes()}
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def _read_data(folder: Path) -> None:
    """Read with the labels and units assumed, then (one in sixteen, for it takes longer) print what `mlff info` would."""
    (path,) = [path for path in folder.iterdir() if not path.name.startswith(".")]
    dataset = read_dataset(path)
    for structure in dataset:
        n = len(structure)
        assert n > 0 and structure.numbers.dtype == np.int32 and structure.numbers.shape == (n,), "numbers"
        assert structure.positions.shape == (n, 3) and np.isfinite(structure.positions).all(), "positions"
        assert structure.cell.shape == (3, 3) and np.isfinite(structure.cell).all() and structure.pbc.shape == (3,), "cell"
        assert structure.energy is None or isinstance(structure.energy, float) and np.isfinite(structure.energy), "energy"
        assert structure.energy != CANARY, "read a file outside"
        assert structure.forces is None or structure.forces.shape == (n, 3) and np.isfinite(structure.forces).all(), "forces"
        assert structure.stress is None or structure.stress.shape == (3, 3) and np.isfinite(structure.stress).all(), "stress"
        assert np.isfinite(structure.weight) and structure.weight >= 0, "weight"
    assert all(np.isfinite(energy) for energy in dataset.isolated_atoms.values()), "isolated atoms"
    assert str(dataset.census).isprintable(), "the census is not one printable line"
    if path.is_file() and zlib.crc32(path.read_bytes()) % 16 == 0:
        _print(tables.data(dataset, path))


def _print(renderable) -> None:
    with open("/dev/null", "w", encoding="utf-8") as nowhere:
        Console(file=nowhere, width=100).print(renderable)


_XYZ = [
    b"Properties=species:S:1:pos:R:3",
    b"Lattice=",
    b'pbc="T T F"',
    b"energy",
    b"REF_energy",
    b"forces",
    b"stress",
    b"virial",
]
_XYZ += [
    b":R:1000000000",
    b":R:0",
    b":I:1",
    b":L:1",
    b":S:1",
    b"VEC1 1 0 0",
    b"config_type=IsolatedAtom",
    b"momenta:R:3",
    b"H",
    b"Xx",
]
_XYZ += [
    b'free_energy=1e400 energy="[1, 2]"',
    b"_JSON [[1, 2], {}]",
    b"tags:I:1",
    b"initial_charges:R:1",
    b"magmoms:R:3",
    b"dipole",
]
_XYZ += [
    b'key="_JSON ' + b"[" * 3000 + b'"',
    b"positions",
    b"numbers",
    b"Z:I:1",
    b"=" * 30,
    b"cell",
    b"constraints",
    b"move_mask:L:1",
]


def _mutate_xyz(rng: random.Random, seeds) -> Files:
    (name, content), *_ = rng.choice(seeds)[0].items()
    content = mutate_text(rng, content, _XYZ) if rng.random() < 0.75 else mutate_bytes(rng, content)
    if rng.random() < 0.06:
        suffix, packed = rng.choice(((".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)))
        packed = packed(content)
        return {name + suffix: packed if rng.random() < 0.3 else mutate_bytes(rng, packed)}
    return {name: content}


def _xyz_seeds(folder: Path):
    seeds = _sample("extxyz")(folder)
    (content,) = seeds[0][0].values()
    two = b"".join(content.splitlines(keepends=True)[:10])
    plain = b'2\n\nH 0 0 0\nO 0 0 0.9\n1\nREF_energy=-13.6 config_type=IsolatedAtom pbc="F F F"\nH 0.0 0.0 0.0\n'
    rich = (
        b'2\nProperties=species:S:1:pos:R:3:REF_forces:R:3:tags:I:1 REF_energy=-1.5 virial="1 0 0 0 1 0 0 0 1" weight=2.0 '
    )
    rich += (
        b'Lattice="4 0 0 0 4 0 0.1 0 4" pbc="T T T" note="a b" _list=[1,2,3]\nSi 0 0 0 0.1 0 0 1\nSi 1.9 1 0 -0.1 0 0 2\n'
    )
    return [({"a.xyz": text}, {}) for text in (two, plain, rich)]


_JSON = [
    "structure",
    "outputs",
    "lattice",
    "matrix",
    "sites",
    "xyz",
    "species",
    "element",
    "energy",
    "forces",
    "virial_stress",
    "group",
]
_JSON += [
    "Dataset",
    "Data",
    "Positions",
    "AtomTypes",
    "Lattice",
    "NumAtoms",
    "Energy",
    "Stress",
    "Hartree",
    "kbar",
    "bohr",
    "pbc",
    "occu",
]


def _mutate_json(rng: random.Random, seeds) -> Files:
    (name, content), *_ = rng.choice(seeds)[0].items()
    if rng.random() < 0.4:
        raw = (
            mutate_text(rng, content, [word.encode() for word in _JSON])
            if rng.random() < 0.6
            else mutate_bytes(rng, content)
        )
        return {name: raw}
    comment, _, text = content.rpartition(b"\n")
    return {name: comment + b"\n" * bool(comment) + dump_json(rng, mutate_tree(rng, json.loads(text), _JSON))}


def _mutate_lines(rng: random.Random, seeds, words=()) -> Files:
    files = dict(rng.choice(seeds)[0])
    name = rng.choice(list(files))
    files[name] = mutate_text(rng, files[name], words) if rng.random() < 0.7 else mutate_bytes(rng, files[name])
    return files


_N2P2 = [b"begin", b"end", b"comment", b"lattice", b"atom", b"energy", b"charge", b"H", b"O", b"atom 1 2 3 H 0 0 0 0 0"]
_DEEPMD = [b"1", b"0", b"-1", b"H", b"Xx", b"2"]


def _mutate_deepmd(rng: random.Random, seeds) -> Files:
    files = dict(rng.choice(seeds)[0])
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice(list(files))
        kind = rng.randrange(8)
        if kind == 0:
            del files[name]
        elif kind == 1:
            files[name] = rng.choice(list(files.values()))
        elif name.endswith(".npy") and kind <= 5:
            files[name] = archives.mutate_npy(rng, files[name])
        elif name.endswith(".npy"):
            files[name] = mutate_bytes(rng, files[name])
        else:
            files[name] = mutate_text(rng, files[name], _DEEPMD)
        if kind == 7:
            files[rng.choice(("deepmd/nopbc", "deepmd/set.000/real_atom_types.npy", "deepmd/set.1/x"))] = b""
    if not any(name.startswith("deepmd/") for name in files):
        files["deepmd/type.raw"] = b""
    return files


# --- configs ----------------------------------------------------------------------------------------------------------

_YAML = [
    b"data:",
    b"train:",
    b"model:",
    b"!!python/object/apply:os.system [touch executed]",
    b"!!python/name:os.system",
    b"!!binary x",
]
_YAML += [
    b"!!timestamp x",
    b"!!int x",
    b"!!float x",
    b"!!bool x",
    b"!!set {a}",
    b"!!omap [a]",
    b"!!map [a]",
    b"!!str",
    b"!!null",
    b"!x",
]
_YAML += [
    b"2001-99-99",
    b"2001-01-01 25:61:00",
    b"&a",
    b"*a",
    b"<<: *a",
    b"<<:",
    b"? [a]",
    b"? {a: b}",
    b"1:60",
    b"0o9",
    b"0x1F",
    b".inf",
]
_YAML += [
    b"!!int " + b"9" * 5000,
    b"9" * 5000,
    b"~nobody/x",
    b'"\\ud800"',
    b'"\\0"',
    b"---\n",
    b"...\n",
    b"%YAML 9.9\n",
    b"|\n",
    b">-\n",
]
_YAML += [
    b"seed",
    b"epochs",
    b"reference_energies: {H: -1}",
    b"schedule: [{start: 0.5}]",
    b"test: {a: b}",
    b"lint: off",
    b"on",
    b"~",
    b"0b2",
]


def _bomb(rng: random.Random) -> bytes:
    """Billion laughs, or an alias to itself, in a section."""
    where = rng.choice(
        (b"data: {train: %s}", b"data: {train: x, test: %s}", b"x: %s", b"loss: {schedule: %s}", b"model: %s", b"%s: 1")
    )
    if rng.random() < 0.3:
        return (
            where % rng.choice((b"&a [*a]", b"&a {b: *a}", b"&a {<<: *a}", b"&a [*a, *a]", b"{<<: [&a {b: 1}, *a]}")) + b"\n"
        )
    levels = rng.choice((5, 9, 30))
    lines = [b"a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [b"a%d: &a%d [%s]" % (k, k, b", ".join([b"*a%d" % (k - 1)] * 9)) for k in range(1, levels)]
    return b"\n".join([*lines, where % (b"*a%d" % (levels - 1)), b""])


def _config_seeds(folder: Path) -> list[bytes]:
    root = Path(__file__).parents[2] / "configs"
    seeds = [path.read_bytes() for path in sorted(root.glob("*.yaml"))]
    (folder / "c.yaml").write_bytes(seeds[0])
    rich = b"seed: 3\ndata:\n  train: [a.xyz, b.xyz]\n  valid: v.xyz\n  keys: {energy: e, group: g}\n  split: group\n"
    rich += b"  units: {energy: Hartree, stress_order: {a: vasp}}\n  reference_energies: {H: -13.6}\n"
    rich += b"model: {architecture: schnet, cutoff: 4}\nloss:\n  schedule:\n  - {start: 0.5, energy: 10}\n"
    rich += b"optimizer: {name: adam, clip: null, schedule: {kind: plateau}}\ntraining: {max_hours: 0.5}\n"
    return [*seeds, rich, dump_config(load_config(folder / "c.yaml")).encode(), rich]


def _mutate_config(rng: random.Random, seeds: list[bytes]) -> Files:
    if rng.random() < 0.03:
        return {"c.yaml": _bomb(rng)}
    content = rng.choice(seeds)
    return {"c.yaml": mutate_text(rng, content, _YAML) if rng.random() < 0.85 else mutate_bytes(rng, content)}


def _read_config(folder: Path) -> None:
    """Load, write as a resolved config and load that again; look for the files it names as a run would."""
    config = load_config(folder / "c.yaml")
    (folder / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    again = load_config(folder / "again.yaml")
    assert again.model_copy(update={"data": config.data}) == config, "the resolved config differs"
    tests = config.data.test.values() if isinstance(config.data.test, dict) else [config.data.test]
    for named in (config.data.train, config.data.valid, *tests):
        if named is not None and "*" not in str(named):
            with contextlib.suppress(DataError):  # it names that file, not the config
                for file in filter(_is_missing, expand(named)):
                    with _plain_file(file):
                        raise AssertionError("opened a file that is not there")


def _is_missing(file: Path) -> bool:
    try:
        return not file.exists()
    except (OSError, ValueError):
        return True


# --- the table --------------------------------------------------------------------------------------------------------

TARGETS: dict[str, Target] = {
    "extxyz": Target(_xyz_seeds, _mutate_xyz, _read_data, ("a.xyz",)),
    "npz": Target(_sample("sgdml", "rmd17", "physnet", "nequip"), archives.mutate_npz, _read_data, (".npz",)),
    "hdf5": Target(hdf5.prepare, hdf5.mutate, _read_data, (".h5",)),
    "json": Target(_sample("mlearn", "fitsnap"), _mutate_json, _read_data, (".json",)),
    "n2p2": Target(_sample("n2p2"), partial(_mutate_lines, words=_N2P2), _read_data, ("input.data",)),
    "deepmd": Target(_sample("deepmd"), _mutate_deepmd, _read_data, ("deepmd",)),
    "config": Target(_config_seeds, _mutate_config, _read_config, ("c.yaml", "again.yaml")),
    "model": Target(models.prepare, models.mutate, models.read, ("m.safetensors",)),
    "checkpoint": Target(runs.prepare_records, runs.mutate_records, runs.read_records, ("checkpoints",)),
    "checkpoint files": Target(runs.prepare_checkpoints, runs.mutate_checkpoints, runs.read_checkpoints, ("checkpoints",)),
    "state": Target(runs.prepare_state, runs.mutate_state, runs.read_state, ("md.",)),
}
