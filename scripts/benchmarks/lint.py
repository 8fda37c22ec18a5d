#!/usr/bin/env python3
"""Lint real data sets, once with their units, keys and signs stated and once without a word: the table of docs/DATASETS.md.

    python scripts/benchmarks/lint.py FOLDER [--only md17_ethanol ...]

FOLDER holds the sets under the paths of `ENTRIES` (they are public, and not shipped). Everything goes through the functions
of `mlff lint`. Results are appended to results/lint.json entry by entry; the table is made of that file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

from machine import machine

from mlff.basics.errors import MLFFError
from mlff.cli.options import read_data
from mlff.data.dataset import expand
from mlff.data.formats import format_name
from mlff.lint.lint import lint

HERE = Path(__file__).parent
ORDER = "stress_order={Elastic: vasp, AIMD-NVT: lammps, Vacancy: lammps}"


class Entry(NamedTuple):
    """Files of one set, what is to be stated of them, and what must be noticed when it is not."""

    files: tuple[str, ...]
    units: tuple[str, ...] = ()  #: as --unit takes them
    keys: tuple[str, ...] = ()  #: as --key takes them
    needed: tuple[str, ...] = ()  #: keys without which nothing could be read
    trap: str = ""
    caught_by: tuple[str, ...] = ()  #: codes of findings, or words of the error, that catch the trap when nothing is stated


ENTRIES = {
    "3bpa": Entry(("3bpa/train_300K.xyz", "3bpa/iso_atoms.xyz")),
    "3bpa, both training files": Entry(
        ("3bpa/train_300K.xyz", "3bpa/train_mixedT_300K_600K.xyz"),
        trap="31 structures stand in both files",
        caught_by=("duplicate-across-files",),
    ),
    "3bpa, test 300 K": Entry(("3bpa/test_300K.xyz.xz",)),
    "3bpa, test 600 K": Entry(("3bpa/test_600K.xyz.xz",)),
    "ethanol": Entry(("ethanol/train_ethanol.xyz", "ethanol/isolated_atoms.xyz")),
    "ethanol and methanol": Entry(("ethanol/train_ethanol.xyz", "ethanol/train_methanol.xyz", "ethanol/isolated_atoms.xyz")),
    "rmd17_aspirin": Entry(("rmd17_aspirin/train.xyz.xz",)),
    "md17_ethanol": Entry(
        ("md17/md17_ethanol_first2000.npz",),
        ("energy=kcal/mol",),
        trap="kcal/mol in energies and forces: they agree with each other",
        caught_by=("energy-unit",),
    ),
    "md17_naphthalene": Entry(("md17/md17_naphthalene_train.xyz.xz",)),
    "md17_salicylic_acid": Entry(("md17/md17_salicylic_acid_train.xyz.xz",)),
    "spice_subset": Entry(("spice_subset/train.xyz.xz",)),
    "spice_dipeptides": Entry(
        ("spice_dipeptides/train.xyz.xz", "spice_dipeptides/val.xyz.xz"),
        trap="formation energies, not totals",
        caught_by=("energy-zero",),
    ),
    "random_methane": Entry(("random_methane/train.xyz",)),
    "h2co": Entry(
        ("h2co/h2co_3001.npz",),
        trap="energies relative to free atoms (the dipoles in a wrong unit are not read)",
        caught_by=("energy-zero",),
    ),
    "s66x8": Entry(
        ("s66x8/s66x8_even.h5",),
        ("energy=Hartree", "forces_sign=gradient"),
        ("group=molecule",),
        trap="Hartree, and gradients under the name of forces",
        caught_by=("energy-unit", "forces-sign"),
    ),
    "water_deepmd": Entry(("water_deepmd/data_0", "water_deepmd/data_1")),
    "water_optb88, n2p2": Entry(
        ("water_optb88/water-scaled.data.xz",),
        ("energy=Hartree", "length=Bohr"),
        trap="atomic units throughout: energies and forces agree with each other",
        caught_by=("length-unit",),
    ),
    "water_optb88, xyz": Entry(("water_optb88/train.xyz.xz",)),
    "ecemc_liquid": Entry(
        ("ecemc_liquid/train.xyz.xz",), trap="a virial, no stress; isolated atoms without forces", caught_by=()
    ),
    "ecemc_liquid, virial of the wrong sign": Entry(
        ("ecemc_liquid/train.xyz.xz",),
        ("virial_sign=stress",),
        trap="a wrong sign is stated: this row has to be an error",
    ),
    "mlearn_si, training.json": Entry(
        ("mlearn_si/training.json.xz",),
        (ORDER,),
        trap="the order of six stresses differs from group to group",
        caught_by=("stress-unordered",),
    ),
    "mlearn_si, test.json": Entry(
        ("mlearn_si/test.json",),
        (ORDER,),
        trap="the order of six stresses differs from group to group",
        caught_by=("stress-unordered",),
    ),
    "mlearn_si, one order for all": Entry(
        ("mlearn_si/training.json.xz",),
        ("stress_order=vasp",),
        trap="a wrong order is stated for most groups: this row has to be an error",
    ),
    "mlearn_si, another order for all": Entry(
        ("mlearn_si/training.json.xz",),
        ("stress_order=lammps",),
        trap="a wrong order is stated for one group: this row has to be an error",
    ),
    "mlearn_si, xyz": Entry(("mlearn_si/train.xyz.xz", "mlearn_si/test.xyz")),
    "mlearn_cu, xyz": Entry(
        ("mlearn_cu/train.xyz.xz", "mlearn_cu/test.xyz"),
        trap="stresses 2.3 GPa off what the energies say",
        caught_by=("stress-offset",),
    ),
    "fitsnap_ta": Entry(
        ("fitsnap_ta/*.xyz",),
        ("stress=bar", "stress_sign=compression"),
        trap="stresses in bar with the sign of a pressure",
        caught_by=("units.stress",),
    ),
    "fitsnap_ta, unit without the sign": Entry(
        ("fitsnap_ta/*.xyz",), ("stress=bar",), trap="only the unit is stated: this row has to be an error"
    ),
    "fitsnap_json, Ta": Entry(
        ("formats/fitsnap_json/Ta/*/*.json",), trap="bar, under compression; a comment before the JSON"
    ),
    "fitsnap_json, InP": Entry(
        ("formats/fitsnap_json/InP/*/*.json",), trap="kbar, under compression; a comment before the JSON"
    ),
    "inp": Entry(("inp/train.xyz.xz",)),
    "lips": Entry(("lips/lips_600.npz",)),
    "lips20_deepmd": Entry(("lips20_deepmd/*",), trap="virial = -stress · volume"),
    "lips20_deepmd, virial of the wrong sign": Entry(
        ("lips20_deepmd/*",), ("virial_sign=stress",), trap="a wrong sign is stated: this row has to be an error"
    ),
    "mos2_nep": Entry(("mos2_nep/train.xyz.xz",), trap="keys Energy, force and Virial; nothing in a calculator"),
    "mos2_nep, virial of the wrong sign": Entry(
        ("mos2_nep/train.xyz.xz",), ("virial_sign=stress",), trap="a wrong sign is stated: this row has to be an error"
    ),
    "ase_db_naphthalene50": Entry(("formats/ase_db_naphthalene50.db",), trap="labels in the data of a row, no calculator"),
    "ase_db_naphthalene50 with its xyz": Entry(
        ("md17/md17_naphthalene_train.xyz.xz", "formats/ase_db_naphthalene50.db"),
        trap="the database was made with a truncated factor: energies 0.0095 % smaller, 1 eV",
        caught_by=("contradicting-labels",),
    ),
    "small_molecules": Entry(
        ("formats/small_molecules_energy_per_atom.xyz.xz",),
        ("energy_per_atom=true",),
        ("energy=dft_formation_energy_per_atom_in_eV",),
        ("energy=dft_formation_energy_per_atom_in_eV",),
        trap="energies per atom, no forces",
        caught_by=("energy-per-atom",),
    ),
    "OUTCAR": Entry(("formats/OUTCAR_h2o_md.xz",)),
}


def look(folder: Path, entry: Entry, told: bool) -> dict:
    """One lint: what was read, what was compared, what was found; or the error that refuses the files."""
    keys, units = (entry.keys, entry.units) if told else (entry.needed, ())
    files = [folder / file for file in entry.files]
    row = {"files": list(entry.files), "keys": list(keys), "units": list(units)}
    started = time.process_time()
    try:
        row["format"] = ", ".join(sorted({format_name(file) for file in expand(files)}))
        data = read_data(files, list(keys), list(units), progress=False)
        report = lint(data).to_dict()
    except MLFFError as error:
        return row | {"error": _relative(str(error), folder), "seconds": round(time.process_time() - started, 1)}
    for name in ("distances", "neighbors", "distance_bin", "version"):
        report.pop(name)
    for finding in report["findings"]:
        finding["count"] = len(finding["where"])
        finding["where"] = finding["where"][:2]
    report = json.loads(_relative(json.dumps(report), folder))
    origins: dict[str, str] = {}
    for label, text in data.census.origins:
        if label in ("positions", "energy", "forces", "stress"):
            origins[label] = f"{origins[label]} or {text}" if label in origins else text
    return row | {"origins": origins, "seconds": round(time.process_time() - started, 1)} | report


def _relative(text: str, folder: Path) -> str:
    return text.replace(f"{folder}/", "")


def caught(entry: Entry, row: dict) -> str:
    """By what the trap is caught: codes of findings, or "refused"; nothing if it is not."""
    if "error" in row:
        return "refused" if any(word in row["error"] for word in entry.caught_by) else ""
    found = {item["code"]: item["severity"] for item in row["findings"]}
    return ", ".join(f"{code} ({found[code]})" for code in entry.caught_by if code in found)


def table(results: dict) -> str:
    """Markdown."""
    head = (
        "set", "format", "units and signs", "stated", "labels held against each other", "structures, elements", "findings",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    traps = ["| set | trap | stated | not stated |", "|---|---|---|---|"]
    for name, entry in ENTRIES.items():
        rows = results["entries"].get(name, {})
        for row in rows.values():
            said = ", ".join((*row["units"], *row["keys"])) or "nothing"
            if "error" in row:
                cells = [name, row.get("format", ""), "", said, "", "", f"refused: {row['error']}"]
            else:
                cells = [name, row["format"], _units(row), said, _compared(row), _contents(row), _findings(row)]
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
        if entry.trap and rows:
            told = rows.get("told")
            severe = _severe(told) if told else ""
            untold = rows.get("untold")
            how = caught(entry, untold) if untold and entry.caught_by else ""
            if untold and entry.caught_by:
                how = f"caught: {how}" if how else "**not caught**"
            elif untold:
                how = f"read right without a word; {_severe(untold)}"
            traps.append(f"| {name} | {entry.trap} | {severe} | {how} |")
    machine_line = ", ".join(f"{key} {results['machine'][key]}" for key in ("cpu", "python", "date"))
    return (
        "# What `mlff lint` says of real data sets\n\n"
        "Made by `scripts/benchmarks/lint.py`, which has the paths; the sets are public and not shipped. Each is\n"
        "read twice where there is something to state: with it, and without a word. Slopes of energy differences over what\n"
        "forces or stresses say are 1 where units and signs belong together. Notes need no action. "
        f"CPU time of all lints: {results['seconds']:.0f} s ({machine_line}).\n\n"
        "## Traps\n\n" + "\n".join(traps) + "\n\n## All sets\n\n" + "\n".join(lines) + "\n"
    )


def _severe(row: dict) -> str:
    if "error" in row:
        return "refused"
    found = [f"{item['code']} ({item['severity']})" for item in row["findings"] if item["severity"] != "note"]
    return ", ".join(found) or "clean"


def _units(row: dict) -> str:
    return "; ".join(f"{label}: {text}" for label, text in row["origins"].items())


def _compared(row: dict) -> str:
    parts = []
    for item in row["comparisons"]:
        figures = [f"slope {item['slope']:.4g}" if item["slope"] is not None else ""]
        figures.append(f"correlation {item['correlation']:.2f}" if item["correlation"] is not None else "")
        figures.append(f"{item['number']} points")
        parts.append(f"{item['labels']}: {item['verdict']} ({', '.join(filter(None, figures))})")
    return "; ".join(parts)


def _contents(row: dict) -> str:
    zero = row["reference"]["zero"]
    return f"{row['structures']}; {' '.join(row['elements'])}" + (f"; energies count from {zero}" if zero else "")


def _findings(row: dict) -> str:
    parts = []
    for item in row["findings"]:
        count = f" × {item['count']}" if item["count"] else ""
        if item["severity"] == "note":
            parts.append(f"note {item['code']}{count}")
        else:
            parts.append(f"{item['severity']} {item['code']}: {item['what']}; {item['do']}")
    return "; ".join(parts) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--json", type=Path, default=HERE / "results" / "lint.json")
    parser.add_argument("--table", type=Path, default=HERE.parents[1] / "docs" / "DATASETS.md")
    args = parser.parse_args()
    results = json.loads(args.json.read_text()) if args.json.exists() else {"entries": {}}
    for name in args.only:
        entry = ENTRIES[name]
        rows = {"told": look(args.folder, entry, True)} if entry.units else {}
        if not (entry.units and "has to be an error" in entry.trap):
            rows["untold"] = look(args.folder, entry, False)
        results["entries"][name] = rows
        seconds = sum(row["seconds"] for row in rows.values())
        print(f"{name} ({seconds:.1f} s): {'; '.join(f'{how}: {_severe(row)}' for how, row in rows.items())}", flush=True)
        results["machine"] = machine()
        results["seconds"] = sum(row["seconds"] for rows in results["entries"].values() for row in rows.values())
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    args.table.write_text(table(results))
    print(args.table)


if __name__ == "__main__":
    main()
