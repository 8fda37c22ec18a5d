"""Files of reference data to structures: which format a file has, and a reader for each.

A reader takes a path and yields ASE atoms with labels in `info`, `arrays` or a calculator; labels.py does the rest.
A new format is one function and one row in `FORMATS`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import ase
import ase.db
import ase.io
from ase.io.extxyz import read_xyz
from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from mlff.config import ReadOptions
from mlff.data.census import Census
from mlff.data.labels import label_frames
from mlff.data.structure import Structure
from mlff.errors import DataError

_COMPRESSED = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open, b"BZh": bz2.open}
_PROPERTIES = re.compile(r'Properties\s*=\s*"?([^\s"]+)')
_CONNECTIONS = {"postgresql", "mysql", "bundletrajectory"}


class Format(NamedTuple):
    """A file format: does this file have it, and its frames one by one."""

    recognises: Callable[[Path, bytes], bool]  #: (path without compression suffix, first bytes)
    read: Callable[[Path], Iterator[ase.Atoms]]


def read_structures(
    path: str | Path, options: ReadOptions = ReadOptions(), on_structure: Callable[[], None] = lambda: None
) -> tuple[list[Structure], Census]:
    """Read every structure of one file (compressed or not), labels in eV, eV/Å and eV/Å³; isolated atoms are among them.

    `on_structure` is called after each frame (progress). Structures are counted from 0 in messages.
    Raises DataError: no such file, unknown or broken format, a named key that stands nowhere, unusable labels or geometry.
    """
    structures, census = read_file(path, options, on_structure)
    census.require(options.keys)
    return structures, census


def read_file(path, options: ReadOptions, on_structure=lambda: None) -> tuple[list[Structure], Census]:
    """`read_structures` without the demand that named keys stand in this very file (another may have them)."""
    path = Path(path)
    frames: list[ase.Atoms] = []
    with _plain_file(path) as plain:
        name, reader = _recognise(plain, path)
        try:
            for atoms in reader(plain):
                frames.append(atoms)
                on_structure()
        except DataError as error:
            raise DataError(f"{path}, structure {len(frames)}: {error}") from None
        except Exception as error:  # noqa: BLE001  ASE's readers raise anything
            text = " ".join(str(error).split())[:120]
            raise DataError(
                f"{path}, structure {len(frames)}: cannot be read as {name} ({type(error).__name__}: {text})"
            ) from None
    if not frames:
        raise DataError(f"{path}: holds no structures (read as {name})")
    return label_frames(frames, str(path), options)


@contextmanager
def _plain_file(path: Path) -> Iterator[Path]:
    """A readable, uncompressed file with the contents of `path` and its name less the compression suffix."""
    try:
        if path.is_dir():
            raise DataError(f"{path}: is a directory; name the files in it, e.g. {path}/*.xyz")
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    if not head:
        raise DataError(f"{path}: the file is empty")
    opener = next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)
    if opener is None:
        yield path
        return
    stem = path.stem if path.suffix in (".gz", ".xz", ".bz2") else path.name
    with tempfile.TemporaryDirectory(prefix="mlff-") as folder:
        plain = Path(folder) / stem
        try:
            with opener(path, "rb") as packed, open(plain, "wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise DataError(f"{path}: cannot be decompressed, the file is damaged or cut short ({error})") from None
        if plain.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty")
        yield plain


def _recognise(plain: Path, path: Path) -> tuple[str, Callable[[Path], Iterator[ase.Atoms]]]:
    with open(plain, "rb") as file:
        head = file.read(4096)
    for name, known in FORMATS.items():
        if known.recognises(plain, head):
            return name, known.read
    try:
        name = filetype(str(plain.resolve()))
    except (UnknownFileTypeError, UnicodeDecodeError, OSError):
        name = None
    if name in ("db", "json"):
        return f"ASE {name}", FORMATS["ASE database"].read
    if name not in ioformats or not ioformats[name].can_read or name in _CONNECTIONS:
        raise DataError(
            f"{path}: the format is not recognised; known: extended XYZ and whatever ASE reads ({', '.join(FORMATS)}, ...)"
        )
    return name, _ase(name)


def _is_extxyz(path: Path, head: bytes) -> bool:
    lines = head.decode("utf-8-sig", errors="replace").lstrip().splitlines()
    if not lines or not lines[0].strip().isdigit():
        return path.suffix.lower() in (".xyz", ".extxyz") and path.name != "xyz.in"
    if len(lines) < 3 or path.suffix.lower() in (".xyz", ".extxyz"):
        return True
    fields = lines[2].split()
    return "Properties" in lines[1] or (len(fields) >= 4 and fields[0].isalpha() and all(map(_is_number, fields[1:4])))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_extxyz(path: Path) -> Iterator[ase.Atoms]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        number, header = _next_line(file, 0)
        while header:
            if not header.strip().isdigit():
                raise DataError(f"line {number}: the number of atoms is expected, found {header.strip()[:40]!r}")
            n = int(header)
            lines = [header, *(file.readline() for _ in range(n + 1))]
            if not lines[-1].strip() and n:
                raise DataError(f"the file ends, or a line is blank, before the last of its {n} atoms; is it cut short?")
            end, header = _next_line(file, number + n + 1)
            while header.startswith("VEC"):
                lines.append(header)
                end, header = _next_line(file, end)
            yield _parse_extxyz(lines, number)
            number = end


def _next_line(file, number: int) -> tuple[int, str]:
    """The next line that is not blank, with its number from 1; an empty string at the end."""
    for line in file:
        number += 1
        if line.strip():
            return number, line
    return number, ""


def _parse_extxyz(lines: list[str], number: int) -> ase.Atoms:
    declared = _PROPERTIES.search(lines[1])
    if declared and len(lines) > 2:
        columns = sum(int(width) for width in declared.group(1).split(":")[2::3] if width.isdigit())
        if len(lines[2].split()) > columns:
            raise DataError(f"line {number + 2} has {len(lines[2].split())} columns, but Properties names {columns}")
    try:
        (atoms,) = read_xyz(io.StringIO("".join(lines)), 0)
    except KeyError as error:
        raise DataError(
            f"{error} is not an element or not a known column (lines {number} to {number + len(lines) - 1})"
        ) from None
    except (ValueError, TypeError, IndexError, OSError, StopIteration, RuntimeError) as error:
        text = " ".join(str(error).split())[:120]
        raise DataError(f"not extended XYZ (lines {number} to {number + len(lines) - 1}): {text}") from None
    return atoms


def _read_database(path: Path) -> Iterator[ase.Atoms]:
    kind = "db" if path.read_bytes()[:15] == b"SQLite format 3" else "json"
    with ase.db.connect(str(path.resolve()), type=kind, use_lock_file=False) as database:
        for row in database.select():
            atoms = row.toatoms()
            atoms.info.update(row.key_value_pairs)
            atoms.info.update(row.data)
            yield atoms


def _ase(name: str) -> Callable[[Path], Iterator[ase.Atoms]]:
    return lambda path: ase.io.iread(str(path.resolve()), ":", format=name, do_not_split_by_at_sign=True)


#: Formats known by their contents, tried in this order; what is none of them is left to ASE's own guess.
FORMATS: dict[str, Format] = {
    "extended XYZ": Format(_is_extxyz, _read_extxyz),
    "ASE database": Format(lambda path, head: head.startswith(b"SQLite format 3"), _read_database),
    "VASP OUTCAR": Format(lambda path, head: head.lstrip().startswith(b"vasp."), _ase("vasp-out")),
    "vasprun.xml": Format(lambda path, head: b"<modeling>" in head[:500], _ase("vasp-xml")),
}
