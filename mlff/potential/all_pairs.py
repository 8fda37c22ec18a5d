"""Neighbours of a few atoms, on the device: all pairs and images are compared."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.potential import bits

_BLOCK = 2_000_000  #: pairs and images that are searched at once


class Found(NamedTuple):
    """What a search found for n atoms with K slots each."""

    neighbors: Array  #: (n, K) int32; in empty slots the atom itself
    mask: Array  #: (n, K) bool
    reverse: Array | None  #: (n, K) int32: see `Graph`
    shifts: Array  #: (n, K, 3) whole cell vectors
    most: Array  #: () int32: the largest number of neighbours; above K some are missing


def search(
    pbc: tuple[bool, bool, bool], reach: float, width: int, around: tuple[int, int, int], fractions: Array, box: Array
) -> Found:
    """`Found` with K = `width`, for fractions (n, 3) of the `box` (3, 3), Å, with so many images `around` along each vector.

    The candidates of an atom are numbered by neighbour and image; those within `reach` (Å) go into slots in that order.
    """
    n, periodic = len(fractions), jnp.array(pbc)
    images = np.array(list(itertools.product(*[range(-r, r + 1) for r in around])), np.float64)
    count = len(images)
    translations = jnp.asarray(images) @ box

    def row(center):
        """(n, images) bool: which of all atoms in all images are near."""
        steps = fractions - fractions[center]
        steps = steps - jnp.round(steps) * periodic
        squares = 0.0
        for axis in range(3):  # sums of three products: matrix products would not be fused with what comes before and after
            along = steps[:, 0] * box[0, axis] + steps[:, 1] * box[1, axis] + steps[:, 2] * box[2, axis]
            squares = squares + (along[:, None] + translations[:, axis]) ** 2
        near = squares < reach**2
        return near.at[center, count // 2].set(False)

    near = jax.lax.map(row, jnp.arange(n), batch_size=max(1, min(n, _BLOCK // (n * count))))
    near = near & near.transpose(1, 0, 2)[:, :, ::-1]  # rounding must not list one direction of a pair only
    words = bits.pack(near.reshape(n, -1))
    before, most = bits.count(words)
    found, mask = bits.nth_set(words, before, jnp.arange(width, dtype=jnp.int32))
    centers = jnp.arange(n, dtype=jnp.int32)[:, None]
    neighbors, image = jnp.where(mask, found // count, centers), found % count
    place, _ = bits.rank(words, before, neighbors, centers * count + (count - 1 - image))
    own = centers * width + jnp.arange(width, dtype=jnp.int32)
    reverse = jnp.where(mask & (place < width), neighbors * width + place, own)
    steps = jnp.round(fractions[neighbors] - fractions[centers]) * periodic
    shifts = jnp.where(mask[..., None], jnp.asarray(images)[image] - steps, 0.0)
    return Found(neighbors, mask, reverse, shifts, most)
