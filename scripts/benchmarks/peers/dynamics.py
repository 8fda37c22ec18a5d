"""Dynamics with a trained potential, many replicas at once: do they live, and where do they go? Needs numpy and ASE only.

The request's entry `dynamics`:

{"starts": FILE, "temperatures": [K, ...], "replicas": 16, "nvt": STEPS, "nve": STEPS, "every": STEPS, "fragments": 1,
 "out": FILE}

Replicas start from structures of FILE with the velocities of their temperature, go through Langevin dynamics (BAOAB,
0.01/fs), then NVE (velocity Verlet). Hydrogens weigh 4 amu, which changes nothing of what is visited and allows steps of
1 fs. A replica is lost, and stays where it is, when a force is not finite or above 100 eV/Å, when its temperature (mean over
some 50 fs) passes three times its target, when two atoms come nearer than half the sum of their covalent radii, or when a
molecule falls apart: more fragments of atoms within 1.6 such sums than FRAGMENTS (hydrogens left out: a proton may move).
Every `every` steps the structures of those alive are kept, with the forces that the potential gave; the oracle labels them
later.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms, units
from ase.data import covalent_radii
from ase.geometry import find_mic
from ase.io import read, write
from scipy.sparse.csgraph import connected_components

STEP = 1.0 * units.fs
FRICTION = 0.01 / units.fs
HYDROGEN = 4.0  #: amu
FORCE = 100.0  #: eV/Å
HOT = 3.0
MEMORY = 50  #: steps of the mean of the temperature
NEAR, FAR = 0.5, 1.6  #: sums of covalent radii


def explore(predict, request: dict) -> dict | None:
    """{temperature: {"alive": share, "steps": mean number survived, "lost": {reason: count}}}; None if not asked for."""
    asked = request.get("dynamics")
    if not asked:
        return None
    starts = read(asked["starts"], ":")
    kelvins = np.repeat(np.array(asked["temperatures"], float), asked["replicas"])
    replicas = [starts[k % len(starts)].copy() for _ in asked["temperatures"] for k in range(asked["replicas"])]
    rng = np.random.default_rng(request["seed"])
    walk = Walk(predict, replicas, kelvins, asked["fragments"], rng)
    frames: list[Atoms] = []
    for number in range(1, asked["nvt"] + asked["nve"] + 1):
        walk.step(thermostat=number <= asked["nvt"])
        if number % asked["every"] == 0:
            frames += walk.frames(number)
        if not walk.alive.any():
            break
    write(asked["out"], frames, format="extxyz")
    answer = {}
    for kelvin in asked["temperatures"]:
        mine = np.flatnonzero(kelvins == kelvin)
        reasons = [walk.reason[k] for k in mine if walk.reason[k]]
        answer[f"{kelvin:g} K"] = {
            "replicas": len(mine),
            "alive": round(float(walk.alive[mine].mean()), 4),
            "steps": round(float(walk.survived[mine].mean()), 1),
            "lost": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
        }
    return answer


class Walk:
    """Replicas of one system, moved together."""

    def __init__(self, predict, replicas: list[Atoms], kelvins: np.ndarray, fragments: int, rng: np.random.Generator):
        self.predict, self.replicas, self.kelvins, self.fragments, self.rng = predict, replicas, kelvins, fragments, rng
        numbers = replicas[0].numbers
        self.numbers = numbers
        self.masses = np.where(numbers == 1, HYDROGEN, replicas[0].get_masses())[:, None]
        self.positions = np.array([atoms.positions for atoms in replicas])
        self.scale = np.sqrt(units.kB * kelvins[:, None, None] / self.masses)
        self.velocities = self.scale * rng.standard_normal(self.positions.shape)
        self.alive = np.ones(len(replicas), bool)
        self.survived = np.zeros(len(replicas), int)
        self.reason = [""] * len(replicas)
        self.warmth = kelvins.copy()
        radii = covalent_radii[numbers]
        self.sums = radii[:, None] + radii
        self.forces = np.zeros_like(self.positions)
        self.energies = np.zeros(len(replicas))
        self._ask()

    def step(self, thermostat: bool) -> None:
        """One step of all that are alive."""
        live = self.alive[:, None, None]
        self.velocities += np.where(live, 0.5 * STEP * self.forces / self.masses, 0.0)
        drift = 0.5 * STEP if thermostat else STEP
        self.positions += np.where(live, drift * self.velocities, 0.0)
        if thermostat:
            keep = np.exp(-FRICTION * STEP)
            kick = self.scale * self.rng.standard_normal(self.velocities.shape)
            self.velocities = keep * self.velocities + np.sqrt(1 - keep**2) * kick
            self.positions += np.where(live, drift * self.velocities, 0.0)
        self._ask()
        self.velocities += np.where(self.alive[:, None, None], 0.5 * STEP * self.forces / self.masses, 0.0)
        kinetic = np.sum(self.masses * self.velocities**2, axis=(1, 2)) / (3 * len(self.numbers) * units.kB)
        self.warmth += (kinetic - self.warmth) / MEMORY
        self._lose(self.warmth > HOT * self.kelvins, "too hot")
        self.survived += self.alive

    def frames(self, number: int) -> list[Atoms]:
        """Structures of those alive, with the potential's forces; those that fell apart are lost here."""
        for k in np.flatnonzero(self.alive):
            distances = self._distances(k)
            if (distances < NEAR * self.sums).any():
                self._lose(np.arange(len(self.alive)) == k, "too near")
            heavy = self.numbers > 1
            bonded = (distances < FAR * self.sums)[np.ix_(heavy, heavy)]
            if not self.replicas[k].pbc.any() and connected_components(bonded)[0] > self.fragments:
                self._lose(np.arange(len(self.alive)) == k, "fell apart")
        kept = []
        for k in np.flatnonzero(self.alive):
            frame = self._atoms(k)
            frame.info = {"temperature": float(self.kelvins[k]), "replica": int(k), "steps": number}
            frame.arrays["predicted_forces"] = self.forces[k].copy()
            kept.append(frame)
        return kept

    def _ask(self) -> None:
        live = np.flatnonzero(self.alive)
        if not len(live):
            return
        energies, forces = self.predict([self._atoms(k) for k in live])
        for k, energy, force in zip(live, energies, forces, strict=True):
            self.energies[k], self.forces[k] = float(np.asarray(energy).ravel()[0]), force
        largest = np.nan_to_num(np.abs(self.forces), nan=np.inf).max(axis=(1, 2))
        self._lose(largest > FORCE, "force")

    def _lose(self, which: np.ndarray, reason: str) -> None:
        for k in np.flatnonzero(which & self.alive):
            self.reason[k] = reason
            self.alive[k] = False
            self.forces[k] = 0.0

    def _atoms(self, k: int) -> Atoms:
        atoms = self.replicas[k]
        return Atoms(self.numbers, self.positions[k], cell=atoms.cell, pbc=atoms.pbc)

    def _distances(self, k: int) -> np.ndarray:
        vectors = self.positions[k][:, None] - self.positions[k]
        atoms = self.replicas[k]
        if atoms.pbc.any():
            vectors = find_mic(vectors.reshape(-1, 3), atoms.cell, atoms.pbc)[0].reshape(vectors.shape)
        distances = np.linalg.norm(vectors, axis=-1)
        np.fill_diagonal(distances, np.inf)
        return distances
