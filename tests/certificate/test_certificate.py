"""A sound potential passes every line; each planted fault is caught by the line that is there for it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import ase
import numpy as np
import pytest
from ase.build import molecule

from mlff import MLFFCalculator
from mlff.basics.errors import DataError
from mlff.certificate import checks, hot, scans
from mlff.certificate.certificate import certify, suitable
from mlff.certificate.probe import Probe
from mlff.certificate.scans import Scan, find_kinks
from tests.certificate.planted import SOUND, add_energies, directed, gaussian, pairs, planted, structures


@pytest.fixture(scope="module")
def sound():
    return certify(SOUND["float64"], structures())


def failed(certificate) -> set[str]:
    return {line.name for line in certificate.failed}


def test_a_sound_potential_passes_every_line(sound):
    assert not sound.failed, [str(line) for line in sound.failed]
    assert len(sound.lines) >= 14
    assert {scan.name for scan in sound.scans} >= {"C-C", "H-C"}


def direct(potential, graph, prediction):
    """Forces that are no gradient, as from a network that predicts them directly."""
    x, y, z = graph.positions.T
    return prediction._replace(forces=prediction.forces + 0.05 * np.stack([-y, x, 0 * z], axis=1))


def compressed(potential, graph, prediction):
    """A stress of the wrong sign."""
    return prediction if prediction.stress is None else prediction._replace(stress=-prediction.stress)


def crowded(potential, graph, prediction):
    """The energy grows with the square of the number of atoms."""
    return add_energies(prediction, graph, 1e-3 * graph.n_atoms[graph.structure])


def ordered(potential, graph, prediction):
    """The energy depends on the order of the atoms."""
    first = np.append(0, np.cumsum(graph.n_atoms))[graph.structure]
    return add_energies(prediction, graph, 1e-3 * (np.arange(len(first)) - first) * graph.atomic_numbers)


def noisy(potential, graph, prediction):
    """float32 in which sums have lost digits."""
    if potential.precision == "float64":
        return prediction
    noise = np.sin(1e4 * graph.positions)
    worse = add_energies(prediction, graph, 1e-3 * noise.sum(axis=1))
    return worse._replace(forces=prediction.forces + 0.05 * noise)


def late():
    """In dynamics (one structure at a time) the forces are those of the step before."""
    last = {}

    def fault(potential, graph, prediction):
        if len(graph.n_atoms) > 1:
            return prediction
        before, last["forces"] = last.get("forces", prediction.forces), prediction.forces
        return prediction._replace(forces=before if before.shape == prediction.forces.shape else prediction.forces)

    return fault


def lopsided(vectors, r):
    """A pair along z has less energy than one across."""
    z, fade = vectors[..., 2], 0.1 * np.exp(-(r**2))
    gradient = (-2 * z**2 * fade)[..., None] * vectors
    gradient[..., 2] += 2 * z * fade
    return z**2 * fade, gradient


FAULTS = {
    "cut off without an envelope": (
        pairs(lambda r: -np.exp(-r), lambda r: np.exp(-r)),
        {"energy step at the cutoff", "force step at the cutoff", "slope of the force at the cutoff"},
    ),
    "an envelope that ends in a bend": (
        pairs(lambda r: (4 - r) ** 2, lambda r: 2 * (r - 4)),
        {"slope of the force at the cutoff"},
    ),
    "direct forces": (direct, {"forces against energies", "NVE drift at 300 K"}),
    "wrong sign of the stress": (compressed, {"stress against energies"}),
    "a jump of the force along a bond": (
        pairs(lambda r: 0.3 * np.maximum(1.6 - r, 0), lambda r: -0.3 * (r < 1.6)),
        {"kinks"},
    ),
    "a bend of the force along a bond": (
        pairs(lambda r: 3 * np.maximum(1.6 - r, 0) ** 2, lambda r: -6 * np.maximum(1.6 - r, 0)),
        {"kinks"},
    ),
    "a false minimum": (gaussian(-0.5, 1.65, 0.03), {"false minima of bonds"}),
    "a hole at short range": (
        gaussian(-200.0, 0.5, 0.1),
        {"dimers that attract at short range", "steepest attraction of dimers"},
    ),
    "a hole farther out": (gaussian(-200.0, 0.8, 0.04), {"steepest attraction of dimers"}),
    "not extensive": (crowded, {"size extensivity"}),
    "like atoms differ": (ordered, {"symmetry, energy"}),
    "a direction in space": (directed(lopsided), {"symmetry, energy", "symmetry, forces"}),
    "noise of float32": (noisy, {"rounding of float32, energy", "rounding of float32, forces"}),
    "late forces": (late(), {"NVE drift at 300 K"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_is_caught(name, monkeypatch):
    fault, lines = FAULTS[name]
    drifts = "NVE drift at 300 K" in lines
    monkeypatch.setattr(checks, "NVE_STEPS", 1000 if drifts else 100)
    monkeypatch.setattr(hot, "STEPS", 10)
    certificate = certify(planted(fault, "float32" if fault is noisy else "float64"), structures())
    assert lines <= failed(certificate), failed(certificate)
    if name in ("wrong sign of the stress", "not extensive", "a jump of the force along a bond", "late forces"):
        assert lines == failed(certificate)  # and by no other


def test_kinks_are_told_from_steep_curves():
    r = np.arange(1.0, 4.0, scans.STEP)
    curves = {
        "steep": (lambda r: -12 * r**-13, []),
        "very steep": (lambda r: np.tanh((r - 2.2) / 0.004), []),  # as wide as the step: only finer ones tell
        "twice differentiable": (lambda r: 40 * np.maximum(r - 2.203, 0) ** 2, []),
        "bent": (lambda r: 2 * np.abs(r - 2.203), [2.203]),
        "bent a little, and steep": (lambda r: np.exp(5 * (2.203 - r)) + 2 * np.abs(r - 2.203), [2.203]),
        "jumping": (lambda r: np.where(r > 2.203, 1.0, -1.0), [2.203]),
        "twice": (lambda r: np.abs(r - 1.5) + 2 * np.abs(r - 2.2), [1.5, 2.2]),
    }
    laws = [law for law, _ in curves.values()]
    found = find_kinks(
        [Scan(name, r, 0 * r, law(r)) for name, (law, _) in curves.items()],
        lambda which, distances: [laws[k](rs) for k, rs in zip(which, distances, strict=True)],
    )
    for (name, (_, kinks)), distances in zip(curves.items(), found, strict=True):
        assert distances == pytest.approx(kinks, abs=1e-3), name
    assert Scan("very steep", r, 0 * r, laws[1](r)).suspects


def test_minima_are_counted():
    r = np.arange(1.0, 4.0, scans.STEP)
    assert Scan("one", r, (r - 2) ** 2, 2 * (r - 2)).minima == pytest.approx([2.0], abs=0.011)
    assert len(Scan("two", r, np.cos(2 * np.pi * r), r).minima) == 3
    assert Scan("shallow", r, r + 1e-4 * np.sin(100 * r), r).minima == []


def hydrogen_bond(width: float, *more: float) -> ase.Atoms:
    """C-H···C along x, the carbons `width` (Å) apart; `more` hydrogens along x."""
    return ase.Atoms("CHC" + "H" * len(more), [[x, 0, 0] for x in (0, 1.2, width, *more)])


def one_on_the_other(first, second):
    return lambda potential, graph, prediction: second(potential, graph, first(potential, graph, prediction))


def false_minima(fault, atoms: ase.Atoms):
    ask = Probe(planted(fault), [atoms])
    bonds = scans.bonds(ask, [atoms], 1)
    return bonds[0], checks.smoothness(scans.dimers(ask), bonds)[1]


def test_a_minimum_at_the_new_partner_of_a_hydrogen_is_chemistry():
    well = gaussian(-2.0, 1.2, 0.08)  # each carbon binds the hydrogen at 1.2 Å
    scan, line = false_minima(well, hydrogen_bond(2.9))
    assert scan.minima == pytest.approx([1.2, 1.7], abs=0.02) and list(scan.new_bonds.values()) == ["H 1 - C 2"]
    assert line.passed and line.value == 0
    assert "not counted, as a new bond forms: H 1 - C 2 (of C 0 - H 1 of structure 0 at 1.7" in line.note


def test_a_false_minimum_before_the_new_partner_is_near_is_counted():
    fault = one_on_the_other(gaussian(-2.0, 1.2, 0.08), gaussian(-1.0, 1.55, 0.03))
    scan, line = false_minima(fault, hydrogen_bond(3.4))  # at 1.55 Å the other carbon is 1.85 Å away
    assert len(scan.minima) == 2 and not scan.new_bonds
    assert line.value == 1 and not line.passed and "C 0 - H 1 of structure 0 at" in line.note and "new bond" not in line.note


def test_of_several_minima_at_a_new_partner_one_is_chemistry():
    fault = one_on_the_other(gaussian(-2.0, 1.2, 0.05), gaussian(-1.5, 1.34, 0.02))
    scan, line = false_minima(fault, hydrogen_bond(2.9))
    assert len(scan.minima) == 4 and len(scan.new_bonds) == 1  # 1.2 and 1.34 Å from the one, and from the other
    assert line.value == 2


def test_where_atoms_are_pressed_together_no_bond_forms():
    (path,) = scans.bond_paths(hydrogen_bond(3.5, 2.3), "", 1)
    assert scans.new_bond(path, 1.3) == ""  # 1.0 Å between the hydrogens, bonded up to 0.81
    assert scans.new_bond(path, 1.7) == "H 1 - H 3"
    assert scans.new_bond(path, 1.9) == ""  # 0.4 Å


def test_what_hangs_on_a_bond_moves_along():
    atoms = molecule("CH3CH2OH")
    moved = {}
    for path in scans.bond_paths(atoms, "", 10):
        words = path.name.split(" ")
        moved[words[0] + words[3]] = int((path.direction != 0).any(axis=1).sum())
        before, after = (path.frame(r).get_all_distances() for r in path.distances[[0, -1]])
        assert (np.abs(before - after) > 0.1).any()
    assert set(moved) >= {"CC", "CO"}, moved


def test_a_calculator_tells_what_failed():
    line = {"name": "kinks", "passed": False}
    bad = replace(SOUND["float32"], metadata={"certificate": {"lines": [line, {"name": "size", "passed": True}]}})
    with pytest.warns(UserWarning, match="failed checks of its certificate: kinks$"):
        MLFFCalculator(bad)


def test_without_structures_there_is_nothing_to_measure():
    with pytest.raises(DataError, match="nothing to certify"):
        certify(SOUND["float32"])
    with pytest.raises(DataError, match="nothing to certify"):
        certify(SOUND["float32"], [ase.Atoms("H")])


def test_a_cell_of_one_atom_is_repeated():
    frames = suitable(SOUND["float64"], [ase.Atoms("C", cell=[2, 2, 9], pbc=(True, True, False))])
    assert [len(atoms) for atoms in frames] == [4] and frames[0].cell.lengths() == pytest.approx([4, 4, 9])
    with pytest.raises(DataError, match="nothing to certify"):
        suitable(SOUND["float64"], [ase.Atoms("C")])


def test_a_figure_that_is_no_number_fails():
    """One structure of several for which there are no numbers, and not the first."""
    frames = [molecule("H2O"), molecule("CH4")]

    def ask(structures):
        broken = len(structures[-1])
        return [
            SimpleNamespace(
                energy=np.nan if len(a) == broken else 0.0, forces=np.full((len(a), 3), np.nan if len(a) == broken else 0.0)
            )
            for a in structures
        ]

    for lines in (
        checks.symmetries(ask, frames, np.random.default_rng(0)),
        checks.extensivity(ask, frames),
        checks.precision(ask, ask, frames),
    ):
        assert not any(line.passed for line in lines), lines
