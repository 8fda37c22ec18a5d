"""npy and npz with other shapes, types, values and promises than the reader expects."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from functools import cache

import numpy as np

from tests.fuzzing.mutations import NUMBERS, mutate_bytes, mutate_text, some

_KEYS = [
    "R",
    "z",
    "Z",
    "E",
    "F",
    "N",
    "coords",
    "nuclear_charges",
    "energies",
    "forces",
    "pos",
    "atomic_numbers",
    "energy",
    "cell",
    "pbc",
]
_KEYS += ["lattice", "r_unit", "e_unit", "virial", "stress", "numbers", "positions", "\x1b[31m", "[/x]", "../x", "a" * 300]
_TYPES = ["<i1", "<u8", "<f2", "<f4", ">f8", "<c16", "?", "S0", "U0", "S3", "U2", "<M8[s]", "V8", "O", "<f16", "<i4"]
_HUGE = [0, 1, -1, 3, 10**9, 2**31, 2**62, 10**30]


class _Hostile:
    def __reduce__(self):
        return print, ("executed",)


def arrays(content: bytes) -> dict[str, np.ndarray]:
    """Key -> array of an npz archive."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def pack(content: dict[str, np.ndarray | bytes], rng: random.Random) -> bytes:
    """An npz archive; bytes are the content of a member as it is."""
    buffer = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for key, value in content.items():
            archive.writestr(f"{key}.npy", value if isinstance(value, bytes) else to_npy(value))
    return buffer.getvalue()


def to_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def change(rng: random.Random, array: np.ndarray) -> np.ndarray | bytes:
    """Another shape, type or value, or a header that promises what is not there."""
    kind = rng.randrange(12)
    array = array.copy()
    if kind <= 2 and array.size and array.dtype.kind in "fiu":
        values = [np.nan, np.inf, -1, 0, 1e9, 1e308, 119, 0.5] if array.dtype.kind == "f" else [0, 1, 118, 119, 127, 6]
        array.flat[rng.randrange(array.size)] = rng.choice(values)
        return array
    if kind == 3:
        return array[: rng.randrange(len(array) + 1)] if array.ndim else array[None]
    if kind == 4:
        return np.concatenate([array, array]) if array.ndim else np.array([array, array])
    if kind == 5:
        return array[..., None] if rng.random() < 0.5 else array.reshape(-1)
    if kind == 6 and array.ndim > 1:
        return array.swapaxes(0, rng.randrange(array.ndim))
    if kind == 7:
        return np.asfortranarray(array) * rng.choice((1, 1e-3, 1e6)) if array.dtype.kind == "f" else array.reshape(-1)[::-1]
    if kind == 8:
        try:
            return array.astype(rng.choice(_TYPES))
        except (TypeError, ValueError):
            return np.array(_Hostile(), dtype=object)
    if kind == 9:
        return np.array([_Hostile()] * 2, dtype=object)
    return promise(rng, to_npy(array))


def promise(rng: random.Random, npy: bytes) -> bytes:
    """The same data behind another header."""
    start = npy.index(b"{")
    end = npy.index(b"\n", start)
    shape = tuple(rng.choice(_HUGE) for _ in range(rng.randrange(5)))
    kind = rng.randrange(6)
    if kind == 0:
        header = mutate_text(rng, npy[start:end], [b"'descr'", b"'shape'", b"(1000000000, 3)", b"'|O'", b"'<U0'", *NUMBERS])
    elif kind == 1:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': " + b"(" * rng.choice((50, 5000)) + b"1,"
    else:
        header = repr({"descr": rng.choice(_TYPES), "fortran_order": rng.random() < 0.5, "shape": shape}).encode()
    version, width = rng.choice(
        ((b"\x01\x00", "<H"), (b"\x01\x00", "<H"), (b"\x02\x00", "<I"), (b"\x03\x00", "<I"), (b"\x09\x00", "<H"))
    )
    size = len(header) + 1 if rng.random() < 0.9 else rng.choice((0, 1, 65535))
    data = npy[end + 1 :] if rng.random() < 0.6 else b""
    return b"\x93NUMPY" + version + struct.pack(width, min(size, 65535)) + header + b"\n" + data


def mutate_npy(rng: random.Random, npy: bytes) -> bytes:
    try:
        changed = change(rng, np.load(io.BytesIO(npy), allow_pickle=False))
    except Exception:  # noqa: BLE001  changed before; numpy raises whatever the damage suggests
        return mutate_bytes(rng, npy)
    return changed if isinstance(changed, bytes) else to_npy(changed)


@cache
def _bomb() -> bytes:
    """100 MB of zeros, packed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key, shape in (("R", (400_000, 10, 3)), ("z", (10,)), ("E", (400_000,))):
            archive.writestr(f"{key}.npy", to_npy(np.zeros(shape)))
    return buffer.getvalue()


def mutate_arrays(rng: random.Random, content: dict[str, np.ndarray], keys: list[str]) -> bytes:
    """Arrays changed, lost, exchanged, renamed and added; members twice or under odd names."""
    content = dict(content)
    for _ in range(some(rng, 3)):
        if not content:
            break
        key, kind = rng.choice(list(content)), rng.randrange(10)
        if isinstance(content[key], bytes):
            continue
        if kind <= 5:
            content[key] = change(rng, content[key])
        elif kind == 6:
            del content[key]
        elif kind == 7:
            content[rng.choice(keys)] = content.pop(key)
        elif kind == 8:
            content[rng.choice(keys)] = rng.choice(list(content.values()))
        else:
            content[rng.choice(keys)] = np.array(
                rng.choice(("kcal/mol", "eV", "Ang", b"\xff", 1.0, 7, True, "x" * 500, "\x1b[0m"))
            )
    packed = pack(content, rng)
    if rng.random() < 0.1:  # a member twice, one without its suffix, one that points elsewhere
        buffer = io.BytesIO(packed)
        with zipfile.ZipFile(buffer, "a") as archive:
            array = np.zeros((4, 3, 3))
            for name in rng.sample(["R.npy", "R", "z", "E.npy", "../../up.npy", "/abs.npy", "x/R.npy", "pos", "step"], 2):
                archive.writestr(name, promise(rng, to_npy(array)) if rng.random() < 0.5 else to_npy(array))
        packed = buffer.getvalue()
    return packed


def mutate_npz(rng: random.Random, seeds) -> dict[str, bytes]:
    (name, content), *_ = rng.choice(seeds)[0].items()
    if rng.random() < 0.0005:
        return {name: _bomb()}
    if rng.random() < 0.35:
        return {name: mutate_bytes(rng, content)}
    return {name: mutate_arrays(rng, arrays(content), _KEYS)}
