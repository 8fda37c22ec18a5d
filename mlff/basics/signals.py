"""Ctrl-C and SIGTERM: a loop that is asked to stop ends its step, saves, and only then gives way."""

from __future__ import annotations

import signal
import threading


class Terminated(SystemExit):
    """The process was asked to end (SIGTERM, from a queueing system or the machine's shutdown); exit code 143."""

    def __init__(self, *_):
        super().__init__(128 + signal.SIGTERM)


class Stop:
    """In the block the first Ctrl-C or SIGTERM asks to stop (`asked`, then raise `error()`), the second stops at once."""

    def __init__(self) -> None:
        self.signal = 0  #: that was received; 0: none
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    @property
    def asked(self) -> bool:
        return self.signal != 0

    def error(self) -> BaseException:
        """What to raise: KeyboardInterrupt or Terminated."""
        return stopped(self.signal)

    def _handle(self, number: int, frame) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def stopped(number: int) -> BaseException:
    """What a loop raises that was stopped by this signal: KeyboardInterrupt or Terminated."""
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def terminate(*_) -> None:
    """A handler of SIGTERM that lets temporary files be removed."""
    raise Terminated
