"""`mlff vibrations`, `mlff phonons`, `mlff elastic`, `mlff eos` and `mlff neb`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlff.basics.errors import DataError
from mlff.basics.files import EXTXYZ, PNG, check_outputs, write_text
from mlff.cli.app import app, say
from mlff.cli.options import (
    AsPrecision,
    Frame,
    JsonFile,
    Length,
    Model,
    Plot,
    Quiet,
    StructureFile,
    about,
    load,
    read_structure,
)

if TYPE_CHECKING:
    import ase

    from mlff.potential.potential import Potential

Minimum = Annotated[float, typer.Option("--fmax", help="largest force of a structure that counts as a minimum, eV/Å")]
RelaxAtoms = Annotated[bool, typer.Option("--relax", help="relax the atoms first, to a hundredth of --fmax")]
RelaxAll = Annotated[bool, typer.Option("--relax", help="relax atoms and cell first, to a hundredth of --fmax")]
_FORCE = 0.02  #: eV/Å, as mlff.properties.minimum.TOLERANCE


@app.command(epilog="Example: mlff vibrations runs/malonaldehyde relaxed.xyz --modes modes.xyz --json vibrations.json")
def vibrations(
    model: Model,
    structure: StructureFile,
    temperature: Annotated[float, typer.Option(min=1e-3, help="of the free energy, K")] = 300.0,
    symmetry: Annotated[int, typer.Option(min=1, help="symmetry number of a molecule: 2 for water, 12 for methane")] = 1,
    modes: Annotated[Path | None, typer.Option(help="write a period of each mode to this extended XYZ file")] = None,
    relax: RelaxAtoms = False,
    fmax: Minimum = _FORCE,
    json_file: JsonFile = None,
    plot: Plot = None,
    frame: Frame = -1,
    length: Length = None,
    quiet: Quiet = False,
) -> None:
    """Harmonic vibrations, zero-point energy and free energy, from second derivatives in float64."""
    check_outputs([(json_file, ()), (plot, PNG), (modes, EXTXYZ)], [model, structure])
    potential, atoms = _read(model, structure, frame, length)
    from mlff.basics.files import replacing
    from mlff.data.writing import write_frames
    from mlff.properties.vibrations import vibrations as compute
    from mlff.report import properties as report

    with about(structure):
        if relax:
            atoms = _relaxed(potential, atoms, False, fmax, quiet)
        found = compute(potential, atoms, fmax)
    thermal = found.free_energy(temperature, symmetry)
    content = found.to_dict() | {"temperature_k": temperature, "symmetry_number": symmetry, **thermal}
    _tell(report.vibrations(found, temperature, thermal), potential, model, structure, [atoms], content, json_file)
    if plot is not None:
        report.vibrations_plot(found, plot, structure.name)
    if modes is not None:
        with replacing(modes) as temporary, open(temporary, "w", encoding="utf-8") as file:
            write_frames(file, found.animation())
    if len(found.imaginary):
        numbers = ", ".join(f"{-value:.0f}i" for value in found.imaginary)
        say("warning", f"imaginary: {numbers} cm⁻¹: no minimum; zero-point and free energy leave these modes out")


@app.command(epilog="Example: mlff phonons runs/silicon si.xyz --relax --plot phonons.png")
def phonons(
    model: Model,
    structure: StructureFile,
    supercell: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="repetitions along a, b and c, e.g. 4 4 4", show_default="twice the cutoff wide"),
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(min=0, help="of the thermal properties, K (repeatable)", show_default="300")
    ] = None,
    relax: RelaxAll = False,
    fmax: Minimum = _FORCE,
    json_file: JsonFile = None,
    plot: Plot = None,
    frame: Frame = -1,
    length: Length = None,
    quiet: Quiet = False,
) -> None:
    """Phonon bands, density of states and thermal properties of a crystal (needs phonopy). All displacements in one batch."""
    check_outputs([(json_file, ()), (plot, PNG)], [model, structure])
    from mlff.properties.phonons import need_phonopy

    need_phonopy()
    potential, atoms = _read(model, structure, frame, length)
    from mlff.properties.minimum import need_cell
    from mlff.properties.phonons import phonons as compute
    from mlff.report import properties as report

    with about(structure):
        need_cell(atoms, "phonons")
        if relax:
            atoms = _relaxed(potential, atoms, True, fmax, quiet)
        found = compute(potential, atoms, supercell, temperature or (300.0,), fmax)
    _tell(report.phonons(found), potential, model, structure, [atoms], found.to_dict(), json_file)
    if plot is not None:
        report.phonons_plot(found, plot, structure.name)
    if not found.stable:
        say(
            "warning",
            f"imaginary frequencies, down to {-found.lowest:.2f}i THz: the crystal is not stable, or the supercell too small",
        )


@app.command(epilog="Example: mlff elastic runs/silicon si.xyz --relax --json elastic.json")
def elastic(
    model: Model,
    structure: StructureFile,
    strain: Annotated[float, typer.Option(min=1e-5, max=0.03, help="of the finite differences")] = 0.005,
    relax: RelaxAll = False,
    fmax: Minimum = _FORCE,
    json_file: JsonFile = None,
    plot: Plot = None,
    frame: Frame = -1,
    length: Length = None,
    quiet: Quiet = False,
) -> None:
    """Elastic constants (GPa) with relaxed atoms, and bulk and shear moduli. All strains in one batch."""
    check_outputs([(json_file, ()), (plot, PNG)], [model, structure])
    potential, atoms = _read(model, structure, frame, length)
    from mlff.properties.elasticity import elasticity, strained_cells
    from mlff.properties.minimum import need_cell
    from mlff.report import properties as report

    with about(structure):
        need_cell(atoms, "elastic constants")
        if relax:
            atoms = _relaxed(potential, atoms, True, fmax, quiet)
        found = elasticity(potential, atoms, strain, fmax)
    structures = [atoms, *strained_cells(atoms, strain)]
    _tell(report.elasticity(found), potential, model, structure, structures, found.to_dict(), json_file)
    if plot is not None:
        report.elasticity_plot(found, plot, structure.name)
    if found.eigenvalues[0] <= 0:
        say("warning", f"an eigenvalue is {found.eigenvalues[0]:.2f} GPa: the crystal is not stable against this strain")
    if abs(found.stress).max() > 0.1:
        say(
            "warning",
            f"the cell is under a stress of {abs(found.stress).max():.2f} GPa: these are not the constants at zero stress; --relax",
        )


@app.command(epilog="Example: mlff eos runs/silicon si.xyz --plot eos.png")
def eos(
    model: Model,
    structure: StructureFile,
    span: Annotated[
        float, typer.Option("--range", min=1e-3, max=0.49, help="volumes from 1 - RANGE to 1 + RANGE of that in the file")
    ] = 0.06,
    points: Annotated[int, typer.Option(min=5, help="number of volumes")] = 11,
    relax: RelaxAll = False,
    fmax: Minimum = _FORCE,
    json_file: JsonFile = None,
    plot: Plot = None,
    frame: Frame = -1,
    length: Length = None,
    quiet: Quiet = False,
) -> None:
    """Equation of state: equilibrium volume, bulk modulus and its derivative. All volumes in one batch."""
    check_outputs([(json_file, ()), (plot, PNG)], [model, structure])
    potential, atoms = _read(model, structure, frame, length)
    from mlff.properties.compression import compression, scaled_cells
    from mlff.properties.minimum import need_cell
    from mlff.report import properties as report

    with about(structure):
        need_cell(atoms, "equations of state")
        if relax:
            atoms = _relaxed(potential, atoms, True, fmax, quiet)
        found = compression(potential, atoms, span, points)
    structures = scaled_cells(atoms, span, points)
    _tell(report.compression(found), potential, model, structure, structures, found.to_dict(), json_file)
    if plot is not None:
        report.compression_plot(found, plot, structure.name)
    if found.forces_max > fmax:
        say(
            "warning", f"forces of up to {found.forces_max:.2g} eV/Å: atoms move in the scaled cells, which is left out here"
        )
    if not found.central:
        say("warning", "the minimum lies near the edge of the volumes: start from a relaxed cell (--relax)")


@app.command(epilog="Example: mlff neb runs/malonaldehyde start.xyz end.xyz --relax --out path.xyz --plot path.png")
def neb(
    model: Model,
    start: Annotated[Path, typer.Argument(metavar="START", help="structure file of one minimum", show_default=False)],
    end: Annotated[
        Path, typer.Argument(metavar="END", help="of the other: the same atoms in the same order", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="images: .traj, .xyz or .extxyz", show_default="START.neb.xyz")] = None,
    images: Annotated[int, typer.Option(min=1, help="number of images between the ends")] = 7,
    fmax: Annotated[float, typer.Option(help="stop when no force on the band is larger, eV/Å; of the ends too")] = _FORCE,
    steps: Annotated[int, typer.Option(min=1, help="give up after so many steps")] = 1000,
    relax: Annotated[bool, typer.Option("--relax", help="relax both ends first, to a hundredth of --fmax")] = False,
    json_file: JsonFile = None,
    plot: Plot = None,
    start_frame: Annotated[int, typer.Option(help="which structure of START: 0 is the first, -1 the last")] = -1,
    end_frame: Annotated[int, typer.Option(help="which structure of END")] = -1,
    length: Length = None,
    precision: AsPrecision = None,
    quiet: Quiet = False,
) -> None:
    """Reaction path and barrier by a nudged elastic band with a climbing image. Exit code 1 if it does not converge.

    All images are computed in one batch.
    """
    from mlff.simulation.record import SUFFIXES, Trajectory

    out = start.with_suffix(".neb.xyz") if out is None else out
    check_outputs([(out, SUFFIXES), (json_file, ()), (plot, PNG)], [model, start, end])
    potential = load(model, precision)
    from mlff.properties.minimum import check_minimum
    from mlff.properties.path import check_ends, reaction_path
    from mlff.report import properties as report

    ends = [read_structure(start, start_frame, length), read_structure(end, end_frame, length)]
    with about(f"{start}, {end}"):
        check_ends(*ends)
    for number, path in enumerate((start, end)):
        with about(path):
            if relax:
                ends[number] = _relaxed(potential, ends[number], False, fmax, quiet)
            check_minimum(potential, ends[number], fmax)
    with about(f"{start}, {end}"):
        found = reaction_path(potential, *ends, images, fmax, steps, progress=not quiet)
    _tell(report.reaction_path(found), potential, model, start, found.images, found.to_dict() | {"end": str(end)}, json_file)
    trajectory = Trajectory(out)
    for number, image in enumerate(found.images):
        trajectory.write(image, image.get_potential_energy(), image.get_forces(apply_constraint=False), image=number)
    trajectory.close()
    if plot is not None:
        report.reaction_path_plot(found, plot, f"{start.name} to {end.name}")
    print(out)
    for note in found.notes:
        say("warning", note)
    if not found.converged:
        raise DataError(
            f"not converged after {found.steps} steps: the largest force on the band is {found.forces_max:.2g} eV/Å"
        )


def _read(model: Path, structure: Path, frame: int, length: str | None) -> tuple[Potential, ase.Atoms]:
    """The potential in float64, and the structure."""
    return load(model, "float64"), read_structure(structure, frame, length)


def _relaxed(potential: Potential, atoms: ase.Atoms, cell: bool, fmax: float, quiet: bool) -> ase.Atoms:
    from mlff.properties.minimum import relaxed

    return relaxed(potential, atoms, cell, fmax, progress=not quiet)


def _tell(
    table, potential: Potential, model: Path, structure: Path, structures: list, content: dict, json_file: Path | None
) -> None:
    """Print the table with the model's name and the distance from the training data, and write the JSON."""
    from rich.console import Console

    from mlff.properties.minimum import farthest

    distance = farthest(potential, structures)
    table.add_row("model", f"{model}, {potential.fingerprint[:12]}")
    table.add_row(
        "distance from data",
        "not known: the model does not know its training data" if distance is None else f"{distance:.2g}",
    )
    Console().print(table)
    if json_file is not None:
        head = {"model": str(model), "fingerprint": potential.fingerprint, "structure": str(structure), "distance": distance}
        write_text(json_file, json.dumps(head | content, indent=2) + "\n")
    if distance is not None and distance > 1:
        what = "are a guess" if distance > 2 else "are less certain"
        say("warning", f"an atom is {distance:.2g} times as far from the training data as these reach: forces there {what}")
