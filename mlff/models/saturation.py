"""Densities that stay near what the training data showed.

Powers of a density are right where data were and grow without bound beyond: a density five times as large as any of the
training data, cubed, is an energy that no atom has. So beyond the largest norm that the data reached a density
keeps its direction and grows no further than `LIMIT` times that norm. Where data were nothing changes, not by a bit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

LIMIT = 1.4  #: times the largest norm of the data; 1.2 costs accuracy of few structures, 1.75 leaves errors above 1 eV/Å at 1,200 K


def norms(density: list[Array]) -> Array:
    """(N, C): the norm of a density A_lmc, given as arrays (2l + 1, N, C), over l and m."""
    squares = _squares(density)
    return jnp.sqrt(jnp.where(squares > 0, squares, 1.0)) * (squares > 0)


def saturated(density: list[Array], largest: Array) -> list[Array]:
    """The density scaled, channel by channel, so that its norm stays below LIMIT times `largest` (N, C).

    The same up to `largest`; beyond it the norm x (in units of `largest`) becomes 1 + w u / (1 + u⁴)^(1/4), u = (x - 1) / w,
    w = LIMIT - 1, which has four continuous derivatives.
    """
    x = jnp.sqrt(jnp.maximum(_squares(density) / largest**2, 1.0))
    u = jnp.minimum((x - 1) / (LIMIT - 1), 1e6)  # its fourth power is a number in float32
    norm = 1 + (LIMIT - 1) * u * jax.lax.rsqrt(jnp.sqrt(1 + u**4))
    return [part * (norm / x) for part in density]


def _squares(density: list[Array]) -> Array:
    return sum(jnp.sum(part * part, axis=0) for part in density)
