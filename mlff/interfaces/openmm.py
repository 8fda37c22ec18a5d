"""The potential as a force of OpenMM (Eastman et al., J. Phys. Chem. B 128, 109 (2024)), whose units are nm and kJ/mol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ase
import numpy as np

from mlff.basics.errors import ConfigError, MLFFError, ModelFileError, StructureError
from mlff.basics.units import KJ_PER_MOL, LENGTH
from mlff.data.structure import Structure
from mlff.interfaces.ase import MLFFCalculator
from mlff.potential.potential import Potential

try:
    import openmm
except ImportError:
    raise ConfigError("OpenMM is not installed: pip install openmm openmmml") from None


class Computation:
    """What OpenMM's PythonForce calls: a State to its energy, kJ/mol, and forces (n, 3), kJ/mol/nm.

    In a file of OpenMM's it is the path of the model file, which must still hold the same model, or the first step says so; of
    a potential that was given as an object it is the potential.
    """

    def __init__(
        self,
        model: str | Path | Potential,
        numbers: Sequence[int],
        periodic: bool,
        precision: str | None = None,
        fingerprint: str | None = None,
    ):
        """`numbers` (n,): of the atoms that it will be asked for.

        Raises ModelFileError: the file's fingerprint is another; StructureError: an unknown element.
        """
        self.calculator = MLFFCalculator(model, precision=precision)
        potential = self.calculator.potential
        if fingerprint not in (None, potential.fingerprint):
            raise ModelFileError(f"{model}: is another model than the one this system was made with")
        self._model = model if isinstance(model, Potential) else str(Path(model).resolve())
        self._precision = precision
        self._atoms = ase.Atoms(numbers, positions=np.zeros((len(numbers), 3)), pbc=periodic)
        _refuse_unknown(potential, self._atoms.numbers)

    def __reduce__(self):
        """Of what another process makes it again."""
        fingerprint = self.calculator.potential.fingerprint
        return _again, (self._model, self._atoms.numbers.tolist(), self.periodic, self._precision, fingerprint)

    @property
    def periodic(self) -> bool:
        """Whether the box counts."""
        return bool(self._atoms.pbc.all())

    def __call__(self, state) -> tuple[float, np.ndarray]:
        """Raises StructureError, which ends the simulation: positions that are not finite, forces that are no result."""
        self._atoms.positions = state.getPositions(asNumpy=True)._value * LENGTH["nm"]
        if self.periodic:
            self._atoms.cell[:] = state.getPeriodicBoxVectors(asNumpy=True)._value * LENGTH["nm"]
        forces = self.calculator.get_property("forces", self._atoms)
        energy = self.calculator.results["energy"]
        return energy / KJ_PER_MOL, forces * (LENGTH["nm"] / KJ_PER_MOL)


class _Broken:
    """In place of a computation that cannot be made again. OpenMM does not survive an error while it reads a file."""

    def __init__(self, error: MLFFError, arguments: tuple):
        self._error, self._arguments = error, arguments

    def __reduce__(self):
        return _again, self._arguments

    def __call__(self, state):
        raise self._error


def _again(*arguments) -> Computation | _Broken:
    """What a file of OpenMM's holds."""
    try:
        return Computation(*arguments)
    except MLFFError as error:
        return _Broken(error, arguments)


def force(
    model: str | Path | Potential,
    topology,
    atoms: Sequence[int] | None = None,
    *,
    periodic: bool | None = None,
    precision: str | None = None,
) -> openmm.PythonForce:
    """A force for `System.addForce`: the energy of all atoms, or of some of them alone, by a model file or a Potential.

    `topology`: an OpenMM Topology, or the atomic numbers of all particles; `atoms`: indices of the particles that it is the
    energy of, the others count nothing; `periodic`: whether the box counts, by default if the topology has one. Constraints
    between these atoms stay what the System says: rigid. `openmmml` removes them.

    Raises StructureError: a particle without an element, or of one that the model does not know; ConfigError; ModelFileError.
    """
    numbers = _numbers(topology)
    chosen = range(len(numbers)) if atoms is None else [int(atom) for atom in atoms]
    for atom in chosen:
        if not 0 <= atom < len(numbers):
            raise StructureError(f"atom {atom} is asked for, there are {len(numbers)}")
        if not numbers[atom]:
            raise StructureError(f"particle {atom} has no element: a virtual site cannot be part of the model's atoms")
    if len(set(chosen)) != len(chosen) or not len(chosen):
        raise StructureError("each of the model's atoms must be named once, and there must be some")
    if periodic is None:
        periodic = hasattr(topology, "getPeriodicBoxVectors") and topology.getPeriodicBoxVectors() is not None
    computation = Computation(model, [numbers[atom] for atom in chosen], periodic, precision)
    made = openmm.PythonForce(computation)
    made.setName("mlff")
    made.setUsesPeriodicBoundaryConditions(periodic)
    if atoms is not None:
        made.setParticles(chosen)
    return made


def _numbers(topology) -> list[int]:
    """Atomic numbers of a Topology, 0 where an atom has no element, or those that were given."""
    if hasattr(topology, "atoms"):
        return [0 if atom.element is None else atom.element.atomic_number for atom in topology.atoms()]
    return [int(number) for number in topology]


def _refuse_unknown(potential: Potential, numbers: np.ndarray) -> None:
    """Raise StructureError for an element that it does not know, before there are positions."""
    spread = np.arange(len(numbers) * 3, dtype=float).reshape(-1, 3)
    potential.check(Structure(numbers, spread, np.zeros((3, 3)), np.zeros(3, bool), source="the model's atoms"))
