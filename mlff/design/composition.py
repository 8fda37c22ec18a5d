"""The share of one element in another at which the mean over random decorations of a lattice, relaxed, has a wanted value.

Every decoration is an order in which the sites of the lattice change from the first element to the second; at each composition all
of them are relaxed side by side, atoms and cell. So the mean is a function of the number of sites, without noise between one
composition and the next, and a bracket of it closes to neighbouring whole numbers. How well another set of decorations
would know the share follows from their scatter.
"""

from __future__ import annotations

import ase
import numpy as np
from ase.data import atomic_numbers
from rich.console import Console

from mlff.basics.errors import ConfigError
from mlff.basics.runtime import refuse_forked
from mlff.basics.units import DENSITY, ENERGY
from mlff.config.composition import Composition
from mlff.data.structure import Structure
from mlff.design.composition_outcome import CompositionOutcome, Mixture, Solution
from mlff.design.targets import model_file, stress_untested, structure
from mlff.interfaces.ase import MLFFCalculator
from mlff.potential.potential import Potential
from mlff.properties.minimum import farthest, need_cell
from mlff.simulation.guard import SimulationError
from mlff.simulation.relaxations import relax_many

_PARTS = 4  #: of the range of shares, looked at first
_FMAX, _STEPS = 0.005, 1000  #: eV/Å, and steps of a relaxation at most


def find_composition(config: Composition, *, progress: bool = True) -> tuple[list[ase.Atoms], CompositionOutcome]:
    """The shares with the wanted mean; the decorations of both whole compositions around each, relaxed, and what was found.

    All is computed in float64. Raises ConfigError: no site, or a value that no mixture has; DataError, ModelFileError, StructureError:
    an element that the model does not know; SimulationError: a relaxation that does not end; KeyboardInterrupt (Terminated) after
    Ctrl-C (SIGTERM).
    """
    refuse_forked()
    potential = Potential.load(model_file(config.model)).with_precision("float64")
    atoms = structure(config.structure, config.frame, potential)
    need_cell(atoms, f"{config.structure}: mixtures")
    mixtures = Mixtures(config, potential, atoms)
    with potential.scope(), Console(stderr=True).status("design") as shown:
        if not progress:
            shown.stop()
        sites, target = mixtures.sites, config.targets[0]
        for count in sorted({0, sites}) + sorted({round(sites * part / _PARTS) for part in range(1, _PARTS)} - {0, sites}):
            shown.update(f"design  {count} {config.free.composition[1]} on {sites} sites")
            mixtures.measure(count)
        brackets = _brackets(mixtures.known, target.value)
        if not brackets:
            raise ConfigError(_outside(config, mixtures))
        solutions = []
        for ends in brackets:
            closed = ends
            while (count := _between(mixtures.known, closed, target.value)) is not None:
                shown.update(f"design  {count} {config.free.composition[1]} on {sites} sites")
                mixtures.measure(count)
                closed = _half(mixtures.known, (closed[0], count, closed[1]), target.value)
            solutions.append(_solution(mixtures.known, ends, closed, target.value))
    frames = mixtures.frames(sorted({one.count for each in solutions for one in (each.lower, each.upper)}))
    name, unit = target.kind.replace("_", " "), target.unit if target.kind == "density" else f"{target.unit} per atom"
    known = tuple(mixtures.known[count] for count in sorted(mixtures.known))
    found = CompositionOutcome(
        config.free.composition,
        sites,
        name,
        unit,
        target.value,
        target.error,
        config.decorations,
        known,
        tuple(solutions),
        farthest(potential, frames),
        stress_untested(potential),
    )
    return frames, found


class Mixtures:
    """The decorations of a lattice at every composition that was looked at."""

    def __init__(self, config: Composition, potential: Potential, atoms: ase.Atoms):
        """Raises ConfigError: no site, constraints; StructureError: an element that the potential does not know."""
        self._config, self._potential, self._atoms = config, potential, atoms
        self._pair = [atomic_numbers[symbol] for symbol in config.free.composition]
        places = np.flatnonzero(np.isin(atoms.numbers, self._pair))
        self.sites = len(places)
        if self.sites < 2:
            raise ConfigError(
                f"{config.structure}: {self.sites} of its sites hold {' or '.join(config.free.composition)}; a mixture needs two at least"
            )
        if atoms.constraints:
            raise ConfigError(f"{config.structure}: the structure has constraints, which mixtures do not know; remove them")
        self._orders = [
            np.random.default_rng([config.seed, number]).permutation(places) for number in range(config.decorations)
        ]
        self._relaxed: dict[int, list[ase.Atoms]] = {}
        self._energies: dict[int, np.ndarray] = {}  #: eV
        self.known: dict[int, Mixture] = {}  #: by the number of sites of the second element
        for count in (0, self.sites):
            potential.check(Structure.from_atoms(self._decorated(self._orders[0], count), source=config.structure))

    def measure(self, count: int) -> None:
        """Relax all decorations with so many sites of the second element. Raises SimulationError."""
        orders = self._orders if 0 < count < self.sites else self._orders[:1]
        frames = [self._decorated(order, count) for order in orders]
        if {0, self.sites} <= self._relaxed.keys():
            self._begin_between(frames, count / self.sites)
        energies = np.zeros(len(frames))
        options = {"fmax": _FMAX, "cell": True, "steps": _STEPS, "source": self._config.structure, "progress": False}
        for index, result in relax_many(frames, MLFFCalculator(self._potential), **options):
            if not result.converged:
                raise SimulationError(
                    f"decoration {index} with {count} of {self.sites} sites of {self._config.free.composition[1]} comes to no rest: the "
                    f"largest force is {result.forces_max:.2g} eV/Å after {result.steps} steps"
                )
            energies[index] = result.energy
        self._relaxed[count], self._energies[count] = frames, energies
        values = self._values(count)
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
        self.known[count] = Mixture(count, count / self.sites, float(values.mean()), float(error))

    def frames(self, counts: list[int]) -> list[ase.Atoms]:
        """All decorations of these compositions, with share and value in `info`."""
        target, frames = self._config.targets[0], []
        for count in counts:
            reached = abs(self.known[count].mean - target.value) <= target.error
            for atoms, value in zip(self._relaxed[count], self._values(count), strict=True):
                atoms.info = {"design": "reached" if reached else "not_reached", "mlff_share": count / self.sites}
                atoms.info[f"mlff_{target.kind}"] = float(value)
                frames.append(atoms)
        return frames

    def _decorated(self, order: np.ndarray, count: int) -> ase.Atoms:
        atoms = ase.Atoms(self._atoms.numbers, self._atoms.positions, cell=self._atoms.cell, pbc=True)
        atoms.numbers[order] = np.where(np.arange(self.sites) < count, self._pair[1], self._pair[0])
        return atoms

    def _begin_between(self, frames: list[ase.Atoms], share: float) -> None:
        """Begin with the volume between those of the pure structures."""
        first, second = (self._relaxed[count][0].get_volume() for count in (0, self.sites))
        for atoms in frames:
            scale = ((first + share * (second - first)) / atoms.get_volume()) ** (1 / 3)
            atoms.set_cell(atoms.cell.array * scale, scale_atoms=True)

    def _values(self, count: int) -> np.ndarray:
        """(decorations,) of the property, in the unit of the target."""
        target, frames = self._config.targets[0], self._relaxed[count]
        volumes, size = np.array([atoms.get_volume() for atoms in frames]), len(self._atoms)
        if target.kind == "volume":
            return volumes / size
        if target.kind == "density":
            return np.array([atoms.get_masses().sum() for atoms in frames]) / volumes / DENSITY[target.unit]
        if count in (0, self.sites):
            return np.zeros(len(frames))
        share = count / self.sites
        pure = (1 - share) * self._energies[0][0] + share * self._energies[self.sites][0]
        return (self._energies[count] - pure) / size / ENERGY[target.unit]


def _brackets(known: dict[int, Mixture], value: float) -> list[tuple[int, int]]:
    """Neighbours among the compositions that are known, on both sides of the value."""
    counts = sorted(known)
    above = [known[count].mean >= value for count in counts]
    return [(counts[k], counts[k + 1]) for k in range(len(counts) - 1) if above[k] != above[k + 1]]


def _between(known: dict[int, Mixture], ends: tuple[int, int], value: float) -> int | None:
    """The next composition to look at; None: the ends are neighbours."""
    low, high = ends
    if high - low == 1:
        return None
    return int(np.clip(round(_crossing(known, ends, value)), low + 1, high - 1))


def _half(known: dict[int, Mixture], three: tuple[int, int, int], value: float) -> tuple[int, int]:
    """The part of a bracket that still holds the value."""
    low, middle, high = three
    same = (known[low].mean >= value) == (known[middle].mean >= value)
    return (middle, high) if same else (low, middle)


def _crossing(known: dict[int, Mixture], ends: tuple[int, int], value: float) -> float:
    """In sites, on the straight line through both ends."""
    low, high = (known[count].mean for count in ends)
    return ends[0] + (value - low) / (high - low) * (ends[1] - ends[0])


def _solution(known: dict[int, Mixture], wide: tuple[int, int], closed: tuple[int, int], value: float) -> Solution:
    """The slope, and with it the error, is that of the wide bracket: that of neighbours is mostly chance."""
    sites = max(known)
    lower, upper = (known[count] for count in closed)
    slope = (known[wide[1]].mean - known[wide[0]].mean) / (wide[1] - wide[0]) * sites
    share = _crossing(known, closed, value) / sites
    return Solution(share, max(lower.error, upper.error) / abs(slope), slope, lower, upper)


def _outside(config: Composition, mixtures: Mixtures) -> str:
    target = config.targets[0]
    least, most = (pick(mixtures.known.values(), key=lambda one: one.mean) for pick in (min, max))
    second = config.free.composition[1]
    ends = [f"{one.mean:.5g} (share {one.share:.3g} of {second})" for one in (least, most)]
    return f"targets.0 ({target.kind}): no mixture has {target.value:g} {target.unit}; they have {ends[0]} to {ends[1]}"
