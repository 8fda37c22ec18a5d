"""Pair potentials with the signature of a model: Lennard-Jones and Morse (oracles), and ZBL (the core of every network)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii
from jax import Array

from mlff.basics.numerics import safe_norm
from mlff.config import options as config
from mlff.graph import Graph
from mlff.models.radial import envelope


class _Pairwise(nn.Module):
    """A model whose energies depend on an atom's own pairs alone."""

    stages = 1

    def stage(self, index: int, graph: Graph, own: None, sent: None) -> Array:
        """Energies (N,), eV, of some of the atoms, see `mlff.models.common.State`."""
        return self(graph)


class LennardJones(_Pairwise):
    """4ε[(σ/r)¹² - (σ/r)⁶], smoothly cut off; every element alike. Parameters: none to learn."""

    options: config.LennardJones
    elements: tuple[int, ...] = (1,)
    statistics: None = None

    @nn.compact
    def __call__(self, graph: Graph) -> Array:
        """Per-atom energies (N,), eV: half of each pair to each atom."""
        distances = safe_norm(graph.pair_vectors, graph.neighbor_mask)
        inside = distances > 0
        power = (self.options.sigma / jnp.where(inside, distances, 1.0)) ** 6
        pairs = 4 * self.options.epsilon * (power * power - power) * envelope(distances, self.options.cutoff)
        return 0.5 * jnp.sum(jnp.where(inside, pairs, 0.0), axis=1)


class Morse(_Pairwise):
    """D [(1 - exp(-a (r - r0)))² - 1], smoothly cut off; every element alike. Parameters: none to learn."""

    options: config.Morse
    elements: tuple[int, ...] = (1,)
    statistics: None = None

    @nn.compact
    def __call__(self, graph: Graph) -> Array:
        """Per-atom energies (N,), eV: half of each pair to each atom."""
        distances = safe_norm(graph.pair_vectors, graph.neighbor_mask)
        pairs = self.options.depth * ((1 - jnp.exp(-self.options.stiffness * (distances - self.options.r0))) ** 2 - 1)
        return 0.5 * jnp.sum(jnp.where(distances > 0, pairs * envelope(distances, self.options.cutoff), 0.0), axis=1)


def zbl_energies(graph: Graph, distances: Array) -> Array:
    """Universal screened nuclear repulsion of Ziegler, Biersack and Littmark (1985), per atom (N,), eV.

    Cut off smoothly at the sum of the two covalent radii: nothing on a stretched bond, up to about 1 eV on a double one.
    `distances` (N, K) in Å, 0 in empty slots.
    """
    charge = np.arange(119.0)
    table = jnp.asarray(np.stack([charge, charge**0.23 / 0.46850, covalent_radii]), distances.dtype)
    z_i, inverse_i, radius_i = table[:, graph.atomic_numbers[:, None]]
    z_j, inverse_j, radius_j = table[:, graph.neighbor_numbers]
    reach = radius_i + radius_j
    inside = (distances > 0) & (distances < reach)
    r = jnp.where(inside, distances, 1.0)
    x = r * (inverse_i + inverse_j)  # over the screening length
    screening = 0.18175 * jnp.exp(-3.19980 * x) + 0.50986 * jnp.exp(-0.94229 * x)
    screening += 0.28022 * jnp.exp(-0.40290 * x) + 0.02817 * jnp.exp(-0.20162 * x)
    coulomb = 14.399645478 * z_i * z_j / r
    pairs = coulomb * screening * envelope(r, jnp.where(inside, reach, 2.0))
    return 0.5 * jnp.sum(jnp.where(inside, pairs, 0.0), axis=1)
