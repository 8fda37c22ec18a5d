"""Compiled programs are kept on disk, and the settings of the process stay what they were."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from ase.build import molecule
from jax.experimental.compilation_cache import compilation_cache as cache

from mlff.basics import runtime
from mlff.potential.potential import Potential
from tests.conftest import make_potential

SETTINGS = [
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_enable_compilation_cache",
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache of the user, and a process that has chosen none; programs count that compile in no time."""
    settings = runtime._cache_settings
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        runtime, "_cache_settings", lambda: settings() and settings() | {"jax_persistent_cache_min_compile_time_secs": 0.0}
    )
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)  # `mlff train` in the same process chose one
    cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    cache.reset_cache()


def programs(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("jit_program*-cache"))


def fresh(name: str = "morse") -> Potential:
    jax.clear_caches()
    return make_potential(name)


def test_a_potential_keeps_its_programs_and_leaves_the_process_alone(home):
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    (first,) = fresh().predict([molecule("H2O")])
    kept = programs(home / "mlff" / "jax")
    assert len(kept) == 1
    jax.jit(lambda x: 2 * x)(1.0).block_until_ready()
    assert not list(home.rglob("jit__lambda*"))
    (second,) = fresh().predict([molecule("H2O")])
    assert second.energy == first.energy and (second.forces == first.forces).all()
    assert programs(home) == kept, "the second potential took what the first had compiled"
    assert {name: getattr(jax.config, name) for name in SETTINGS} == before


def test_a_cache_that_the_process_has_chosen_is_the_one(home):
    jax.config.update("jax_compilation_cache_dir", str(home / "mine"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    cache.reset_cache()
    fresh().predict([molecule("H2O")])
    assert programs(home / "mine") and not (home / "mlff" / "jax").exists()


def test_a_cache_that_cannot_be_written_is_done_without(home):
    (home / "mlff").write_text("a file where the folder should be")
    (result,) = fresh().predict([molecule("H2O")])
    assert result.energy != 0 and jax.config.jax_compilation_cache_dir is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is set up and asked")
def test_memory_that_was_never_used_is_not_counted_twice():
    """The heap is made large at the start; and what was used and freed counts as free."""
    code = "\n".join(
        [
            "from pathlib import Path",
            "import numpy as np",
            "from mlff.basics.runtime import free_memory, tune_allocator; tune_allocator()",
            "def available(): return next(1024 * int(l.split()[1]) for l in open('/proc/meminfo') if 'MemAvailable' in l)",
            "fresh = free_memory() - available()",
            "np.ones(2**26)",
            "freed = free_memory() - available()",
            "print(fresh / 2**20, freed / 2**20)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    fresh, freed = map(float, done.stdout.split())
    assert fresh < 200 and 300 < freed - fresh < 900, "MiB; a limit of the process's group lowers both"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is set up")
@pytest.mark.parametrize("choice, asynchronous", [("", False), ("default", True)])
def test_programs_run_where_they_are_called_if_memory_is_kept(choice, asynchronous):
    """Their temporaries are then memory of the main thread."""
    code = """if True:
        import dataclasses
        import jax
        import jax._src.xla_bridge as bridge
        from mlff import Potential
        cpu = bridge._backend_factories["cpu"]
        def start():  # JAX looks at the option here, once
            print(jax.config.read("jax_cpu_enable_async_dispatch"))
            return cpu.factory()
        bridge._backend_factories["cpu"] = dataclasses.replace(cpu, factory=start)
        Potential.load("tests/formats/model_1.safetensors")"""
    environment = os.environ | {"MLFF_MALLOC": choice}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout == f"{asynchronous}\n"


def test_one_thread_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("PJRT_NPROC", "4")
    assert not runtime.keep_to_one_thread() and os.environ["PJRT_NPROC"] == "4"
    monkeypatch.delenv("PJRT_NPROC")
    assert runtime.keep_to_one_thread() and os.environ["PJRT_NPROC"] == "1"


def test_on_the_host_or_where_jax_computes_if_the_cpu_is_left_out(monkeypatch):
    with runtime.on_host():
        assert jax.jit(lambda: 1.0)().devices() == {jax.local_devices(backend="cpu")[0]}

    def without(backend):
        raise RuntimeError(f"unknown backend {backend}")

    monkeypatch.setattr("jax.local_devices", without)
    with runtime.on_host():
        assert jax.jit(lambda: 2.0)() == 2.0


def test_kept_programs_are_loaded_in_silence(tmp_path):
    """By a second process; jaxlib 0.10.1 prints errors that are none."""
    code = "from ase.build import molecule; from tests.conftest import make_potential; make_potential('morse').predict([molecule('H2O')])"
    for _ in range(2):
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "jax")}
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # small ones too
        environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
        root = Path(__file__).parents[1]
        done = subprocess.run(
            [sys.executable, "-c", "import mlff; " + code],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
            env=environment,
            cwd=root,
        )
        assert done.stderr == "" and programs(tmp_path)


def test_an_import_changes_nothing_in_the_process():
    """The allocator, JAX's settings, signals and the handling of exceptions are as they were."""
    code = """if True:
        import signal, sys, threading
        import jax
        from mlff.basics import runtime
        def state():
            options = dict(jax.config.values)
            handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            return options, handlers, sys.excepthook, threading.excepthook
        before = state()
        import mlff
        for name in mlff.__all__:
            getattr(mlff, name)
        after = state()
        assert before[0].items() <= after[0].items() and before[1:] == after[1:]  # JAX adds options of its own
        assert not runtime.set_up_process.cache_info().currsize and not runtime.tune_allocator.cache_info().currsize
        print("quiet")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "quiet\n", done.stderr
