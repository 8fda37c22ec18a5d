#!/usr/bin/env python3
"""Harmonic frequencies of malonaldehyde by the method of its data: PBE0-D3(BJ)/def2-SVP, at the minimum of path.xyz.

    OMP_NUM_THREADS=1 python scripts/data/malonaldehyde_frequencies.py      # about five minutes of one core

The Hessian is made of central differences of the forces, 54 calculations 0.01 Å from the minimum. Translations and rotations are
projected out. Writes data/malonaldehyde/frequencies.txt, 21 wavenumbers in cm⁻¹, ascending, a negative one is imaginary. Needs
scripts/data/requirements.txt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ase import units
from ase.io import read
from malonaldehyde import Labeller

STEP = 0.01  # Å
DATA = Path(__file__).parents[2] / "data" / "malonaldehyde"


def main() -> int:
    atoms = read(DATA / "path.xyz", 0)
    positions = atoms.positions.copy()
    label = Labeller(positions)
    _, forces = label(positions)
    print(f"largest force at the minimum: {1e3 * np.linalg.norm(forces, axis=1).max():.2f} meV/Å", flush=True)
    hessian = np.zeros((27, 27))
    for k in range(27):
        sides = []
        for sign in (1, -1):
            moved = positions.copy()
            moved.flat[k] += sign * STEP
            sides.append(label(moved)[1].ravel())
        hessian[k] = -(sides[0] - sides[1]) / (2 * STEP)
        print(f"coordinate {k}: {label.info['solver']}, {label.info['seconds']:.1f} s", flush=True)
    print(f"asymmetry of the Hessian: {np.abs(hessian - hessian.T).max():.3f} eV/Å²")
    masses = atoms.get_masses()
    root = np.repeat(np.sqrt(masses), 3)
    arms = positions - atoms.get_center_of_mass()
    rigid = [np.tile(axis, 9) for axis in np.eye(3)] + [np.cross(axis, arms).ravel() for axis in np.eye(3)]
    basis = np.linalg.svd((np.array(rigid) * root).T, full_matrices=True)[0][:, 6:]
    weighted = 0.5 * (hessian + hessian.T) / np.outer(root, root)
    squares = np.linalg.eigvalsh(basis.T @ weighted @ basis)
    found = np.sign(squares) * np.sqrt(np.abs(squares)) * units._hbar / units._e * units.s / units.invcm
    np.savetxt(
        DATA / "frequencies.txt", found, fmt="%.1f", header="cm^-1, PBE0-D3(BJ)/def2-SVP, harmonic, minimum of path.xyz"
    )
    print(found.round(1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
