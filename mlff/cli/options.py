"""Arguments and options that several commands share, and what they are turned into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mlff.basics.errors import ConfigError, StructureError

if TYPE_CHECKING:
    import ase

    from mlff.potential.potential import Potential

Precision = Literal["float32", "float64"]
Model = Annotated[
    Path, typer.Argument(help="trained model, e.g. runs/si/model.safetensors, or the run's directory", show_default=False)
]
DataFile = Annotated[
    Path, typer.Argument(help="reference data, e.g. test.xyz (energies eV, forces eV/Å unless --unit)", show_default=False)
]
StructureFile = Annotated[Path, typer.Argument(help="structure file, any format that training reads", show_default=False)]
Length = Annotated[
    Literal["Angstrom", "Bohr", "nm"] | None,
    typer.Option(
        "--length", help="unit of positions and cell in the file", show_default="what file or format say, else Angstrom"
    ),
]
Frame = Annotated[int, typer.Option("--frame", help="which structure of the file: 0 is the first, -1 the last")]
Keys = Annotated[list[str] | None, typer.Option("--key", help="where labels stand, e.g. energy=REF_energy (repeatable)")]
UnitOptions = Annotated[
    list[str] | None, typer.Option("--unit", help="units of the file, e.g. energy=kcal/mol (repeatable)")
]
Skip = Annotated[
    list[str] | None,
    typer.Option("--skip", help="leave out, count and name: unreadable, unconverged, duplicates or outliers (repeatable)"),
]
AsPrecision = Annotated[Precision | None, typer.Option(help="override the model's precision", show_default="the model's")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="write all figures to this file, units in their names")]
Plot = Annotated[Path | None, typer.Option("--plot", help="draw them into this PNG file")]
Force = Annotated[bool, typer.Option("--force", help="overwrite an existing trajectory")]


def load(path: Path, precision: Precision | None = None, verify: bool = True, pretrained: bool = False) -> Potential:
    """The potential of a model file or a run's directory; with `pretrained` one without energies too."""
    from mlff.potential.potential import Potential

    potential = Potential.load(model_file(path), verify, pretrained)
    return potential if precision is None else potential.with_precision(precision)


def make_calculator(model: Path, precision: Precision | None, skin: float = 0.5):
    """An ASE calculator of a model file or a run's directory."""
    from mlff.interfaces.ase import MLFFCalculator

    return MLFFCalculator(model_file(model), skin=skin, precision=precision)


def model_file(model: Path) -> Path:
    """The model file that a run's directory or a file's own name means."""
    return model / "model.safetensors" if model.is_dir() else model


def read_data(
    path: Path | list[Path], key: list[str] | None, unit: list[str] | None, progress: bool, skip: list[str] | None = None
):
    """A dataset, with labels and units as --key and --unit say, less what --skip names."""
    from mlff.config.options import KeyNames, Units
    from mlff.data.dataset import read_dataset

    keys, units = _pairs(KeyNames, "--key", key), _pairs(Units, "--unit", unit)
    return read_dataset(path, keys=keys, units=units, skip=skip or [], progress=progress)


def _pairs(section, option: str, texts: list[str] | None):
    """An options section of the config from name=value texts; None without any."""
    if not texts:
        return None
    import pydantic
    import yaml

    from mlff.config.plainyaml import plain_values

    values = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or name not in section.model_fields:
            raise ConfigError(f"{option} {text}: expected name=value with name one of {', '.join(section.model_fields)}")
        try:
            values[name] = plain_values(value) if value.startswith("{") else value
        except yaml.YAMLError:
            raise ConfigError(f"{option} {text}: the value is not valid YAML") from None
    try:
        return section(**values)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{option} {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}") from None


def read_structure(path: Path, frame: int, length: str | None = None) -> ase.Atoms:
    """One structure of a file, with lengths in this unit."""
    from mlff.report.structures import read_structure

    return read_structure(path, frame, length)


@contextmanager
def about(structure: Path | str) -> Iterator[None]:
    """Errors inside name the file that the structure is from."""
    from mlff.simulation.guard import SimulationError

    try:
        yield
    except (SimulationError, StructureError) as error:
        raise type(error)(f"{structure}: {error}") from error
