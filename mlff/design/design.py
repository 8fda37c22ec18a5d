"""Inverse design: from a trained potential, a structure and wanted properties to structures that have them, top to bottom."""

from __future__ import annotations

import ase
import numpy as np
from rich.console import Console

from mlff.basics.runtime import refuse_forked
from mlff.basics.signals import Stop
from mlff.config.design import Design
from mlff.design.outcome import Candidate, Goal, Outcome, explain, merged
from mlff.design.problem import Problem
from mlff.design.search import Found, Search
from mlff.design.space import Space
from mlff.design.targets import Property, make_properties, model_file, stress_untested, structure
from mlff.potential.potential import Potential
from mlff.properties.minimum import farthest

PER_ATOM = 0.05  #: eV: the usual limit of the energy; vibrations hold 3/2 kT per atom, 0.039 eV at 300 K


def design(config: Design, *, progress: bool = True) -> tuple[list[ase.Atoms], Outcome]:
    """Structures with wanted properties, each of the least energy nearby: the minimum, then the candidates of the outcome.

    All is computed in float64; of what was found, energies and values are computed anew by `Potential.predict`. The
    structures hold their values in `info`.
    Raises ConfigError, DataError, ModelFileError, StructureError, SimulationError; KeyboardInterrupt (Terminated) after Ctrl-C
    (SIGTERM).
    """
    refuse_forked()
    potential = Potential.load(model_file(config.model)).with_precision("float64")
    atoms = structure(config.structure, config.frame, potential)
    limit = config.energy_limit or PER_ATOM * len(atoms)
    with potential.scope(), Console(stderr=True).status("design") as shown, Stop() as stop:
        if not progress:
            shown.stop()

        def note(text: str) -> None:
            shown.update(f"design  {text}")
            if stop.asked:
                raise stop.error()

        properties = make_properties(config, potential, atoms)
        space = Space(atoms, config.free, config.structure)
        problem = Problem(potential, properties, space)
        search = Search(problem, note)
        wanted = _wanted(properties, search.values)
        found = []
        for number in range(config.starts):
            note(f"start {number + 1} of {config.starts}")
            start = space.displaced(np.random.default_rng([config.seed, number]), config.displacement) if number else None
            found.append(search.run(wanted, limit, start))
        return _finish(problem, search, found, limit)


def _wanted(properties: list[Property], at_minimum: np.ndarray) -> np.ndarray:
    places = np.cumsum([len(one.wanted) for one in properties])[:-1]
    parts = zip(properties, np.split(at_minimum, places), strict=True)
    return np.concatenate([one.goal(values) for one, values in parts])


def _finish(problem: Problem, search: Search, found: list[Found], limit: float) -> tuple[list[ase.Atoms], Outcome]:
    """All values anew, the candidates in order, and the structures with their values."""
    properties = problem.properties
    problem.space.followed = search.rest
    minimum, lowest, before = problem.fresh(search.minimum)
    goals = [
        Goal(one.name, one.unit, one.goal(np.array(values)).tolist(), one.error, values)
        for one, values in zip(properties, before, strict=True)
    ]
    potentials = [problem.potential, *(one.other.potential for one in properties if one.other is not None)]
    candidates = []
    for number, one in enumerate(found):
        problem.space.followed = one.followed
        atoms, energy, values = problem.fresh(one.x)
        away = [float(np.abs(np.subtract(v, g.wanted)).max() / g.error) for v, g in zip(values, goals, strict=True)]
        distances = [d for each in potentials if (d := farthest(each, [atoms])) is not None]
        why = explain(one, properties, goals, limit)
        reached = why is None and max(away) <= 1
        row = Candidate(reached, [number], energy - lowest, values, away, max(distances, default=None), why)
        candidates.append((row, _described(atoms, energy, goals, values)))
    kept = merged(candidates, goals)
    for row, atoms in kept:
        atoms.info |= {"design": "reached" if row.reached else "not_reached", "mlff_energy_above_minimum": row.energy}
        if row.distance is not None:
            atoms.info["mlff_distance"] = row.distance
    frames = [_described(minimum, lowest, goals, before), *(atoms for _, atoms in kept)]
    frames[0].info["design"] = "minimum"
    evaluations = sum(one.evaluations for one in found)
    untested = any(one.stress for one in properties) and stress_untested(problem.potential)
    return frames, Outcome(limit, evaluations, untested, tuple(goals), tuple(row for row, _ in kept))


def _described(atoms: ase.Atoms, energy: float, goals: list[Goal], values: list[list[float]]) -> ase.Atoms:
    """With its energy (eV) and values in `info`, of other targets of the same name with a number."""
    atoms.info = {"mlff_energy": energy}
    for number, (goal, here) in enumerate(zip(goals, values, strict=True)):
        name = "mlff_" + goal.name.replace(" ", "_")
        name = f"{name}_{number}" if name in atoms.info else name
        atoms.info[name] = here[0] if len(here) == 1 else np.array(here)
    return atoms
