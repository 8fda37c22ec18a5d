"""The potential inside i-PI (Kapil et al., Comput. Phys. Commun. 236, 214 (2019)): a driver for `<ffdirect>`, and an input.

i-PI hands over all beads of a ring polymer at once, and they are evaluated in one compiled call, without sockets.
"""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import ase
import numpy as np
from ase.io import read, write

from mlff.basics.errors import ConfigError, DataError, MLFFError, StructureError
from mlff.basics.files import refuse_filled, replacing, write_text, writing
from mlff.data.structure import Structure
from mlff.interfaces.order import check_order
from mlff.potential.beads import Beads
from mlff.potential.potential import Potential

MODEL, INIT, INPUT, PES = "model.safetensors", "init.xyz", "input.xml", "mlff_pes.py"  #: what `write_folder` writes
_SAME = 1e-6  #: Å by which the cell of a structure that is not periodic may change
_PARAMETERS = "model, template, precision, skin"
_FREE = 100.0  #: Å of vacuum in the cell that i-PI wants for a molecule

_PES_TEXT = '''"""The potential as a driver of i-PI: named by <pes_path> in input.xml."""

from mlff.interfaces.ipi import MLFFDriver

__DRIVER_NAME__ = "mlff"
__DRIVER_CLASS__ = MLFFDriver.__name__
'''

_INPUT_TEXT = """<simulation verbosity='medium'>
  <output prefix='simulation'>
    <properties stride='10' filename='out'>
      [ step, time{{femtosecond}}, conserved{{electronvolt}}, temperature{{kelvin}},
        kinetic_cv{{electronvolt}}, potential{{electronvolt}} ]
    </properties>
    <trajectory filename='pos' stride='20' format='ase'> positions </trajectory>
    <checkpoint stride='1000'/>
  </output>
  <total_steps> 10000 </total_steps>
  <prng> <seed> 1 </seed> </prng>
  <ffdirect name='mlff'>
    <pes> custom </pes>
    <pes_path> {pes} </pes_path>
    <batch_size> {beads} </batch_size>
    <parameters> {{ model: {model}, template: {init} }} </parameters>
  </ffdirect>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='ase' units='angstrom'> {init} </file>
      <velocities mode='thermal' units='kelvin'> {temperature:g} </velocities>
    </initialize>
    <forces> <force forcefield='mlff'/> </forces>
    <ensemble> <temperature units='kelvin'> {temperature:g} </temperature> </ensemble>
    <motion mode='dynamics'>
      <dynamics mode='nvt'>
        <timestep units='femtosecond'> 0.25 </timestep>
        <thermostat mode='pile_g'> <tau units='femtosecond'> 100 </tau> </thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


class MLFFDriver:
    """Driver of i-PI, called with one structure or a list of them in atomic units.

    All structures are replicas of the template: its atoms in its order. A list is evaluated in one compiled call; a shorter
    one than before is filled up, so that nothing is compiled anew.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        template: str | Path | None = None,
        precision: str | None = None,
        skin: float = 0.5,
        verbosity: object = None,
        **unknown: object,
    ):
        """`model`: a model file; `template`: a structure with the elements and the periodicity, any format ASE reads.

        `skin`: Å, see `Beads`. These are i-PI's `<parameters>`; `verbosity` comes from i-PI. Both files must be named. What is
        wrong ends i-PI with one line. Warns of checks that the potential's certificate says it failed.
        """
        with _ending():
            _need_ipi()
            if unknown:
                raise ConfigError(f"unknown parameters of the driver: {', '.join(unknown)}; known: {_PARAMETERS}")
            if model is None or template is None:
                raise ConfigError(f"<parameters> must name model and template; known: {_PARAMETERS}")
            potential = Potential.load(model)
            if failed := potential.failed_checks:
                warnings.warn(f"this potential failed checks of its certificate: {'; '.join(failed)}", stacklevel=2)
            potential = potential if precision is None else _with_precision(potential, str(precision))
            self._template = _read(template)
            self._name = str(template)
            potential.check(Structure.from_atoms(self._template, source=self._name))
            self.beads = Beads(potential, self._template.numbers, self._template.pbc, _number(skin))
        self._most = 1
        self._seen: np.ndarray | None = None

    def __call__(self, cell, pos):
        """Of a cell (3, 3), its vectors in columns, and positions (n, 3), bohr: energy (hartree), forces (n, 3; hartree/bohr),
        virial (3, 3; hartree) and a text, which is empty; of lists a list of these.
        """
        with _ending():
            if isinstance(pos, list):
                return self._evaluate(cell, pos)
            return self._evaluate([cell], [pos])[0]

    def _evaluate(self, cells: Sequence[np.ndarray], positions: Sequence[np.ndarray]) -> list[tuple]:
        length, energy = _units()
        count = len(positions)
        self._most = max(self._most, count)
        rows = np.minimum(np.arange(self._most), count - 1)
        wanted = len(self._template), 3
        for each in positions:
            if np.shape(each) != wanted:
                raise StructureError(f"i-PI sends {len(each)} atoms, {self._name} has {wanted[0]}")
        places = np.stack([positions[row] for row in rows]) / length
        boxes = np.stack([np.asarray(cells[row]).T for row in rows]) / length
        self._check(places, boxes)
        whole = bool(self._template.pbc.all())
        results = self.beads.compute(places, boxes, stress=whole)[:count]
        answers = []
        for result, box in zip(results, boxes, strict=False):
            virial = -result.stress * abs(np.linalg.det(box)) if whole else np.zeros((3, 3))
            answers.append((result.energy * energy, result.forces * (energy / length), virial.T * energy, ""))
        return answers

    def _check(self, positions: np.ndarray, boxes: np.ndarray) -> None:
        """Raise StructureError for atoms in another order than in the template, and a barostat on what is not periodic."""
        if self._seen is None:
            if np.isfinite(positions[0]).all() and np.isfinite(boxes[0]).all():
                check_order(self._template, positions[0], boxes[0], self._name)
            self._seen = boxes[0].copy()
        if not self._template.pbc.all() and np.abs(boxes - self._seen).max() > _SAME:
            raise StructureError(
                f"the cell changes, but {self._name} is not periodic in three directions and has no virial: "
                "use an ensemble of constant volume"
            )


def write_folder(
    potential: Potential,
    path: str | Path,
    folder: str | Path,
    atoms: ase.Atoms | None = None,
    beads: int = 32,
    temperature: float = 300.0,
) -> list[Path]:
    """Write a folder from which `i-pi input.xml` runs path-integral molecular dynamics: model, structure, driver and input.

    `path` is the file or folder that `potential` is from, for messages. `atoms`: the structure to start from, by default the
    first of those that travel with the potential; `beads` of the ring polymer; `temperature` in K. Raises ConfigError: the
    folder is there and not empty; DataError, StructureError: a structure that is not there or not known.
    """
    folder = Path(folder)
    refuse_filled(folder)
    if beads < 1 or not temperature > 0:
        raise ConfigError(f"{beads} beads at {temperature:g} K: at least one bead and a temperature above 0 K are needed")
    if atoms is None:
        known = potential.reference_structures
        if not known:
            raise DataError(f"{path}: no structure travels with this model; give one to start from")
        atoms = known[0]
    atoms = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    potential.check(Structure.from_atoms(atoms))
    atoms = _standard(atoms)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    potential.save(folder / MODEL)
    with replacing(folder / INIT) as temporary:
        write(temporary, atoms, format="extxyz")
    write_text(folder / PES, _PES_TEXT)
    text = _INPUT_TEXT.format(pes=PES, model=MODEL, init=INIT, beads=beads, temperature=temperature)
    write_text(folder / INPUT, text)
    return [folder / name for name in (MODEL, INIT, PES, INPUT)]


def _standard(atoms: ase.Atoms) -> ase.Atoms:
    """The structure with a cell as i-PI wants it: right-handed, its first vector along x, the second in the xy plane."""
    atoms = atoms.copy()
    if not atoms.pbc.any():
        atoms.set_cell(np.eye(3) * (_FREE + np.ptp(atoms.positions, axis=0).max()))
        return atoms
    if not atoms.pbc.all():
        raise StructureError("i-PI knows structures that are periodic in three directions, and molecules")
    if np.linalg.det(atoms.cell.array) < 0:
        atoms.set_cell(atoms.cell.array * [[1], [1], [-1]])  # the same lattice
    atoms.set_cell(atoms.cell.standard_form()[0], scale_atoms=True)
    return atoms


def _read(path: str | Path) -> ase.Atoms:
    try:
        return read(path)
    except Exception as error:  # noqa: BLE001  ASE's readers raise anything
        raise DataError(f"{path}: cannot be read as a structure ({error})") from None


def _with_precision(potential: Potential, precision: str) -> Potential:
    if precision not in ("float32", "float64"):
        raise ConfigError(f"precision is float32 or float64, not {precision}")
    return potential.with_precision(precision)


def _number(skin: object) -> float:
    try:
        return float(skin)
    except (TypeError, ValueError):
        raise ConfigError(f"skin must be a length in Å, not {skin}") from None


def _need_ipi() -> None:
    if importlib.util.find_spec("ipi") is None:
        raise ConfigError("i-PI is not installed: pip install ipi")


def _units() -> tuple[float, float]:
    """Of i-PI's own table, so that what it prints in eV is what the potential said: bohr in one Å, hartree in one eV."""
    from ipi.utils.units import unit_to_internal

    return unit_to_internal("length", "angstrom", 1.0), unit_to_internal("energy", "electronvolt", 1.0)


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """An error ends i-PI with one line. In a thread that i-PI polls in it has to be told, or it would wait for the result."""
    try:
        yield
    except MLFFError as error:
        if threading.current_thread().name.startswith("poll_"):
            from ipi.utils.softexit import softexit

            softexit.cleanup(status="bad", message=f"mlff: {error}")
        raise SystemExit(f"error: {error}") from None
