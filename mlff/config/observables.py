"""The observables that a refinement goes towards, each with its goal and error bar."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from mlff.config.options import Section
from mlff.config.sampling import Sampling

EnergyUnit = Literal["eV", "meV", "Hartree", "Rydberg", "kcal/mol", "kJ/mol"]
_CONSTANT = re.compile("C[1-6][1-6]")


class _Target(Section):
    weight: float = Field(1.0, gt=0, description="of its squared deviation in the sum")

    def files(self) -> dict[str, Any]:
        """The fields that name files."""
        return {
            name: value for name in ("structure", "structures", "file") if (value := getattr(self, name, None)) is not None
        }


class Frequencies(_Target):
    """Harmonic wavenumbers of a structure at its next minimum, in ascending order; an imaginary one is negative."""

    kind: Literal["frequencies"]
    structure: str = Field(description="file with the structure, which is relaxed with the model")
    frame: int = Field(-1, description="which structure of the file: 0 is the first, -1 the last")
    values: tuple[float, ...] | None = Field(
        None, min_length=1, description="wavenumbers, ascending: all, or those of `modes`"
    )
    file: str | None = Field(
        None, description="instead of values: text file with one number a line, or JSON of mlff vibrations"
    )
    modes: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="which modes, numbered from 0 with the lowest; default: all"
    )
    unit: Literal["cm^-1", "THz", "meV"] = Field("cm^-1", description="of values, file and error")
    error: float = Field(gt=0, description="error bar of each wavenumber")

    @model_validator(mode="after")
    def _one_source(self):
        if (self.values is None) == (self.file is None):
            raise ValueError("give either values or file")
        return self


class EnergyDifference(_Target):
    """Energy of the second structure less that of the first, as they stand in their files (not relaxed)."""

    kind: Literal["energy_difference"]
    structures: tuple[str, str] = Field(description="two files")
    frames: tuple[int, int] = Field((-1, -1), description="which structure of each file: 0 is the first, -1 the last")
    value: float = Field(description="energy difference")
    unit: EnergyUnit = Field("eV", description="of value and error")
    error: float = Field(gt=0, description="its error bar")


class Distribution(_Target):
    """Radial distribution function g(r) of one pair of elements in a periodic cell, averaged over a run."""

    kind: Literal["distribution"]
    pair: tuple[str, str] = Field(description="two elements, e.g. [O, H]")
    file: str = Field(
        description="text file: r in Å (evenly spaced middles of bins), g, and error bars unless `error` is given"
    )
    error: float | None = Field(None, gt=0, description="error bar of each g; default: the third column of the file")
    sampling: Sampling


class Pressure(_Target):
    """Mean pressure of a periodic cell over a run, positive under compression, with its kinetic part."""

    kind: Literal["pressure"]
    value: float = Field(description="pressure")
    unit: Literal["GPa", "kbar", "bar"] = Field("GPa", description="of value and error")
    error: float = Field(gt=0, description="its error bar")
    sampling: Sampling

    @model_validator(mode="after")
    def _constant_volume(self):
        return _without_pressure(self, "a mean pressure is")


class Density(_Target):
    """Mass over the mean volume of a periodic cell in a run at constant pressure."""

    kind: Literal["density"]
    value: float = Field(gt=0, description="density")
    unit: Literal["g/cm^3", "kg/m^3"] = Field("g/cm^3", description="of value and error")
    error: float = Field(gt=0, description="its error bar")
    sampling: Sampling

    @model_validator(mode="after")
    def _constant_pressure(self):
        if self.sampling.pressure is None:
            raise ValueError(
                "sampling.pressure is missing: in a cell of constant volume the density is what it is (1 bar: 1e-4)"
            )
        return self


class ElasticConstants(_Target):
    """Elastic constants of a crystal at its minimum, atoms relaxed at every strain: C11 to C66, order xx yy zz yz xz xy."""

    kind: Literal["elastic_constants"]
    structure: str = Field(description="file with the crystal, which is relaxed with the model")
    frame: int = Field(-1, description="which structure of the file: 0 is the first, -1 the last")
    relax_cell: bool = Field(True, description="whether the cell is relaxed too; false: it stays as it is in the file")
    values: dict[str, float] = Field(
        min_length=1, description="name -> value; C11, C12 and C44 of a cubic crystal are means of the equal ones"
    )
    unit: Literal["GPa", "kbar", "bar"] = Field("GPa", description="of values and error")
    error: float = Field(gt=0, description="error bar of each constant")

    @model_validator(mode="after")
    def _names(self):
        for name in self.values:
            if not _CONSTANT.fullmatch(name):
                raise ValueError(f"values: {name!r} is no elastic constant; they are C11 to C66, order xx yy zz yz xz xy")
        return self


class Volume(_Target):
    """Volume of a crystal per atom, at the minimum of atoms and cell: without temperature and pressure."""

    kind: Literal["volume"]
    structure: str = Field(description="file with the crystal, which is relaxed with the model")
    frame: int = Field(-1, description="which structure of the file: 0 is the first, -1 the last")
    value: float = Field(gt=0, description="Å³ per atom")
    error: float = Field(gt=0, description="its error bar, Å³ per atom")


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        raise ValueError(f"a range goes from a lower to an upper value, found {list(ends)}")
    return ends


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]


class FreeEnergyDifference(_Target):
    """Free energy of the second range of a collective variable less that of the first: -kT ln(p₂/p₁), p the probability to be there."""

    kind: Literal["free_energy_difference"]
    variable: str = Field(description="a name of sampling.bias; Å or degrees")
    first: Range = Field(description="lower and upper end of the first range")
    second: Range = Field(description="lower and upper end of the second range; of a dihedral up to 360 above the lower one")
    value: float = Field(description="free energy difference")
    unit: EnergyUnit = Field("eV", description="of value and error")
    error: float = Field(gt=0, description="its error bar")
    sampling: Sampling

    @model_validator(mode="after")
    def _named(self):
        if self.sampling.bias is None:
            raise ValueError("sampling.bias is missing: the file that says what the variable is (see mlff md --bias)")
        return self


class SelfDiffusion(_Target):
    """Self-diffusion coefficient of one element: a third of the integral of <v(0)·v(t)> over a window (Green-Kubo)."""

    kind: Literal["diffusion"]
    element: str = Field(description="which atoms, e.g. Ar")
    value: float = Field(gt=0, description="self-diffusion coefficient")
    unit: Literal["1e-9 m^2/s", "1e-5 cm^2/s", "Angstrom^2/ps"] = Field("1e-9 m^2/s", description="of value and error")
    error: float = Field(gt=0, description="its error bar")
    window: float = Field(1000.0, gt=0, description="length of the integral, fs")
    sampling: Sampling

    @model_validator(mode="after")
    def _plain(self):
        if self.sampling.bias is not None:
            raise ValueError("sampling.bias: diffusion is that of plain dynamics; leave it out")
        if not self.window >= self.sampling.timestep:
            raise ValueError("window: shorter than sampling.timestep")
        return _without_pressure(self, "diffusion is")


def _without_pressure(target: _Target, what: str) -> _Target:
    if target.sampling.pressure is not None:
        raise ValueError(f"sampling.pressure: {what} that of a run at constant volume; leave it out")
    return target


def _kind(value: Any) -> str | None:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


KINDS = {
    "frequencies": Frequencies,
    "energy_difference": EnergyDifference,
    "distribution": Distribution,
    "pressure": Pressure,
    "density": Density,
    "elastic_constants": ElasticConstants,
    "volume": Volume,
    "free_energy_difference": FreeEnergyDifference,
    "diffusion": SelfDiffusion,
}
Target = Annotated[
    Annotated[Frequencies, Tag("frequencies")]
    | Annotated[EnergyDifference, Tag("energy_difference")]
    | Annotated[Distribution, Tag("distribution")]
    | Annotated[Pressure, Tag("pressure")]
    | Annotated[Density, Tag("density")]
    | Annotated[ElasticConstants, Tag("elastic_constants")]
    | Annotated[Volume, Tag("volume")]
    | Annotated[FreeEnergyDifference, Tag("free_energy_difference")]
    | Annotated[SelfDiffusion, Tag("diffusion")],
    Discriminator(_kind),
]
