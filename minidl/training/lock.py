"""A lock that one process at a time has on a run's folder; the system releases it when the process dies.

An advisory lock of the operating system on a file of its own (flock, on Windows LockFile). The file is removed with the
lock, so a run that nobody writes to holds none.
"""

import contextlib
import errno
import os
import sys
import weakref
from pathlib import Path

from minidl.errors import ConfigError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

NAME = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # what the systems say of a lock that another has
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class RunLock:
    """The right to write to a run's folder, from here until `release` or until this object is dropped.

    Attributes:
        held: False where the file system has no locks: writing is possible then, but nobody is kept from it.

    Raises:
        ConfigError: Another process, or another session of this one, is writing there; or the lock's file cannot be
            made.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / NAME
        try:
            descriptor = _locked(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
        if descriptor is None:
            raise ConfigError(
                f"{folder}: another process is training this run; wait for its end or stop it, or start a new run"
            )
        self.held = descriptor >= 0
        self.release = weakref.finalize(self, _release, path, descriptor, os.getpid())


def _locked(path: Path) -> int | None:
    """A descriptor of the file at `path` with the lock; None where another has it, -1 where there are no locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if sys.platform == "win32":
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had the lock may have removed the file after it was opened here: then this is the lock of nothing.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(descriptor)
            if error.errno in _TAKEN:
                return None
            if error.errno not in _NO_LOCKS:
                raise
            with contextlib.suppress(OSError):
                path.unlink()
            return -1
        os.close(descriptor)


def _release(path: Path, descriptor: int, process: int) -> None:
    if descriptor < 0 or process != os.getpid():  # a forked child has the descriptor, but the lock is its parent's
        return
    if sys.platform != "win32":  # removed before it is unlocked: whoever locks it next sees that it is gone
        with contextlib.suppress(OSError):
            path.unlink()
    os.close(descriptor)
    if sys.platform == "win32":  # which removes no open file
        with contextlib.suppress(OSError):
            path.unlink()
