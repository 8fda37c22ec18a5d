"""ASE's integrators behind one small interface that also knows its own state (for restarts)."""

from __future__ import annotations

import json
import operator
from dataclasses import dataclass
from typing import Literal

import ase
import numpy as np
from ase.constraints import FixCom
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.verlet import VelocityVerlet

from mlff.basics.errors import ConfigError, DataError
from mlff.basics.units import FEMTOSECOND, STRESS

Ensemble = Literal["nve", "nvt", "npt"]
Thermostat = Literal["langevin", "bussi"]


@dataclass(frozen=True)
class Settings:
    """What is simulated. Times in fs, temperature in K, pressure in GPa."""

    ensemble: Ensemble = "nvt"
    temperature: float = 300.0
    timestep: float = 0.5
    thermostat: Thermostat = "langevin"  #: of the nvt ensemble
    tau: float = 100.0  #: relaxation time of the thermostat, fs (Langevin: 1/friction)
    pressure: float = 0.0  #: of the npt ensemble, GPa
    tau_pressure: float = 1000.0  #: relaxation time of the barostat, fs

    @property
    def keeps_rotation(self) -> bool:
        """Whether a molecule that does not rotate at the start never will."""
        return self.ensemble == "nve" or (self.ensemble == "nvt" and self.thermostat == "bussi")

    def __post_init__(self):
        if self.ensemble not in ("nve", "nvt", "npt"):
            raise ConfigError(f"unknown ensemble {self.ensemble!r}; known: nve, nvt, npt")
        if self.thermostat not in ("langevin", "bussi"):
            raise ConfigError(f"unknown thermostat {self.thermostat!r}; known: langevin, bussi")
        for name, unit in (("timestep", "fs"), ("tau", "fs"), ("tau_pressure", "fs")):
            if not (getattr(self, name) > 0 and np.isfinite(getattr(self, name))):
                raise ConfigError(f"{name} must be a positive number of {unit}, not {getattr(self, name)}")
        if not (self.temperature >= 0 and np.isfinite(self.temperature)):
            raise ConfigError(f"the temperature must not be negative, found {self.temperature} K")
        if self.ensemble != "nve" and self.temperature == 0:
            raise ConfigError(f"{self.ensemble} needs a temperature above 0 K")


class Integrator:
    """One time step after another on `atoms`; `state` and `restore` carry everything that is not in the atoms."""

    def __init__(self, dynamics, rng: np.random.Generator, held: tuple[str, ...], conserved):
        self._dynamics = dynamics
        self._rng = rng
        self._held = held
        self._conserved = conserved

    def step(self) -> None:
        self._dynamics.step()

    def conserved(self) -> float | None:
        """The quantity that an exact integration would keep, eV; None if the ensemble has none."""
        return None if self._conserved is None else float(self._conserved())

    def state(self) -> dict[str, np.ndarray]:
        """Arrays (no pickles): thermostat and barostat variables and the random number generator (as JSON)."""
        arrays = {name: np.array(operator.attrgetter(name)(self._dynamics)) for name in self._held}
        return arrays | {"rng": np.array(json.dumps(self._rng.bit_generator.state))}

    def restore(self, state: dict[str, np.ndarray], source: object = "state") -> None:
        """Take up what `state` gave. Raises DataError, with `source`: something is missing or of another shape."""
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


def make_integrator(atoms: ase.Atoms, settings: Settings, rng: np.random.Generator, freedom: int) -> Integrator:
    """The integrator of `settings` for `atoms` (with momenta and a calculator) of `freedom` degrees of freedom.

    Langevin puts a FixCom constraint on unconstrained atoms. Raises ConfigError where the ensemble does not fit the atoms.
    """
    dt = settings.timestep * FEMTOSECOND
    if settings.ensemble == "nve":
        dynamics = VelocityVerlet(atoms, dt)
        return Integrator(dynamics, rng, (), lambda: atoms.get_potential_energy() + atoms.get_kinetic_energy())
    if settings.ensemble == "npt":
        return _npt(atoms, settings, rng, freedom)
    if settings.thermostat == "langevin":
        if not atoms.constraints and len(atoms) > 1:
            atoms.set_constraint(FixCom())
        friction = 1.0 / (settings.tau * FEMTOSECOND)
        dynamics = Langevin(atoms, dt, temperature_K=settings.temperature, friction=friction, fixcm=False, rng=rng)
        return Integrator(dynamics, rng, (), None)
    dynamics = Bussi(atoms, dt, temperature_K=settings.temperature, taut=settings.tau * FEMTOSECOND, rng=rng)
    dynamics.ndof = freedom
    dynamics.target_kinetic_energy = 0.5 * dynamics.temp * freedom

    def conserved() -> float:
        return atoms.get_potential_energy() + atoms.get_kinetic_energy() - dynamics.transferred_energy

    return Integrator(dynamics, rng, ("transferred_energy",), conserved)


def _npt(atoms: ase.Atoms, settings: Settings, rng: np.random.Generator, freedom: int) -> Integrator:
    """Martyna-Tobias-Klein: isotropic changes of the cell, Nosé-Hoover chains on atoms and cell."""
    if not atoms.pbc.all():
        raise ConfigError(f"npt needs a cell that is periodic in three directions, found pbc={atoms.pbc.tolist()}")
    if atoms.constraints:
        raise ConfigError("npt does not work with constraints; remove them or use nvt")
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
    return Integrator(dynamics, rng, ("_eps", "_p_eps", "_volume0", "_cell0", *chains), dynamics.get_conserved_energy)
