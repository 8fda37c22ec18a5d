"""From a config to targets: structures and tables are read and checked before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path

import ase
import numpy as np

from mlff.basics.errors import ConfigError, DataError, MLFFError
from mlff.basics.units import INVERSE_CM
from mlff.config import observables as options
from mlff.config.refinement import Refinement
from mlff.config.sampling import Sampling
from mlff.data.formats import read_atoms
from mlff.data.structure import Structure
from mlff.potential.potential import Potential
from mlff.refinement.averages import Averaged, FreeEnergyGap, MeanDensity, MeanPressure, RadialDistribution
from mlff.refinement.crystals import ElasticConstants, EquilibriumVolume
from mlff.refinement.ensembles import Ensemble
from mlff.refinement.observables import UNITS, Difference, Target, Wavenumbers
from mlff.refinement.transport import Diffusion


def make_targets(config: Refinement, potential: Potential, precision: str) -> list[Target]:
    """The targets of a config, for a potential in float64 whose runs are made in `precision`.

    Raises ConfigError, DataError, StructureError with the number of the target; SimulationError.
    """
    ensembles: dict[str, Ensemble] = {}
    targets = []
    for number, one in enumerate(config.targets):
        try:
            targets.append(_make(one, config, potential, precision, ensembles))
        except MLFFError as error:
            raise type(error)(f"targets.{number} ({one.kind}): {error}") from None
    return targets


def _make(one, config: Refinement, potential: Potential, precision: str, ensembles: dict[str, Ensemble]) -> Target:
    if isinstance(one, options.Frequencies):
        values = np.array(one.values) if one.file is None else _wavenumbers(Path(one.file), one)
        return Wavenumbers(one, values, potential, _structure(one.structure, one.frame, potential))
    if isinstance(one, options.EnergyDifference):
        pair = [_structure(file, frame, potential) for file, frame in zip(one.structures, one.frames, strict=True)]
        return Difference(one, potential, tuple(pair))
    if isinstance(one, options.ElasticConstants):
        return ElasticConstants(one, potential, _structure(one.structure, one.frame, potential))
    if isinstance(one, options.Volume):
        return EquilibriumVolume(one, potential, _structure(one.structure, one.frame, potential))
    ensemble = _ensemble(one.sampling, config, potential, precision, ensembles)
    if isinstance(one, options.Pressure):
        return MeanPressure(one, ensemble, potential)
    if isinstance(one, options.Density):
        return MeanDensity(one, ensemble, potential)
    if isinstance(one, options.FreeEnergyDifference):
        return FreeEnergyGap(one, ensemble)
    if isinstance(one, options.SelfDiffusion):
        return Diffusion(one, ensemble, potential, precision)
    return RadialDistribution(one, _table(Path(one.file), 2 if one.error is not None else 3), ensemble)


def shared(targets: list[Target]) -> list[Target | Ensemble]:
    """What has a state: every target, and ensembles once."""
    found = {id(target.ensemble if isinstance(target, Averaged) else target): target for target in targets}
    return list(found.values())


def _ensemble(sampling: Sampling, config: Refinement, potential: Potential, precision: str, known: dict) -> Ensemble:
    key = sampling.model_dump_json()
    if key not in known:
        atoms = _structure(sampling.structure, sampling.frame, potential)
        known[key] = Ensemble(sampling, potential, precision, atoms, config.seed + len(known))
    return known[key]


def _structure(file: str, frame: int, potential: Potential) -> ase.Atoms:
    atoms = next(read_atoms(file, frame), None)
    if atoms is None or len(atoms) == 0:
        raise DataError(f"{file}: has no structure number {frame}, or one without atoms")
    potential.check(Structure.from_atoms(atoms, source=f"{file}, structure {frame}"))
    if atoms.constraints:
        raise ConfigError(f"{file}: the structure has constraints, which refinement does not know; remove them")
    return atoms


def _wavenumbers(path: Path, one: options.Frequencies) -> np.ndarray:
    """Of a text file, or of the JSON of mlff vibrations (cm⁻¹)."""
    if path.suffix != ".json":
        return _table(path, 1)[:, 0]
    try:
        found = np.array(json.loads(path.read_text(encoding="utf-8"))["wavenumbers_cm1"], float)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: no JSON of mlff vibrations: wavenumbers_cm1 is missing") from None
    found = found * INVERSE_CM / UNITS[one.unit]
    return found if one.modes is None else found[[mode for mode in one.modes if mode < len(found)]]


def _table(path: Path, columns: int) -> np.ndarray:
    """(m, columns) of a text file; lines that begin with # are comments. Raises ConfigError."""
    try:
        table = np.loadtxt(path, ndmin=2)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: no table of numbers: {error}") from None
    least = 2 if columns > 1 else 1
    if len(table) < least or table.shape[1] < columns or not np.isfinite(table).all():
        raise ConfigError(f"{path}: {columns} columns of finite numbers are expected, found shape {table.shape}")
    if columns == 3 and not (table[:, 2] > 0).all():
        raise ConfigError(f"{path}: the third column must be positive error bars; or give `error`")
    return table[:, :columns]
