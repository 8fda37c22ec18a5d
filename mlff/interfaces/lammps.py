"""A potential in LAMMPS: Python drives an unmodified LAMMPS, which divides space among MPI processes.

`pair_style zero` makes LAMMPS keep copies of atoms (ghosts) as far as the receptive field of the model, `fix external`
asks for forces. Each process computes the energies of its own atoms, and what these say of the forces on ghosts is added to
their owners (`mlff.interfaces.ghosts`): results do not depend on the number of processes. Whatever goes wrong ends the run
on all processes; nothing is computed with forces that are not those of the model.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Sequence
from ctypes import POINTER, c_double
from pathlib import Path

import numpy as np
from ase.data import atomic_masses

from mlff.basics.errors import ConfigError, MLFFError, StructureError
from mlff.basics.runtime import keep_to_one_thread
from mlff.basics.units import ENERGY
from mlff.interfaces.ghosts import GhostSum
from mlff.interfaces.processes import end_all, one_line_errors
from mlff.interfaces.species import numbers_of, refuse_other_mass
from mlff.potential.local_atoms import LocalAtoms
from mlff.potential.potential import Potential

FIX = "mlff"  #: id of the fix in LAMMPS
HALO = "mlff_halo"  #: id of a compute that is never asked, but refuses to start a run with too few ghosts
_UNITS = {"metal": "eV", "real": "kcal/mol"}  #: units of LAMMPS with lengths in Å, and their energy
_ONE_PROCESS = "MPIAbortException"  #: what `lammps` raises where one process has an error, which the others do not know of
_COMMANDS = "command", "commands_list", "commands_string", "file"
_SIX = [0, 0], [1, 1], [2, 2], [0, 1], [0, 2], [1, 2]  #: order of LAMMPS


def attach(
    lmp, potential: str | Path | Potential, species: Sequence[str], *, skin: float = 0.5, precision: str | None = None
) -> LammpsForces:
    """Give a LAMMPS object, whose box and atoms there are, the energies, forces and virials of a potential.

    `lmp`: of `lammps.lammps()`; `species`: the element of each atom type, in order; `skin` (Å): of mlff's own neighbour list,
    that of LAMMPS is set by its command `neighbor`; `precision`: float32 or float64, by default the potential's. Units of
    LAMMPS: metal or real. Sets the masses of types that have none. All processes call it together.

    Raises ConfigError: no box yet, other units, a species that is no element, that the potential does not know, or that has
    the mass of another one; too few species or too many; rRESPA. ModelFileError as `Potential.load`. From then on commands of
    `lmp` raise StructureError (one process), or print its line and end all processes: too few ghosts, atoms lost or on top of
    each other, positions or results that are not finite or absurd, not enough memory.
    """
    comm = lmp.get_mpi_comm().Dup()
    with one_line_errors() if comm.size > 1 else contextlib.nullcontext():
        if comm.size > 1:
            keep_to_one_thread()
        potential = _load(comm, potential)
        if precision is not None:
            potential = potential.with_precision(precision)
        if comm.rank == 0 and (failed := potential.failed_checks):
            warnings.warn(f"this potential failed checks of its certificate: {'; '.join(failed)}", stacklevel=2)
        return LammpsForces(lmp, comm, potential, _numbers(lmp, potential, species), skin)


class LammpsForces:
    """What `attach` returns: the callback of `fix external`."""

    def __init__(self, lmp, comm, potential: Potential, numbers: np.ndarray, skin: float):
        self.potential = potential
        self.local = LocalAtoms(potential, skin)
        self._lmp, self._comm, self._numbers = lmp, comm, numbers
        self._energy = 1 / ENERGY[_UNITS[lmp.extract_global("units")]]  # of LAMMPS in one eV
        self._ghosts: GhostSum | None = None
        self._error: BaseException | None = None
        self._introduce()
        for name in _COMMANDS:  # so that they raise what the callback could not
            setattr(lmp, name, self._raising(getattr(lmp, name)))

    def _introduce(self) -> None:
        """The commands that make LAMMPS ask."""
        lmp, reach, precision = self._lmp, self.potential.receptive_field, self.potential.precision
        for category, name in (("compute", HALO), ("fix", FIX)):
            if lmp.has_id(category, name):
                lmp.command(f"un{category} {name}")
        lmp.commands_list(
            [
                f"pair_style zero {reach}",
                "pair_coeff * *",
                "neigh_modify once no",
                f"compute {HALO} all rdf 1 cutoff {reach}",
                f"fix {FIX} all external pf/callback 1 1",
                f"fix_modify {FIX} energy yes virial yes",
                f'print "mlff: {self.potential.config.architecture}, receptive field {reach:g} Angstrom, {precision}"',
            ]
        )
        lmp.set_fix_external_callback(FIX, self._callback, None)

    def _raising(self, method):
        @functools.wraps(method)
        def call(*arguments):
            try:
                result = method(*arguments)
            except Exception as error:
                if self._comm.size > 1 and type(error).__name__ == _ONE_PROCESS:
                    end_all(self._comm, error)
                self._forget(error)
                raise
            self._forget(None)
            return result

        return call

    def _forget(self, cause: Exception | None) -> None:
        """Raise what went wrong in the callback, or what LAMMPS says about ghosts, in words of its own."""
        error, self._error = self._error, None
        if error is not None:
            self._lmp.lib.lammps_command(self._lmp.lmp, b"timer timeout off")
            raise error from cause
        if cause is not None and "exceeds ghost atom range" in str(cause):
            reach = self.potential.receptive_field
            raise ConfigError(
                f"ghost atoms of LAMMPS do not reach the receptive field of {reach:g} Å: give no other pair_style after attach"
            ) from cause

    def _callback(self, caller, step: int, nlocal: int, tag: np.ndarray, x: np.ndarray, f: np.ndarray) -> None:
        """Fill f (nlocal, 3), and give LAMMPS energy and virial."""
        try:
            self._compute(step, nlocal, f)
        except BaseException as error:
            f[:] = 0.0
            if isinstance(error, MLFFError):
                error = type(error)(f"step {step}: {error}")
            if self._comm.size > 1:
                end_all(self._comm, error)
            self._error = error
            self._lmp.force_timeout()  # ends this run before the next step, and the following ones before their first

    def _compute(self, step: int, owned: int, f: np.ndarray) -> None:
        lmp = self._lmp
        count = owned + lmp.extract_setting("nghost")
        x = lmp.numpy.extract_atom("x", nelem=count, dim=3) if count else np.zeros((0, 3))
        if lmp.extract_setting("neigh_ago") == 0 or self._ghosts is None:
            self._renew(owned, count, x)
        elif not self.local.covers(x):
            self.local.build(self._around, x, owned, self._ids)
        result = self.local.evaluate(x)
        self._refuse_nonsense(result.energies.sum(), result.forces)
        each = lmp.extract_global("vflag_atom") == step
        summed = self._ghosts.sum(np.hstack([result.forces, _six(result.virials)]) if each else result.forces)
        f[:] = summed[:, :3] * self._energy
        total = np.append(-_six(result.virials.sum(axis=0)), result.energies.sum()) * self._energy
        self._comm.Allreduce(_in_place(), total)
        lmp.fix_external_set_energy_global(FIX, total[6])
        lmp.fix_external_set_virial_global(FIX, total[:6])
        if lmp.extract_global("eflag_atom") == step and owned:
            energies = np.ascontiguousarray(result.energies * self._energy)
            lmp.lib.lammps_fix_external_set_energy_peratom(lmp.lmp, FIX.encode(), energies.ctypes.data_as(POINTER(c_double)))
        if each and owned:
            self._set_virials(-summed[:, 3:] * self._energy)

    def _set_virials(self, virials: np.ndarray) -> None:
        virials = np.ascontiguousarray(virials)
        rows = (POINTER(c_double) * len(virials))()
        addresses = np.frombuffer(rows, np.uintp)
        addresses[:] = virials.ctypes.data + virials.strides[0] * np.arange(len(virials), dtype=np.uintp)
        self._lmp.lib.lammps_fix_external_set_virial_peratom(self._lmp.lmp, FIX.encode(), rows)

    def _renew(self, owned: int, count: int, x: np.ndarray) -> None:
        """LAMMPS has other atoms and ghosts here: list their neighbours and find their owners."""
        lmp = self._lmp
        self._refuse_settings()
        self._ids = lmp.numpy.extract_atom("id", nelem=count).copy() if count else np.zeros(0, np.int64)
        types = lmp.numpy.extract_atom("type", nelem=count) if count else np.zeros(0, np.int64)
        self._around = self._numbers[types]
        there = self._comm.allreduce(owned)
        if (expected := lmp.extract_global("natoms")) != there:
            raise StructureError(
                f"{expected - there} of {expected} atoms were lost; look at boundary, time step and structure"
            )
        self._ghosts = GhostSum(self._comm, self._ids, owned)
        self.local.build(self._around, x, owned, self._ids)
        one_sided = self._comm.allreduce(self.local.one_sided(self._ids))
        if abs(one_sided[0]) > 1e-6 * (1.0 + one_sided[1]):
            raise StructureError(
                "some pairs of atoms are seen from one side only: ghosts are missing (comm_modify group all)"
            )

    def _refuse_settings(self) -> None:
        lmp = self._lmp
        if lmp.extract_global("pair_style") != "zero":
            style = lmp.extract_global("pair_style")
            raise ConfigError(f"pair_style {style} was given after attach, which needs pair_style zero for itself")
        if lmp.extract_global("respa_levels"):
            raise ConfigError("run_style respa: LAMMPS asks fix external for forces at the start only; use run_style verlet")
        every, delay = lmp.extract_setting("neigh_every"), lmp.extract_setting("neigh_delay")
        if every != 1 or delay != 0:
            raise ConfigError(
                f"neigh_modify every {every} delay {delay}: ghosts would come too late; "
                "use neigh_modify every 1 delay 0 check yes"
            )

    def _refuse_nonsense(self, energy: float, forces: np.ndarray) -> None:
        what = self.potential.nonsense(energy, forces)
        if what is None:
            return
        nearest = self.local.shortest
        text = (
            ""
            if nearest is None
            else f": atoms {self._ids[nearest[0]]} and {self._ids[nearest[1]]} are {nearest[2]:.3g} Å apart"
        )
        raise StructureError(f"the potential gives {what}{text}; look at the structure, its units and the time step")


def _numbers(lmp, potential: Potential, species: Sequence[str]) -> np.ndarray:
    """Atomic numbers by type, from place 1 on; sets masses. Raises ConfigError, see `attach`."""
    if not lmp.extract_setting("box_exist"):
        raise ConfigError("LAMMPS has no box and no atoms yet: attach comes after read_data or create_box")
    if (units := lmp.extract_global("units")) not in _UNITS:
        raise ConfigError(f"units {units}: the potential works in LAMMPS with units {' or '.join(_UNITS)}")
    if isinstance(species, str) or len(species) != lmp.extract_setting("ntypes"):
        count = lmp.extract_setting("ntypes")
        raise ConfigError(f"species {species!r}: LAMMPS has {count} atom types, each needs an element")
    numbers, masses = numbers_of(species, potential), lmp.extract_atom("mass")
    for place, z in enumerate(numbers, start=1):
        if masses and masses[place] > 0:
            refuse_other_mass(place, z, masses[place])
        else:
            lmp.command(f"mass {place} {atomic_masses[z]}")
    return np.append(0, numbers)


def _load(comm, potential: str | Path | Potential) -> Potential:
    """One process first: it also checks the reference structures, where that was not done on this machine."""
    if isinstance(potential, Potential):
        return potential
    if comm.rank == 0:
        found = Potential.load(potential)
    comm.Barrier()
    return found if comm.rank == 0 else Potential.load(potential)


def _six(tensors: np.ndarray) -> np.ndarray:
    """(..., 6) of symmetric (..., 3, 3), in the order of LAMMPS."""
    return np.stack([tensors[..., a, b] for a, b in _SIX], axis=-1)


def _in_place():
    from mpi4py import MPI

    return MPI.IN_PLACE
