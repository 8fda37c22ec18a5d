"""Quantum nuclei of malonaldehyde with i-PI, and beads per second; writes results/path_integrals.json.

    python scripts/benchmarks/path_integrals.py MODEL [--picoseconds 10] [--out FILE] [--plot PNG]

MODEL is one of malonaldehyde (configs/malonaldehyde.yaml). Two runs of the same length at 300 K, 32 beads and one bead
(classical nuclei), steps of 0.5 fs, PILE-G: the proton-transfer coordinate r(O-H) - r(H..O), the shorter O-H distance, and
the kinetic energy by the centroid virial estimator (Herman, Bruskin, Berne, J. Chem. Phys. 76, 5150 (1982)), beside that of
harmonic vibrations. Errors are standard errors of the means of ten blocks. Beads per second: by themselves, and in runs of i-PI with
the driver, with 32 beads in one call or one by one, and over a UNIX socket (`mlff serve`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ase
import numpy as np
from ase.io import read
from machine import machine

from mlff import MLFFCalculator, Potential
from mlff.basics.units import INVERSE_CM, KB
from mlff.interfaces.ipi import INPUT, write_folder
from mlff.potential.beads import Beads
from mlff.properties.vibrations import vibrations
from mlff.simulation.relax import relax

DATA = Path(__file__).parents[2] / "data" / "malonaldehyde" / "test_300K.xyz"
TEMPERATURE = 300.0  #: K
STEP = 0.5  #: fs
EVERY = 20  #: steps between samples
BEADS = 32
BLOCKS = 10


def simulation(folder: Path):
    """i-PI's simulation of the input in a folder, which becomes the working directory; nothing is printed."""
    from ipi.scripting import InteractiveSimulation

    text = (folder / INPUT).read_text(encoding="utf-8")
    text = re.sub(r"<output.*?</output>", "<output></output>", text, flags=re.DOTALL)
    text = text.replace("verbosity='medium'", "verbosity='quiet'").replace(" 0.25 ", f" {STEP} ")
    return InteractiveSimulation(text)


@contextlib.contextmanager
def prepared(potential: Potential, atoms: ase.Atoms, beads: int):
    """A folder of `mlff.interfaces.ipi.write_folder`, as working directory."""
    from ipi.utils.softexit import softexit

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_folder(potential, "model", Path(folder), atoms, beads=beads, temperature=TEMPERATURE)
        yield Path(folder)
        softexit.cleanup("success")
        softexit.reset()


def proton(atoms: ase.Atoms, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of positions (..., n, 3), Å: r(O-H) - r(H..O) of the hydrogen between the oxygen atoms, and the shorter of the two."""
    first, second = (atom.index for atom in atoms if atom.symbol == "O")
    hydrogens = [atom.index for atom in atoms if atom.symbol == "H"]
    shared = min(hydrogens, key=lambda h: atoms.get_distance(first, h) + atoms.get_distance(second, h))
    a, b = (np.linalg.norm(positions[..., shared, :] - positions[..., o, :], axis=-1) for o in (first, second))
    return a - b, np.minimum(a, b)


def sample(potential: Potential, atoms: ase.Atoms, beads: int, picoseconds: float) -> dict:
    """A run with so many beads after a twentieth of it for equilibration."""
    steps = int(picoseconds * 1000 / STEP)
    kinetic, positions = [], []
    with prepared(potential, atoms, beads) as folder:
        run = simulation(folder)
        run.run(steps // 20, write_outputs=False)
        begin = time.perf_counter()
        for _ in range(steps // EVERY):
            run.run(EVERY, write_outputs=False)
            kinetic.append(float(run.properties("kinetic_cv")))
            structures = run.get_structures()
            positions.append([each.positions for each in (structures if beads > 1 else [structures])])
        seconds = time.perf_counter() - begin
    transfer, bond = proton(atoms, np.array(positions))
    counts, edges = np.histogram(transfer, bins=np.linspace(-1.2, 1.2, 25), density=True)
    return {
        "beads": beads,
        "picoseconds": picoseconds,
        "steps_per_s": round(steps / seconds, 1),
        "kinetic_energy_ev": _mean(np.array(kinetic)),
        "oh_distance_mean_a": _mean(bond.mean(axis=1)),
        "oh_distance_std_a": round(float(bond.std()), 4),
        "transfer_coordinate_std_a": _mean(np.sqrt((transfer**2).mean(axis=1))),
        "share_within_0.2_a_of_the_middle": _mean((np.abs(transfer) < 0.2).mean(axis=1)),
        "crossings_of_the_mean_over_beads": int((np.diff(np.sign(transfer.mean(axis=1))) != 0).sum()),
        "transfer_coordinate_histogram": {
            "edges_a": [round(float(edge), 2) for edge in edges],
            "density_per_a": [round(float(count), 3) for count in counts],
        },
    }


def _mean(values: np.ndarray) -> list[float]:
    """Mean and its standard error from blocks."""
    blocks = np.array([block.mean() for block in np.array_split(values, BLOCKS)])
    return [round(float(values.mean()), 4), round(float(blocks.std(ddof=1) / np.sqrt(BLOCKS)), 4)]


def harmonic(potential: Potential, atoms: ase.Atoms) -> dict:
    """Kinetic energy, eV, of harmonic vibrations at 300 K, with translation and rotation as classical motions."""
    atoms = atoms.copy()
    exact = potential.with_precision("float64")
    relax(atoms, MLFFCalculator(exact), fmax=1e-3, progress=False)
    quanta = vibrations(exact, atoms).wavenumbers * INVERSE_CM
    thermal = KB * TEMPERATURE
    quantum = 0.25 * float(np.sum(quanta / np.tanh(0.5 * quanta / thermal))) + 3 * thermal
    return {"quantum_ev": round(quantum, 4), "classical_ev": round(1.5 * len(atoms) * thermal, 4)}


def by_themselves(potential: Potential, atoms: ase.Atoms) -> list[dict]:
    """Beads per second of one batched call, and of a calculator called for one bead after the other."""
    rows = []
    for count in (1, 4, 8, 16, 32, 64):
        positions = atoms.positions + np.random.default_rng(0).normal(0, 0.03, (count, len(atoms), 3))
        cells = np.broadcast_to(np.eye(3) * 100, (count, 3, 3))
        beads, calculator, copy = Beads(potential, atoms.numbers, atoms.pbc), MLFFCalculator(potential), atoms.copy()
        calculator.potential.programs.steady = True

        def one_by_one(positions=positions, copy=copy, calculator=calculator):
            for each in positions:
                copy.positions = each
                calculator.calculate(copy)

        row = {"beads": count}
        for name, call in (
            ("batched", lambda beads=beads, p=positions, c=cells: beads.compute(p, c)),
            ("one_by_one", one_by_one),
        ):
            row |= _rates(name, call, count)
        rows.append(row)
        print(row, flush=True)
    return rows


def _rates(name: str, call, beads: int, seconds: float = 1.0) -> dict:
    """Beads per second and per second of CPU time, the best of three tries, once compiled."""
    call()
    walls, cpus = [], []
    for _ in range(3):
        begin, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - begin < seconds:
            call()
            count += beads
        walls.append(count / (time.perf_counter() - begin))
        cpus.append(count / (time.process_time() - cpu))
    return {f"{name}_per_s": round(max(walls)), f"{name}_per_cpu_s": round(max(cpus))}


def in_runs(potential: Potential, atoms: ase.Atoms, steps: int = 200) -> list[dict]:
    """Beads per second of runs of i-PI with 32 beads: all in one call, one by one, and over a socket."""
    rows = []
    for name in ("one call", "one by one", "mlff serve"):
        with prepared(potential, atoms, BEADS) as folder:
            path = folder / INPUT
            text = path.read_text(encoding="utf-8")
            if name == "one by one":
                text = text.replace(f"<batch_size> {BEADS} </batch_size>", "<batch_size> 1 </batch_size>")
            address = f"mlff_{os.getpid()}"
            if name == "mlff serve":
                there = (
                    f"<ffsocket name='mlff' mode='unix'> <address> {address} </address> <latency>1e-4</latency> </ffsocket>"
                )
                text = re.sub(r"<ffdirect.*?</ffdirect>", there, text, flags=re.DOTALL)
            path.write_text(text, encoding="utf-8")
            run = simulation(folder)
            client = contextlib.nullcontext()
            if name == "mlff serve":
                command = ["serve", "model.safetensors", "init.xyz", "--unix", address]
                code = "import sys; from mlff.cli import main; sys.exit(main())"
                client = subprocess.Popen([sys.executable, "-c", code, *command])
            run.run(20, write_outputs=False)
            rates = []
            for _ in range(3):
                begin, cpu = time.perf_counter(), time.process_time()
                run.run(steps, write_outputs=False)
                rates.append([steps / (time.perf_counter() - begin), steps / (time.process_time() - cpu)])
        if name == "mlff serve":
            client.wait(60)
        wall, cpu = np.max(rates, axis=0)
        row = {"forces": name, "steps_per_s": round(wall, 1), "beads_per_s": round(wall * BEADS)}
        rows.append(row if name == "mlff serve" else row | {"beads_per_cpu_s": round(cpu * BEADS)})
        print(rows[-1], flush=True)
    return rows


def draw(content: dict, path: Path) -> None:
    """The distributions of the proton, and beads per second of CPU time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    for name, text, color in (("quantum", f"{BEADS} beads", "tab:blue"), ("classical", "classical", "tab:gray")):
        counts = content[name]["transfer_coordinate_histogram"]
        left.stairs(counts["density_per_a"], counts["edges_a"], color=color, label=text, lw=1.5)
    left.set(xlabel="r(O-H) - r(H..O), Å", ylabel="density, 1/Å", title="the proton of malonaldehyde, 300 K")
    left.legend(frameon=False)
    rows = content["beads_per_second"]
    count = [row["beads"] for row in rows]
    for name, text, color in (("batched", "in one call", "tab:blue"), ("one_by_one", "one by one", "tab:gray")):
        right.plot(count, [row[f"{name}_per_cpu_s"] for row in rows], "o-", ms=4, color=color, label=text)
    right.set(xscale="log", xlabel="beads", ylabel="beads per second of CPU time", ylim=(0, None))
    right.set_xticks(count, [str(number) for number in count])
    right.minorticks_off()
    right.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--picoseconds", type=float, default=10.0, help="of each run; 0: only beads per second anew")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "path_integrals.json")
    parser.add_argument("--plot", type=Path, help="draw the figures of --out into this PNG file, and nothing else")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    if arguments.plot is not None:
        draw(json.loads(out.read_text(encoding="utf-8")), arguments.plot)
        return
    potential, atoms = Potential.load(arguments.model), read(DATA, index=0)
    content = {"machine": machine(), "model": repr(potential), "temperature_k": TEMPERATURE, "timestep_fs": STEP}
    content["harmonic_kinetic_energy"] = harmonic(potential, atoms)
    content["beads_per_second"] = by_themselves(potential, atoms)
    content["beads_per_second_in_i_pi"] = in_runs(potential, atoms)
    if not arguments.picoseconds:
        kept = json.loads(out.read_text(encoding="utf-8"))
        content |= {name: kept[name] for name in ("quantum", "classical")}
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return
    for name, beads in (("quantum", BEADS), ("classical", 1)):
        content[name] = sample(potential, atoms, beads, arguments.picoseconds)
        print(name, {key: value for key, value in content[name].items() if "histogram" not in key}, flush=True)
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(out)


if __name__ == "__main__":
    main()
