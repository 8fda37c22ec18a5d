"""Many-body message passing: atomic-cluster-expansion products with equivariant features and an invariant energy.

Per layer: (1) neighbours' features are gathered into a density on the sphere around each atom, as seen along the bond,
A_lmc = sum_j R_c(r_ij) Y_lm(r_ij) phi_jc, and for l > 0 also as they are, sum_j R'_c(r_ij) phi_jlmc; (2) powers of
that density up to the correlation order, taken pointwise on a sphere grid and projected back (Gaunt products), give the
many-body basis B_lmc of Drautz's atomic cluster expansion (Phys. Rev. B 99, 014104 (2019)) in the message-passing form
of MACE (Batatia et al., NeurIPS 2022); (3) B is mixed into new features, whose scalars are read out as energies.
Features of degree l are arrays (2l + 1, N, channels), so that mixing channels and going to and from the grid are large
plain matrix products.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from ase.data import covalent_radii
from jax import Array

from mlff.basics.numerics import dense, smooth_silu
from mlff.config import options as config
from mlff.graph import Graph
from mlff.models.activation import activate
from mlff.models.angular import sphere_grid, spherical_harmonics
from mlff.models.common import PairGeometry, State, Statistics, atomic_energies, pair_geometry
from mlff.models.contraction import sum_harmonics, sum_neighbors
from mlff.models.radial import bond_coordinate, chebyshev_basis
from mlff.models.saturation import norms, saturated

READOUT = 0.2  #: puts the forces of a fresh model at the size of those of the data, and slows the learning of the readout
BEYOND = 1.5  #: distance, in bond lengths, at which the decay of the radial functions is 1: densities stay of order one
READOUT_WIDTH = 32  #: of the network that reads out the last layer
DENSITY = "density"  #: name of what `mlff.models.saturation` needs of a layer


class ACE(nn.Module):
    """See the module's text."""

    options: config.ACE
    elements: tuple[int, ...]
    statistics: Statistics = Statistics()

    def setup(self):
        count, last = len(self.elements), self.options.layers - 1
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), (count, self.options.channels))
        self.pair_embedding = self.param("pair_embedding", around_one, (count * count, self.options.radial_basis))
        self.layer = [
            Interaction(self.options, self.elements, self.statistics.mean_neighbors, layer > 0, layer < last)
            for layer in range(last + 1)
        ]
        self.head = [Head(READOUT_WIDTH if layer == last else 0) for layer in range(last + 1)]

    def __call__(self, graph: Graph) -> Array:
        """Per-atom energies (N,), eV."""
        around = self.pairs(graph)
        return self.energies(graph, around, self.invariants(graph, around))

    def features(self, graph: Graph) -> tuple[Array, ...]:
        """What the readout sees of each atom: (N, channels) of each layer, invariant under rotation and reflection."""
        return self.invariants(graph, self.pairs(graph))

    def readout(self, graph: Graph, features: tuple[Array, ...]) -> Array:
        """Per-atom energies (N,), eV, from `features`."""
        return self.energies(graph, self.pairs(graph), features)

    def range_shapes(self) -> dict[str, tuple[int, int]]:
        """Shapes (elements, channels) of the collection `ranges`: of each layer but the first the largest norms of its densities.

        Without that collection, as in training, densities are what they are. See `mlff.models.saturation`.
        """
        shape = len(self.elements), self.options.channels
        return {f"layer_{layer}/{DENSITY}": shape for layer in range(1, self.options.layers)}

    def pairs(self, graph: Graph) -> PairGeometry:
        return pair_geometry(
            graph, self.elements, self.options.cutoff, self.statistics.inner_cutoff, self.options.cutoff_power
        )

    def invariants(self, graph: Graph, around: PairGeometry) -> tuple[Array, ...]:
        harmonics, radial = self.harmonics(around), self.radial_features(around)
        features, scalars = [self.embedding[around.species][None]], []
        for layer in self.layer:
            features = layer(graph, around.species, features, harmonics, radial)
            scalars.append(features[0][0])
        return tuple(scalars)

    @property
    def stages(self) -> int:
        """In how many steps `stage` computes what a call does."""
        return self.options.layers

    def stage(self, index: int, graph: Graph, own: State | None, sent: Array | None) -> State | Array:
        """A layer for some of the atoms, see `mlff.models.common.State`; of the last one energies (N,), eV."""
        around = self.pairs(graph)
        if own is None:
            features, sent = [self.embedding[around.species][None]], self.embedding[around.neighbor_species]
            output = 0.0
        else:
            features, output = _by_degree(own.passed, self.options.channels), own.kept[:, 0]
        layer = self.layer[index]
        features = layer(graph, around.species, features, self.harmonics(around), self.radial_features(around), sent)
        output = output + self.head[index](features[0][0])
        if index == self.stages - 1:
            return atomic_energies(output, graph, around, self.statistics, self.options.zbl)
        passed = jnp.moveaxis(jnp.concatenate(features), 0, 1)
        return State(passed.reshape(len(passed), -1), output[:, None])

    def harmonics(self, around: PairGeometry) -> list[Array]:
        """(N, 2l + 1, K) for each degree of the directions to the neighbours."""
        degrees = max(self.options.l_max, self.options.l_message)
        return [jnp.moveaxis(y, 0, 1) for y in spherical_harmonics(degrees, around.directions)]

    def radial_features(self, around: PairGeometry) -> Array:
        """(N, K, basis): functions of distance and both species that vanish smoothly at the cutoff."""
        species = around.species[:, None] * len(self.elements) + around.neighbor_species
        radii = covalent_radii[list(self.elements)]
        lengths = jnp.asarray(radii[:, None] + radii, around.distances.dtype).reshape(-1)[species]
        coordinate = bond_coordinate(around.distances, lengths)
        decay = (coordinate / bond_coordinate(jnp.ones((), lengths.dtype), 1 / BEYOND)) ** self.options.distance_decay
        basis = chebyshev_basis(coordinate, self.options.radial_basis)
        return basis * (around.envelope * decay)[..., None] * self.pair_embedding[species]

    def energies(self, graph: Graph, around: PairGeometry, features: tuple[Array, ...]) -> Array:
        output = sum(head(scalars) for head, scalars in zip(self.head, features, strict=True))
        return atomic_energies(output, graph, around, self.statistics, self.options.zbl)


class Interaction(nn.Module):
    """One layer: neighbours' features to a density, to many-body products, to new features."""

    options: config.ACE
    elements: tuple[int, ...]
    mean_neighbors: float
    saturates: bool  #: its densities are held to what the training data showed
    passes_on: bool  #: another layer follows: features of degree up to l_message, not scalars alone

    @nn.compact
    def __call__(
        self,
        graph: Graph,
        species: Array,
        features: list[Array],
        harmonics: list[Array],
        radial: Array,
        sent: Array | None = None,
    ) -> list[Array]:
        """`sent` (N, K, F): features of the neighbours where `features` are of some of the atoms only."""
        density = self.density(graph, features, harmonics, radial, sent)
        products = self.products(density, species, self.options.l_message if self.passes_on else 0)
        return self.update(products, features)

    def density(
        self, graph: Graph, features: list[Array], harmonics: list[Array], radial: Array, sent: Array | None
    ) -> list[Array]:
        """A_l (2l + 1, N, C) for l <= l_max: neighbours' features times radial functions, along the bond and as they are."""
        channels, degrees = self.options.channels, self.options.l_max + 1
        if sent is not None:
            parts = jax.lax.split(sent, [channels] * (sent.shape[2] // channels), axis=2)
            facing = jnp.concatenate(harmonics[: len(features)], axis=1)
            along = sum(facing[:, m, :, None] * part for m, part in enumerate(parts)) if len(parts) > 1 else sent
        elif len(features) == 1:
            along = features[0][0][graph.neighbors]
        else:  # each atom looks along its bonds at its own features, seen from the neighbour in the opposite direction
            opposite = jnp.concatenate([(-1) ** l * harmonics[l] for l in range(len(features))], axis=1)
            seen = sum_harmonics(opposite, jnp.moveaxis(jnp.concatenate(features), 0, 1))
            turned = seen.reshape(-1, channels).at[graph.reverse.reshape(-1)]
            along = turned.get(unique_indices=True, mode="promise_in_bounds").reshape(seen.shape)
        radial = radial * (1 / self.mean_neighbors)
        directions = jnp.concatenate(harmonics[:degrees], axis=1)
        together = jnp.moveaxis(sum_neighbors(directions, linear(self, "radial", radial, channels) * along), 1, 0)
        densities = jax.lax.split(together, [2 * l + 1 for l in range(degrees)], axis=0)
        passed = min(degrees, len(features))
        if passed > 1:
            weight = linear(self, "radial_messages", radial, channels)
        for l in range(1, passed):
            if sent is None:
                seen_as_is = [part[0][graph.neighbors] for part in jax.lax.split(features[l], [1] * (2 * l + 1), axis=0)]
            else:
                seen_as_is = parts[l * l : (l + 1) ** 2]
            densities[l] = densities[l] + jnp.stack([jnp.sum(weight * part, axis=1) for part in seen_as_is])
        return densities

    def products(self, density: list[Array], species: Array, l_out: int) -> list[Array]:
        """B_l (2l + 1, N, C) for l <= l_out: weighted powers 1 ... correlation of the mixed density."""
        l_max, correlation = self.options.l_max, self.options.correlation
        mixed = [linear(self, f"mix_{l}", a, self.options.channels) for l, a in enumerate(density)]
        if self.saturates and self.is_mutable_collection("intermediates"):
            self.sow("intermediates", DENSITY, norms(mixed))
        if self.has_variable("ranges", DENSITY):
            mixed = saturated(mixed, self.get_variable("ranges", DENSITY)[species])
        shape = mixed[0].shape[1:]
        grid = sphere_grid(correlation * l_max + l_out)
        even, odd = ([x.reshape(2 * l + 1, -1) for l, x in enumerate(mixed)][parity::2] for parity in (0, 1))
        dtype = mixed[0].dtype
        f = jnp.asarray(grid.synthesis(l_max, 0), dtype) @ jnp.concatenate(even)
        g = jnp.asarray(grid.synthesis(l_max, 1), dtype) @ jnp.concatenate(odd) if odd else jnp.zeros_like(f)
        powers = [(f, g)]
        for _ in range(correlation - 1):
            p, q = powers[-1]
            powers.append((p * f + q * g, p * g + q * f))
        products = [0.0] * (l_out + 1)
        for order, parts in enumerate(powers):
            for parity in (0, 1):
                if parity > l_out:
                    continue
                projected = jnp.asarray(grid.analysis(l_out, parity), dtype) @ parts[parity] if order else None
                start = 0
                for l in range(parity, l_out + 1, 2):
                    weight = self.param(f"product_{l}_{order + 1}", around_one, (len(self.elements), shape[1]))
                    if order == 0:
                        block = mixed[l] if l <= l_max else 0.0
                    else:
                        block = projected[start : start + 2 * l + 1].reshape(2 * l + 1, *shape)
                    start += 2 * l + 1
                    products[l] = products[l] + weight[species] * block
        return products

    def update(self, products: list[Array], features: list[Array]) -> list[Array]:
        """New features (2l + 1, N, C): products mixed over channels, plus what was there."""
        new = []
        for l, product in enumerate(products):
            feature = linear(self, f"update_{l}", product, self.options.channels)
            if l < len(features):
                feature = feature + linear(self, f"skip_{l}", features[l], self.options.channels)
            new.append(feature)
        return new


class Head(nn.Module):
    """An atom's scalars (N, C) to its share of the energy (N,): a linear map, or a small network."""

    hidden: int  #: width of the network; 0: linear

    @nn.compact
    def __call__(self, scalars: Array) -> Array:
        if self.hidden:
            scalars = activate(self, "hidden", smooth_silu, linear(self, "hidden", scalars, self.hidden))
        return READOUT * linear(self, "output", scalars, 1)[..., 0]


def _by_degree(passed: Array, channels: int) -> list[Array]:
    """(N, M C) to features (2l + 1, N, C) of each degree."""
    features = jnp.moveaxis(passed.reshape(len(passed), -1, channels), 1, 0)
    degrees = round(len(features) ** 0.5)
    return jax.lax.split(features, [2 * l + 1 for l in range(degrees)], axis=0)


def linear(module: nn.Module, name: str, x: Array, size: int) -> Array:
    """x (..., F) to (..., size) with the module's weights of that name, no bias, as one flat matrix product."""
    return dense(x, module.param(name, nn.initializers.lecun_normal(), (x.shape[-1], size)))


def around_one(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """1 with a tenth of noise: initial weights of factors."""
    return 1.0 + 0.1 * jax.random.normal(key, shape, dtype)
