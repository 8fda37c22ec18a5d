"""Many steps of molecular dynamics in one compiled loop: integrator, neighbour list, potential and guard.

The loop ends after the steps that were asked for, at a step that breaks a limit, or before a step whose neighbour list would
lack pairs: that step is not taken. R replicas of one structure are evaluated as graphs of a few structures each: on a CPU
as many as its caches hold, on other devices all of them in one graph.
"""

from __future__ import annotations

import functools
import weakref
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics import compiler
from mlff.basics.runtime import compilation_cache
from mlff.potential import derivatives, device_list
from mlff.potential.capacity import Capacity, Demand, Search
from mlff.potential.compiled import check_memory, memory_errors
from mlff.potential.device_list import NeighborList
from mlff.potential.potential import Potential
from mlff.simulation import bias, integrators
from mlff.simulation.bias import Hills, Push, Rules, Shape
from mlff.simulation.state import Conditions, Outcome, State, temperature

_ATOMS = 64  #: of replicas in one graph on a CPU: its arrays stay in the cache of one core


class System(NamedTuple):
    """What stays as it is."""

    numbers: Array  #: (n,) int32
    box: Array  #: (3, 3) Å: see `capacity.box_of`; of three periodic directions the cell is taken
    contact: Array  #: (n,) Å: two atoms nearer than the sum of theirs have fused
    widest: Array  #: Å from the center: farther out float32 loses its digits
    largest_force: Array  #: eV/Å
    hottest: Array  #: (R,) K
    conserved: Array  #: (R,) eV at the start
    largest_drift: Array  #: eV by which the conserved energy may differ from that
    bias: Rules | None = None


class Biased(NamedTuple):
    """What a bias has done so far."""

    push: Push
    hills: Hills


class Loop(NamedTuple):
    """What a loop leaves behind."""

    state: State  #: (R, ...)
    listed: NeighborList
    going: Array  #: (R,) bool: False where a limit was broken in the last step that was taken
    taken: Array  #: () int32 steps
    demand: Demand  #: of the last search
    complete: Array  #: () bool: False if the next step needs a larger list
    biased: Biased | None  #: None without a bias


class Plan(NamedTuple):
    """What a loop is compiled for, besides its potential."""

    integrator: str
    search: Search
    room: Capacity
    replicas: int
    atoms: int
    bias: Shape | None = None
    bonds: int = 0  #: whose distances are kept


class Programs:
    """The compiled loops of one potential."""

    def __init__(self, potential: Potential):
        self._potential = weakref.ref(potential)
        self._loops: dict[Plan, object] = {}
        self._builders: dict[Plan, object] = {}
        self.compilations = 0

    def run(self, plan: Plan, at: Conditions, system: System, state: State, listed, going, steps: int, biased=None) -> Loop:
        """Up to `steps` steps. Raises OutOfMemory: more memory is needed than there is."""
        potential, size = self._potential(), (plan.replicas * plan.atoms, plan.room.neighbors)
        with jax.enable_x64(True), memory_errors(*size):
            arguments = potential.device_params, at, system, state, listed, going, np.int32(steps), biased
            if plan not in self._loops:
                compiler.check()
                loop = self._compile(functools.partial(_loop, potential, plan), arguments)
                check_memory(loop, *size)
                self._loops[plan] = loop
            return self._loops[plan](*arguments)

    def compiled(self, plan: Plan) -> bool:
        """Whether it can run at once."""
        return plan in self._loops

    def build(self, plan: Plan, positions: np.ndarray, cell: np.ndarray, box: np.ndarray) -> NeighborList | None:
        """The list of positions (R, n, 3) and cell (R, 3, 3), Å; None if there is no room for it."""
        with jax.enable_x64(True):
            arguments = positions, cell, np.broadcast_to(box, cell.shape)
            if plan not in self._builders:
                self._builders[plan] = self._compile(functools.partial(_build, plan.search, plan.room), arguments)
            listed, complete = self._builders[plan](*arguments)
            return listed if complete else None

    def _compile(self, function, arguments):
        self.compilations += 1
        with compilation_cache():
            return jax.jit(function, compiler_options=compiler.quick()).lower(*arguments).compile()


_programs: weakref.WeakKeyDictionary[Potential, Programs] = weakref.WeakKeyDictionary()


def programs(potential: Potential) -> Programs:
    """Those of this potential, shared by all simulations of it."""
    if potential not in _programs:
        _programs[potential] = Programs(potential)
    return _programs[potential]


def _build(search: Search, room: Capacity, positions: Array, cell: Array, box: Array) -> tuple[NeighborList, Array]:
    """The list, and () bool: whether it has all pairs."""
    listed, demand = device_list.build(search, room, positions, cell, box)
    return listed, device_list.fits(room, demand)


def first_chunk(potential: Potential, plan: Plan) -> int:
    """Atoms whose forces are computed at once, before memory is looked at; 0: all of a graph."""
    few = together(plan)
    listed = device_list.no_list(plan.search, plan.room, few, plan.atoms)
    cells, numbers = np.zeros((few, 3, 3)), np.zeros(plan.atoms, np.int32)
    with jax.enable_x64(True):
        graph_at = functools.partial(device_list.graph_at, plan.search)
        shapes = jax.eval_shape(graph_at, listed, numbers, listed.lattice, cells, cells)
    with potential.scope():
        return potential.programs.chunk_of(potential.device_params, shapes)


def together(plan: Plan) -> int:
    """Replicas in one graph: on a CPU the largest divisor of their number whose atoms are at most `_ATOMS`, else all."""
    if jax.default_backend() != "cpu":
        return plan.replicas
    most = max(1, _ATOMS // plan.atoms)
    return max(few for few in range(1, min(most, plan.replicas) + 1) if plan.replicas % few == 0)


def small(plan: Plan) -> bool:
    """Whether the arrays of a graph stay in the cache of one core; on other devices than a CPU, always."""
    return jax.default_backend() != "cpu" or together(plan) * plan.atoms <= _ATOMS


def evaluate(potential: Potential, plan: Plan, params, system: System, listed: NeighborList, state: State, box: Array):
    """What the potential says of R states, and (R,) bool: whether their atoms are neither fused nor too far apart."""
    few = together(plan)

    def of_few(replicas):
        return _evaluate(potential, plan, params, system, *replicas)

    if few == plan.replicas:
        return of_few((listed, state.positions, state.cell, box))
    arrays = jax.tree.map(lambda x: x.reshape(-1, few, *x.shape[1:]), (listed, state.positions, state.cell, box))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(of_few, arrays))


def _evaluate(potential: Potential, plan: Plan, params, system: System, listed: NeighborList, positions, cell, box):
    """`evaluate` of some replicas as one graph."""
    graph = device_list.graph_at(plan.search, listed, system.numbers, positions, cell, box)
    shape = positions.shape[:2]
    contacts = jnp.tile(system.contact.astype(plan.search.dtype), len(positions))
    with jax.enable_x64(potential.precision == "float64"):
        stress, chunk = all(plan.search.pbc), plan.room.chunk
        if chunk:
            said = potential.programs.predict_in_chunks(params, graph, chunk, stress)
        else:
            said = derivatives.predict(functools.partial(potential.energy, params), graph, stress=stress)
        nearness = jnp.sum(graph.pair_vectors**2, axis=2) - (contacts[:, None] + contacts[graph.neighbors]) ** 2
        apart = jnp.all((nearness >= 0) | ~graph.neighbor_mask, axis=1)
        apart &= jnp.all(jnp.abs(graph.positions) < system.widest.astype(plan.search.dtype), axis=1)
    energies, forces = (array.astype(jnp.float64) for array in (said.energies, said.forces))
    stress = jnp.zeros((len(positions), 3, 3)) if said.stress is None else said.stress.astype(jnp.float64)
    return Outcome(energies.reshape(shape).sum(axis=1), forces.reshape(*shape, 3), stress), apart.reshape(shape).all(axis=1)


def _loop(
    potential: Potential, plan: Plan, params, at: Conditions, system: System, state, listed, going, steps, biased
) -> Loop:
    name, search, room = plan.integrator, plan.search, plan.room
    begin = jax.vmap(functools.partial(integrators.begin, name))
    end = jax.vmap(functools.partial(integrators.end, name))

    def step(loop: Loop) -> Loop:
        moved = _where(loop.going, begin(at, loop.state), loop.state)
        box = moved.cell if all(search.pbc) else jnp.broadcast_to(system.box, moved.cell.shape)
        listed, demand = device_list.update(search, room, loop.listed, moved.positions, moved.cell, box)

        hills = None if loop.biased is None else loop.biased.hills

        def taken() -> tuple[Loop, Array]:
            outcome, apart = evaluate(potential, plan, params, system, listed, moved, box)
            biased, heights = None, jnp.zeros(plan.replicas)
            if plan.bias is None:
                state = end(at, moved, outcome)
            else:
                arguments = search.pbc, moved.positions, box, moved.step + 1
                push, work, heights = bias.push(plan.bias, system.bias, hills, *arguments)
                state = end(at, moved, bias.add_push(outcome, push))
                state = state._replace(heat=state.heat + work)
                biased = Biased(_where(loop.going, push, loop.biased.push), None)
            state = _where(loop.going, state, loop.state)
            going = loop.going & apart & _within(name, at, system, state)
            new = Loop(state, listed, going, loop.taken + 1, demand, jnp.bool_(True), biased)
            return new, jnp.where(loop.going, heights, 0.0)

        def refused() -> tuple[Loop, Array]:
            biased = None if loop.biased is None else Biased(loop.biased.push, None)
            return loop._replace(demand=demand, complete=jnp.bool_(False), biased=biased), jnp.zeros(plan.replicas)

        new, heights = jax.lax.cond(device_list.fits(room, demand), taken, refused)
        if hills is None:
            return new
        hills = bias.add_hills(system.bias, hills, new.biased.push.values, heights)  # here, where they stay in place
        return new._replace(biased=Biased(new.biased.push, hills))

    def more(loop: Loop) -> Array:
        return loop.complete & (loop.taken < steps) & jnp.any(loop.going)

    start = Loop(state, listed, going, jnp.int32(0), device_list.no_demand(), jnp.bool_(True), biased)
    return jax.lax.while_loop(more, step, start)


def _within(name: str, at: Conditions, system: System, state: State) -> Array:
    """(R,) bool: whether a state keeps the limits; what is not finite does not."""
    largest = jnp.abs(jnp.where(at.moving, state.forces, 0.0)).max(axis=(1, 2))
    kelvin = jax.vmap(temperature)(at, state)
    drift = jnp.abs(jax.vmap(functools.partial(integrators.conserved, name))(at, state) - system.conserved)
    return (largest < system.largest_force) & (kelvin < system.hottest) & (drift < system.largest_drift)


def _where(chosen: Array, one, other):
    """`one` where chosen (R,), else `other`."""
    return jax.tree.map(lambda a, b: jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b), one, other)
