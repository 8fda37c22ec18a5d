"""What `mlff refine` does: a trained model, data that keep their say, and observables that it is corrected to give; read from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mlff.config.load import Kinds, read_yaml, relative_to, validated
from mlff.config.observables import KINDS, Target
from mlff.config.options import Data, Loss, Optimizer, Schedule, Section

FORCE_LIMIT = 0.1


class SmallSteps(Optimizer):
    """Gradient descent from a trained model: Adam with a small constant rate; the other keys as in training."""

    name: Literal["sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw", "muon"] = Field("adam", description="optimiser")
    learning_rate: float = Field(
        1e-5, gt=0, description="smaller where the force error rises at once; small models may want more"
    )
    clip: float | None = Field(None, gt=0, description="largest global norm of the gradient; none: no clipping")
    schedule: Schedule = Schedule(kind="constant", warmup_fraction=0.0)


class Refinement(Section):
    """A trained model that is corrected to give observables without losing its energies and forces."""

    model: str = Field(description="trained model file or directory of a run; relative to the config file")
    data: Data = Field(
        description="labels that stay in the loss, in the units and with the zero of energy of the model's own data"
    )
    targets: tuple[Target, ...] = Field(
        min_length=1, description="observables, each with kind, value or file, and error bar"
    )
    steps: int = Field(
        200, gt=0, description="optimisation steps at most; it ends as soon as all targets are within error bars"
    )
    check_every: int = Field(10, gt=0, description="steps between looks at the validation data, and between saved states")
    force_limit: float = Field(
        FORCE_LIMIT,
        gt=0,
        description="share by which the force error on the validation data may rise; no state beyond it is kept",
    )
    data_weight: float = Field(
        10.0,
        gt=0,
        description="weight of the loss on the data, which is taken as a multiple of what it is before the first step",
    )
    batch_size: int | None = Field(None, gt=0, description="structures of the data in a step; default: about 80 atoms")
    seed: int = Field(0, ge=0, description="seed of the split, the order of the data and the runs")
    loss: Loss = Loss()
    optimizer: SmallSteps = SmallSteps()

    @model_validator(mode="after")
    def _own_data(self):
        if self.data.replay is not None:
            raise ValueError("data.replay: data.train holds the model's own data here; leave it out")
        if self.data.replay_readout != "shared":
            raise ValueError("data.replay_readout: nothing is replayed here; leave it out")
        if self.loss.stretched:
            raise ValueError("loss.stretched: a refinement has no such term; leave it out")
        if self.data.reference_energies != "auto":
            raise ValueError("data.reference_energies: those of the model are kept; leave it out")
        return self


_TARGETS = Kinds("targets", 2, "kind", KINDS)


def load_refinement(path: str | Path, overrides: list[str] = ()) -> Refinement:
    """Read a YAML file and apply `key.sub=value` overrides; names of files become relative to the file.

    Raises ConfigError: no such file, not YAML, unknown or wrong key (with its path).
    """
    path = Path(path)
    raw = read_yaml(path, "model: ..., data: ..., targets: ...", overrides)
    return make_refinement(raw, str(path), path.parent)


def make_refinement(raw: dict[str, Any], source: str = "refinement", base: Path | None = None) -> Refinement:
    """Validate a plain dictionary; with `base`, names of files are taken relative to it. Raises ConfigError."""
    config = validated(Refinement, raw, source, _TARGETS)
    return config if base is None else _rebased(config, base, source)


def _rebased(config: Refinement, base: Path, source: str) -> Refinement:
    def fix(value, section: str):
        if isinstance(value, tuple):
            return tuple(fix(item, section) for item in value)
        return relative_to(base, value, source, section)

    targets = []
    for number, target in enumerate(config.targets):
        section = f"targets.{number}"
        fields = {name: fix(value, section) for name, value in target.files().items()}
        if (sampling := getattr(target, "sampling", None)) is not None:
            fields["sampling"] = sampling.model_copy(
                update={name: fix(getattr(sampling, name), section) for name in ("structure", "bias", "hills")}
            )
        targets.append(target.model_copy(update=fields))
    files = {name: fix(getattr(config.data, name), "data") for name in ("train", "valid", "test", "replay")}
    rates = {"plasticity_map": fix(config.optimizer.plasticity_map, "optimizer")}
    return config.model_copy(
        update={
            "model": fix(config.model, "model"),
            "data": config.data.model_copy(update=files),
            "targets": tuple(targets),
            "optimizer": config.optimizer.model_copy(update=rates),
        }
    )
