"""`mlff predict`, `mlff relax` and `mlff sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mlff.basics.errors import DataError
from mlff.basics.files import EXTXYZ, check_outputs
from mlff.basics.signals import Terminated
from mlff.cli.app import app, say
from mlff.cli.options import (
    AsPrecision,
    Length,
    Model,
    Quiet,
    StructureFile,
    about,
    load,
    make_calculator,
    read_structure,
)

_NAMED = 10  #: structures that did not converge are named up to so many


@app.command(epilog="Example: mlff predict runs/si/model.safetensors candidates.xyz predicted.xyz --stress")
def predict(
    model: Model,
    structures: Annotated[
        Path, typer.Argument(metavar="IN", help="structures, any format that training reads", show_default=False)
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="extended XYZ file to write (.xyz, .extxyz)", show_default=False)
    ],
    stress: Annotated[bool, typer.Option("--stress", help="stresses too (eV/Å³; three-dimensional cells only)")] = False,
    length: Length = None,
    precision: AsPrecision = None,
    quiet: Quiet = False,
) -> None:
    """Write structures with mlff_energy (eV), mlff_forces (eV/Å) and mlff_stress (eV/Å³); what IN holds stays as it is.

    mlff_distance tells how far each atom is from the training data: up to 1 is inside.
    """
    check_outputs([(out, EXTXYZ)], [model, structures])
    from mlff.report.structures import write_predictions

    count = write_predictions(load(model, precision), structures, out, stress=stress, length=length, progress=not quiet)
    print(f"{out}: {count:,} structures")


@app.command(epilog="Example: mlff relax runs/si/model.safetensors si.xyz --cell --out relaxed.xyz")
def relax(
    model: Model,
    structure: StructureFile,
    out: Annotated[
        Path | None,
        typer.Option(
            help="relaxed structure, any format ASE writes; of several structures .xyz or .extxyz",
            show_default="NAME.relaxed.xyz",
        ),
    ] = None,
    cell: Annotated[bool, typer.Option("--cell", help="relax the cell too")] = False,
    fmax: Annotated[float, typer.Option(help="stop when no force is larger, eV/Å")] = 0.01,
    pressure: Annotated[float | None, typer.Option(help="GPa, with --cell", show_default="0")] = None,
    steps: Annotated[int, typer.Option(help="give up after so many steps")] = 500,
    optimizer: Annotated[
        Literal["lbfgs", "fire"],
        typer.Option(help="lbfgs: several structures side by side; fire: slower, one by one, for those that lbfgs fails on"),
    ] = "lbfgs",
    trajectory: Annotated[
        Path | None, typer.Option(help="write all steps: .traj, .xyz or .extxyz; of one structure")
    ] = None,
    frame: Annotated[
        int | None,
        typer.Option("--frame", help="one structure of the file: 0 is the first, -1 the last", show_default="all"),
    ] = None,
    length: Length = None,
    precision: AsPrecision = None,
    quiet: Quiet = False,
) -> None:
    """Relax a structure, or all of a file, with --cell also their cells. Exit code 1 if one does not converge.

    The last structures are written in any case, after Ctrl-C too. Of several, each has converged=T or converged=F in its info.
    """
    out = structure.with_suffix(".relaxed.xyz") if out is None else out
    from mlff.report.structures import check_relaxed, read_structures
    from mlff.simulation.record import SUFFIXES

    check_outputs([(out, (out.suffix,)), (trajectory, SUFFIXES)], [model, structure])
    found = read_structures(structure, length) if frame is None else [read_structure(structure, frame, length)]
    options = {"fmax": fmax, "cell": cell, "pressure": pressure, "steps": steps, "optimizer": optimizer}
    if len(found) == 1:
        check_relaxed(found[0], out)
        _relax_one(
            found[0], make_calculator(model, precision), structure, out, trajectory, options | {"progress": not quiet}
        )
        return
    if trajectory is not None:
        raise DataError(f"{structure}: {len(found):,} structures, but --trajectory is of one: add --frame, or leave it out")
    check_outputs([(out, EXTXYZ)], [])
    _relax_many(found, load(model, precision), structure, out, options | {"progress": not quiet})


def _relax_one(atoms, calculator, structure: Path, out: Path, trajectory: Path | None, options: dict) -> None:
    from mlff.report.structures import write_relaxed
    from mlff.simulation.relax import relax as run_relaxation

    with about(structure):
        try:
            result = run_relaxation(atoms, calculator, trajectory=trajectory, **options)
        except (KeyboardInterrupt, Terminated):
            write_relaxed(atoms, out)
            say("warning", f"stopped before the end; the last structure is in {out}")
            raise
    write_relaxed(atoms, out)
    change = f"{result.energy:.6f} eV ({result.energy_change:+.6f})"
    print(f"{result.steps} steps: {change}, largest force {result.forces_max:.2g} eV/Å")
    if options["cell"]:
        lengths, angles = atoms.cell.lengths(), atoms.cell.angles()
        print(f"cell {_join(lengths, '.4f')} Å, {_join(angles, '.2f')} degrees, volume {result.volume:.3f} Å³")
    print(out)
    if not result.converged:
        raise DataError(result.warning or f"not converged after {result.steps} steps")
    if result.warning:
        say("warning", result.warning)


def _relax_many(found: list, potential, structure: Path, out: Path, options: dict) -> None:
    from mlff.interfaces.ase import MLFFCalculator
    from mlff.report import tables
    from mlff.report.structures import write_many_relaxed
    from mlff.simulation.relaxations import add_stresses, relax_many

    results, stopped = {}, None
    try:
        for index, result in relax_many(found, MLFFCalculator(potential), source=structure, **options):
            results[index] = result
    except (KeyboardInterrupt, Terminated) as error:
        stopped = error
    converged = [index in results and results[index].converged for index in range(len(found))]
    add_stresses([atoms for atoms, done in zip(found, converged, strict=True) if done], potential)
    write_many_relaxed(found, converged, out)
    if stopped is not None:
        say(
            "warning",
            f"stopped after {len(results):,} of {len(found):,} structures; {out} has all where they have come: "
            "to go on, relax that file",
        )
        raise stopped
    print(tables.relaxations([results[index] for index in range(len(found))]))
    print(out)
    bad = [index for index in sorted(results) if not results[index].converged]
    if bad:
        named = "; ".join(f"structure {index}: {results[index].warning}" for index in bad[:_NAMED])
        more = f"; and {len(bad) - _NAMED:,} more, converged=F in {out}" if len(bad) > _NAMED else ""
        raise DataError(f"{structure}: {len(bad):,} of {len(found):,} structures did not converge: {named}{more}")


@app.command(
    epilog="Example: mlff sample GFN2-xTB train.xyz --out xtb.xyz --count 5000; then train on xtb.xyz, and with "
    "finetune_from: runs/xtb/model.safetensors on the reference data"
)
def sample(
    teacher: Annotated[
        str,
        typer.Argument(
            help="what labels them: GFN2-xTB or GFN1-xTB (needs tblite), a trained model, or package.module:function, which is "
            "called with nothing and returns an ASE calculator",
            show_default=False,
        ),
    ],
    structures: Annotated[
        Path,
        typer.Argument(metavar="IN", help="structures to start from, any format that training reads", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="extended XYZ file to write (.xyz, .extxyz); continued if it exists")],
    count: Annotated[int, typer.Option(min=1, help="number of structures in all")] = 3000,
    temperature: Annotated[
        list[float] | None,
        typer.Option(min=1.0, help="K (repeatable): of one trajectory each", show_default="300, 500, 700, 1000"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    length: Length = None,
    quiet: Quiet = False,
) -> None:
    """Short dynamics around given structures with the energies and forces of a cheap method: data for pre-training.

    With a trained model (or committee) as teacher, data to train a smaller, faster one.
    """
    check_outputs([(out, EXTXYZ)], [structures, Path(teacher)])
    from mlff.data.formats import read_atoms
    from mlff.simulation import sampling

    if Path(teacher).exists():
        calculator = make_calculator(Path(teacher), None)
        name = calculator.potential.fingerprint[:12]
    else:
        calculator, name = sampling.teacher(teacher), teacher
    with about(structures):
        starts = list(read_atoms(structures, length=length))
        new = sampling.sample(
            starts,
            calculator,
            out,
            count,
            name=name,
            temperatures=temperature or sampling.TEMPERATURES,
            seed=seed,
            progress=not quiet,
        )
    print(f"{out}: {count:,} structures, {new:,} of them new")


def _join(values, form: str) -> str:
    return " ".join(format(value, form) for value in values)
