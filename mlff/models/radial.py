"""Functions of a distance: envelopes and bases, smooth enough for forces and Hessians."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.polynomial.chebyshev import chebder

from mlff.basics.numerics import dense


def envelope(distances: Array, cutoff, p: int = 6) -> Array:
    """1 at r = 0, 0 from the cutoff on, with two continuous derivatives there (Gasteiger et al., ICLR 2020, eq. 8)."""
    x = distances / cutoff
    polynomial = 1 - x**p * ((p + 1) * (p + 2) / 2 - p * (p + 2) * x + p * (p + 1) / 2 * x**2)
    return jnp.where(x < 1, polynomial, 0.0)


def bond_coordinate(distances: Array, lengths: Array | float) -> Array:
    """From 1 at r = 0 to 0 far away, steepest near the bond length; shape as `distances`.

    The Agnesi transform 1 / (1 + a x^q / (1 + x^(q - p))) of x = r / length (Witt et al., J. Chem. Phys. 159, 164101 (2023),
    with the constants of MACE), written so that nothing overflows at small x; 1, constant, below x = 0.001.
    """
    a, q, p = 1.0805, 0.9183, 4.5791
    logarithm = jnp.log(jnp.maximum(distances / lengths, 1e-3))
    return 1 / (1 + a * jnp.exp(p * logarithm) / (1 + jnp.exp((p - q) * logarithm)))


def chebyshev_basis(coordinate: Array, size: int) -> Array:
    """2 / (n + 1) T_n(2 t - 1) for n = 0 ... size - 1, shape (..., size), of a coordinate t from 0 to 1.

    The factors make a smooth function the likely one: with all polynomials alike, 12 of them generalise worse than 8.
    """
    return _chebyshev(size, 2 * coordinate - 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _chebyshev(size: int, u: Array) -> Array:
    polynomials = [jnp.ones_like(u), u]
    for _ in range(size - 2):
        polynomials.append(2 * u * polynomials[-1] - polynomials[-2])
    rows = jnp.stack(polynomials[:size]).reshape(size, -1)
    factors = jnp.asarray(np.diag(_factors(size)), u.dtype)  # a matrix product puts them side by side in a fifth of the time
    return jnp.einsum("np,nm->pm", rows, factors, precision=jax.lax.Precision.HIGHEST).reshape(*u.shape, size)


@_chebyshev.defjvp
def _chebyshev_jvp(size: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The derivatives of the polynomials are sums of them: one matrix product, not the recursion run backward."""
    (u,), (tangent,) = primals, tangents
    basis, factors = _chebyshev(size, u), _factors(size)
    derivatives = np.pad(chebder(np.diag(factors)), ((0, 1), (0, 0))) / factors[:, None]
    return basis, dense(basis, jnp.asarray(derivatives, u.dtype)) * tangent[..., None]


def _factors(size: int) -> np.ndarray:
    return 2 / np.arange(1, size + 1)


def gaussian_basis(distances: Array, cutoff: float, size: int) -> Array:
    """Gaussians centred on an even grid over [0, cutoff], as wide as their spacing; shape (..., size)."""
    centers = np.linspace(0.0, cutoff, size)
    width = cutoff / (size - 1)
    return jnp.exp(-0.5 * ((distances[..., None] - centers.astype(distances.dtype)) / width) ** 2)
