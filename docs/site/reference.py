"""Tables of the reference, made from the code: config keys, commands, units, the public Python names; notebooks as pages.

`MAKERS` has a function without arguments for each table; it returns Markdown.
"""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import mlff
from mlff.basics import units
from mlff.cli import app
from mlff.config import options

#: what is documented beside the public names of mlff, by module
MORE = {
    "mlff.potential.potential": ["Result"],
    "mlff.potential.committee": ["committee"],
    "mlff.data.structure": ["Structure"],
    "mlff.data.dataset": ["Dataset"],
    "mlff.lint.lint": ["lint"],
    "mlff.lint.findings": ["Lint", "Finding"],
    "mlff.certificate.certificate": ["certify", "Certificate"],
    "mlff.interfaces.lammps": ["attach", "LammpsForces"],
    "mlff.interfaces.lammps_check": ["check"],
    "mlff.interfaces.lammps_files": ["boxed", "write_data", "write_folder"],
    "mlff.interfaces.processes": ["one_line_errors"],
    "mlff.interfaces.mliap": ["unified", "PairForces"],
    "mlff.potential.local_atoms": ["LocalAtoms", "LocalResult", "PairResult"],
    "mlff.simulation.md": ["run_md", "Summary"],
    "mlff.simulation.settings": ["Settings"],
    "mlff.config.bias": ["Bias", "load_bias", "make_bias"],
    "mlff.properties.free_energy": ["free_energy", "FreeEnergy"],
    "mlff.config.refinement": ["Refinement", "load_refinement", "make_refinement"],
    "mlff.refinement.refine": ["refine"],
    "mlff.refinement.outcome": ["Outcome"],
    "mlff.config.design": ["Design", "load_design", "make_design"],
    "mlff.config.condition": ["Condition"],
    "mlff.config.composition": ["Composition"],
    "mlff.design.design": ["design"],
    "mlff.design.condition": ["find_condition"],
    "mlff.design.condition_outcome": ["ConditionOutcome", "Run"],
    "mlff.design.composition": ["find_composition"],
    "mlff.design.composition_outcome": ["CompositionOutcome", "Mixture", "Solution"],
    "mlff.design.outcome": ["Outcome", "Candidate", "Goal"],
    "mlff.simulation.replica_run": ["run_replicas"],
    "mlff.simulation.tempering": ["Tempering"],
    "mlff.simulation.relax": ["relax", "Relaxation"],
    "mlff.simulation.relaxations": ["relax_many"],
    "mlff.simulation.sampling": ["sample"],
    "mlff.simulation.trajectory_gradient": ["trajectory_gradient", "DifferentiableRun", "TrajectoryGradient"],
    "mlff.simulation.differentiable": ["Frame", "Inputs"],
    "mlff.training.pretrain": ["pretrain"],
    "mlff.properties.feature_map": ["feature_map", "FeatureMap"],
    "mlff.potential.beads": ["Beads"],
    "mlff.interfaces.ipi": ["MLFFDriver", "write_folder"],
    "mlff.interfaces.sockets": ["serve"],
    "mlff.interfaces.openmm": ["force"],
    "mlff.interfaces.portable": ["write_folder"],
    "mlff.interfaces.portable_loader": ["Portable", "slots"],
    "mlff.interfaces.jax_md": ["energy_fn"],
    "mlff.basics.errors": ["DataError", "ConfigError", "ModelFileError", "StructureError", "TrainingError", "FileError"],
}
SIGNS = {Gt: ">", Ge: "≥", Lt: "<", Le: "≤"}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; vertical bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def sections() -> dict[str, type[BaseModel]]:
    """Path in the config -> model of each section, in order; a section that occurs again is named where it stands first."""
    found: dict[str, type[BaseModel]] = {}

    def add(model: type[BaseModel], path: str) -> None:
        if model in found.values():
            return
        found[path if path not in found else f"{path} (architecture: {model.model_fields['architecture'].default})"] = model
        for name, field in model.model_fields.items():
            for inner in _models(field.annotation):
                add(inner, f"{path}.{name}".lstrip("."))

    add(options.Config, "")
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inner for part in get_args(annotation) for inner in _models(part)]


def meaning(field: FieldInfo) -> str:
    """What the reference says of a key: its description, of a section the first line of its docstring."""
    return field.description or next(
        ((model.__doc__ or "").strip().splitlines()[0] for model in _models(field.annotation)), ""
    )


def config() -> str:
    """The keys of the config, section by section."""
    parts = []
    for path, model in sections().items():
        rows = [[f"`{key}`", _kind(field), _default(field), meaning(field)] for key, field in model.model_fields.items()]
        parts += [f"## `{path}`" if path else "## Top level", " ".join((model.__doc__ or "").split())]
        parts += [table(["key", "values", "default", "meaning"], rows)]
    return "\n\n".join(parts)


def _kind(field: FieldInfo) -> str:
    bounds = [f"{sign} {getattr(item, kind.__name__.lower()):g}" for item in field.metadata for kind, sign in SIGNS.items()
              if isinstance(item, kind)]  # fmt: skip
    return ", ".join([_type(field.annotation), *bounds])


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in parts if part is not type(None)))
    if origin is list:
        return f"list of {_type(parts[0])}"
    if origin is tuple:
        return f"{len(parts)} x {_type(parts[0])}"
    if origin is dict:
        return f"map of {_type(parts[0])} to {_type(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {str: "text", float: "number", int: "integer", bool: "true or false"}[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see there"
    return "not set" if value is None else f"`{json.dumps(value)}`".replace('"', "")


def command_line() -> str:
    """Every command with its arguments and options."""
    group = typer.main.get_command(app)
    parts = []
    for name, command in sorted(group.commands.items()):
        context = typer.Context(command, info_name=f"mlff {name}")
        records = [parameter.get_help_record(context) for parameter in command.params]
        rows = [_option(*record) for record in records if record]
        example = (command.epilog or "").removeprefix("Example: ")
        parts += [f"## mlff {name}", command.help or "", table(["argument or option", "default", "meaning"], rows)]
        parts += [f"```bash\n{example}\n```"] if example.startswith("mlff ") else []
    return "\n\n".join([*parts, group.epilog or ""])


def _option(name: str, text: str) -> list[str]:
    """[name, default, meaning] of an option as `--help` prints it: `text  [default: 1; x>=0]`."""
    text, _, remarks = text.partition("  [")
    default, *limits = remarks.removesuffix("]").removeprefix("default: ").split("; ") if remarks else [""]
    if default.startswith("(") and default.endswith(")"):
        default = default[1:-1]
    if default.startswith("x>"):
        default, limits = "", [default]
    return [f"`{name}`", default, text + "".join(f" ({limit.replace('x', '')})" for limit in limits)]


def units_table() -> str:
    """The units that are read, and the order of six stresses."""
    kinds = {"energy": ("eV", units.ENERGY), "length": ("Å", units.LENGTH), "stress": ("eV/Å³", units.STRESS)}
    rows = [
        [what, f"`{name}`", f"{factor:.10g} {own}"] for what, (own, names) in kinds.items() for name, factor in names.items()
    ]
    orders = [[f"`{name}`", " ".join(order)] for name, order in units.VOIGT.items()]
    return "\n\n".join(
        [
            table(["quantity", "name", "one of it is"], rows),
            "Forces have the unit of an energy over that of a length, as `kcal/mol/Angstrom` or `Hartree/Bohr`.",
            "## Order of six stresses",
            table(["`units.stress_order`", "components"], orders),
        ]
    )


def public() -> dict[str, list[str]]:
    """module -> names that the reference of the API documents."""
    names: dict[str, list[str]] = {module: [] for module in [*mlff._PUBLIC.values(), *MORE]}
    for name, module in [*((name, module) for name, module in mlff._PUBLIC.items()), *_more()]:
        names[module].append(name)
    return names


def _more() -> list[tuple[str, str]]:
    return [(name, module) for module, names in MORE.items() for name in names]


def api() -> str:
    """The public names of mlff and of the modules that a user meets; mkdocstrings reads their docstrings."""
    parts = ["## mlff", f"`from mlff import {', '.join(mlff._PUBLIC)}`"]
    for name, module in mlff._PUBLIC.items():
        short = "\n    options: {members: false}" if name == "Config" else ""  # its keys have a page of their own
        parts.append(f"::: {module}.{name}{short}")
    for module, names in MORE.items():
        parts += [f"## {module}", *(f"::: {module}.{name}" for name in names)]
    return "\n\n".join(parts)


def notebook(path: Path) -> str:
    """A notebook as a page: its text and its code, without outputs."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = ["".join(cell["source"]) if cell["cell_type"] == "markdown" else f"```python\n{''.join(cell['source'])}\n```"
             for cell in cells]  # fmt: skip
    note = f"This page is the notebook [{path.name}]({path.name}), to be run in Jupyter from the folder that it lies in."
    return "\n\n".join([parts[0], note, *parts[1:]])


MAKERS = {"config": config, "command_line": command_line, "units": units_table, "api": api}
