"""Extended XYZ that mlff and ASE read back: what the format does not hold is left out and named."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import ase
import numpy as np
from ase.calculators.calculator import all_properties
from ase.constraints import FixAtoms, FixCartesian
from ase.io.extxyz import per_atom_properties, per_config_properties, write_extxyz
from ase.spacegroup import Spacegroup
from ase.stress import voigt_6_to_full_3x3_stress

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_RESERVED = {"Lattice", "Properties", "pbc"}  #: keys of the comment line that say how the rest is read
_COLUMNS = {"symbols", "species", "numbers", "Z", "positions", "pos", "move_mask"}  #: of elements, positions, constraints
_MATRICES = {"stress", "virial"}  #: nine numbers, column by column
_SCALARS = {"energy", "free_energy", "magmom"}
_LARGEST = 1000  #: numbers of one value; longer arrays are data of their own


def write_frames(file, frames: Iterable[ase.Atoms]) -> set[str]:
    """Append frames to an open text file: info, arrays, results of the calculator, fixed atoms. Returns what was left out."""
    left_out: set[str] = set()
    for atoms in frames:
        info, arrays = _with_results(atoms, left_out)
        plain = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        plain.set_constraint([each for each in atoms.constraints if isinstance(each, FixAtoms | FixCartesian)])
        others = [each for each in atoms.constraints if not isinstance(each, FixAtoms | FixCartesian)]
        left_out |= {f"constraint {type(each).__name__}" for each in others}
        taken = {*_COLUMNS, *(f"{name}{axis}" for name in ("pos", "positions", "move_mask") for axis in "012")}
        for name, array in arrays.items():
            kept, reason = _column(name, array, taken)
            if kept is None:
                left_out.add(f"column {str(name)!r} ({reason})")
            else:
                plain.arrays[name] = kept
        texts = []
        for key, value in info.items():
            text, reason = _value(key, value)
            if text is None:
                left_out.add(f"info {str(key)!r} ({reason})")
            else:
                texts.append(f" {key}={text}")
        frame = io.StringIO()
        write_extxyz(frame, plain, write_results=False)
        count, comment, rest = frame.getvalue().split("\n", 2)
        file.write(f"{count}\n{comment}{''.join(texts)}\n{rest}")
    return left_out


def tell_left_out(path: str | Path, left_out: set[str]) -> None:
    """One warning that names what `write_frames` left out of `path`, if anything."""
    if left_out:
        names = sorted(left_out)
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        warnings.warn(f"{path}: left out, since extended XYZ does not hold it: {', '.join(names[:10])}{more}", stacklevel=2)


def _with_results(atoms: ase.Atoms, left_out: set[str]) -> tuple[dict, dict]:
    """Info and arrays with the results of the calculator, which win over keys of the same name."""
    info = dict(atoms.info)
    arrays = {name: array for name, array in atoms.arrays.items() if name not in ("numbers", "positions")}
    for name, value in (getattr(atoms.calc, "results", None) or {}).items():
        if name in per_config_properties:
            if name in info:
                left_out.add(f"info {name!r} (the calculator has a result of this name)")
            info[name] = voigt_6_to_full_3x3_stress(value) if name == "stress" and np.shape(value) == (6,) else value
        elif name in per_atom_properties:
            if name in arrays:
                left_out.add(f"column {name!r} (the calculator has a result of this name)")
            arrays[name] = np.asarray(value)
    return info, arrays


def _column(name, array: np.ndarray, taken: set[str]) -> tuple[np.ndarray | None, str]:
    """An array that can be written, or None and the reason; the names of its columns go into `taken`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return None, "a name that is not letters, digits and underscores"
    if name in _COLUMNS:
        return None, "a reserved name"
    array = np.asarray(array)
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array.flat):
        array = array.astype(str)
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] == 0):
        return None, f"of shape {array.shape}"
    if array.dtype.kind not in "biufU" or (name in all_properties and array.dtype.kind not in "iuf"):
        return None, "not numbers, words or truth values"
    if array.dtype.kind in "iu":
        if (np.abs(array.astype(float)) >= 2**31).any():
            return None, "integers of more than 32 bits"
        array = array.astype(np.int64)
    if array.dtype.kind == "U" and not all(text.isprintable() and text.split() == [text] for text in array.flat):
        return None, "empty words or spaces in them"
    fields = {name} if array.ndim == 1 or array.shape[1] == 1 else {f"{name}{k}" for k in range(array.shape[1])}
    if fields & taken:
        return None, "the name of another column"
    taken |= fields
    return array, ""


def _value(key, value) -> tuple[str | None, str]:
    """The text of a value in the comment line, or None and the reason."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        return None, "a key that is not letters, digits and underscores"
    if key in _RESERVED:
        return None, "a reserved key"
    if isinstance(value, Spacegroup):
        value = value.symbol
    if isinstance(value, str):
        text = str(value)
        if key in per_config_properties or key in _MATRICES:
            return None, "text where a number belongs"
        if not text.isprintable():
            return None, "line breaks or control characters"
        if not text.strip(" ,") or text.startswith("_JSON"):
            return None, "empty" if not text.strip(" ,") else "text that would be taken for JSON"
        return _quoted(text), ""
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind in "biuf":
        return _numbers(key, array)
    if isinstance(value, dict | list | tuple) and key not in _MATRICES and key not in per_config_properties:
        try:
            text = json.dumps(value)
            same = value and json.loads(text) == (list(value) if isinstance(value, tuple) else value)
        except (TypeError, ValueError, RecursionError):
            same = False
        if same and len(text) <= 20 * _LARGEST:
            return _quoted(f"_JSON {text}"), ""
    return None, f"{type(value).__name__}: no number, text or list of these"


def _numbers(key: str, array: np.ndarray) -> tuple[str | None, str]:
    if array.size == 0 or array.size > _LARGEST:
        return None, f"{array.size:,} numbers" if array.size else "empty"
    if array.dtype.kind == "u" and (array >= 2**63).any():
        return None, "integers of more than 64 bits"
    if key in _MATRICES:
        if array.shape != (3, 3):
            return None, f"of shape {array.shape} where (3, 3) is expected"
        array = array.astype(float).ravel(order="F")
    elif key in _SCALARS and array.ndim:
        return None, f"of shape {array.shape} where one number is expected"
    if array.ndim > 1:
        return _quoted(f"_JSON {json.dumps(array.tolist())}"), ""
    words = [("F", "T")[value] if isinstance(value, bool) else repr(value) for value in array.ravel().tolist()]
    return words[0] if array.ndim == 0 else f'"{" ".join(words)}"', ""


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
