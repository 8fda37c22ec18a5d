"""Whole simulations of a small crystal against statistical mechanics: kinetic energies, ratios of distributions, fluctuations.

Laws in closed form, for each integrator by itself, are in test_integrators.py.
"""

import functools
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
from ase.build import bulk

from mlff import MLFFCalculator
from mlff.basics.units import KB, STRESS
from mlff.properties.elasticity import elasticity
from mlff.simulation import thermostats
from mlff.simulation.md import run_md
from mlff.simulation.relax import relax
from tests.potentials import lennard_jones

ATOMS, KELVIN, GIGAPASCAL = 4, 400.0, 1.0
#: physical_validation, in a process of its own: what it imports would switch JAX to 64 bits. Prints the distance of mean and
#: width of the kinetic energy from their law (in errors), and of the slope of the ratio of two distributions from the true one.
CHECK = """
import json, sys
sys.modules["jax"] = None
import numpy as np, physical_validation as pv
from physical_validation.data import *
told = np.load(sys.argv[1])
units = UnitData(kb=float(told["kb"]), energy_conversion=96.485, length_conversion=0.1, volume_conversion=1e-3,
    temperature_conversion=1.0, pressure_conversion=1e4, time_conversion=1e-3)
system = SystemData(natoms=int(told["atoms"]), nconstraints=0, ndof_reduction_tra=3, ndof_reduction_rot=0)
def data(name):
    columns = {key: told[f"{name}_{key}"] for key in ("kinetic_energy", "potential_energy", "total_energy", "volume")}
    kelvin, gigapascal = told[f"{name}_at"]
    more = {"pressure": gigapascal} if told["npt"] else {"volume": columns["volume"][0]}
    kind = EnsembleData("NPT" if told["npt"] else "NVT", natoms=int(told["atoms"]), temperature=kelvin, **more)
    return SimulationData(units=units, system=system, ensemble=kind, observables=ObservableData(**columns))
kinetic = pv.kinetic_energy.distribution(data("one"), verbosity=0, bootstrap_seed=1)
ratio = pv.ensemble.check(data("one"), data("two"), verbosity=0, bootstrap_seed=1) if told["ratio"] else []
print(json.dumps([list(kinetic), list(ratio)]))
"""


@functools.cache
def exact():
    return lennard_jones(precision="float64")


def lines(log, atoms, steps, interval, **options):
    """The log of a run that follows one of a tenth as long."""
    options |= {"timestep": 4.0, "progress": False, "engine": "jax"}
    calculator = MLFFCalculator(exact())
    run_md(atoms, calculator, steps=steps // 10, **options)
    run_md(atoms, calculator, steps=steps, interval=interval, log=log, keep_velocities=True, **options)
    return [json.loads(line) for line in log.read_text().splitlines()]


def validated(folder, ratio=True, **options):
    """Distances in standard errors, of runs 5 % apart in temperature (and at the same pressure)."""
    npt = options.get("ensemble") == "npt"
    told = {"kb": KB, "atoms": ATOMS, "npt": npt, "ratio": ratio}
    for name, kelvin in (("one", KELVIN), ("two", 1.05 * KELVIN)):
        atoms = bulk("Cu", a=3.65, cubic=True)
        pressure = {"pressure": GIGAPASCAL, "tau_pressure": 400.0} if npt else {}
        found = lines(folder / f"{name}.jsonl", atoms, 60_000, 30, temperature=kelvin, tau=50.0, **pressure, **options)
        for key, column in (("kinetic_energy", "ekin_ev"), ("potential_energy", "epot_ev"), ("total_energy", "etot_ev")):
            told[f"{name}_{key}"] = np.array([line[column] for line in found])
        told[f"{name}_volume"] = np.array([line["volume_a3"] for line in found])
        told[f"{name}_at"] = np.array([kelvin, GIGAPASCAL])
    np.savez(folder / "told.npz", **told)
    done = subprocess.run([sys.executable, "-c", CHECK, folder / "told.npz"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"thermostat": "langevin"},
        {"thermostat": "bussi"},
        {"thermostat": "nose_hoover"},
        {"ensemble": "npt"},
        {"ensemble": "npt", "barostat": "full"},
    ],
    ids=lambda options: "_".join(options.values()),
)
def test_physical_validation_agrees(tmp_path, options):
    pytest.importorskip("physical_validation")
    kinetic, ratio = validated(tmp_path, **options)
    assert max(np.abs(kinetic)) < 4 and max(np.abs(ratio)) < 4, (kinetic, ratio)


@pytest.mark.slow
def test_physical_validation_catches_a_wrong_thermostat(tmp_path, monkeypatch):
    """Rescaling towards the target keeps the mean, and makes fluctuations too small."""
    pytest.importorskip("physical_validation")

    def weak_coupling(at, state):
        kinetic = thermostats.kinetic_energy(at, state)
        share = 1 + at.timestep / at.tau * (0.5 * at.freedom * KB * at.temperature / kinetic - 1)
        return thermostats.with_momenta(at, state, state.momenta * share**0.5)

    monkeypatch.setattr(thermostats, "rescale_momenta", weak_coupling)
    exact.cache_clear()  # programs are compiled once for a potential
    kinetic, _ = validated(tmp_path, ratio=False, thermostat="bussi")
    exact.cache_clear()
    assert abs(kinetic[1]) > 10, kinetic


@pytest.mark.slow
def test_slow_strain_fluctuations_are_those_of_the_elastic_constants(tmp_path):
    """<ε_i ε_j> = kT/V S_ij with the compliance of the crystal at rest: of a cold one, to its softening with temperature."""
    kelvin, atoms = 20.0, bulk("Cu", a=3.6, cubic=True).repeat(2)
    relax(atoms, MLFFCalculator(exact()), fmax=1e-5, cell=True, progress=False)
    compliance = np.linalg.inv(elasticity(exact(), atoms).constants * STRESS["GPa"])
    options = {"ensemble": "npt", "barostat": "full", "temperature": kelvin, "tau_pressure": 400.0, "timestep": 4.0}
    options |= {"progress": False, "engine": "jax", "interval": 10}
    run_md(atoms, MLFFCalculator(exact()), steps=2_000, **options)
    file = tmp_path / "cells.h5md"
    run_md(atoms, MLFFCalculator(exact()), steps=50_000, keep_velocities=True, trajectory=file, **options)
    with h5py.File(file, "r") as content:
        cells = content["particles/all/box/edges/value"][()]
    stretch = np.linalg.solve(cells.mean(axis=0), cells)
    strain = 0.5 * (stretch @ stretch.transpose(0, 2, 1) - np.eye(3))
    six = np.stack([strain[:, a, b] * (1 + (a != b)) for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))], axis=1)
    found = np.cov(six.T) / (KB * kelvin / np.linalg.det(cells).mean())
    assert np.mean(np.diag(found)[:3]) == pytest.approx(compliance[0, 0], rel=0.15)
    assert np.mean(np.diag(found)[3:]) == pytest.approx(compliance[3, 3], rel=0.15)
    assert np.mean([found[0, 1], found[0, 2], found[1, 2]]) == pytest.approx(compliance[0, 1], rel=0.25)
