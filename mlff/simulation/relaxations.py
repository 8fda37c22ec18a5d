"""Relaxation of many structures: side by side in batches where that can be, else one by one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mlff.basics.errors import ConfigError, StructureError
from mlff.basics.signals import Stop
from mlff.basics.units import STRESS, to_six
from mlff.data.batching import Sizes
from mlff.potential.packing import batch_atoms, pack
from mlff.potential.potential import Potential
from mlff.simulation.batch import Batch
from mlff.simulation.guard import SimulationError
from mlff.simulation.mover import Mover, make_mover
from mlff.simulation.relax import Relaxation, relax

_USUAL_STEPS = 100  #: by which the compilation of one more shape is weighed


def relax_many(
    structures: Sequence[ase.Atoms],
    calculator,
    *,
    fmax: float = 0.01,
    cell: bool = False,
    pressure: float | None = None,
    steps: int = 500,
    optimizer: str = "lbfgs",
    source: str | Path = "structures",
    progress: bool = True,
) -> Iterator[tuple[int, Relaxation]]:
    """Move many structures to minima: the index and the result of each as it ends, in any order. Options are those of `relax`.

    L-BFGS moves them side by side in batches (float64 positions, forces of the calculator's `potential`), with `cell` their
    cells too; with fire, with constraints other than FixAtoms or with a calculator that has no `potential` they are relaxed
    one by one. Atoms that are fixed keep their fractional coordinates in a cell that relaxes, as in ASE. A structure that ended
    keeps its energy, forces and, with `cell`, stress as results of its `calc`; of one that blew up `warning` says so, and it
    has none where they are no numbers. Raises ConfigError; StructureError before anything is computed, naming `source` and index. Ctrl-C
    (SIGTERM) ends it after the current step with KeyboardInterrupt (Terminated); all structures are then where they have come.
    """
    if not (fmax > 0 and np.isfinite(fmax)):
        raise ConfigError(f"fmax must be a positive force in eV/Å, not {fmax}")
    if pressure is not None and not cell:
        raise ConfigError("a pressure only acts when the cell relaxes: add cell")
    sources = [f"{source}, structure {index}" for index in range(len(structures))]
    potential = getattr(calculator, "potential", None)
    together = isinstance(potential, Potential) and optimizer == "lbfgs"
    movers, single = [], []
    for index, atoms in enumerate(structures):
        if len(atoms) == 0:
            raise StructureError(f"{sources[index]}: has no atoms")
        if cell and not atoms.pbc.all():
            raise ConfigError(
                f"{sources[index]}: its cell can only relax if it is periodic in three directions; leave cell out"
            )
        if isinstance(potential, Potential):
            mover = make_mover(index, atoms, _fixed(atoms), potential, sources[index], cell)
        if together and all(isinstance(constraint, FixAtoms) for constraint in atoms.constraints):
            movers.append(mover)
        else:
            single.append(index)
    for atoms in structures:
        atoms.calc = None  # results of where they stand now are those of another calculator
    options = {"fmax": fmax, "cell": cell, "pressure": pressure, "steps": steps, "optimizer": optimizer}
    with _bar(progress) as bar:
        task = bar.add_task("", total=len(structures))
        if movers:
            against = (pressure or 0.0) * STRESS["GPa"] if cell else None
            for mover in _side_by_side(potential, movers, structures, against, fmax, steps):
                yield mover.index, _finish(mover, structures[mover.index])
                bar.advance(task)
        for index in single:
            yield index, _relax_one(structures[index], calculator, options)
            bar.advance(task)


def add_stresses(relaxed: Sequence[ase.Atoms], potential: Potential) -> None:
    """Add the stress to the results of those that have energy and forces but no stress, and three periodic directions."""
    missing = [atoms for atoms in relaxed if atoms.pbc.all() and "stress" not in atoms.calc.results]
    for atoms, result in zip(missing, potential.predict(missing), strict=True):
        atoms.calc.results["stress"] = to_six(result.stress)


def _side_by_side(
    potential: Potential,
    movers: list[Mover],
    structures: Sequence[ase.Atoms],
    pressure: float | None,
    fmax: float,
    steps: int,
) -> Iterator[Mover]:
    """Movers as they end. The last of a size class go on in the next one, so that no batch runs nearly empty for long."""
    samples = [mover.sample for mover in movers]
    atoms = max(batch_atoms(potential.programs, 0, pressure is not None), max(map(len, movers)))
    classes = pack(samples, atoms, potential.dtype, _USUAL_STEPS).classes
    most = max(sizes.structures for sizes, _ in classes), max(sizes.atoms for sizes, _ in classes)
    left: list[Mover] = []
    ended: set[int] = set()
    try:
        with Stop() as stop:
            for sizes, members in classes:
                largest_first = sorted((movers[k] for k in members), key=len, reverse=True)
                batch = Batch(potential, Sizes(*most, sizes.neighbors), [*left, *largest_first], pressure)
                last = sizes is classes[-1][0]
                while batch.movers and (last or not batch.thin):
                    for mover in batch.advance(fmax, steps):
                        ended.add(mover.index)
                        mover.state = None  # it would keep the arrays of the whole batch
                        yield mover
                    if stop.asked:
                        raise stop.error()
                left = batch.release()
    finally:
        batch.release()
        for mover in movers:
            if mover.index not in ended:
                _place(structures[mover.index], mover)


def _finish(mover: Mover, atoms: ase.Atoms) -> Relaxation:
    """The result of a mover that has ended; `atoms` take over where it stands and what it has."""
    moved = np.linalg.norm(mover.structure.positions - atoms.positions, axis=1).max()
    _place(atoms, mover)
    results = {"energy": mover.energy, "forces": mover.forces}
    if mover.stress is not None:
        results["stress"] = to_six(mover.stress)
    known = mover.forces.shape == atoms.positions.shape and all(np.isfinite(value).all() for value in results.values())
    atoms.calc = SinglePointCalculator(atoms, **results) if known else None
    warning = mover.failure or (None if mover.converged else f"not converged after {mover.steps} steps")
    change = mover.energy - (np.nan if mover.start is None else mover.start)
    volume = float(atoms.get_volume()) if atoms.pbc.all() else None
    return Relaxation(mover.converged, mover.steps, mover.energy, change, mover.longest, volume, warning, float(moved))


def _place(atoms: ase.Atoms, mover: Mover) -> None:
    atoms.positions[:] = mover.structure.positions
    atoms.cell[:] = mover.structure.cell


def _relax_one(atoms: ase.Atoms, calculator, options: dict) -> Relaxation:
    """By ASE's optimisers; a structure that blows up is a result too."""
    begin = atoms.positions.copy()
    try:
        result = relax(atoms, calculator, progress=False, **options)
    except SimulationError as error:
        atoms.calc = None
        moved = float(np.linalg.norm(atoms.positions - begin, axis=1).max())
        return Relaxation(False, 0, np.nan, np.nan, np.inf, None, str(error), moved)
    results = dict(calculator.results)
    atoms.calc = SinglePointCalculator(atoms, **{k: results[k] for k in ("energy", "forces", "stress") if k in results})
    return result


def _fixed(atoms: ase.Atoms) -> np.ndarray:
    fixed = [constraint.get_indices() for constraint in atoms.constraints if isinstance(constraint, FixAtoms)]
    return np.unique(np.concatenate(fixed)) if fixed else np.zeros(0, int)


def _bar(show: bool) -> Progress:
    columns = TextColumn("relax"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=Console(stderr=True), disable=not show or not sys.stderr.isatty())
