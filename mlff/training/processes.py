"""The processes of one training: how they meet, notice that one is gone, and part.

JAX's own service connects them (`jax.distributed`). A process that ends while others wait for it in a sum over devices would
leave them waiting, so each looks every second whether all are alive; where one is not, the others end with a line.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import jax
import numpy as np

from mlff.basics.errors import ConfigError, MLFFError, ProcessError, printable

START = 120  #: s, how long a process waits for the others to start
HEARTBEAT = 30  #: s without a sign of life, after which a process counts as gone
_PERIOD = 1.0  #: s between looks at the others
_PARTING = 15.0  #: s that the first process, which the others depend on, waits for them to leave
_PREPARED = 3600  #: s that processes may take longer than others with data and evaluation
_STOPPED = "mlff/stopped"  #: key under which a process says why it stops
_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_LAUNCHERS = {"SLURM_NTASKS": "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK"}  #: those that JAX knows
AGAIN = "the same command goes on from the last checkpoint, also on fewer devices"


@contextmanager
def processes(devices: int | Literal["auto"]) -> Iterator[Group]:
    """Meet the other processes of this training in the block; a group of one where the environment names no others.

    `devices` (of the config): 1 meets nobody. Must come before JAX computes. Raises ConfigError: variables of the
    environment that are no numbers; ProcessError: JAX has computed before, or a process is gone in the course of a sum over devices. A
    process that cannot reach the others within `START`, or that loses one while it waits, ends with a line and exit code 1.
    """
    found = None if devices == 1 else _environment()
    if found is None or found[1] == 1:
        yield Group(0, 1)
        return
    group = _meet(*found)
    try:
        with warnings.catch_warnings():
            if not group.first:
                warnings.simplefilter("ignore")  # the first one tells them
            yield group
    except BaseException as error:
        told = group.leave(error)
        if told is error:
            raise
        raise told from error
    group.part()


class Group:
    """The processes of a training. The first one writes files and speaks, and its clock counts."""

    def __init__(self, index: int, count: int, client: Any = None):
        self.index, self.count, self._client = index, count, client
        self._ending = threading.Lock()  # held by whoever ends this process
        self._stopping = False  # all have agreed to
        self._barriers = itertools.count()
        if client is not None:
            threading.Thread(target=self._watch, daemon=True).start()

    @property
    def first(self) -> bool:
        return self.index == 0

    def agree(self, seconds: float, overhead: float, signal: int) -> tuple[float, float, int]:
        """The times (s) of the first process, and the largest signal that any has received; each process calls it."""
        if self.count == 1:
            return seconds, overhead, signal
        from jax.experimental.multihost_utils import process_allgather

        mine = np.array([seconds, overhead, signal]).view(np.uint32)  # as bits: JAX would round float64
        every = np.ascontiguousarray(process_allgather(mine)).view(np.float64)
        self._stopping = every[:, 2].any()
        return float(every[0, 0]), float(every[0, 1]), int(every[:, 2].max())

    def wait(self) -> None:
        """Until all have come to this point."""
        if self.count > 1:
            self._client.wait_at_barrier(f"mlff/{next(self._barriers)}", int(1e3 * _PREPARED))

    def part(self) -> None:
        """Leave after all have come to this point."""
        self.wait()
        self._ending.acquire(blocking=False)
        with suppress(Exception):
            self.wait()  # none leaves while another still looks for those that are gone
        self._disconnect()

    def leave(self, error: BaseException) -> BaseException:
        """Tell the others why this process stops, and leave; the error to raise: another one if a process is gone."""
        if self._stopping:  # all of them do
            self.part()
            return error
        if not self._ending.acquire(blocking=False):  # the other thread is ending the process
            time.sleep(2 * _PERIOD)
        if not isinstance(error, MLFFError) and any(name in str(error) for name in ("Gloo", "NCCL")):
            error = ProcessError(self._told() or f"another process of this training is gone; {AGAIN}")
        with suppress(Exception):
            text = printable(str(error) or type(error).__name__)
            self._client.key_value_set(_STOPPED, f"process {self.index} of {self.count} has stopped: {text}")
        self._disconnect()
        return error

    def _disconnect(self) -> None:
        """The first process goes last: JAX ends those that lose it."""
        until = time.monotonic() + _PARTING
        with suppress(Exception):
            while self.first and len(self._alive()) > 1 and time.monotonic() < until:
                time.sleep(0.1)
        with suppress(Exception):
            jax.distributed.shutdown()

    def _alive(self) -> dict:
        """The processes that are there; all of those call it."""
        return self._client.get_live_nodes(list(range(self.count)))

    def _told(self) -> str | None:
        """What a process that stops has said."""
        with suppress(Exception):
            return self._client.key_value_try_get(_STOPPED)
        return None

    def _watch(self) -> None:
        while not self._ending.locked():
            with suppress(Exception):  # the connection is gone: JAX itself ends the process
                there = self._alive()
                gone = [index for index in range(self.count) if index not in there]
                if told := self._told():
                    self._end(told)
                elif gone:
                    self._end(f"process {gone[0]} of {self.count} is gone; {AGAIN}")
            time.sleep(_PERIOD)

    def _end(self, text: str) -> None:
        """End this process, which may be waiting in a computation that never ends, unless it is ending by itself."""
        if self._ending.acquire(blocking=False):
            _die(text)


def _environment() -> tuple[int, int, dict] | None:
    """Index and number of processes, and what JAX must be told of them, from the environment; None: there are no others."""
    if address := os.environ.get(_ADDRESS):
        index, count = _number(_INDEX), _number(_COUNT)
        return index, count, {"coordinator_address": address, "num_processes": count, "process_id": index}
    for count, index in _LAUNCHERS.items():
        step = count != "SLURM_NTASKS" or "SLURM_STEP_NODELIST" in os.environ  # within srun, not in the script around it
        if step and count in os.environ and index in os.environ:
            return _number(index), _number(count), {}
    return None


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except (KeyError, ValueError):
        found = os.environ.get(name, "not set")
        raise ConfigError(f"{name}: {found}; with {_ADDRESS} it must be a number, see docs/guides/many_devices.md") from None


def _meet(index: int, count: int, options: dict) -> Group:
    """Connect to the others. Raises ConfigError, ProcessError."""
    if not 0 <= index < count:
        raise ConfigError(f"{_INDEX}: {index}; of {count} processes the numbers are 0 to {count - 1}")
    where = options.get("coordinator_address", "the address that the launcher gives")
    others = f"process 0 at {where}" if index else f"all of the {count - 1} others at {where}"
    text = (
        f"process {index} of {count} has not met {others} within {START} s: look whether each was started and hosts reach it"
    )
    late = threading.Timer(START, _die, [text])
    late.daemon = True
    late.start()
    jax.config.update("jax_enable_recoverability", True)  # or JAX ends the others with many lines
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=2 * START,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        raise ProcessError(
            f"JAX cannot join the processes of this training: {' '.join(str(error).split())[:200]}"
        ) from error
    finally:
        late.cancel()
    from jax._src.distributed import global_state  # what Orbax uses too; JAX has no public name for it

    return Group(index, count, global_state.client)


def _die(text: str) -> None:
    sys.stderr.write(f"error: {printable(text)}\n")
    sys.stderr.flush()
    os._exit(1)
