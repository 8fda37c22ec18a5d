"""Files of reference data to structures: which format a file has, and the reader for it.

A reader takes a path and returns a `Reading`: ASE atoms with labels as they stand, and what the file says about units;
labels.py does the rest. A new format is one file in readers/ and one row in `FORMATS`.
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import re
import tempfile
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import ase
import ase.io
from ase.io.formats import filetype, ioformats

from mlff.basics.errors import DataError
from mlff.config.options import ReadOptions, Units
from mlff.data.census import Census
from mlff.data.conversion import Conversion
from mlff.data.facts import ASE, REMARKS, Facts, Reading, Remark
from mlff.data.labels import label_frames
from mlff.data.readers import lammps, programs
from mlff.data.readers.arrays import check_size
from mlff.data.readers.cif import is_cif, read_cif
from mlff.data.readers.cp2k import is_cp2k, read_cp2k
from mlff.data.readers.database import read_database
from mlff.data.readers.deepmd import is_deepmd, read_deepmd
from mlff.data.readers.dpdata import dpdata_format, read_dpdata
from mlff.data.readers.extxyz import is_extxyz, read_extxyz
from mlff.data.readers.fitsnap import read_fitsnap
from mlff.data.readers.n2p2 import read_n2p2
from mlff.data.readers.npz import read_npz
from mlff.data.readers.pdb import is_pdb, read_pdb
from mlff.data.readers.pymatgen import is_pymatgen, read_pymatgen
from mlff.data.skipping import Skipped
from mlff.data.structure import Structure

_COMPRESSED = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open, b"BZh": bz2.open}
_CONNECTIONS = {"postgresql", "mysql", "bundletrajectory"}
#: Formats of ASE that have rows below: a file that is none of these by its contents is none because its name ends in .out either.
_BY_CONTENTS = {
    "espresso-out",
    "gaussian-out",
    "orca-output",
    "aims-output",
    "castep-castep",
    "lammps-dump-text",
    "lammps-data",
    "runnerdata",
}


class Format(NamedTuple):
    """A file format: does this file have it, and its reader."""

    recognises: Callable[[Path, bytes], bool]  #: (path without compression suffix, first bytes; none of a folder)
    read: Callable[[Path], Reading]


def read_structures(
    path: str | Path, options: ReadOptions = ReadOptions(), on_structure: Callable[[], None] = lambda: None
) -> tuple[list[Structure], Census]:
    """Read every structure of one file (compressed or not) or DeePMD folder, labels in eV, eV/Å and eV/Å³.

    Isolated atoms are among them. `on_structure` is called after each frame (progress). Structures are counted from 0 in messages.
    Raises DataError: no such file, unknown or broken format, a named key that stands nowhere, unusable labels or geometry.
    """
    structures, census = read_file(path, options, on_structure)
    census.require(options.keys)
    return structures, census


def read_file(path, options: ReadOptions, on_structure=lambda: None) -> tuple[list[Structure], Census]:
    """`read_structures` without the demand that named keys stand in this very file (another may have them)."""
    path = Path(path)
    frames: list[ase.Atoms] = []
    facts, cut = None, ()
    with _plain_file(path) as plain:
        name, reader = _recognise(plain, path)
        try:
            each, facts = reader(plain)
            for atoms in each:
                frames.append(atoms)
                on_structure()
        except Exception as error:  # noqa: BLE001  ASE's readers raise anything
            where = str(path) if facts is None else f"{path}, structure {len(frames)}"
            text = _reason(error, name)
            if not frames or "unreadable" not in options.skip:
                raise DataError(f"{where}: {text}") from None
            cut = (Skipped("unreadable", where, f"{text}; what follows it is not read"),)
    if not frames:
        raise DataError(f"{path}: holds no structures (read as {name})")
    structures, census = label_frames(frames, str(path), options, facts)
    return structures, replace(census, skipped=census.skipped + cut)


def format_name(path: str | Path) -> str:
    """What the format of a file is called, by its contents. Raises DataError."""
    with _plain_file(Path(path)) as plain:
        return _recognise(plain, Path(path))[0]


def read_atoms(path: str | Path, index: int | None = None, length: str | None = None) -> Iterator[ase.Atoms]:
    """The structures of a file one by one, or that of one index (-1: the last), or nothing where there is none of it.

    Positions and cell from `length` (a unit; None: what the file or its format says, else Å) to Å; all else as it stands.
    Raises DataError.
    """
    path = Path(path)
    count = 0
    with _plain_file(path) as plain:
        name, reader = _recognise(plain, path)
        try:
            if index is not None and name in ioformats:  # ASE finds it without reading all
                frames, facts = _ase(name, index=index)(plain)
            else:
                frames, facts = reader(plain)
                if index is not None:
                    some = deque(frames, maxlen=-index) if index < 0 else itertools.islice(frames, index, index + 1)
                    frames = itertools.islice(some, 1) if index >= 0 or len(some) == -index else ()
            scale = Conversion(Units(length=length), facts, str(path)).length
            said: set[Remark] = set()
            for atoms in frames:
                count += 1
                for item in atoms.info.pop(REMARKS, ()):
                    if item not in said:
                        said.add(item)
                        warnings.warn(f"{path}: {item.text}", stacklevel=2)
                if scale != 1.0:
                    atoms.set_cell(atoms.cell.array * scale)
                    atoms.positions *= scale
                yield atoms
        except (IndexError, StopIteration):
            if index is None:
                raise
        except Exception as error:  # noqa: BLE001  ASE's readers raise anything
            if isinstance(error, DataError) and str(error).startswith(str(path)):
                raise
            raise DataError(f"{path}, structure {count if index is None else index}: {_reason(error, name)}") from None
    if count == 0 and index is None:
        raise DataError(f"{path}: holds no structures (read as {name})")


def _reason(error: Exception, name: str) -> str:
    if isinstance(error, DataError):
        return str(error)
    text = " ".join(str(error).split())[:120]
    if isinstance(error, KeyError) and text.strip("'") in ("D", "T"):
        return f"the reader of {name} does not know {text}, an isotope of hydrogen; write H"
    return f"cannot be read as {name}: it is damaged, cut short, or of a kind that its reader does not know ({type(error).__name__}: {text})"


@contextmanager
def _plain_file(path: Path) -> Iterator[Path]:
    """A readable, uncompressed file with the contents of `path` and its name less the compression suffix; or a folder."""
    try:
        deepmd = is_deepmd(path)
        if path.is_dir() and not deepmd:
            systems = any(map(is_deepmd, path.iterdir()))
            advice = f"the DeePMD systems in it: {path}/*" if systems else f"the files in it, e.g. {path}/*.xyz"
            raise DataError(f"{path}: is a directory and no DeePMD system (it has no type.raw); name {advice}")
        head = b""
        if not deepmd:
            with open(path, "rb") as file:
                head = file.read(8)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte or half a character in the name
        reason = error.strerror if isinstance(error, OSError) else None
        raise DataError(f"{path}: cannot be read ({(reason or str(error)).lower()})") from None
    if deepmd:
        yield path
        return
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
                while piece := packed.read(1 << 24):
                    file.write(piece)
                    check_size(file.tell(), path.stat().st_size, f"{path}")
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"{path}: cannot be decompressed, the file is damaged or cut short ({error})") from None
        if plain.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty")
        yield plain


def _recognise(plain: Path, path: Path) -> tuple[str, Callable[[Path], Reading]]:
    head = b""
    if plain.is_file():
        with open(plain, "rb") as file:
            head = file.read(4096)
    for name, known in FORMATS.items():
        if known.recognises(plain, head):
            return name, known.read
    try:
        name = filetype(str(plain.resolve()))
    except Exception:  # noqa: BLE001  of a damaged file it raises anything
        name = None
    if name in ("db", "json"):
        return f"ASE {name}", read_database
    if name == "vasp-out":  # by its name, what stands before its first line or without one
        return "VASP OUTCAR", FORMATS["VASP OUTCAR"].read
    if name in _BY_CONTENTS or name not in ioformats or not ioformats[name].can_read or name in _CONNECTIONS:
        if other := dpdata_format(plain):
            return f"dpdata {other}", read_dpdata
        raise DataError(
            f"{path}: the format is not recognised; docs/FORMATS.md lists those that are read, and dpdata turns others into "
            "DeePMD folders, or is asked where it is installed and the name of the file tells it the format"
        )
    return name, _ase(name)


#: Units by the format: of those that a test has read a real file of. All others are ASE's word, "assumed".
_OWN = {"traj": ASE, "vasp": Facts(by_format={"length": "Angstrom"})}


def _ase(name: str, index: int | str = ":") -> Callable[[Path], Reading]:
    return lambda path: Reading(
        ase.io.iread(str(path.resolve()), index, format=name, do_not_split_by_at_sign=True), _OWN.get(name, Facts())
    )


def _read_hdf5(path: Path) -> Reading:
    from mlff.data.readers.h5md import is_h5md, read_h5md
    from mlff.data.readers.hdf5 import check_heaps, read_hdf5

    check_heaps(path)
    return read_h5md(path) if is_h5md(path) else read_hdf5(path)


def _holds(text: str) -> Callable[[Path, bytes], bool]:
    return lambda path, head: text.encode() in head


def _castep(suffix: str) -> Callable[[Path, bytes], bool]:
    return lambda path, head: path.suffix == suffix and b"BEGIN header" in head


def _starts(pattern: str) -> Callable[[Path, bytes], bool]:
    return lambda path, head: re.match(rb"\s*" + pattern.encode("latin-1"), head.removeprefix(b"\xef\xbb\xbf")) is not None


#: Formats known by their contents, tried in this order; what is none of them is left to ASE's own guess.
FORMATS: dict[str, Format] = {
    "DeePMD folder": Format(lambda path, head: is_deepmd(path), read_deepmd),
    "npz": Format(_starts("PK\x03\x04"), read_npz),
    "HDF5": Format(_starts("\x89HDF\r\n\x1a\n"), _read_hdf5),
    "pymatgen JSON": Format(is_pymatgen, read_pymatgen),
    "FitSNAP JSON": Format(_starts(r'(#[^\n]*\n\s*)?\{\s*"Dataset"'), read_fitsnap),
    "n2p2": Format(_starts(r"(#[^\n]*\n\s*)*begin\s"), read_n2p2),
    "extended XYZ": Format(is_extxyz, read_extxyz),
    "ASE database": Format(_starts("SQLite format 3"), read_database),
    "VASP OUTCAR": Format(_starts(r"vasp\."), programs.reader("vasp-out", programs.outcar)),
    "vasprun.xml": Format(_holds("<modeling>"), programs.reader("vasp-xml", programs.vasprun)),
    "CP2K output": Format(is_cp2k, read_cp2k),
    "Quantum ESPRESSO output": Format(_holds("Program PWSCF"), programs.reader("espresso-out", programs.espresso)),
    "Gaussian output": Format(_holds("Entering Gaussian System"), programs.reader("gaussian-out", programs.gaussian)),
    "ORCA output": Format(_holds("* O   R   C   A *"), programs.reader("orca-output", programs.orca)),
    "FHI-aims output": Format(_holds("Invoking FHI-aims"), programs.reader("aims-output", programs.aims)),
    "CASTEP output": Format(
        _holds("CCC   AA    SSS  TTTTT  EEEEE  PPPP"), programs.reader("castep-castep", programs.castep)
    ),
    "CASTEP md": Format(_castep(".md"), programs.reader("castep-md", programs.nothing)),
    "CASTEP geom": Format(_castep(".geom"), programs.reader("castep-geom", programs.nothing)),
    "LAMMPS dump": Format(lammps.is_dump, lammps.read_dump),
    "LAMMPS data": Format(lammps.is_data, lammps.read_data),
    "CIF": Format(is_cif, read_cif),
    "PDB": Format(is_pdb, read_pdb),
}
