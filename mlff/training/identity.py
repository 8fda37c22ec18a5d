"""What makes two runs the same: options and data that they must share for one to go on where the other stopped."""

from __future__ import annotations

from pathlib import Path

import pydantic
from pydantic_core import to_jsonable_python

from mlff.basics.errors import ConfigError
from mlff.config.load import differences
from mlff.config.options import Config
from mlff.data.dataset import Splits
from mlff.potential.potential import Potential
from mlff.training import plasticity

MODEL = "model.safetensors"  #: the trained potential in a run directory
MAY_CHANGE = {
    "data": {"train", "valid", "test", "replay", "lint", "skip"},  # the content counts, not the path
    "training": {"epochs", "max_hours", "patience", "validate_every", "checkpoint_every", "tensorboard", "devices"},
}


def identity_of(config: Config, splits: Splits, beginning: Potential | None) -> dict:
    """What two runs must share for one to continue the other."""
    options = options_of(config)
    del options["pretraining"]
    options["finetune_from"] = None if beginning is None else beginning.fingerprint  # the content counts, not the path
    options["optimizer"]["plasticity_map"] = plasticity.fingerprint(config.optimizer.plasticity_map)
    data = {name: part.fingerprint for name in ("train", "valid", "replay") if (part := getattr(splits, name)) is not None}
    return {"config": options, "content of data": data}


def options_of(config: Config) -> dict:
    """The options, section by section, without those that may change while a run goes on."""
    options = {}
    for section, values in config.model_dump(mode="json").items():
        kept = MAY_CHANGE.get(section, set())
        options[section] = {k: v for k, v in values.items() if k not in kept} if isinstance(values, dict) else values
    return options


def refuse_other(out: Path, identity: dict, record: dict | None, config: Config) -> None:
    """Raise ConfigError if the directory holds a run that this one cannot continue.

    An option that the earlier run did not know has its default there.
    """
    if record is None:
        if (out / MODEL).exists():
            raise ConfigError(f"{out}: holds a {MODEL} but no checkpoint to go on from; choose another --out")
        return
    if not isinstance(record.get("identity"), dict):
        raise ConfigError(f"{out}: a checkpoint does not say of which run it is; choose another --out")
    there = record["identity"]
    if isinstance(options := there.get("config"), dict):
        here = identity["config"]
        options = {k: _with_defaults(v, here.get(k), getattr(config, k, None)) for k, v in options.items()}
        there = there | {"config": options}
    differing = differences(there, identity)
    if differing:
        raise ConfigError(f"{out}: holds a run that differs in {differing}; choose another --out")


def _with_defaults(there: object, here: object, section: object) -> object:
    """The options of a section of an earlier run, with the defaults of those that this one has and that one did not know; also in sections
    within."""
    if not (isinstance(there, dict) and isinstance(here, dict) and isinstance(section, pydantic.BaseModel)):
        return there
    fields = type(section).model_fields
    new = [name for name in here if name not in there and name in fields and not fields[name].is_required()]
    known = {name: _with_defaults(value, here.get(name), getattr(section, name, None)) for name, value in there.items()}
    return known | {name: to_jsonable_python(fields[name].get_default(call_default_factory=True)) for name in new}
