"""Opening a data file: what the operating system refuses becomes one line that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from minidl.errors import DataError

# No data set that minidl can train on needs more, and no file may make a reader allocate more.
MAX_BYTES = 4 * 2**30


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A binary stream on `path`.

    Raises:
        DataError: the file is missing, empty or cannot be read; also for a read that fails inside the `with` block.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: a folder or device, expected a file")
        stream = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise DataError(f"{path}: cannot be read ({_reason(error)})") from None
    with stream:
        try:
            if not stream.read(1):
                raise DataError(f"{path}: the file is empty; copy or download it again")
            stream.seek(0)
            yield stream
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({_reason(error)})") from None


def expanded(path: str | Path) -> Path:
    """`path` with a leading ~ or ~USER replaced by that home; as it is where there is none, as a shell does."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_file(path: Path) -> bool:
    """Whether `path` is a file; a folder that may not be entered holds none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
