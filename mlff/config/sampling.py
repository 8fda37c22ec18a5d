"""The runs of molecular dynamics that averages are taken over."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from mlff.config.options import Section


class Sampling(Section):
    """Molecular dynamics (nvt, Langevin; npt with `pressure`) whose frames an average is taken over. Targets with the same one
    share a run.

    With `bias` or `hills` rare places are visited too; averages are those without them.
    """

    structure: str = Field(description="file with the structure that the run starts from; relative to the config file")
    frame: int = Field(-1, description="which structure of the file: 0 is the first, -1 the last")
    temperature: float = Field(gt=0, description="K")
    timestep: float = Field(1.0, gt=0, description="fs")
    tau: float = Field(100.0, gt=0, description="relaxation time of the thermostat, fs")
    pressure: float | None = Field(
        None, description="GPa that the volume adapts to (npt), positive under compression; none: constant volume"
    )
    tau_pressure: float = Field(1000.0, gt=0, description="relaxation time of the barostat, fs, as of `mlff md`")
    equilibration: int = Field(
        2000, ge=0, description="steps before the first frame; half of them again after each re-sampling"
    )
    frames: int = Field(100, ge=2, description="frames of a run")
    every: int = Field(50, ge=1, description="steps between frames")
    least: float = Field(
        0.6,
        gt=0,
        lt=1,
        description="share of the frames that must still count after reweighting; below it a new run is made",
    )
    bias: str | None = Field(
        None, description="variables and restraints that stay, a file as of `mlff md --bias`; none: plain dynamics"
    )
    hills: str | None = Field(
        None, description="hills of a finished metadynamics (.hills) on variables of `bias`, which stay as they are"
    )

    @model_validator(mode="after")
    def _variables(self):
        if self.hills is not None and self.bias is None:
            raise ValueError("hills needs bias, the file that says what their variables are")
        if self.bias is not None and self.pressure is not None:
            raise ValueError("runs with a bias have a constant volume; leave pressure out")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `run_md`."""
        common = {"temperature": self.temperature, "timestep": self.timestep, "tau": self.tau}
        if self.pressure is None:
            return common | {"ensemble": "nvt"}
        return common | {"ensemble": "npt", "pressure": self.pressure, "tau_pressure": self.tau_pressure}
