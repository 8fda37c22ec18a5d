"""CP2K: the output of a single point, and the trajectories -pos-, -frc- and -cell of a run.

Energies in Hartree, forces in Hartree/Bohr, lengths in Å, stresses in GPa or bar, positive under compression.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np

from mlff.basics.errors import DataError
from mlff.data.facts import UNCONVERGED, Facts, Reading, Remark, remark

_FACTS = {"energy": "Hartree", "length": "Angstrom", "forces": "Hartree/Bohr", "stress_sign": "compression"}
_REAL = r"[+-]?\d*\.?\d+(?:[EeDd][+-]?\d+)?"
NO_CELL = Remark("cell", "CP2K's file of positions has no cell and none stands beside it (-1.cell): taken as not periodic")


def is_cp2k(path: Path, head: bytes) -> bool:
    """The output of a run."""
    return b"CP2K| version string" in head or (b"DBCSR| " in head and b"CP2K" in head) or b"PROGRAM STARTED AT" in head


def read_cp2k(path: Path) -> Reading:
    """One structure. Raises DataError for a run of several steps, whose positions stand in other files."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if "CP2K|" not in text:
        raise DataError("the output of a program that is not known; CP2K's has lines that begin with CP2K|")
    energies = re.findall(rf"ENERGY\| Total FORCE_EVAL .*?energy [\[(](?:a\.u\.|hartree)[\])]:?\s+({_REAL})", text)
    if len(energies) != 1:
        what = f"{len(energies)} energies" if energies else "no energy"
        raise DataError(
            f"an output of CP2K with {what}; of a run give the trajectory: PROJECT-pos-1.xyz, with PROJECT-frc-1.xyz and PROJECT-1.cell beside it"
        )
    atoms = _geometry(text)
    atoms.info["energy"] = float(energies[0])
    found = re.search(
        r"(?:ATOMIC FORCES in \[a\.u\.\]|FORCES\| Atomic forces \[hartree/bohr\])(.*?)(?:SUM OF|FORCES\| Sum|\n\s*\n\s*\n|STRESS)",
        text,
        re.DOTALL,
    )
    if found:
        rows = [line.replace("FORCES|", "").split() for line in found[1].splitlines()]
        rows = [row for row in rows if row and row[0].isdecimal()]
        first = (
            3 if rows and len(rows[0]) == 6 else 1
        )  # atom, kind, element; from 2025 on the atom alone, and the norm behind
        atoms.arrays["forces"] = _numbers([row[first : first + 3] for row in rows], len(atoms), "forces")
    stress, unit = _stress(text)
    if stress is not None:
        atoms.info["stress"] = stress
    if "SCF run NOT converged" in text:
        remark(atoms, UNCONVERGED)
    return Reading([atoms], Facts(by_format=_FACTS | ({"stress": unit} if unit else {})))


def _geometry(text: str) -> ase.Atoms:
    found = re.search(r"ATOMIC COORDINATES IN (angstrom|bohr)(.*?)\n\s*\n\s*\n", text, re.DOTALL | re.IGNORECASE)
    pattern = rf"CELL\| Vector {{}} \[angstrom\]:\s+({_REAL})\s+({_REAL})\s+({_REAL})\s+\|.\| =\s+({_REAL})"
    cell = [re.search(pattern.format(axis), text) for axis in "abc"]
    if found is None or not all(cell):
        raise DataError(
            "an output of CP2K without cell or coordinates, as with PRINT_LEVEL LOW; use MEDIUM, or give the trajectory (-pos-1.xyz)"
        )
    if found[1].lower() != "angstrom":
        raise DataError("an output of CP2K with coordinates in Bohr: print them in Å")
    rows = [line.split() for line in found[2].splitlines()]
    rows = [row for row in rows if len(row) >= 7 and row[0].isdecimal()]
    atoms = ase.Atoms([row[2] for row in rows], _numbers([row[4:7] for row in rows], len(rows), "coordinates"))
    vectors = np.array([[float(number) for number in vector.groups()] for vector in cell])
    vectors[:, :3] *= vectors[:, 3:] / np.linalg.norm(vectors[:, :3], axis=1, keepdims=True)  # lengths have more digits
    atoms.cell = vectors[:, :3]
    periodic = re.search(r"CELL\| Periodicity\s+(NONE|[XYZ]+)", text)
    atoms.pbc = True if periodic is None else [axis in periodic[1].replace("NONE", "") for axis in "XYZ"]
    return atoms


def _stress(text: str) -> tuple[np.ndarray | None, str | None]:
    found = re.search(
        r"(?:STRESS TENSOR|STRESS\| Analytical stress tensor) \[(GPa|bar)\](.*?)(?:1/3 T|TRACE|\n\s*\n\s*\n)",
        text,
        re.DOTALL | re.IGNORECASE,
    )
    if found is None:
        return None, None
    rows = [re.findall(_REAL, line)[-3:] for line in found[2].splitlines() if re.search(r"(^|\|)\s+[xyzXYZ]\s+[-+\d]", line)]
    return _numbers(rows, 3, "stress"), found[1]


def beside(path: Path) -> tuple[Path | None, Path | None]:
    """The files of forces and of cells that belong to PROJECT-pos-1.xyz, where they are."""
    found = re.fullmatch(r"(.*)-pos-(\d+)\.xyz", path.name)
    if found is None:
        return None, None
    forces, cells = path.with_name(f"{found[1]}-frc-{found[2]}.xyz"), path.with_name(f"{found[1]}-{found[2]}.cell")
    return forces if forces.is_file() else None, cells if cells.is_file() else None


def join(frames: Iterator[ase.Atoms], forces: Iterator[ase.Atoms] | None, cells: Path | None) -> Iterator[ase.Atoms]:
    """Frames of positions with what stands beside them. Raises DataError where steps or elements differ."""
    boxes = None if cells is None else _cells(cells)
    for atoms in frames:
        step = atoms.info.get("step")
        if forces is not None:
            pushed = next(forces, None)
            if pushed is None or pushed.info.get("step") != step or (pushed.numbers != atoms.numbers).any():
                other = "ends" if pushed is None else f"has step {pushed.info.get('step')}"
                raise DataError(
                    f"the file of forces {other} where that of positions has step {step}; give both of one run, whole"
                )
            atoms.arrays["forces"] = pushed.positions
        if boxes is None:
            remark(atoms, NO_CELL)
        elif step not in boxes:
            raise DataError(f"{cells.name} has no cell of step {step}")
        else:
            atoms.set_cell(boxes[step])
            atoms.pbc = True
        yield atoms


def _cells(path: Path) -> dict[int, np.ndarray]:
    """step -> (3, 3) Å."""
    rows = [
        line.split()
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if not line.lstrip().startswith("#")
    ]
    return {int(row[0]): _numbers([row[2:5], row[5:8], row[8:11]], 3, path.name) for row in rows if row}


def _numbers(rows: list[list[str]], count: int, what: str) -> np.ndarray:
    try:
        array = np.array([[float(re.sub("[dD]", "e", text)) for text in row] for row in rows])
    except ValueError:
        array = np.zeros(0)
    if array.shape != (count, 3):
        raise DataError(f"{what} of CP2K's output: {count} rows of three numbers are expected; is it cut short?")
    return array
