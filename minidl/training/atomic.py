"""Whole files, or none: what is written here is on the disk before it takes its name.

The recipe is a temporary file in the target's own folder, written, flushed, synced, renamed over the target, and the
folder synced. A reader, a killed process or a power cut sees the old file or the new one, never a part.
"""

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Make or replace the file at `path`. Permissions follow the umask, as for any new file. Raises OSError."""
    with temporary_file(path, data) as temporary:
        temporary.replace(path)
    sync_folder(path.parent)


@contextlib.contextmanager
def temporary_file(path: Path, data: bytes) -> Iterator[Path]:
    """A synced file beside `path` that holds `data`; removed at the end unless it was renamed. Raises OSError."""
    _sweep(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system can (Windows cannot open a folder)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such operation
            raise
    finally:
        os.close(descriptor)


def _sweep(path: Path) -> None:
    """Remove the temporaries of `path` that killed processes left; each path has one writer at a time."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    with contextlib.suppress(OSError):
        for entry in list(path.parent.iterdir()):
            if ours.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    entry.unlink()
