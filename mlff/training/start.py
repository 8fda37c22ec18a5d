"""The potential that training starts from: fine-tuning.

Its weights, elements and scales are taken over, so that the network begins as the function it was; reference energies and
mean binding energies are those of the new data, whose zero of energy may be another (another method, for instance).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from ase.data import chemical_symbols
from flax import traverse_util

from mlff.basics.errors import ConfigError
from mlff.config.load import differences
from mlff.config.options import Config
from mlff.data.dataset import Dataset, Splits
from mlff.models import registry
from mlff.models.common import Statistics
from mlff.models.parameters import parameter_shapes, range_shapes
from mlff.potential.potential import Potential
from mlff.training.evaluate import evaluate

_ASKED = 50  #: structures of the data to replay, for a look at their units
_FAR = 0.8  #: times the size of their labels: no model that was trained on them is so far off
_OFF, _FACTOR = 0.3, 1.33  #: and so far not by a factor
_USUAL = 3.0  #: times its error on its own validation set: a poor model may be poor here too


def load(config: Config) -> Potential | None:
    """The potential of `config.finetune_from`, None without one. Raises ModelFileError for a file that is none; ConfigError for a committee, or several starts."""
    if config.finetune_from is None:
        return None
    if config.training.starts > 1:
        raise ConfigError(
            f"training.starts: {config.training.starts} starts would all begin with the weights of finetune_from: "
            f"{config.finetune_from}; leave one of the two out"
        )
    potential = Potential.load(config.finetune_from, pretrained=True)
    if potential.members > 1:
        raise ConfigError(f"finetune_from: {config.finetune_from}: is a committee; start from one of its members")
    return potential


def check(potential: Potential | None, config: Config, splits: Splits) -> list[str]:
    """What is to be said of the start, a line each. Raises ConfigError where it does not fit the config or the data.

    Its model is not `config.model`; there are data to replay without a start, or that it was not trained on.
    """
    if splits.replay is None and config.data.replay_readout == "own":
        raise ConfigError("data.replay_readout: own: there is no data.replay that it could read out; write both, or neither")
    if potential is None:
        if splits.replay is not None:
            raise ConfigError("data.replay: there is no finetune_from, so nothing that could be forgotten; leave it out")
        return []
    differing = differences(potential.config.model_dump(mode="json"), config.model.model_dump(mode="json"))
    if differing:
        raise ConfigError(
            f"finetune_from: {config.finetune_from}: its model differs from the config's in {differing}; write the same model section, or none"
        )
    if splits.replay is not None and potential.pretrained:
        raise ConfigError(
            "data.replay: the model to start from was trained without labels: nothing is to be kept; leave it out"
        )
    if splits.replay is not None:
        check_replay(potential, splits.replay)
    _, lines = with_elements(potential, splits.train.elements)
    return lines


def with_elements(potential: Potential, wanted: tuple[int, ...]) -> tuple[Potential, list[str]]:
    """The same potential for its elements and those of `wanted`, and one line for each new one.

    A new element begins as the most similar known one: of the same group of the periodic table, else the nearest atomic number.
    Of a potential that was trained without labels only elements that are `wanted` stay: it has no energies of others.
    """
    new = [z for z in wanted if z not in potential.elements]
    likes = {z: min(potential.elements, key=lambda known: _unlike(z, known)) for z in new}
    lines = [f"{chemical_symbols[z]} is new to the model: it begins as {chemical_symbols[likes[z]]}" for z in new]
    potential = _with(potential, {*potential.elements, *new}, likes)
    return (_with(potential, set(wanted), {}) if potential.pretrained else potential), lines


def _with(potential: Potential, wanted: set[int], likes: dict[int, int]) -> Potential:
    """The same potential for more or for fewer elements; one of `likes` begins as that one."""
    every = tuple(sorted(wanted))
    if every == potential.elements:
        return potential
    taken = np.array([potential.elements.index(likes.get(z, z)) for z in every])
    module = registry.build(potential.config, every, potential.statistics)
    shapes = parameter_shapes(module) | range_shapes(module)
    flat = {"/".join(name): np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(potential.params).items()}
    grown = {name: _grown(leaf, shapes[name], taken, len(potential.elements)) for name, leaf in flat.items()}
    energies = potential.statistics.atom_energies
    return replace(
        potential,
        params=traverse_util.unflatten_dict({tuple(name.split("/")): leaf for name, leaf in grown.items()}),
        elements=every,
        baseline={z: potential.baseline[likes.get(z, z)] for z in every},
        statistics=potential.statistics._replace(
            atom_energies=tuple(energies[i] for i in taken) if energies else (), inner_cutoff=()
        ),
    )


def _unlike(z: int, known: int) -> tuple[bool, int]:
    return _group(z) != _group(known), abs(z - known)


def _group(z: int) -> int:
    """Of the periodic table, 1 to 18; hydrogen has its own, 0, and all lanthanides and actinides are in 3."""
    gases = (0, 2, 10, 18, 36, 54, 86, 118)
    after = next(z - gas for gas in reversed(gases) if gas < z)
    left = next(gas - z for gas in gases if gas >= z)
    if z == 1:
        return 0
    if left <= 5:
        return 18 - left
    return after if after <= 2 else 18 - min(left, 15)


def _grown(leaf: np.ndarray, shape: tuple[int, ...], taken: np.ndarray, known: int) -> np.ndarray:
    """Rows of elements, and of their pairs, from those in `taken`."""
    for axis, (old, new) in enumerate(zip(leaf.shape, shape, strict=True)):
        if old == known and new == len(taken) != old:
            leaf = np.take(leaf, taken, axis)
        elif old == known**2 and new == len(taken) ** 2 != old:
            leaf = np.take(leaf, (taken[:, None] * known + taken).ravel(), axis)
    return leaf


def replay_baseline(potential: Potential, measured: Statistics) -> dict[int, float]:
    """Reference energies (Z -> eV) of the data that `potential` was trained on, for a network with the statistics `measured`.

    With them its labels are what the network gave at the start: each kind of data keeps a zero of its own.
    """
    old, new = potential.statistics.atom_energies, measured.atom_energies
    moved = dict(zip(potential.elements, np.subtract(old, new).tolist(), strict=True)) if old and new else {}
    return {z: energy + moved.get(z, 0.0) for z, energy in potential.baseline.items()}


def check_replay(potential: Potential, replay: Dataset, where: str = "data.replay") -> None:
    """Raise ConfigError where these are no data that the potential was trained on: other elements, units, another method."""
    unknown = [chemical_symbols[z] for z in replay.elements if z not in potential.elements]
    source = f"{where}: {replay.census.source}"
    if unknown:
        known = " ".join(chemical_symbols[z] for z in potential.elements)
        raise ConfigError(f"{source}: has {' '.join(unknown)}, which the model to start from does not know ({known})")
    label = "forces" if any(s.forces is not None for s in replay) else "energy"
    asked = [s for s in replay if getattr(s, label) is not None][:_ASKED]
    results = potential.predict(asked, stress=False)
    given, found = (np.concatenate([np.ravel(getattr(x, label)) for x in many]) for many in (asked, results))
    if label == "energy":  # per atom, less the mean
        sizes = np.array([len(s) for s in asked], float)
        given, found = (values / sizes - np.mean(values / sizes) for values in (given, found))
    error, size = np.sqrt(np.mean((given - found) ** 2)), np.sqrt(np.mean(given**2))
    ratio = float(given @ found / max(found @ found, 1e-30))
    far = error > _FAR * size or (error > _OFF * size and not 1 / _FACTOR < ratio < _FACTOR)
    if far and error > _USUAL * _own_error(potential, label):
        unit = {"forces": "eV/Å", "energy": "eV per atom"}[label]
        raise ConfigError(
            f"{source}: the model to start from misses its {label} by {error:.3g} {unit} RMS, of {size:.3g} {unit}; the best factor "
            f"between them is {ratio:.4g}: these are no data that it was trained on, or in other units; see data.units and data.keys"
        )


def _own_error(potential: Potential, label: str) -> float:
    """Of forces (eV/Å) or energies per atom (eV), on the validation set of its training; 0 if its file does not say."""
    name = {"forces": "forces_rmse", "energy": "energy_rmse_per_atom"}[label]
    errors = (potential.metadata.get("errors") or {}).get("validation") or {}
    return 1e-3 * (errors.get(name) or 0.0)


def statistics(potential: Potential, measured: Statistics, present: tuple[int, ...]) -> Statistics:
    """Scales of `potential`; binding energies (where the element is `present`) and inner cutoffs as `measured`.

    One that was trained without labels has no scale of energy: that is as `measured` too.

    Inner cutoffs as short as those of a hotter set to start from was worse: fine-tuning bends the network where it has no data.
    """
    old = potential.statistics
    energies = measured.atom_energies
    if old.atom_energies:
        pairs = zip(potential.elements, measured.atom_energies, old.atom_energies, strict=True)
        energies = tuple(new if z in present else before for z, new, before in pairs)
    scale = measured.energy_scale if potential.pretrained else old.energy_scale
    return Statistics(scale, old.mean_neighbors, energies, measured.inner_cutoff)


def before_and_after(before: Potential, after: Potential, splits: Splits, replayed: Potential | None = None) -> list[dict]:
    """Errors of what was kept aside and of the data to replay: force RMSE before and after, of single structures the worst.

    `replayed`: the potential after of the data to replay, where they have a readout of their own.

    meV/Å, and meV per atom of the energies after (before it, their zero may be another). None: no such labels, or an element
    that the potential did not know, or it knew no energies.
    """
    sets = {"validation": splits.valid, **splits.test} | ({} if splits.replay is None else {"replay": splits.replay})
    rows = []
    for name, data in sets.items():
        known = not before.pretrained and set(data.elements) <= set(before.elements)
        old = evaluate(before, data) if known else None
        new = evaluate(replayed if name == "replay" and replayed is not None else after, data)
        row = {"data": name, "structures": len(data)}
        for label, metrics in (("before", old), ("after", new)):
            row[f"forces_rmse_{label}"] = None if metrics is None else metrics.forces_rmse
            row[f"forces_worst_{label}"] = None if metrics is None else metrics.forces_rmse_of_structures.get("worst")
        rows.append(row | {"energy_rmse_per_atom_after": None if name == "replay" else new.energy_rmse_per_atom})
    return rows
