"""HDF5: damaged files, and whole ones whose groups, links, types, shapes and attributes are not what they should be."""

from __future__ import annotations

import io
import random
from pathlib import Path

import h5py
import numpy as np

from mlff.simulation.h5md import H5MDWriter
from tests import samples
from tests.fuzzing.mutations import mutate_bytes, some

CANARY = "canary.h5"  #: beside the scratch folder; see targets.CANARY
_KEYS = [
    "coordinates",
    "conformations",
    "species",
    "atomic_numbers",
    "energies",
    "energy",
    "forces",
    "dft_total_energy",
    "smiles",
]
_KEYS += ["particles", "position", "value", "box", "edges", "velocity", "time", "observables", "mass"]
_KEYS += ["dft_total_gradient", "x", "\x1b[31m", "[/x]", "stress", "virial", "positions", "numbers"]
_SHAPES = [
    (),
    (0,),
    (1,),
    (4, 3, 3),
    (10**9,),
    (10**9, 3, 3),
    (4, 10**9, 3),
    (1, 2**40, 3),
    (4, 3),
    (4, 3, 4),
    (0, 3, 3),
    (4, 0, 3),
    (4, 3, 2**33),
]


def prepare(folder: Path) -> list[bytes]:
    """Both manners, in the old and in the newest version of the file format; a trajectory in H5MD; the canary."""
    seeds = []
    for make in (samples.ani, samples.spice):
        path, _ = make(folder)
        seeds.append(path.read_bytes())
        buffer = io.BytesIO()
        with h5py.File(path) as old, h5py.File(buffer, "w", libver="latest") as new:
            for key in old:
                old.copy(key, new)
        seeds.append(buffer.getvalue())
    writer = H5MDWriter(folder / "a.h5md", append=False)
    for step, atoms in enumerate(samples.frames()):
        atoms.set_velocities(atoms.positions)
        writer.write(atoms, atoms.get_potential_energy(), atoms.get_forces(), step, 1e-3 * step)
    writer.close()
    seeds.append((folder / "a.h5md").read_bytes())
    with h5py.File(folder.parent / CANARY, "w") as file:
        group = file.create_group("g")
        group["species"], group["coordinates"] = np.array([b"H"]), np.zeros((1, 1, 3))
        group["energies"] = np.array([-31337.0])
    return seeds


def mutate(rng: random.Random, seeds: list[bytes]) -> dict[str, bytes]:
    content = rng.choice(seeds)
    if rng.random() < 0.7:
        return {"a.h5": mutate_bytes(rng, content)}
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        for _ in range(some(rng)):
            try:
                _change(rng, file)
            except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, OverflowError):
                continue
    content = buffer.getvalue()
    return {"a.h5": content if rng.random() < 0.9 else mutate_bytes(rng, content)}


def _change(rng: random.Random, file: h5py.File) -> None:
    groups = [file]
    file.visititems(lambda name, item: groups.append(item) if isinstance(item, h5py.Group) else None)
    group = rng.choice(groups)
    keys = list(group)
    key = rng.choice(keys) if keys and rng.random() < 0.7 else rng.choice(_KEYS)
    kind = rng.randrange(16)
    old = group.get(key) if kind < 6 else None
    if kind != 14 and key in group:
        del group[key]
    elsewhere = str(Path("..") / CANARY)
    if kind <= 2 and isinstance(old, h5py.Dataset) and old.shape is not None and 0 < old.size < 1000:
        values = np.atleast_1d(old[()])
        if kind == 0 and values.dtype.kind in "iuf":
            values.flat[rng.randrange(values.size)] = (
                rng.choice([np.nan, np.inf, 1e308, -1, 1e10]) if values.dtype.kind == "f" else rng.choice((0, 119, -1, 6))
            )
            group[key] = values
        elif kind == 1:
            group[key] = values[..., None] if rng.random() < 0.5 else values[: rng.randrange(len(values) + 1)]
        else:
            group[rng.choice(_KEYS)] = values
    elif kind <= 5:
        group.create_dataset(
            key,
            shape=rng.choice(_SHAPES),
            dtype=rng.choice(("f8", "f4", "i8", "S2", "u1")),
            chunks=rng.random() < 0.5 or None,
        )
    elif kind == 6:
        group[key] = h5py.ExternalLink(
            rng.choice((elsewhere, "/etc/passwd", "a.h5")), rng.choice(("/g/coordinates", "/g", "/"))
        )
    elif kind == 7:
        group[key] = h5py.SoftLink(rng.choice(("/", "/nowhere", f"/{key}", "..", "/g")))
    elif kind == 8:
        group[key] = rng.choice(groups)  # a hard link, perhaps to a parent
    elif kind == 9:
        group.create_dataset(key, shape=(4, 3, 3), dtype="f8", external=[(rng.choice((elsewhere, "/etc/passwd")), 0, 288)])
    elif kind == 10:
        layout = h5py.VirtualLayout(shape=(1, 1, 3), dtype="f8")
        layout[...] = h5py.VirtualSource(elsewhere, "/g/coordinates", shape=(1, 1, 3))
        group.create_virtual_dataset(key, layout)
    elif kind == 11:
        group[key] = rng.choice(
            [
                np.zeros(4, dtype=[("a", "f8"), ("b", "S3")]),
                np.array(["H", "O", "H"], dtype=h5py.string_dtype()),
                h5py.Empty("f8"),
                np.array([b"H", b"Xx", b"\xff"]),
                np.ones(3, bool),
                np.zeros((4, 3, 3), complex),
                "text",
                7,
                np.zeros((4, 3, 3), "f2"),
            ]
        )
    elif kind == 12:
        group.create_dataset(key, shape=(3,), dtype=h5py.special_dtype(vlen=np.dtype("i4")))
    elif kind == 13:
        inner = group
        for _ in range(rng.choice((3, 30, 150))):
            inner = inner.create_group(rng.choice(_KEYS))
    elif kind == 14 and key in group:
        value = rng.choice(
            ("bohr", "hartree", "parsec", 7, b"\xff", np.zeros(3), "x" * 3000, "\x1b[31m", h5py.Empty("S1"), ["a", "b"])
        )
        group[key].attrs["units"] = value
    else:
        group[key] = np.dtype("f8")  # a named type
