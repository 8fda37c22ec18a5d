"""From a config to properties: values of a structure as functions of its energy, its stress, and one more energy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ase
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics.errors import ConfigError, DataError, MLFFError
from mlff.basics.units import ENERGY, STRESS, VOIGT
from mlff.config import design as options
from mlff.config.design import Design
from mlff.data.formats import read_atoms
from mlff.data.structure import Structure
from mlff.potential.potential import Potential

_ROWS, _COLUMNS = (np.array(["xyz".index(name[k]) for name in VOIGT["ase"]]) for k in (0, 1))


class Other(NamedTuple):
    """A second energy that a property depends on."""

    potential: Potential
    atoms: ase.Atoms | None  #: a structure that shares the strain of the cell and else stays; None: the same structure


class Property(NamedTuple):
    """What is wanted. Values are in `unit`."""

    name: str
    unit: str
    wanted: np.ndarray  #: (m,) values, or changes
    changes: bool  #: whether `wanted` is taken from the values at the minimum
    error: float
    of: Callable[[Array, Array, Array], Array]  #: (energy, the other energy (eV), stress (3, 3), eV/Å³) -> (m,); pure
    other: Other | None = None
    stress: bool = False  #: whether it depends on the stress

    def goal(self, at_minimum: np.ndarray) -> np.ndarray:
        """(m,) what the values are to be."""
        return self.wanted + at_minimum if self.changes else self.wanted


def make_properties(config: Design, potential: Potential, atoms: ase.Atoms) -> list[Property]:
    """Those of a config, for potentials in float64.

    Raises ConfigError, DataError, ModelFileError, StructureError with the number of the target.
    """
    made = []
    for number, one in enumerate(config.targets):
        try:
            made.append(_make(one, config, potential, atoms))
        except MLFFError as error:
            raise type(error)(f"targets.{number} ({one.kind}): {error}") from None
    return made


def stress_untested(potential: Potential) -> bool:
    """Whether there was no stress among the labels that the model was tested on."""
    errors = potential.metadata.get("errors") or {}
    return bool(errors) and not any(e.get("stress_components") for e in errors.values())


def _make(one, config: Design, potential: Potential, atoms: ase.Atoms) -> Property:
    if isinstance(one, options.EnergyGap):
        other = Potential.load(model_file(one.model)).with_precision("float64")
        other.check(Structure.from_atoms(atoms, source=config.structure))
        if other.fingerprint == potential.fingerprint:
            raise ConfigError(f"model: {one.model} is the same as {config.model}: their gap is 0 everywhere")
        return _of_energies(one, "energy gap", 1.0, Other(other, None))
    if isinstance(one, options.EnergyDifference):
        beside = structure(one.structure, one.frame, potential)
        if sorted(beside.numbers) != sorted(atoms.numbers):
            raise ConfigError(
                f"{one.structure}: has {beside.get_chemical_formula()}, {config.structure} {atoms.get_chemical_formula()}; "
                "an energy difference needs the same atoms"
            )
        if config.free.cell != "none" and not (beside.pbc.all() and beside.cell.rank == 3):
            raise ConfigError(f"{one.structure}: has no cell that could share the strain of {config.structure}")
        return _of_energies(one, "energy difference", -1.0, Other(potential, beside))
    factor = STRESS[one.unit]
    if isinstance(one, options.StaticPressure):
        wanted, changes = _wanted(one)
        return Property(
            "pressure", one.unit, wanted, changes, one.error, lambda *e: -jnp.trace(e[2])[None] / 3 / factor, stress=True
        )
    wanted = np.array(one.values)
    return Property("stress", one.unit, wanted, False, one.error, lambda *e: e[2][_ROWS, _COLUMNS] / factor, stress=True)


def _of_energies(one, name: str, sign: float, other: Other) -> Property:
    factor = sign / ENERGY[one.unit]
    return Property(name, one.unit, *_wanted(one), one.error, lambda *e: (e[1] - e[0])[None] * factor, other)


def _wanted(one) -> tuple[np.ndarray, bool]:
    return np.array([one.change if one.value is None else one.value]), one.value is None


def model_file(name: str) -> Path:
    """The model file that a run's directory means."""
    path = Path(name)
    return path / "model.safetensors" if path.is_dir() else path


def structure(file: str, frame: int, potential: Potential) -> ase.Atoms:
    """One structure of a file, checked. Raises DataError, StructureError."""
    atoms = next(read_atoms(file, frame), None)
    if atoms is None or len(atoms) == 0:
        raise DataError(f"{file}: has no structure number {frame}, or one without atoms")
    potential.check(Structure.from_atoms(atoms, source=f"{file}, structure {frame}"))
    return atoms
