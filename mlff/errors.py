"""The errors a user can cause: one line that names what, where and what to do.

The command line prints the message without a traceback; library users catch `MLFFError`.
"""


class MLFFError(Exception):
    """Base of every error that input can cause."""


class DataError(MLFFError):
    """A data file or a structure in it cannot be used."""


class ConfigError(MLFFError):
    """A configuration file or an option is wrong."""


class ModelFileError(MLFFError):
    """A model file or checkpoint cannot be used."""


class StructureError(DataError):
    """A structure given to a potential cannot be evaluated (unknown element, NaN, atoms on top of each other)."""


class TrainingError(MLFFError):
    """Training keeps diverging, whatever was tried."""


class FileError(MLFFError, OSError):
    """A file cannot be written: no space, no permission, a read-only disk. Nothing of what was there before is lost."""
