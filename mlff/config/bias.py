"""What a simulation is biased by: collective variables, restraints and walls, metadynamics; read from YAML.

Lengths are in Å, angles and dihedrals in degrees, energies in eV, a stiffness in eV per unit of its variable squared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from mlff.config.load import Kinds, read_yaml, validated
from mlff.config.options import Section

Atom = Annotated[int, Field(ge=0)]
_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


class _Pairs(Section):
    @model_validator(mode="after")
    def _different(self):
        for group in self.groups():
            if len(set(group)) < len(group):
                raise ValueError(f"the same atom twice in {list(group)}")
        return self

    def groups(self) -> list[tuple[int, ...]]:
        """Atoms that have to differ from each other."""
        return [self.atoms]

    def every_atom(self) -> tuple[int, ...]:
        """All atoms that it depends on."""
        return self.atoms


class Distance(_Pairs):
    """The distance of two atoms, Å."""

    kind: Literal["distance"]
    atoms: tuple[Atom, Atom] = Field(description="two atoms, numbered from 0")


class Angle(_Pairs):
    """The angle at the second of three atoms, degrees."""

    kind: Literal["angle"]
    atoms: tuple[Atom, Atom, Atom] = Field(description="three atoms, the second in the middle")


class Dihedral(_Pairs):
    """The dihedral angle of four atoms in a chain, degrees from -180 to 180."""

    kind: Literal["dihedral"]
    atoms: tuple[Atom, Atom, Atom, Atom] = Field(description="four atoms in the order of the chain")


class DifferenceOfDistances(_Pairs):
    """The distance of the first two atoms less that of the last two, Å: for an atom that goes from one partner to another."""

    kind: Literal["difference_of_distances"]
    atoms: tuple[Atom, Atom, Atom, Atom] = Field(description="four atoms: a, b, c, d of d(a, b) - d(c, d)")

    def groups(self) -> list[tuple[int, ...]]:
        """Each pair for itself."""
        return [self.atoms[:2], self.atoms[2:]]


class Coordination(_Pairs):
    """The number of `neighbors` around `atoms`: the sum over all pairs of 1 / (1 + (r/r0)^power).

    With an even `power` it is PLUMED's rational switching function with NN = power, MM = 2 NN.
    """

    kind: Literal["coordination"]
    atoms: tuple[Atom, ...] = Field(min_length=1, description="the atoms whose neighbours are counted")
    neighbors: tuple[Atom, ...] = Field(min_length=1, description="the atoms that count as neighbours")
    r0: float = Field(gt=0, description="distance that counts as half a neighbour, Å")
    power: int = Field(6, ge=2, le=24, description="how sharp the switch is")

    def groups(self) -> list[tuple[int, ...]]:
        """All of them together."""
        return [self.atoms + self.neighbors]

    def every_atom(self) -> tuple[int, ...]:
        """Both groups."""
        return self.atoms + self.neighbors


def _kind(value: Any) -> str | None:
    if callable(value):
        return "function"
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


KINDS = {
    "distance": Distance,
    "angle": Angle,
    "dihedral": Dihedral,
    "difference_of_distances": DifferenceOfDistances,
    "coordination": Coordination,
}
_KINDS = Kinds("variables", 2, "kind", KINDS)
Variable = Annotated[
    Annotated[Distance, Tag("distance")]
    | Annotated[Angle, Tag("angle")]
    | Annotated[Dihedral, Tag("dihedral")]
    | Annotated[DifferenceOfDistances, Tag("difference_of_distances")]
    | Annotated[Coordination, Tag("coordination")]
    | Annotated[Callable, Tag("function")],
    Discriminator(_kind),
]


class Restraint(Section):
    """Free between `lower` and `upper`, stiffness/2 times the square of the excess outside.

    `center` alone is harmonic, both bounds a flat bottom, one bound a wall. With `move_to` and `move_steps` the center goes
    there at constant speed (steered dynamics) and stays.
    """

    variable: str = Field(description="name of a variable")
    stiffness: float = Field(gt=0, description="eV per unit of the variable squared")
    center: float | None = Field(None, description="lower and upper bound in one")
    lower: float | None = Field(None, description="lower bound")
    upper: float | None = Field(None, description="upper bound")
    move_to: float | None = Field(None, description="where the center goes ...")
    move_steps: int | None = Field(None, ge=1, description="... within so many steps")

    @model_validator(mode="after")
    def _bounds(self):
        if (self.center is None) == (self.lower is None and self.upper is None):
            raise ValueError("give either center, or lower, upper or both")
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise ValueError(f"lower {self.lower:g} is above upper {self.upper:g}")
        if (self.move_to is None) != (self.move_steps is None) or (self.move_to is not None and self.center is None):
            raise ValueError("move_to, move_steps and center go together")
        return self


class Metadynamics(Section):
    """Hills of energy where the simulation has been, on one or two variables.

    Well-tempered: Barducci, Bussi & Parrinello, Phys. Rev. Lett. 100, 020603 (2008).
    """

    variables: tuple[str, ...] = Field(min_length=1, max_length=2, description="names of one or two variables")
    height: float = Field(gt=0, description="of the first hill, eV")
    widths: tuple[float, ...] = Field(description="standard deviation of a hill along each variable")
    every: int = Field(ge=1, description="time steps between hills")
    bias_factor: float | None = Field(
        None,
        gt=1,
        description="well-tempered: the variables move as at so many times the temperature; none: all hills as high",
    )

    @model_validator(mode="after")
    def _widths(self):
        if len(set(self.variables)) < len(self.variables):
            raise ValueError("the same variable twice")
        if len(self.widths) != len(self.variables) or not all(width > 0 for width in self.widths):
            raise ValueError(f"widths: {len(self.variables)} positive numbers are expected, one for each variable")
        return self


class Bias(Section):
    """Variables, which are logged, and what acts on them.

    In Python a variable may be a function `f(positions, cell)` of JAX, (n, 3) and (3, 3) in Å, that gives one number.
    """

    variables: dict[str, Variable] = Field(min_length=1, description="name -> kind, atoms, ...")
    restraints: tuple[Restraint, ...] = Field((), description="restraints and walls")
    metadynamics: Metadynamics | None = Field(None, description="hills")

    @model_validator(mode="after")
    def _known(self):
        for name in self.variables:
            if not _NAME.fullmatch(name):
                raise ValueError(f"variables: the name {name!r} must be letters, digits and underscores, a letter first")
        used = [restraint.variable for restraint in self.restraints]
        for name in (*used, *(self.metadynamics.variables if self.metadynamics else ())):
            if name not in self.variables:
                raise ValueError(f"there is no variable {name!r}; known: {', '.join(self.variables)}")
        for restraint in self.restraints:
            sides = restraint.lower is None or restraint.upper is None
            if restraint.center is None and sides and period(self.variables[restraint.variable]):
                raise ValueError(f"the dihedral {restraint.variable!r} is periodic: a restraint needs lower and upper")
        return self

    def description(self) -> str:
        """JSON: the same text for the same bias (functions by their names)."""
        return json.dumps(self.model_dump(), default=_named)


def period(variable) -> float | None:
    """Of a variable: 360 degrees of a dihedral, None of others."""
    return 360.0 if isinstance(variable, Dihedral) else None


def load_bias(path: str | Path) -> Bias:
    """Read a YAML file. Raises ConfigError: no such file, not YAML, unknown or wrong key (with its path)."""
    return make_bias(read_yaml(path, "variables: ..., restraints: ..."), str(path))


def make_bias(raw: dict[str, Any], source: str = "bias") -> Bias:
    """Validate a plain dictionary. Raises ConfigError."""
    return validated(Bias, raw, source, _KINDS)


def _named(value) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', repr(value))}"
