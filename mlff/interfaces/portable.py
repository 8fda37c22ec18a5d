"""A potential as a program for other runtimes: StableHLO through `jax.export`, with its contract and a loader.

The program has the parameters in it and takes any number of atoms n and of neighbour slots k. It has no parts that only one
platform has, and was lowered for CPU and CUDA. A newer JAX reads what an older one wrote, not the other way round, see
https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, export

from mlff.basics.files import refuse_filled, replacing, writing
from mlff.data.batching import make_sample
from mlff.data.structure import Structure
from mlff.graph import Graph
from mlff.interfaces import portable_loader
from mlff.potential import derivatives
from mlff.potential.potential import Potential

PLATFORMS = ("cpu", "cuda")
ARGUMENTS = {
    "positions": "(n, 3) float, Å",
    "numbers": "(n,) int32, atomic numbers; 0 for atoms that count nothing",
    "cell": "(3, 3) float, Å, rows are the cell vectors; zeros where there is none",
    "neighbors": "(n, k) int32, every atom nearer than the cutoff (and farther ones, as you like), each pair in both directions; "
    "empty slots hold the atom itself with shift 0",
    "shifts": "(n, k, 3) float, whole cell vectors: r_ij = r_j - r_i + shifts @ cell",
}
RESULTS = {
    "energies": "(n,) float, eV, of the atoms; add `baseline` of their elements in float64",
    "forces": "(n, 3) float, eV/Å, -dE/dR",
    "virial": "(3, 3) float, eV, dE/dε; divided by the volume it is the stress, positive under tension",
}  #: NaN where a pair is not listed in both directions or an element is not known
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}  #: of the references: share of the largest force, and per atom in eV


def write_folder(potential: Potential, folder: str | Path) -> None:
    """`potential.jax`, `potential.stablehlo`, `potential.json`, `references.npz` and `load.py`, in a new or empty folder.

    Raises ConfigError: the folder holds other files; FileError: cannot be written; ModelFileError: trained without labels.
    """
    folder = Path(folder)
    refuse_filled(folder)
    exported = lower(potential)
    references, count = _references(potential)
    contract = {
        "format": "mlff portable potential",
        "version": portable_loader.VERSION,
        "written_by": f"jax {jax.__version__}",
        "platforms": PLATFORMS,
        "calling_convention_version": exported.calling_convention_version,
        "architecture": potential.config.architecture,
        "fingerprint": potential.fingerprint,
        "precision": potential.precision,
        "cutoff": potential.cutoff,
        "elements": list(potential.elements),
        "baseline": [potential.baseline[z] for z in potential.elements],
        "arguments": ARGUMENTS,
        "results": RESULTS,
        "capacity": "n and k are free; memory grows with n * k",
        "references": count,
        "tolerance": TOLERANCE[potential.precision],
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            "potential.jax": bytes(exported.serialize()),
            "potential.stablehlo": exported.mlir_module_serialized,
            "references.npz": references,
            "potential.json": json.dumps(contract, indent=1, ensure_ascii=False).encode(),
        }
        for name, content in files.items():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
        shutil.copyfile(portable_loader.__file__, folder / "load.py")


def _references(potential: Potential) -> tuple[bytes, int]:
    """The structures that travel with a model, in the arrays of `ARGUMENTS`, with what it says of them; and how many."""
    arrays = {}
    energies_of = functools.partial(potential.energy, potential.device_params)
    program = jax.jit(functools.partial(derivatives.with_virial, energies_of))
    for number, atoms in enumerate(potential.reference_structures):
        sample = make_sample(Structure.from_atoms(atoms), potential.cutoff)
        shifts = np.zeros((*sample.neighbors.shape, 3)) if sample.shifts is None else sample.shifts
        inputs = sample.positions, sample.numbers, sample.cell, sample.neighbors, shifts
        with potential.scope():
            results = program(potential.graph_of(atoms))
        energies, forces, virial = (np.asarray(result, np.float64) for result in results)
        energy = energies.sum() + potential.baseline_energy(atoms.numbers)
        names = (*ARGUMENTS, "energy", "forces", "virial")
        arrays |= {f"{name}_{number}": x for name, x in zip(names, (*inputs, energy, forces, virial[0]), strict=True)}
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue(), len(potential.reference_structures)


def lower(potential: Potential) -> export.Exported:
    """The program of `ARGUMENTS` to `RESULTS`, for any n and k. Raises ModelFileError: trained without labels, no energies."""
    potential.check(Structure.from_atoms(ase.Atoms(numbers=potential.elements[:1])))
    n, k = export.symbolic_shape("n, k")
    real = potential.dtype
    kinds = [((n, 3), real), ((n,), np.int32), ((3, 3), real), ((n, k), np.int32), ((n, k, 3), real)]
    arguments = [jax.ShapeDtypeStruct(*kind) for kind in kinds]
    paths = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, paths)
    with potential.scope():
        jax.config.update(paths, ".*")  # where the package lies on this machine is nobody's business
        try:
            return export.export(jax.jit(lambda *arrays: evaluate(potential, *arrays)), platforms=PLATFORMS)(*arguments)
        finally:
            jax.config.update(paths, before)


def evaluate(
    potential: Potential, positions: Array, numbers: Array, cell: Array, neighbors: Array, shifts: Array
) -> tuple[Array, Array, Array]:
    """`RESULTS` of `ARGUMENTS`, a function that JAX can trace with any n and k."""
    n, _ = neighbors.shape
    mask = (neighbors != jnp.arange(n, dtype=jnp.int32)[:, None]) | jnp.any(shifts != 0, axis=-1)
    reverse, whole = reverse_slots(neighbors, shifts, mask)
    known = jnp.all(jnp.isin(numbers, jnp.array([0, *potential.elements], jnp.int32)))
    graph = Graph(
        positions=positions,
        atomic_numbers=numbers,
        structure=jnp.zeros_like(numbers),
        n_atoms=jnp.sum(numbers > 0, dtype=jnp.int32)[None],
        cell=cell[None],
        pbc=jnp.any(cell != 0, axis=1)[None],
        neighbors=neighbors,
        neighbor_mask=mask,
        reverse=reverse,
        shifts=shifts,
    )
    energies, forces, virial = derivatives.with_virial(lambda g: potential.energy(potential.device_params, g), graph)
    nothing = jnp.where(whole & known, 0.0, jnp.nan).astype(positions.dtype)
    return energies + nothing, forces + nothing, virial[0] + nothing


def reverse_slots(neighbors: Array, shifts: Array, mask: Array) -> tuple[Array, Array]:
    """`Graph.reverse` (n, k) of neighbours (n, k) with shifts (n, k, 3), found on the device, and whether all have one."""
    n, k = neighbors.shape
    atoms, slots = jnp.arange(n, dtype=jnp.int32)[:, None], jnp.arange(k, dtype=jnp.int32)
    back = (neighbors[neighbors] == atoms[:, :, None]) & mask[neighbors]  # (n, k, k): slots of the neighbour
    back &= jnp.all(shifts[neighbors] == -shifts[:, :, None, :], axis=-1)
    place = neighbors * k + jnp.argmax(back, axis=-1).astype(jnp.int32)
    return jnp.where(mask, place, atoms * k + slots), jnp.all(jnp.any(back, axis=-1) | ~mask)
