"""Collective variables: ASE's values, exact derivatives, nearest images, and no NaN where a derivative does not exist."""

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlff.basics.errors import ConfigError
from mlff.config.bias import make_bias
from mlff.simulation import collective

VARIABLES = {
    "r": {"kind": "distance", "atoms": [0, 1]},
    "a": {"kind": "angle", "atoms": [0, 1, 2]},
    "t": {"kind": "dihedral", "atoms": [0, 1, 2, 3]},
    "c": {"kind": "coordination", "atoms": [0, 1], "neighbors": [2, 3, 4], "r0": 1.5, "power": 6},
    "q": {"kind": "difference_of_distances", "atoms": [0, 1, 2, 1]},
}
CELLS = {
    "molecule": (None, False),
    "sheared": (np.array([[3.0, 0, 0], [5.3, 3.5, 0], [-4.0, 7.1, 3.2]]), True),
    "left_handed": (np.array([[0, 3.0, 0], [3.5, 0.4, 0], [0.3, 0.2, 3.8]]), True),
    "slab": (np.array([[3.0, 0, 0], [4.4, 3.5, 0], [0, 0, 9.0]]), (True, True, False)),
}
each_cell = pytest.mark.parametrize("cell", CELLS)


def atoms_in(cell):
    rng = np.random.default_rng(4)
    vectors, pbc = CELLS[cell]
    return ase.Atoms("OHCHO", positions=rng.uniform(-6, 6, (5, 3)), cell=vectors, pbc=pbc)


def values_of(atoms, variables=VARIABLES):
    """A function of positions, and what `check` says of the atoms."""
    bias = make_bias({"variables": variables})
    box = atoms.cell.array if atoms.pbc.all() else collective.box_of(atoms.pbc, atoms.cell.array)
    short = collective.short_vectors(atoms.pbc, atoms.cell.array)

    def function(positions):
        return collective.evaluate(tuple(bias.variables.values()), tuple(atoms.pbc), short, positions, box)

    return function, collective.check(bias, atoms)


@each_cell
def test_values_are_ases(cell):
    atoms = atoms_in(cell)
    mic = bool(atoms.pbc.any())
    _, (r, a, t, c, q) = values_of(atoms)
    assert r == pytest.approx(atoms.get_distance(0, 1, mic=mic), abs=1e-9)
    assert a == pytest.approx(atoms.get_angle(0, 1, 2, mic=mic), abs=1e-7)
    assert t % 360 == pytest.approx(atoms.get_dihedral(0, 1, 2, 3, mic=mic), abs=1e-7)
    assert q == pytest.approx(atoms.get_distance(0, 1, mic=mic) - atoms.get_distance(2, 1, mic=mic), abs=1e-9)
    near = [atoms.get_distance(i, j, mic=mic) for i in (0, 1) for j in (2, 3, 4)]
    assert c == pytest.approx(sum((1 - (d / 1.5) ** 6) / (1 - (d / 1.5) ** 12) for d in near), abs=1e-9)


@each_cell
def test_derivatives_are_those_of_finite_differences_and_lattice_vectors_change_nothing(cell):
    atoms = atoms_in(cell)
    with jax.enable_x64(True):
        function, values = values_of(atoms)
        step, rng = 1e-5, np.random.default_rng(0)
        ways = [step * rng.standard_normal((5, 3)) for _ in range(3)]
        whole = np.zeros((5, 3))
        whole[[1, 3]] = np.array([2, -1, 3]) * atoms.pbc @ atoms.cell.array
        slopes = np.asarray(jax.jit(jax.jacrev(function))(atoms.positions))
        moved = np.array([*(sign * way for way in ways for sign in (1, -1)), whole])
        found = np.asarray(jax.jit(jax.vmap(function))(atoms.positions + moved))
    np.testing.assert_allclose(found[-1], values, atol=1e-8)
    for k, way in enumerate(ways):
        difference = (found[2 * k] - found[2 * k + 1]) / 2
        np.testing.assert_allclose(np.sum(slopes * way, axis=(1, 2)), difference, rtol=1e-6, atol=1e-10)


def test_no_derivative_is_nan_where_none_exists():
    """On top of each other, straight, and all atoms in a line."""
    variables = {name: each for name, each in VARIABLES.items() if name != "c"}
    bad = np.array([np.zeros((5, 3)), np.arange(5)[:, None] * [1.0, 0, 0], np.eye(5, 3)[[0, 0, 1, 1, 2]]])
    with jax.enable_x64(True):
        function, _ = values_of(ase.Atoms("OHCHO", positions=bad[0]), variables)
        values, slopes = jax.jit(jax.vmap(lambda x: (function(x), jax.jacrev(function)(x))))(bad)
    assert np.isfinite(values).all() and np.isfinite(slopes).all()


def test_a_function_of_the_user():
    atoms = atoms_in("molecule")
    _, values = values_of(atoms, {"z": lambda positions, cell: jnp.mean(positions[:, 2]) + 0 * cell[0, 0]})
    assert values[0] == pytest.approx(atoms.positions[:, 2].mean())


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ({"kind": "distance", "atoms": [0, 5]}, "variable 'x': there is no atom 5: the structure has atoms 0 to 4"),
        (lambda positions, cell: positions[0], r"gives an array of shape \(3,\), not one number"),
        (lambda positions, cell: jnp.log(-1.0 - positions[0, 0] ** 2), "is nan in the starting structure"),
        (lambda positions, cell: jnp.sqrt(0.0 * positions[0, 0]), "a derivative that is not finite"),
        (lambda positions, cell: float(positions[0, 0]), "cannot be compiled .* write it with jax.numpy"),
        (lambda positions: 0.0, "cannot be compiled"),
    ],
)
def test_what_is_no_variable_is_said(variable, message):
    with pytest.raises(ConfigError, match=message):
        values_of(atoms_in("molecule"), {"x": variable})
