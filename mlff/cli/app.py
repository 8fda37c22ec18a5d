"""The application: commands register here; exceptions become one line on stderr and an exit code.

Exit code 0 only on success, 1 on an error, 2 on wrong usage, 130 after Ctrl-C, 143 after SIGTERM; with --debug a traceback.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import warnings

import typer
from typer.core import TyperGroup

from mlff.basics.errors import MLFFError
from mlff.basics.files import cannot_write
from mlff.basics.signals import Terminated, terminate

_ClickError = typer.BadParameter.__mro__[2]  # ClickException: typer carries its own copy of click from some version on


#: heading of --help -> commands, in the order of the work
PANELS = {
    "Data": ("lint", "info", "sample"),
    "Training": ("train", "finetune", "pretrain", "refine", "committee", "plasticity", "plot", "schema"),
    "Errors and limits": ("evaluate", "certify", "map"),
    "Structures and dynamics": ("predict", "relax", "md", "analyze", "free-energy", "design"),
    "Properties": ("vibrations", "phonons", "elastic", "eos", "neb"),
    "Other programs": ("export", "serve"),
}


class _Commands(TyperGroup):
    """Turns exceptions into one line and an exit code; lists the commands under `PANELS`."""

    def list_commands(self, ctx) -> list[str]:
        panels = {name: panel for panel, names in PANELS.items() for name in names}
        for name, command in self.commands.items():
            command.rich_help_panel = panels[name]
        return list(panels)

    def main(self, args=None, prog_name=None, standalone_mode: bool = True, **extra):
        args = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in args
        _replace_characters()
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, terminate) if main else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # for those who wrote the libraries, not for users
                warnings.showwarning = lambda message, *_: say("warning", str(message))
                code = super().main([arg for arg in args if arg != "--debug"], prog_name, standalone_mode=False, **extra)
            if code == 130:
                raise KeyboardInterrupt
            _flush()
        except _ClickError as error:
            code = _fail(error.format_message().replace("Value error, ", "").rstrip() + " (see --help)", 2)
        except Terminated as stopped:
            code = _fail("terminated", stopped.code)
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
            code = _fail(f"{error.filename}: {error.strerror}" if error.filename else str(_output_error(error)), 1)
        except Exception as error:
            if debug:
                raise
            code = _fail(f"unexpected {type(error).__name__}: {error} (the same command with --debug shows where)", 1)
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)
        sys.exit(code if isinstance(code, int) else 0)


def _replace_characters() -> None:
    """Print what the code page of the output has not as question marks, rather than fail after the work."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _flush() -> None:
    """Bring what was printed out; an output that is full is an error like any other, told once."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _output_error(error) from error


def _output_error(error: OSError) -> Exception:
    """An error of no file is one of the standard output, if it is one of writing."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains once more when it ends
    return cannot_write("standard output", error)


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
