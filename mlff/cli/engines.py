"""`mlff serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from mlff.basics.errors import ConfigError
from mlff.cli.app import app
from mlff.cli.options import AsPrecision, Frame, Length, Model, StructureFile, about, make_calculator, read_structure

_PORT = 31415


@app.command(epilog="Example: mlff serve runs/si/model.safetensors si.xyz --unix si")
def serve(
    model: Model,
    structure: StructureFile,
    unix: Annotated[
        str | None, typer.Option(help="name of a UNIX socket: i-PI's <address>, the file /tmp/ipi_NAME", show_default=False)
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="where the server is; no passwords, no encryption: another machine only in a network of your own",
            show_default="localhost",
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="port of the server", show_default=str(_PORT))] = None,
    frame: Frame = -1,
    length: Length = None,
    precision: AsPrecision = None,
) -> None:
    """Compute energies, forces and virials for i-PI, or another server of its protocol, until the server ends.

    STRUCTURE has the server's atoms in their order; its periodicity counts. A server that is not there is waited for, 10 s.
    """
    if unix is not None and (host is not None or port is not None):
        raise ConfigError("--unix is a socket of its own: leave out --host and --port")
    from mlff.interfaces.sockets import serve as answer

    atoms = read_structure(structure, frame, length)
    calculator = make_calculator(model, precision)
    with about(structure):
        count = answer(calculator, atoms, unix=unix, host=host or "localhost", port=port or _PORT)
    print(f"the server has ended after {count:,} structures")
