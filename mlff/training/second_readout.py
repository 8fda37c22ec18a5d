"""A readout of their own for data that are replayed (`data.replay_readout: own`).

Where old and new data are of two methods, one network cannot give both forces at like structures. So the readout is there
twice, at the start as copies: one learns the new labels, the other one keeps the old ones; all layers below see both
(multihead fine-tuning: Batatia et al., arXiv:2401.00096). The parameters of the second one are called like
those of the first with `replay_` in front, so optimiser, moving average and checkpoints treat them as any others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mlff.data.dataset import Dataset
from mlff.graph import Graph
from mlff.potential import selfcheck
from mlff.potential.potential import Potential
from mlff.training.objectives import Params

FILE = "replayed.safetensors"  #: in the directory of a run: the potential of the replayed data
_PREFIX, _READOUT = "replay_", "head"


def doubled(params: Params) -> Params:
    """The same parameters, and a copy of those of the readout."""
    own = params["params"]
    copies = {_PREFIX + name: value for name, value in own.items() if name.startswith(_READOUT)}
    return params | {"params": own | copies}


def first(params: Params) -> Params:
    """The parameters with the readout of the new data alone."""
    return params | {"params": {name: value for name, value in params["params"].items() if not name.startswith(_PREFIX)}}


def second(params: Params) -> Params:
    """The parameters with the readout of the replayed data alone."""
    own = params["params"]
    taken = {name.removeprefix(_PREFIX): value for name, value in own.items() if name.startswith(_PREFIX)}
    return params | {"params": first(params)["params"] | taken}


def there(params: Params) -> bool:
    """Whether they have a second readout."""
    return any(name.startswith(_PREFIX) for name in params["params"])


def potential(new: Potential, params: Params, baseline: dict[int, float], replay: Dataset) -> Potential:
    """That of the replayed data, beside the `new` one; `params` are of both. `baseline` (Z -> eV): of the replayed data."""
    metadata = {name: value for name, value in new.metadata.items() if name not in ("errors", "certificate")}
    old = dataclasses.replace(new, params=new.params | jax.device_get(second(params)), baseline=baseline, metadata=metadata)
    metadata[selfcheck.KEY] = selfcheck.record(old, selfcheck.choose(replay))
    return old


def energies(module: nn.Module) -> Callable[[Params, Graph, Array | None], Array]:
    """`energies(params, graph, replayed)`: per-atom energies (N,), eV, of `doubled` parameters.

    `replayed` (B,) bool: structures that are read out by the second readout; None: none is.
    """

    def apply(params: Params, graph: Graph, replayed: Array | None = None) -> Array:
        if replayed is None:
            return module.apply(first(params), graph)
        features = module.apply(first(params), graph, method="features")
        new, old = (module.apply(part, graph, features, method="readout") for part in (first(params), second(params)))
        return jnp.where(replayed[graph.structure], old, new)

    return apply
