"""Restraints, walls and metadynamics inside of the compiled loop: energy of a bias, its forces, and its hills.

A hill is put down where the variables are, so that its force is zero there and then: only the energy jumps. That jump, and the
work of a restraint whose center moves, go into the heat, which the conserved quantity leaves out.

Well-tempered metadynamics: a hill has the height h exp(-V / (kB T (γ - 1))), V the hills that are there already; V comes to
-(1 - 1/γ) of the free energy (Barducci, Bussi & Parrinello, Phys. Rev. Lett. 100, 020603 (2008)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics.errors import ConfigError, DataError
from mlff.basics.units import KB
from mlff.config.bias import Bias, Restraint, period
from mlff.simulation import collective
from mlff.simulation.settings import Settings
from mlff.simulation.state import Outcome, State

_BLOCK = 256  #: hills that are summed at once
_MOST = 1_000_000  #: hills of one run


class Shape(NamedTuple):
    """What a loop is compiled for, besides `Plan`."""

    variables: tuple  #: see `mlff.config.bias`
    capacity: int  #: hills


class Rules(NamedTuple):
    """What stays as it is: d variables, m restraints, hills on k variables, R replicas."""

    short: Array  #: (3, 3) see `collective.short_vectors`
    period: Array  #: (d,) degrees; infinite for what is not periodic
    restrained: Array  #: (m,) int32 variables
    bounds: Array  #: (2, m) lower and upper, maybe infinite
    moved: Array  #: (m,) by which the bounds move in all ...
    moving_steps: Array  #: (m,) ... within so many steps
    stiffness: Array  #: (m,) eV per unit squared
    tempered: Array  #: (k,) int32 variables of the hills
    widths: Array  #: (k,)
    height: Array  #: () eV
    every: Array  #: () int64 steps between hills
    tempering: Array  #: (R,) eV: kB T (γ - 1); infinite: all hills as high


class Hills(NamedTuple):
    """What metadynamics has put down."""

    centers: Array  #: (R, C, k)
    heights: Array  #: (R, C) eV
    counts: Array  #: (R,) int32, how many there are


class Push(NamedTuple):
    """What the bias did in the last step."""

    values: Array  #: (R, d) of the variables
    energy: Array  #: (R,) eV
    forces: Array  #: (R, n, 3) eV/Å
    stress: Array  #: (R, 3, 3) eV/Å³


def check_bias(bias: Bias, atoms: ase.Atoms, settings: Sequence[Settings], steps: int) -> None:
    """Raise ConfigError, before time is spent, where the bias does not fit the atoms or the simulation."""
    collective.check(bias, atoms)
    hills = bias.metadynamics
    if hills is None:
        return
    if settings[0].ensemble == "nve":
        raise ConfigError("metadynamics needs a thermostat: choose nvt or npt, not nve")
    if settings[0].ramped:
        raise ConfigError("metadynamics needs a temperature and pressure that stay; leave the ramp out")
    if steps // hills.every > _MOST:
        raise ConfigError(f"{steps // hills.every:,} hills in {steps:,} steps are too many; raise metadynamics.every")


def make_bias(bias: Bias, atoms: ase.Atoms, settings: Sequence[Settings], steps: int) -> tuple[Shape, Rules, Hills]:
    """Of replicas with these settings that do so many `steps` in all, without hills yet."""
    names, given, hills = list(bias.variables), list(bias.restraints), bias.metadynamics
    spans = [period(variable) or np.inf for variable in bias.variables.values()]
    tempered = () if hills is None else hills.variables
    count = 0 if hills is None else steps // hills.every
    capacity = _BLOCK * 2 ** int(np.ceil(np.log2(max(1, -(-count // _BLOCK))))) if count else 0
    factor = np.inf if hills is None or hills.bias_factor is None else hills.bias_factor
    rules = Rules(
        short=collective.short_vectors(atoms.pbc, atoms.cell.array),
        period=np.array(spans, np.float64),
        restrained=np.array([names.index(restraint.variable) for restraint in given], np.int32),
        bounds=np.array([_bounds(restraint) for restraint in given], np.float64).reshape(-1, 2).T,
        moved=np.array([0.0 if r.move_to is None else r.move_to - r.center for r in given], np.float64),
        moving_steps=np.array([r.move_steps or 1 for r in given], np.float64),
        stiffness=np.array([r.stiffness for r in given], np.float64),
        tempered=np.array([names.index(name) for name in tempered], np.int32),
        widths=np.array(() if hills is None else hills.widths, np.float64),
        height=np.float64(0.0 if hills is None else hills.height),
        every=np.int64(2**62 if hills is None else hills.every),
        tempering=np.array([(factor - 1) * KB * each.temperature for each in settings], np.float64),
    )
    empty = Hills(
        np.zeros((len(settings), capacity, len(tempered))),
        np.zeros((len(settings), capacity)),
        np.zeros(len(settings), np.int32),
    )
    return Shape(tuple(bias.variables.values()), capacity), rules, empty


def _bounds(restraint: Restraint) -> tuple[float, float]:
    if restraint.center is not None:
        return restraint.center, restraint.center
    lower, upper = restraint.lower, restraint.upper
    return (-np.inf if lower is None else lower), (np.inf if upper is None else upper)


def push(
    shape: Shape, rules: Rules, hills: Hills, pbc, positions: Array, cell: Array, step: Array
) -> tuple[Push, Array, Array]:
    """At positions (R, n, 3) and cell (R, 3, 3), Å, in `step` (R,): push, (R,) work done on it, height of a hill that is due.

    The energy has that hill already. Stress is +(1/V) dE/dε.
    """

    def values_of(positions, strain):
        deformed = jnp.eye(3) + 0.5 * (strain + strain.swapaxes(1, 2))
        return jax.vmap(lambda x, h: collective.evaluate(shape.variables, pbc, rules.short, x, h))(
            positions @ deformed, cell @ deformed
        )

    values, pull = jax.vjp(values_of, positions, jnp.zeros_like(cell))
    held, restraining = jax.vmap(jax.value_and_grad(lambda s, at: _restraints(rules, s, at)))(values, step)
    before = jax.vmap(lambda s, at: _restraints(rules, s, at - 1))(values, step)
    piled, slopes = _hills(shape, rules, hills, values)
    due = (step % rules.every == 0) & (shape.capacity > 0)
    height = jnp.where(due, rules.height * jnp.exp(-piled / rules.tempering), 0.0)
    gradient, virial = pull(restraining.at[:, rules.tempered].add(slopes))
    volume = jnp.abs(jnp.linalg.det(cell))[:, None, None] if all(pbc) else jnp.inf
    return Push(values, held + piled + height, -gradient, virial / volume), held - before + height, height


def add_push(outcome: Outcome, push: Push) -> Outcome:
    """What potential and bias say together."""
    return Outcome(outcome.energy + push.energy, outcome.forces + push.forces, outcome.stress + push.stress)


def add_hills(rules: Rules, hills: Hills, values: Array, heights: Array) -> Hills:
    """With hills of `heights` (R,) at values (R, d); none where the height is zero."""
    if not hills.heights.shape[1]:
        return hills
    replica = jnp.arange(len(heights))
    place = jnp.where(heights > 0, hills.counts, hills.heights.shape[1])  # out of bounds: dropped
    return Hills(
        hills.centers.at[replica, place].set(values[:, rules.tempered], mode="drop"),
        hills.heights.at[replica, place].set(heights, mode="drop"),
        hills.counts + (heights > 0).astype(jnp.int32),
    )


def _restraints(rules: Rules, values: Array, step: Array) -> Array:
    """() eV of values (d,)."""
    lower, upper = rules.bounds + rules.moved * jnp.clip(step / rules.moving_steps, 0.0, 1.0)
    spans = rules.period[rules.restrained]
    periodic = jnp.isfinite(spans)
    middle = jnp.where(periodic, 0.5 * (lower + upper), 0.0)
    near = middle + _wrapped(values[rules.restrained] - middle, spans)
    excess = jnp.maximum(lower - near, 0.0) + jnp.maximum(near - upper, 0.0)
    return 0.5 * jnp.sum(rules.stiffness * excess**2)


def _hills(shape: Shape, rules: Rules, hills: Hills, values: Array) -> tuple[Array, Array]:
    """(R,) eV of all hills and (R, k) derivatives by the variables that they are on; so many blocks as are in use."""
    at = values[:, rules.tempered]
    spans = rules.period[rules.tempered]

    def block(index, sums):
        start = index * _BLOCK
        centers = jax.lax.dynamic_slice_in_dim(hills.centers, start, _BLOCK, 1)
        heights = jax.lax.dynamic_slice_in_dim(hills.heights, start, _BLOCK, 1)  # zero where there is none yet
        away = _wrapped(at[:, None] - centers, spans) / rules.widths
        energies = heights * jnp.exp(-0.5 * jnp.sum(away**2, axis=2))
        slopes = -jnp.sum(energies[..., None] * away, axis=1) / rules.widths
        return sums[0] + jnp.sum(energies, axis=1), sums[1] + slopes

    nothing = jnp.zeros(len(values)), jnp.zeros_like(at)
    if not shape.capacity:
        return nothing
    return jax.lax.fori_loop(0, -(-jnp.max(hills.counts) // _BLOCK), block, nothing)


def _wrapped(differences: Array, spans: Array) -> Array:
    """Differences (..., d), of periodic variables the shortest."""
    spans = jnp.where(jnp.isfinite(spans), spans, 0.0)
    return differences - spans * jnp.round(differences / jnp.where(spans > 0, spans, 1.0))


def start_push(shape: Shape, rules: Rules, hills: Hills, pbc, state: State, box: np.ndarray) -> Push:
    """Of states (R, ...) before their first step; puts no hill down. Raises ConfigError: the forces are not finite."""
    with jax.enable_x64(True):
        quiet = rules._replace(height=np.float64(0.0))
        call = jax.jit(lambda *arguments: push(shape, quiet, hills, pbc, *arguments)[0])
        found = jax.device_get(call(state.positions, box, state.step))
    if not np.isfinite(found.forces).all():
        raise ConfigError("the forces of the bias are not finite in the starting structure")
    return found


def to_arrays(push: Push, hills: Hills) -> dict[str, np.ndarray]:
    """Of one replica, for a state file."""
    count = int(hills.counts)
    held = {f"bias_{name}": value for name, value in push._asdict().items()}
    return held | {"bias_centers": hills.centers[:count], "bias_heights": hills.heights[:count]}


def from_arrays(state: dict[str, np.ndarray], shape: Shape, like: tuple[Push, Hills], source: object) -> tuple[Push, Hills]:
    """What `to_arrays` gave, for one replica. Raises DataError, with the source: it does not fit."""
    push, hills = like
    shapes = {f"bias_{name}": np.shape(value) for name, value in push._asdict().items()}
    heights = state.get("bias_heights")
    count = len(heights) if heights is not None and heights.ndim == 1 else 0
    shapes |= {"bias_centers": (count, hills.centers.shape[1]), "bias_heights": (count,)}
    for name, expected in shapes.items():
        if name not in state or state[name].shape != expected or state[name].dtype.kind != "f":
            raise DataError(f"{source}: {name!r} is missing or not as this bias has it; start without restart")
    if count > shape.capacity:
        raise DataError(f"{source}: holds {count} hills, more than this run can put down; start without restart")
    room = shape.capacity - count
    restored = Hills(
        np.pad(state["bias_centers"], ((0, room), (0, 0))), np.pad(state["bias_heights"], (0, room)), np.int32(count)
    )
    return Push(*(state[f"bias_{name}"] for name in Push._fields)), restored
