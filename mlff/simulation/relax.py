"""Relaxation of atoms, and of the cell if wanted, with any ASE calculator."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ase
import numpy as np
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from scipy.spatial.transform import Rotation

from mlff.basics.errors import ConfigError, FileError, MLFFError
from mlff.basics.signals import Stop
from mlff.basics.units import STRESS
from mlff.simulation.guard import Guard, Limits, SimulationError
from mlff.simulation.lbfgs import LBFGS
from mlff.simulation.record import Trajectory, check_trajectory_name

_OPTIMIZERS = {"lbfgs": LBFGS, "fire": FIRE}


@dataclass(frozen=True)
class Relaxation:
    """How it ended. The relaxed structure is in the atoms that were given."""

    converged: bool
    steps: int
    energy: float  #: eV
    energy_change: float  #: eV, negative: lower than at the start
    forces_max: float  #: eV/Å, longest force on an atom (constraints applied)
    volume: float | None  #: Å³; None unless periodic in three directions
    warning: str | None = None  #: what to know about the result
    displacement: float = 0.0  #: Å, of the atom that has moved farthest


def relax(
    atoms: ase.Atoms,
    calculator,
    *,
    fmax: float = 0.01,
    cell: bool = False,
    pressure: float | None = None,
    steps: int = 500,
    optimizer: Literal["lbfgs", "fire"] = "lbfgs",
    trajectory: str | Path | None = None,
    progress: bool = True,
) -> Relaxation:
    """Move `atoms` to a minimum: until no force is longer than `fmax` (eV/Å) or `steps` are done.

    With `cell` the cell relaxes too, against `pressure` (GPa; 0), and the forces on it (ASE's FrechetCellFilter: stress
    times volume, per atom) have to fall below `fmax` as well.
    Raises ConfigError, FileError; SimulationError if atoms fuse or fly off on the way. Ctrl-C (SIGTERM) ends it after the
    current step with KeyboardInterrupt (Terminated); `atoms` are then where they have come.
    """
    if optimizer not in _OPTIMIZERS:
        raise ConfigError(f"unknown optimizer {optimizer!r}; known: {', '.join(_OPTIMIZERS)}")
    if not (fmax > 0 and np.isfinite(fmax)):
        raise ConfigError(f"fmax must be a positive force in eV/Å, not {fmax}")
    if cell and not atoms.pbc.all():
        raise ConfigError(f"the cell can only relax if it is periodic in three directions, found pbc={atoms.pbc.tolist()}")
    if pressure is not None and not cell:
        raise ConfigError("a pressure only acts when the cell relaxes: add cell")
    if trajectory is not None:
        check_trajectory_name(trajectory)
    atoms.calc = calculator
    if hasattr(calculator, "always_stress"):
        calculator.always_stress = cell
    guard = Guard(atoms, Limits(force=float("inf")), 0.0)
    start, begin = atoms.get_potential_energy(), atoms.positions.copy()
    moving = FrechetCellFilter(atoms, scalar_pressure=(pressure or 0.0) * STRESS["GPa"]) if cell else atoms
    written = None if trajectory is None else Trajectory(trajectory)
    try:
        driver = _OPTIMIZERS[optimizer](moving, logfile=None)
        with driver, Stop() as stop, _bar(progress) as bar, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "logm result may be inaccurate", RuntimeWarning)  # off by 1e-12, in each step
            task = bar.add_task("relax", total=None, note="")
            for _ in driver.irun(fmax=fmax, steps=steps):
                guard.check_geometry(atoms)
                energy, longest = atoms.get_potential_energy(), _longest(atoms.get_forces())
                if written is not None:
                    written.write(atoms, energy, atoms.get_forces(apply_constraint=False), step=driver.nsteps)
                bar.update(task, note=f"step {driver.nsteps}  {energy:.4f} eV  largest force {longest:.4f} eV/Å")
                if stop.asked:
                    raise stop.error()
            converged = bool(driver.converged(moving.get_forces().ravel()))
            done = driver.nsteps
    except FileError:
        raise
    except MLFFError as error:
        raise SimulationError(f"relaxation stopped: {error}") from error
    finally:
        if hasattr(calculator, "always_stress"):
            calculator.always_stress = None
        if written is not None:
            written.close()
    energy = float(atoms.get_potential_energy())
    volume = float(atoms.get_volume()) if atoms.pbc.all() else None
    warning = _warning(atoms, calculator, fmax, converged, steps)
    change, forces_max, moved = energy - float(start), _longest(atoms.get_forces()), _longest(atoms.positions - begin)
    return Relaxation(converged, done, energy, change, forces_max, volume, warning, moved)


def force_noise(atoms: ase.Atoms, calculator) -> float:
    """How far rounding throws forces off (eV/Å): the longest difference to those of the same structure, rotated."""
    plain = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    here = calculator.get_property("forces", plain)
    noise = 0.0
    for turn in Rotation.random(4, rng=0).as_matrix():
        other = ase.Atoms(atoms.numbers, positions=atoms.positions @ turn.T, cell=atoms.cell.array @ turn.T, pbc=atoms.pbc)
        noise = max(noise, _longest(calculator.get_property("forces", other) @ turn - here))
    return noise


def _warning(atoms: ase.Atoms, calculator, fmax: float, converged: bool, steps: int) -> str | None:
    single = getattr(getattr(calculator, "potential", None), "precision", None) == "float32"
    noise = force_noise(atoms, calculator) if single and (not converged or fmax < 1e-2) else 0.0
    if fmax < 3 * noise:
        return f"fmax {fmax:g} eV/Å is within the rounding of float32 (about {noise:.1g} eV/Å here); use float64 for it"
    return None if converged else f"not converged after {steps} steps"


def _longest(vectors: np.ndarray) -> float:
    return float(np.linalg.norm(vectors, axis=1).max(initial=0.0))


def _bar(show: bool) -> Progress:
    columns = SpinnerColumn(), TextColumn("relax  {task.fields[note]}"), TimeElapsedColumn()
    return Progress(*columns, console=Console(stderr=True), disable=not show or not sys.stderr.isatty(), transient=True)
