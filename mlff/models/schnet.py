"""SchNet: continuous-filter convolutions on invariant features (Schütt et al., J. Chem. Phys. 148, 241722 (2018))."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mlff.basics.numerics import dense
from mlff.graph import Graph
from mlff.models.atoms import Statistics, atomic_energies, surroundings
from mlff.models.radial import gaussian_basis


class SchNet(nn.Module):
    """See the module's text; the options are those of `mlff.config.options.SchNet`."""

    elements: tuple[int, ...]
    statistics: Statistics
    cutoff: float = 5.0
    channels: int = 64
    layers: int = 3
    radial_basis: int = 32
    zbl: bool = True

    @nn.compact
    def __call__(self, graph: Graph) -> Array:
        """Per-atom energies (N,), eV."""
        around = surroundings(graph, self.elements, self.cutoff, self.statistics.core)
        basis = gaussian_basis(around.distances, self.cutoff, self.radial_basis)
        features = self.param("embedding", nn.initializers.normal(1.0), (len(self.elements), self.channels))[around.species]
        for layer in range(self.layers):
            filters = self.linear(f"filter_{layer}_1", shifted_softplus(self.linear(f"filter_{layer}_0", basis)))
            filters = filters * around.envelope[..., None]
            atoms = self.linear(f"in_{layer}", features, bias=False)
            messages = jnp.sum(filters * atoms[graph.neighbors], axis=1) / jnp.sqrt(self.statistics.mean_neighbors)
            features = features + self.linear(f"out_{layer}_1", shifted_softplus(self.linear(f"out_{layer}_0", messages)))
        hidden = shifted_softplus(self.linear("readout_0", features, self.channels // 2))
        output = self.linear("readout_1", hidden, 1, bias=False)[..., 0]
        return atomic_energies(output, graph, around, self.statistics, self.zbl)

    def linear(self, name: str, x: Array, size: int | None = None, bias: bool = True) -> Array:
        weights = self.param(name, nn.initializers.lecun_normal(), (x.shape[-1], size or self.channels))
        y = dense(x, weights)
        return y + self.param(f"{name}_bias", nn.initializers.zeros, (size or self.channels,)) if bias else y


def shifted_softplus(x: Array) -> Array:
    """log(1 + exp(x)) - log 2: infinitely smooth."""
    return jax.nn.softplus(x) - jnp.log(2.0)
