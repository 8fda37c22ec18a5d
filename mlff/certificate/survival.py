"""NVE runs of a molecule at 300, 600 and 1,200 K: how many replicas live, and how their total energy drifts.

The replicas run in one compiled loop. All start at the minimum, with other velocities of twice the temperature each: half of
that goes into the bonds, so that the mean is the temperature, as nearly as the molecule is harmonic. No thermostat takes away
what wrong forces put in. A replica is lost when it breaks a limit of `Guard`, when its heavy atoms are in more pieces than
before (bonds beyond 1.6 times the sum of the covalent radii), or when a hydrogen stays more than 2.5 Å from all of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import ase
import ase.io
import numpy as np

from mlff.basics.errors import MLFFError
from mlff.basics.units import KB
from mlff.certificate.bonds import apart, lost_hydrogen
from mlff.certificate.checks import calculator
from mlff.certificate.line import Line, shortened
from mlff.potential.potential import Potential
from mlff.simulation.driver import Summary
from mlff.simulation.jax_engine import obstacle
from mlff.simulation.relax import relax
from mlff.simulation.replica_run import replica_path, run_replicas
from mlff.simulation.velocities import degrees_of_freedom, kinetic_energy, maxwell_boltzmann

TEMPERATURES = {300.0: 1.0, 600.0: 0.9, 1200.0: 0.5}  #: K: the share of replicas that must live
REPLICAS = 3  #: at each temperature
LENGTH = 50.0  #: ps
_INTERVAL = 200.0  #: fs between two looks at the bonds
_DRIFT = 0.5  #: meV/atom/ps, as in the short certificate; of runs that are long enough
_LONG = 10.0  #: ps: the slope of shorter ones is that of fluctuations
_FMAX = 0.05  #: eV/Å


def survival(potential: Potential, atoms: ase.Atoms, length: float = LENGTH, progress: bool = False) -> list[Line]:
    """Runs of `length` ps of a molecule: a line for each temperature, and one for the drift of those that live."""
    calc, atoms = calculator(potential), atoms.copy()
    timestep = 0.5 if 1 in atoms.numbers else 1.0  # with 1 fs C-H bonds drift at 1,200 K, whatever the potential
    what = f"{REPLICAS} runs of {length:g} ps of {atoms.get_chemical_formula()}, {timestep:g} fs"
    if (reason := obstacle(calc, atoms)) is not None:
        note = f"not measured: the compiled engine cannot do {reason}"
        return [Line(shortened(name, length, LENGTH), None, "of 1", None, note) for name in map(_name, TEMPERATURES)]
    kelvins = np.repeat(list(TEMPERATURES), REPLICAS)
    try:
        relax(atoms, calc, fmax=_FMAX, progress=False)
        ends = _run(atoms, calc, [_drawn(atoms, *each) for each in enumerate(2 * kelvins)], timestep, length, progress)
    except MLFFError as error:
        ends = [str(error)] * len(kelvins)
    lines, drifts = [], {}
    for kelvin, limit in TEMPERATURES.items():
        mine = [ends[k] for k in np.flatnonzero(kelvins == kelvin)]
        alive, lost = ([end for end in mine if isinstance(end, kind)] for kind in (Summary, str))
        note = [what]
        if alive:
            drifts[kelvin] = max((end.drift for end in alive), key=abs)
            note.append(f"mean temperature {np.mean([end.temperature_mean for end in alive]):.0f} K")
        note += [f"lost: {', '.join(lost[:3])}"] if lost else []
        name = shortened(_name(kelvin), length, LENGTH)
        lines.append(Line(name, len(alive) / REPLICAS, "of 1", limit, "; ".join(note), least=True))
    largest = max(drifts.values(), key=abs, default=None)
    limit = _DRIFT if length >= _LONG else None
    note = "; ".join([what, *(f"{drift:.2g} at {kelvin:,.0f} K" for kelvin, drift in drifts.items())])
    return [*lines, Line(shortened("NVE drift of these runs", length, LENGTH), largest, "meV/atom/ps", limit, note)]


def _name(kelvin: float) -> str:
    return f"NVE survival at {kelvin:,.0f} K"


def _drawn(atoms: ase.Atoms, seed: int, kelvin: float) -> float:
    """K to draw velocities at with this seed so that their own temperature is `kelvin`: that of few atoms differs by chance."""
    moving = atoms.copy()
    maxwell_boltzmann(moving, kelvin, np.random.default_rng(seed))
    kinetic = kinetic_energy(moving.get_momenta(), moving.get_masses()[:, None])
    return kelvin**2 * degrees_of_freedom(moving, True) * KB / (2 * kinetic)


def _run(
    atoms: ase.Atoms, calc, kelvins: Sequence[float], timestep: float, length: float, progress: bool
) -> list[Summary | str]:
    """What came of each replica: its summary, or why and when it was lost."""
    steps = max(30, round(1000 * length / timestep))
    interval = min(round(_INTERVAL / timestep), steps // 10)
    options = {"ensemble": "nve", "timestep": timestep, "steps": steps, "interval": interval, "progress": progress}
    ends: list[Summary | str] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "nve.traj"
        found = run_replicas(atoms, calc, len(kelvins), temperature=kelvins, trajectory=file, seed=0, **options)
        for index, end in enumerate(found):
            frames = ase.io.read(replica_path(file, index), ":")
            looks = {"it fell apart": apart(frames), "a hydrogen is lost": lost_hydrogen(frames)}
            when = {why: frame for why, frame in looks.items() if frame is not None}
            if when:
                why = min(when, key=when.get)
                ends.append(f"{why} after {when[why] * interval * timestep / 1000:.3g} ps")
            else:
                ends.append(end if isinstance(end, Summary) else str(end).split("; last good frame")[0])
    return ends
