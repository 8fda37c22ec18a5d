"""Several starts of one training, side by side in one program: other first weights, the same batches.

Arrays of all starts lie in one tree, with an axis in front; those of one start have none. Start k begins with the weights of
member k of a committee (`member` in the config, from which they are counted).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics.errors import ModelFileError
from mlff.config.options import Config
from mlff.training.progress import TrainingProgress
from mlff.training.step import copied


def side_by_side(trees: Sequence[Any]) -> Any:
    """The trees of several starts as one, with arrays of their own; of one start as it is."""
    return (
        trees[0] if len(trees) == 1 else copied(jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(list(trees))))
    )


def of_start(tree: Any, start: int, count: int) -> Any:
    """What belongs to one of `count` starts."""
    return tree if count == 1 else jax.tree.map(lambda leaf: leaf[start], tree)


def replaced(which: Sequence[bool], new: Any, old: Any) -> Any:
    """`new` for the starts in `which`, `old` for the others, with arrays of their own."""
    return copied(new) if all(which) else _chosen(np.array(which), new, old)


@jax.jit
def _chosen(which: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def leader(runs: Sequence[TrainingProgress]) -> int:
    """The start with the lowest validation so far."""
    return min(range(len(runs)), key=lambda k: math.inf if runs[k].best_score is None else runs[k].best_score)


def kept(config: Config, runs: Sequence[TrainingProgress]) -> list[int]:
    """The starts that `training.keep` asks for: the best one, or all that have not failed."""
    if config.training.keep == "best":
        return [leader(runs)]
    return [k for k, run in enumerate(runs) if not run.failed]


def to_record(runs: Sequence[TrainingProgress]) -> dict:
    """What a checkpoint says of the starts, for JSON."""
    first, *others = (run.to_dict() for run in runs)
    return {"run": first} | ({"others": others} if others else {})


def from_record(record: dict, source: object) -> list[TrainingProgress]:
    """What `to_record` wrote. Raises ModelFileError, with `source`, for what is none."""
    others = record.get("others", [])
    if not isinstance(others, list):
        raise ModelFileError(f"{source}: the record of a checkpoint is not that of a run of mlff; delete it to restart")
    return [TrainingProgress.from_record({"run": run}, source) for run in (record.get("run"), *others)]


def outcome(runs: Sequence[TrainingProgress]) -> str:
    """Validation of each start in a few words."""
    scores = ("failed" if run.failed else f"{run.best_score:.4g} (epoch {run.best_epoch})" for run in runs)
    return f"validation loss of the starts: {', '.join(f'{k}: {score}' for k, score in enumerate(scores))}"
