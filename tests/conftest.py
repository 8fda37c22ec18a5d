"""Shared fixtures: tiny potentials of every architecture, and structures that are hard in their own ways."""

from __future__ import annotations

import os
from importlib.metadata import version

# Tests compile many programs and run each a few times: XLA's optimiser would take most of the time.
# The older code generator takes half the time; from 0.11 on jaxlib has none, and a flag that it does not know is fatal.
older = "--xla_cpu_use_fusion_emitters=false " if version("jaxlib") < "0.11" else ""
quick = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1 "
)
os.environ["XLA_FLAGS"] = quick + older + os.environ.get("XLA_FLAGS", "")

import contextlib
import gc
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

gc.set_threshold(200_000, 50, 100)  # what JAX keeps of its programs is looked through each time: a tenth of the tests' time
_cache = tempfile.TemporaryDirectory(prefix="mlff-tests-")  # nothing is left in the user's cache
os.environ["XDG_CACHE_HOME"] = _cache.name

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule

from mlff.config import options as configs
from mlff.models import registry
from mlff.models.ace import DENSITY
from mlff.models.common import Statistics
from mlff.models.parameters import initial_params
from mlff.potential.potential import Potential

ELEMENTS = (1, 6, 8, 14)
MODELS = {
    "lennard_jones": configs.LennardJones(cutoff=4.0, sigma=1.5, epsilon=0.05),
    "morse": configs.Morse(cutoff=4.0),
    "schnet": configs.SchNet(cutoff=4.0, channels=8, layers=2, radial_basis=8),
    "ace": configs.ACE(cutoff=4.0, channels=8, radial_basis=4, l_message=1),
    "ace_messages2": configs.ACE(cutoff=4.0, channels=4, radial_basis=4, l_message=2),
    "ace_l3": configs.ACE(
        cutoff=4.0,
        channels=4,
        radial_basis=4,
        l_max=3,
        l_message=2,
        correlation=2,
    ),
}
SATURATED = "ace_saturated"  #: what a trained model is outside its data
MODELS[SATURATED] = MODELS["ace"]
VARIANTS = (
    "ace_messages2",
    "ace_l3",
    SATURATED,
)  #: of `ace`: asked when slow tests run, and where a test names what differs
BASELINE = {1: -0.5, 6: -1.0, 8: -2.0, 14: -3.0}
SHARED = Path(__file__).parents[2] / "shared"


def over_models(*slow: str, also: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """A test for each model, by its `name`: a slow one of those named, and of the variants that are not among `also`."""
    late = {*VARIANTS, *slow} - {*also}
    marks = {name: [pytest.mark.slow] if name in late else [] for name in MODELS}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


def make_potential(name: str, precision: str = "float32") -> Potential:
    """A potential with random weights whose forces are a few eV/Å."""
    config = MODELS[name]
    statistics = Statistics(0.3, 12.0, (-1.0, -5.0, -2.0, -4.0), inner_cutoff=(0.8,) * 16)
    params = initial_params(registry.build(config, ELEMENTS, statistics), seed=1)
    if name == SATURATED:  # half of the densities of these structures lie beyond
        params = params | {"ranges": {"layer_1": {DENSITY: np.full((len(ELEMENTS), config.channels), 0.2, np.float32)}}}
    return Potential(config, params, ELEMENTS, BASELINE, statistics, precision)


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Ctrl-C means what it does at a terminal, also when a shell that ignores it started the tests in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def potentials():
    """name -> potential, each made once: `potentials("ace", "float64")`."""
    made: dict[tuple[str, str], Potential] = {}

    def get(name: str, precision: str = "float64") -> Potential:
        key = (name, precision)
        if key not in made:
            made[key] = make_potential(*key)
        return made[key]

    return get


@contextlib.contextmanager
def loaded_once(loaded: dict[tuple, Potential]) -> Iterator[None]:
    """A model file that has not changed since is loaded once: commands go on with what was compiled for it."""
    real = Potential.load.__func__

    def load(cls, path, *options, **names):
        file = Path(path)
        if not file.is_file():
            return real(cls, path, *options, **names)
        key = (file.resolve(), file.stat().st_mtime_ns, options, tuple(names.items()))
        if key not in loaded:
            loaded[key] = real(cls, path, *options, **names)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Potential, "load", classmethod(load))
        yield


@pytest.fixture
def ethanol() -> ase.Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=3)
    return atoms


@pytest.fixture
def silicon() -> ase.Atoms:
    """Two atoms in a sheared, left-handed cell much smaller than the cutoff."""
    atoms = bulk("Si")
    atoms.set_cell(
        atoms.cell.array[[1, 0, 2]] @ (np.eye(3) + [[0.02, 0.05, 0], [0, -0.03, 0.01], [0.02, 0, 0.04]]), scale_atoms=True
    )
    assert np.linalg.det(atoms.cell.array) < 0
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture
def shared() -> Path:
    """Folder with reference data that only developers have."""
    if not (SHARED / "datasets").is_dir():
        pytest.skip("the developers' reference data are not here")
    return SHARED / "datasets"
