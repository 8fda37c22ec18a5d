"""The fixed table of architectures: a name in a config or a model file is looked up here and nowhere else."""

from __future__ import annotations

import flax.linen as nn

from mlff.basics.errors import ModelFileError
from mlff.config import options as config
from mlff.models.ace import ACE
from mlff.models.common import Statistics
from mlff.models.pair import LennardJones, Morse
from mlff.models.schnet import SchNet

ARCHITECTURES = {
    "ace": (config.ACE, ACE),
    "schnet": (config.SchNet, SchNet),
    "lennard_jones": (config.LennardJones, LennardJones),
    "morse": (config.Morse, Morse),
}  #: name -> options, module


def build(options, elements: tuple[int, ...], statistics: Statistics = Statistics()) -> nn.Module:
    """The flax module of a model section of the config, for these elements (atomic numbers, ascending).

    `module.init(key, graph)` gives parameters, `module.apply(params, graph)` per-atom energies (N,) in eV. Learned models have
    the methods `features(graph)`, a tuple of (N, channels), and `readout(graph, features)`, which makes the energies of them.
    """
    return ARCHITECTURES[options.architecture][1](options, tuple(elements), statistics)


def options_of(section: dict):
    """The options of a model section read from a file. Raises ModelFileError for an unknown architecture; pydantic's errors."""
    name = section["architecture"]
    if name not in ARCHITECTURES:
        raise ModelFileError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name][0].model_validate(section)
