"""Dynamics of one structure, compiled together with a potential of mlff."""

from __future__ import annotations

import ase
import numpy as np
from ase.constraints import FixAtoms, FixBondLengths

from mlff.basics.errors import ConfigError
from mlff.data.placement import WIDE
from mlff.potential import capacity
from mlff.potential.potential import Potential
from mlff.simulation import bonds
from mlff.simulation.guard import Guard
from mlff.simulation.replicas import Member, Replicas, extent_of, search_of
from mlff.simulation.settings import Settings

_SHORTEST = 100  #: time steps that tau_pressure must have


def obstacle(calculator, atoms: ase.Atoms) -> str | None:
    """Why the compiled engine cannot do this; None if it can."""
    potential = getattr(calculator, "sole_potential", None)
    if not isinstance(potential, Potential):
        return "the calculator is not mlff's own"
    if type(potential) is not Potential:
        return f"the potential is a {type(potential).__name__}, which may compute otherwise"
    for constraint in atoms.constraints:
        if type(constraint) not in (FixAtoms, FixBondLengths):
            return f"the constraint {type(constraint).__name__}"
        if type(constraint) is FixBondLengths and len(constraint.pairs) > bonds.MOST:
            return f"{len(constraint.pairs):,} distances that are kept, more than {bonds.MOST}"
    search = search_of(potential, calculator.skin, atoms)
    box = capacity.box_of(search.pbc, atoms.cell.array)
    if not (np.isfinite(atoms.positions).all() and np.isfinite(box).all() and abs(np.linalg.det(box)) > 1e-6):
        return None  # the calculator says what is wrong with such a structure
    if capacity.too_many(search, atoms.positions, atoms.cell.array):
        return (
            f"{len(atoms):,} atoms in a cell too flat or too empty for a grid, whose neighbours are found faster one by one"
        )
    if potential.precision == "float32" and extent_of(search, atoms) > WIDE:
        return f"a structure wider than {2 * WIDE:g} Å in float32"
    return None


class JaxEngine(Member):
    """One structure in a compiled loop; `atoms` hold the geometry after every `advance`."""

    def __init__(
        self, atoms: ase.Atoms, settings: Settings, guard: Guard, seed: int, freedom: int, bias=None, steps: int = 0
    ):
        """`atoms` with momenta and a calculator of mlff that has computed them; a bias needs the number of `steps` in all.

        Raises StructureError.
        """
        super().__init__(Replicas([atoms], [settings], [guard], [seed], [freedom], bias, steps), 0, atoms, guard)
        self._replicas.members = [self]

    def begin(self, steps: int) -> None:
        """Start on the next steps, at most `steps`: they run while those before are written down."""
        self._replicas.begin(steps)

    def advance(self, steps: int) -> None:
        """At least one step and at most `steps`. Raises SimulationError: a limit is broken (the step that broke it is taken)."""
        self._replicas.advance(steps)
        if self.error is not None:
            raise self.error

    def restore(self, step: int, held: dict[str, np.ndarray], source: object) -> None:
        """Take up what `state` gave, at the geometry of the atoms. Raises DataError, with `source`: it does not fit."""
        self._replicas.restore([step], [held], [source])


def check_barostat(settings: Settings) -> None:
    """Raise ConfigError where the barostat is too fast for the time step."""
    if settings.ensemble == "npt" and settings.tau_pressure < _SHORTEST * settings.timestep:
        least = _SHORTEST * settings.timestep
        raise ConfigError(
            f"tau_pressure must be at least {_SHORTEST} time steps, {least:g} fs, not {settings.tau_pressure:g}"
        )
