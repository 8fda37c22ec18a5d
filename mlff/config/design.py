"""What `mlff design` does: a trained model, a structure, what of it may change, and wanted properties; read from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mlff.config.composition import MEANS, Composition, FreeComposition
from mlff.config.condition import Condition, FreeCondition, MeanPressure
from mlff.config.load import Kinds, read_yaml, relative_to, validated
from mlff.config.options import Section

Component = Literal["xx", "yy", "zz", "yz", "xz", "xy"]
EnergyUnit = Literal["eV", "meV", "Hartree", "Rydberg", "kcal/mol", "kJ/mol"]
StressUnit = Literal["GPa", "kbar", "bar"]


class _Named(Section):
    """A section that may name files."""

    def files(self) -> list[str]:
        """The files that it names."""
        return [value for name in ("model", "structure") if (value := getattr(self, name, None)) is not None]


class _Number(_Named):
    """A single number that is wanted: itself, or by how much it is to change."""

    value: float | None = Field(None, description="what it is to be")
    change: float | None = Field(
        None, description="instead of value: what it is to be less what it is at the minimum of the energy"
    )

    @model_validator(mode="after")
    def _one_of_them(self):
        if (self.value is None) == (self.change is None):
            raise ValueError("give either value or change")
        return self


class EnergyGap(_Number):
    """Energy by another model less that by the first one, at the same geometry: of two charges, spin states or methods."""

    kind: Literal["energy_gap"]
    model: str = Field(description="the other model, file or directory of a run")
    unit: EnergyUnit = Field("eV", description="of value, change and error")
    error: float = Field(gt=0, description="error bar")


class EnergyDifference(_Number):
    """Energy of the structure less that of another one of the same atoms, which shares the cell's strain and else stays."""

    kind: Literal["energy_difference"]
    structure: str = Field(description="file with the other structure")
    frame: int = Field(-1, description="which structure of the file: 0 is the first, -1 the last")
    unit: EnergyUnit = Field("eV", description="of value, change and error")
    error: float = Field(gt=0, description="error bar")


class StaticPressure(_Number):
    """Pressure at rest, without kinetic part: a third of the trace of the stress, positive under compression."""

    kind: Literal["pressure"]
    unit: StressUnit = Field("GPa", description="of value, change and error")
    error: float = Field(gt=0, description="error bar")


class Stress(_Named):
    """Stress at rest, positive under tension."""

    kind: Literal["stress"]
    values: Annotated[tuple[float, ...], Field(min_length=6, max_length=6)] = Field(
        description="components xx, yy, zz, yz, xz, xy"
    )
    unit: StressUnit = Field("GPa", description="of values and error")
    error: float = Field(gt=0, description="error bar of each component")


def _kind(value: Any) -> str | None:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


KINDS = {"energy_gap": EnergyGap, "energy_difference": EnergyDifference, "pressure": StaticPressure, "stress": Stress}
Wanted = Annotated[
    Annotated[EnergyGap, Tag("energy_gap")]
    | Annotated[EnergyDifference, Tag("energy_difference")]
    | Annotated[StaticPressure, Tag("pressure")]
    | Annotated[Stress, Tag("stress")],
    Discriminator(_kind),
]


class Free(Section):
    """What of the structure may change."""

    atoms: Literal["all", "none"] | tuple[Annotated[int, Field(ge=0)], ...] = Field(
        "all", description="all, none, or the numbers of the atoms that may move; those of FixAtoms never do"
    )
    cell: Literal["none", "volume", "all"] | tuple[Component, ...] = Field(
        "none", description="none, volume, all, or which components of the strain: [xx, yy]"
    )
    relax: bool | None = Field(
        None,
        description="whether the atoms come to rest in each cell, rather than being moved towards the target; "
        "default: yes where the cell may change",
    )

    @property
    def relaxed(self) -> bool:
        """Whether atoms follow the cell."""
        return self.cell != "none" and self.atoms != "none" and self.relax is not False

    @model_validator(mode="after")
    def _something(self):
        if self.cell in ("none", ()) and self.atoms in ("none", ()):
            raise ValueError("neither atoms nor cell may change; set free.atoms or free.cell")
        if self.cell in ("none", ()) and self.relax:
            raise ValueError("relax: atoms can only come to rest where something else is free; set free.cell")
        return self


class Design(_Named):
    """A structure is looked for that has given properties, and of all such structures the least energy nearby."""

    model: str = Field(description="trained model file or directory of a run; relative to the config file")
    structure: str = Field(description="file with the structure to start from, which is relaxed first")
    frame: int = Field(-1, description="which structure of the file: 0 is the first, -1 the last")
    free: Free = Free()
    targets: tuple[Wanted, ...] = Field(
        min_length=1, description="properties, each with kind, value or change, and error bar"
    )
    energy_limit: float | None = Field(
        None, gt=0, description="eV of the whole structure above its minimum, at most; default: 0.05 eV per atom"
    )
    starts: int = Field(4, ge=1, description="searches; all but the first begin with displaced atoms and a strained cell")
    displacement: float = Field(
        0.1, gt=0, description="of those, Å (standard deviation of each coordinate; of the strain 1 %)"
    )
    seed: int = Field(0, ge=0, description="seed of the displacements")

    @model_validator(mode="after")
    def _stress_at_rest(self):
        of_cell = [one.kind for one in self.targets if one.kind in ("pressure", "stress")]
        if of_cell and self.free.cell in ("none", ()):
            raise ValueError(f"free.cell: a target of {of_cell[0]} needs a cell that may change: volume, all or components")
        if of_cell and self.free.atoms != "none" and not self.free.relaxed:
            raise ValueError(
                f"free.relax: for a target of {of_cell[0]} the atoms must come to rest (true) or stay (free.atoms: none), "
                "else they are displaced to make it"
            )
        return self


_TARGETS = Kinds("targets", 2, "kind", KINDS)
_AVERAGES = Kinds("targets", 2, "kind", {"mean_pressure": MeanPressure})
_MEANS = Kinds("targets", 2, "kind", MEANS)


def load_design(path: str | Path, overrides: list[str] = ()) -> Design | Condition | Composition:
    """Read a YAML file and apply `key.sub=value` overrides; names of files become relative to the file.

    Raises ConfigError: no such file, not YAML, unknown or wrong key (with its path).
    """
    path = Path(path)
    raw = read_yaml(path, "model: ..., structure: ..., targets: ...", overrides)
    return make_design(raw, str(path), path.parent)


def make_design(raw: dict[str, Any], source: str = "design", base: Path | None = None) -> Design | Condition | Composition:
    """Validate a plain dictionary, where temperature or volume is free a `Condition`, where the composition is, a `Composition`; with `base`,
    files are relative to it.

    Raises ConfigError.
    """

    def rebased(section: Section, where: str) -> Section:
        names = [name for name in ("model", "structure") if getattr(section, name, None) is not None]
        if base is None:
            return section
        return section.model_copy(update={name: relative_to(base, getattr(section, name), source, where) for name in names})

    free = raw.get("free")
    if isinstance(free, dict) and free.keys() & FreeCondition.model_fields.keys():
        condition = validated(Condition, raw, source, _AVERAGES)
        sampling = rebased(condition.sampling, "sampling.structure")
        return rebased(condition, "model").model_copy(update={"sampling": sampling})
    if isinstance(free, dict) and free.keys() & FreeComposition.model_fields.keys():
        return rebased(validated(Composition, raw, source, _MEANS), "model, structure")
    config = validated(Design, raw, source, _TARGETS)
    targets = tuple(rebased(one, f"targets.{number}") for number, one in enumerate(config.targets))
    return rebased(config, "model, structure").model_copy(update={"targets": targets})
