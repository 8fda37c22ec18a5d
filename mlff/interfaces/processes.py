"""The end of all MPI processes when one of them cannot go on: the others would wait for it for ever."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from mlff.basics.errors import MLFFError


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """What is raised within becomes one line on stderr and the end of all processes, with exit code 1."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        from mpi4py import MPI

        end_all(MPI.COMM_WORLD, error)


def end_all(comm, error: BaseException) -> None:
    """Say in one line what is wrong and end the processes of `comm`, of mpi4py; one process alone by SystemExit."""
    text = " ".join(str(getattr(error, "message", error)).split()) or type(error).__name__
    if not (isinstance(error, MLFFError) or text.startswith("ERROR")):  # the latter is how LAMMPS says it
        text = f"{type(error).__name__}: {text}"
    print(f"error: {text}", file=sys.stderr, flush=True)
    if comm.size > 1:
        comm.Abort(1)
    sys.exit(1)
