"""SchNet: continuous-filter convolutions on invariant features (Schütt et al., J. Chem. Phys. 148, 241722 (2018))."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mlff.basics.numerics import dense
from mlff.config import options as config
from mlff.graph import Graph
from mlff.models.activation import activate
from mlff.models.common import PairGeometry, State, Statistics, atomic_energies, pair_geometry
from mlff.models.radial import gaussian_basis


class SchNet(nn.Module):
    """See the module's text."""

    options: config.SchNet
    elements: tuple[int, ...]
    statistics: Statistics = Statistics()

    def setup(self):
        shape = len(self.elements), self.options.channels
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), shape)
        self.layer = [Interaction(self.options.channels, self.statistics.mean_neighbors) for _ in range(self.options.layers)]
        self.head = Head(self.options.channels // 2)

    def __call__(self, graph: Graph) -> Array:
        """Per-atom energies (N,), eV."""
        around = self.pairs(graph)
        return self.energies(graph, around, self.invariants(graph, around))

    def features(self, graph: Graph) -> tuple[Array, ...]:
        """What the readout sees of each atom: (N, channels), invariant under rotation and reflection."""
        return self.invariants(graph, self.pairs(graph))

    def readout(self, graph: Graph, features: tuple[Array, ...]) -> Array:
        """Per-atom energies (N,), eV, from `features`."""
        return self.energies(graph, self.pairs(graph), features)

    def pairs(self, graph: Graph) -> PairGeometry:
        return pair_geometry(graph, self.elements, self.options.cutoff, self.statistics.inner_cutoff)

    def invariants(self, graph: Graph, around: PairGeometry) -> tuple[Array, ...]:
        basis = gaussian_basis(around.distances, self.options.cutoff, self.options.radial_basis)
        features = self.embedding[around.species]
        for layer in self.layer:
            features = layer(graph, around.envelope, features, basis)
        return (features,)

    @property
    def stages(self) -> int:
        """In how many steps `stage` computes what a call does."""
        return self.options.layers

    def stage(self, index: int, graph: Graph, own: State | None, sent: Array | None) -> State | Array:
        """A layer for some of the atoms, see `mlff.models.common.State`; of the last one energies (N,), eV."""
        around = self.pairs(graph)
        if own is None:
            own = State(None, self.embedding[around.species])
            sent = self.sent(0, self.embedding)[around.neighbor_species]
        basis = gaussian_basis(around.distances, self.options.cutoff, self.options.radial_basis)
        features = self.layer[index](graph, around.envelope, own.kept, basis, sent)
        if index == self.stages - 1:
            return self.energies(graph, around, (features,))
        return State(self.sent(index + 1, features), features)

    def sent(self, index: int, features: Array) -> Array:
        """(N, channels): what neighbours see of features in a layer."""
        return dense(features, self.layer[index].get_variable("params", "in"))

    def energies(self, graph: Graph, around: PairGeometry, features: tuple[Array, ...]) -> Array:
        return atomic_energies(self.head(features[0]), graph, around, self.statistics, self.options.zbl)


class Interaction(nn.Module):
    """One layer: filters of the distance times neighbours' features, summed, through a network."""

    channels: int
    mean_neighbors: float

    @nn.compact
    def __call__(self, graph: Graph, envelope: Array, features: Array, basis: Array, sent: Array | None = None) -> Array:
        """`sent` (N, K, C): what the neighbours pass where `features` are of some of the atoms only."""
        hidden = activate(self, "filter_0", shifted_softplus, linear(self, "filter_0", basis, self.channels))
        filters = linear(self, "filter_1", hidden, self.channels) * envelope[..., None]
        if sent is None:
            sent = linear(self, "in", features, self.channels, bias=False)[graph.neighbors]
        messages = jnp.sum(filters * sent, axis=1) / jnp.sqrt(self.mean_neighbors)
        hidden = activate(self, "out_0", shifted_softplus, linear(self, "out_0", messages, self.channels))
        return features + linear(self, "out_1", hidden, self.channels)


class Head(nn.Module):
    """An atom's features (N, C) to its share of the energy (N,)."""

    hidden: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        hidden = activate(self, "hidden", shifted_softplus, linear(self, "hidden", features, self.hidden))
        return linear(self, "output", hidden, 1, bias=False)[..., 0]


def linear(module: nn.Module, name: str, x: Array, size: int, bias: bool = True) -> Array:
    """x (..., F) to (..., size) with the module's weights of that name."""
    y = dense(x, module.param(name, nn.initializers.lecun_normal(), (x.shape[-1], size)))
    return y + module.param(f"{name}_bias", nn.initializers.zeros, (size,)) if bias else y


def shifted_softplus(x: Array) -> Array:
    """log(1 + exp(x)) - log 2: infinitely smooth."""
    return jax.nn.softplus(x) - jnp.log(2.0)
