"""With which settings a run begins or goes on, and whether the structure is that of the earlier run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import ase
import numpy as np
from ase.constraints import FixBondLengths

from mlff.basics.errors import ConfigError, DataError
from mlff.config.bias import Bias
from mlff.data.structure import Structure
from mlff.simulation.constraints import describe, fix_lengths, free_to_move
from mlff.simulation.jax_engine import obstacle
from mlff.simulation.record import check_state
from mlff.simulation.settings import Settings

Engine = Literal["auto", "jax", "ase"]
_LONGEST = 2.0  #: fs for 1 amu: the stiffest bonds of hydrogen, of 9 to 10 fs a period, are then lost
_HELD = (
    4.0  #: times its mass: what limits the step of hydrogen whose bond is kept, the bending of which has twice the period
)
_SINGLE = (
    "interval",
    "seed",
    "keep_velocities",
    "constraints",
    "engine",
    "bias",
)  #: of a state, besides what `check_state` knows


def with_ramp(given: dict[str, object], steps: int) -> dict[str, object]:
    """`given`, where a temperature or pressure to end at is among it with the steps of the run as length of the ramp."""
    ramped = given["temperature_end"] is not None or given["pressure_end"] is not None
    return given | {"ramp_steps": steps if ramped else None}


def choose_settings(given: dict[str, object], others: Settings) -> Settings:
    """`given`, where not None, and for the rest `others`. Raises ConfigError: something given has no effect."""
    told = {name: value for name, value in given.items() if value is not None}
    constant = {f"{name}_end": None for name in ("temperature", "pressure") if name in told}
    settings = replace(others, **constant | told)
    of = {"npt": ("pressure", "pressure_end", "tau_pressure", "barostat"), "nvt": ("thermostat",)}
    of["nvt or npt"] = ("tau", "temperature_end")
    for ensembles, names in of.items():
        for name in names:
            if given[name] is not None and settings.ensemble not in ensembles.split(" or "):
                raise ConfigError(
                    f"{name} has no effect in the ensemble {settings.ensemble}: leave it out, or choose {ensembles}"
                )
    return settings


def check_ensemble(atoms: ase.Atoms, settings: Settings) -> None:
    """Raise ConfigError where ensemble or time step do not fit the atoms."""
    if settings.ensemble == "npt" and not atoms.pbc.all():
        raise ConfigError(f"npt needs a cell that is periodic in three directions, found pbc={atoms.pbc.tolist()}")
    if settings.ensemble == "npt" and atoms.constraints:
        raise ConfigError("npt does not work with constraints; remove them or use nvt")
    moving, masses = free_to_move(atoms), atoms.get_masses()
    for constraint in atoms.constraints:
        if isinstance(constraint, FixBondLengths):
            held = [atom for atom in np.unique(constraint.pairs) if atoms.numbers[atom] == 1]
            masses[held] *= _HELD  # does not vibrate along its bond any more
    if not moving.any():
        return
    lightest = int(np.flatnonzero(moving)[masses[moving].argmin()])
    mass = float(masses[lightest])
    longest = _LONGEST * np.sqrt(mass)
    if settings.timestep > longest:
        which = f"{atoms.symbols[lightest]} {lightest} of {atoms.get_masses()[lightest]:.3g} amu"
        raise ConfigError(
            f"a time step of {settings.timestep:g} fs is too long for {which}: "
            f"take {longest / 4:.2g} fs, at most {longest:.2g}"
        )


def check_engine(name: str, reason: str | None, settings: Settings) -> None:
    """Raise ConfigError where an engine lacks what is asked for; `reason`: why it is not the other one."""
    if name == "ase" and (settings.ramped or settings.barostat != "isotropic"):
        what = "ramps of temperature or pressure" if settings.ramped else "barostat of the full cell"
        why = "" if reason is None else f", and jax cannot do this: {reason}"
        raise ConfigError(f"the engine ase has no {what}{why}")


def check_chance(settings: Settings, temperature: float | None, seed: int | None, keep_velocities: bool) -> None:
    """Raise ConfigError if a temperature or seed is given that nothing depends on."""
    if not keep_velocities:
        return
    if temperature is not None and settings.ensemble == "nve":
        raise ConfigError("temperature has no effect in the ensemble nve with the velocities kept: leave one of them out")
    if seed is not None and settings.ensemble == "nve":
        raise ConfigError(f"seed has no effect in the ensemble {settings.ensemble} with the velocities kept: leave it out")


def earlier_settings(
    state: dict[str, np.ndarray], path: Path, given: dict[str, object], steps: int, seed: int | None, keep_velocities: bool
) -> Settings:
    """The settings to go on with. Raises DataError: `state` is no state; ConfigError: it does not go on with what is given."""
    names = tuple(f"setting_{name}" for name in given)
    check_state(state, ("step", "frames", "degrees_of_freedom", *_SINGLE, *names), path)
    try:
        before = Settings(**{name: state[f"setting_{name}"].item() for name in given})
    except (ConfigError, TypeError):
        raise DataError(f"{path}: the settings of the earlier run are damaged; start without restart") from None
    told = {name: value for name, value in given.items() if value is not None and value != getattr(before, name)}
    fixed = ["ensemble", "thermostat", "barostat", "timestep", "temperature_end", "pressure_end"]
    fixed += ["temperature"] if before.ensemble == "nve" or before.ramped else []
    fixed += ["pressure"] if before.ramped else []
    for name in fixed:
        if name in told:
            was = getattr(before, name)
            raise DataError(f"{path}: the earlier run had {name} {was}, not {told[name]}; leave {name} out")
    first, done = int(state["seed"]), int(state["step"])
    if seed is not None and seed != first:
        raise ConfigError(f"{path}: the random numbers of the earlier run go on, which had seed {first}; leave seed out")
    if keep_velocities and not state["keep_velocities"]:
        raise ConfigError(f"{path}: the velocities of the earlier run go on, which were drawn; leave keep_velocities out")
    if steps < done:
        raise ConfigError(f"{path}: the earlier run has done {done} steps; ask for more than that in all, not {steps}")
    return choose_settings(given, before)


def choose_engine(
    wanted: Engine, calculator, atoms: ase.Atoms, state: dict[str, np.ndarray] | None, path: Path | None
) -> tuple[str, str | None]:
    """jax or ase, after a restart that of the earlier run, and why it is ase where nothing was said.

    Raises ConfigError: the engine that is wanted cannot do it; DataError: nor can that of the earlier run, or it was another.
    """
    if wanted not in ("auto", "jax", "ase"):
        raise ConfigError(f"unknown engine {wanted!r}; known: auto, jax, ase")
    before = None if state is None else str(state["engine"])
    if before not in (None, "jax", "ase"):
        raise DataError(f"{path}: the settings of the earlier run are damaged; start without restart")
    if before is not None and wanted not in ("auto", before):
        raise DataError(f"{path}: the earlier run had engine {before}, not {wanted}; leave engine out")
    if (before or wanted) == "ase":
        return "ase", None
    reason = obstacle(calculator, atoms)
    if reason is None:
        return "jax", None
    if before is not None:
        raise DataError(f"{path}: the engine jax of the earlier run cannot go on: {reason}; start without restart")
    if wanted == "jax":
        raise ConfigError(f"the engine jax cannot do this: {reason}; take engine ase")
    return "ase", reason


def describe_bias(
    bias: Bias | None, state: dict[str, np.ndarray] | None, path: Path | None, engine: str, reason
) -> np.ndarray:
    """The bias as text for the state. Raises ConfigError: the engine has none; DataError: that of the earlier run was another."""
    if bias is not None and engine != "jax":
        why = "" if reason is None else f", which cannot do this: {reason}"
        raise ConfigError(f"a bias needs the engine jax{why}; with engine ase, take PLUMED through ASE")
    text = np.array("" if bias is None else bias.description())
    if state is not None and str(state["bias"]) != str(text):
        had = "another bias" if str(state["bias"]) else "no bias"
        raise DataError(f"{path}: the earlier run had {had}; give it the same, or start without restart")
    return text


def identity(atoms: ase.Atoms) -> dict[str, np.ndarray]:
    """What a structure must have in common with the one that the run began with, in the order in which it is told."""
    return {
        "pbc": atoms.pbc.copy(),
        "masses": atoms.get_masses(),
        "initial_charges": atoms.get_initial_charges(),
        "initial_magmoms": atoms.get_initial_magnetic_moments(),
        "tags": atoms.get_tags(),
        "constraints": np.array(describe(atoms)),
    }


def place(atoms: ase.Atoms, state: dict[str, np.ndarray], settings: Settings, path: Path) -> None:
    """Put the atoms where the state says; DataError if it belongs to another structure."""
    if not np.array_equal(state["numbers"], atoms.numbers):
        raise DataError(f"{path}: the state belongs to other atoms")
    now = {} if settings.ensemble == "npt" else {"cell": atoms.cell.array.copy()}
    atoms.set_cell(state["cell"])
    atoms.positions = state["start_positions"]
    fix_lengths(atoms)
    for name, value in (now | identity(atoms)).items():
        if not np.array_equal(state.get(name), value):
            raise DataError(
                f"{path}: the earlier run had other {name.replace('_', ' ')} than the structure has now; give it the same "
                "structure, or start without restart"
            )
    atoms.positions = state["positions"]
    atoms.set_momenta(state["momenta"], apply_constraint=False)
    Structure.from_atoms(atoms, source=str(path))
