"""What a simulation writes: a trajectory, a log of one line per frame, and the state to restart from."""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

from mlff.basics.errors import DataError
from mlff.basics.files import replacing, sync, write_text, writing
from mlff.data.readers.npz import array_shapes
from mlff.data.writing import write_frames
from mlff.simulation import h5md

SUFFIXES = (".traj", ".xyz", ".extxyz")
H5MD = ".h5md"
LOGS = (".jsonl", ".json", ".csv")
GO_ON = "go on with --restart (with --force where there is no state yet)"


def check_trajectory_name(path: str | Path) -> Path:
    """The path, if its suffix is one that can be written and it is no directory; DataError otherwise."""
    path = Path(path)
    if path.suffix not in (*SUFFIXES, H5MD):
        raise DataError(f"{path}: the trajectory's name must end in {', '.join((*SUFFIXES, H5MD))}")
    if path.is_dir():
        raise DataError(f"{path}: is a directory")
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such directory: {path.parent}")
    return path


class Trajectory:
    """Frames appended to a .traj file (energy and forces as results of a calculator), an extended XYZ file
    (as mlff_energy and mlff_forces, so that they are never taken for reference labels) or an .h5md file (of dynamics)."""

    def __init__(self, path: str | Path, append: bool = False):
        self.path = check_trajectory_name(path)
        self.frames = _count(self.path) if append else 0
        self._text = self.path.suffix not in (".traj", H5MD)
        mode = "a" if append else "w"
        with writing(self.path, GO_ON):
            if self.path.suffix == H5MD:
                self._file = h5md.H5MDWriter(self.path, append)
            else:
                self._file = open(self.path, mode, encoding="utf-8") if self._text else TrajectoryWriter(self.path, mode)

    def write(self, atoms: ase.Atoms, energy: float, forces: np.ndarray, **info) -> None:
        """One frame: energy in eV, forces (n, 3) in eV/Å; info goes into the frame's info (for .h5md step and time_ps)."""
        frame = ase.Atoms(
            atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc, momenta=atoms.get_momenta(), info=info
        )
        if atoms.has("masses"):
            frame.set_masses(atoms.get_masses())
        with writing(self.path, GO_ON):
            if self._text:
                frame.info["mlff_energy"] = energy
                frame.arrays["mlff_forces"] = forces
                write_frames(self._file, [frame])
                self._file.flush()
            elif self.path.suffix == H5MD:
                self._file.write(frame, energy, forces, **info)
            else:
                frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces)
                frame.calc.name = "mlff"
                self._file.write(frame)
        self.frames += 1

    def sync(self) -> None:
        """Force what was written to disk."""
        with writing(self.path, GO_ON):
            if self.path.suffix == H5MD:
                self._file.flush()
            sync(self.path)

    def close(self) -> None:
        with suppress(OSError):  # frames were flushed: only a failed one is left, and was told
            self._file.close()


def truncate_trajectory(path: Path, frames: int) -> None:
    """Keep the first `frames` frames: what was written after the state that is restarted from goes."""
    there = _count(path)
    if there < frames:
        raise DataError(f"{path}: has {there} frames, but the state to restart from was saved after {frames}")
    if path.suffix == H5MD:
        return h5md.truncate(path, frames)
    if there == frames:
        return None
    if path.suffix == ".traj":
        with replacing(path) as kept, TrajectoryReader(path) as reader, TrajectoryWriter(kept, "w") as writer:
            for index in range(frames):
                writer.write(reader[index])
        return None  # text is cut where it is, which needs no space
    with writing(path, GO_ON), open(path, "rb+") as file:
        for _ in range(frames):
            for _ in range(int(file.readline()) + 1):
                file.readline()
        file.truncate(file.tell())
    return None


def _count(path: Path) -> int:
    try:
        if path.suffix == H5MD:
            return h5md.count(path)
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
        with writing(self.path, GO_ON):
            if keep_until is None:
                self.path.write_text("", encoding="utf-8")
            self._file = open(self.path, "a", encoding="utf-8", newline="")
        self._header = self._csv and self._file.tell() == 0

    def write(self, record: dict) -> None:
        """Values are numbers or None (an empty cell in CSV)."""
        with writing(self.path, GO_ON):
            if self._csv:
                writer = csv.DictWriter(self._file, list(record))
                if self._header:
                    writer.writeheader()
                    self._header = False
                writer.writerow(record)
            else:
                self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Force what was written to disk."""
        with writing(self.path, GO_ON):
            sync(self.path)

    def close(self) -> None:
        with suppress(OSError):  # lines are flushed one by one: only a failed one is left, and was told
            self._file.close()

    def _drop_after(self, step: int) -> None:
        with open(self.path, encoding="utf-8", errors="replace", newline="") as file:
            kept = [line for line in file if line.endswith("\n") and self._keep(line, step)]
        write_text(self.path, "".join(kept))

    def _keep(self, line: str, step: int) -> bool:
        try:
            return int(line.split(",")[0]) <= step if self._csv else json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError, RecursionError):
            return self._csv and line.startswith("step")


def state_path(trajectory: str | Path) -> Path:
    """Where the state to restart from lies, beside the trajectory."""
    return Path(trajectory).with_suffix(".state.npz")


def record_path(trajectory: str | Path) -> Path:
    """Where versions, machine and settings of the run stand, one entry for each time it was started."""
    return Path(trajectory).with_suffix(".run.json")


def lock_path(trajectory: str | Path) -> Path:
    """The file that the process that writes the trajectory holds."""
    path = Path(trajectory)
    return path.with_name(f".{path.name}.lock")


def save_state(path: Path, state: dict[str, np.ndarray]) -> None:
    """Arrays, atomically (a file at `path` is always whole)."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **state)


def check_state(state: dict[str, np.ndarray], single: tuple[str, ...], path: Path) -> None:
    """Raise DataError unless there are numbers, positions, cell and pbc of the same atoms, and what `single` names, and all that
    is a number is finite. What is named is a single value, but `sizes` has three."""
    n = len(state["numbers"]) if "numbers" in state and state["numbers"].ndim else 0
    shapes = {"numbers": (n,), "positions": (n, 3), "cell": (3, 3), "pbc": (3,), **dict.fromkeys(single, ()), "sizes": (3,)}
    kinds = {"numbers": "iu", "positions": "f", "momenta": "f", "cell": "f", "pbc": "b", "sizes": "iu"}
    kinds |= dict.fromkeys(("step", "frames", "degrees_of_freedom", "interval", "seed"), "iu")
    kinds |= {"keep_velocities": "b", "constraints": "U", "engine": "U", "bias": "U", "start_positions": "f", "masses": "f"}
    if "step" in single:
        shapes |= {"momenta": (n, 3), "start_positions": (n, 3), "masses": (n,), "tags": (n,), "initial_charges": (n,)}
    if "sizes" not in single:
        del shapes["sizes"]
    for name, shape in shapes.items():
        if name not in state:
            raise DataError(f"{path}: {name!r} is missing from the state (of an older version?); start without restart")
        array = state[name]
        if array.shape != shape or array.dtype.kind not in kinds.get(name, array.dtype.kind):
            raise DataError(
                f"{path}: {name!r} is {array.dtype} of shape {array.shape} where {shape} is expected; start without restart"
            )
        if kinds.get(name) == "iu" and (array < (name in ("degrees_of_freedom", "interval"))).any():
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
