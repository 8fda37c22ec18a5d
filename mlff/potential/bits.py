"""Sets of candidates as bits: what a search for neighbours on the device found near, before it goes into slots."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def pack(near: Array) -> Array:
    """Rows of bool (n, c) as words of 32 bits (n, w)."""
    near = jnp.pad(near, [(0, 0), (0, -near.shape[1] % 32)]).reshape(len(near), -1, 32)
    return jnp.sum(near.astype(jnp.uint32) << jnp.arange(32, dtype=jnp.uint32), axis=2, dtype=jnp.uint32)


def count(words: Array) -> tuple[Array, Array]:
    """The bits set in earlier words of each row (n, w), and the most in a row."""
    counts = jax.lax.population_count(words).astype(jnp.int32)
    running = jnp.cumsum(counts, axis=1, dtype=jnp.int32)
    return running - counts, running[:, -1].max()


def nth_set(words: Array, before: Array, wanted: Array) -> tuple[Array, Array]:
    """(n, K) places of the bits set in each row, by their number `wanted` (K,), and whether there are so many; else 0."""
    word = (
        jax.vmap(lambda counts: jnp.searchsorted(counts, wanted, side="right", method="scan"))(before).astype(jnp.int32) - 1
    )
    bits = jnp.take_along_axis(words, word, axis=1)
    left = wanted - jnp.take_along_axis(before, word, axis=1)
    there = left < jax.lax.population_count(bits).astype(jnp.int32)
    bit = jnp.zeros_like(left)
    for size in (16, 8, 4, 2, 1):  # is it in the lower half of what is left of the word, or in the upper?
        lower = (bits >> bit.astype(jnp.uint32)) & jnp.uint32(2**size - 1)
        below = jax.lax.population_count(lower).astype(jnp.int32)
        upper = left >= below
        left, bit = left - jnp.where(upper, below, 0), bit + jnp.where(upper, size, 0)
    return jnp.where(there, word * 32 + bit, 0), there


def rank(words: Array, before: Array, row: Array, place: Array) -> tuple[Array, Array]:
    """How many bits are set before `place` in a `row`, both (n, K) int32, and whether it is set."""
    word, bit = place // 32, (place % 32).astype(jnp.uint32)
    bits = words[row, word]
    lower = bits & ((jnp.uint32(1) << bit) - jnp.uint32(1))
    return before[row, word] + jax.lax.population_count(lower).astype(jnp.int32), (bits >> bit) & 1 > 0
