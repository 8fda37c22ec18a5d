"""Model files: damaged containers, other JSON in the header, parameters of other names, types and shapes.

Loading computes the reference structures again, which compiles a program per file. In the process that fuzzes, `predict`
checks the structures and lists their neighbours as ever, but says zero instead of running the network; the seeds' labels
are zero. `tests/test_references.py` runs the network.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from safetensors.numpy import load as parse
from safetensors.numpy import save as serialise

from mlff.certificate.certificate import Certificate
from mlff.certificate.line import Line
from mlff.config.options import ACE, LennardJones, SchNet
from mlff.data.batching import make_sample
from mlff.data.structure import Structure
from mlff.models import registry
from mlff.models.common import Statistics
from mlff.models.parameters import initial_params
from mlff.potential.modelfile import CERTIFICATE
from mlff.potential.potential import Potential
from mlff.potential.result import Result
from mlff.potential.selfcheck import KEY
from mlff.report import tables
from mlff.training.metrics import Metrics
from tests.fuzzing.mutations import dump_json, mutate_bytes, mutate_tree

_WORDS = [
    "ace",
    "schnet",
    "morse",
    "lennard_jones",
    "os.system",
    "float64",
    "H",
    "1",
    "8",
    "layers",
    "channels",
    "cutoff",
    "inner_cutoff",
    "shifts",
]
_WORDS += [
    "references",
    "certificate",
    "errors",
    "metadata",
    "format_version",
    "mlff potential",
    "params",
    "lines",
    "passed",
    "name",
]
_CONFIGS = (
    LennardJones(),
    SchNet(cutoff=4.0, channels=2, layers=1, radial_basis=2),
    ACE(cutoff=4.0, channels=2, layers=1, l_max=1, l_message=0, correlation=2, radial_basis=2),
)


def prepare(folder: Path) -> list[bytes]:
    Potential.predict = _predict
    geometry = {"numbers": [8, 1, 1], "positions": [[0, 0, 0], [0.9, 0.3, 0], [-0.3, 0.9, 0.1]]}
    isolated = geometry | {
        "cell": np.zeros((3, 3)).tolist(),
        "pbc": [False] * 3,
        "energy": 0.0,
        "forces": [[0.0] * 3] * 3,
        "stress": None,
    }
    periodic = isolated | {"cell": [[5, 0, 0], [0.5, 5, 0], [0, 0, 6.0]], "pbc": [True] * 3, "stress": [[0.0] * 3] * 3}
    line = Line("forces against differences", 1e-3, "eV/Å", 1e-4, "water")
    metadata = {
        "data": {"train": "ab" * 32}, "training": {"epochs": 3, "best_epoch": 2},
        "versions": {"mlff": "0.1.0"}, "machine": "x",
        KEY: [isolated, periodic], CERTIFICATE: Certificate((line,)).to_dict(),
        "errors": {"validation": Metrics(2, 2, 18, 0, 1.0, 1.0, 0.3, 0.3, 10.0, 8.0, 900.0, {"H": 9.0}).to_dict()},
    }  # fmt: skip
    seeds = []
    for config in _CONFIGS:
        statistics = Statistics(1.5, 2.0, (-1.0, -2.0), (0.7,) * 4)
        params = initial_params(registry.build(config, (1, 8), statistics), seed=0)
        Potential(config, params, (1, 8), {1: -13.6, 8: -2041.5}, statistics, "float32", metadata).save(
            folder / "m.safetensors"
        )
        seeds.append((folder / "m.safetensors").read_bytes())
    return seeds


def _predict(potential: Potential, structures, stress=None, progress=False) -> list[Result]:
    results = []
    for number, atoms in enumerate(structures):
        structure = Structure.from_atoms(atoms, source=f"structure {number}")
        potential.check(structure)
        make_sample(structure, potential.cutoff)
        n, periodic = len(structure), structure.pbc.all()
        results.append(Result(0.0, np.zeros((n, 3)), np.zeros((3, 3)) if periodic else None, np.zeros(n)))
    return results


def mutate(rng: random.Random, seeds: list[bytes]) -> dict[str, bytes]:
    content = rng.choices(seeds, (6, 3, 1))[0]
    kind = rng.random()
    if kind < 0.3:
        return {"m.safetensors": mutate_bytes(rng, content)}
    size = struct.unpack_from("<Q", content)[0]
    outer = json.loads(content[8 : 8 + size])
    if kind < 0.4:
        header = dump_json(rng, mutate_tree(rng, outer, [*_WORDS, "F64", "BF16", "I8", "BOOL", "__metadata__"]))
        size = len(header) if rng.random() < 0.9 else rng.choice((0, 1, 10**9, 2**63, 2**64 - 1, len(header) + 1))
        return {"m.safetensors": struct.pack("<Q", size) + header + content[8 + len(header) :][: len(content)]}
    tensors = parse(content)
    entry = json.loads(outer["__metadata__"]["mlff"])
    if kind < 0.5 and tensors:
        _change(rng, tensors)
    else:
        part = rng.choice(("model", "metadata", "statistics", None, None, "baseline"))
        if part is not None:
            entry[part] = mutate_tree(rng, entry[part], _WORDS)
        else:
            entry = mutate_tree(rng, entry, _WORDS)
    text = dump_json(rng, entry)
    if rng.random() < 0.05:
        text = mutate_bytes(rng, text)
    return {"m.safetensors": serialise(tensors, metadata={"mlff": text.decode("utf-8", "replace")})}


def _change(rng: random.Random, tensors: dict[str, np.ndarray]) -> None:
    name, kind = rng.choice(list(tensors)), rng.randrange(7)
    array = tensors[name]
    if kind == 0:
        tensors[name] = array.astype(rng.choice(("f2", "f8", "i4", "u1", "bool", "i8")))
    elif kind == 1:
        tensors[name] = np.full_like(array, rng.choice((np.nan, np.inf, 1e38, 0.0)))
    elif kind == 2:
        tensors[name] = np.ascontiguousarray(np.concatenate([array, array]) if array.ndim else array[None])
    elif kind == 3:
        del tensors[name]
    elif kind == 4:
        tensors[rng.choice((name + "/x", "params", "params/x", "", "/", name.split("/")[0], "\x1b[31m", "../x"))] = array
    elif kind == 5:
        tensors[name.replace("params", rng.choice(("params/params", "param", "")))] = tensors.pop(name)
    else:
        tensors[name] = np.zeros(rng.choice(((0,), (), (1,), (3, 0))), "f4")


def read(folder: Path) -> None:
    """Load with its references, then what `mlff info` and a calculator ask of it, then save it again."""
    path = folder / "m.safetensors"
    potential = Potential.load(path)
    leaves = jax.tree.leaves(potential.params)
    assert all(np.isfinite(leaf).all() for leaf in leaves), "parameters"
    assert np.isfinite(list(potential.baseline.values())).all() and set(potential.baseline) == set(potential.elements), (
        "baseline"
    )
    assert all(isinstance(name, str) for name in potential.failed_checks), "certificate"
    assert len(potential.reference_structures) <= 1000
    table = tables.model(potential, path)
    if zlib.crc32(path.read_bytes()) % 16 == 0:
        with open("/dev/null", "w", encoding="utf-8") as nowhere:
            Console(file=nowhere, width=100).print(table)
    potential.save(folder / "again.safetensors")
