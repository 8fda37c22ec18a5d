"""Dynamics by ASE's integrators, with any calculator and constraint."""

from __future__ import annotations

import json
import operator

import ase
import numpy as np
from ase.constraints import FixBondLengths, FixCom
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.verlet import VelocityVerlet

from mlff.basics.errors import ConfigError, DataError
from mlff.basics.units import FEMTOSECOND, STRESS
from mlff.simulation.constraints import move_freely
from mlff.simulation.guard import Guard
from mlff.simulation.settings import Settings


class AseEngine:
    """One structure in ASE's loop; `atoms` hold the geometry after every `advance`."""

    name = "ase"

    def __init__(self, atoms: ase.Atoms, dynamics, rng: np.random.Generator, held: tuple[str, ...], conserved, guard: Guard):
        """`held`: attributes of `dynamics` that a restart needs; `conserved`: None, or a function of nothing that gives eV."""
        self.atoms = atoms
        self.step = 0  #: steps done in all
        self._dynamics = dynamics
        self._rng = rng
        self._held = held
        self._conserved = conserved
        self._guard = guard

    def begin(self, steps: int) -> None:
        """Nothing: steps are taken when they are asked for."""

    def advance(self, steps: int) -> None:
        """At least one step and at most `steps`. Raises SimulationError: a limit is broken (the step that broke it is taken)."""
        self._dynamics.step()
        self.step += 1
        self._guard.check_step(self.atoms.get_forces(md=True), self._guard.temperature(self.atoms))

    def forces(self) -> np.ndarray:
        """(n, 3) eV/Å, on fixed atoms too."""
        return self.atoms.get_forces(apply_constraint=False)

    def energy(self) -> float:
        """Potential energy, eV."""
        return float(self.atoms.get_potential_energy())

    def pressure(self) -> float | None:
        """GPa, kinetic part included; None without three periodic directions or if the calculator has no stress."""
        if not self.atoms.pbc.all() or "stress" not in getattr(self.atoms.calc, "implemented_properties", ("stress",)):
            return None
        stress = self.atoms.get_stress(voigt=False, include_ideal_gas=True, apply_constraint=False)
        return float(-np.trace(stress) / 3 / STRESS["GPa"])

    def conserved(self) -> float | None:
        """The quantity that an exact integration would keep, eV; None if the ensemble has none."""
        return None if self._conserved is None else float(self._conserved())

    def bias(self) -> dict[str, float]:
        """Nothing: it has no bias."""
        return {}

    def hills(self) -> None:
        """None."""
        return None

    def state(self) -> dict[str, np.ndarray]:
        """Arrays (no pickles) that a restart needs besides the geometry: thermostat, barostat, random numbers, neighbour list."""
        arrays = {name: np.array(operator.attrgetter(name)(self._dynamics)) for name in self._held}
        neighbors = getattr(self.atoms.calc, "neighbor_state", dict)()
        arrays |= {f"neighbors_{name}": value for name, value in neighbors.items()}
        return arrays | {"rng": np.array(json.dumps(self._rng.bit_generator.state))}

    def restore(self, step: int, state: dict[str, np.ndarray], source: object) -> None:
        """Take up what `state` gave, but the neighbour list. Raises DataError, with `source`: it does not fit."""
        self.step = step
        for name in self._held:
            owner, _, attribute = name.rpartition(".")
            target = operator.attrgetter(owner)(self._dynamics) if owner else self._dynamics
            value, now = state.get(name), np.asarray(getattr(target, attribute))
            if value is None or value.shape != now.shape or value.dtype.kind != "f":
                raise DataError(f"{source}: {name!r} is missing or not as this ensemble has it; start without restart")
            setattr(target, attribute, value.copy() if value.ndim else value.item())
        try:
            self._rng.bit_generator.state = json.loads(str(state["rng"]))
        except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
            raise DataError(
                f"{source}: 'rng' is not the state of a random number generator; start without restart"
            ) from None


def make_engine(atoms: ase.Atoms, settings: Settings, guard: Guard, rng: np.random.Generator, freedom: int) -> AseEngine:
    """The engine of `settings` for `atoms` (with momenta and a calculator) of `freedom` degrees of freedom.

    Langevin puts a FixCom constraint on atoms that move freely. Raises ConfigError where the ensemble does not fit the atoms.
    """
    _check_bonds(atoms)
    dt, tau, kelvin = settings.timestep * FEMTOSECOND, settings.tau * FEMTOSECOND, settings.temperature
    if settings.ensemble == "npt":
        dynamics, held, conserved = _npt(atoms, settings, freedom)
    elif settings.ensemble == "nve":
        dynamics, held = VelocityVerlet(atoms, dt), ()

        def conserved() -> float:
            return atoms.get_potential_energy() + atoms.get_kinetic_energy()
    elif settings.thermostat == "langevin":
        if move_freely(atoms) and len(atoms) > 1:
            atoms.set_constraint([*atoms.constraints, FixCom()])
        dynamics = Langevin(atoms, dt, temperature_K=kelvin, friction=1.0 / tau, fixcm=False, rng=rng)
        held, conserved = (), None
    elif settings.thermostat == "bussi":
        dynamics = Bussi(atoms, dt, temperature_K=kelvin, taut=tau, rng=rng)
        dynamics.ndof = freedom
        dynamics.target_kinetic_energy = 0.5 * dynamics.temp * freedom
        held = ("transferred_energy",)

        def conserved() -> float:
            return atoms.get_potential_energy() + atoms.get_kinetic_energy() - dynamics.transferred_energy
    else:
        dynamics, held, conserved = _nose_hoover(atoms, settings, freedom)
    return AseEngine(atoms, dynamics, rng, held, conserved, guard)


def _check_bonds(atoms: ase.Atoms) -> None:
    """Raise ConfigError where another constraint would undo what keeps a distance: ASE applies them one after the other."""
    held = {int(atom) for each in atoms.constraints if isinstance(each, FixBondLengths) for atom in each.get_indices()}
    for constraint in atoms.constraints:
        if held and not isinstance(constraint, (FixBondLengths, FixCom)) and hasattr(constraint, "get_indices"):
            for atom in constraint.get_indices():
                if int(atom) in held:
                    name = type(constraint).__name__
                    raise ConfigError(f"the engine ase cannot keep distances of atom {atom}, which {name} holds too")


def _nose_hoover(atoms: ase.Atoms, settings: Settings, freedom: int):
    if atoms.constraints:
        raise ConfigError("the thermostat nose_hoover of the engine ase does not work with constraints; take another one")
    dynamics = NoseHooverChainNVT(
        atoms, settings.timestep * FEMTOSECOND, temperature_K=settings.temperature, tdamp=settings.tau * FEMTOSECOND
    )
    dynamics._thermostat._kT *= freedom / (3 * len(atoms))  # ASE counts the center of mass, which rests
    return dynamics, ("_thermostat._eta", "_thermostat._p_eta"), dynamics.get_conserved_energy


def _npt(atoms: ase.Atoms, settings: Settings, freedom: int):
    """Martyna-Tobias-Klein: isotropic changes of the cell, Nosé-Hoover chains on atoms and cell."""
    dynamics = IsotropicMTKNPT(
        atoms,
        settings.timestep * FEMTOSECOND,
        temperature_K=settings.temperature,
        pressure_au=settings.pressure * STRESS["GPa"],
        tdamp=settings.tau * FEMTOSECOND,
        pdamp=settings.tau_pressure * FEMTOSECOND,
    )
    dynamics._thermostat._kT *= freedom / (3 * len(atoms))  # ASE counts the center of mass, which rests
    chains = ("_thermostat._eta", "_thermostat._p_eta", "_barostat._xi", "_barostat._p_xi")
    return dynamics, ("_eps", "_p_eps", "_volume0", "_cell0", *chains), dynamics.get_conserved_energy
