"""What `mlff design` does where the composition of a mixture is free: a trained model, a lattice, two elements, and a wanted mean."""

from __future__ import annotations

from typing import Annotated, Literal

from ase.data import atomic_numbers
from pydantic import AfterValidator, Discriminator, Field, Tag

from mlff.config.options import Section


class MeanVolume(Section):
    """Volume per atom, at rest."""

    kind: Literal["volume"]
    value: float = Field(gt=0, description="Å³ per atom")
    error: float = Field(gt=0, description="error bar, Å³ per atom")
    unit: Literal["Angstrom^3"] = Field("Angstrom^3", description="of value and error, per atom")


class MeanDensity(Section):
    """Mass over volume, at rest."""

    kind: Literal["density"]
    value: float = Field(gt=0, description="what it is to be")
    unit: Literal["g/cm^3", "kg/m^3"] = Field("g/cm^3", description="of value and error")
    error: float = Field(gt=0, description="error bar")


class MixingEnergy(Section):
    """Energy per atom less that of both pure structures, each with its share."""

    kind: Literal["mixing_energy"]
    value: float = Field(description="what it is to be, per atom")
    unit: Literal["eV", "meV", "Hartree", "Rydberg", "kcal/mol", "kJ/mol"] = Field("meV", description="of value and error")
    error: float = Field(gt=0, description="error bar, per atom")


MEANS = {"volume": MeanVolume, "density": MeanDensity, "mixing_energy": MixingEnergy}
Mean = Annotated[
    Annotated[MeanVolume, Tag("volume")]
    | Annotated[MeanDensity, Tag("density")]
    | Annotated[MixingEnergy, Tag("mixing_energy")],
    Discriminator(lambda value: value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)),
]


def _two_elements(pair: tuple[str, str]) -> tuple[str, str]:
    for symbol in pair:
        if not atomic_numbers.get(symbol):
            raise ValueError(f"{symbol!r} is no element")
    if pair[0] == pair[1]:
        raise ValueError(f"two elements are needed, found {pair[0]} twice")
    return pair


class FreeComposition(Section):
    """What of the structure may change."""

    composition: Annotated[tuple[str, str], AfterValidator(_two_elements)] = Field(
        description="two elements, e.g. [Cu, Au]: the share of the second on the sites of both is looked for"
    )


class Composition(Section):
    """A share of one element in another is looked for at which the mean over random decorations of a lattice has a given value."""

    model: str = Field(description="trained model file or directory of a run; relative to the config file")
    structure: str = Field(
        description="file with the lattice: a cell whose sites hold either element; others stay what they are"
    )
    frame: int = Field(-1, description="which structure of the file: 0 is the first, -1 the last")
    free: FreeComposition
    targets: Annotated[tuple[Mean, ...], Field(min_length=1, max_length=1)] = Field(
        description="one mean, with kind, value and error bar"
    )
    decorations: int = Field(
        8, ge=2, description="random decorations of the sites, all of them relaxed at every composition"
    )
    seed: int = Field(0, ge=0, description="seed of the decorations")

    def files(self) -> list[str]:
        """The files that it names."""
        return [self.model, self.structure]
