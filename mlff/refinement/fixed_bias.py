"""A bias that stays as it is while a run is made, so that weights undo it exactly: restraints, and the hills of a finished metadynamics."""

from __future__ import annotations

from collections.abc import Callable

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mlff.basics.errors import ConfigError
from mlff.config.bias import Bias, Restraint, load_bias, period
from mlff.config.sampling import Sampling
from mlff.potential.capacity import box_of
from mlff.simulation import collective
from mlff.simulation.bias import make_bias, push
from mlff.simulation.hills import HillsTable, read_hills
from mlff.simulation.settings import Settings

_HILLS = "hills_of_file"  #: name of the variable that stands for them
_ABOVE = 1.0  #: eV that the hills are raised by, so that a square root has a derivative


class FixedBias:
    """What a file says, for runs of `atoms`."""

    def __init__(self, options: Sampling, atoms: ase.Atoms):
        """Raises ConfigError, DataError: wrong files, a bias that changes during the run, hills on other variables."""
        bias = load_bias(options.bias)
        if any(restraint.move_to is not None for restraint in bias.restraints):
            raise ConfigError(f"{options.bias}: a restraint moves; averages need one that stays, leave move_to out")
        if bias.metadynamics is not None and options.hills is None:
            raise ConfigError(
                f"{options.bias}: hills would be added during the run; finish that run (mlff md) and give its file as sampling.hills"
            )
        self.variables = bias.variables
        if options.hills is not None:
            bias = _with_hills(bias, read_hills(options.hills), options, atoms)
        self.bias = bias.model_copy(update={"metadynamics": None})
        collective.check(self.bias, atoms)
        self._atoms = atoms
        shape, rules, nothing = make_bias(self.bias, atoms, [Settings(temperature=options.temperature)], 0)
        pbc = tuple(bool(p) for p in atoms.pbc)
        self._pushed = jax.jit(lambda *where: push(shape, rules, nothing, pbc, *where)[0])

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values (M, d) of the variables and energies (M,) of the bias, eV, in frames (M, n, 3), Å."""
        pbc, cell = self._atoms.pbc, self._atoms.cell.array
        cells = np.broadcast_to(cell if pbc.all() else box_of(tuple(pbc), cell), (len(positions), 3, 3))
        with jax.enable_x64(True):
            found = self._pushed(positions, cells, np.zeros(len(positions), np.int64))
        return np.asarray(found.values)[:, : len(self.variables)], np.asarray(found.energy)


def _with_hills(bias: Bias, hills: HillsTable, options: Sampling, atoms: ase.Atoms) -> Bias:
    """Hills as a harmonic restraint of stiffness 1 of the variable √(2 (V + 1 eV)): its energy is V + 1 eV."""
    for name in hills.names:
        if name not in bias.variables:
            raise ConfigError(
                f"{options.hills}: hills on {name!r}, which {options.bias} does not know; it has {', '.join(bias.variables)}"
            )
    energy = _energy_of(hills, [bias.variables[name] for name in hills.names], atoms)
    variables = bias.variables | {_HILLS: lambda positions, cell: jnp.sqrt(2 * (energy(positions, cell) + _ABOVE))}
    restraints = (*bias.restraints, Restraint(variable=_HILLS, stiffness=1.0, center=0.0))
    return bias.model_copy(update={"variables": variables, "restraints": restraints})


def _energy_of(hills: HillsTable, variables: list, atoms: ase.Atoms) -> Callable:
    """(positions (n, 3), cell (3, 3)) -> eV."""
    short, pbc = collective.short_vectors(atoms.pbc, atoms.cell.array), tuple(bool(p) for p in atoms.pbc)
    spans = np.array([period(variable) or np.inf for variable in variables])

    def energy(positions: Array, cell: Array) -> Array:
        away = collective.evaluate(variables, pbc, short, positions, cell) - hills.centers
        away = away - jnp.where(np.isfinite(spans), spans * jnp.round(away / spans), 0.0)
        return jnp.sum(hills.heights * jnp.exp(-0.5 * jnp.sum((away / hills.widths) ** 2, axis=1)))

    return energy
