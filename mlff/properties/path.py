"""Minimum-energy paths between two minima by nudged elastic bands with a climbing image."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass

import ase
import numpy as np
from ase.build import minimize_rotation_and_translation
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.geometry import find_mic
from ase.mep import NEB
from ase.optimize import FIRE
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from mlff.basics.errors import ConfigError, StructureError
from mlff.basics.signals import Stop
from mlff.potential.potential import Potential

_ROUGH = 5.0  #: times fmax: below, the highest image begins to climb
_SAME = 0.05  #: Å; ends that lie nearer than this are one minimum
_SHORTER = 0.7  #: share of the displacement that is left when like atoms are exchanged, below which that is said


@dataclass(frozen=True, eq=False)
class ReactionPath:
    """Images from one minimum to the other, with their energies and forces as results of a calculator."""

    images: list[ase.Atoms]
    energies: np.ndarray  #: (k,) eV, from that of the first image
    distances: np.ndarray  #: (k,) Å, from the first image along the path, in 3n dimensions
    forces_max: float  #: eV/Å, largest force of the band at the end
    converged: bool
    steps: int
    notes: list[str]  #: what to know about the path

    @property
    def highest(self) -> int:
        """Number of the image of the highest energy."""
        return int(self.energies.argmax())

    @property
    def barrier(self) -> float:
        """eV, from the first to the last image."""
        return float(self.energies.max())

    @property
    def barrier_back(self) -> float:
        """eV, from the last to the first image."""
        return float(self.energies.max() - self.energies[-1])

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {
            "energies_ev": self.energies.tolist(),
            "distances_a": self.distances.tolist(),
            "barrier_ev": self.barrier,
            "barrier_back_ev": self.barrier_back,
            "reaction_energy_ev": float(self.energies[-1]),
            "highest_image": self.highest,
            "forces_max_ev_per_a": self.forces_max,
            "converged": self.converged,
            "steps": self.steps,
            "notes": self.notes,
        }


class BatchedNEB(NEB):
    """ASE's band whose images are all computed in one call of the potential."""

    def __init__(self, images: list[ase.Atoms], potential: Potential, free: bool):
        """`free`: nothing holds the images, so that each is turned and shifted onto the one before it."""
        super().__init__(images, method="improvedtangent")
        self.potential = potential
        self.free = free
        _evaluate(potential, images)

    def get_forces(self) -> np.ndarray:
        """Forces (images between the ends times n, 3) on the band, eV/Å."""
        if self.free:
            for before, image in itertools.pairwise(self.images):
                minimize_rotation_and_translation(before, image)
        _evaluate(self.potential, self.images if self.free else self.images[1:-1])
        return super().get_forces()


def reaction_path(
    potential: Potential,
    start: ase.Atoms,
    end: ase.Atoms,
    images: int = 7,
    fmax: float = 0.02,
    steps: int = 1000,
    progress: bool = False,
) -> ReactionPath:
    """The path from `start` to `end`, two minima of the same atoms in the same order, with `images` images between them.

    Climbing images: Henkelman, Uberuaga & Jónsson, J. Chem. Phys. 113, 9901 (2000); start by image dependent pair potentials:
    Smidstrup, Pedersen, Stokbro & Jónsson, J. Chem. Phys. 140, 214106 (2014). Until no force on the band is longer than
    `fmax` (eV/Å) or `steps` are done. Raises StructureError: ends that do not belong together; ConfigError. Ctrl-C (SIGTERM)
    ends it with KeyboardInterrupt (Terminated).
    """
    if images < 1 or steps < 1:
        raise ConfigError(f"--images and --steps must be positive, found {images} and {steps}")
    if not (fmax > 0 and np.isfinite(fmax)):
        raise ConfigError(f"--fmax must be a positive force in eV/Å, not {fmax:g}")
    check_ends(start, end)
    start, end, notes = _ends(start, end)
    band = [start, *(start.copy() for _ in range(images)), end]
    periodic = bool(start.pbc.any())
    NEB(band, method="improvedtangent").interpolate("idpp", mic=periodic, apply_constraint=False)
    neb = BatchedNEB(band, potential, free=not periodic and not start.constraints)
    columns = SpinnerColumn(), TextColumn("neb  {task.fields[note]}"), TimeElapsedColumn()
    hidden = not progress or not sys.stderr.isatty()
    with Stop() as stop, Progress(*columns, console=Console(stderr=True), disable=hidden, transient=True) as bar:
        task = bar.add_task("neb", total=None, note="")
        done = 0
        for climb, limit in ((False, max(fmax, _ROUGH * fmax)), (True, fmax)):
            neb.climb = climb
            with FIRE(neb, logfile=None) as driver:
                for _ in driver.irun(fmax=limit, steps=steps - done):
                    bar.update(task, note=f"step {done + driver.nsteps}  highest {neb.emax - neb.energies[0]:.4f} eV")
                    if stop.asked:
                        raise stop.error()
                done += driver.nsteps
    forces = neb.get_forces()
    energies = neb.energies - neb.energies[0]
    moved = [find_mic(b.positions - a.positions, start.cell, start.pbc)[0] for a, b in zip(band, band[1:], strict=False)]
    distances = np.concatenate([[0.0], np.cumsum([np.linalg.norm(step) for step in moved])])
    largest = float(np.linalg.norm(forces, axis=1).max())
    return ReactionPath(band, energies, distances, largest, largest <= fmax, done, notes + _shape(energies))


def _evaluate(potential: Potential, images: list[ase.Atoms]) -> None:
    for image, result in zip(images, potential.predict(images, stress=False), strict=True):
        image.calc = SinglePointCalculator(image, energy=result.energy, forces=result.forces)


def check_ends(start: ase.Atoms, end: ase.Atoms) -> None:
    """Raise StructureError if they are not the same atoms in the same order and cell."""
    if start.get_chemical_formula() != end.get_chemical_formula():
        raise StructureError(
            f"START and END are not made of the same atoms: {start.get_chemical_formula()} and {end.get_chemical_formula()}"
        )
    if (start.numbers != end.numbers).any():
        k = int(np.flatnonzero(start.numbers != end.numbers)[0])
        a, b = chemical_symbols[start.numbers[k]], chemical_symbols[end.numbers[k]]
        raise StructureError(
            f"the atoms of END stand in another order: atom {k} is {a} in START and {b} in END; reorder them"
        )
    if (start.pbc != end.pbc).any() or (start.pbc.any() and np.abs(start.cell.array - end.cell.array).max() > 1e-4):
        raise StructureError("START and END differ in cell or periodicity; a band needs the same cell at both ends")


def _ends(start: ase.Atoms, end: ase.Atoms) -> tuple[ase.Atoms, ase.Atoms, list[str]]:
    """Copies of both, the second moved next to the first, and what to know. Raises StructureError: they are the same."""
    start, end = start.copy(), end.copy()
    end.set_constraint()
    if start.pbc.any():
        end.set_cell(start.cell)
        end.positions = start.positions + find_mic(end.positions - start.positions, start.cell, start.pbc)[0]
    elif not start.constraints:
        minimize_rotation_and_translation(start, end)
    moved = np.linalg.norm(end.positions - start.positions, axis=1)
    if moved.max() < _SAME:
        raise StructureError(f"START and END are the same minimum: no atom moves by more than {moved.max():.2g} Å")
    end.set_constraint(start.constraints)
    return start, end, _exchanged(start, end, moved)


def _exchanged(start: ase.Atoms, end: ase.Atoms, moved: np.ndarray) -> list[str]:
    """Whether the path were much shorter if atoms of one element exchanged their numbers."""
    if start.pbc.any():
        differences = (end.positions[None] - start.positions[:, None]).reshape(-1, 3)
        apart = find_mic(differences, start.cell, start.pbc)[1].reshape(len(start), len(start))
    else:
        apart = cdist(start.positions, end.positions)
    squares = np.where(start.numbers[:, None] == start.numbers, apart**2, 1e12)
    rows, columns = linear_sum_assignment(squares)
    if squares[rows, columns].sum() > _SHORTER * np.sum(moved**2):
        return []
    k = int(np.flatnonzero(rows != columns)[0])
    symbol = chemical_symbols[start.numbers[k]]
    return [
        f"atoms of END may stand in another order: {symbol} {k} of START lies next to {symbol} {columns[k]} of END; if the path is "
        "not to exchange them, number them alike"
    ]


def _shape(energies: np.ndarray) -> list[str]:
    """What the profile of energies tells."""
    highest = int(energies.argmax())
    if highest in (0, len(energies) - 1):
        return [
            "no image is higher than the ends: there is no barrier between them, or one between two images; take more images"
        ]
    inner = energies[1:-1]
    wells = [k for k in range(1, len(inner) - 1) if inner[k] < min(inner[k - 1], inner[k + 1])]
    if wells:
        k = wells[int(np.argmin(inner[wells]))] + 1
        return [f"the path has a minimum at image {k}: relax that image, and find the path to it and from it"]
    return []
