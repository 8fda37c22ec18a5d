"""The fixed table of architectures: a name in a config or a model file is looked up here and nowhere else."""

from __future__ import annotations

import flax.linen as nn

from mlff.basics.errors import ModelFileError
from mlff.config import options as configs
from mlff.models.ace import ACE
from mlff.models.atoms import Statistics
from mlff.models.pair import LennardJones, Morse
from mlff.models.schnet import SchNet

CONFIGS = {"ace": configs.ACE, "schnet": configs.SchNet, "lennard_jones": configs.LennardJones, "morse": configs.Morse}
_MODULES = {"ace": ACE, "schnet": SchNet}
_ORACLES = {"lennard_jones": LennardJones, "morse": Morse}


def build(config, elements: tuple[int, ...], statistics: Statistics = Statistics()) -> nn.Module:
    """The flax module of a model section of the config, for these elements (atomic numbers, ascending).

    `module.init(key, graph)` gives parameters, `module.apply(params, graph)` per-atom energies (N,) in eV.
    """
    options = config.model_dump()
    name = options.pop("architecture")
    if name in _ORACLES:
        return _ORACLES[name](**options)
    if name not in _MODULES:
        raise ModelFileError(f"unknown architecture {name!r}; known: {', '.join(CONFIGS)}")
    return _MODULES[name](elements=tuple(elements), statistics=statistics, **options)
