"""The application: commands register here; exceptions become one line on stderr and an exit code.

Exit code 0 only on success, 1 on an error, 2 on wrong usage, 130 after Ctrl-C; with --debug a traceback.
"""

from __future__ import annotations

import sys
import warnings

import typer
from typer.core import TyperGroup

from mlff.errors import MLFFError

_ClickError = typer.BadParameter.__mro__[2]  # ClickException: typer carries its own copy of click from some version on


class _Commands(TyperGroup):
    """Turns exceptions into one line and an exit code."""

    def main(self, args=None, prog_name=None, standalone_mode: bool = True, **extra):
        args = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in args
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_: say("warning", str(message))
                code = super().main([arg for arg in args if arg != "--debug"], prog_name, standalone_mode=False, **extra)
            if code == 130:
                raise KeyboardInterrupt
        except _ClickError as error:
            code = _fail(error.format_message().replace("Value error, ", "").rstrip() + " (see --help)", 2)
        except (KeyboardInterrupt, typer.Abort):
            code = _fail("interrupted", 130)
        except BrokenPipeError:
            sys.stderr.close()
            code = 1
        except MLFFError as error:
            if debug:
                raise
            code = _fail(str(error), 1)
        except OSError as error:
            if debug:
                raise
            code = _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
        except Exception as error:
            if debug:
                raise
            code = _fail(f"unexpected {type(error).__name__}: {error} (the same command with --debug shows where)", 1)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    say("error", message)
    return code


def say(what: str, message: str) -> None:
    """One line on stderr: `what: message`."""
    print(f"{what}: {' '.join(message.split())}", file=sys.stderr)


app = typer.Typer(
    cls=_Commands,
    name="mlff",
    help="Learn force fields from quantum-mechanical reference data and simulate with them. Units: eV, Å, fs, K, GPa.",
    epilog="Any command takes --debug: show the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
