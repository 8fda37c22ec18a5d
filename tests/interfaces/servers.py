"""i-PI in this process, and what it is given."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import ipi.utils.softexit as softexits
import pytest
from ipi.engine.simulation import Simulation
from ipi.utils.softexit import softexit

from mlff.interfaces.ipi import INPUT


def changed(folder: Path, *changes: tuple[str, str]) -> str:
    """The input in a folder with regular expressions replaced, each of which must be there, and nothing printed."""
    text = (folder / INPUT).read_text(encoding="utf-8")
    for what, by in (("verbosity='medium'", "verbosity='quiet'"), *changes):
        text, count = re.subn(what, by, text, flags=re.DOTALL)
        assert count, what
    return text


@contextlib.contextmanager
def simulation(folder: Path, text: str) -> Iterator[Simulation]:
    """i-PI at the start of a run, in its folder; signals and threads are afterwards what they were."""
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # i-PI's own
        patch.setattr(softexits, "SOFTEXITLATENCY", 0.02)
        try:
            yield Simulation.load_from_xml(text)
        finally:
            softexit.cleanup("success")
            softexit.reset()


def socket_of(address: str) -> tuple[str, str]:
    """A change of the input: forces through a UNIX socket."""
    there = f"<ffsocket mode='unix' name='mlff'> <address> {address} </address> <latency> 1e-4 </latency> </ffsocket>"
    return "<ffdirect.*</ffdirect>", there
