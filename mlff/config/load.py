"""Configurations from YAML files and dictionaries, with errors that a user can act on.

An unknown or mistyped key is an error that names its path and suggests the nearest known key.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

import pydantic
import yaml
from pydantic import BaseModel

from mlff.basics.errors import ConfigError
from mlff.config.options import ARCHITECTURES, Config, Source
from mlff.config.plainyaml import plain_values

_Section = TypeVar("_Section", bound=BaseModel)


def load_config(path: str | Path, overrides: list[str] = ()) -> Config:
    """Read a YAML file and apply `key.sub=value` overrides (values are YAML); data paths become relative to the file.

    Raises ConfigError: no such file, not YAML, unknown or wrong key (with its path and the nearest known one).
    """
    path = Path(path)
    raw = read_yaml(path, "data: ..., model: ...", overrides)
    return make_config(raw, source=str(path), base=path.parent)


def read_yaml(path: str | Path, like: str, overrides: list[str] = ()) -> dict[str, Any]:
    """Keys and values of a YAML file with `overrides`; `like` shows in an error what they look like. Raises ConfigError."""
    path = Path(path)
    try:
        raw = plain_values(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys and values ({like}), found {type(raw).__name__}")
    for text in overrides:
        override(raw, text)
    return raw


def make_config(raw: dict[str, Any], source: str = "config", base: Path | None = None) -> Config:
    """Validate a plain dictionary; with `base`, data paths are taken relative to it. Raises ConfigError."""
    config = validated(Config, raw, source, _ARCHITECTURE)
    return config if base is None else config.model_copy(update=_rebase(config, base, source))


def relative_to(base: Path, value, source: str, section: str):
    """Names of files (a text, a `Source`, lists and dictionaries of them, None), relative to `base`. Raises ConfigError."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {name: relative_to(base, item, source, section) for name, item in value.items()}
    if isinstance(value, list):
        return [relative_to(base, item, source, section) for item in value]
    if isinstance(value, Source):
        return value.model_copy(update={"file": relative_to(base, value.file, source, section)})
    try:
        return str(base / Path(value).expanduser())
    except RuntimeError:
        raise ConfigError(f"{source}: {section}: {value}: there is no such home directory") from None


def _rebase(config: Config, base: Path, source: str) -> dict[str, Any]:
    """What names a file, with paths relative to `base`."""

    def fix(value, section: str):
        return relative_to(base, value, source, section)

    files = ("train", "valid", "test", "replay")
    rates = fix(config.optimizer.plasticity_map, "optimizer")
    return {
        "data": config.data.model_copy(update={name: fix(getattr(config.data, name), "data") for name in files}),
        "optimizer": config.optimizer.model_copy(update={"plasticity_map": rates}),
        "finetune_from": fix(config.finetune_from, "finetune_from"),
    }


def override(raw: dict, text: str) -> None:
    """Put `key.sub=value` into `raw`; the value is YAML. Raises ConfigError."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text!r}: expected key=value, e.g. training.epochs=50")
    *parents, last = key.strip().split(".")
    for parent in parents:
        if raw.get(parent) is None:
            raw[parent] = {}
        raw = raw[parent]
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {text!r}: {parent} is a value, not a section")
    try:
        raw[last] = plain_values(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: the value is not valid YAML") from None


class Kinds(NamedTuple):
    """A section that is one of several: where the key `tag` of it says which."""

    section: str  #: key at the top level
    depth: int  #: place of the kind's name in what pydantic calls the location
    tag: str
    known: dict[str, type[BaseModel]]


_ARCHITECTURE = Kinds("model", 1, "architecture", ARCHITECTURES)
_UNION_MEMBER = re.compile(r"(literal|dict|list|tuple|function-after)\[.*|str|float|int|Source")


def validated(section: type[_Section], raw: dict[str, Any], source: str, kinds: Kinds) -> _Section:
    """The section that a plain dictionary gives. Raises ConfigError, with `source` and a sentence per key."""
    try:
        return section.model_validate(raw)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(explain(error.errors(), section, kinds))) from None


def explain(items: list[dict], section: type[BaseModel], kinds: Kinds) -> list[str]:
    """One sentence per key, of what pydantic says of a `section`; what it says of each member of a union is put together."""
    sentences: dict[tuple, tuple[str, str]] = {}
    for item in items:
        path = tuple(
            str(part)
            for place, part in enumerate(item["loc"])
            if not (_is_kind(item["loc"], place, kinds) or isinstance(part, str) and _UNION_MEMBER.fullmatch(part))
        )
        sentence, found = _sentence(item, path, section, kinds)
        if path in sentences and found:
            sentence = f"{sentences[path][0]} or {sentence.removeprefix(repr('.'.join(path)) + ': input should be ')}"
        sentences[path] = sentence, found
    inner = [path for path in sentences if not any(other[: len(path)] == path != other for other in sentences)]
    return ["".join(sentences[path]) for path in inner]


def _is_kind(location: tuple, place: int, kinds: Kinds) -> bool:
    return location[0] == kinds.section and place == kinds.depth and location[place] in kinds.known


def _sentence(item: dict, path: tuple[str, ...], section: type[BaseModel], kinds: Kinds) -> tuple[str, str]:
    name = ".".join(path)
    if item["type"] == "extra_forbidden":
        known = _known_keys(item["loc"][:-1], section, kinds)
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        return f"unknown key {name!r}; {hint}", ""
    if item["type"] == "missing":
        return f"{name!r} is missing", ""
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] in ("model_type", "model_attributes_type"):
        message = "input should be a section of keys and values"
    elif item["type"] == "tuple_type":
        message = "input should be a list"
    elif item["type"] == "union_tag_not_found":
        message = f"{kinds.tag} is missing; known: {', '.join(kinds.known)}"
    elif item["type"] == "union_tag_invalid":
        message = f"unknown {kinds.tag} {item['ctx']['tag']!r}; known: {', '.join(kinds.known)}"
    if not name:
        return message, ""
    return f"{name!r}: {message[0].lower()}{message[1:]}", f" (found {item['input']!r:.80})"


def _known_keys(location: tuple, section: type[BaseModel], kinds: Kinds) -> list[str]:
    for place, part in enumerate(location):
        if _is_kind(location, place, kinds):
            section = kinds.known[part]
        elif isinstance(part, str) and part in section.model_fields:
            section = next(iter(_sections(section.model_fields[part].annotation)), section)
    return list(section.model_fields)


def _sections(annotation) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _sections(part)]


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(there: dict, here: dict, most: int = 4) -> str:
    """The options in which two (nested) dictionaries differ, each with both values; "" if there is none."""
    there, here = _flat(there), _flat(here)
    names = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"{name} ({there.get(name)} there, {here.get(name)} here)" for name in names[:most]) + more


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.".removeprefix("config.")) if isinstance(value, dict) else {name: value}
    return flat
