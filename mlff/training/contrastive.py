"""Contrastive learning: two views of the same structure, and of the same atom, are told from those of others (InfoNCE).

The features of the atoms, averaged over a structure or as they are, go through a small network (projection head, Chen et
al., ICML 2020, 1597) that is thrown away afterwards. InfoNCE is the cross entropy of finding the second view of the same
thing among those of the batch by cosine similarity (van den Oord et al., arXiv:1807.03748). With M candidates a network
that knows nothing has a loss of ln M.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mlff.basics.numerics import safe_divide
from mlff.config.options import Pretraining
from mlff.data.views import Partners
from mlff.graph import Graph
from mlff.training.losses import Sums
from mlff.training.objectives import Objective, Params
from mlff.training.step import make_loss_step
from mlff.training.task import Task

HEAD = "projection"  #: of the head among the parameters
_HIDDEN, _OUT = 64, 32  #: widths of the head
_NEVER = -1e30  #: of a similarity that does not count

Features = Callable[[Params, Graph], tuple[Array, ...]]  #: parameters, graph -> (N, channels) of each layer


class Projection(nn.Module):
    """Features (..., F) to unit vectors (..., 32): a layer of 64 smooth rectifiers, and a linear one."""

    @nn.compact
    def __call__(self, features: Array) -> Array:
        x = nn.Dense(_OUT, name="output")(nn.silu(nn.Dense(_HIDDEN, name="hidden")(features)))
        return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def head_params(seed: int, width: int) -> Params:
    """Fresh parameters of the heads of structures and of atoms, for so many features."""
    keys = jax.random.split(jax.random.key(seed), 2)
    names = ("structures", "atoms")
    return {name: Projection().init(key, jnp.zeros(width))["params"] for name, key in zip(names, keys, strict=True)}


def info_nce(first: Array, second: Array, comparable: Array, temperature: float) -> tuple[Array, Array]:
    """The sum over rows of InfoNCE, and of how many rows.

    first, second: (M, D) unit vectors, the two views of M things; comparable: (M, M) bool, symmetric, whether thing j is a
    candidate for thing i. Rows that are no candidates of their own (padding), or have no other, do not count.
    """
    similar = jnp.where(comparable, first @ second.T / temperature, _NEVER)
    counts = jnp.diagonal(comparable) & (jnp.sum(comparable, axis=1) > 1)
    losses = jax.nn.logsumexp(similar, axis=1) - jnp.diagonal(similar)
    return jnp.sum(jnp.where(counts, losses, 0.0)), jnp.sum(counts)


def both_ways(first: Array, second: Array, comparable: Array, temperature: float) -> Array:
    """The mean of `info_nce` over its rows, of finding the second view by the first and the first by the second."""
    (one, count), (other, _) = (info_nce(*views, comparable, temperature) for views in ((first, second), (second, first)))
    return safe_divide(0.5 * (one + other), count)


def structure_features(features: Array, graph: Graph) -> Array:
    """(B, F): the mean over the atoms of each structure of features (N, F); 0 for padding."""
    features = jnp.where(graph.atom_mask[:, None], features, 0.0)
    total = jax.ops.segment_sum(features, graph.structure, graph.n_atoms.shape[0], indices_are_sorted=True)
    return total / jnp.maximum(graph.n_atoms, 1)[:, None]


def contrastive(features: Features, options: Pretraining) -> Objective:
    """InfoNCE of structures against the other structures of the batch, and of atoms against the others of their element.

    The graph holds the two views of structure b as its structures 2b and 2b + 1; in place of labels come its `Partners`.
    """

    def objective(params: Params, graph: Graph, partners: Partners, progress: Array, key: Array) -> tuple[Array, Sums]:
        with jax.default_matmul_precision("float32"):
            found = jnp.concatenate(features(params, graph), axis=1)
            head = params["params"][HEAD]
            views = Projection().apply({"params": head["structures"]}, structure_features(found, graph))
            there = graph.structure_mask[::2]
            structures = both_ways(views[::2], views[1::2], there[:, None] & there, options.temperature)
            atoms = Projection().apply({"params": head["atoms"]}, found)
            paired, numbers = partners.atoms >= 0, graph.atomic_numbers
            alike = (numbers[:, None] == numbers) & paired[:, None] & paired
            single = both_ways(atoms, atoms[jnp.maximum(partners.atoms, 0)], alike, options.temperature)
        loss = (1.0 - options.atoms) * structures + options.atoms * single
        return loss, Sums(*jnp.zeros(len(Sums._fields), loss.dtype))

    return objective


@dataclass(frozen=True)
class Contrastive(Task):
    """A run of contrastive learning. `apply` gives features; both sets of batches are `PairsOfViews`."""

    @functools.cached_property
    def objective(self) -> Objective:
        """InfoNCE."""
        return contrastive(self.apply, self.config.pretraining)

    def measure(self) -> Callable:
        """`measure(params, graph, partners) -> report vector` of a batch of the validation set, compiled."""
        return make_loss_step(self.objective)

    def score(self, sums: Sums, loss: float) -> float:
        """InfoNCE, averaged over the structures of the validation set."""
        return loss
