"""Structures that travel in a model file with what the potential said of them where it was trained.

The first time a file is used on a platform they are computed again: a compiler, processor or version of a library that
gives other forces is found before a simulation, not after it. A calculator does so in the program that it needs anyway,
as compiling one more would double the time to the first force.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import ase
import jax
import numpy as np

from mlff.basics.compiler import platform_name
from mlff.basics.errors import MLFFError, ModelFileError
from mlff.basics.runtime import Mark, refuse_forked
from mlff.basics.statistics import rms
from mlff.data.batching import Sizes, make_graph, make_sample
from mlff.data.structure import Structure
from mlff.graph import Graph

KEY = "references"  #: where they stand in the potential's metadata
LARGEST = 200  #: atoms of one structure
_COSTLY = 500_000  #: padded pairs: from there on a program of their own takes less time
#: what rounding may change: eV per atom, and the share of the RMS force
_TOLERANCE = {"float32": (2e-3, 1e-2), "float64": (1e-6, 1e-5)}


class Evaluator(Protocol):
    """What the check needs of a potential (`mlff.potential.potential.Potential`, which stands above this module)."""

    cutoff: float
    precision: str
    dtype: type
    metadata: dict

    def predict(self, structures: Sequence, stress: bool | None = None) -> list: ...
    def compute(self, graph: Graph, stress: bool = False) -> Any: ...
    def check(self, structure: Structure) -> None: ...
    def results(self, prediction: Any, structures: Sequence[Structure]) -> list: ...
    def scope(self) -> Any: ...


def choose(structures: Sequence[Structure], count: int = 3) -> list[Structure]:
    """Up to `count` structures of different compositions where there are some, spread over the set, none large."""
    small = [s for s in structures if 1 < len(s) <= LARGEST] or [s for s in structures if len(s) <= LARGEST]
    kinds: dict[str, list[Structure]] = {}
    for structure in small:
        kinds.setdefault(structure.formula, []).append(structure)
    names = [list(kinds)[k] for k in np.linspace(0, len(kinds) - 1, min(count, len(kinds))).astype(int)]
    if len(names) == 1:
        members = kinds[names[0]]
        return [members[k] for k in sorted(set(np.linspace(0, len(members) - 1, count).astype(int)))]
    return [kinds[name][0] for name in names]


def record(potential: Evaluator, structures: Sequence[Structure]) -> list[dict]:
    """Geometry (Å) and the potential's energy (eV), forces (eV/Å) and stress (eV/Å³) as plain values."""
    entries = []
    for structure, result in zip(structures, potential.predict(structures), strict=True):
        geometry = {name: getattr(structure, name).tolist() for name in ("numbers", "positions", "cell", "pbc")}
        stress = None if result.stress is None else result.stress.tolist()
        entries.append(geometry | {"energy": result.energy, "forces": result.forces.tolist(), "stress": stress})
    return entries


def atoms(entries: Sequence[dict]) -> list[ase.Atoms]:
    """The structures of `record`. Raises ValueError, KeyError or TypeError for entries that are none."""
    frames = []
    for entry in entries:
        positions = np.asarray(entry["positions"], np.float64).reshape(-1, 3)
        if len(positions) != len(entry["numbers"]) or not 0 < len(positions) <= LARGEST:
            raise ValueError("numbers and positions do not match")
        cell = np.asarray(entry["cell"], np.float64).reshape(3, 3)
        frames.append(ase.Atoms(np.asarray(entry["numbers"], int), positions, cell=cell, pbc=entry["pbc"]))
    return frames


def verify(
    potential: Evaluator, path: Path, graph: Graph | None = None, stress: bool = True, written: str | None = None
) -> None:
    """Compute the references again unless this platform has done so for this very file.

    `graph`: of the same padded shape, where they fit into it; then stresses are looked at with `stress` only. `written`: the
    precision of the labels, if not the potential's. Raises ModelFileError: other energies, forces or stresses, or entries
    that are none.
    """
    entries = potential.metadata.get(KEY)
    if not entries:
        return
    what = f"{platform_name()}, {potential.precision}, {'stress' if stress else 'forces'}"
    mark = Mark(path.read_bytes(), what)
    if mark.there():
        return
    refuse_forked()
    try:
        frames = atoms(entries)
        expected = [(float(e["energy"]), np.asarray(e["forces"], np.float64).reshape(-1, 3)) for e in entries]
        stresses = [None if e["stress"] is None else np.asarray(e["stress"], np.float64).reshape(3, 3) for e in entries]
        if any(
            len(f) != len(a) or not np.isfinite(e) or not np.isfinite(f).all()
            for (e, f), a in zip(expected, frames, strict=True)
        ):
            raise ValueError("their labels are not numbers of the right shape")
        if any(stress is not None and not np.isfinite(stress).all() for stress in stresses):
            raise ValueError("their stresses are not finite")
        results = potential.predict(frames) if graph is None else _in_shape_of(potential, frames, graph, stress)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, MLFFError) as error:
        raise ModelFileError(f"{path}: its reference structures cannot be evaluated ({error})") from None
    per_atom, share = max(_TOLERANCE[potential.precision], _TOLERANCE[written or potential.precision])
    for number, (result, (energy, forces), stress) in enumerate(zip(results, expected, stresses, strict=True)):
        off = [("energy", abs(result.energy - energy) / len(forces), per_atom, "eV/atom")]
        size = rms(forces)
        off.append(("forces", float(np.abs(result.forces - forces).max()), share * max(size, 0.1), "eV/Å"))
        if stress is not None and result.stress is not None:
            scale = max(rms(stress), 1e-3)
            off.append(("stress", float(np.abs(result.stress - stress).max()), share * scale, "eV/Å³"))
        for what, difference, limit, unit in off:
            if not difference <= limit:
                raise ModelFileError(
                    f"{path}: on this machine {what} of reference structure {number} differ from those where the model was "
                    f"written (off by {difference:.2g} {unit}, limit {limit:.2g}); do not use it here: {platform_name()}"
                )
    mark.set()


def _in_shape_of(potential: Evaluator, frames: list[ase.Atoms], graph: Graph, stress: bool) -> list:
    """Results of the program that `graph` needs; `predict`'s for structures that do not fit into its shape."""
    structures, sizes = [Structure.from_atoms(frame) for frame in frames], Sizes(1, *graph.neighbors.shape)
    results: dict[int, Any] = {}
    for number, structure in enumerate(structures):
        potential.check(structure)
        sample = make_sample(structure, potential.cutoff)
        fits = sample.sizes.atoms <= sizes.atoms and sample.sizes.neighbors <= sizes.neighbors
        crosses = sample.shifts is not None and graph.shifts is None
        if not fits or crosses or graph.neighbors.size > _COSTLY:
            continue
        padded = make_graph([sample], sizes, potential.dtype, graph.shifts is not None)
        with potential.scope():  # positions stay on the host, as in `graph`: else JAX compiles again
            padded = jax.device_put(padded)._replace(positions=padded.positions)
        (results[number],) = potential.results(jax.device_get(potential.compute(padded, stress)), [structure])
    rest = [number for number in range(len(structures)) if number not in results]
    results |= zip(rest, potential.predict([structures[number] for number in rest], stress), strict=True)
    return [results[number] for number in range(len(structures))]
