"""The first calls of a small shape run a program that compiles at once; a simulation never does."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from mlff import MLFFCalculator
from mlff.potential import compiled
from mlff.simulation.md import run_md
from tests.conftest import make_potential


@pytest.fixture
def hasty(monkeypatch):
    """As for users: XLA_FLAGS of the tests set the level, which turns it off."""
    monkeypatch.setattr(compiled.compiler, "hasty", lambda: {"xla_backend_optimization_level": 2})


def test_few_calls_compile_hastily_and_many_in_full(hasty, ethanol, monkeypatch):
    potential = make_potential("schnet")
    (first,) = potential.predict([ethanol], stress=False)
    slots = len(ethanol) * 8
    monkeypatch.setattr(compiled, "_EARLY", 4 * slots + 1)
    seen = [first.forces]
    for _ in range(6):
        seen.append(potential.predict([ethanol], stress=False)[0].forces)
    assert potential.programs.compilations == 2
    for forces in seen:  # float32, random weights: two orders of summation differ by 3e-5
        np.testing.assert_allclose(forces, first.forces, atol=1e-4 * np.abs(first.forces).max())
    assert len({forces.tobytes() for forces in seen}) <= 2
    again = make_potential("schnet")
    assert [again.predict([ethanol], stress=False)[0].forces.tobytes() for _ in range(7)] == [
        forces.tobytes() for forces in seen
    ]


def test_what_is_large_or_taken_once_is_compiled_in_full(hasty, monkeypatch):
    used = []
    monkeypatch.setattr(compiled.Programs, "jitted", lambda self, name, hasty=False: used.append(hasty) or (lambda *_: None))
    monkeypatch.setattr(compiled, "_EARLY", 200)
    potential = make_potential("morse")
    silicon = bulk("Si")
    for name, repeats in (("forces", 1), ("hessian", 1), ("forces", 4)):
        graph = potential.graph_of(silicon.repeat(repeats))
        potential.programs.run(name, potential.params, graph)
    assert used == [True, False, False]


def test_a_simulation_runs_one_program_from_its_first_step(hasty, ethanol):
    calculator = MLFFCalculator(make_potential("schnet"))
    run_md(ethanol, calculator, engine="ase", ensemble="nve", steps=3, temperature=10, progress=False)
    assert not calculator.potential.programs._hasty and not calculator.potential.programs.steady


def test_other_devices_have_no_hasty_program(hasty, ethanol, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    potential = make_potential("morse")
    potential.predict([ethanol])
    assert potential.programs._ready and not potential.programs._hasty
