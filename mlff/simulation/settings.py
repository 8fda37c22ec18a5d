"""What is simulated: ensemble, thermostat, time step, temperature, pressure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlff.basics.errors import ConfigError

Ensemble = Literal["nve", "nvt", "npt"]
Thermostat = Literal["langevin", "bussi", "nose_hoover"]
THERMOSTATS = ("langevin", "bussi", "nose_hoover")


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
        return self.ensemble == "nve" or (self.ensemble == "nvt" and self.thermostat != "langevin")

    def __post_init__(self):
        if self.ensemble not in ("nve", "nvt", "npt"):
            raise ConfigError(f"unknown ensemble {self.ensemble!r}; known: nve, nvt, npt")
        if self.thermostat not in THERMOSTATS:
            raise ConfigError(f"unknown thermostat {self.thermostat!r}; known: {', '.join(THERMOSTATS)}")
        for name, unit in (("timestep", "fs"), ("tau", "fs"), ("tau_pressure", "fs")):
            if not (getattr(self, name) > 0 and np.isfinite(getattr(self, name))):
                raise ConfigError(f"{name} must be a positive number of {unit}, not {getattr(self, name)}")
        if not (self.temperature >= 0 and np.isfinite(self.temperature)):
            raise ConfigError(f"the temperature must not be negative, found {self.temperature} K")
        if self.ensemble != "nve" and self.temperature == 0:
            raise ConfigError(f"{self.ensemble} needs a temperature above 0 K")
