"""Short hot dynamics of many replicas at once: which of them live."""

from __future__ import annotations

from collections.abc import Sequence

import ase
import jax
import numpy as np
from ase import units
from ase.data import covalent_radii
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mlff.basics.errors import StructureError
from mlff.certificate.bonds import BROKEN
from mlff.certificate.line import Line
from mlff.certificate.scans import pair_name
from mlff.data.batching import Sizes, make_graph, make_sample, round_up
from mlff.data.structure import Structure
from mlff.potential.potential import Potential
from mlff.simulation.guard import Limits

TEMPERATURES = {600.0: 0.9, 1200.0: 0.5}  #: K: the share of replicas that must live
STEPS = 500
_STEP, _FRICTION = 2.0, 0.02  #: fs, 1/fs
_MASS = 12.0  #: amu, of every atom: what is visited does not depend on masses, but light ones need short steps
_ATOMS = 160  #: of all replicas together
_REPLICAS = 1, 8  #: at each temperature, at least and at most
_SKIN = 0.3  #: Å
_FORCE = 100.0  #: eV/Å: with more a replica is lost
_HOT = 5.0  #: times the temperature: beyond, averaged, a replica is lost; heat of a reaction makes 3 times
_FUSED = Limits().fused  #: of the sum of covalent radii: nearer, and a replica is lost
_SMOOTH = 25  #: steps that a temperature is averaged over, and between two looks at bonds


def survival(potential: Potential, structures: Sequence[ase.Atoms], rng: np.random.Generator) -> list[Line]:
    """Share of the replicas that live through Langevin dynamics from the structures, a line for each temperature."""
    mean = np.mean([len(atoms) for atoms in structures])
    each = int(np.clip(_ATOMS / mean / len(TEMPERATURES), *_REPLICAS))
    which = [k % len(structures) for k in range(each)] * len(TEMPERATURES)
    kelvin = np.repeat(list(TEMPERATURES), each)
    ends = run(potential, [structures[k] for k in which], kelvin, rng, STEPS)
    lines = []
    for temperature, limit in TEMPERATURES.items():
        mine = [k for k in range(len(ends)) if kelvin[k] == temperature]
        lost = [f"structure {which[k]} after {step * _STEP / 1000:.2g} ps, {why}" for k in mine for step, why in ends[k]]
        note = f"runs: {each}, each {STEPS * _STEP / 1000:g} ps; structures: {len(set(which))}; all masses {_MASS:g}"
        note += f"; lost: {'; '.join(lost[:3])}; a failure means that dynamics leave the data and end" if lost else ""
        value = 1 - len(lost) / each
        lines.append(Line(f"survival of runs at {temperature:,.0f} K", value, "of 1", limit, note, least=True))
    return lines


def run(
    potential: Potential, structures: Sequence[ase.Atoms], kelvin: np.ndarray, rng: np.random.Generator, steps: int
) -> list[list[tuple[int, str]]]:
    """Langevin dynamics (BAOAB) of all `structures` in one padded batch, each at its temperature `kelvin` (R,).

    For each of them the step at which it was lost and why; empty for those that lived.
    """
    batch = _Batch(potential, structures)
    atoms, positions, dt = batch.structure, batch.positions, _STEP * units.fs
    spread = np.sqrt(units.kB * kelvin[atoms] / _MASS)[:, None]
    keep = np.exp(-_FRICTION * _STEP)
    velocities = spread * rng.normal(size=positions.shape)
    temperature = kelvin.astype(float)
    ends: list[list[tuple[int, str]]] = [[] for _ in structures]
    alive = np.ones(len(structures), bool)
    forces = batch.forces(positions)
    whole = batch.fragments(positions)
    for step in range(steps + 1):
        now = _MASS * np.bincount(atoms, (velocities**2).sum(axis=1)) / (3 * batch.counts * units.kB)
        temperature += (now - temperature) / _SMOOTH
        lost = {int(k): f"{temperature[k]:,.0f} K" for k in np.flatnonzero(temperature > _HOT * kelvin)}
        if step % _SMOOTH == 0:
            lost |= {int(k): "it fell apart" for k in np.flatnonzero(batch.fragments(positions) > whole)}
        for k, why in (lost | batch.troubles(positions, forces)).items():
            if alive[k]:
                alive[k] = False
                ends[k].append((step, why))
                positions[atoms == k] = batch.reference[atoms == k]  # it stays there
        if step == steps or not alive.any():
            break
        moving = alive[atoms, None]
        velocities = np.where(moving, velocities + 0.5 * dt * forces / _MASS, 0.0)
        positions += 0.5 * dt * velocities
        noise = np.sqrt(1 - keep**2) * spread * rng.normal(size=positions.shape)
        velocities = np.where(moving, keep * velocities + noise, 0.0)
        positions += 0.5 * dt * velocities
        try:
            forces = batch.forces(positions)
        except StructureError:  # more pairs than there can be, or two atoms on top of each other
            for k in np.flatnonzero(alive):
                ends[k].append((step, "atoms on top of each other"))
            break
        velocities = np.where(moving, velocities + 0.5 * dt * forces / _MASS, 0.0)
    return ends


class _Batch:
    """Replicas in one padded graph, its pairs within cutoff + skin; `positions` (N, 3) Å move, elements and cells stay."""

    def __init__(self, potential: Potential, structures: Sequence[ase.Atoms]):
        self._potential = potential
        self._structures = [Structure.from_atoms(atoms) for atoms in structures]
        for structure in self._structures:
            potential.check(structure)
        self.counts = counts = np.array([len(structure) for structure in self._structures])  #: (R,) atoms of a replica
        self.starts = np.append(0, np.cumsum(counts)[:-1])  #: (R,) the first atom of each replica
        self.structure = np.repeat(np.arange(len(counts)), counts)  #: (N,) the replica of an atom
        self._numbers = np.concatenate([structure.numbers for structure in self._structures])
        self.positions = np.concatenate([structure.positions for structure in self._structures])
        self._bound = np.array([structure.pbc.any() for structure in self._structures])  # replicas with a cell
        self._periodic = bool(self._bound.any())
        self._neighbors = 1
        self._build(self.positions)

    def forces(self, positions: np.ndarray) -> np.ndarray:
        """(N, 3) eV/Å at `positions`, which are moved by whole cells and as a whole when the pairs are searched anew."""
        moved = positions - self.reference
        if not np.einsum("na,na->n", moved, moved).max() <= (0.5 * _SKIN) ** 2:
            self._build(positions)
        graph = self._graph._replace(positions=positions.astype(self._potential.dtype))
        return np.asarray(jax.device_get(self._potential.compute(graph).forces), np.float64)

    def _build(self, positions: np.ndarray) -> None:
        samples = []
        for k, structure in enumerate(self._structures):
            mine = positions[self.structure == k]
            moved = Structure(structure.numbers, mine, structure.cell, structure.pbc, source=structure.source)
            samples.append(make_sample(moved, self._potential.cutoff + _SKIN))
        most = max(sample.sizes.neighbors for sample in samples)
        if most > self._neighbors:  # a new shape, with room to spare
            largest = max(len(sample.numbers) for sample in samples)
            self._neighbors = round_up(int(1.2 * most) + 1, 0.0625)
            if not self._periodic:
                self._neighbors = max(1, min(self._neighbors, largest - 1))
        positions[:] = np.concatenate([sample.positions for sample in samples])
        sizes = Sizes(len(samples), len(positions), self._neighbors)
        self._host = make_graph(samples, sizes, self._potential.dtype, self._periodic)
        with self._potential.scope():
            self._graph = jax.device_put(self._host)
        self.reference = positions.copy()  #: (N, 3) Å, where the pairs were searched

    def troubles(self, positions: np.ndarray, forces: np.ndarray) -> dict[int, str]:
        """Replicas with two atoms in one place or a force (N, 3) that is too large, and which atoms these are."""
        radii, others = covalent_radii[self._numbers], self._host.neighbors
        distances = self._distances(positions)
        shares = distances / (radii[:, None] + radii[others])
        norms = np.linalg.norm(forces, axis=1)
        found: dict[int, str] = {}
        for atom in [*np.flatnonzero((shares < _FUSED).any(axis=1)), *np.flatnonzero(~(norms <= _FORCE))]:
            k, slot = int(self.structure[atom]), int(shares[atom].argmin())
            first = self.starts[k]
            name = pair_name(self._numbers[first:], int(atom - first), int(others[atom, slot] - first))
            size = f"{norms[atom]:,.0f} eV/Å" if np.isfinite(norms[atom]) else "a force that is not finite"
            found.setdefault(k, f"{name} at {distances[atom, slot]:.2f} Å, {size}")
        return found

    def fragments(self, positions: np.ndarray) -> np.ndarray:
        """(R,) molecules of each replica, hydrogens left out, for they may move; 0 for periodic ones."""
        heavy, others = self._numbers > 1, self._host.neighbors
        radii = covalent_radii[self._numbers]
        near = (self._distances(positions) < BROKEN * (radii[:, None] + radii[others])) & heavy[:, None] & heavy[others]
        atoms, slots = np.nonzero(near)
        graph = coo_array((np.ones(len(atoms)), (atoms, others[atoms, slots])), shape=(len(positions),) * 2)
        labels = connected_components(graph, directed=False)[1]
        found = np.unique(np.stack([self.structure[heavy], labels[heavy]]), axis=1)[0]
        return np.bincount(found, minlength=len(self.counts)) * ~self._bound

    def _distances(self, positions: np.ndarray) -> np.ndarray:
        """(N, K) Å to the neighbours; inf in empty slots."""
        graph = self._host
        vectors = positions[graph.neighbors] - positions[:, None]
        if graph.shifts is not None:
            vectors = vectors + np.einsum("nka,nab->nkb", graph.shifts, graph.cell[graph.structure])
        return np.where(graph.neighbor_mask, np.linalg.norm(vectors, axis=-1), np.inf)
