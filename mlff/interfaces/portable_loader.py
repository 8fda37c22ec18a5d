"""Loads a potential that was exported by `mlff export MODEL DIR --to stablehlo`. Needs jax and numpy, not mlff.

    from load import Portable, slots
    potential = Portable("DIR")  # computes its reference structures again, and refuses where they come out otherwise
    i, j, S = ase.neighborlist.neighbor_list("ijS", atoms, potential.cutoff)  # or any other full list
    energy, forces, virial = potential(atoms.numbers, atoms.positions, atoms.cell.array, *slots(len(atoms), i, j, S))

Units: Å, eV, eV/Å. `virial` is dE/dε (3, 3), eV; the stress is virial / volume, positive under tension.
"""

import json
from pathlib import Path

import jax
import numpy as np
from jax import export

VERSION = 1  #: of the folder


class Portable:
    """`potential(numbers (n,), positions (n, 3), cell (3, 3), neighbors (n, k), shifts (n, k, 3))`: energy, forces, virial."""

    def __init__(self, folder, verify=True):
        """Raises ValueError: a newer folder, or references that come out otherwise here."""
        folder = Path(folder)
        self.contract = json.loads((folder / "potential.json").read_text(encoding="utf-8"))
        if self.contract["version"] > VERSION:
            raise ValueError(
                f"{folder}: version {self.contract['version']}, newer than this loader; take the one in the folder"
            )
        self.cutoff, self.elements = self.contract["cutoff"], self.contract["elements"]
        self.dtype = np.dtype(self.contract["precision"])
        self._baseline = np.full(119, np.nan)
        self._baseline[self.elements] = self.contract["baseline"]
        self._call = jax.jit(export.deserialize(bytearray((folder / "potential.jax").read_bytes())).call)
        if verify:
            self._verify(folder)

    def __call__(self, numbers, positions, cell, neighbors, shifts):
        """Raises ValueError: an element that it does not know, a pair without its reverse, results that are not finite.

        Each pair shape (n, k) compiles once: round k up. Atoms of number 0 count nothing, so that n can be rounded up too.
        """
        numbers, neighbors = np.asarray(numbers, np.int32), np.asarray(neighbors, np.int32)
        real = numbers > 0
        if unknown := set(numbers[real].tolist()) - set(self.elements):
            raise ValueError(f"atomic number {min(unknown)} is not known; known: {self.elements}")
        positions, cell, shifts = (np.asarray(array, self.dtype) for array in (positions, cell, shifts))
        with jax.enable_x64(self.dtype == np.float64):
            energies, forces, virial = (
                np.asarray(x, float) for x in self._call(positions, numbers, cell, neighbors, shifts)
            )
        if not all(np.isfinite(x).all() for x in (energies, forces, virial)):
            raise ValueError("a pair is not listed in both directions, or positions are wrong: the results are not finite")
        return energies.sum() + self._baseline[numbers[real]].sum(), forces, virial

    def _verify(self, folder):
        with np.load(folder / "references.npz", allow_pickle=False) as stored:
            for k in range(self.contract["references"]):
                names = ("numbers", "positions", "cell", "neighbors", "shifts", "energy", "forces", "virial")
                *inputs, energy, forces, virial = (stored[f"{name}_{k}"] for name in names)
                results, share = self(*inputs), self.contract["tolerance"]
                for found, expected in zip(results, (energy, forces, virial), strict=True):
                    if np.abs(found - expected).max() > share * (len(forces) + np.abs(forces).max()):
                        raise ValueError(f"{folder}: reference structure {k} comes out otherwise on this machine")


def slots(n, i, j, shifts, round_to=4):
    """Pairs (i, j, whole cell vectors), each in both directions, as (n, k) neighbours and (n, k, 3) shifts; empty slots hold the atom itself."""
    i, j, shifts = np.asarray(i), np.asarray(j), np.asarray(shifts)
    order = np.argsort(i, kind="stable")
    i, j, shifts = i[order], j[order], shifts[order]
    counts = np.bincount(i, minlength=n)
    k = max(1, -(-int(counts.max(initial=0)) // round_to)) * round_to
    place = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
    neighbors, images = np.repeat(np.arange(n, dtype=np.int32)[:, None], k, axis=1), np.zeros((n, k, 3), np.int32)
    neighbors[i, place], images[i, place] = j, shifts
    return neighbors, images
