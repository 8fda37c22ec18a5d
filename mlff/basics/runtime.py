"""How the process is set up before JAX starts: memory allocator, threads, compilation cache; and how much memory.

XLA on the CPU allocates its temporaries anew in each call; glibc hands such blocks back to the system and faults them
in again, which costs about half of the speed. `tune_allocator` makes glibc keep them, the first gigabyte and a half on
pages of 2 MiB where the system has them on request (a training step touches tens of megabytes, more than the processor
can look up in pages of 4 KiB). That holds for the main thread's memory, however large the blocks, so JAX is told to run
programs in the thread that calls them. Other threads keep an arena of their own each: sharing one, those that compile and
compute wait for each other. `set_up_process` does both, for the first potential of the process and not when mlff is
imported; it does nothing off glibc or when the environment variable MLFF_MALLOC is `default`. It must come before JAX
starts: JAX decides then where programs run, and in its own threads a call on 4,000 atoms takes twice the time.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from mlff.basics.errors import ProcessError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 2**21
_ON_HUGE_PAGES = (
    3 * 2**29
)  #: bytes at the start of the heap, less than what is trimmed; taken from the system only when used


@functools.cache
def tune_allocator() -> bool:
    """Keep freed memory in the process (no mmap, no trimming). Returns whether it was done."""
    if not sys.platform.startswith("linux") or os.environ.get("MLFF_MALLOC") == "default":
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 * 2**20)
    _use_huge_pages(libc)
    return True


def hide_loader_messages() -> None:
    """Let jaxlib 0.10.1 load kept programs in silence, where TF_CPP_MIN_LOG_LEVEL is not set.

    It prints two errors for each, about preferences of the compiler that it takes for properties of the processor
    (jax-ml/jax#38445); the programs are loaded all the same and are right. Without effect once JAX is imported.
    """
    if version("jaxlib") == "0.10.1":
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@functools.cache
def set_up_process() -> None:
    """Keep freed memory, and let JAX run programs in the thread that calls them, which is without effect once JAX has started."""
    import jax

    if tune_allocator():
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def refuse_forked() -> None:
    """Raise ProcessError in a process that was forked after JAX had started in its parent: a computation would hang.

    JAX's threads do not come along with a fork. It costs nothing: the process has been told when it was forked.
    """
    if _forked:
        raise ProcessError(
            "this process was forked from one that had used JAX, which cannot compute here (it would wait for ever): start "
            "processes by the 'spawn' method, multiprocessing.get_context('spawn'), or use mlff in the child processes only"
        )


_forked = False


def _note_fork() -> None:
    global _forked
    bridge = sys.modules.get("jax._src.xla_bridge")
    _forked = _forked or bridge is not None and bool(getattr(bridge, "_backends", True))  # not known: as if it had started


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _use_huge_pages(libc) -> None:
    """Ask for them in the part of the heap that comes next; it stays in the process when it is freed (see above)."""
    libc.malloc.restype = ctypes.c_void_p
    start = libc.malloc(ctypes.c_size_t(_ON_HUGE_PAGES))
    if start:
        first = -(-start // _HUGE_PAGE) * _HUGE_PAGE
        size = (start + _ON_HUGE_PAGES - first) // _HUGE_PAGE * _HUGE_PAGE
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), _MADV_HUGEPAGE)
        libc.free(ctypes.c_void_p(start))


def keep_to_one_thread() -> bool:
    """XLA on the CPU computes and compiles in one thread. Returns whether it was done: not where PJRT_NPROC says otherwise.

    For many calls of a small program, of which others' threads get parts that are not worth handing over: with 27 atoms a call
    takes 0.55 instead of 0.72 ms, and with 64 about as long at a quarter less CPU time (two cores). Compiling takes a second longer.
    Without effect once JAX has computed something in the process.
    """
    return os.environ.setdefault("PJRT_NPROC", "1") == "1"


class _Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def free_memory() -> float:
    """Bytes that this process can still take: of the host, less what a control group forbids; inf where nobody says.

    What the allocator keeps for later (see above) counts as free.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        (available,) = [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    except (OSError, ValueError):
        return float("inf")
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            available = min(available, float(Path(limit).read_text()) - float(Path(used).read_text()))
        except (OSError, ValueError):
            continue  # no such group, or no limit ("max")
    try:
        mallinfo = ctypes.CDLL("libc.so.6").mallinfo2
        mallinfo.restype = _Heap
        available += max(0.0, _resident_heap() - mallinfo().uordblks)
    except (OSError, AttributeError):
        pass
    return max(available, 0.0)


def _resident_heap() -> float:
    """Bytes of the heap that the system has given memory for."""
    total, inside = 0.0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        if line[:1] in "0123456789abcdef":
            inside = line.endswith("[heap]")
        elif inside and line.startswith("Rss:"):
            total += 1024.0 * int(line.split()[1])
    return total


def on_host():
    """Context in which JAX computes on the CPU: for what is small, and would be many programs to compile for another device.

    Without effect where JAX was told to leave the CPU out.
    """
    import jax

    set_up_process()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def use_compilation_cache() -> None:
    """Keep all programs on disk that the process compiles from now on, so that a second run starts at once.

    The folder is JAX_COMPILATION_CACHE_DIR where set, else mlff's folder in the user's cache; JAX's own settings win.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        for name, value in _cache_settings().items():
            jax.config.update(name, value)


@contextlib.contextmanager
def compilation_cache() -> Iterator[None]:
    """`use_compilation_cache` for what is compiled within: a library leaves the settings of its process as they are."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache as cache

    with _cache_lock:
        settings = _cache_settings() if jax.config.jax_compilation_cache_dir is None else {}
        before = {name: getattr(jax.config, name) for name in settings}
        try:
            if settings:
                cache.reset_cache()  # JAX looks at the settings once
            for name, value in settings.items():
                jax.config.update(name, value)
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            if settings:
                cache.reset_cache()


_cache_lock = threading.RLock()


def _cache_settings() -> dict:
    """Empty where the folder cannot be made."""
    folder = cache_folder() / "jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return {}
    return {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


class Mark:
    """That something was checked on this machine, kept on disk under what it depends on."""

    def __init__(self, *what: bytes | str):
        digest = hashlib.sha256(b"".join(part.encode() if isinstance(part, str) else part for part in what))
        self.path = cache_folder() / "verified" / digest.hexdigest()

    def there(self) -> bool:
        """Whether it was set before."""
        return self.path.exists()

    def set(self) -> None:
        """Without effect in a home that cannot be written: it is checked again the next time."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        except OSError:
            pass


def cache_folder() -> Path:
    """mlff's folder in the user's cache; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlff"
