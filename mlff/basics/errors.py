"""The errors a user can cause: one line that names what, where and what to do.

The command line prints the message without a traceback; library users catch `MLFFError`.
"""

_LONGEST = 2000  # characters of a message


class MLFFError(Exception):
    """Base of every error that input can cause. As text it is one printable line, whatever a file has put into it."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """One line without control characters (they could steer a terminal) and of bounded length."""
    line = " ".join(text.split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    return line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class DataError(MLFFError):
    """A data file or a structure in it cannot be used."""


class ConfigError(MLFFError):
    """A configuration file or an option is wrong."""


class ModelFileError(MLFFError):
    """A model file or checkpoint cannot be used."""


class StructureError(DataError):
    """A structure given to a potential cannot be evaluated (unknown element, NaN, atoms on top of each other)."""


class CompilerError(MLFFError):
    """What XLA compiles computes wrong numbers on this machine."""


class ProcessError(MLFFError):
    """JAX cannot compute in this process, forked from one that had used JAX; or another process of a training is gone."""


class TrainingError(MLFFError):
    """Training keeps diverging, whatever was tried."""


class FileError(MLFFError, OSError):
    """A file cannot be written: no space, no permission, a read-only disk. Nothing of what was there before is lost."""
