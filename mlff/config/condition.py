"""What `mlff design` does where a condition of a run is free: a trained model, a run, and a wanted average."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mlff.config.options import Section
from mlff.config.sampling import Sampling

_Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class MeanPressure(Section):
    """Mean pressure of the cell over a run, positive under compression, with its kinetic part."""

    kind: Literal["mean_pressure"]
    value: float = Field(description="what it is to be")
    unit: Literal["GPa", "kbar", "bar"] = Field("GPa", description="of value and error")
    error: float = Field(gt=0, description="error bar")


class FreeCondition(Section):
    """What of the run may change."""

    temperature: _Range | None = Field(
        None,
        description="K, from and to; the search begins with the temperature of `sampling`, in the cell of its structure",
    )
    volume: _Range | None = Field(
        None,
        description="Å³ of the cell, from and to; the search begins with the volume of the structure, at the temperature of "
        "`sampling`, and keeps the shape of the cell",
    )

    @property
    def name(self) -> str:
        """Of what is free."""
        return "volume" if self.temperature is None else "temperature"

    @property
    def range(self) -> tuple[float, float]:
        """K or Å³."""
        return self.volume if self.temperature is None else self.temperature

    @model_validator(mode="after")
    def _one_of_them(self):
        if (self.temperature is None) == (self.volume is None):
            raise ValueError("give either temperature or volume")
        if not self.range[0] < self.range[1]:
            raise ValueError(f"{self.name}: the first number must be less than the second")
        return self


class Condition(Section):
    """A temperature or a volume is looked for at which the average over a run has a given value."""

    model: str = Field(description="trained model file or directory of a run; relative to the config file")
    sampling: Sampling
    free: FreeCondition
    targets: Annotated[tuple[MeanPressure, ...], Field(min_length=1, max_length=1)] = Field(
        description="one average, with kind, value and error bar"
    )
    runs: int = Field(8, ge=1, description="runs at most, each at a condition nearer to the target")
    seed: int = Field(0, ge=0, description="seed of the runs")

    def files(self) -> list[str]:
        """The files that it names."""
        return [self.model, self.sampling.structure]

    @model_validator(mode="after")
    def _begins_inside(self):
        if self.sampling.bias is not None:
            raise ValueError("sampling.bias: runs of a mean pressure have no bias; leave it out")
        if self.sampling.pressure is not None:
            raise ValueError("sampling.pressure: the mean pressure is that of runs at constant volume; leave it out")
        start, free = self.sampling.temperature, self.free.temperature
        if free is not None and not free[0] <= start <= free[1]:
            raise ValueError(f"sampling.temperature: {start:g} K is outside of free.temperature, where the search begins")
        return self
