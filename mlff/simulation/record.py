"""What a simulation writes: a trajectory, a log of one line per frame, and the state to restart from."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz
from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

from mlff.data.readers.npz import array_shapes
from mlff.errors import DataError

SUFFIXES = (".traj", ".xyz", ".extxyz")


def check_trajectory_name(path: str | Path) -> Path:
    """The path, if its suffix is one that can be written; DataError otherwise."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: the trajectory's name must end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such directory: {path.parent}")
    return path


class Trajectory:
    """Frames appended to a .traj file (energy and forces as results of a calculator) or an extended XYZ file
    (as mlff_energy and mlff_forces, so that they are never taken for reference labels)."""

    def __init__(self, path: str | Path, append: bool = False):
        self.path = check_trajectory_name(path)
        self.frames = _count(self.path) if append else 0
        self._text = self.path.suffix != ".traj"
        mode = "a" if append else "w"
        self._file = open(self.path, mode, encoding="utf-8") if self._text else TrajectoryWriter(self.path, mode)

    def write(self, atoms: ase.Atoms, energy: float, forces: np.ndarray, **info) -> None:
        """One frame: energy in eV, forces (n, 3) in eV/Å; info goes into the frame's info."""
        frame = ase.Atoms(
            atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc, momenta=atoms.get_momenta(), info=info
        )
        frame.set_masses(atoms.get_masses())
        if self._text:
            frame.info["mlff_energy"] = energy
            frame.arrays["mlff_forces"] = forces
            write_extxyz(
                self._file, [frame], columns=["symbols", "positions", "momenta", "mlff_forces"], write_results=False
            )
            self._file.flush()
        else:
            frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces)
            frame.calc.name = "mlff"
            self._file.write(frame)
        self.frames += 1

    def close(self) -> None:
        self._file.close()


def truncate_trajectory(path: Path, frames: int) -> None:
    """Keep the first `frames` frames: what was written after the state that is restarted from goes."""
    there = _count(path)
    if there < frames:
        raise DataError(f"{path}: has {there} frames, but the state to restart from was saved after {frames}")
    if there == frames:
        return
    kept = path.with_name(f".{path.name}.tmp{path.suffix}")
    if path.suffix == ".traj":
        with TrajectoryReader(path) as reader, TrajectoryWriter(kept, "w") as writer:
            for index in range(frames):
                writer.write(reader[index])
    else:
        with open(path, encoding="utf-8") as source, open(kept, "w", encoding="utf-8") as target:
            for _ in range(frames):
                head = source.readline()
                target.write(head)
                for _ in range(int(head) + 1):
                    target.write(source.readline())
    os.replace(kept, path)


def _count(path: Path) -> int:
    try:
        if path.suffix == ".traj":
            with TrajectoryReader(path) as reader:
                return len(reader)
        frames = 0
        with open(path, encoding="utf-8") as file:
            while head := file.readline():
                if (
                    sum(1 for _, line in zip(range(int(head) + 1), file, strict=False) if line.endswith("\n"))
                    < int(head) + 1
                ):
                    break
                frames += 1
        return frames
    except FileNotFoundError:
        raise DataError(f"{path}: no such trajectory to continue") from None
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a trajectory ({type(error).__name__})") from None


class Log:
    """One record per line: JSON, or CSV if the name ends in .csv."""

    def __init__(self, path: str | Path, keep_until: int | None = None):
        """With `keep_until`, lines of earlier steps (<= keep_until) stay and new ones follow."""
        self.path = Path(path)
        self._csv = self.path.suffix == ".csv"
        self._header = True
        if keep_until is not None and self.path.exists():
            self._drop_after(keep_until)
        elif keep_until is None:
            self.path.write_text("", encoding="utf-8")
        self._file = open(self.path, "a", encoding="utf-8", newline="")
        self._header = self._csv and self._file.tell() == 0

    def write(self, record: dict) -> None:
        """Values are numbers or None (an empty cell in CSV)."""
        if self._csv:
            writer = csv.DictWriter(self._file, list(record))
            if self._header:
                writer.writeheader()
                self._header = False
            writer.writerow(record)
        else:
            self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _drop_after(self, step: int) -> None:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if self._keep(line, step)]
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.path)

    def _keep(self, line: str, step: int) -> bool:
        try:
            return int(line.split(",")[0]) <= step if self._csv else json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError, RecursionError):
            return self._csv and line.startswith("step")


def state_path(trajectory: str | Path) -> Path:
    """Where the state to restart from lies, beside the trajectory."""
    return Path(trajectory).with_suffix(".state.npz")


def lock_path(trajectory: str | Path) -> Path:
    """The file that the process that writes the trajectory holds."""
    path = Path(trajectory)
    return path.with_name(f".{path.name}.lock")


def save_state(path: Path, state: dict[str, np.ndarray]) -> None:
    """Arrays, atomically (a file at `path` is always whole)."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **state)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def check_state(state: dict[str, np.ndarray], single: tuple[str, ...], path: Path) -> None:
    """Raise DataError unless there are numbers, positions, cell and pbc of the same atoms, and what `single` names, and all that
    is a number is finite. What is named is a single value, but `sizes` has three."""
    n = len(state["numbers"]) if "numbers" in state and state["numbers"].ndim else 0
    shapes = {"numbers": (n,), "positions": (n, 3), "cell": (3, 3), "pbc": (3,), **dict.fromkeys(single, ()), "sizes": (3,)}
    kinds = {"numbers": "iu", "positions": "f", "momenta": "f", "cell": "f", "pbc": "b", "sizes": "iu", "rng": "U"}
    kinds |= dict.fromkeys(("step", "frames", "degrees_of_freedom"), "iu")
    if "momenta" in state or "step" in single:
        shapes["momenta"] = (n, 3)
    if "sizes" not in single:
        del shapes["sizes"]
    for name, shape in shapes.items():
        if name not in state:
            raise DataError(f"{path}: {name!r} is missing from the state")
        array = state[name]
        if array.shape != shape or array.dtype.kind not in kinds.get(name, array.dtype.kind):
            raise DataError(
                f"{path}: {name!r} is {array.dtype} of shape {array.shape} where {shape} is expected; start without restart"
            )
        if kinds.get(name) == "iu" and (array < (name == "degrees_of_freedom")).any():
            raise DataError(f"{path}: {name!r} is too small; start without restart")
    for name, array in state.items():
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            raise DataError(f"{path}: {name!r} is not finite; start without restart")


def load_state(path: Path) -> dict[str, np.ndarray]:
    """What `save_state` wrote; runs no code from the file. Raises DataError."""
    try:
        odd = [name for name, shape in array_shapes(path).items() if shape is None]
        if odd:
            raise DataError(f"{odd[0]!r} is no array of numbers or text")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no state to restart from; start without restart") from None
    except DataError as error:
        raise DataError(f"{path}: not a state file of a simulation ({error})") from None
    except Exception as error:
        raise DataError(f"{path}: not a state file of a simulation ({type(error).__name__})") from None
