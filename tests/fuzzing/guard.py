"""Judges what a reader does with one input: it reads it, refuses it in mlff's own words, or is at fault.

The process that judges is given up to it: `arm` puts an audit hook that cannot be taken off.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import site
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mlff.basics.errors import MLFFError

CPU_SECONDS = 2.0  #: one input may take
MEMORY = 512 * 2**20  #: bytes of address space that one input may take
_LONGEST = 2500  #: characters of a message
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "os.putenv", "subprocess.", "pty."),
    *(
        "socket.connect",
        "socket.bind",
        "socket.getaddrinfo",
        "socket.gethostby",
        "socket.sendto",
        "socket.sendmsg",
        "urllib.",
        "ftplib.",
        "http.",
        "smtplib.",
        "webbrowser.",
        "pickle.",
        "marshal.load",
        "ctypes.dlopen",
    ),
    *(
        "shutil.copy",
        "shutil.move",
        "shutil.make_archive",
        "shutil.unpack_archive",
        "code.__new__",
        "sqlite3.enable_load_extension",
        "sqlite3.load_extension",
        "import",
        "exec",
    ),
)
_CHANGES = (
    "os.remove",
    "shutil.rmtree",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
)


class Verdict(NamedTuple):
    """kind: accepted, refused or unclean; why: the message, or what is wrong; signature: the same for the same fault."""

    kind: str
    why: str
    signature: str
    cpu: float  #: s


class Guard:
    """Limits and the audit hook of this process, and what they saw."""

    def __init__(self, scratch: Path):
        self.scratch = str(scratch.resolve())
        self._stderr = open(scratch.parent / "stderr.txt", "w+b", buffering=0)
        os.dup2(self._stderr.fileno(), 2)
        self._seen: list[str] = []
        self._active = self._limited = False
        self.warnings: Counter[str] = Counter()
        paths = {sys.prefix, sys.base_prefix, *site.getsitepackages(), *sys.path, str(Path(__file__).parents[2])}
        self._code = tuple(str(Path(path).resolve()) + os.sep for path in paths if path)
        tempfile.tempdir = self.scratch

    def arm(self) -> None:
        """From now on memory is limited and the hook listens, both within `judge`."""
        sys.unraisablehook = self._unraisable
        warnings.showwarning = lambda message, *_: self.warnings.update([re.sub(r"\d+", "0", str(message))[:100]])
        warnings.simplefilter("always")
        sys.addaudithook(self._listen)
        self._limited = sys.platform == "linux"

    def _unraisable(self, unraisable) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):  # Orbax's own, after errors
            self._seen.append(f"exception ignored: {unraisable.exc_value!r}")

    def judge(self, read: Callable[[], None], names: tuple[str, ...]) -> Verdict:
        """What `read` did. An error's message must contain one of `names` (of the input)."""
        self._seen.clear()
        error = None
        with contextlib.suppress(OSError):
            os.lseek(2, 0, os.SEEK_END)
        size = os.fstat(2).st_size
        begin = time.process_time()
        with self._memory_limited():
            self._active = True
            try:
                read()
            except BaseException as raised:  # noqa: BLE001  whatever a reader lets through is to be judged
                error = raised
            finally:
                self._active = False
        cpu = time.process_time() - begin
        why, signature = self._fault(error, names, cpu, size)
        if why:
            return Verdict("unclean", why, signature, cpu)
        return Verdict("accepted" if error is None else "refused", str(error or ""), "", cpu)

    @contextlib.contextmanager
    def _memory_limited(self):
        if not self._limited:
            yield
            return
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

    def _fault(self, error, names, cpu, size) -> tuple[str, str]:
        if self._seen:
            return self._seen[0], _plain(self._seen[0])
        if os.fstat(2).st_size > size:
            os.lseek(2, size, os.SEEK_SET)
            said = os.read(2, 4000).decode(errors="replace")
            return f"printed: {said}", "printed " + _plain(said)[:60]
        if error is not None and not isinstance(error, MLFFError):
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}mlff{os.sep}" in f.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "the check"
            text = "".join(traceback.format_exception(error, limit=-8))[-4000:]
            what = _plain(str(error))[:60] if isinstance(error, AssertionError) else ""
            return text, f"{type(error).__name__} in {where} {what}".strip()
        if error is not None:
            message = str(error)
            faults = {
                "is not one printable line": not message.isprintable(),
                "is too long": len(message) > _LONGEST,
                "does not name the file": not any(name in message for name in names),
                "tells of memory that ran out": "MemoryError" in message,
            }
            for what, wrong in faults.items():
                if wrong:
                    return f"the message {what}: {message!r}", f"the message {what}: {_plain(message)[-60:]}"
        if cpu > CPU_SECONDS:
            return f"took {cpu:.1f} s ({error or 'accepted'})", f"slow: {_plain(str(error or 'accepted'))[-60:]}"
        return "", ""

    def _listen(self, event: str, arguments: tuple) -> None:
        if not self._active:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((flags or 0) & _WRITES)
            if isinstance(path, int) or self._inside(path) or path == os.devnull:
                return
            if not writes and (self._is_code(path) or not os.path.lexists(path)):
                return
            self._forbid(f"{'writes' if writes else 'reads'} {os.fsdecode(path)!r}")
        elif event in _CHANGES:
            for path in arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]:
                relative = event == "os.remove" and arguments[1] != -1 or event == "os.rmdir" and arguments[1] != -1
                if (
                    not isinstance(path, int) and not relative and not self._inside(path)
                ):  # relative: within a tree that is removed
                    self._forbid(f"{event} {os.fsdecode(path)!r}")
        elif event == "sqlite3.connect":
            if not self._inside(arguments[0]):
                self._forbid(f"{event} {arguments[0]!r}")
        elif event == "import":
            if arguments[1] is not None and not self._is_code(arguments[1]):  # the file of an extension module
                self._forbid(f"imports {arguments[1]!r}")
        elif event == "exec":
            code = arguments[0]
            if not (
                self._is_code(code.co_filename)
                or code.co_filename.startswith(("<string>", "<frozen", "<attrs", "<lambdify"))
            ):
                self._forbid(f"executes {code.co_filename!r}")
        elif event.startswith(_FORBIDDEN) and not self._by_a_library(event):
            self._forbid(f"{event} {arguments!r}"[:300])

    def _by_a_library(self, event: str) -> bool:
        """Late imports of modules load libraries and byte code; their own files only (see `import` and `open`)."""
        return event in ("ctypes.dlopen", "marshal.loads", "marshal.load", "code.__new__")

    def _forbid(self, what: str) -> None:
        self._seen.append(what)
        raise PermissionError(f"forbidden here: {what}")

    def _inside(self, path) -> bool:
        return _within(path, self.scratch)

    def _is_code(self, path) -> bool:
        full = os.path.realpath(os.fsdecode(path))
        return full.startswith((*self._code, "/proc/", "/sys/", "/usr/lib", "/lib", "/etc/ld.so"))


def _within(path, folder: str) -> bool:
    try:
        full = os.path.realpath(os.fsdecode(path))
    except ValueError:  # a null byte: the system refuses it
        return True
    return full == folder or full.startswith(folder + os.sep)


def _plain(text: str) -> str:
    """Without numbers and quoted parts: the same for the same fault."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|[-+\d.e]*\d[\d.e+-]*", "·", " ".join(text.split()))[:120]


def peak_memory() -> float:
    """Largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)
