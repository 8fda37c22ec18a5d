"""Extended XYZ, frame by frame: ASE parses them, what it would swallow in silence is refused."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import ase
from ase.io.extxyz import read_xyz

from mlff.data.facts import Reading
from mlff.errors import DataError

_PROPERTIES = re.compile(r'Properties\s*=\s*"?([^\s"]+)')
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")


def is_extxyz(path: Path, head: bytes) -> bool:
    """By the first lines, or by the name of the file."""
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


def read_extxyz(path: Path) -> Reading:
    """Every frame; blank lines between frames are skipped."""
    return Reading(_frames(path))


def _frames(path: Path) -> Iterator[ase.Atoms]:
    size = path.stat().st_size
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        number, header = _next_line(file, 0)
        while header:
            if not header.strip().isdecimal() or len(header) > 20:
                raise DataError(f"line {number}: the number of atoms is expected, found {header.strip()[:40]!r}")
            n = int(header)
            if 8 * n > size:
                raise DataError(
                    f"line {number} promises {n} atoms, more than the file of {size} bytes can hold; is it cut short?"
                )
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
    _check_comment(lines[1], number + 1)
    declared = _PROPERTIES.search(lines[1])
    if declared and len(lines) > 2:
        columns = sum(int(width) for width in declared.group(1).split(":")[2::3] if width.isdecimal())
        if len(lines[2].split()) != columns:
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


def _check_comment(line: str, number: int) -> None:
    """Refuse what ASE would take in silence: bytes that are no text, quotes left open, a key that stands twice."""
    if _CONTROL.search(line):
        raise DataError(f"line {number} (the comment) holds bytes that are no text; is the file damaged?")
    if "Properties" not in line and "Lattice" not in line:
        return
    bare = _QUOTED.sub("", line)
    if '"' in bare:
        raise DataError(f"line {number} (the comment): a quotation mark is not closed")
    if bare.count("{") != bare.count("}") or bare.count("[") != bare.count("]"):
        raise DataError(f"line {number} (the comment): a bracket is not closed")
    words = (part.replace(",", " ").split() for part in bare.split("=")[:-1])
    keys = Counter(before[-1] for before in words if before)
    if keys and max(keys.values()) > 1:
        twice = keys.most_common(1)[0][0]
        raise DataError(f"line {number} (the comment): the key {twice[:40]!r} stands there twice; remove one")
