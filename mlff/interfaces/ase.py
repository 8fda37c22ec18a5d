"""A potential as an ASE calculator: energy, forces, stress and per-atom energies, fast enough for small molecules."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import ase
import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from mlff.basics.errors import ConfigError, StructureError
from mlff.basics.runtime import refuse_forked
from mlff.basics.units import to_six
from mlff.data.structure import Structure
from mlff.potential import selfcheck
from mlff.potential.neighborlist import VerletList
from mlff.potential.potential import Potential
from mlff.potential.result import unpack

_SPREADS = "energy_std", "forces_std"  #: of a committee: no properties of ASE's, which lets no others into `results`


class MLFFCalculator(Calculator):
    """ASE calculator of a potential. Units: eV, Å, eV/Å, eV/Å³ (Voigt order xx yy zz yz xz xy, positive under tension).

    `energies` are per atom, reference energies included, and sum to `energy`; `free_energy` equals `energy`; `stress`
    needs a cell that is periodic in three directions. A committee also gives `get_property("energy_std")` (eV) and
    `get_property("forces_std")` (n, 3): how far its members lie apart. Atoms, elements, cell and periodicity may change
    between calls. Threads may share a calculator (one computes, the others wait), other processes get a copy by pickle.
    """

    name = "mlff"
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]

    def __init__(
        self, potential: str | Path | Potential, *, skin: float = 0.5, precision: str | None = None, check: bool = True
    ):
        """`potential`: a model file or a Potential. `skin` (Å): neighbours are searched again when an atom moved half of it.

        `precision`: float32 or float64; default: that of the potential. With `check`, every result is tested for being
        finite and not absurdly large. Warns of checks that the potential's certificate says it failed. Raises ConfigError,
        ModelFileError; in use StructureError: unknown element, positions that are not finite, atoms on top of each other,
        results that are nonsense; ProcessError: in a process that was forked after JAX had started; in the first use of a
        file ModelFileError: its reference structures come out otherwise on this machine.
        """
        self._lock = threading.RLock()
        super().__init__()
        if not (np.isfinite(skin) and skin >= 0):
            raise ConfigError(f"skin must be a length in Å, not {skin}")
        self._unverified: dict[bool, Path] = {}  # with stress or without: the file whose references are to be computed
        if not isinstance(potential, Potential):
            path, potential = Path(potential), Potential.load(potential, verify=False)
            self._unverified, self._written = {True: path, False: path}, potential.precision
        if precision is not None and precision != potential.precision:
            potential = potential.with_precision(precision)
        if failed := potential.failed_checks:
            warnings.warn(f"this potential failed checks of its certificate: {'; '.join(failed)}", stacklevel=2)
        self.potential = potential
        self.always_stress: bool | None = None  #: compute the stress in every call? None: learn it from use
        self._check = check
        self._list = VerletList(potential.cutoff, skin, np.dtype(potential.precision))
        self._programs: set[tuple] = set()
        self._stress_read = False
        self._stress_streak = 0

    def __getstate__(self) -> dict:
        """What a copy takes along, in this process or another: all but the neighbour list, which it searches anew."""
        with self._lock:
            fresh = VerletList(self._list.cutoff, self._list.skin, self._list.dtype)
            fresh.sizes = list(self._list.sizes)
            own = {name: getattr(self, name).copy() for name in ("results", "_spreads", "_programs", "_unverified")}
            state = self.__dict__ | own | {"_list": fresh}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    @property
    def skin(self) -> float:
        """Å by which the neighbour list reaches beyond the cutoff."""
        return self._list.skin

    @property
    def sole_potential(self) -> Potential | None:
        """The potential, if it alone decides about the results; None for calculators that build on this class."""
        return self.potential if type(self) is MLFFCalculator else None

    @property
    def rebuilds(self) -> int:
        """How often neighbours were searched."""
        return self._list.rebuilds

    @property
    def compilations(self) -> int:
        """How many programs (padded shapes, with and without stress) were asked for."""
        return len(self._programs)

    def distances(self, atoms: ase.Atoms | None = None) -> np.ndarray:
        """(n,) how far each atom (default: of the last calculation) is from the training data: up to 1 is inside, beyond 2 forces are guesses.

        Raises ConfigError: the model file does not know its training data; StructureError: nothing calculated yet.
        """
        atoms = self.atoms if atoms is None else atoms
        if self.potential.environments is None:
            raise ConfigError("this model file does not know its training data: it was written by an old version of mlff")
        if atoms is None:
            raise StructureError("no structure has been given to the calculator yet")
        return self.potential.environments.distances(Structure.from_atoms(atoms))

    def neighbor_state(self) -> dict[str, np.ndarray]:
        """The reference geometry of the neighbour list: with it a restarted simulation repeats every bit."""
        return self._list.state()

    def restore_neighbors(self, state: dict[str, np.ndarray]) -> None:
        """Build the list of `neighbor_state` again."""
        self.reset()
        self._list.restore(state)
        self._baseline = self.potential.atom_baselines[state["numbers"]]

    @property
    def atoms(self) -> ase.Atoms | None:
        """The atoms of the last calculation."""
        if self._seen is None:
            return None
        numbers, positions, cell, pbc = self._geometry
        return ase.Atoms(numbers, positions=positions, cell=cell, pbc=pbc)

    @atoms.setter
    def atoms(self, atoms: ase.Atoms | None) -> None:
        self._spreads: dict[str, float | np.ndarray] = {}  # what `results` are for ASE's properties
        self._geometry = None if atoms is None else _geometry(atoms)
        self._seen = None if atoms is None else tuple(array.tobytes() for array in self._geometry)

    def check_state(self, atoms: ase.Atoms, tol: float = 0.0) -> list[str]:
        """What changed since the last calculation; bit by bit (charges and magnetic moments do not count)."""
        if self._seen is None:
            return list(all_changes)
        numbers, positions, cell, pbc = self._seen
        changes = [] if atoms.positions.tobytes() == positions else ["positions"]
        if atoms.cell.array.tobytes() != cell:
            changes.append("cell")
        if atoms.numbers.tobytes() != numbers:
            changes.append("numbers")
        if atoms.pbc.tobytes() != pbc:
            changes.append("pbc")
        return changes

    def get_property(self, name: str, atoms: ase.Atoms | None = None, allow_calculation: bool = True):
        """As in ASE, and `energy_std` and `forces_std` of a committee; arrays are copies."""
        if name not in (known := self._known):
            raise PropertyNotImplementedError(f"{name}: not among {', '.join(known)}")
        with self._lock:
            if atoms is None:
                atoms = self.atoms
                if atoms is None:
                    raise StructureError("no structure has been given to the calculator yet")
            changes = self.check_state(atoms)
            if changes or not (name in self.results or name in self._spreads):
                if not allow_calculation:
                    return None
                self.calculate(atoms, (name,), changes)
            if name == "stress":
                self._stress_read = True
            value = self._spreads[name] if name in _SPREADS else self.results[name]
            return value.copy() if isinstance(value, np.ndarray) else value

    @property
    def _known(self) -> list[str]:
        """What `get_property` gives."""
        return self.implemented_properties if self.potential.members == 1 else [*self.implemented_properties, *_SPREADS]

    def calculate(self, atoms: ase.Atoms | None = None, properties=("energy",), system_changes=all_changes) -> None:
        """One call of the compiled potential; fills `results`. What is known of unchanged atoms stays as it is."""
        refuse_forked()
        with self._lock:
            self._calculate(atoms, properties, system_changes)

    def _calculate(self, atoms: ase.Atoms | None, properties, system_changes) -> None:
        if atoms is None:
            atoms = self.atoms
            if atoms is None:
                raise StructureError("no structure has been given to the calculator yet")
        if system_changes:
            self._stress_streak = self._stress_streak + 1 if self._stress_read else 0
            self._stress_read = False
            self.results, self._spreads = {}, {}
            if self._seen is not None and system_changes == ["positions"]:
                self._move(atoms.positions)
            else:
                self.atoms = atoms
        numbers, positions, cell, pbc = self._geometry
        whole = bool(pbc.all())
        if "stress" in properties and not (whole and abs(np.linalg.det(cell)) > 0):
            raise PropertyNotImplementedError(
                f"stress needs a cell that is periodic in three directions, found pbc={pbc.tolist()}"
            )
        usual = self._stress_streak >= 2 if self.always_stress is None else self.always_stress
        try:
            if not (self._list.covers(positions) if system_changes == ["positions"] else self._list.holds(*self._geometry)):
                self._rebuild()
            results = self._evaluate(positions, "stress" in properties or (usual and whole))
        except BaseException:
            self.reset()
            raise
        self._spreads = {name: results.pop(name) for name in _SPREADS if name in results} | self._spreads
        self.results = results | self.results if self.results else results

    def _rebuild(self) -> None:
        self.potential.check(Structure.from_atoms(self.atoms))
        self._list.build(*self._geometry)
        self._baseline = self.potential.atom_baselines[self._geometry[0]]

    def _evaluate(self, positions: np.ndarray, stress: bool) -> dict:
        n = len(positions)
        if n == 0:
            nothing = {"energy": 0.0, "free_energy": 0.0, "energies": np.zeros(0), "forces": np.zeros((0, 3))}
            if self.potential.members > 1:
                nothing |= {"energy_std": 0.0, "forces_std": np.zeros((0, 3))}
            return nothing | ({"stress": np.zeros(6)} if stress else {})
        graph = self._list.graph_at(positions)
        self._programs.add((graph.neighbors.shape, graph.shifts is None, stress))
        if stress in self._unverified:
            selfcheck.verify(self.potential, self._unverified[stress], graph, stress, self._written)
            del self._unverified[stress]
        (found,) = unpack(self.potential.compute(graph, stress), (self._baseline,), (stress,))
        if self._check:
            self.potential.check_result(found.energy, found.forces, lambda: Structure.from_atoms(self.atoms))
        results = {"energy": found.energy, "free_energy": found.energy, "energies": found.energies, "forces": found.forces}
        if found.energy_std is not None:
            results |= {"energy_std": found.energy_std, "forces_std": found.forces_std}
        if stress:
            results["stress"] = to_six(found.stress)
        return results

    def _move(self, positions: np.ndarray) -> None:
        """Take note of new positions; elements, cell and periodicity stay."""
        self._geometry = (self._geometry[0], positions.copy(), *self._geometry[2:])
        self._seen = (self._seen[0], positions.tobytes(), *self._seen[2:])


def _geometry(atoms: ase.Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return atoms.numbers.copy(), atoms.positions.copy(), atoms.cell.array.copy(), atoms.pbc.copy()
