"""The field's stability tests, minutes long: what `mlff certify --full` adds.

- Stability: MLIPAudit's score of an NVT run (github.com/instadeepai/mlipaudit, benchmark `stability`): 0.5 f/N if it
  explodes at frame f of N, 0.5 + 0.5 f/N if from frame f on a hydrogen is more than 2.5 Å from every heavy atom (from
  every atom where there is none), else 1. Here what stops a run is `Guard`, which is stricter than their 10,000 K.
- NVE: slope of the total energy over 50 ps at 1 fs, per atom, and what that makes in the run as a share of the standard
  deviation of the kinetic energy, as in ml-peg.
- Homonuclear dimers: sign changes of the energy's derivative, tortuosity and rank correlations as in MLIP Arena
  (github.com/atomind-ai/mlip-arena), from 0.9 covalent radii on; ideal are 1, 1, -1 (repulsion) and 1 (attraction).
- NVE survival of molecules at 300, 600 and 1,200 K (`survival`).
- Heating: NVT in steps of a tenth of the way from 300 to 1,200 K (molecules) or 3,000 K (solids, cell fixed), until the
  guard stops it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.data import covalent_radii
from scipy.stats import spearmanr

from mlff.basics.errors import MLFFError
from mlff.basics.statistics import slope
from mlff.certificate.bonds import lost_hydrogen
from mlff.certificate.certificate import suitable
from mlff.certificate.checks import calculator
from mlff.certificate.line import Line, shortened
from mlff.certificate.scans import Scan
from mlff.certificate.survival import survival
from mlff.potential.potential import Potential
from mlff.simulation.md import run_md

LENGTH = 100.0  #: ps of the stability run; half of it NVE, a tenth heating
TEMPERATURE = 300.0  #: K
_FRAMES = 1000  #: of the stability run
_DRIFT = 0.1  #: meV/atom/ps
_SYSTEMS = 3  #: of different compositions
_FLAT = 1e-3  #: eV: smaller changes of a dimer's energy are none


def full(
    potential: Potential,
    structures: Sequence = (),
    dimers: Sequence[Scan] = (),
    length: float = LENGTH,
    on_check: Callable[[str], None] = lambda name: None,
    progress: bool = False,
) -> Iterator[list[Line]]:
    """The lines test by test, each when it is done; `length` ps instead of 100.

    `dimers`: scans of the short certificate. Raises DataError: no structure to measure on; KeyboardInterrupt after Ctrl-C.
    """
    systems = {}
    for atoms in suitable(potential, structures):
        systems.setdefault(atoms.get_chemical_formula(), atoms)
    chosen = list(systems.values())[:_SYSTEMS]
    yield homonuclear(dimers)
    molecules = [atoms for atoms in chosen if not atoms.pbc.any()]
    tests = (
        ("stability", stability, chosen, length),
        ("NVE", nve, chosen, length / 2),
        ("heating", heating, chosen, length / 10),
        ("NVE survival", survival, molecules, length / 2),
    )
    for name, test, tested, picoseconds in tests:
        lines = []
        for atoms in tested:
            on_check(f"{name} of {atoms.get_chemical_formula()}, {picoseconds:g} ps")
            lines.append(test(potential, atoms, picoseconds, progress))
        yield [_worst(group) for group in zip(*lines, strict=True)]


def homonuclear(dimers: Sequence[Scan]) -> list[Line]:
    """MLIP Arena's measures of the dimers of like atoms, the worst of them all."""
    found = []
    for scan in dimers:
        a, b = (scan.name.split("-") * 2)[:2]
        if a == b and len(scan.name.split("-")) == 2:
            kept = scan.distances >= 0.9 * covalent_radii[ase.data.atomic_numbers[a]]
            found.append((a, *_curve(scan.distances[kept], scan.energies[kept])))
    if not found:
        return []
    lines = []
    titles = (
        ("homonuclear dimers, turns of the energy", 1.0, "1 is ideal"),
        ("homonuclear dimers, tortuosity", 1.0, "1 is ideal"),
        ("homonuclear dimers, Spearman of the repulsion", -1.0, "-1 is ideal"),
        ("homonuclear dimers, Spearman of the attraction", 1.0, "1 is ideal"),
    )
    for column, (name, ideal, note) in enumerate(titles, start=1):
        symbol, value = max(((row[0], row[column]) for row in found), key=lambda pair: abs(pair[1] - ideal))
        lines.append(Line(name, value, "", None, f"{note}; the worst is {symbol}-{symbol} of {len(found)}"))
    return lines


def _curve(distances: np.ndarray, energies: np.ndarray) -> tuple[float, float, float, float]:
    """Turns, tortuosity, rank correlations of energy with distance inside and outside the minimum."""
    steps = np.diff(energies)
    signs = np.sign(steps[np.abs(steps) >= _FLAT])
    turns = int(np.count_nonzero(np.diff(signs)))
    low = int(energies.argmin())
    rise = (energies[0] - energies[low]) + (energies[-1] - energies[low])
    tortuosity = float(np.abs(steps).sum() / rise) if rise > 0 else 1.0
    ranks = []
    for part, ideal in ((slice(None, low + 1), -1.0), (slice(low, None), 1.0)):
        r, e = distances[part], energies[part]
        ranks.append(float(spearmanr(r, e).statistic) if len(r) > 2 and np.ptp(e) > _FLAT else ideal)
    return turns, tortuosity, *ranks


def stability(potential: Potential, atoms: ase.Atoms, length: float = LENGTH, progress: bool = False) -> list[Line]:
    """MLIPAudit's stability score of a run at 300 K, 1 fs."""
    steps = max(1, round(1000 * length))
    interval = max(1, steps // _FRAMES)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "md.traj"
        options = {"ensemble": "nvt", "temperature": TEMPERATURE, "timestep": 1.0, "steps": steps, "interval": interval}
        note = _run(potential, atoms.copy(), progress, trajectory=file, **options)
        frames = ase.io.read(file, ":") if file.exists() else []
    expected = steps // interval + 1
    lost = lost_hydrogen(frames) if frames and (not note or "flew off" in note) else None
    if lost is not None:
        score, note = 0.5 + 0.5 * lost / expected, f"a hydrogen is lost after {lost * interval / 1000:.3g} ps"
    else:
        score = 0.5 * len(frames) / expected if note else 1.0
    note = f"{length:g} ps of {atoms.get_chemical_formula()}, 1 fs{'; ' if note else ''}{note}"
    return [Line(shortened("stability, NVT at 300 K", length, LENGTH), score, "of 1", 1.0, note, least=True)]


def nve(potential: Potential, atoms: ase.Atoms, length: float = LENGTH / 2, progress: bool = False) -> list[Line]:
    """ml-peg's NVE run with 1 fs, from velocities of 300 K: slope of the total energy."""
    steps = max(30, round(1000 * length))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "md.jsonl"
        options = {"ensemble": "nve", "temperature": TEMPERATURE, "timestep": 1.0, "steps": steps, "interval": 10}
        stopped = _run(potential, atoms.copy(), progress, log=file, **options)
        log = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    note = f"{length:g} ps of {atoms.get_chemical_formula()}, 1 fs{'; ' if stopped else ''}{stopped}"
    per_atom = share = None
    if not stopped:
        time, total, kinetic = (np.array([line[key] for line in log]) for key in ("time_ps", "etot_ev", "ekin_ev"))
        drift = slope(time, total)
        per_atom, share = 1000 * drift / len(atoms), float(abs(drift) * np.ptp(time) / max(kinetic.std(), 1e-12))
    names = (
        shortened(name, length, LENGTH / 2)
        for name in ("NVE drift, 1 fs", "NVE drift over the spread of the kinetic energy")
    )
    return [Line(next(names), per_atom, "meV/atom/ps", _DRIFT, note), Line(next(names), share, "", 1.0, note)]


def heating(potential: Potential, atoms: ase.Atoms, length: float = LENGTH / 10, progress: bool = False) -> list[Line]:
    """NVT with ten rising temperatures; the last one that was held before the guard stopped it."""
    hottest = 3000.0 if atoms.pbc.all() else 1200.0
    timestep = 0.5 if 1 in atoms.numbers else 1.0
    steps = max(1, round(100 * length / timestep))
    atoms, reached, stopped = atoms.copy(), 0.0, ""
    for number, temperature in enumerate(np.linspace(TEMPERATURE, hottest, 10).tolist()):
        options = {"ensemble": "nvt", "temperature": temperature, "timestep": timestep, "steps": steps, "seed": number}
        stopped = _run(potential, atoms, progress, keep_velocities=number > 0, **options)
        if stopped:
            break
        reached = temperature
    note = f"{length:g} ps of {atoms.get_chemical_formula()}, from 300 to {hottest:g} K; {stopped or 'all the way'}"
    return [Line(shortened("heating until the guard stops it", length, LENGTH / 10), reached, "K", None, note)]


def _run(potential: Potential, atoms: ase.Atoms, progress: bool, **options) -> str:
    """Why a run was stopped; "" if it was not."""
    try:
        run_md(atoms, calculator(potential), progress=progress, **options)
    except MLFFError as error:
        return str(error).split("; last good frame")[0]
    return ""


def _worst(lines: Sequence[Line]) -> Line:
    """Of the same line for several structures."""

    def goodness(line: Line) -> float:
        if line.value is None:
            return -np.inf
        return line.value if line.least or line.limit is None else -abs(line.value)

    worst = min(lines, key=goodness)
    if len(lines) == 1:
        return worst
    note = f"{worst.note}; the worst of {len(lines)} structures"
    return Line(worst.name, worst.value, worst.unit, worst.limit, note, worst.least)
