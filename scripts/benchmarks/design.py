#!/usr/bin/env python3
"""Geometries of malonaldehyde with a lower ionisation energy, found with two models, checked with the method of their labels.

    OMP_NUM_THREADS=1 .venv/bin/python scripts/benchmarks/design.py --work WORK --minutes 6

Geometries of data/malonaldehyde are labelled by GFN2-xTB (pip install tblite), neutral and as a cation; a model of each state
is trained for so many minutes. `mlff design` then looks for the geometries of least energy whose vertical ionisation energy is
lower than at the minimum by 0.1 to 0.8 eV. Beside each stands what GFN2-xTB says of the same geometry. Labels and models stay
in WORK, and what is there is not made again. With --silicon MODEL: lattice parameters for pressures too, and a strain for a
stress, beside finite differences of energies. Writes scripts/benchmarks/results/design.json and docs/images/design.png. --plot
draws what the JSON holds.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import ase
import numpy as np
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.units import GPa
from machine import machine
from scipy.optimize import brentq

from mlff.basics.runtime import use_compilation_cache
from mlff.basics.statistics import rms
from mlff.config.design import load_design, make_design
from mlff.config.load import make_config
from mlff.design.design import design
from mlff.potential.potential import Potential
from mlff.training.train import train

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "design.json"
CHANGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)  #: eV that the ionisation energy shall be lower
LIMIT = 0.5  #: eV above the minimum
PRESSURES = (-2.0, 2.0, 5.0, 10.0)  #: GPa
STRESSES = [1.0, 0.0, 0.0, 0.0, 0.0, 0.3]  #: GPa
TESTS = ("test_300K", "test_600K")
STATES = {"neutral": {}, "cation": {"charge": 1, "multiplicity": 2}}


def single_points(frames: list, state: str) -> list:
    """Copies with energies (eV) and forces (eV/Å) by GFN2-xTB."""
    from tblite.ase import TBLite

    calculator = TBLite(method="GFN2-xTB", verbosity=0, cache_api=False, **STATES[state])
    labelled = []
    for frame in frames:
        atoms = frame.copy()
        atoms.info, atoms.calc = {}, calculator
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        labelled.append(atoms)
    return labelled


def label(work: Path) -> None:
    """Data of both states: 1,000 geometries of 300 K and 200 of 600 K to train on, 200 of each temperature kept aside."""
    folder = ROOT / "data" / "malonaldehyde"
    warm, hot = read(folder / "test_300K.xyz", ":"), read(folder / "test_600K.xyz", ":")
    sets = {"train": [*read(folder / "train.xyz", ":"), *hot[::2]], **dict(zip(TESTS, (warm[::2], hot[1::2]), strict=True))}
    for state in STATES:
        for name, frames in sets.items():
            if not (work / f"{state}_{name}.xyz").exists():
                write(work / f"{state}_{name}.xyz", single_points(frames, state))


def prepare(work: Path, minutes: float) -> dict:
    """Labels and a model of each state, made once; errors of forces (meV/Å) and of the gap (meV) on what was kept aside."""
    work.mkdir(parents=True, exist_ok=True)
    label(work)
    potentials, errors = {}, {}
    for state in STATES:
        if not (work / state / "model.safetensors").exists():
            data = {"train": str(work / f"{state}_train.xyz"), "lint": "off"}
            training = {"max_hours": minutes / 60, "tensorboard": False}
            model = {"cutoff": 4.5, "channels": 32}
            train(make_config({"data": data, "model": model, "training": training}), work / state)
        potentials[state] = Potential.load(work / state / "model.safetensors")
    for name in TESTS:
        gaps = {}
        for state, potential in potentials.items():
            frames = read(work / f"{state}_{name}.xyz", ":")
            results = potential.predict(frames, stress=False)
            away = [result.forces - frame.get_forces() for result, frame in zip(results, frames, strict=True)]
            errors[f"{state}_{name}_forces_rmse"] = round(1e3 * rms(np.array(away)), 1)
            gaps[state] = np.array([r.energy for r in results]) - [f.get_potential_energy() for f in frames]
        errors[f"{name}_gap_rmse"] = round(1e3 * rms(gaps["cation"] - gaps["neutral"]), 1)
    return errors


def ionisation(work: Path) -> list[dict]:
    """A row for each change of the ionisation energy: what was found, and what GFN2-xTB says of it. Energies in eV."""
    rows = []
    config = load_design(ROOT / "configs" / "design" / "ionisation.yaml")
    for change in CHANGES:
        target = config.targets[0].model_copy(update={"change": -change, "model": str(work / "cation")})
        settings = config.model_copy(update={"model": str(work / "neutral"), "targets": (target,), "energy_limit": LIMIT})
        begun = time.process_time()
        (minimum, *found), outcome = design(settings)
        seconds = time.process_time() - begun
        best, goal = outcome.candidates[0], outcome.goals[0]
        reference = {state: single_points([minimum, found[0]], state) for state in STATES}
        (low, here), (low_cation, cation) = ([a.get_potential_energy() for a in frames] for frames in reference.values())
        rows.append(
            {
                "wanted": goal.wanted[0],
                "at_minimum": goal.at_minimum[0],
                "gap": best.values[0][0],
                "gap_gfn2": cation - here,
                "gap_gfn2_at_minimum": low_cation - low,
                "energy": best.energy,
                "energy_gfn2": here - low,
                "reached": best.reached,
                "why": best.why,
                "starts": [len(one.starts) for one in outcome.candidates],
                "distance": best.distance,
                "symbols": found[0].get_chemical_symbols(),
                "positions": found[0].positions.round(4).tolist(),
                "bonds": bonds(found[0], minimum),
                "cpu_seconds": round(seconds, 1),
            }
        )
        print(rows[-1])
    return rows


def bonds(atoms: ase.Atoms, minimum: ase.Atoms) -> dict[str, list[float]]:
    """Å at the minimum and here, of all pairs nearer than 1.8 Å at the minimum."""
    there, here = minimum.get_all_distances(), atoms.get_all_distances()
    pairs = [(i, j) for i in range(len(atoms)) for j in range(i) if there[i, j] < 1.8]
    names = atoms.get_chemical_symbols()
    return {f"{names[j]}{j}-{names[i]}{i}": [round(float(there[i, j]), 3), round(float(here[i, j]), 3)] for i, j in pairs}


def silicon(model: Path, work: Path) -> dict:
    """Lattice parameters (Å) for pressures (GPa), beside those of finite differences of energies; a strain for a stress."""
    file = work / "silicon.xyz"
    write(file, bulk("Si", a=5.45))
    plain = {"model": str(model), "structure": str(file), "starts": 2, "energy_limit": 1.0}
    potential = Potential.load(model).with_precision("float64")
    rows = []
    for pressure in PRESSURES:
        target = {"kind": "pressure", "value": pressure, "error": 0.01}
        (_, found, *_), outcome = design(make_design(plain | {"free": {"cell": "volume"}, "targets": [target]}))
        volume = found.get_volume()
        rows.append(
            {
                "wanted": pressure,
                "pressure": outcome.candidates[0].values[0][0],
                "lattice_parameter": (4 * volume) ** (1 / 3),
                "finite_differences": (4 * volume_at(potential, found, pressure)) ** (1 / 3),
                "distance": outcome.candidates[0].distance,
            }
        )
        print(rows[-1])
    target = {"kind": "stress", "values": STRESSES, "error": 0.01}
    (minimum, found, *_), outcome = design(make_design(plain | {"free": {"cell": "all"}, "targets": [target]}))
    strain = np.linalg.solve(minimum.cell.array, found.cell.array) - np.eye(3)
    row = {"wanted": STRESSES, "stress": outcome.candidates[0].values[0], "strain_percent": (100 * strain).round(4).tolist()}
    return {"pressures": rows, "stress": row | {"finite_differences": stress_by_differences(potential, found)}}


def volume_at(potential: Potential, atoms: ase.Atoms, pressure: float, step: float = 1e-3) -> float:
    """Å³ at which -dE/dV, by central differences of the energies of scaled cells, is `pressure` (GPa)."""

    def away(factor: float) -> float:
        low, high = (scaled(atoms, factor + sign * step) for sign in (-1, 1))
        first, second = (result.energy for result in potential.predict([low, high], stress=False))
        return -(second - first) / (high.get_volume() - low.get_volume()) / GPa - pressure

    return scaled(atoms, brentq(away, 0.98, 1.02, xtol=1e-8)).get_volume()


def scaled(atoms: ase.Atoms, factor: float) -> ase.Atoms:
    """With the cell larger by a factor."""
    other = atoms.copy()
    other.set_cell(atoms.cell.array * factor, scale_atoms=True)
    return other


def stress_by_differences(potential: Potential, atoms: ase.Atoms, step: float = 1e-4) -> list[float]:
    """GPa, xx yy zz yz xz xy: dE/dε/V from energies of strained cells, fractional coordinates kept."""
    frames = []
    for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        for sign in (-1, 1):
            strain = np.zeros((3, 3))
            strain[i, j] = strain[j, i] = sign * step / (1 if i == j else 2)
            other = atoms.copy()
            other.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            frames.append(other)
    energies = np.array([result.energy for result in potential.predict(frames, stress=False)]).reshape(6, 2)
    return (np.diff(energies)[:, 0] / (2 * step) / atoms.get_volume() / GPa).round(4).tolist()


def draw(content: dict) -> None:
    from matplotlib.figure import Figure

    rows = content["ionisation"]
    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    wanted = np.array([row["wanted"] - row["at_minimum"] for row in rows])
    model = np.array([row["gap"] - row["at_minimum"] for row in rows])
    true = np.array([row["gap_gfn2"] - row["gap_gfn2_at_minimum"] for row in rows])
    left.axline((0, 0), slope=1, color="black", lw=0.8)
    left.plot(wanted, model, "o", color="tab:blue", label="two models")
    left.plot(wanted, true, "x", color="tab:red", label="GFN2-xTB at the same geometry")
    left.set(xlabel="change that was wanted, eV", ylabel="change that was found, eV", title="vertical ionisation energy")
    left.legend(frameon=False)
    right.plot(model, [row["energy"] for row in rows], "o-", ms=4, color="tab:blue", label="model of the neutral molecule")
    right.plot(true, [row["energy_gfn2"] for row in rows], "x", color="tab:red", label="GFN2-xTB")
    right.axhline(LIMIT, color="tab:gray", ls=":", label="limit")
    right.set(xlabel="change of the ionisation energy, eV", ylabel="least energy above the minimum, eV")
    right.legend(frameon=False)
    figure.savefig(ROOT / "docs" / "images" / "design.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/ionisation"), help="folder of labels and models")
    parser.add_argument("--minutes", type=float, default=6.0, help="training of each model")
    parser.add_argument("--silicon", type=Path, help="model of silicon: lattice parameters and a strain too")
    parser.add_argument("--plot", action="store_true", help="only draw")
    arguments = parser.parse_args()
    if not arguments.plot:
        use_compilation_cache()
        content = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        content |= {"machine": machine(), "errors_mev": prepare(arguments.work, arguments.minutes)}
        content["ionisation"] = ionisation(arguments.work)
        if arguments.silicon is not None:
            content["silicon"] = silicon(arguments.silicon, arguments.work)
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(json.loads(RESULTS.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
