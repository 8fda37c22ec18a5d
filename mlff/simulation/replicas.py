"""Copies of one structure that are simulated together, in one compiled loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import ase
import jax
import numpy as np
from ase.data import covalent_radii

from mlff.basics.errors import DataError
from mlff.basics.runtime import usable_cores
from mlff.basics.units import STRESS
from mlff.config.bias import Bias
from mlff.potential import capacity, device_list
from mlff.potential.capacity import Capacity, Demand, Search
from mlff.potential.compiled import OutOfMemory, smaller_chunk
from mlff.potential.potential import Potential
from mlff.simulation import bias as biasing
from mlff.simulation import compiled_loop, integrators
from mlff.simulation.bias import Hills
from mlff.simulation.bonds import bonds_of
from mlff.simulation.compiled_loop import Biased, Loop, Plan, System
from mlff.simulation.constraints import free_to_move
from mlff.simulation.guard import Guard, SimulationError
from mlff.simulation.settings import Settings
from mlff.simulation.state import CHAIN, Outcome, State, conditions, fresh, temperature

_CHUNK = 0.25  #: seconds that a compiled loop may run before Python looks up (for Ctrl-C and the progress bar)
_WIDEST = 1000.0  #: Å from the center, where float32 is good to 6e-5 Å
_AGREE = 2e-3  #: eV/Å plus this share of the largest force, by which engine and calculator may differ
_HELD = ("engine_forces", "engine_energy", "engine_stress", "heat", "chain")  #: of a state file, besides the geometry


class Begun(NamedTuple):
    """Steps that were started before they were asked for."""

    steps: int
    at: float  #: s, of the clock
    loop: Future


class Replicas:
    """Copies of one structure in one compiled loop, each with its own temperature, random numbers and guard."""

    def __init__(
        self,
        copies: Sequence[ase.Atoms],
        settings: Sequence[Settings],
        guards: Sequence[Guard],
        seeds: Sequence[int],
        freedom: Sequence[int],
        bias: Bias | None = None,
        steps: int = 0,
    ):
        """`copies` with momenta and a calculator of mlff; settings differ in temperature and pressure only.

        A bias needs the number of `steps` in all, as which it has room for hills.

        Raises ConfigError, StructureError.
        """
        atoms, calculator = copies[0], copies[0].calc
        self.potential = calculator.sole_potential
        self._programs = compiled_loop.programs(self.potential)
        search = search_of(self.potential, calculator.skin, atoms)
        room = None
        for copy in copies:
            room = capacity.allocate(search, copy.positions, copy.cell.array, room)
        shape, rules, hills = (None, None, None) if bias is None else biasing.make_bias(bias, atoms, settings, steps)
        bonds = [bonds_of(copy) for copy in copies]
        kept = 0 if bonds[0] is None else len(bonds[0].pairs)
        plan = Plan(integrators.kind(settings[0]), search, room, len(copies), len(atoms), shape, kept)
        self._plan = plan._replace(room=room._replace(chunk=compiled_loop.first_chunk(self.potential, plan)))
        self._system = _system(self.potential, search, guards, atoms)._replace(bias=rules)
        self.members = [Member(self, *each) for each in zip(range(len(copies)), copies, guards, strict=True)]
        moving, masses = free_to_move(atoms), atoms.get_masses()
        at = [conditions(s, seed, masses, moving, *of) for s, seed, *of in zip(settings, seeds, freedom, bonds, strict=True)]
        self._at, self.bonds = _stacked(at), bonds[0] is not None  #: whether distances are kept
        self._each_at = at
        self.host = _stacked([_start(copy, self.potential) for copy in copies])  #: the state, as arrays of NumPy
        self.bias, self.biased = bias, None  #: what the bias has done, as arrays of NumPy
        if bias is not None:
            pushed = biasing.start_push(shape, rules, hills, search.pbc, self.host, self._boxes(self.host.cell))
            self.biased = Biased(pushed, hills)
            total = biasing.add_push(Outcome(self.host.energy, self.host.forces, self.host.stress), pushed)
            self.host = self.host._replace(**total._asdict())
        self._state, self._device_biased = self.host, self.biased
        self._fix()
        self._listed = self._no_list()
        self._going = np.ones(len(copies), bool)
        self._most, self._checked = 1, False  # steps in one call; whether the calculator has been asked too
        self._begun: Begun | None = None
        self._thread = ThreadPoolExecutor(1)

    def begin(self, steps: int) -> None:
        """Start on up to `steps` steps in another thread; an `advance` by as many, next, takes them up.

        Of small graphs only: writing takes little of the others' time, and another thread than the main one gets the memory
        of large ones anew in each call.
        """
        if usable_cores() == 1 or not compiled_loop.small(self._plan):
            return
        if not (self._checked and self._programs.compiled(self._plan) and self._going.any()):
            return
        steps, begin, started = min(steps, self._most), time.perf_counter(), threading.Event()
        changing = self._changing(steps)

        def run() -> Loop:
            started.set()
            return self._programs.run(self._plan, *self._fixed, *changing)

        self._begun = Begun(steps, begin, self._thread.submit(run))
        started.wait()  # else what the caller does next would keep the thread from starting

    def advance(self, steps: int) -> None:
        """At least one step and at most `steps`. Members that break a limit have an `error` and rest from then on."""
        steps, compiled, begin = min(steps, self._most), self._programs.compilations, time.perf_counter()
        begun, self._begun = self._begun, None
        if begun is not None and begun.steps == steps:
            begin, loop = begun.at, self._run(steps, begun.loop)
        else:
            loop = self._run(steps)
        self._state, self._listed, self._device_biased = loop.state, loop.listed, loop.biased
        self.host, going, self.biased = jax.tree.map(np.asarray, (loop.state, loop.going, loop.biased))
        if self._programs.compilations == compiled:
            seconds = (time.perf_counter() - begin) / max(1, int(loop.taken))
            self._most = max(1, min(4 * self._most, int(_CHUNK / max(seconds, 1e-9))))
        for member in self.members:
            if self._going[member.index]:
                member.show()
                if not going[member.index]:
                    member.explain()
        self._going = np.array([member.error is None for member in self.members])
        if not loop.complete:
            self._grow(loop.demand)
            if not loop.taken:
                return self.advance(steps)
        if not self._checked:
            self._compare()
        return None

    def _run(self, steps: int, begun: Future | None = None) -> Loop:
        """Up to `steps` steps, `begun` or not, with forces in chunks of fewer atoms where memory runs out."""
        while True:
            try:
                if begun is not None:
                    return begun.result()
                return self._programs.run(self._plan, *self._fixed, *self._changing(steps))
            except OutOfMemory:
                room, atoms = self._plan.room, compiled_loop.together(self._plan) * self._plan.atoms
                chunk = smaller_chunk(room.chunk or atoms, atoms)
                if not chunk:
                    raise
                begun = None
                self._make_room(room._replace(chunk=chunk))

    def _changing(self, steps: int) -> tuple:
        """What is different in every call."""
        return self._state, self._listed, self._going, steps, self._device_biased

    def _fix(self) -> None:
        """Put on the device what does not change from here on."""
        started = np.array([self.conserved(index) for index in range(len(self.members))])
        self._system = self._system._replace(conserved=started)
        with jax.enable_x64(True):
            self._fixed = jax.device_put((self._at, self._system))

    def drift(self, index: int) -> float:
        """Change of the conserved energy since the start (after a restart: since that), eV/atom."""
        return (self.conserved(index) - float(self._system.conserved[index])) / self._plan.atoms

    def rest(self, index: int, error: SimulationError) -> None:
        """A member that takes no more steps."""
        self.members[index].error = error
        self._going, self._begun = np.array([member.error is None for member in self.members]), None

    def enthalpies(self) -> np.ndarray:
        """(R,) eV: potential energy without reference energies, in npt plus PV."""
        volumes = np.abs(np.linalg.det(self.host.cell)) * self._plan.integrator.startswith("npt")
        return self.host.energy + self._at.pressure * volumes

    def exchange(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Members of pairs take each other's geometry, with momenta scaled to their own temperature; all else they keep.

        What changes in their energy is counted as heat, so that the conserved quantity does not jump.
        """
        self._begun = None
        order, kelvins = np.arange(len(self.members)), self._at.temperature
        for i, j in pairs:
            order[[i, j]] = j, i
        before = [self.conserved(index) for index in range(len(order))]
        state = jax.tree.map(lambda value: value[order], self.host)
        momenta = state.momenta * np.sqrt(kelvins / kelvins[order])[:, None, None]
        self.host = state._replace(momenta=momenta, heat=self.host.heat, chain=self.host.chain)
        jump = [self.conserved(index) - before[index] for index in range(len(order))]
        self._state = self.host = self.host._replace(heat=self.host.heat + jump)
        self._listed = jax.tree.map(lambda value: np.asarray(value)[order], self._listed)
        for index in np.flatnonzero(order != np.arange(len(order))):
            self.members[index].show()

    def conserved(self, index: int) -> float:
        """eV, without reference energies."""
        return float(integrators.conserved(self._plan.integrator, self._each_at[index], self.members[index].now))

    def temperature(self, index: int) -> float:
        """K."""
        return float(temperature(self._each_at[index], self.members[index].now))

    def extent(self, atoms: ase.Atoms) -> float:
        """Å."""
        return extent_of(self._plan.search, atoms)

    def list_state(self, index: int) -> dict[str, np.ndarray]:
        """What the list of a member was made of."""
        room, reference = self._plan.room, np.asarray(self._listed.reference)[index]
        listed = np.isfinite(reference).all()  # not before the first step
        return {
            "list_reference": reference if listed else reference[:0],
            "list_cell": np.asarray(self._listed.cell)[index],
            "list_room": capacity.room_in_numbers(room),
        }

    def restore(self, steps: Sequence[int], held: Sequence[dict[str, np.ndarray]], sources: Sequence[object]) -> None:
        """Take up what `Member.state` gave, at the geometry of the atoms. Raises DataError, with the source: it does not fit."""
        self._begun = None
        n, rooms = self._plan.atoms, [self._plan.room]
        shapes = dict(zip(_HELD, ((n, 3), (), (3, 3), (), (2, CHAIN)), strict=True))
        shapes |= {"list_reference": (n, 3), "list_cell": (3, 3), "list_room": (9,)}
        for state, source in zip(held, sources, strict=True):
            _check(state, shapes, source)
            room = capacity.room_from_numbers(state["list_room"], n, self._plan.replicas, 4 * rooms[0].neighbors + 64)
            if room is None:
                raise DataError(f"{source}: 'list_room' makes no sense; start without restart")
            rooms.append(room)
        if self.biased is not None:
            parts = zip(held, sources, strict=True)
            like = _one(self.biased, 0)
            kept = [Biased(*biasing.from_arrays(state, self._plan.bias, like, source)) for state, source in parts]
            self.biased = self._device_biased = _stacked(kept)
        restored = []
        for member, step, state in zip(self.members, steps, held, strict=True):
            outcome = Outcome(state["engine_energy"], state["engine_forces"], state["engine_stress"])
            fresh = _state_of(member.atoms, outcome)
            restored.append(fresh._replace(step=np.int64(step), heat=state["heat"], chain=state["chain"]))
        self._plan = self._plan._replace(room=capacity.largest(rooms[1:]))
        self._state = self.host = _stacked(restored)
        self._fix()
        blank = np.full((n, 3), np.nan)
        references = [state["list_reference"] if len(state["list_reference"]) else blank for state in held]
        self._listed = self._list_at(np.stack(references), np.stack([state["list_cell"] for state in held]))

    def _grow(self, demand: Demand) -> None:
        """A list with more room."""
        plan = self._plan._replace(room=capacity.enlarge(self._plan.search, self._plan.atoms, self._plan.room, demand))
        self._make_room(plan.room._replace(chunk=plan.room.chunk or compiled_loop.first_chunk(self.potential, plan)))

    def _make_room(self, room: Capacity) -> None:
        """What was listed stays the same."""
        self._plan = self._plan._replace(room=room)
        self._listed = self._list_at(np.asarray(self._listed.reference), np.asarray(self._listed.cell))

    def _list_at(self, reference: np.ndarray, cell: np.ndarray):
        listed = None
        if np.isfinite(reference).all():
            listed = self._programs.build(self._plan, reference, cell, self._boxes(cell))
        return self._no_list() if listed is None else listed

    def _no_list(self):
        return device_list.no_list(self._plan.search, self._plan.room, self._plan.replicas, self._plan.atoms)

    def _boxes(self, cell: np.ndarray) -> np.ndarray:
        return cell if all(self._plan.search.pbc) else np.broadcast_to(self._system.box, cell.shape)

    def _compare(self) -> None:
        """Engine and calculator must say the same of the first new positions: their programs share little but the model."""
        self._checked = True
        member = self.members[0]
        mine, theirs = member.forces(), member.atoms.get_forces(apply_constraint=False)
        off = float(np.abs(mine - theirs).max(initial=0.0))
        if not off <= _AGREE * (1 + float(np.abs(theirs).max(initial=0.0))):
            raise SimulationError(
                f"the compiled engine's forces differ from the calculator's by {off:.2g} eV/Å; take engine ase"
            )


class Member:
    """One of several replicas; `atoms` hold its geometry after every `advance` of them all."""

    name = "jax"

    def __init__(self, replicas: Replicas, index: int, atoms: ase.Atoms, guard: Guard):
        self.atoms, self.index = atoms, index
        self.error: SimulationError | None = None  #: why it rests
        self._replicas, self._guard = replicas, guard
        self._baseline = replicas.potential.baseline_energy(atoms.numbers)
        self._seen: tuple[State | None, State | None] = None, None  #: the state of all replicas, and of this one

    @property
    def step(self) -> int:
        """Steps done in all."""
        return int(self.now.step)

    @property
    def now(self) -> State:
        """Where it is, arrays of NumPy."""
        host, mine = self._seen
        if host is not self._replicas.host:
            host, mine = self._seen = self._replicas.host, _one(self._replicas.host, self.index)
        return mine

    @property
    def _biased(self) -> Biased | None:
        return None if self._replicas.biased is None else _one(self._replicas.biased, self.index)

    def forces(self) -> np.ndarray:
        """(n, 3) eV/Å, on fixed atoms too; without those of a bias."""
        return np.array(self.now.forces) - (0.0 if self._biased is None else self._biased.push.forces)

    def energy(self) -> float:
        """Potential energy, eV, reference energies included; without that of a bias."""
        return float(self.now.energy) + self._baseline - (0.0 if self._biased is None else float(self._biased.push.energy))

    def bias(self) -> dict[str, float]:
        """Columns for the log: the energy of the bias, eV, and its variables; empty without a bias."""
        if self._biased is None:
            return {}
        push = self._biased.push
        values = zip(self._replicas.bias.variables, push.values, strict=True)
        return {"bias_ev": float(push.energy)} | {f"cv_{name}": float(value) for name, value in values}

    @property
    def bias_options(self) -> Bias | None:
        """What it was asked for."""
        return self._replicas.bias

    def hills(self) -> Hills | None:
        """The hills so far; None without metadynamics."""
        return None if self._biased is None or self._replicas.bias.metadynamics is None else self._biased.hills

    def conserved(self) -> float:
        """The quantity that an exact integration would keep, eV."""
        return self._replicas.conserved(self.index) + self._baseline

    def pressure(self) -> float | None:
        """GPa, kinetic part included; None without three periodic directions, and where distances are kept."""
        if not self.atoms.pbc.all() or self._replicas.bonds:
            return None
        state, masses = self.now, self.atoms.get_masses()[:, None]
        kinetic = float(np.sum(state.momenta**2 / masses)) / abs(float(np.linalg.det(state.cell)))
        return (kinetic - float(np.trace(state.stress))) / 3 / STRESS["GPa"]

    def state(self) -> dict[str, np.ndarray]:
        """Arrays (no pickles) that a restart needs besides the geometry."""
        state = self.now
        held = dict(zip(_HELD, (state.forces, state.energy, state.stress, state.heat, state.chain), strict=True))
        if self._biased is not None:
            held |= biasing.to_arrays(*self._biased)
        return {name: np.array(value) for name, value in (held | self._replicas.list_state(self.index)).items()}

    def show(self) -> None:
        """Put the atoms where the state is."""
        state = self.now
        if not np.array_equal(state.cell, self.atoms.cell.array):
            self.atoms.set_cell(np.array(state.cell))
        self.atoms.positions = np.array(state.positions)
        self.atoms.set_momenta(np.array(state.momenta), apply_constraint=False)

    def explain(self) -> None:
        """Find the limit that was broken: `error`."""
        try:
            moving = free_to_move(self.atoms)[:, None]
            self._guard.check_step(np.array(self.now.forces) * moving, self._replicas.temperature(self.index))
            self._guard.check_geometry(self.atoms)
            self._guard.check_drift(self._replicas.drift(self.index))
            if self._replicas.potential.precision == "float32" and self._replicas.extent(self.atoms) > 0.99 * _WIDEST:
                raise SimulationError(f"atoms are more than {_WIDEST:g} Å from the others, where float32 loses its digits")
        except SimulationError as error:
            self.error = error


def search_of(potential: Potential, skin: float, atoms: ase.Atoms) -> Search:
    """What a neighbour list of these atoms is searched with."""
    return Search(tuple(bool(p) for p in atoms.pbc), potential.cutoff, float(skin), potential.dtype)


def _system(potential: Potential, search: Search, guards: Sequence[Guard], atoms: ase.Atoms) -> System:
    limits = guards[0].limits
    radii = np.nan_to_num(covalent_radii, nan=1.0)[atoms.numbers]
    return System(
        numbers=atoms.numbers.astype(np.int32),
        box=capacity.box_of(search.pbc, atoms.cell.array),
        contact=limits.fused * radii,
        widest=np.float64(_WIDEST if potential.precision == "float32" else np.inf),
        largest_force=np.float64(limits.force),
        hottest=np.array([guard.hottest for guard in guards], np.float64),
        conserved=np.zeros(len(guards)),
        largest_drift=np.float64(limits.drift * len(atoms)),
    )


def extent_of(search: Search, atoms: ase.Atoms) -> float:
    """Å: how far an atom is from the mean position, wrapped into the cell along periodic directions."""
    box = capacity.box_of(search.pbc, atoms.cell.array)
    fractions = atoms.positions @ np.linalg.inv(box)
    fractions -= np.floor(fractions) * np.array(search.pbc)
    return float(np.abs((fractions - fractions.mean(axis=0)) @ box).max(initial=0.0))


def _check(state: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]], source: object) -> None:
    for name, shape in shapes.items():
        value, kinds = state.get(name), "iu" if name == "list_room" else "f"
        shorter = {"list_reference": (0, 3), "list_room": (4,)}.get(name)  # not listed yet; written by an earlier version
        if value is None or value.shape not in (shape, shorter) or value.dtype.kind not in kinds:
            raise DataError(f"{source}: {name!r} is missing or not as this engine has it; start without restart")


def _start(atoms: ase.Atoms, potential: Potential) -> State:
    """The state of atoms that their calculator has computed."""
    outcome = Outcome(
        atoms.get_potential_energy() - potential.baseline_energy(atoms.numbers),
        atoms.get_forces(apply_constraint=False),
        atoms.get_stress(voigt=False, apply_constraint=False) if atoms.pbc.all() else np.zeros((3, 3)),
    )
    return _state_of(atoms, outcome)


def _state_of(atoms: ase.Atoms, outcome: Outcome) -> State:
    return fresh(atoms.positions, atoms.get_momenta(), atoms.cell.array, outcome)


def _stacked(values):
    """Trees of arrays as one, with an axis of replicas in front."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *values)


def _one(values, index: int):
    return jax.tree.map(lambda value: value[index], values)
