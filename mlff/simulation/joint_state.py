"""The state of several replicas in one file, so that all go on from the same step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mlff.basics.errors import ConfigError, DataError
from mlff.simulation.driver import Run
from mlff.simulation.record import load_state, save_state
from mlff.simulation.tempering import Tempering


def save_joint(path: Path, runs: Sequence[Run], tempering: Tempering | None) -> None:
    """Write the last good state of all runs; what they have written lies on disk before. Raises FileError."""
    content = {"replicas": np.array(len(runs))}
    for index, run in enumerate(runs):
        run.sync()
        content |= {f"{index}_{name}": value for name, value in run.good.items()}
    if tempering is not None:
        content |= {f"tempering_{name}": value for name, value in tempering.state().items()}
    save_state(path, content)


def load_joint(path: Path, count: int) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """The states of `count` replicas, and what parallel tempering had counted (nothing without).

    Raises DataError: no such state, or a damaged one; ConfigError: of another number of replicas.
    """
    content = load_state(path)
    held = content.get("replicas")
    if held is None or held.shape != () or held.dtype.kind not in "iu":
        raise DataError(f"{path}: not a state of replicas; start without restart")
    if int(held) != count:
        raise ConfigError(f"{path}: the earlier run had {int(held)} replicas, not {count}")
    states = [_part(content, f"{index}_") for index in range(count)]
    steps = [state.get("step") for state in states]
    if any(step is None or step.shape != () or step != steps[0] for step in steps):
        raise DataError(f"{path}: the states of the replicas are not of one step; start without restart")
    return states, _part(content, "tempering_")


def _part(content: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
