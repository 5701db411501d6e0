"""CIFAR-10's binary version: records of one label byte and 3,072 image bytes, nothing else.

An image is 32x32, three planes (red, green, blue) of 1,024 bytes, each row by row. Source: A. Krizhevsky, "Learning
Multiple Layers of Features from Tiny Images", 2009, and https://www.cs.toronto.edu/~kriz/cifar.html. The "python
version" of the set is a pickle, which runs whatever code its author put in: it is never opened.
"""

import hashlib
from pathlib import Path

import numpy as np

from minidl.data.dataset import Images, Labels, as_labels
from minidl.data.files import MAX_BYTES, opened
from minidl.errors import DataError

SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
CLASSES = 10
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)
RECORDS_IN_FILE = 10_000  # in each published file
BINARY_VERSION = 'minidl reads the binary version of CIFAR-10 ("cifar-10-binary.tar.gz")'


def read_batch(path: Path) -> tuple[Images, Labels, str]:
    """Images (n, 32, 32, 3) uint8, labels (n,) int64 and the file's SHA-256.

    Raises:
        DataError: the size is not a whole number of records, a label is above 9, or the file is a pickle.
    """
    with opened(path) as stream:
        opening = stream.read(2)
        if opening[:1] == b"\x80" and opening[1:] <= b"\5":  # a pickle begins with 80 and its protocol; no label is 128
            raise DataError(f"{path}: a pickle (the python version of the set), never opened; {BINARY_VERSION}")
        raw = opening + stream.read(records(path) * RECORD)
    table = np.frombuffer(raw, np.uint8).reshape(-1, RECORD)
    labels = as_labels(str(path), table[:, 0], CLASSES)
    planes = table[:, 1:].reshape(-1, 3, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels, hashlib.sha256(raw).hexdigest()


def records(path: Path) -> int:
    """How many records the file's size makes. Raises DataError unless it is a whole number above zero."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"{path}: {size:,} bytes, more than the {MAX_BYTES:,} that minidl reads; {BINARY_VERSION}")
    if size == 0 or size % RECORD:
        raise DataError(
            f"{path}: {size:,} bytes, expected a multiple of {RECORD:,} (one label and 32x32x3 pixels a record): "
            f"truncated or another format; {BINARY_VERSION}"
        )
    return size // RECORD


def python_version(folder: Path) -> bool:
    """Whether `folder` holds the pickled files, which bear the same names without .bin."""
    names = [name.removesuffix(".bin") for name in TRAIN_FILES + TEST_FILES]
    try:
        return any((folder / name).is_file() for name in names)
    except OSError:
        return False
