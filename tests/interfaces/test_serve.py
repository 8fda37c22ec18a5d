"""`mlff serve`: a client of i-PI and of ASE's server, over both kinds of sockets; how it ends."""

import os
import signal
import socket
import threading
from contextlib import closing

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.socketio import IPIProtocol, SocketServer
from ase.io import write
from typer.testing import CliRunner

from mlff import MLFFCalculator
from mlff.basics.errors import ConfigError, StructureError
from mlff.cli import app
from mlff.interfaces import sockets
from tests.potentials import morse

NAME = f"mlff_test_{os.getpid()}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(sockets, "WAIT", 0.3)


@pytest.fixture
def port():
    with closing(socket.socket()) as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


class Served:
    """`serve` in a thread of its own: how many structures, or the error."""

    def __init__(self, atoms, **options):
        self.count = self.error = None
        self._thread = threading.Thread(target=self._run, args=(atoms, options))
        self._thread.start()

    def _run(self, atoms, options):
        try:
            self.count = sockets.serve(MLFFCalculator(morse(precision="float64")), atoms, **options)
        except Exception as error:  # noqa: BLE001  for the thread that asks
            self.error = error

    def wait(self):
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self


@pytest.mark.parametrize("kind", ["unix", "inet"])
def test_energies_forces_and_virials_reach_the_server(kind, port):
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=1)
    where = {"unix": NAME} if kind == "unix" else {"port": port}
    with closing(SocketServer(unixsocket=NAME) if kind == "unix" else SocketServer(port=port)) as server:
        served = Served(atoms, **where)
        for _ in range(3):
            atoms.rattle(0.05, seed=2)
            found = server.calculate(atoms)
            (expected,) = morse(precision="float64").predict([atoms])
            assert found["energy"] == pytest.approx(expected.energy, rel=1e-12)
            np.testing.assert_allclose(found["forces"], expected.forces, atol=1e-9)
            np.testing.assert_allclose(found["virial"], -expected.stress * atoms.get_volume(), atol=1e-9)
    assert served.wait().count == 3


def test_a_server_that_is_killed_ends_it_too(port):
    with closing(SocketServer(port=port)) as server:
        served = Served(molecule("H2O"), port=port)
        server.calculate(molecule("H2O"))
        server.clientsocket.shutdown(socket.SHUT_RDWR)
        assert served.wait().count == 1


def wrong_number(atoms):
    return atoms[:2]


def wrong_order(atoms):
    return atoms[::-1]


def not_finite(atoms):
    atoms.positions[1, 1] = np.nan
    return atoms


def on_top(atoms):
    atoms.positions[8] = atoms.positions[7]
    return atoms


@pytest.mark.parametrize(
    "change, message",
    [
        (wrong_number, "the server sent 2 atoms, the structure has 9"),
        (wrong_order, "bonded to other elements than in the structure"),
        (not_finite, "the server sent positions or a cell that are not finite"),
        (on_top, "are on top of each other"),
    ],
)
def test_what_the_server_sends_is_checked(port, change, message):
    with closing(SocketServer(port=port)) as server:
        served = Served(molecule("CH3CH2OH"), port=port)
        with pytest.raises(OSError):
            server.calculate(change(molecule("CH3CH2OH")))
    assert isinstance(served.wait().error, StructureError) and message in str(served.error)


def test_a_cell_that_changes_needs_a_virial(port):
    atoms = molecule("H2O", vacuum=3.0)
    with closing(SocketServer(port=port)) as server:
        served = Served(atoms, port=port)
        server.calculate(atoms)
        atoms.set_cell(atoms.cell * 1.01)
        with pytest.raises(OSError):
            server.calculate(atoms)
    assert "the server changes the cell" in str(served.wait().error)


def test_another_protocol_is_one_line(port):
    with closing(socket.create_server(("localhost", port))) as server:
        served = Served(molecule("H2O"), port=port)
        with closing(server.accept()[0]) as there:
            IPIProtocol(there).sendmsg("HTTP/1.1 OK")
            assert isinstance(served.wait().error, ConfigError) and "does not speak the protocol" in str(served.error)


@pytest.fixture
def folder(tmp_path):
    morse(precision="float64").save(tmp_path / "m.safetensors")
    write(tmp_path / "water.xyz", molecule("H2O"))
    return tmp_path


def call(folder, *options):
    return CliRunner().invoke(app, ["serve", str(folder / "m.safetensors"), str(folder / "water.xyz"), *options])


def test_the_command_serves_i_pi(folder):
    pytest.importorskip("ipi", reason="i-PI is not installed: pip install '.[ipi]'")
    from mlff.interfaces.ipi import write_folder
    from tests.interfaces.servers import changed, simulation, socket_of

    write_folder(morse(precision="float64"), "model", folder / "run", molecule("H2O"), beads=2)
    results = []
    with simulation(folder / "run", changed(folder / "run", socket_of(NAME), ("10000 </total", "20 </total"))) as run:
        client = threading.Thread(target=lambda: results.append(call(folder, "--unix", NAME)))
        client.start()
        run.run()
    client.join(30)
    assert results[0].exit_code == 0, results[0].stderr
    assert "the server has ended after 42 structures\n" in results[0].stdout


@pytest.mark.parametrize(
    "options, message",
    [
        (["--unix", "nobody"], "/tmp/ipi_nobody: no server answers (No such file or directory); start i-PI first"),
        (["--port", "1"], "localhost:1: no server answers (Connection refused)"),
        (["--unix", "a", "--port", "1"], "--unix is a socket of its own"),
        (["--unix", "a", "--host", "b"], "--unix is a socket of its own"),
    ],
)
def test_no_server_is_one_line(folder, options, message):
    result = call(folder, *options)
    assert result.exit_code == 1 and message in result.stderr and result.stderr.count("\n") == 1


def test_elements_are_checked_before_a_server_is_looked_for(folder):
    write(folder / "water.xyz", bulk("Fe"))
    assert "Fe, which this potential does not know" in call(folder, "--unix", "nobody").stderr


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it(folder, monkeypatch, number, code):
    def interrupted(self):
        signal.raise_signal(number)

    monkeypatch.setattr(IPIProtocol, "recvmsg", interrupted)
    with closing(SocketServer(unixsocket=NAME)):
        result = call(folder, "--unix", NAME)
    assert result.exit_code == code and result.stderr.count("\n") == 1
