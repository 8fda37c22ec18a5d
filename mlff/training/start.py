"""The potential that training starts from: fine-tuning.

Its weights, elements and scales are taken over, so that the network begins as the function it was; reference energies and
mean binding energies are those of the new data, whose zero of energy may be another (another method, for instance).
"""

from __future__ import annotations

from ase.data import chemical_symbols

from mlff.basics.errors import ConfigError
from mlff.config.load import differences
from mlff.config.options import Config
from mlff.models.common import Statistics
from mlff.potential.potential import Potential


def load(config: Config) -> Potential | None:
    """The potential of `config.finetune_from`, None without one. Raises ModelFileError for a file that is none; ConfigError for a committee."""
    if config.finetune_from is None:
        return None
    potential = Potential.load(config.finetune_from)
    if potential.members > 1:
        raise ConfigError(f"finetune_from: {config.finetune_from}: is a committee; start from one of its members")
    return potential


def check(potential: Potential | None, config: Config) -> None:
    """Raises ConfigError where the model of the potential to start from is not `config.model`."""
    if potential is None:
        return
    differing = differences(potential.config.model_dump(mode="json"), config.model.model_dump(mode="json"))
    if differing:
        raise ConfigError(
            f"finetune_from: {config.finetune_from}: its model differs from the config's in {differing}; write the same model section, or none"
        )


def elements(potential: Potential, wanted: tuple[int, ...], source: str) -> tuple[int, ...]:
    """Those of `potential`. Raises ConfigError where the data have another one."""
    unknown = [chemical_symbols[z] for z in wanted if z not in potential.elements]
    if unknown:
        known = " ".join(chemical_symbols[z] for z in potential.elements)
        raise ConfigError(
            f"{source}: has {' '.join(unknown)}, which the model to start from does not know; it knows {known}"
        )
    return potential.elements


def statistics(potential: Potential, measured: Statistics, present: tuple[int, ...]) -> Statistics:
    """Scales of `potential`; binding energies (where the element is `present`) and inner cutoffs as `measured`.

    Inner cutoffs as short as those of a hotter set to start from was worse: fine-tuning bends the network where it has no data.
    """
    old = potential.statistics
    energies = measured.atom_energies
    if old.atom_energies:
        pairs = zip(potential.elements, measured.atom_energies, old.atom_energies, strict=True)
        energies = tuple(new if z in present else before for z, new, before in pairs)
    return Statistics(old.energy_scale, old.mean_neighbors, energies, measured.inner_cutoff)
