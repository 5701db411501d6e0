"""Errors that are the user's to mend: each is one line that says what is wrong and what to do."""


class MinidlError(Exception):
    """Base of them all. The command line prints the message alone and leaves with `exit_code`."""

    exit_code = 2


class ConfigError(MinidlError):
    """An option or a configuration file asks for something that cannot be."""


class DataError(MinidlError):
    """A data file is missing, damaged or not what its name says."""


class CheckpointError(MinidlError):
    """A checkpoint is missing, damaged or belongs to another model."""


class InteropError(MinidlError):
    """A model cannot go into, or come from, a file that other frameworks share."""


class DeviceError(MinidlError):
    """The device asked for cannot be used here."""


class NonFiniteError(MinidlError):
    """Training produced NaN or infinity and was stopped."""

    exit_code = 1


class ProcessDiedError(MinidlError):
    """A process that shared the work was killed from outside."""
