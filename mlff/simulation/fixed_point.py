"""Positions and momenta as whole numbers, whose steps can be undone to the last bit.

A float loses digits whenever it is added to; an integer does not. A step that adds to positions a function of the momenta, or
to momenta a function of the positions, is undone by taking the same integer away (Levesque & Verlet, J. Stat. Phys. 72, 519
(1993)). Friction multiplies momenta by a factor below one, which no integer survives: `squeeze` gives what is lost to a second
integer, the remainder, in four such additions (Daubechies & Sweldens, J. Fourier Anal. Appl. 4, 247 (1998)).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array

QUANTUM = 2.0**-44  #: Å, or ASE's unit of momenta: 6e-14
LARGEST = 2.0**17  #: Å, or ASE's unit of momenta: half of what int64 holds
_ROOM = 44  #: bits that a remainder may grow by; the sum of what each step adds needs a few more, of 63


def whole(values: Array, coarse: int = 1) -> Array:
    """Floats as multiples of the quantum, int64; all of them multiples of `coarse`, a power of two."""
    return jnp.rint(values / (coarse * QUANTUM)).astype(jnp.int64) * coarse


def real(numbers: Array) -> Array:
    """Multiples of the quantum as floats, float64."""
    return numbers.astype(jnp.float64) * QUANTUM


def low(numbers: Array, coarse: int = 1) -> Array:
    """The last 16 bits of multiples of `coarse`, as int16."""
    return (numbers // coarse).astype(jnp.int16)


def restored(near: Array, low: Array, coarse: int = 1) -> Array:
    """The numbers with these last bits that are nearest to `near`: exact if they are less than 2^15 `coarse` apart."""
    return near + coarse * (low - (near // coarse).astype(jnp.int16)).astype(jnp.int64)


def factors(kept: Array) -> Array:
    """(3,) what `squeeze` and `stretch` multiply with, to keep the share `kept` of the momenta."""
    return jnp.stack([kept - 1, -1 / kept, kept * (1 - kept)])


def squeeze(factors: Array, momenta: Array, remainder: Array) -> tuple[Array, Array]:
    """Momenta times the share that is kept, and the remainder divided by it; all int64. `stretch` undoes it to the bit."""
    remainder = remainder + momenta
    momenta = momenta + scaled(factors[0], remainder)
    remainder = remainder + scaled(factors[1], momenta)
    return momenta + scaled(factors[2], remainder), remainder


def stretch(factors: Array, momenta: Array, remainder: Array) -> tuple[Array, Array]:
    """What `squeeze` was given, if the factors are the same bits."""
    momenta = momenta - scaled(factors[2], remainder)
    remainder = remainder - scaled(factors[1], momenta)
    momenta = momenta - scaled(factors[0], remainder)
    return momenta, remainder - momenta


def lifetime(kept: float) -> int:
    """How many times `squeeze` may be called before the remainder must be put aside and begun again at zero.

    A remainder grows by 1/kept each time: with friction of 0.01/fs and steps of 0.5 fs, that is 6,100 times.
    """
    return max(1, int(_ROOM * math.log(2.0) / -math.log(kept))) if 0 < kept < 1 else 1


def scaled(factor: Array, numbers: Array) -> Array:
    """Integers times a float: one product and one rounding, the same bits wherever it is compiled."""
    return jnp.rint(factor * numbers.astype(jnp.float64)).astype(jnp.int64)
