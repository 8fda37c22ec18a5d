"""Do energies, forces and stresses belong together: units, signs and the order of components, from the labels alone.

Forces and stresses are derivatives of the energy, so energy differences of near structures tell what they should be.
Where no structures are near, a pair potential fitted to the forces tells sign and size of energy and shear stress. A
contradiction is claimed on strong evidence only: high correlation, and a slope that is a known ratio of units or signs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlff.basics.statistics import rms
from mlff.basics.units import ENERGY, LENGTH, STRESS
from mlff.data.composition import element_counts, elements_of
from mlff.data.structure import Structure
from mlff.lint.close_pairs import Pairs
from mlff.lint.comparison import Comparison, robust_slope
from mlff.lint.pair_fit import Fitted, fit_pairs
from mlff.lint.stress_order import GOOD_FIT, compare_orders, shear_stresses, strain_key

_FEWEST = 8  # pairs
_MANY = 30  # pairs, from which on 0.75 is significant by far
_AGREE = 0.75, 0.8  # correlation from which on a slope near 1 is agreement (of many, of few)
_CONTRADICT = 0.9, 0.98  # the same for another known slope to be a contradiction
_SURE = 0.95, 0.98  # the same for a slope that is near 1 (Bohr) or unknown
_WRONG_SIGN = 0.75, 0.9  # and for -1
_NEAR_ONE = 0.75, 1.35
_PAIR_FIT = 0.75  # a slope is trusted whose shear stresses correlate so well with those of a pair potential
_OFFSET, _SHARE = 2e-3, 0.05  # eV/Å³, and of the energy differences: a smaller pressure is nothing to speak of
_HUNDRED = 100, 0.7  # of so many shear stresses so much will do: chance gives 0.3 at most


class Cause(NamedTuple):
    """A slope and what makes it."""

    slope: float
    what: str
    do: str
    factor: float = 1.0  #: takes the derivatives (forces, stresses) as they are read to what they would be
    rare: float = 0.0  #: how much less usual than others of like slope, in powers of ten


def compare(structures: Sequence[Structure], pairs: Pairs, origins: dict[str, str] | None = None) -> list[Comparison]:
    """All comparisons the labels allow; `pairs` of these structures, `origins`: how each label was read (for advice)."""
    origins = origins or {}
    found = [_sizes(structures)]
    if all(s.forces is None and s.stress is None and s.raw_voigt is None for s in structures):
        return [item for item in found if item]
    fitted = fit_pairs(structures)
    size = _size([s.forces for s in structures if s.forces is not None], 0.7)
    forces = _forces(pairs, size, origins)
    if forces.verdict == "untested":
        forces = _forces_by_fit(fitted, size, origins) or forces
    scale = forces.slope if forces.verdict == "contradiction" else 1.0
    found.append(forces)
    if any(s.stress is not None for s in structures):
        size = _size([s.stress for s in structures if s.stress is not None], 0.03)
        stress = _stress(pairs, scale, size, origins)
        if stress.verdict == "untested":
            stress = _stress_by_fit(fitted, scale, size, forces.verdict == "untested", origins) or stress
        found += [stress, _pressure(pairs)] if stress.verdict == "consistent" and scale == 1 else [stress]
    if any(s.stress is not None or s.raw_voigt is not None for s in structures):
        found.append(compare_orders(structures, pairs, fitted, scale))
    return [item for item in found if item]


def imbalance(structure: Structure) -> tuple[float, float]:
    """Net force and, without periodicity, net torque: 0 for a derivative of an energy, about 1 for random forces.

    Each over the root of the summed squares of what is summed; 0 where it is small in itself (0.01 eV/Å, 0.05 eV per atom).
    """
    forces, n = structure.forces, len(structure)
    if forces is None or n < 2:
        return 0.0, 0.0
    net = float(np.linalg.norm(forces.sum(axis=0)))
    force = net / float(np.linalg.norm(forces)) if net > 0.01 * n else 0.0
    torques = np.cross(structure.positions - structure.positions.mean(axis=0), forces)
    net = float(np.linalg.norm(torques.sum(axis=0)))
    torque = net / float(np.linalg.norm(torques)) if not structure.pbc.any() and net > 0.05 * n else 0.0
    return force, torque


def _best_slope(x, y, key):
    """Slope, correlation and the pairs used: all, the nearest half, quarter or eighth, whichever correlates best."""
    order = np.argsort(key, kind="stable")
    tried = []
    for share in (1.0, 0.5, 0.25, 0.125):
        chosen = order[: int(share * len(order))]
        if len(chosen) >= _FEWEST:
            slope, correlation = robust_slope(x[chosen], y[chosen])
            tried.append((abs(correlation), slope, correlation, chosen))
    return max(tried, key=lambda item: item[0])[1:] if tried else (0.0, 0.0, order)


def _forces(pairs: Pairs, size, origins) -> Comparison:
    method = "energy differences of near structures against -force · displacement"
    same = pairs.where((pairs.strain < 1e-4) & np.isfinite(pairs.force_work))
    slope, correlation, chosen = _best_slope(same.force_work, same.energy, same.distance)
    causes = _force_causes(origins)
    if len(chosen) >= _FEWEST:
        per_atom, its_correlation = robust_slope(same.force_work[chosen], (same.energy * same.atoms)[chosen])
        if _NEAR_ONE[0] < per_atom < _NEAR_ONE[1] and its_correlation > correlation - 0.02:
            causes.append(Cause(slope, "energies per atom", _PER_ATOM, rare=0.2))
    points = np.stack([same.force_work[chosen], same.energy[chosen]], axis=1)
    return _judge("energies and forces", method, "forces", slope, correlation, points, causes, size)


def _forces_by_fit(fitted: Fitted | None, size, origins) -> Comparison | None:
    """Energies of like compositions against those of a pair potential that has the forces."""
    if fitted is None or fitted.correlation < GOOD_FIT:
        return None
    groups: dict[bytes, list[int]] = {}
    for index, s in enumerate(fitted.structures):
        if s.energy is not None:
            groups.setdefault(np.sort(s.numbers).tobytes(), []).append(index)
    parts = []
    for members in (members for members in groups.values() if len(members) > 3):
        energies = np.array([fitted.structures[k].energy for k in members])
        parts.append(np.stack([fitted.energies[members], energies], axis=1))
        parts[-1] -= np.median(parts[-1], axis=0)
    points = np.concatenate(parts) if parts else np.zeros((0, 2))
    slope, correlation = robust_slope(*points.T)
    if correlation > -_CONTRADICT[0] and not (correlation > _AGREE[1] and 0.5 < slope < 2):
        return None
    method = "energy differences against those of a pair potential fitted to the forces"
    causes = _force_causes(origins)[:1]
    return _judge("energies and forces", method, "forces", slope, correlation, points, causes, size, rough=True)


def _stress(pairs: Pairs, scale: float, size, origins) -> Comparison:
    method = "energy differences of near cells against volume · stress · strain (and forces)"
    strained = pairs.where((pairs.strain > 1e-4) & np.isfinite(pairs.stress_work[:, 0, 0]))
    rest = strained.energy - scale * np.nan_to_num(strained.force_work)
    key = strain_key(strained)
    slope, correlation, chosen = _best_slope(strained.swapped_work[:, 0], rest, key)
    points = np.stack([strained.swapped_work[chosen, 0], rest[chosen]], axis=1)
    causes = _stress_causes(float(np.median(strained.volume[chosen])) if len(chosen) else 0.0, origins)
    for name, value in ENERGY.items():
        if name != "eV":
            causes.append(Cause(1 / value, f"energies in {name} beside stresses in eV/Å³", f"units.energy: {name}"))
    return _judge("energies and stresses", method, "stress", slope, correlation, points, causes, size)


def _pressure(pairs: Pairs) -> Comparison | None:
    """A pressure that all stresses lack or have too much of, for the energies' dependence on the volume; None without one.

    Plane waves up to a fixed energy do that: more of them fit into a larger cell, and the stress at a fixed number of them
    differs by the Pulay stress (Francis and Payne, J. Phys.: Condens. Matter 2, 4395 (1990)).
    """
    method = "energy differences of near cells, less volume · stress · strain, against volume · dilation"
    change = np.abs(pairs.dilation)  # of more than 5 %, what bends the energy looks like a pressure
    strained = pairs.where((change > 1e-3) & (change < 0.05) & np.isfinite(pairs.stress_work[:, 0, 0]))
    rest = strained.energy - np.nan_to_num(strained.force_work)
    left = rest - strained.swapped_work[:, 0]
    offset, correlation, chosen = _best_slope(strained.volume * strained.dilation, left, strain_key(strained))
    small = abs(offset) < _OFFSET or np.median(np.abs(left[chosen])) < _SHARE * np.median(np.abs(rest[chosen]))
    if small or abs(correlation) < _CONTRADICT[len(chosen) < _MANY]:
        return None
    what = (
        f"by the energies of strained cells all stresses should have {offset:+.3g} eV/Å³ ({offset / STRESS['GPa']:+.2g} GPa) "
        f"more on their diagonal (correlation {correlation:.2f}, {len(chosen)} pairs), as with the Pulay stress of plane waves"
    )
    do = "train without stresses (loss: {stress: 0}), correct them, or compute them with more plane waves"
    return Comparison(
        "stresses and volumes", method, "doubtful", what, "stress-offset", do, None, round(correlation, 4), len(chosen)
    )


def _stress_by_fit(fitted: Fitted | None, scale: float, size, doubt_forces: bool, origins) -> Comparison | None:
    """Shear stresses against those of a pair potential that has the forces."""
    labelled, expected = shear_stresses(fitted)
    if len(labelled) < _FEWEST:
        return None
    method = "shear stresses against those of a pair potential fitted to the forces"
    points = np.stack([labelled.ravel(), scale * expected.ravel()], axis=1)
    slope, correlation = robust_slope(*points.T)
    if abs(correlation) < (_HUNDRED[1] if points.size > 2 * _HUNDRED[0] else _PAIR_FIT):
        return None
    volume = float(np.median([s.volume for s in fitted.structures if s.stress is not None]))
    causes = _stress_causes(volume, origins)
    if doubt_forces:
        sign, *units = [cause for cause in _force_causes(origins) if "energies in eV" in cause.what or cause.slope == -1]
        causes.append(sign._replace(rare=0.01))
        causes += [Cause(1 / c.slope, c.what, c.do, rare=0.3) for c in units if "gradients" not in c.what]
    return _judge("forces and stresses", method, "stress", slope, correlation, points, causes, size, rough=True)


def _size(labels, usual: float) -> float:
    """Root mean square over what is usual, 1 without any."""
    values = np.concatenate([label.ravel() for label in labels]) if labels else np.zeros(1)
    return rms(values) / usual or 1.0


def _judge(labels, method, subject, slope, correlation, points, causes, size, rough=False) -> Comparison:
    """`size`: how large the derivatives are as they are read, over what is usual; decides between causes of like slope.

    `rough`: the slope is that of a pair potential, which tells the sign and the order of magnitude, no more.
    """
    numbers = {"slope": slope, "correlation": round(correlation, 4), "number": len(points), "points": points[:2000]}
    text = f"slope {slope:.4g}, correlation {correlation:.2f}, {len(points)} pairs"
    few = int(len(points) < _MANY and not rough)
    low, high = (0.55, 1.8) if rough else _NEAR_ONE
    unknown = (0.05, 20.0) if rough else (0.5, 2.0)  # within, a slope without a known cause says nothing
    if rough and unknown[0] < abs(slope) < unknown[1]:
        causes = [cause for cause in causes if cause.slope == -1]
    if len(points) < _FEWEST:
        return Comparison(labels, method, "untested", "too few structures are near each other", number=len(points))
    enough = _HUNDRED[1] if rough and len(points) > _HUNDRED[0] else _AGREE[few]
    if low < slope < high and correlation >= enough:
        return Comparison(labels, method, "consistent", text, **numbers)
    matching = []
    for cause in causes:
        near_one = 1 / 3 < cause.slope < 3
        tolerance = 1.06 if near_one or abs(correlation) > 0.98 else 1.25
        needed = (_SURE if near_one else _CONTRADICT)[few]
        if rough or cause.slope == -1:
            tolerance, needed = high, min(enough, _WRONG_SIGN[few])
        ratio = slope / cause.slope
        if 1 / tolerance < ratio < tolerance and abs(correlation) >= needed:
            matching.append((abs(np.log10(size * cause.factor)) + 5 * abs(np.log10(ratio)) + cause.rare, cause))
    matching = [cause for _, cause in sorted(matching, key=lambda item: item[0])][:2]
    if matching:
        what = f"{labels} contradict each other ({text}), as with {' or '.join(c.what for c in matching)}"
        code = f"{subject}-sign" if matching[0].slope == -1 else f"{subject}-unit"
        code = "energy-per-atom" if matching[0].do == _PER_ATOM else code
        do = "; or ".join(dict.fromkeys(c.do for c in matching))
        return Comparison(labels, method, "contradiction", what, code, do, **numbers)
    if abs(correlation) >= _SURE[few] and not unknown[0] < slope < unknown[1]:
        what = f"{labels} do not belong together ({text}); no known ratio of units explains it"
        return Comparison(
            labels, method, "doubtful", what, f"{subject}-unexplained", "check data.units and data.keys", **numbers
        )
    return Comparison(labels, method, "untested", f"they correlate too little to tell ({text})", **numbers)


_PER_ATOM = "set units.energy_per_atom: true"


def _force_causes(origins) -> list[Cause]:
    stated = "gradient" in origins.get("forces", "")
    causes = [Cause(-1.0, "gradients in place of forces", f"units.forces_sign: {'force' if stated else 'gradient'}")]
    bohr, units = LENGTH["Bohr"], {name: value for name, value in ENERGY.items() if name != "eV"}
    for name, value in units.items():
        for length, size in (("Angstrom", 1.0), ("Bohr", bohr)):
            unit, factor = f"{name}/{length}", value / size
            causes.append(Cause(factor, f"forces in {unit} beside energies in eV", f"units.forces: {unit}", factor))
        do = f"units.energy: {name} with units.forces: eV/Angstrom"
        causes.append(Cause(1 / value, f"energies in {name} beside forces in eV/Å", do))
    causes.append(
        Cause(1 / bohr, "forces per Bohr beside positions in Å", "units.forces: ENERGY/Bohr, e.g. Hartree/Bohr", 1 / bohr)
    )
    causes.append(
        Cause(bohr, "positions in Bohr beside forces per Å", "units.length: Bohr with units.forces: ENERGY/Angstrom")
    )
    causes.append(Cause(0.1, "forces per nm beside positions in Å", "units.forces: ENERGY/nm, e.g. kJ/mol/nm", 0.1))
    for energy in ("Hartree", "kcal/mol", "kJ/mol"):
        for force in ("Hartree", "kcal/mol", "kJ/mol"):
            if energy != force:
                for length, size in (("Angstrom", 1.0), ("Bohr", bohr)):
                    what = f"energies in {energy} beside forces in {force}/{length}"
                    do = f"units.energy: {energy} with units.forces: {force}/{length}"
                    causes.append(Cause(units[force] / units[energy] / size, what, do, units[force] / size))
    return causes + [Cause(-c.slope, f"gradients, and {c.what}", f"{causes[0].do} and {c.do}", c.factor) for c in causes[1:]]


def _stress_causes(volume: float, origins) -> list[Cause]:
    origin = origins.get("stress", "")
    if "stress*volume" in origin:
        flip = f"units.virial_sign: {'stress' if '-stress*volume' in origin else 'minus_stress'}"
        causes = [Cause(-1.0, "a virial of the other sign", flip)]
    else:
        flip = f"units.stress_sign: {'tension' if 'compression' in origin else 'compression'}"
        causes = [Cause(-1.0, "stresses with the sign of a pressure", flip)]
    stated = next((name for name in STRESS if f", {name}" in origin and "virial" not in origin), "eV/Angstrom^3")
    for name, value in STRESS.items():
        if name != stated:
            factor = value / STRESS[stated]
            causes.append(Cause(factor, f"stresses in {name} read as {stated}", f"units.stress: {name}", factor))
    if volume > 0:
        causes.append(
            Cause(1 / volume, "virials in place of stresses", "keys.virial in place of keys.stress", 1 / volume, 0.5)
        )
    return causes + [Cause(-c.slope, f"{c.what} and the other sign", f"{c.do} and {flip}", c.factor) for c in causes[1:]]


def _sizes(structures) -> Comparison | None:
    """Do energies grow with the number of atoms? Only where sizes differ: fits to counts of elements, and to shares."""
    labelled = [s for s in structures if s.energy is not None]
    elements = elements_of(labelled)
    atoms = np.array([len(s) for s in labelled], float)
    if len(labelled) < 2 * len(elements) + 4 or atoms.std() < 0.1 * atoms.mean():
        return None
    energies = np.array([s.energy for s in labelled])
    counts = np.array([element_counts(s.numbers, elements) for s in labelled], float)
    left = [
        float(np.median(np.abs(energies - design @ np.linalg.lstsq(design, energies, rcond=1e-8)[0])))
        for design in (counts, counts / atoms[:, None])
    ]
    labels, method = "energies and numbers of atoms", "fits of the energies to the compositions, as totals and per atom"
    text = f"median residual {left[0]:.3g} eV as totals, {left[1]:.3g} eV as energies per atom"
    if left[1] < 0.5 * left[0]:
        verdict = "contradiction" if left[1] < 0.2 * left[0] else "doubtful"
        what = f"the energies do not grow with the number of atoms ({text}): they look like energies per atom"
        return Comparison(labels, method, verdict, what, "energy-per-atom", _PER_ATOM, number=len(labelled))
    verdict = "consistent" if left[0] < 0.2 * left[1] else "untested"
    return Comparison(labels, method, verdict, text, number=len(labelled))
