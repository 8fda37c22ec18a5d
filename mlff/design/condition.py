"""The temperature or volume at which the mean pressure of a run has a wanted value: runs, each nearer than the one before."""

from __future__ import annotations

import ase
from rich.console import Console

from mlff.basics.errors import ConfigError
from mlff.basics.runtime import refuse_forked
from mlff.config.condition import Condition
from mlff.design.condition_outcome import ConditionOutcome, Run
from mlff.design.frames import MARGIN, Frames
from mlff.design.targets import model_file, stress_untested, structure
from mlff.potential.potential import Potential
from mlff.properties.minimum import need_cell
from mlff.refinement.ensembles import Ensemble

_NEAR = 1e-3  #: of the range, for the slope
_CLOSE = 0.01  #: error bars: a Newton step ends so near to the target


def find_condition(config: Condition, *, progress: bool = True) -> tuple[list[ase.Atoms], ConditionOutcome]:
    """The temperature or volume at which a run has the wanted mean pressure; the last frame of the run there, and what it said.

    Averages are taken in float64, runs are made in the precision of the model.
    Raises ConfigError, DataError, ModelFileError, StructureError, SimulationError; KeyboardInterrupt (Terminated) after Ctrl-C
    (SIGTERM).
    """
    refuse_forked()
    loaded = Potential.load(model_file(config.model))
    potential = loaded.with_precision("float64")
    sampling, target, free, (low, high) = config.sampling, config.targets[0], config.free.name, config.free.range
    atoms = structure(sampling.structure, sampling.frame, potential)
    with potential.scope(), Console(stderr=True).status("design") as shown:
        if not progress:
            shown.stop()
        need_cell(atoms, f"{sampling.structure}: mean pressures")
        ensemble = Ensemble(sampling, potential, loaded.precision, atoms, config.seed, MARGIN)
        if free == "volume" and not low <= atoms.get_volume() <= high:
            raise ConfigError(
                f"free.volume: the volume of {sampling.structure} is {atoms.get_volume():.6g} Å³, outside of the range"
            )
        frames = Frames(potential, ensemble, free, target.unit)
        runs: list[Run] = []
        condition, why = None, None
        while True:
            shown.update(f"design  run {len(runs) + 1} of at most {config.runs}")
            frames.sample(condition)
            runs.append(frames.said(_NEAR * (high - low)))
            if abs(runs[-1].mean - target.value) <= target.error:
                break
            condition = frames.towards(runs[-1], target.value, _CLOSE * target.error, low, high)
            if why := _stuck(runs, condition, config):
                break
    unit = "K" if free == "temperature" else "Å³"
    untested = stress_untested(potential)
    found = ConditionOutcome(free, unit, target.value, target.unit, target.error, tuple(runs), untested, why)
    return [_last_frame(ensemble, found)], found


def _stuck(runs: list[Run], condition: float, config: Condition) -> str | None:
    """Why another run would not help."""
    last, name, target = runs[-1], config.free.name, config.targets[0]
    unit = "K" if name == "temperature" else "Å³"
    said = f"at {last.condition:.6g} {unit} the mean is {last.mean:.4g} {target.unit}"
    if condition == last.condition and condition in config.free.range:
        return f"{said}, and free.{name} ends there"
    if len(runs) == config.runs:
        return f"{said} after {len(runs)} runs; raise runs, or sampling.frames"
    return None


def _last_frame(ensemble: Ensemble, found: ConditionOutcome) -> ase.Atoms:
    atoms, last = ensemble.atoms.copy(), found.runs[-1]
    atoms.positions = ensemble.positions[-1]
    atoms.info = {"design": "reached" if found.reached else "not_reached", "mlff_mean_pressure": last.mean}
    atoms.info["mlff_temperature"] = ensemble.options.temperature
    return atoms
