"""Outputs of electronic-structure programs that ASE reads: with the marks of an SCF that did not converge, which ASE drops.

ASE converts to eV, eV/Å and eV/Å³ positive under tension. The energies are: VASP, extrapolated to zero broadening; Quantum
ESPRESSO, the one marked `!` (a free energy where there is smearing); FHI-aims, the electronic free energy; CASTEP, the 0 K
estimate where there is smearing; Gaussian and ORCA, the last of the method asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import ase
import ase.io

from mlff.basics.errors import DataError
from mlff.data.facts import ASE, UNCONVERGED, Reading, Remark, remark

_UNFINISHED = 2  #: energies that may lack a geometry: of a step that was cut off, or computed twice
_LOOSE = 10.0  #: times its own threshold at which an SCF of Quantum ESPRESSO counts as not converged


def reader(name: str, marks: Callable[[Path], list[bool]]) -> Callable[[Path], Reading]:
    """The reader for a format of ASE. `marks`: whether the SCF converged, of each geometry that has an energy."""
    return lambda path: Reading(_frames(path, name, marks(path)), ASE)


def _frames(path: Path, name: str, converged: list[bool]) -> Iterator[ase.Atoms]:
    labelled, before = 0, None
    for atoms in ase.io.iread(str(path.resolve()), ":", format=name, do_not_split_by_at_sign=True):
        if before is not None:
            yield before
        results = atoms.calc.results if atoms.calc is not None else {}
        if "energy" not in results and "free_energy" in results:  # CASTEP's .md and .geom
            results["energy"] = results["free_energy"]
        if "energy" in results:
            if labelled < len(converged) and not converged[labelled]:
                remark(atoms, UNCONVERGED)
            labelled += 1
        before = atoms
    if before is not None:
        if labelled < len(converged) - _UNFINISHED:
            remark(
                before,
                Remark("lost", f"the file has {len(converged)} energies, but ASE reads {labelled} geometries with one"),
            )
        yield before


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        yield from file


def outcar(path: Path) -> list[bool]:
    """VASP 5 says that EDIFF is reached at the last allowed iteration too, so iterations are counted against NELM.

    Raises DataError for a run with VASP's own force field, whose energies are not those of DFT.
    """
    most, steps = None, {}
    for line in _lines(path):
        if most is None and (found := re.match(r"\s*NELM\s*=\s*(\d+)", line)):
            most = int(found[1])
        elif found := re.search(r"-+ Iteration\s+(\d+)\(\s*(\d+)\)", line):
            steps[int(found[1])] = most is None or int(found[2]) < most
        elif "free  energy ML TOTEN" in line or "free energy ML TOTEN" in line:
            raise DataError(
                "a run with VASP's own machine-learned force field, whose energies and forces are not those of DFT; take ML_AB or a DFT run"
            )
        elif "EDIFF was not reached" in line or "hard stop was set" in line:
            steps[max(steps, default=1)] = False
    return [steps[number] for number in sorted(steps)]


def vasprun(path: Path) -> list[bool]:
    """Iterations (scstep) of each geometry (calculation) against NELM."""
    most, steps = None, []
    for line in _lines(path):
        if most is None and (found := re.search(r'name="NELM"\s*>\s*(\d+)', line)):
            most = int(found[1])
        if "<calculation" in line:
            steps.append(0)
        elif "<scstep" in line and steps:
            steps[-1] += 1
    return [most is None or count < most for count in steps]


def espresso(path: Path) -> list[bool]:
    """With scf_must_converge=.false. the text says that it converged; the accuracy it names beside the final energy does not lie. Raises DataError."""
    threshold, final, accuracy, steps = None, False, 0.0, []
    for line in _lines(path):
        if found := re.search(
            r"(?:convergence threshold\s*=|new conv_thr\s*=)\s*([\d.]+(?:[ED][+-]?\d+)?)", line, re.IGNORECASE
        ):
            threshold = _real(found[1])
        elif found := re.search(r"estimated scf accuracy\s*<\s*([\d.]+(?:[ED][+-]?\d+)?)", line, re.IGNORECASE):
            accuracy = _real(found[1]) if final else accuracy
            final = False
        elif line.startswith("!"):
            final = True
        elif "convergence has been achieved" in line:
            steps.append(threshold is None or accuracy <= _LOOSE * threshold)
        elif "convergence NOT achieved" in line:
            raise DataError(
                f"the SCF of geometry {len(steps)} did not converge, and Quantum ESPRESSO stopped there without energy and forces"
            )
    return steps


def gaussian(path: Path) -> list[bool]:
    """One for each `SCF Done`. Raises DataError where forces and positions stand in different axes."""
    steps, bad, axes, forces = [], False, set(), False
    for line in _lines(path):
        if "onvergence criterion not met" in line:
            bad = True
        elif "SCF Done" in line:
            steps.append(not bad)
            bad = False
        elif found := re.search(r"(Input|Standard|Z-Matrix) orientation:", line):
            axes.add(found[1])
        forces |= "Forces (Hartrees/Bohr)" in line
    if forces and axes == {"Standard"}:
        raise DataError(
            "positions are given in the standard orientation only, forces in that of the input: compute it with NoSymm"
        )
    return steps


def orca(path: Path) -> list[bool]:
    """One for each `FINAL SINGLE POINT ENERGY`."""
    steps, bad = [], False
    for line in _lines(path):
        if "SCF NOT CONVERGED" in line:
            bad = True
        elif "SCF CONVERGED AFTER" in line:
            bad = False
        elif line.startswith("FINAL SINGLE POINT ENERGY"):
            steps.append(not bad and "not fully converged" not in line)
    return steps


def aims(path: Path) -> list[bool]:
    """One for each energy. Raises DataError for molecular dynamics, whose geometries ASE takes for those of the next step."""
    steps, bad = [], False
    for line in _lines(path):
        if "as used in the preceding time step" in line:
            raise DataError(
                "FHI-aims' molecular dynamics, whose positions and cells ASE does not read right: convert it, e.g. with dpdata (fhi_aims/md)"
            )
        if "SELF-CONSISTENCY CYCLE DID NOT CONVERGE" in line:
            bad = True
        elif "Total energy corrected" in line:
            steps.append(not bad)
            bad = False
    return steps


def castep(path: Path) -> list[bool]:
    """One for each energy. Raises DataError where energies with and without the correction for the finite basis stand side by side."""
    steps, bad, corrected, smeared = [], False, 0, False
    for line in _lines(path):
        if "system has not reached the groundstate" in line or "electronic minimisation did not converge" in line:
            bad = True
        elif re.match(r"\s*Final energy(, E)?\s*=", line):
            steps.append(not bad)
            bad = False
        corrected += "Total energy corrected for finite basis set" in line
        smeared |= "NB est. 0K energy" in line
    first = 3 if corrected else 1  # the correction takes three energies of the first geometry
    if corrected and len(steps) > first and not smeared:
        raise DataError(
            f"{corrected} of {len(steps)} energies are corrected for the finite basis set; compute with FINITE_BASIS_CORR 0, or all alike"
        )
    return steps[first - 1 :]


def nothing(path: Path) -> list[bool]:
    """A format without marks."""
    return []


def _real(text: str) -> float:
    return float(re.sub("[dD]", "e", text))
