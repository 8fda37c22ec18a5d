"""What is simulated: ensemble, thermostat, time step, temperature, pressure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlff.basics.errors import ConfigError

Ensemble = Literal["nve", "nvt", "npt"]
Thermostat = Literal["langevin", "bussi", "nose_hoover"]
Barostat = Literal["isotropic", "full"]
BAROSTATS = ("isotropic", "full")
THERMOSTATS = ("langevin", "bussi", "nose_hoover")


@dataclass(frozen=True)
class Settings:
    """What is simulated. Times in fs, temperature in K, pressure in GPa.

    Temperature and pressure go in a straight line to their end values in the first `ramp_steps` steps and stay there.
    """

    ensemble: Ensemble = "nvt"
    temperature: float = 300.0
    timestep: float = 0.5
    thermostat: Thermostat = "langevin"  #: of the nvt ensemble
    tau: float = 100.0  #: relaxation time of the thermostat, fs (Langevin: 1/friction)
    pressure: float = 0.0  #: of the npt ensemble, GPa
    tau_pressure: float = 1000.0  #: relaxation time of the barostat, fs
    barostat: Barostat = "isotropic"  #: of the npt ensemble: the volume changes, or all lengths and angles of the cell
    temperature_end: float | None = None  #: None: the same all the time
    pressure_end: float | None = None  #: None: the same all the time
    ramp_steps: int = 0  #: after which temperature and pressure have their end values

    @property
    def keeps_rotation(self) -> bool:
        """Whether a molecule that does not rotate at the start never will."""
        return self.ensemble == "nve" or (self.ensemble == "nvt" and self.thermostat != "langevin")

    @property
    def ramped(self) -> bool:
        """Whether temperature or pressure change."""
        return (self.temperature_end, self.pressure_end) != (self.temperature, self.pressure)

    def target(self, step: int) -> tuple[float, float]:
        """Temperature (K) and pressure (GPa) that are asked for after so many steps."""
        share = min(step / self.ramp_steps, 1.0) if self.ramped else 0.0
        kelvin = self.temperature + (self.temperature_end - self.temperature) * share
        return kelvin, self.pressure + (self.pressure_end - self.pressure) * share

    def __post_init__(self):
        for name in ("temperature", "pressure"):
            if getattr(self, f"{name}_end") is None:
                object.__setattr__(self, f"{name}_end", getattr(self, name))
        if self.ensemble not in ("nve", "nvt", "npt"):
            raise ConfigError(f"unknown ensemble {self.ensemble!r}; known: nve, nvt, npt")
        if self.thermostat not in THERMOSTATS:
            raise ConfigError(f"unknown thermostat {self.thermostat!r}; known: {', '.join(THERMOSTATS)}")
        if self.barostat not in BAROSTATS:
            raise ConfigError(f"unknown barostat {self.barostat!r}; known: {', '.join(BAROSTATS)}")
        for name, unit in (("timestep", "fs"), ("tau", "fs"), ("tau_pressure", "fs")):
            if not (getattr(self, name) > 0 and np.isfinite(getattr(self, name))):
                raise ConfigError(f"{name} must be a positive number of {unit}, not {getattr(self, name)}")
        for kelvin in (self.temperature, self.temperature_end):
            if not (kelvin >= 0 and np.isfinite(kelvin)):
                raise ConfigError(f"the temperature must not be negative, found {kelvin} K")
            if self.ensemble != "nve" and kelvin == 0:
                raise ConfigError(f"{self.ensemble} needs a temperature above 0 K")
        for gigapascal in (self.pressure, self.pressure_end):
            if not np.isfinite(gigapascal):
                raise ConfigError(f"the pressure must be a number of GPa, not {gigapascal}")
        if self.ramped and self.ramp_steps < 1:
            raise ConfigError("a ramp of temperature or pressure needs at least one step; ask for more steps")
