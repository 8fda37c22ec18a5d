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
from mlff.graph import Graph
from mlff.models.angular import sphere_grid, spherical_harmonics
from mlff.models.atoms import Statistics, Surroundings, atomic_energies, surroundings
from mlff.models.contraction import gathered, spread
from mlff.models.radial import bessel_basis, bond_coordinate, chebyshev_basis
from mlff.models.saturation import norms, saturated

READOUT = 0.2  #: puts the forces of a fresh model at the size of those of the data, and slows the learning of the readout
BEYOND = 1.5  #: bond lengths where the decay of the radial functions is 1, so that densities stay of order one
READOUT_WIDTH = 32  #: of the last readout where the radial functions are linear


class ACE(nn.Module):
    """See the module's text; the options are those of `mlff.config.options.ACE`."""

    elements: tuple[int, ...]
    statistics: Statistics
    cutoff: float = 5.0
    channels: int = 64
    layers: int = 2
    l_max: int = 3
    l_message: int = 2
    correlation: int = 3
    radial: str = "chebyshev"
    radial_basis: int = 16
    radial_decay: float = 1.0
    envelope: int = 4
    radial_hidden: int = 0
    compact: bool = True
    passing: bool = True
    zbl: bool = True

    @nn.compact
    def __call__(self, graph: Graph) -> Array:
        """Per-atom energies (N,), eV."""
        around = surroundings(graph, self.elements, self.cutoff, self.statistics.core, self.envelope)
        harmonics = [
            jnp.moveaxis(y, 0, 1) for y in spherical_harmonics(max(self.l_max, self.l_message), around.directions)
        ]  # (N, 2l + 1, K)
        radial = self.radial_features(graph, around)
        features = [
            self.param("embedding", nn.initializers.normal(1.0), (len(self.elements), self.channels))[around.species][None]
        ]
        output = 0.0
        for layer in range(self.layers):
            last = layer == self.layers - 1
            density = self.density(layer, graph, features, harmonics, radial)
            products = self.products(layer, density, around.species, 0 if last else self.l_message)
            features = self.update(layer, products, features)
            output = output + self.readout(layer, features[0][0], last)
        return atomic_energies(output, graph, around, self.statistics, self.zbl)

    def range_shapes(self) -> dict[str, tuple[int, int]]:
        """Shapes (elements, channels) of the collection `ranges`: of each layer but the first the largest norms of its densities.

        Without that collection, as in training, densities are what they are. See `mlff.models.saturation`.
        """
        return {str(layer): (len(self.elements), self.channels) for layer in range(1, self.layers)}

    def radial_features(self, graph: Graph, around: Surroundings) -> Array:
        """(N, K, hidden or basis): functions of distance and both species that vanish smoothly at the cutoff."""
        count = len(self.elements)
        species = around.species[:, None] * count + around.species[graph.neighbors]
        fading = around.envelope
        if self.radial == "bessel":
            basis = bessel_basis(around.distances, self.cutoff, self.radial_basis)
        else:
            radii = covalent_radii[list(self.elements)]
            lengths = jnp.asarray(radii[:, None] + radii, around.distances.dtype).reshape(-1)[species]
            coordinate = bond_coordinate(around.distances, lengths)
            decay = (coordinate / bond_coordinate(jnp.ones((), lengths.dtype), 1 / BEYOND)) ** self.radial_decay
            basis = chebyshev_basis(coordinate, self.radial_basis)
            fading = fading * decay
        basis = basis * fading[..., None]
        pair = self.param("pair_embedding", _around_one, (count * count, self.radial_hidden or self.radial_basis))
        if not self.radial_hidden:
            return basis * pair[species]
        hidden = self.linear("radial_0", basis, self.radial_hidden) * pair[species]
        return smooth_silu(self.linear("radial_1", smooth_silu(hidden), self.radial_hidden))

    def density(self, layer: int, graph: Graph, features: list[Array], harmonics: list[Array], radial: Array) -> list[Array]:
        """A_l (2l + 1, N, C) for l <= l_max: neighbours' features times radial functions, along the bond and as they are."""
        if not self.compact:
            features = [self.linear(f"up_{layer}_{l}", feature, self.channels) for l, feature in enumerate(features)]
        if len(features) == 1:
            along = features[0][0][graph.neighbors]
        else:  # each atom looks along its bonds at its own features, seen from the neighbour in the opposite direction
            opposite = jnp.concatenate([(-1) ** l * harmonics[l] for l in range(len(features))], axis=1)
            seen = spread(opposite, jnp.moveaxis(jnp.concatenate(features), 0, 1))
            sent = seen.reshape(-1, self.channels).at[graph.reverse.reshape(-1)]
            along = sent.get(unique_indices=True, mode="promise_in_bounds").reshape(seen.shape)
        normalization = 1 / self.statistics.mean_neighbors
        degrees = self.l_max + 1
        parts = [range(degrees)] if self.compact else [[l] for l in range(degrees)]  # those that share radial functions
        densities = []
        for weight, part in zip(self.linears(f"radial_out_{layer}", radial * normalization, len(parts)), parts, strict=True):
            directions = jnp.concatenate([harmonics[l] for l in part], axis=1)
            density = jnp.moveaxis(gathered(directions, weight * along), 1, 0)
            densities += jax.lax.split(density, [2 * l + 1 for l in part], axis=0)
        passed = min(self.l_max, len(features) - 1) if self.passing else 0
        if passed:
            weights = self.linears(f"radial_pass_{layer}", radial * normalization, 1 if self.compact else passed)
        for l in range(1, passed + 1):
            components = jax.lax.split(features[l], [1] * (2 * l + 1), axis=0)
            weight = weights[0 if self.compact else l - 1]
            densities[l] = densities[l] + jnp.stack(
                [jnp.sum(weight * part[0][graph.neighbors], axis=1) for part in components]
            )
        return densities

    def products(self, layer: int, density: list[Array], species: Array, l_out: int) -> list[Array]:
        """B_l (2l + 1, N, C) for l <= l_out: weighted powers 1 ... correlation of the mixed density."""
        mixed = [self.linear(f"mix_{layer}_{l}", a, self.channels) for l, a in enumerate(density)]
        if layer and self.is_mutable_collection("intermediates"):
            self.sow("intermediates", str(layer), norms(mixed))
        if self.has_variable("ranges", str(layer)):
            mixed = saturated(mixed, self.get_variable("ranges", str(layer))[species])
        shape = mixed[0].shape[1:]
        grid = sphere_grid(self.correlation * self.l_max + l_out)
        even, odd = ([x.reshape(2 * l + 1, -1) for l, x in enumerate(mixed)][parity::2] for parity in (0, 1))
        dtype = mixed[0].dtype
        f = jnp.asarray(grid.synthesis(self.l_max, 0), dtype) @ jnp.concatenate(even)
        g = jnp.asarray(grid.synthesis(self.l_max, 1), dtype) @ jnp.concatenate(odd) if odd else jnp.zeros_like(f)
        powers = [(f, g)]
        for _ in range(self.correlation - 1):
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
                    weight = self.param(f"weight_{layer}_{l}_{order + 1}", _around_one, (len(self.elements), shape[1]))
                    if order == 0:
                        block = mixed[l] if l <= self.l_max else 0.0
                    else:
                        block = projected[start : start + 2 * l + 1].reshape(2 * l + 1, *shape)
                    start += 2 * l + 1
                    products[l] = products[l] + weight[species] * block
        return products

    def update(self, layer: int, products: list[Array], features: list[Array]) -> list[Array]:
        """New features (2l + 1, N, C): products mixed over channels, plus what was there."""
        new = []
        for l, product in enumerate(products):
            feature = self.linear(f"down_{layer}_{l}", product, self.channels)
            if l < len(features):
                feature = feature + self.linear(f"skip_{layer}_{l}", features[l], self.channels)
            new.append(feature)
        return new

    def readout(self, layer: int, scalars: Array, last: bool) -> Array:
        """(N,): a linear map of the scalars, on the last layer a small network."""
        if last:
            scalars = smooth_silu(self.linear("readout_hidden", scalars, self.radial_hidden or READOUT_WIDTH))
        return READOUT * self.linear(f"readout_{layer}", scalars, 1)[..., 0]

    def linears(self, name: str, x: Array, count: int) -> list[Array]:
        """`linear` to `count` times as many channels as there are, each part as a product of its own: nothing is cut or joined."""
        weights = self.param(name, nn.initializers.lecun_normal(), (x.shape[-1], count * self.channels))
        return [dense(x, part) for part in jax.lax.split(weights, [self.channels] * count, axis=1)]

    def linear(self, name: str, x: Array, size: int) -> Array:
        """x (..., F) to (..., size), no bias, as one flat matrix product; variance kept at the start."""
        weights = self.param(name, nn.initializers.lecun_normal(), (x.shape[-1], size))
        return dense(x, weights)


def _around_one(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    return 1.0 + 0.1 * jax.random.normal(key, shape, dtype)
