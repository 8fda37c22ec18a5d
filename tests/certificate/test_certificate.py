"""A sound potential passes every line; each planted fault is caught by the line that is there for it."""

from __future__ import annotations

import functools
from dataclasses import replace

import ase
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, molecule

from mlff import MLFFCalculator
from mlff.certificate import checks, scans
from mlff.certificate.certificate import certify
from mlff.certificate.scans import Scan
from mlff.errors import DataError
from mlff.potential import Potential
from tests.potentials import BASELINE
from tests.potentials import morse as any_morse


def morse(precision: str = "float32") -> Potential:
    """Of the elements whose bonds are about 1.2 Å long."""
    elements = (1, 6, 8)
    return replace(any_morse(precision=precision), elements=elements, baseline={z: BASELINE[z] for z in elements})


def water() -> ase.Atoms:
    atoms = molecule("H2O")
    atoms.positions *= 1.25  # bonds of the Morse potential: 1.2 Å
    atoms.rattle(0.02, seed=1)
    return atoms


def carbon() -> ase.Atoms:
    atoms = bulk("C", cubic=True) * (2, 1, 1)
    atoms.rattle(0.03, seed=2)
    return atoms


@pytest.fixture(scope="module")
def sound():
    return certify(morse(precision="float64"), [water(), carbon()])


def failed(certificate) -> set[str]:
    return {line.name for line in certificate.failed}


def test_a_sound_potential_passes_every_line(sound):
    assert not sound.failed, [str(line) for line in sound.failed]
    assert len(sound.lines) >= 14
    assert {scan.name for scan in sound.scans} >= {"H-O", "C-C"}


class Truncated(Potential):
    """No envelope: the energy ends at the cutoff as if cut off with scissors."""

    @functools.cached_property
    def model(self):
        return self

    def apply(self, params, graph):
        r2 = jnp.sum(graph.pair_vectors**2, axis=-1)
        inside = graph.neighbor_mask & (r2 > 0) & (r2 < self.cutoff**2)
        r = jnp.sqrt(jnp.where(inside, r2, 1.0))
        return 0.5 * jnp.sum(jnp.where(inside, (1 - jnp.exp(-1.5 * (r - 1.2))) ** 2 - 1, 0.0), axis=1)


class Direct(Potential):
    """Forces that are no gradient, as from a network that predicts them directly."""

    def compute(self, graph, stress=False):
        prediction = super().compute(graph, stress)
        x, y, z = graph.positions.T
        return prediction._replace(forces=prediction.forces + 0.05 * jnp.stack([-y, x, 0 * z], axis=1))


class Compressed(Potential):
    """A stress of the wrong sign."""

    def compute(self, graph, stress=False):
        prediction = super().compute(graph, stress)
        return prediction if prediction.stress is None else prediction._replace(stress=-prediction.stress)


class Lopsided(Potential):
    """A preferred direction in space."""

    def compute(self, graph, stress=False):
        prediction = super().compute(graph, stress)
        return prediction._replace(forces=prediction.forces + np.array([0.0, 0.0, 0.01], np.float32))


def broken(kind: type, sound: Potential) -> Potential:
    return kind(**{name: getattr(sound, name) for name in sound.__dataclass_fields__})


@pytest.mark.parametrize(
    ("kind", "caught"),
    [
        (Truncated, {"energy step at the cutoff", "force step at the cutoff"}),
        (Direct, {"forces against energies", "NVE drift at 300 K"}),
        (Compressed, {"stress against energies"}),
        (Lopsided, {"symmetry, forces", "forces against energies"}),
    ],
)
def test_every_planted_fault_is_caught(kind, caught, monkeypatch):
    monkeypatch.setattr(checks, "NVE_STEPS", 1000)
    potential = broken(kind, morse(precision="float64"))
    certificate = certify(potential, [water(), carbon()])
    assert caught <= failed(certificate), failed(certificate)


def test_kinks_are_told_from_steep_curves():
    r = np.arange(1.0, 4.0, scans.STEP)
    steep = Scan("steep", r, r**-12, -12 * r**-13)
    assert steep.kinks == []
    bent = Scan("bent", r, np.abs(r - 2.2) * (r - 2.2), 2 * np.abs(r - 2.2))
    jumping = Scan("jumping", r, np.abs(r - 2.2), np.where(r > 2.2, 1.0, -1.0))
    for scan in (bent, jumping):
        assert scan.kinks == pytest.approx([2.2], abs=0.03)


def test_minima_are_counted():
    r = np.arange(1.0, 4.0, scans.STEP)
    assert Scan("one", r, (r - 2) ** 2, 2 * (r - 2)).minima == pytest.approx([2.0], abs=0.011)
    assert len(Scan("two", r, np.cos(2 * np.pi * r), r).minima) == 3
    assert Scan("shallow", r, r + 1e-4 * np.sin(100 * r), r).minima == []


def test_what_hangs_on_a_bond_moves_along():
    atoms = molecule("CH3CH2OH")
    moved = {}
    for name, _, frames, direction in scans._paths(atoms, "", 10):
        moved[name.split(" ")[0] + name.split(" ")[3]] = int((direction != 0).any(axis=1).sum())
        before, after = frames[0].get_all_distances(), frames[-1].get_all_distances()
        assert (np.abs(before - after) > 0.1).any()
    assert set(moved) >= {"CC", "CO"}, moved


def test_a_calculator_tells_what_failed(tmp_path):
    potential = morse()
    line = {"name": "kinks", "passed": False}
    bad = replace(potential, metadata={"certificate": {"lines": [line, {"name": "size", "passed": True}]}})
    with pytest.warns(UserWarning, match="failed checks of its certificate: kinks$"):
        MLFFCalculator(bad)


def test_without_structures_there_is_nothing_to_measure():
    with pytest.raises(DataError, match="nothing to certify"):
        certify(morse())
