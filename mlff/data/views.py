"""Views: pictures of one structure that differ in what does not matter, for learning without labels.

Atoms are displaced by chance as heat does it. For two views of one structure (contrastive learning: van den Oord et al.,
arXiv:1807.03748; Chen et al., ICML 2020, 1597) periodic cells are also strained a little, everything is rotated, and in the
second view small cells are repeated to a supercell and molecules and clusters are cropped to the surroundings of one atom.
Displaced atoms whose forces point back to where they were make pseudo-labels for supervised training (denoising: Zaidi et
al., ICLR 2023).

A view is drawn from a seed that stands in the plan of the epoch: other views in each epoch, the same ones when it is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from mlff.basics.errors import StructureError
from mlff.config.options import Pretraining
from mlff.data.batching import Batches, Sample, Sizes, make_graph, make_labels, make_sample
from mlff.data.structure import Structure
from mlff.graph import Graph, Labels

SUPERCELL = 9  #: atoms: a periodic cell of fewer is repeated until it has as many
CROPPED, KEPT = 16, 0.75  #: atoms from which on a molecule is cropped, and the share of them that stays
_TRIED = 4  #: views of each structure that are looked at for the number of neighbours
_SHRUNK = (1.0, 0.5, 0.25, 0.0)  #: of the changes, where a view has more neighbours than there is room for

Drawn = list[tuple[int, int]]  #: the structures of a batch, and the seed of each one's views


class View(NamedTuple):
    """A view of a structure."""

    structure: Structure  #: without labels
    origin: np.ndarray  #: (n,) int: which atom of the structure an atom is, or is an image of
    whole: np.ndarray  #: (n,) bool: False where a crop took neighbours away
    displacements: np.ndarray  #: (n, 3) Å, before strain and rotation


class Partners(NamedTuple):
    """Which atoms of a batch of pairs of views are the same: structures 2b and 2b + 1 of its graph are the views of one."""

    atoms: np.ndarray  #: (N,) int32: of an atom of a first view the same atom in the second; -1 where there is none


def bare(structure: Structure) -> Structure:
    """The geometry alone."""
    arrays = structure.numbers, structure.positions, structure.cell, structure.pbc
    return Structure(*arrays, group=structure.group, source=structure.source, info=structure.info)


def repeats(structure: Structure) -> np.ndarray:
    """(3,) int: how often a cell is repeated to have `SUPERCELL` atoms, shortest vectors first; 1 for other structures."""
    times = np.ones(3, int)
    lengths = np.linalg.norm(structure.cell, axis=1)
    while structure.pbc.all() and 0 < len(structure) * times.prod() < SUPERCELL:
        times[np.argmin(times * lengths)] *= 2
    return times


def supercell(structure: Structure) -> View:
    """The structure repeated as `repeats` says, at rest."""
    times = repeats(structure)
    if times.prod() == 1:
        return _as_it_is(structure)
    images = np.stack(np.meshgrid(*map(np.arange, times), indexing="ij"), -1).reshape(-1, 1, 3)
    positions = (structure.positions + images @ structure.cell).reshape(-1, 3)
    count = len(images)
    arrays = np.tile(structure.numbers, count), positions, structure.cell * times[:, None], structure.pbc
    origin = np.tile(np.arange(len(structure)), count)
    whole = np.ones(len(origin), bool)
    return View(
        replace(bare(structure), **dict(zip(_GEOMETRY, arrays, strict=True))), origin, whole, np.zeros_like(positions)
    )


def cropped(structure: Structure, rng: np.random.Generator, cutoff: float) -> View:
    """The `KEPT` share of the atoms that lie nearest to a random one; all where a structure is small or periodic."""
    n = len(structure)
    if structure.pbc.any() or n < CROPPED:
        return _as_it_is(structure)
    distances = np.linalg.norm(structure.positions - structure.positions[rng.integers(n)], axis=1)
    order = np.argsort(distances, kind="stable")
    kept = int(KEPT * n)
    origin, gone = np.sort(order[:kept]), order[kept:]
    positions = structure.positions[origin]
    whole = cKDTree(structure.positions[gone]).query(positions)[0] >= cutoff
    part = replace(bare(structure), numbers=structure.numbers[origin], positions=positions)
    return View(part, origin, whole, np.zeros_like(positions))


def displaced(view: View, rng: np.random.Generator, displacement: float) -> View:
    """Atoms moved by a normal distribution of this standard deviation, Å, along each direction."""
    moves = displacement * rng.normal(size=view.structure.positions.shape)
    return view._replace(structure=replace(view.structure, positions=view.structure.positions + moves), displacements=moves)


def strained(view: View, rng: np.random.Generator, strain: float) -> View:
    """Cell and atoms strained, each component by this standard deviation, where all directions are periodic."""
    random = strain * rng.normal(size=(3, 3))
    if not view.structure.pbc.all():
        return view
    return _mapped(view, np.eye(3) + 0.5 * (random + random.T))


def rotated(view: View, rng: np.random.Generator) -> View:
    """Turned by a random rotation, with the cell."""
    return _mapped(view, Rotation.from_quat(rng.normal(size=4)).as_matrix())


def two_views(
    structure: Structure, rng: np.random.Generator, options: Pretraining, cutoff: float, scale: float = 1.0
) -> tuple[View, View]:
    """Two views of a structure, with displacements and strains times `scale`."""
    second = supercell(structure) if repeats(structure).prod() > 1 else cropped(structure, rng, cutoff)
    changed = [displaced(view, rng, scale * options.displacement) for view in (_as_it_is(structure), second)]
    return tuple(rotated(strained(view, rng, scale * options.strain), rng) for view in changed)


def noisy(structure: Structure, rng: np.random.Generator, options: Pretraining, scale: float = 1.0) -> View:
    """Displaced, small cells repeated; its forces, eV/Å, are minus the displacements in units of their standard deviation.

    Displacements have no mean, as forces have none.
    """
    view = displaced(supercell(structure), rng, scale * options.displacement)
    mean = view.displacements.mean(axis=0)
    forces = (mean - view.displacements) / options.displacement
    moved = replace(view.structure, positions=view.structure.positions - mean, forces=forces)
    return view._replace(structure=moved, displacements=view.displacements - mean)


class ViewBatches(Batches):
    """Batches whose samples are drawn when they are built, from seeds in the plan; shapes stay those of the first look.

    Raises StructureError: a structure in which atoms are on top of each other, or that has too many pairs.
    """

    def __init__(
        self,
        structures: Sequence[Structure],
        cutoff: float,
        options: Pretraining,
        batch_size: int | None = None,
        max_atoms: int | None = None,
        dtype=np.float32,
    ):
        self.structures, self.cutoff, self.options = list(structures), cutoff, options
        super().__init__([self._template(structure) for structure in self.structures], batch_size, max_atoms, dtype)
        self.shifts = any(structure.pbc.any() for structure in self.structures)

    def views(self, structure: Structure, seed: int, scale: float = 1.0) -> Sequence[View]:
        """The views of one structure, with changes times `scale`."""
        raise NotImplementedError

    def plan(self, rng: np.random.Generator | None) -> list[tuple[Sizes, Drawn]]:
        """As that of `Batches`, with a seed for the views of each structure; without `rng` always the same."""
        batches = super().plan(rng)
        seeds = np.random.default_rng(0) if rng is None else rng
        return [
            (sizes, list(zip(indices, seeds.integers(2**62, size=len(indices)).tolist(), strict=True)))
            for sizes, indices in batches
        ]

    def drawn(self, sizes: Sizes, batch: Drawn) -> list[list[tuple[View, Sample]]]:
        """The views of each structure of a batch; those that do not fit into its shape are drawn with smaller changes."""
        return [self._fitting(self.structures[index], seed, sizes.neighbors) for index, seed in batch]

    def _fitting(self, structure: Structure, seed: int, neighbors: int) -> list[tuple[View, Sample]]:
        for scale in _SHRUNK:
            try:
                found = self._sampled(structure, seed, scale)
            except StructureError:  # atoms met
                continue
            if max(sample.sizes.neighbors for _, sample in found) <= neighbors:
                break
        return found

    def _sampled(self, structure: Structure, seed: int, scale: float = 1.0) -> list[tuple[View, Sample]]:
        return [(view, make_sample(view.structure, self.cutoff)) for view in self.views(structure, seed, scale)]

    def _template(self, structure: Structure) -> Sample:
        """A sample as large as those that will be drawn."""
        seen = self._sampled(structure, 0, 0.0)
        atoms = sum(sample.sizes.atoms for _, sample in seen)
        for seed in range(_TRIED):
            with suppress(StructureError):  # atoms met
                seen += self._sampled(structure, seed)
        neighbors = np.zeros((atoms, max(sample.sizes.neighbors for _, sample in seen)), np.int32)
        return seen[0][1]._replace(neighbors=neighbors)


class PairsOfViews(ViewBatches):
    """Two views of each structure, side by side, and which atoms in them are the same."""

    def views(self, structure: Structure, seed: int, scale: float = 1.0) -> list[View]:
        return two_views(structure, np.random.default_rng(seed), self.options, self.cutoff, scale)

    def build(self, sizes: Sizes, batch: Drawn) -> tuple[Graph, Partners]:
        """The graph, of twice as many structures, and the partners of its atoms."""
        drawn = self.drawn(sizes, batch)
        atoms = np.full(sizes.atoms, -1, np.int32)
        start = 0
        for (first, _), (second, _) in drawn:
            n = len(first.structure)
            atoms[start : start + n] = _places(n, second, start + n)
            start += n + len(second.structure)
        samples = [sample for pair in drawn for _, sample in pair]
        graph = make_graph(samples, sizes._replace(structures=2 * sizes.structures), self.dtype, self.shifts)
        return graph, Partners(atoms)


class NoisyBatches(ViewBatches):
    """Displaced structures whose forces point back."""

    def views(self, structure: Structure, seed: int, scale: float = 1.0) -> list[View]:
        return [noisy(structure, np.random.default_rng(seed), self.options, scale)]

    def build(self, sizes: Sizes, batch: Drawn) -> tuple[Graph, Labels]:
        """The graph and its labels."""
        samples = [sample for ((_, sample),) in self.drawn(sizes, batch)]
        return make_graph(samples, sizes, self.dtype, self.shifts), make_labels(samples, sizes, self.dtype)


_GEOMETRY = ("numbers", "positions", "cell", "pbc")


def _as_it_is(structure: Structure) -> View:
    n = len(structure)
    return View(bare(structure), np.arange(n), np.ones(n, bool), np.zeros((n, 3)))


def _mapped(view: View, matrix: np.ndarray) -> View:
    """Positions and cell mapped by a matrix (3, 3)."""
    structure = view.structure
    return view._replace(
        structure=replace(structure, positions=structure.positions @ matrix.T, cell=structure.cell @ matrix.T)
    )


def _places(n: int, other: View, start: int) -> np.ndarray:
    """(n,): where the atoms of a structure stand in a batch, in a view that begins at `start`; -1 where not whole."""
    places = np.full(n, -1)
    whole = np.flatnonzero(other.whole)[::-1]  # of several images the first is written last
    places[other.origin[whole]] = start + whole
    return places
