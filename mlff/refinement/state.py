"""What a refinement changes as it goes, and its file: arrays in safetensors, counters as JSON in its header."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mlff.basics.errors import ConfigError, ModelFileError
from mlff.basics.files import replacing
from mlff.config.load import differences
from mlff.refinement.outcome import Look

FILE = "state.safetensors"


@dataclass
class State:
    """Parameters and optimiser now and at the best look, and the counters."""

    now: Any  #: (parameters, state of the optimiser)
    best: Any  #: the same, at the best look within the limit
    step: int = 0
    kept: int = 0  #: step of `best`
    score: float = float("inf")  #: of `best`: what is minimised
    factor: float = 1.0  #: on the learning rate
    ended: bool = False  #: all targets reached, or the data would be lost
    before_loss: float = 1.0  #: of the validation data, at the start
    looks: list[Look] = field(default_factory=list)
    before: list[list[float]] = field(default_factory=list)  #: values of each target at the start

    def save(self, folder: Path, identity: dict, held: list[dict[str, np.ndarray]]) -> None:
        """Write it to `folder`, with what each target holds. Raises FileError."""
        arrays = {f"targets/{number}/{name}": value for number, one in enumerate(held) for name, value in one.items()}
        for name in ("now", "best"):
            leaves = jax.tree.leaves(getattr(self, name))
            arrays |= {f"{name}/{number}": np.asarray(leaf) for number, leaf in enumerate(leaves)}
        counters = {name: getattr(self, name) for name in _COUNTERS}
        record = counters | {"identity": identity, "looks": [asdict(look) for look in self.looks]}
        with replacing(folder / FILE) as temporary:
            save_file({k: np.array(v, order="C") for k, v in arrays.items()}, temporary, {"record": json.dumps(record)})

    def load(self, folder: Path, identity: dict) -> list[dict[str, np.ndarray]] | None:
        """Take up what is in `folder`; what each target held, None if there is nothing.

        Raises ConfigError: of another refinement; ModelFileError: it cannot be read.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, "np") as file:
                record = json.loads(file.metadata()["record"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dictionary
            differing = differences(record["identity"], identity)
            if differing:
                raise ConfigError(f"{folder}: holds a refinement that differs in {differing}; choose another --out")
            for name in ("now", "best"):
                leaves, tree = jax.tree.flatten(getattr(self, name))
                taken = [arrays[f"{name}/{k}"].reshape(np.shape(leaf)) for k, leaf in enumerate(leaves)]
                setattr(self, name, jax.tree.unflatten(tree, taken))
            for name in _COUNTERS:
                setattr(self, name, record[name])
            self.looks = [Look(**look | {"deviations": tuple(look["deviations"])}) for look in record["looks"]]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path}: cannot be gone on from ({error}); delete it to start again") from None
        held: dict[int, dict[str, np.ndarray]] = {}
        for name, value in arrays.items():
            if name.startswith("targets/"):
                _, number, key = name.split("/")
                held.setdefault(int(number), {})[key] = value
        return [held.get(number, {}) for number in range(max(held, default=-1) + 1)]


def read_looks(path: Path) -> list[dict]:
    """The looks at the validation data in a state's file, see `Look`."""
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["record"])["looks"]


_COUNTERS = ("step", "kept", "score", "factor", "ended", "before_loss", "before")
