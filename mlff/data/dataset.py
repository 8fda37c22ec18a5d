"""A dataset: structures of one or several files, its census, fingerprint and splits."""

from __future__ import annotations

import glob
import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pydantic
from ase.data import chemical_symbols
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mlff.basics.errors import ConfigError, DataError
from mlff.basics.properties import PREDICTED
from mlff.config.options import Data, KeyNames, Loss, ReadOptions, Source, Units
from mlff.data import skipping
from mlff.data.census import Census
from mlff.data.composition import elements_of
from mlff.data.duplicates import digest, first_copies
from mlff.data.formats import read_file
from mlff.data.labels import is_isolated_atom
from mlff.data.structure import Structure


@dataclass(frozen=True, eq=False)
class Dataset:
    """Structures with labels in eV, eV/Å, eV/Å³; isolated atoms are taken out."""

    structures: tuple[Structure, ...]
    isolated_atoms: dict[int, float]  #: energies of isolated atoms in the data, Z -> eV
    census: Census  #: what was found, and where; `str(census)` is one line

    def __len__(self) -> int:
        return len(self.structures)

    def __getitem__(self, index: int) -> Structure:
        return self.structures[index]

    def __iter__(self) -> Iterator[Structure]:
        return iter(self.structures)

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers in the structures, ascending."""
        return elements_of(self.structures)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over geometries, labels and isolated atoms; file names and the order of structures do not enter."""
        total = hashlib.sha256(b"mlff dataset 1")
        for one in sorted(digest(structure, labels=True) for structure in self.structures):
            total.update(one)
        total.update(json.dumps(sorted(self.isolated_atoms.items())).encode())
        return total.hexdigest()

    def require_labels(self) -> None:
        """Raise DataError if no structure has a label that a potential predicts: there is nothing to compare with."""
        if not any(_has(self, label) for label in PREDICTED):
            raise DataError(
                f"{self.census.source}: no structure has energy, forces or stress: nothing to compare with; keys there: "
                f"{self.census.keys_there}; name them with keys.energy, keys.forces or keys.stress (--key energy=NAME)"
            )

    def subset(self, indices) -> Dataset:
        """The structures with these indices, in this order; isolated atoms stay."""
        structures = [self.structures[int(index)] for index in indices]
        return Dataset(tuple(structures), self.isolated_atoms, self.census.counted(structures, self.census.isolated))

    def split(self, fraction: float, seed: int, by_group: bool = False) -> tuple[Dataset, Dataset]:
        """(rest, part): `part` holds about `fraction` of the structures, chosen by `seed`; with `by_group`, whole groups.

        Raises DataError if either would be empty, or by group if a structure has no group.
        """
        rest, part = self._split_indices(fraction, np.random.default_rng(seed), by_group)
        return self.subset(np.sort(rest)), self.subset(np.sort(part))

    def _split_indices(self, fraction, rng, by_group):
        """(rest, part); copies of one geometry stay on one side."""
        rest, part = self._divide(fraction, rng, by_group)
        first = first_copies(self.structures)
        torn = np.isin(first[rest], first[part])
        if not torn.any() or torn.all():
            return rest, part
        return rest[~torn], np.concatenate([part, rest[torn]])

    def _divide(self, fraction, rng, by_group):
        if not 0 < fraction < 1:
            raise ValueError(f"the fraction must lie between 0 and 1, found {fraction}")
        n = len(self)
        if n < 2:
            raise DataError(
                f"{self.census.source}: {n} structure(s) cannot be split into training and validation; give more, or a file"
            )
        wanted = min(max(round(fraction * n), 1), n - 1)
        if not by_group:
            order = rng.permutation(n)
            return order[wanted:], order[:wanted]
        groups: dict[str, list[int]] = {}
        for index, structure in enumerate(self.structures):
            if structure.group is None:
                raise DataError(f"{structure.source}: has no group; name its info key with keys.group, or split: random")
            groups.setdefault(structure.group, []).append(index)
        if len(groups) < 2:
            raise DataError(
                f"{self.census.source}: all structures are of one group, {structure.group!r}; use split: random, or a file"
            )
        names = sorted(groups)
        shuffled = [groups[names[k]] for k in rng.permutation(len(names))]
        part = [shuffled[0]]
        for members in shuffled[1:-1]:
            if sum(map(len, part)) + len(members) / 2 <= wanted:
                part.append(members)
        chosen = np.concatenate(part)
        return rng.permutation(np.setdiff1d(np.arange(n), chosen)), chosen


@dataclass(frozen=True)
class Splits:
    """What a training run reads."""

    train: Dataset
    valid: Dataset
    test: dict[str, Dataset]
    replay: Dataset | None = None  #: data that the model to start from was trained on

    @property
    def learned(self) -> tuple[Structure, ...]:
        """All structures that are trained on."""
        return self.train.structures + (() if self.replay is None else self.replay.structures)


def read_dataset(
    path: str | Path | list,
    *,
    keys: KeyNames | dict | None = None,
    units: Units | dict | None = None,
    skip: Sequence[str] = (),
    progress: bool = False,
) -> Dataset:
    """Read one file, a glob or a list of them; `keys`, `units` and `skip` as in the config's data section.

    Raises DataError: nothing matches, a file cannot be read (see `read_structures`), a named key stands nowhere, two
    energies for one isolated atom; ConfigError: an unknown key or unit option.
    """
    try:
        options = ReadOptions(
            keys=KeyNames.model_validate(keys or {}), units=Units.model_validate(units or {}), skip=list(skip)
        )
    except pydantic.ValidationError as error:
        raise ConfigError(
            "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        ) from None
    return _read_training(path, options, progress)


def load_data(config: Data, seed: int, loss: Loss | None, progress: bool = False) -> Splits:
    """Training, validation and test sets of a config, checked against each other and against the loss.

    `n_train` structures are left for training; the validation set is split off first and keeps its share
    (`valid_fraction`) of what is used. Identical geometries in training and other sets are warned of. `loss` None: no labels
    are asked for.
    Raises DataError: as `read_dataset`; as `check_labels`; an empty training or validation set; a group split without
    groups; an element in validation or test that training lacks.
    """
    data = _read_training(config.train, config, progress)
    if len(data) == 0:
        raise DataError(f"{data.census.source}: holds no structures to train on besides isolated atoms")
    if loss is not None:
        _require_labels(data, loss)
    if config.split == "group" and config.valid is None and config.keys.group is None:
        raise DataError("data.split: group needs data.keys.group, the info key whose value names the group")
    rng = np.random.default_rng(seed)
    if config.valid is not None:
        valid = _read_held_out(config.valid, config, progress)
        train = _select(data, rng.permutation(len(data)), config.n_train)
    else:
        rest, part = data._split_indices(config.valid_fraction, rng, config.split == "group")
        train = _select(data, rest, config.n_train)
        if config.n_train is not None and config.split == "random":
            share = round(config.n_train * config.valid_fraction / (1 - config.valid_fraction))
            part = part[: max(share, 1)]
        valid = data.subset(np.sort(part))
    test = {name: _read_held_out(files, config, progress) for name, files in _test_files(config.test).items()}
    replay = None if config.replay is None else _read_training(config.replay, config, progress)
    splits = Splits(train, valid, test, replay)
    for what, name, other in (
        ("validation", "valid", valid),
        *(("test", f"test.{name}", item) for name, item in test.items()),
    ):
        if len(other) == 0:
            raise DataError(
                f"{other.census.source}: the {what} set (data.{name}) holds no structures besides isolated atoms"
            )
        _require_elements(train, other, what)
        shared = len({digest(s) for s in train} & {digest(s) for s in other})
        if shared:
            warnings.warn(
                f"{shared} structures of the {what} set ({other.census.source}) are in the training set too; its errors "
                "will look better than they are",
                stacklevel=2,
            )
    if loss is not None:
        check_labels(splits, loss, own=config.valid is not None)
    if replay is not None:
        replay.require_labels()
    return splits


def check_labels(splits: Splits, loss: Loss, own: bool = True) -> None:
    """Whether there is something to learn from and to compare with; structures of weight 0 do not count.

    Raises DataError: a label with weight in the loss that no training structure has; none of those that have a weight at the
    end of training, which decide about the best epoch, in the validation set (`own`: of files of its own, not split off); a
    test set without labels. Warns of one of several that the validation set lacks.
    """
    _require_labels(splits.train, loss)
    weights = {label: weight for label, weight in loss.at(1.0).items() if weight > 0}
    missing = [label for label in weights if not _has(splits.valid, label)]
    source = splits.valid.census.source
    if len(missing) == len(weights):
        names = " or ".join(f"{label} (loss.{label}: {weights[label]:g})" for label in missing)
        keys = ", ".join(f"data.keys.{label}" for label in missing)
        do = f"name them with {keys}, for this file alone as data.valid: {{file: ..., keys: ...}}"
        if any(getattr(structure, label) is not None for structure in splits.valid for label in missing):
            do = "those that have one count with weight 0 (data.keys.weight)"
        elif not own:
            do = "give data.valid a file that has them, or choose another seed or a larger data.valid_fraction"
        raise DataError(
            f"{source}: no validation structure has {names}: nothing to compare with, all epochs would count as perfect; "
            f"keys there: {splits.valid.census.keys_there}; {do}"
        )
    if missing:
        names = " or ".join(missing)
        warnings.warn(f"{source}: no validation structure has {names}: epochs are judged without", stacklevel=2)
    for data in splits.test.values():
        data.require_labels()


def expand(path: str | Path | Source | list) -> list[Path]:
    """The files meant by a path, a glob or a list of them; those of a glob in alphabetical order. DataError if none."""
    if isinstance(path, list | tuple):
        return list(dict.fromkeys(file for item in path for file in expand(item)))
    if isinstance(path, Source):
        return expand(path.file)
    text = str(path)
    try:
        if not glob.has_magic(text) or Path(text).exists():
            return [Path(text)]
        found = sorted(glob.glob(text, recursive=True))
    except (OSError, ValueError) as error:  # too long, or with a null byte or half a character in it
        raise DataError(f"{text}: is not the name of a file ({error})") from None
    if not found:
        raise DataError(f"{text}: no file matches")
    return [Path(file) for file in found]


def _read(path, options: ReadOptions, progress: bool, required: Sequence[str] = tuple(KeyNames.model_fields)) -> Dataset:
    """Every structure; a key that is named must stand somewhere, one that is named for a file (`required` ones) there."""
    files: dict[Path, ReadOptions] = {}
    for item in path if isinstance(path, list | tuple) else [path]:
        own = _options(item, options) if isinstance(item, Source) else options
        files |= {file: own for file in expand(item) if file not in files}
    if not files:
        raise DataError("no files are named; give at least one")
    structures: list[Structure] = []
    census = None
    columns = TextColumn("reading {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, disable=not progress, transient=True) as bar:
        for file, own in files.items():
            task = bar.add_task(file.name, total=None)
            more, found = read_file(file, own, lambda task=task: bar.advance(task))
            bar.remove_task(task)
            if own is not options:
                found.require(own.keys, required)
            structures += more
            census = found if census is None else census + found
    if options in files.values():
        census.require(options.keys, required)
    if len(files) > 3:
        first, second, *_ = files
        census = replace(census, source=f"{first}, {second}, ... ({len(files)} files)")
    isolated: dict[int, Structure] = {}
    for atom in filter(is_isolated_atom, structures):
        first = isolated.setdefault(int(atom.numbers[0]), atom)
        if abs(first.energy - atom.energy) > 1e-3:
            raise DataError(
                f"{atom.source}: isolated {atom.formula} has {atom.energy:.6f} eV, but {first.energy:.6f} eV in "
                f"{first.source}; keep one, or give data.reference_energies and mark the other with its charge"
            )
    rest = tuple(structure for structure in structures if not is_isolated_atom(structure))
    return Dataset(rest, {z: isolated[z].energy for z in sorted(isolated)}, census)


def _options(source: Source, options: ReadOptions) -> ReadOptions:
    """Those of all files, overruled by what is said of this one."""
    own = {}
    for section in ("keys", "units"):
        said = {name: value for name, value in getattr(source, section) if value is not None}
        own[section] = getattr(options, section).model_copy(update=said)
    return ReadOptions(**own, skip=options.skip)


def _read_training(path, options: ReadOptions, progress) -> Dataset:
    """Without what is to be skipped."""
    data = _read(path, options, progress)
    kept, dropped = skipping.choose(data.structures, options.skip)
    if not dropped:
        return data
    census = replace(data.census, skipped=data.census.skipped + tuple(dropped))
    structures = tuple(data.structures[k] for k in kept)
    return Dataset(structures, data.isolated_atoms, census.counted(list(structures), census.isolated))


def _read_held_out(path, config: Data, progress) -> Dataset:
    return _read(path, config, progress, ("energy", "forces"))


def _select(data: Dataset, indices, n_train: int | None) -> Dataset:
    if n_train is not None and n_train > len(indices):
        raise DataError(
            f"{data.census.source}: data.n_train is {n_train}, but only {len(indices)} structures are left for training"
        )
    return data.subset(np.sort(indices[-n_train:] if n_train else indices))


def _test_files(test) -> dict[str, object]:
    if test is None or isinstance(test, dict):
        return test or {}
    files = expand(test)
    names = []
    for file in files:
        name = file.name
        for suffix in (".gz", ".xz", ".bz2"):
            name = name.removesuffix(suffix)
        names.append(Path(name).stem)
    return {name if names.count(name) == 1 else str(file): file for name, file in zip(names, files, strict=True)}


def _require_labels(data: Dataset, loss: Loss) -> None:
    for label in PREDICTED:
        weights = [getattr(loss, label), *(getattr(stage, label) or 0.0 for stage in loss.schedule)]
        if max(weights) == 0 or _has(data, label):
            continue
        ignored = ""
        if any(getattr(structure, label) is not None for structure in data):
            ignored = " and a weight above 0 (data.keys.weight)"
        elif label == "stress" and data.census.unordered_stress:
            ignored = " in a known order (units.stress_order)"
        elif label == "stress" and data.census.ignored_stress:
            ignored = " on a fully periodic structure"
        raise DataError(
            f"{data.census.source}: no training structure has {label}{ignored}, but loss.{label} has weight "
            f"{max(weights):g}; keys there: {data.census.keys_there}; name it with data.keys.{label} or set loss.{label}: 0"
        )


def _has(data: Dataset, label: str) -> bool:
    """Whether a structure that counts has this label."""
    return any(structure.weight > 0 and getattr(structure, label) is not None for structure in data)


def _require_elements(train: Dataset, other: Dataset, what: str) -> None:
    for structure in other:
        new = set(structure.numbers.tolist()) - set(train.elements)
        if new:
            known = " ".join(chemical_symbols[z] for z in train.elements)
            raise DataError(
                f"{structure.source}: {chemical_symbols[min(new)]} occurs in the {what} set but not in the training set "
                f"({known}); add it to training or remove the structure"
            )
