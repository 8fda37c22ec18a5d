"""What every learned model shares: the geometry of pairs, and a network's output turned into energies of atoms."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics.numerics import safe_norm
from mlff.graph import Graph
from mlff.models.pair import zbl_energies
from mlff.models.radial import envelope

WIDTH = 0.05  #: share of the inner cutoff over which the distance that a network sees stops falling: it never sees less than 1 - WIDTH / 2
WALL = 1000.0  #: eV: a pair at a distance r within its inner cutoff c has WALL (1 - r/c)^4, 0.1 eV at 0.9 c, 1.6 at 0.8 c


class Statistics(NamedTuple):
    """Constants of the training data that put inputs and outputs of a network at order one."""

    energy_scale: float = 1.0  #: eV: the network's output is in these; the RMS force of the data times 1 Å
    mean_neighbors: float = 10.0  #: neighbours within the cutoff, averaged over atoms
    atom_energies: tuple[float, ...] = ()  #: eV per element (in the order of the elements): mean binding energy; () for none
    inner_cutoff: tuple[
        float, ...
    ] = ()  #: Å per pair of elements, row by row: at shorter distances the network is asked about this one; () for none


class State(NamedTuple):
    """What is known of each atom between two stages of a model, where a graph is computed in chunks of atoms.

    `model.stage(index, graph, own, sent)` computes stage `index` of `model.stages`. The graph holds n of the atoms: their
    `neighbors` count all atoms, `vectors` and `numbers_around` are given. `own` is their state and `sent` (n, K, F) what their
    neighbours pass; both None in the first stage. The last stage returns energies (n,), eV, the others a new state.
    """

    passed: Array  #: (N, F): neighbours see it
    kept: Array  #: (N, G): the atom alone sees it


class PairGeometry(NamedTuple):
    """Species, distances and directions of the pairs of a graph."""

    species: Array  #: (N,) int32: index into the elements; 0 for padding
    neighbor_species: Array  #: (N, K) int32: the same of the neighbours
    lengths: Array  #: (N, K) Å; 0 in empty slots and beyond the cutoff
    distances: Array  #: the same as a network sees them: hardly below the inner cutoff
    directions: Array  #: (N, K, 3) unit vectors from center to neighbour; 0 in empty slots
    envelope: Array  #: (N, K): smooth cutoff; 0 in empty slots
    repulsion: Array  #: (N,) eV: half of each pair within its inner cutoff


def pair_geometry(
    graph: Graph, elements: tuple[int, ...], cutoff: float, inner_cutoff: tuple[float, ...] = (), cutoff_power: int = 6
) -> PairGeometry:
    """The pairs within the cutoff; others, of a list with a skin, count as empty slots. `cutoff_power`: p of `envelope`.

    For pairs nearer than `inner_cutoff` (see `Statistics`) the network sees that distance, and a wall repels them, with two
    continuous derivatives: no training data reach there, and a polynomial of many bodies would make up any energy.
    """
    table = np.zeros(119, np.int32)
    table[list(elements)] = np.arange(len(elements))
    vectors = graph.pair_vectors
    distances = safe_norm(vectors, graph.neighbor_mask)
    inside = (distances > 0) & (distances < cutoff)
    r = jnp.where(inside, distances, 1.0)
    directions = jnp.where(inside[..., None], vectors / r[..., None], 0.0)
    species, neighbor_species = jnp.asarray(table)[graph.atomic_numbers], jnp.asarray(table)[graph.neighbor_numbers]
    repulsion = jnp.zeros(distances.shape[:1], distances.dtype)
    if inner_cutoff:
        ends = jnp.asarray(inner_cutoff, distances.dtype)[species[:, None] * len(elements) + neighbor_species]
        depth = jnp.maximum(1 - r / ends, 0.0)
        repulsion = 0.5 * WALL * jnp.sum(jnp.where(inside, envelope(r, cutoff) * depth**4, 0.0), axis=1)
        t = jnp.minimum(depth / WIDTH, 1.0)
        r = jnp.where(
            depth > 0, ends * (1 - WIDTH * (t - t**3 + t**4 / 2)), r
        )  # its slope falls from 1 to 0 as 1 - 3t² + 2t³
    return PairGeometry(
        species=species,
        neighbor_species=neighbor_species,
        lengths=jnp.where(inside, distances, 0.0),
        distances=jnp.where(inside, r, 0.0),
        directions=directions,
        envelope=jnp.where(inside, envelope(r, cutoff, cutoff_power), 0.0),
        repulsion=repulsion,
    )


def atomic_energies(output: Array, graph: Graph, around: PairGeometry, statistics: Statistics, zbl: bool) -> Array:
    """Scale, binding energy and repulsion: (N,) eV from the network's output (N,); 0 for padding.

    Output and mean binding energy of the element are switched on by the presence of neighbours, as
    1 - exp(-4 ρ) with ρ the sum of the envelope, so that a free atom keeps its reference energy.
    """
    energies = statistics.energy_scale * output
    if statistics.atom_energies:
        energies = energies + jnp.asarray(statistics.atom_energies, output.dtype)[around.species]
    energies = energies * -jnp.expm1(-4.0 * jnp.sum(around.envelope, axis=1)) + around.repulsion
    if zbl:
        energies = energies + zbl_energies(graph, around.lengths)
    return jnp.where(graph.atom_mask, energies, 0.0)
