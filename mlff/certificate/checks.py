"""The checks of a certificate. Each asks the potential only for energies, forces and stresses, as a user would."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import ase
import numpy as np
from ase.data import covalent_radii
from scipy.spatial.transform import Rotation

from mlff.basics.errors import MLFFError
from mlff.basics.properties import PREDICTED, PROPERTIES
from mlff.basics.statistics import rms
from mlff.certificate.line import Line
from mlff.certificate.probe import Probe
from mlff.certificate.scans import SHORTEST, Scan
from mlff.interfaces.ase import MLFFCalculator
from mlff.potential.potential import Potential
from mlff.simulation.md import run_md

_H = 1e-3  #: Å and strain: step of finite differences, taken with four points
_FOUR_POINTS = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
_APART = 60.0  #: Å between what must not see each other
_STEEPEST = 50.0  #: eV/Å: no diatomic molecule pulls with more than about 13 (N2, CO)
NVE_STEPS = 4000


def symmetries(ask: Probe, structures: list[ase.Atoms], rng: np.random.Generator) -> list[Line]:
    """Rotation and reflection, translation, and exchange of atoms, all at once: the same energy, forces turned along."""
    orders, turns, moved = [], [], []
    for number, atoms in enumerate(structures):
        turn = Rotation.random(rng=rng).as_matrix() * (-1 if number % 2 else 1)
        order = rng.permutation(len(atoms))
        other = ase.Atoms(atoms.numbers, atoms.positions @ turn, cell=atoms.cell.array @ turn, pbc=atoms.pbc)
        other.positions += rng.uniform(-5, 5, 3)
        orders.append(order)
        turns.append(turn)
        moved.append(other[order])
    here, there = ask(structures), ask(moved)
    pairs = list(zip(orders, turns, here, there, strict=True))
    energy = _largest(abs(a.energy - b.energy) / len(order) for order, _, a, b in pairs)
    forces = _largest(np.abs((a.forces @ turn)[order] - b.forces).max() for order, turn, a, b in pairs)
    note = f"{len(structures)} structures rotated, reflected, moved and reordered"
    limit = max(1.0, _force_limit(here))
    return [
        Line("symmetry, energy", 1000 * energy, "meV/atom", 0.1, note),
        Line("symmetry, forces", 1000 * forces, "meV/Å", limit, f"largest component; {note}"),
    ]


def derivatives(ask: Probe, structures: list[ase.Atoms], rng: np.random.Generator) -> list[Line]:
    """Forces and stresses against differences of the energy; `ask` in float64."""
    here = ask(structures)
    directions = [_unit(rng.normal(size=(len(atoms), 3))) for atoms in structures]
    slopes = _slopes(ask, structures, lambda atoms, k, step: _move(atoms, step * directions[k]))
    errors = [abs(slope + np.sum(r.forces * d)) for slope, r, d in zip(slopes, here, directions, strict=True)]
    note = f"{len(structures)} structures, a random direction each; a failure means the forces are not -dE/dR"
    lines = [Line("forces against energies", 1000 * _largest(errors), "meV/Å", _force_limit(here), note)]
    solids = [atoms for atoms in structures if atoms.pbc.all()]
    if solids:
        strains = [_unit(m + m.T) for m in rng.normal(size=(len(solids), 3, 3))]
        slopes = _slopes(ask, solids, lambda atoms, k, step: _strain(atoms, step * strains[k]))
        results = ask(solids)
        pairs = zip(slopes, results, strains, solids, strict=True)
        errors = [abs(slope / atoms.get_volume() - np.sum(r.stress * s)) for slope, r, s, atoms in pairs]
        size = rms(np.array([r.stress for r in results]))
        note = f"{len(solids)} cells, a random strain each; a failure means the stress is not dE/dstrain/V"
        lines.append(Line("stress against energies", 1000 * _largest(errors), "meV/Å³", 1e-3 * max(1000 * size, 1.0), note))
    return lines


def cutoff(ask: Probe, structures: list[ase.Atoms]) -> list[Line]:
    """Energy, force and its slope as an atom comes into reach; `ask` in float64."""
    rc, elements = ask.potential.cutoff, ask.potential.elements
    places = [(ase.Atoms([a]), np.zeros(3), np.array([0.0, 0.0, 1.0])) for a in elements]
    places += [_outermost(atoms) for atoms in structures if not atoms.pbc.any() and len(atoms) > 1]
    near, nearer, beyond = [], [], []
    for atoms, start, unit in places:
        for z in elements:
            for frames, r in ((near, rc - 1e-6), (nearer, rc - 1e-3), (beyond, rc + 1e-6)):
                frames.append(atoms + ase.Atoms([z], positions=[start + r * unit]))
    answers = ask(near + nearer + beyond)
    inside, within, outside = (answers[k * len(near) : (k + 1) * len(near)] for k in range(3))
    energy = _largest(abs(a.energy - b.energy) for a, b in zip(inside, outside, strict=True))
    force = _largest(np.abs(a.forces - b.forces).max() for a, b in zip(inside, outside, strict=True))
    slope = _largest(np.abs(a.forces - b.forces).max() / 1e-3 for a, b in zip(within, outside, strict=True))
    note = f"an atom at the cutoff of {len(places)} atoms and structures"
    return [
        Line("energy step at the cutoff", 1000 * energy, "meV", 1e-3, note),
        Line("force step at the cutoff", 1000 * force, "meV/Å", 1e-2, note),
        Line("slope of the force at the cutoff", slope, "eV/Å²", 0.1, note),
    ]


def smoothness(dimers: list[Scan], bonds: list[Scan]) -> list[Line]:
    """Kinks and false minima of dimers and stretched bonds, and repulsion of atoms that come too near."""
    kinks = {scan.name: scan.kinks for scan in [*dimers, *bonds] if scan.kinks}
    wells = {scan.name: [r for r in scan.minima if r not in scan.new_bonds] for scan in bonds}
    wells = {name: minima for name, minima in wells.items() if len(minima) > 1}
    new = [f"{atoms} (of {scan.name} at {r:.2f} Å)" for scan in bonds for r, atoms in scan.new_bonds.items()]
    chemistry = f"; not counted, as a new bond forms: {'; '.join(new[:3])}" if new else ""
    soft = [scan.name for scan in dimers if not _repulsive(scan)]
    dips = sum(max(0, len(scan.minima) - 1) for scan in dimers)
    steepest = max(dimers, key=lambda scan: np.nan_to_num(scan.slopes.max(), nan=np.inf))
    where = f"{steepest.name} at {steepest.distances[steepest.slopes.argmax()]:.2f} Å; a failure means a hole where no data reach"
    many = f"{len(dimers)} pairs of elements, {len(bonds)} bonds"
    counted = f"{len(bonds)} bonds{_where(wells)}{chemistry}"
    return [
        Line("kinks", sum(map(len, kinks.values())), "", 0, f"{many}{_where(kinks)}"),
        Line("false minima of bonds", sum(len(w) - 1 for w in wells.values()), "", 0, counted),
        Line("dimers that attract at short range", len(soft), "", 0, f"from {SHORTEST} Å; {', '.join(soft) or 'none'}"),
        Line("steepest attraction of dimers", float(np.maximum(0.0, steepest.slopes.max())), "eV/Å", _STEEPEST, where),
        Line("false minima of dimers", dips, "", None, "free pairs of atoms are seldom in the training data"),
    ]


def extensivity(ask: Probe, structures: list[ase.Atoms]) -> list[Line]:
    """Two copies far apart, or a doubled cell, have twice the energy; in the potential's own precision."""
    doubled = []
    for atoms in structures:
        if atoms.pbc.any():
            doubled.append(atoms.repeat(tuple(2 if axis == int(np.argmax(atoms.pbc)) else 1 for axis in range(3))))
        else:
            copy = atoms.copy()
            copy.positions += [np.ptp(atoms.positions[:, 0]) + _APART, 0, 0]
            doubled.append(atoms + copy)
    one, two = ask(structures), ask(doubled)
    worst = _largest(abs(b.energy - 2 * a.energy) / len(atoms) for a, b, atoms in zip(one, two, doubled, strict=True))
    return [Line("size extensivity", 1000 * worst, "meV/atom", 0.1, f"{len(structures)} structures, doubled")]


def precision(in_float32: Probe, in_float64: Probe, structures: list[ase.Atoms]) -> list[Line]:
    """float32 against float64."""
    single, double = in_float32(structures), in_float64(structures)
    forces = _largest(np.abs(a.forces - b.forces).max() for a, b in zip(single, double, strict=True))
    energy = _largest(abs(a.energy - b.energy) / len(a.forces) for a, b in zip(single, double, strict=True))
    note = f"{len(structures)} structures, the largest difference"
    return [
        Line("rounding of float32, energy", 1000 * energy, "meV/atom", 0.1, note),
        Line("rounding of float32, forces", 1000 * forces, "meV/Å", max(1.0, _force_limit(double)), note),
    ]


def _largest(values: Iterable[float]) -> float:
    """NaN if one of them is: a figure that is no number passes no limit."""
    return float(np.max(list(values)))


def drift(potential: Potential, structures: list[ase.Atoms], temperature: float = 300.0) -> list[Line]:
    """Slope of the total energy in a short NVE run."""
    atoms = structures[0].copy()
    timestep = 0.5 if 1 in atoms.numbers else 1.0
    name = f"NVE drift at {temperature:g} K"
    note = f"{NVE_STEPS * timestep / 1000:g} ps of {atoms.get_chemical_formula()}, {timestep:g} fs"
    try:
        options = {"ensemble": "nve", "temperature": temperature, "timestep": timestep, "steps": NVE_STEPS}
        summary = run_md(atoms, calculator(potential), interval=5, engine="ase", progress=False, **options)
    except MLFFError as error:
        return [Line(name, None, "meV/atom/ps", 0.5, f"{note}; {error}")]
    return [Line(name, summary.drift, "meV/atom/ps", 0.5, note)]


def calculator(potential: Potential) -> MLFFCalculator:
    """An ASE calculator that does not warn of an earlier certificate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MLFFCalculator(potential)


def errors(sets: dict[str, dict]) -> list[Line]:
    """Errors on held-out data (name -> `Metrics.to_dict()`); by element and by distance in the note."""
    lines = []
    for name, figures in sets.items():
        elements = [f"on {symbol} {rmse:.3g}" for symbol, rmse in (figures.get("forces_rmse_by_element") or {}).items()]
        bins = figures.get("by_distance") or []
        energies, forces = (
            [f"{row['name']} {row[key]:.3g} ({row[count]:,} {count})" for row in bins if row[key] is not None]
            for key, count in (("energy_rmse_per_atom", "structures"), ("forces_rmse", "atoms"))
        )
        if single := figures.get("forces_rmse_of_structures"):
            quantiles = (f"{which} {single[which]:.3g}" for which in ("median", "99 %", "worst"))
            elements = [f"of single structures {', '.join(quantiles)}", *elements]
        more = {"energy": energies, "forces": elements + forces, "stress": []}
        for what in PREDICTED:
            known = PROPERTIES[what]
            if figures.get(known.rmse) is not None:
                note = "; ".join([f"{figures['structures']} structures", *more[what]])
                lines.append(Line(f"RMSE, {what}, {name}", figures[known.rmse], known.rmse_unit, None, note))
    return lines


def _slopes(ask: Probe, structures: list[ase.Atoms], change) -> list[float]:
    """dE/dstep at 0 of `change(atoms, number, step)`, by four points; eV per unit of the step."""
    frames = [change(atoms, k, w * _H) for k, atoms in enumerate(structures) for w, _ in _FOUR_POINTS]
    energies = iter([result.energy for result in ask(frames)])
    return [sum(c * next(energies) for _, c in _FOUR_POINTS) / _H for _ in structures]


def _move(atoms: ase.Atoms, by: np.ndarray) -> ase.Atoms:
    other = atoms.copy()
    other.positions += by
    return other


def _strain(atoms: ase.Atoms, strain: np.ndarray) -> ase.Atoms:
    other = atoms.copy()
    other.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return other


def _outermost(atoms: ase.Atoms) -> tuple[ase.Atoms, np.ndarray, np.ndarray]:
    """The structure, its atom farthest from the middle, and the direction outwards: there nothing else is as near."""
    arms = atoms.positions - atoms.positions.mean(axis=0)
    outer = int(np.linalg.norm(arms, axis=1).argmax())
    return atoms, atoms.positions[outer], _unit(arms[outer])


def _repulsive(scan: Scan) -> bool:
    """Whether the energy falls with the distance everywhere below half the sum of the covalent radii."""
    radii = [covalent_radii[ase.data.atomic_numbers[symbol]] for symbol in scan.name.split("-")]
    near = scan.distances <= max(0.5 * sum(radii), SHORTEST + 0.02)
    return bool((scan.slopes[near] < 0).all())


def _where(found: dict[str, list[float]]) -> str:
    shown = [f"{name} at {', '.join(f'{r:.2f}' for r in distances[:3])} Å" for name, distances in list(found.items())[:3]]
    return f": {'; '.join(shown)}" if shown else ""


def _force_limit(results) -> float:
    """A thousandth of the RMS force, meV/Å, but at least 0.1."""
    return max(0.1, rms(np.concatenate([r.forces for r in results])))


def _unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array)
