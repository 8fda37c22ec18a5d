"""The potential as a client of a program that moves the atoms, over the socket protocol of i-PI."""

from __future__ import annotations

import time

import ase
import numpy as np
from ase.calculators.socketio import IPIProtocol, SocketClient, SocketClosed, actualunixsocketname

from mlff.basics.errors import ConfigError, StructureError
from mlff.data.structure import Structure
from mlff.interfaces.ase import MLFFCalculator
from mlff.interfaces.order import check_order

PORT = 31415  #: where i-PI listens unless it is told otherwise
WAIT = 10.0  #: seconds to wait for a server that is not there yet
_PAUSE = 0.2


class _Protocol(IPIProtocol):
    """The protocol as ASE has it, and checks of what the server sends."""

    def __init__(self, socket, atoms: ase.Atoms):
        super().__init__(socket)
        self._atoms, self._cell = atoms, None  # the structure, whose positions are not known yet

    def recvposdata(self):
        try:
            cell, inverse, positions = super().recvposdata()
        except AssertionError:
            raise StructureError("the server sent positions or a cell that are not finite") from None
        if len(positions) != len(self._atoms):
            raise StructureError(f"the server sent {len(positions)} atoms, the structure has {len(self._atoms)}")
        if self._cell is None:
            check_order(self._atoms, positions, cell, "the structure")
            self._cell = cell
        if not self._atoms.pbc.all() and not np.allclose(cell, self._cell, atol=1e-6):
            raise StructureError(
                "the server changes the cell, but the structure is not periodic in three directions and has no virial: "
                "use an ensemble of constant volume"
            )
        return cell, inverse, positions


def serve(
    calculator: MLFFCalculator,
    atoms: ase.Atoms,
    *,
    unix: str | None = None,
    host: str = "localhost",
    port: int = PORT,
) -> int:
    """Answer a server's questions for energy, forces and virial until it ends; how many it had.

    `atoms`: the structure, its atoms in the order of the server's; its periodicity counts. `unix`: the name of a socket, the
    file /tmp/ipi_NAME; else `host` and `port`. A server that is not there is waited for, for 10 seconds. Whoever controls the
    server gets energies and forces and nothing else, but the protocol knows neither passwords nor encryption.

    Raises ConfigError: no server, or one of another kind; StructureError: another number or order of atoms, positions that are
    not finite, a cell that changes where there is no virial, what the calculator refuses.
    """
    calculator.potential.check(Structure.from_atoms(atoms))
    atoms = atoms.copy()
    atoms.calc = calculator
    client = _connect(unix, host, port)
    client.protocol = _Protocol(client.protocol.socket, atoms)
    count = 0
    try:
        for _ in client.irun(atoms, use_stress=bool(atoms.pbc.all())):
            count += 1
    except (ConnectionError, SocketClosed):  # the server is gone, in the middle of a word
        pass
    except (KeyError, UnicodeDecodeError) as error:
        raise ConfigError(f"the server does not speak the protocol of i-PI: {error}") from None
    finally:
        client.close()
    return count


def _connect(unix: str | None, host: str, port: int) -> SocketClient:
    where = actualunixsocketname(unix) if unix is not None else f"{host}:{port}"
    end = time.monotonic() + WAIT
    while True:
        try:
            return SocketClient(host=host, port=port, unixsocket=unix)
        except OSError as error:
            if time.monotonic() >= end:
                reason = error.strerror or str(error)
                raise ConfigError(
                    f"{where}: no server answers ({reason}); start i-PI first, with this address in its input"
                ) from None
            time.sleep(_PAUSE)
