"""Structures around given ones, labelled by a cheap teacher: data to train on before, or beside, the dear ones.

A semi-empirical method or another potential labels thousands of structures in minutes. A network trained on them first
and on the reference data after that needs far fewer of those (synthetic pre-training: Gardner, Baker & Deringer, Mach.
Learn.: Sci. Technol. 5, 015003 (2024)); a small one trained on the labels of a large one is fast (distillation).
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import ase
import numpy as np
from ase.calculators.calculator import CalculationFailed
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from ase.md.langevin import Langevin
from ase.units import fs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mlff.basics.errors import DataError, MLFFError
from mlff.basics.files import EXTXYZ, check_output, replacing
from mlff.basics.signals import Stop
from mlff.data.writing import write_frames
from mlff.simulation.guard import SimulationError
from mlff.simulation.velocities import maxwell_boltzmann

TEMPERATURES = (300.0, 500.0, 700.0, 1000.0)  #: K, one for each trajectory
XTB = ("GFN2-xTB", "GFN1-xTB")  #: methods of tblite
_MASS = 12.0  #: amu, of every atom: what is sampled does not depend on masses, but light ones need short steps
_STEP, _FRICTION = 3.0, 0.03  #: fs, 1/fs
_FIRST, _BETWEEN, _FRAMES = 8, 3, 6  #: steps before the first structure and between two; structures of a trajectory
_LARGEST = 30.0  #: eV/Å: a trajectory with a larger force is left
_FAILURES = 20  #: trajectories in a row without a structure
_SAVE_EVERY = 60.0  #: s; the whole file is written


def sample(
    structures: Sequence[ase.Atoms],
    calculator,
    out: str | Path,
    count: int,
    *,
    name: str = "unnamed",
    temperatures: Sequence[float] = TEMPERATURES,
    seed: int = 0,
    progress: bool = True,
) -> int:
    """Write `count` structures with energies, forces (and stresses of full cells) by `calculator` to `out`, extended XYZ.

    Short Langevin trajectories, each at one of `temperatures` (K), start from structures of two atoms or more drawn by chance;
    a few structures of each are kept, with `temperature`, `trajectory` and the calculator's `name` as `teacher` in their info.
    A file that is there is continued. Returns how many structures are new. Raises DataError: nothing to start from, not a
    name or a file to write; FileError; SimulationError if twenty trajectories one after the other give nothing, because the
    calculator fails or forces exceed 30 eV/Å. After Ctrl-C (SIGTERM) what there is is written first.
    """
    out = Path(out)
    check_output(out, EXTXYZ)
    structures = [atoms for atoms in structures if len(atoms) > 1]
    if not structures:
        raise DataError("no structure of two atoms or more to start from")
    frames, trajectory = _there(out, name)
    before, failures, saved = len(frames), 0, time.monotonic()
    columns = TextColumn("sample"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    shown = progress and sys.stderr.isatty()
    with Stop() as stop, Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("", total=count, completed=before)
        try:
            while len(frames) < count and not stop.asked:
                rng = np.random.default_rng([seed, trajectory])
                atoms = structures[rng.integers(len(structures))]
                new, reason = _trajectory(atoms, calculator, float(rng.choice(temperatures)), rng)
                failures = 0 if new else failures + 1
                if failures == _FAILURES:
                    raise SimulationError(f"{failures} trajectories one after the other gave no structure: {reason}")
                for atoms in new:
                    atoms.info |= {"trajectory": trajectory, "teacher": name}
                frames += new[: count - len(frames)]
                trajectory += 1
                bar.update(task, completed=len(frames))
                if time.monotonic() - saved > _SAVE_EVERY:
                    _write(out, frames)
                    saved = time.monotonic()
        finally:
            if len(frames) > before:
                _write(out, frames)
        if stop.asked:
            raise stop.error()
    return len(frames) - before


def teacher(name: str):
    """The calculator of a method of `XTB` (case does not matter), or what `package.module:function` returns, called with nothing.

    Raises DataError: unknown, not installed, or no calculator.
    """
    methods = {method.lower(): method for method in XTB}
    if ":" in name:
        return _imported(name)
    if name.lower() not in methods:
        raise DataError(
            f"{name}: neither a model file nor a method known here ({', '.join(XTB)}, or package.module:function)"
        )
    try:
        from tblite.ase import TBLite
    except ImportError:
        raise DataError(f"{methods[name.lower()]} needs tblite: pip install tblite") from None
    return TBLite(
        method=methods[name.lower()], verbosity=0, accuracy=5.0
    )  # forces within 1 meV/Å, in two thirds of the time


def _imported(name: str):
    """What the function of `package.module:function` returns; modules of the working directory are found too."""
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module), function)()
    except Exception as error:  # whatever another package raises
        raise DataError(f"{name}: {str(error) or type(error).__name__}; expected package.module:function") from None
    if not callable(getattr(made, "get_potential_energy", None)):
        raise DataError(f"{name}: gives a {type(made).__name__}, not an ASE calculator")
    return made


def _trajectory(start: ase.Atoms, calculator, temperature: float, rng: np.random.Generator) -> tuple[list[ase.Atoms], str]:
    """Labelled structures of one trajectory, and why it ended early ("" if it did not)."""
    atoms = ase.Atoms(start.numbers, start.positions, cell=start.cell, pbc=start.pbc, masses=[_MASS] * len(start))
    atoms.calc = calculator
    maxwell_boltzmann(atoms, 2 * temperature, rng)  # half of it goes into the bonds
    dynamics = Langevin(atoms, _STEP * fs, temperature_K=temperature, friction=_FRICTION / fs, rng=rng, fixcm=False)
    found = []
    try:
        for number in range(_FRAMES):
            dynamics.run(_BETWEEN if number else _FIRST)
            forces = atoms.get_forces()
            if not np.abs(forces).max() < _LARGEST:
                return found, f"a force of {np.abs(forces).max():.3g} eV/Å at {temperature:g} K"
            labels = {"energy": atoms.get_potential_energy(), "forces": forces.copy()}
            if atoms.pbc.all():
                labels["stress"] = atoms.get_stress().copy()
            frame = ase.Atoms(
                atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info={"temperature": temperature}
            )
            frame.calc = SinglePointCalculator(frame, **labels)
            found.append(frame)
    except (MLFFError, CalculationFailed, RuntimeError, ArithmeticError) as error:
        return found, str(error) or type(error).__name__
    return found, ""


def _there(out: Path, name: str) -> tuple[list[ase.Atoms], int]:
    """What a run before this one wrote, and the number of the next trajectory."""
    if not out.exists():
        return [], 0
    try:
        frames = read(out, ":", format="extxyz")
        teachers = {str(atoms.info["teacher"]) for atoms in frames}
        trajectory = max(int(atoms.info["trajectory"]) for atoms in frames) + 1
    except Exception:  # whatever ASE makes of a file that is something else
        raise DataError(f"{out}: exists and holds no samples to continue; choose another name") from None
    if teachers != {name}:
        raise DataError(f"{out}: has labels of {', '.join(sorted(teachers))}, not of {name}; choose another name")
    return frames, trajectory


def _write(out: Path, frames: list[ase.Atoms]) -> None:
    with replacing(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        write_frames(file, frames)
