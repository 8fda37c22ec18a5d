"""Systems whose true energies cost milliseconds: molecules by GFN2-xTB, solids and liquids by classical potentials.

Structures come from dynamics with the oracle itself (and, for solids, from strain, vacancies, surfaces and melts), so that
a benchmark can draw new ones at any time. Needs tblite and, for the molecules, rdkit: pip install tblite rdkit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import ase
import numpy as np
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

MASS = 12.0  #: amu, of every atom while sampling: what is sampled does not depend on masses, but light ones need short steps
STEP, FRICTION = 2.0, 0.02  #: fs, 1/fs
BETWEEN = 15  #: steps between two structures
EQUILIBRATION = 150  #: steps before the first
LARGEST = 60.0  #: eV/Å: a trajectory of the oracle with a larger force is begun anew


@dataclass(frozen=True)
class System:
    """What is asked for, and who answers."""

    make: Callable[[], ase.Atoms]
    oracle: Callable[[], object]  #: an ASE calculator
    about: str
    hot: tuple[float, ...] = (600.0, 1200.0)  #: K
    others: dict[str, Callable[[ase.Atoms], ase.Atoms]] = field(
        default_factory=dict
    )  #: name of a test -> change of the start
    fragments: int = 1  #: molecules


def smiles(text: str, seed: int = 7) -> Callable[[], ase.Atoms]:
    """A conformer of a molecule."""

    def make() -> ase.Atoms:
        from rdkit import Chem
        from rdkit.Chem import AllChem

        mol = Chem.AddHs(Chem.MolFromSmiles(text))
        if AllChem.EmbedMolecule(mol, randomSeed=seed) or AllChem.MMFFOptimizeMolecule(mol, maxIters=500) < 0:
            raise RuntimeError(f"rdkit finds no geometry of {text}")
        return ase.Atoms([a.GetSymbol() for a in mol.GetAtoms()], mol.GetConformer().GetPositions())

    return make


def formic_acid_dimer() -> ase.Atoms:
    """Two hydrogen bonds across a centre of inversion."""
    half = ase.Atoms("HCOOH", [[2.92, 0, 0], [1.82, 0, 0], [1.2, 1.03, 0], [1.32, -1.22, 0], [0.34, -1.2, 0]])
    half.positions += [0.55, 0.0, 0.0]
    other = half.copy()
    other.positions *= -1
    other.positions[:, 2] += 0.05
    return half + other


def water_box() -> ase.Atoms:
    """Ten molecules at the density of the liquid, on a grid, turned by chance."""
    from ase.build import molecule

    rng, edge = np.random.default_rng(3), (10 * 18.015 / 0.6022 / 0.997) ** (1 / 3)
    box = ase.Atoms(cell=[edge] * 3, pbc=True)
    places = [(x, y, z) for z in range(3) for y in range(2) for x in range(2)][:10]
    for x, y, z in places:
        one = molecule("H2O")
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.positions += np.array([(x + 0.5) / 2, (y + 0.5) / 2, (z + 0.5) / 3]) * edge - one.positions[0]
        box += one
    return box


def xtb(method: str) -> Callable[[], object]:
    """A method of tblite."""

    def make():
        from tblite.ase import TBLite

        return TBLite(method=method, verbosity=0, accuracy=2.0)

    return make


def stillinger_weber():
    """Silicon (Stillinger & Weber 1985) as in matscipy."""
    from matscipy.calculators.manybody import Manybody
    from matscipy.calculators.manybody.explicit_forms import StillingerWeber
    from matscipy.calculators.manybody.explicit_forms.stillinger_weber import Stillinger_Weber_PRB_31_5262_Si

    return Manybody(**StillingerWeber(Stillinger_Weber_PRB_31_5262_Si))


def alloy() -> ase.Atoms:
    """Copper with a quarter of gold, in disorder."""
    atoms = bulk("Cu", "fcc", a=3.75, cubic=True) * (2, 2, 2)
    atoms.numbers[np.random.default_rng(1).permutation(len(atoms))[: len(atoms) // 4]] = 79
    return atoms


def strained(atoms: ase.Atoms) -> ase.Atoms:
    """By up to 8 % along each axis, and sheared."""
    rng = np.random.default_rng(len(atoms))
    other, strain = atoms.copy(), rng.uniform(-0.08, 0.08, (3, 3))
    other.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
    return other


def vacancy(atoms: ase.Atoms) -> ase.Atoms:
    """Less one atom."""
    other = atoms.copy()
    del other[0]
    return other


def surface(atoms: ase.Atoms) -> ase.Atoms:
    """Cut open along one axis."""
    other = atoms.copy()
    other.center(vacuum=4.0, axis=2)
    return other


SOLID = {"strained": strained, "vacancy": vacancy, "surface": surface}

SYSTEMS = {
    "methanethiol": System(smiles("CS"), xtb("GFN2-xTB"), "6 atoms"),
    "thiophene": System(smiles("c1ccsc1"), xtb("GFN2-xTB"), "9 atoms, a ring without radicals"),
    "malonaldehyde": System(smiles("O=C/C=C\\O"), xtb("GFN2-xTB"), "9 atoms, a proton that moves from oxygen to oxygen"),
    "formic acid dimer": System(formic_acid_dimer, xtb("GFN2-xTB"), "10 atoms, two hydrogen bonds", fragments=2),
    "cysteine": System(smiles("NC(CS)C(=O)O"), xtb("GFN2-xTB"), "14 atoms, an acid, floppy"),
    "acetylacetone": System(
        smiles("CC(=O)/C=C(/C)O"), xtb("GFN2-xTB"), "15 atoms, two methyl groups that turn, a hydrogen bond"
    ),
    "salicylic acid": System(smiles("OC(=O)c1ccccc1O"), xtb("GFN2-xTB"), "16 atoms, an acid with a hydrogen bond"),
    "3BPA": System(smiles("Nc1ncccc1OCc1ccccc1"), xtb("GFN2-xTB"), "27 atoms, floppy"),
    "octanoyl ethanolamide": System(smiles("CCCCCCCC(=O)NCCO"), xtb("GFN2-xTB"), "34 atoms, a chain"),
    "copper-gold": System(alloy, EMT, "32 atoms, an alloy", others=SOLID, hot=(600.0, 1200.0, 3000.0)),
    "aluminium": System(
        lambda: bulk("Al", cubic=True) * (2, 2, 2), EMT, "32 atoms, a metal", others=SOLID, hot=(600.0, 1200.0, 2500.0)
    ),
    "silicon": System(
        lambda: bulk("Si", cubic=True) * (2, 2, 1),
        stillinger_weber,
        "32 atoms, covalent",
        others=SOLID,
        hot=(600.0, 1200.0, 4000.0),
    ),
    "water": System(water_box, xtb("GFN1-xTB"), "30 atoms, a liquid", fragments=10),
}


def label(atoms: ase.Atoms, calculator) -> ase.Atoms:
    """The structure with energy and forces of the oracle."""
    known = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    known.calc = calculator
    labels = {"energy": float(known.get_potential_energy()), "forces": known.get_forces().copy()}
    known.calc = SinglePointCalculator(known, **labels)
    return known


def trajectory(start: ase.Atoms, calculator, kelvin: float, count: int, rng: np.random.Generator) -> list[ase.Atoms]:
    """`count` labelled structures of Langevin dynamics with the oracle, BETWEEN steps apart; anew where it explodes."""
    frames: list[ase.Atoms] = []
    while len(frames) < count:
        atoms = start.copy()
        atoms.set_masses([MASS] * len(atoms))
        atoms.calc = calculator
        MaxwellBoltzmannDistribution(atoms, temperature_K=kelvin, rng=rng)
        dynamics = Langevin(atoms, STEP * units.fs, temperature_K=kelvin, friction=FRICTION / units.fs, rng=rng, fixcm=False)
        dynamics.run(EQUILIBRATION)
        while len(frames) < count:
            dynamics.run(BETWEEN)
            if not np.abs(atoms.get_forces()).max() < LARGEST:
                break
            frames.append(label(atoms, calculator))
    return frames


def relaxed(system: System, calculator) -> ase.Atoms:
    """The start, relaxed with the oracle."""
    from ase.optimize import FIRE

    atoms = system.make()
    atoms.calc = calculator
    FIRE(atoms, logfile=None).run(fmax=0.05, steps=300)
    return ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def draw(name: str, folder: Path, train: int, tests: int, seed: int = 0) -> dict[str, Path]:
    """Files of a system in `folder`, made where they are not there: train (400 and 40 for validation), a file for each test."""
    system, calculator = SYSTEMS[name], SYSTEMS[name].oracle()
    folder = folder / name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    rng, start = np.random.default_rng([seed, len(name)]), None
    files = {}
    wanted: list[tuple[str, Callable | None, float, int]] = [("train", None, 300.0, train), ("valid", None, 300.0, 40)]
    wanted += [(f"{kelvin:g} K", None, kelvin, tests) for kelvin in (300.0, *system.hot)]
    wanted += [(other, change, 300.0, tests // 2) for other, change in system.others.items()]
    for part, change, kelvin, count in wanted:
        files[part] = folder / f"{part.replace(' ', '_')}.xyz"
        if not files[part].exists():
            start = relaxed(system, calculator) if start is None else start
            here = change(start) if change else start
            frames = [frame for _ in range(4) for frame in trajectory(here, calculator, kelvin, -(-count // 4), rng)]
            write(files[part], frames[:count], format="extxyz")
    return files


def structures(file: Path, count: int | None = None) -> list[ase.Atoms]:
    """The first `count` of a file's, evenly spread over it."""
    frames = read(file, ":")
    return frames if count is None else [frames[k] for k in np.linspace(0, len(frames) - 1, count).round().astype(int)]
