"""Collective variables: numbers that say how far a process has come, as functions of JAX of positions and cell.

All derivatives are finite, also at zero distance and straight angles, where those that do not exist are zero. Along periodic
directions the nearest images are taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase.geometry import minkowski_reduce
from jax import Array

from mlff.basics.errors import ConfigError
from mlff.basics.numerics import safe_norm
from mlff.config.bias import Angle, Bias, Coordination, DifferenceOfDistances, Dihedral, Distance
from mlff.potential.capacity import box_of
from mlff.potential.device_list import inverse_cells

_IMAGES = np.array(list(itertools.product((-1, 0, 1), repeat=3)), np.float64)
_DEGREES = 180 / np.pi


def short_vectors(pbc: Sequence[bool], cell: np.ndarray) -> np.ndarray:
    """(3, 3) whole numbers that make short lattice vectors of `cell` (3, 3): nearest images are among their neighbours."""
    return minkowski_reduce(np.asarray(cell, np.float64), pbc)[1].astype(np.float64) if any(pbc) else np.eye(3)


def evaluate(variables: Sequence, pbc: Sequence[bool], short: Array, positions: Array, cell: Array) -> Array:
    """(d,) values at positions (n, 3) and cell (3, 3), Å: lengths in Å, angles in degrees; `short` as of `short_vectors`.

    Rows of the cell along directions that are not periodic may be anything that makes it invertible.
    """
    pairs = list(dict.fromkeys(pair for variable in variables if not callable(variable) for pair in _pairs(variable)))
    vectors = {}
    if pairs:
        first, second = np.array(pairs).T
        found = _nearest(tuple(bool(p) for p in pbc), short, positions[second] - positions[first], cell)
        vectors = {pair: found[k] for k, pair in enumerate(pairs)}
    return jnp.stack([_value(variable, vectors, positions, cell) for variable in variables])


def _pairs(variable) -> list[tuple[int, int]]:
    """The atoms from and to which a variable needs vectors, in order."""
    match variable:
        case Angle(atoms=(a, b, c)):
            return [(b, a), (b, c)]
        case DifferenceOfDistances(atoms=(a, b, c, d)):
            return [(a, b), (c, d)]
        case Coordination():
            return list(itertools.product(variable.atoms, variable.neighbors))
        case _:
            return list(itertools.pairwise(variable.atoms))


def _value(variable, vectors: dict[tuple[int, int], Array], positions: Array, cell: Array) -> Array:
    if callable(variable):
        return jnp.asarray(variable(positions, cell), positions.dtype)
    found = jnp.stack([vectors[pair] for pair in _pairs(variable)])
    match variable:
        case Distance():
            return safe_norm(found[0])
        case DifferenceOfDistances():
            return safe_norm(found[0]) - safe_norm(found[1])
        case Angle():
            return _angle(safe_norm(jnp.cross(found[0], found[1])), jnp.sum(found[0] * found[1]))
        case Dihedral():
            one, other = jnp.cross(found[0], found[1]), jnp.cross(found[1], found[2])
            return _angle(safe_norm(found[1]) * jnp.sum(found[0] * other), jnp.sum(one * other))
        case Coordination():
            return jnp.sum(1 / (1 + (safe_norm(found) / variable.r0) ** variable.power))
    raise TypeError(type(variable))


def _angle(sine: Array, cosine: Array) -> Array:
    """Degrees; 0 with zero derivatives where neither is there."""
    there = (sine != 0) | (cosine != 0)
    return jnp.where(there, jnp.arctan2(jnp.where(there, sine, 0.0), jnp.where(there, cosine, 1.0)), 0.0) * _DEGREES


def _nearest(pbc: tuple[bool, ...], short: Array, vectors: Array, cell: Array) -> Array:
    """The shortest images of vectors (p, 3), Å."""
    if not any(pbc):
        return vectors
    lattice = short @ cell
    fractions = jax.lax.stop_gradient(vectors @ inverse_cells(lattice[None])[0])
    vectors = vectors - (jnp.round(fractions) * np.array(pbc)) @ lattice
    images = _IMAGES[(_IMAGES[:, ~np.array(pbc)] == 0).all(axis=1)]
    squares = jnp.sum((vectors[:, None] + images @ lattice) ** 2, axis=2)
    return vectors + jnp.asarray(images)[jnp.argmin(squares, axis=1)] @ lattice


def check(bias: Bias, atoms: ase.Atoms) -> np.ndarray:
    """The values (d,) of the variables at `atoms`.

    Raises ConfigError: an atom that is not there, a function that JAX cannot compile or that does not give one number, a value
    or derivative that is not finite.
    """
    pbc, names = tuple(bool(p) for p in atoms.pbc), list(bias.variables)
    cell = atoms.cell.array if all(pbc) else box_of(pbc, atoms.cell.array)
    for name, variable in bias.variables.items():
        for index in getattr(variable, "every_atom", tuple)():
            if index >= len(atoms):
                raise ConfigError(
                    f"variable {name!r}: there is no atom {index}: the structure has atoms 0 to {len(atoms) - 1}"
                )
        if callable(variable):
            _check_function(name, variable, atoms.positions, cell)
    short, variables = short_vectors(pbc, atoms.cell.array), tuple(bias.variables.values())

    def found(positions):
        values = evaluate(variables, pbc, short, positions, cell)
        return values, values

    with jax.enable_x64(True):
        slopes, values = jax.jit(jax.jacrev(found, has_aux=True))(atoms.positions)
    for name, value, slope in zip(names, np.asarray(values), np.asarray(slopes), strict=True):
        if not np.isfinite(value):
            raise ConfigError(f"variable {name!r} is {value} in the starting structure; it must be a number")
        if not np.isfinite(slope).all():
            raise ConfigError(f"variable {name!r} has a derivative that is not finite in the starting structure")
    return np.asarray(values)


def _check_function(name: str, function, positions: np.ndarray, cell: np.ndarray) -> None:
    with jax.enable_x64(True):
        try:
            shape = np.shape(jax.eval_shape(function, positions, cell))
        except Exception as error:  # of the user's function
            text = str(error).splitlines()[0] if str(error) else ""
            raise ConfigError(
                f"variable {name!r} cannot be compiled ({type(error).__name__}: {text:.200}); write it with jax.numpy"
            ) from error
    if shape != ():
        raise ConfigError(f"variable {name!r} gives an array of shape {shape}, not one number")
