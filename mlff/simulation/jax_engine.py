"""Dynamics compiled together with a potential of mlff."""

from __future__ import annotations

import time

import ase
import jax
import numpy as np
from ase.constraints import FixAtoms
from ase.data import covalent_radii

from mlff.basics.errors import ConfigError, DataError
from mlff.basics.units import STRESS
from mlff.data.placement import WIDE
from mlff.potential import device_list
from mlff.potential.device_list import Capacity, Search
from mlff.potential.potential import Potential
from mlff.simulation import compiled_loop, integrators
from mlff.simulation.compiled_loop import Plan, System
from mlff.simulation.guard import Guard, SimulationError
from mlff.simulation.integrators import Outcome, State
from mlff.simulation.settings import Settings

_CHUNK = 0.25  #: seconds that a compiled loop may run before Python looks up (for Ctrl-C and the progress bar)
_WIDEST = 1000.0  #: Å from the center, where float32 is good to 6e-5 Å
_SHORTEST = 100  #: time steps that tau_pressure must have
_AGREE = 2e-3  #: eV/Å plus this share of the largest force, by which engine and calculator may differ
_HELD = ("engine_forces", "engine_energy", "engine_stress", "heat", "chain")  #: of a state file, besides the geometry


def obstacle(calculator, atoms: ase.Atoms) -> str | None:
    """Why the compiled engine cannot do this; None if it can."""
    potential = getattr(calculator, "sole_potential", None)
    if not isinstance(potential, Potential):
        return "the calculator is not mlff's own"
    for constraint in atoms.constraints:
        if type(constraint) is not FixAtoms:
            return f"the constraint {type(constraint).__name__}"
    search = _search(potential, calculator.skin, atoms)
    box = device_list.box_of(search.pbc, atoms.cell.array)
    if not (np.isfinite(atoms.positions).all() and np.isfinite(box).all() and abs(np.linalg.det(box)) > 1e-6):
        return None  # the calculator says what is wrong with such a structure
    if device_list.pairs_searched(search, len(atoms), atoms.cell.array) > device_list.MOST_PAIRS:
        return f"{len(atoms):,} atoms, whose neighbours are found faster one by one"
    if potential.precision == "float32" and _extent(search, atoms) > WIDE:
        return f"a structure wider than {2 * WIDE:g} Å in float32"
    return None


class JaxEngine:
    """One structure in a compiled loop; `atoms` hold the geometry after every `advance`."""

    name = "jax"

    def __init__(self, atoms: ase.Atoms, settings: Settings, guard: Guard, seed: int, freedom: int):
        """`atoms` with momenta and a calculator of mlff that has computed them. Raises ConfigError, StructureError."""
        check_ensemble(atoms, settings)
        self.atoms, self.settings, self._guard = atoms, settings, guard
        calculator = atoms.calc
        self.potential = calculator.sole_potential
        self._programs = compiled_loop.programs(self.potential)
        self.compilations = 0  #: programs compiled for this simulation
        self._baseline = self.potential.baseline_energy(atoms.numbers)
        search = _search(self.potential, calculator.skin, atoms)
        room = device_list.allocate(search, atoms.positions, atoms.cell.array)
        self._plan = Plan(integrators.kind(settings), search, room, 1, len(atoms))
        moving = np.ones(len(atoms), bool)
        for constraint in atoms.constraints:
            moving[constraint.index] = False
        at = integrators.conditions(settings, seed, atoms.get_masses(), moving, freedom)
        self._at = _batched(at)
        self._system = _system(self.potential, search, guard, atoms)
        outcome = Outcome(
            atoms.get_potential_energy() - self._baseline,
            atoms.get_forces(apply_constraint=False),
            atoms.get_stress(voigt=False, apply_constraint=False) if atoms.pbc.all() else np.zeros((3, 3)),
        )
        self._state = _batched(integrators.fresh(atoms.positions, atoms.get_momenta(), atoms.cell.array, outcome))
        self._listed = compiled_loop.no_list(self._plan)
        self._most, self._checked = 8, False

    @property
    def step(self) -> int:
        """Steps done in all."""
        return int(self._state.step[0])

    def advance(self, steps: int) -> None:
        """At least one step and at most `steps`. Raises SimulationError: a limit is broken (the step that broke it is taken)."""
        steps, compiled = min(steps, self._most), self._programs.compilations
        begin = time.perf_counter()
        loop = self._programs.run(self._plan, self._at, self._system, self._state, self._listed, np.ones(1, bool), steps)
        self._state, self._listed = jax.block_until_ready((loop.state, loop.listed))
        if self._programs.compilations == compiled:
            seconds = time.perf_counter() - begin
            self._most = max(1, min(4 * self._most, int(self._most * _CHUNK / max(seconds, 1e-6) * steps / self._most)))
        self.compilations += self._programs.compilations - compiled
        self._show()
        if not loop.going[0]:
            self._explain()
        if not loop.complete:
            self._grow(int(loop.demand.neighbors), np.asarray(loop.demand.images))
            if not loop.taken:
                return self.advance(steps)
        if not self._checked:
            self._compare()
        return None

    def forces(self) -> np.ndarray:
        """(n, 3) eV/Å, on fixed atoms too."""
        return np.array(self._state.forces[0])

    def energy(self) -> float:
        """Potential energy, eV, reference energies included."""
        return float(self._state.energy[0]) + self._baseline

    def conserved(self) -> float:
        """The quantity that an exact integration would keep, eV."""
        at, state = _single(self._at), _single(self._state)
        with jax.enable_x64(True):
            return float(integrators.conserved(self._plan.integrator, at, state)) + self._baseline

    def pressure(self) -> float | None:
        """GPa, kinetic part included; None without three periodic directions."""
        if not self.atoms.pbc.all():
            return None
        state, masses = _single(self._state), self.atoms.get_masses()[:, None]
        kinetic = float(np.sum(state.momenta**2 / masses)) / abs(float(np.linalg.det(state.cell)))
        return (kinetic - float(np.trace(state.stress))) / 3 / STRESS["GPa"]

    def state(self) -> dict[str, np.ndarray]:
        """Arrays (no pickles) that a restart needs besides the geometry."""
        state = _single(self._state)
        held = dict(zip(_HELD, (state.forces, state.energy, state.stress, state.heat, state.chain), strict=True))
        room = self._plan.room
        reference = np.asarray(self._listed.reference[0])
        listed = np.isfinite(reference).all()  # not before the first step
        held |= {"list_reference": reference if listed else reference[:0], "list_cell": self._listed.cell[0]}
        return {name: np.array(value) for name, value in held.items()} | {
            "list_room": np.array([room.neighbors, *room.images])
        }

    def restore(self, step: int, held: dict[str, np.ndarray], source: object) -> None:
        """Take up what `state` gave, at the geometry of the atoms. Raises DataError, with `source`: it does not fit."""
        n = len(self.atoms)
        shapes = dict(zip(_HELD, ((n, 3), (), (3, 3), (), (2, integrators.CHAIN)), strict=True))
        shapes |= {"list_reference": (n, 3), "list_cell": (3, 3), "list_room": (4,)}
        for name, shape in shapes.items():
            value = held.get(name)
            kinds = "iu" if name == "list_room" else "f"
            unlisted = name == "list_reference" and value is not None and value.shape == (0, 3)
            if value is None or not (value.shape == shape or unlisted) or value.dtype.kind not in kinds:
                raise DataError(f"{source}: {name!r} is missing or not as this engine has it; start without restart")
        neighbors, *images = (int(number) for number in held["list_room"])
        if not (0 < neighbors <= 4 * self._plan.room.neighbors + 64 and all(0 <= number <= 50 for number in images)):
            raise DataError(f"{source}: 'list_room' makes no sense; start without restart")
        self._plan = self._plan._replace(room=Capacity(neighbors, tuple(images)))
        outcome = Outcome(held["engine_energy"], held["engine_forces"], held["engine_stress"])
        fresh = integrators.fresh(self.atoms.positions, self.atoms.get_momenta(), self.atoms.cell.array, outcome)
        self._state = _batched(fresh._replace(step=np.int64(step), heat=held["heat"], chain=held["chain"]))
        listed = len(held["list_reference"]) > 0
        reference = held["list_reference"] if listed else np.full((n, 3), np.nan)
        self._listed = self._list_at(reference[None], held["list_cell"][None])

    def _show(self) -> None:
        """Put the atoms where the state is."""
        state = _single(self._state)
        if self._plan.integrator == "npt":
            self.atoms.set_cell(np.array(state.cell))
        self.atoms.positions = np.array(state.positions)
        self.atoms.set_momenta(np.array(state.momenta), apply_constraint=False)

    def _explain(self) -> None:
        """Raise SimulationError for the limit that was broken."""
        kelvin = float(_temperature(_single(self._at), _single(self._state)))
        self._guard.check_step(np.where(self._at.moving[0], self.forces(), 0.0), kelvin)
        self._guard.check_geometry(self.atoms)
        if _extent(self._plan.search, self.atoms) > 0.99 * _WIDEST and self.potential.precision == "float32":
            raise SimulationError(f"atoms are more than {_WIDEST:g} Å from the others, where float32 loses its digits")

    def _grow(self, neighbors: int, images: np.ndarray) -> None:
        """A list with more room; what was listed stays the same."""
        room = device_list.capacity(self._plan.search, self._plan.atoms, neighbors, images, self._plan.room)
        self._plan = self._plan._replace(room=room)
        self._listed = self._list_at(np.asarray(self._listed.reference), np.asarray(self._listed.cell))

    def _list_at(self, reference: np.ndarray, cell: np.ndarray):
        if not np.isfinite(reference).all():
            return compiled_loop.no_list(self._plan)
        box = cell[0] if self.atoms.pbc.all() else self._system.box
        return self._programs.build(self._plan, reference, cell, box)

    def _compare(self) -> None:
        """Engine and calculator must say the same of the first new positions: their programs share little but the model."""
        self._checked = True
        mine, theirs = self.forces(), self.atoms.get_forces(apply_constraint=False)
        off = float(np.abs(mine - theirs).max(initial=0.0))
        if not off <= _AGREE * (1 + float(np.abs(theirs).max(initial=0.0))):
            raise SimulationError(
                f"the compiled engine's forces differ from the calculator's by {off:.2g} eV/Å; take engine ase"
            )


def check_ensemble(atoms: ase.Atoms, settings: Settings) -> None:
    """Raise ConfigError where the ensemble does not fit the atoms."""
    if settings.ensemble != "npt":
        return
    if not atoms.pbc.all():
        raise ConfigError(f"npt needs a cell that is periodic in three directions, found pbc={atoms.pbc.tolist()}")
    if atoms.constraints:
        raise ConfigError("npt does not work with constraints; remove them or use nvt")
    if settings.tau_pressure < _SHORTEST * settings.timestep:
        least = _SHORTEST * settings.timestep
        raise ConfigError(
            f"tau_pressure must be at least {_SHORTEST} time steps, {least:g} fs, not {settings.tau_pressure:g}"
        )


def _search(potential: Potential, skin: float, atoms: ase.Atoms) -> Search:
    return Search(tuple(bool(p) for p in atoms.pbc), potential.cutoff, float(skin), potential.dtype)


def _system(potential: Potential, search: Search, guard: Guard, atoms: ase.Atoms) -> System:
    radii = np.nan_to_num(covalent_radii, nan=1.0)[atoms.numbers]
    return System(
        numbers=atoms.numbers.astype(np.int32),
        box=device_list.box_of(search.pbc, atoms.cell.array),
        contact=guard.limits.fused * radii,
        widest=np.float64(_WIDEST if potential.precision == "float32" else np.inf),
        largest_force=np.float64(guard.limits.force),
        hottest=np.float64(guard.hottest),
    )


def _extent(search: Search, atoms: ase.Atoms) -> float:
    """Å: how far an atom is from the mean position, wrapped into the cell along periodic directions."""
    box = device_list.box_of(search.pbc, atoms.cell.array)
    fractions = atoms.positions @ np.linalg.inv(box)
    fractions -= np.floor(fractions) * np.array(search.pbc)
    return float(np.abs((fractions - fractions.mean(axis=0)) @ box).max(initial=0.0))


def _temperature(at, state: State):
    with jax.enable_x64(True):
        return integrators.temperature(at, state)


def _batched(values):
    """With an axis of one replica in front."""
    return jax.tree.map(lambda value: np.asarray(value)[None], values)


def _single(values):
    return jax.tree.map(lambda value: np.asarray(value)[0], values)
