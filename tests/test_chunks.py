"""Large graphs are computed in chunks: of what size, with how much memory, in which programs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from ase.build import bulk

from mlff import MLFFCalculator
from mlff.data import pairs
from mlff.data.batching import make_graph, make_sample
from mlff.data.structure import Structure
from mlff.potential import chunks, compiled, packing
from mlff.potential.committee import committee
from mlff.potential.compiled import OutOfMemory
from tests.conftest import make_potential


@pytest.fixture
def crystal():
    """64 silicon atoms, displaced."""
    atoms = bulk("Si", cubic=True).repeat(2)
    atoms.rattle(0.05, seed=0)
    return atoms


@pytest.fixture
def large(monkeypatch):
    """64 atoms are many."""
    monkeypatch.setattr(compiled, "_LARGE", 500)
    for module in (pairs, packing):
        monkeypatch.setattr(module, "MANY", 60)


def agree(result, expected):
    assert result.energy == pytest.approx(expected.energy, rel=1e-12)
    for name in ("energies", "forces", "stress"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=0, atol=1e-11, err_msg=name)


def test_predict_and_the_calculator_take_chunks_and_say_the_same(crystal, large, monkeypatch):
    potential = make_potential("schnet", "float64")
    graph = potential.graph_of(crystal)
    with potential.scope():
        whole = jax.device_get(potential.programs.jitted("stress")(potential.device_params, graph))
    (expected,) = potential.results(whole, [Structure.from_atoms(crystal)])
    monkeypatch.setattr(chunks, "_CACHES", 2**17)
    (result,) = potential.predict([crystal])
    agree(result, expected)
    assert list(potential.programs._chunks.values()) == [32]
    crystal.calc = MLFFCalculator(potential)
    np.testing.assert_allclose(crystal.get_forces(), expected.forces, atol=1e-11)
    np.testing.assert_allclose(crystal.get_stress(voigt=False), expected.stress, atol=1e-12)
    count = potential.programs.compilations
    for _ in range(3):
        crystal.rattle(1e-3)
        crystal.get_forces()
    assert potential.programs.compilations == count <= 4


def test_a_committee_is_computed_in_chunks_too(crystal, large, monkeypatch):
    members = [make_potential("schnet", "float64"), make_potential("schnet", "float64")]
    members[1] = dataclasses.replace(members[1], params=jax.tree.map(lambda leaf: 1.01 * leaf, members[1].params))
    both = committee(members)
    found = both.predict([crystal])[0]
    assert both.programs._chunks and found.energy_std > 0
    monkeypatch.setattr(compiled, "_LARGE", 10**9)
    monkeypatch.setattr(pairs, "MANY", 10**9)
    expected = dataclasses.replace(both).predict([crystal])[0]
    agree(found, expected)
    np.testing.assert_allclose(found.forces_std, expected.forces_std, atol=1e-11)


def test_chunks_halve_when_memory_runs_out(crystal, large, monkeypatch):
    crystal = crystal.repeat((2, 2, 1))
    potential, tried = make_potential("morse", "float64"), []
    original = compiled.Programs._compile_chunks

    def limited(programs, name, size, params, graph):
        tried.append(size)
        if size > 64:
            raise MemoryError
        return original(programs, name, size, params, graph)

    monkeypatch.setattr(compiled.Programs, "_compile_chunks", limited)
    (result,) = potential.predict([crystal], stress=False)
    assert tried == [512, 128, 64] and np.isfinite(result.forces).all()
    potential.predict([crystal], stress=False)
    assert len(tried) == 3, "what fits is kept"
    monkeypatch.setattr(compiled, "free_memory", lambda: 1.0)
    with pytest.raises(OutOfMemory, match=r"structure 0: 256 atoms x \d+ neighbours need .* GiB are free"):
        make_potential("morse", "float64").predict([crystal], stress=False)


def test_other_devices_take_all_atoms_at_once_while_half_of_the_memory_holds_them(crystal, large, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    monkeypatch.setattr(pairs, "MANY", 10**9)
    potential, graph = make_potential("morse"), make_potential("morse").graph_of(crystal)
    potential.compute(graph)
    assert list(potential.programs._chunks.values()) == [64] and potential.programs.slots("forces") > 0
    whole = potential.programs.jitted("forces").lower(potential.device_params, graph).compile().memory_analysis()
    needed = whole.temp_size_in_bytes + whole.output_size_in_bytes
    monkeypatch.setattr(compiled, "_free", lambda: 1.9 * needed)
    potential = make_potential("morse")
    potential.compute(graph)
    assert list(potential.programs._chunks.values()) == [32]


def test_memory_grows_by_what_is_kept_of_each_atom_alone(crystal):
    """Of each atom what two stages pass and keep, and their derivatives; not the 100 times as much of its pairs."""
    potential, needed = make_potential("schnet"), {}
    for repeats in (2, 6):
        sample = make_sample(Structure.from_atoms(crystal.repeat((repeats, 1, 1))), potential.cutoff)
        graph = make_graph([sample], sample.sizes, np.float32)
        program = potential.programs.jitted("stress", size=32).lower(potential.device_params, graph).compile()
        needed[len(graph.positions)] = program.memory_analysis().temp_size_in_bytes
    (few, less), (many, more) = needed.items()
    state = 2 * 8  # numbers of one layer
    assert (more - less) / (many - few) < 4 * (3 * state + 12), "bytes per atom"
    assert less / few > 4 * 8 * 10, "the pairs of a chunk alone are more"


MANY = """
import numpy as np
from ase.build import bulk
from mlff.config import options
from mlff.models import registry
from mlff.models.common import Statistics
from mlff.models.parameters import initial_params
from mlff.potential.potential import Potential
from tests.memory import peak

config, statistics = options.ACE(channels=16, l_max=2, l_message=1), Statistics(0.3, 43.0, (-3.5,), inner_cutoff=(1.8,))
params = initial_params(registry.build(config, (29,), statistics), 0)
potential = Potential(config, params, (29,), {29: -1.0}, statistics)
small = bulk("Cu", cubic=True).repeat(5)
small.rattle(0.05, seed=0)
(expected,) = potential.predict([small])
before = peak()
many = small.repeat((4, 5, 10))
assert len(many) == 100_000
(found,) = potential.predict([many])
assert np.abs(found.forces - np.tile(expected.forces, (200, 1))).max() < 1e-4, "eV/Å"
assert np.abs(found.stress - expected.stress).max() < 1e-5, "eV/Å³"
assert abs(found.energy / 200 - expected.energy) < 1e-3
assert list(potential.programs._chunks.values()) == [512]
print((peak() - before) / 2**10)
"""


@pytest.mark.slow
def test_slow_a_hundred_thousand_atoms_of_a_network_need_a_gibibyte():
    """Copies of a crystal of 500 atoms, whose forces one piece has; in one piece they would need 6 GiB."""
    done = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.0, f"{done.stdout} GiB"
