"""The same labelled structures in every format: `FORMATS[name](folder)` writes a file and returns path and options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ase.db
import ase.io
import h5py
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

NUMBERS = np.array([8, 1, 1])
COUNT = 4


def frames(periodic: bool = True) -> list[Atoms]:
    """Water in a sheared cell, or without one; energy (eV), forces (eV/Å) and, in the cell, a stress (eV/Å³) each."""
    rng, cells = np.random.default_rng(0), np.random.default_rng(1)
    made = []
    for _ in range(COUNT):
        atoms = Atoms(NUMBERS, [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
        atoms.positions += rng.normal(0, 0.05, (3, 3))
        results = {"energy": -2080 + rng.normal(), "forces": rng.normal(size=(3, 3))}
        if periodic:
            atoms.cell, atoms.pbc = np.diag([5.0, 6.0, 7.0]) + cells.normal(0, 0.2, (3, 3)), True
            results["stress"] = cells.normal(size=6) / 100
        atoms.calc = SinglePointCalculator(atoms, **results)
        made.append(atoms)
    return made


def arrays(periodic: bool = True) -> dict[str, np.ndarray]:
    """positions (n, 3, 3), cell (n, 3, 3), energy (n,), forces (n, 3, 3), virial (n, 3, 3) of `frames`."""
    made = frames(periodic)
    stacked = {key: np.array([atoms.calc.results[key] for atoms in made]) for key in ("energy", "forces")}
    stacked["positions"] = np.array([atoms.positions for atoms in made])
    if periodic:
        stacked["cell"] = np.array([atoms.cell.array for atoms in made])
        stacked["virial"] = np.array([-atoms.get_stress(voigt=False) * atoms.get_volume() for atoms in made])
    return stacked


def sgdml(folder: Path, **changes):
    """MD17's keys, kcal/mol."""
    a, unit = arrays(periodic=False), units.kcal / units.mol
    content = {"R": a["positions"], "z": NUMBERS.astype("u1"), "E": a["energy"][:, None] / unit, "F": a["forces"] / unit}
    np.savez(folder / "sgdml.npz", **{k: v for k, v in (content | changes).items() if v is not None})
    return folder / "sgdml.npz", {"units": {"energy": "kcal/mol"}}


def rmd17(folder: Path, **changes):
    """rMD17's keys."""
    a = arrays(periodic=False)
    content = {"nuclear_charges": NUMBERS, "coords": a["positions"], "energies": a["energy"], "forces": a["forces"]}
    np.savez_compressed(folder / "rmd17.npz", **content | {"old_energies": a["energy"] + 1} | changes)
    return folder / "rmd17.npz", {}


def physnet(folder: Path, **changes):
    """Two rows of padding behind the atoms, filled with noise."""
    a = arrays(periodic=False)
    pad = np.full((COUNT, 2, 3), 0.0)
    content = {
        "N": np.full(COUNT, 3),
        "Z": np.tile([*NUMBERS, 0, 0], (COUNT, 1)),
        "R": np.concatenate([a["positions"], pad], axis=1),
        "E": a["energy"],
        "F": np.concatenate([a["forces"], pad + 99], axis=1),
        "D": np.zeros((COUNT, 3)),
        "Q": np.zeros(COUNT),
    }
    np.savez(folder / "physnet.npz", **content | changes)
    return folder / "physnet.npz", {}


def nequip(folder: Path, **changes):
    """Cells per frame, a virial beside the usual keys."""
    a = arrays()
    content = {
        "pos": a["positions"],
        "atomic_numbers": NUMBERS,
        "energy": a["energy"][:, None],
        "forces": a["forces"],
        "cell": a["cell"],
        "pbc": np.ones(3, bool),
        "virial": a["virial"],
    }
    np.savez(folder / "nequip.npz", **content | changes)
    return folder / "nequip.npz", {}


def deepmd(folder: Path, name: str = "deepmd"):
    """Two sets."""
    a, system = arrays(), folder / name
    system.mkdir(exist_ok=True)
    (system / "type_map.raw").write_text("H\nO\n")
    (system / "type.raw").write_text("1\n0\n0\n")
    for number, part in enumerate((slice(0, 3), slice(3, COUNT))):
        (system / f"set.{number:03d}").mkdir(exist_ok=True)
        for key, label in (("coord", "positions"), ("box", "cell"), ("force", "forces"), ("virial", "virial")):
            np.save(system / f"set.{number:03d}" / f"{key}.npy", a[label][part].reshape(-1, a[label][0].size))
        np.save(system / f"set.{number:03d}" / "energy.npy", a["energy"][part])
    return system, {}


def ani(folder: Path):
    """COMP6's keys: two groups, symbols as bytes, Hartree, gradients under the name of forces."""
    a = arrays(periodic=False)
    with h5py.File(folder / "ani.h5", "w") as file:
        for name, part in (("mol00", slice(0, 2)), ("mol01", slice(2, COUNT))):
            group = file.create_group(f"/water/{name}")
            group["species"] = np.array([b"O", b"H", b"H"])
            group["coordinates"] = a["positions"][part]
            group["energies"] = a["energy"][part] / units.Hartree
            group["forces"] = -a["forces"][part] / units.Hartree
            group["charges"] = np.zeros((2, 4))
    return folder / "ani.h5", {"units": {"energy": "Hartree", "forces_sign": "gradient"}}


def spice(folder: Path, stated: bool = True):
    """A group per molecule, Hartree and Bohr, as the attributes say or not."""
    a = arrays(periodic=False)
    with h5py.File(folder / "spice.hdf5", "w") as file:
        for name, part in (("a", slice(0, 2)), ("b", slice(2, COUNT))):
            group = file.create_group(name)
            group["atomic_numbers"] = NUMBERS.astype("i2")
            group.create_dataset("conformations", data=a["positions"][part] / units.Bohr, compression="gzip")
            group["dft_total_energy"] = a["energy"][part] / units.Hartree
            group["dft_total_gradient"] = -a["forces"][part] / (units.Hartree / units.Bohr)
            group["formation_energy"] = np.zeros(2)
            group["smiles"] = [b"O"]
            for key, unit in (
                ("conformations", "bohr"),
                ("dft_total_energy", "hartree"),
                ("dft_total_gradient", "hartree/bohr"),
            ):
                if stated:
                    group[key].attrs["units"] = unit
    return folder / "spice.hdf5", {}


def mlearn(folder: Path, change: Callable = lambda entries: None):
    """Stresses of six numbers in two orders."""
    entries = []
    for index, atoms in enumerate(frames()):
        order = [0, 1, 2, 5, 3, 4] if index % 2 else [0, 1, 2, 5, 4, 3]
        sites = [
            {"species": [{"element": s, "occu": 1}], "xyz": list(x)}
            for s, x in zip(atoms.symbols, atoms.positions, strict=True)
        ]
        outputs = {
            "energy": atoms.calc.results["energy"],
            "forces": atoms.calc.results["forces"].tolist(),
            "virial_stress": (-atoms.calc.results["stress"][order] / (0.1 * units.GPa)).tolist(),
        }
        structure = {"lattice": {"matrix": atoms.cell.tolist()}, "sites": sites}
        entries.append({"structure": structure, "group": ("AIMD", "Elastic")[index % 2], "outputs": outputs})
    change(entries)
    (folder / "mlearn.json").write_text(json.dumps(entries))
    return folder / "mlearn.json", {"units": {"stress_order": {"AIMD": "lammps", "Elastic": "vasp"}}}


def fitsnap(folder: Path, change: Callable = lambda dataset: None):
    """Stresses in kbar, positive under compression."""
    data = []
    for atoms in frames():
        data.append({
            "Positions": atoms.positions.tolist(),
            "AtomTypes": list(atoms.symbols),
            "NumAtoms": 3,
            "Lattice": atoms.cell.tolist(),
            "Energy": atoms.calc.results["energy"],
            "Forces": atoms.calc.results["forces"].tolist(),
            "Stress": (-atoms.get_stress(voigt=False) / (0.1 * units.GPa)).tolist(),
        })  # fmt: skip
    styles = {"EnergyStyle": "electronvolt", "ForcesStyle": "electronvoltperangstrom", "PositionsStyle": "angstrom"}
    dataset = {"Data": data, "LatticeStyle": "angstrom", "StressStyle": "kB", "AtomTypeStyle": "chemicalsymbol"} | styles
    change(dataset)
    (folder / "fitsnap.json").write_text("# a comment\n" + json.dumps({"Dataset": dataset}))
    return folder / "fitsnap.json", {}


def n2p2(folder: Path, change: Callable = lambda text: text):
    """Atomic units."""
    lines = []
    for atoms in frames():
        lines += ["begin", "comment water, 300 K"]
        lines += ["lattice " + " ".join(map(repr, map(float, row / units.Bohr))) for row in atoms.cell.array]
        for symbol, x, f in zip(atoms.symbols, atoms.positions, atoms.calc.results["forces"], strict=True):
            x, f = x / units.Bohr, f / (units.Hartree / units.Bohr)
            lines.append(f"atom {x[0]:.15g} {x[1]:.15g} {x[2]:.15g} {symbol} 0.0 0.0 {f[0]:.15g} {f[1]:.15g} {f[2]:.15g}")
        lines += [f"energy {atoms.calc.results['energy'] / units.Hartree:.15g}", "charge 0.0", "end"]
    (folder / "input.data").write_text(change("\n".join(lines) + "\n"))
    return folder / "input.data", {"units": {"energy": "Hartree", "length": "Bohr"}}


def extxyz(folder: Path):
    """As ASE writes it."""
    ase.io.write(folder / "a.xyz", frames())
    return folder / "a.xyz", {}


def database(folder: Path):
    """SQLite; SchNetPack's metadata state the units."""
    (folder / "a.db").unlink(missing_ok=True)
    with ase.db.connect(folder / "a.db", use_lock_file=False) as database:
        for atoms in frames(periodic=False):
            data = {
                "energy": [atoms.calc.results["energy"] / units.Hartree],
                "forces": atoms.calc.results["forces"] / units.Hartree,
            }
            bare = atoms.copy()
            database.write(bare, data=data)
        database.metadata = {"_property_unit_dict": {"energy": "Hartree", "forces": "Hartree/Ang"}, "_distance_unit": "Ang"}
    return folder / "a.db", {}


FORMATS: dict[str, Callable] = {
    make.__name__: make
    for make in (sgdml, rmd17, physnet, nequip, deepmd, ani, spice, mlearn, fitsnap, n2p2, extxyz, database)
}
