"""IDX, the format of MNIST and Fashion-MNIST: a big-endian header, then the bytes of one array.

    00 00 08 dd        two zeros, the element type (08: uint8), the number of dimensions
    size (uint32)      dd times
    elements           in C order

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits". The files are published gzipped;
whether one still is shows in its first two bytes, so names with and without .gz are read alike.
"""

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minidl.data.dataset import Images, Labels, as_labels, describe_shape
from minidl.data.files import MAX_BYTES, opened
from minidl.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
UINT8 = 0x08
DEFLATE_LIMIT = 1032  # one byte of a deflate stream yields at most so many (zlib's documentation)


class IdxFile(NamedTuple):
    """The array of one file, uint8, and the SHA-256 of the unpacked file, header included."""

    array: NDArray[np.uint8]
    sha256: str


def read_images(path: Path) -> tuple[Images, str]:
    """Images (n, h, w, 1) uint8 and the SHA-256 of the unpacked file. Raises DataError."""
    array, sha256 = read_idx(path, 3)
    return array[..., np.newaxis], sha256


def read_labels(path: Path, classes: int) -> tuple[Labels, str]:
    """Labels (n,) int64, each in 0..classes-1, and the SHA-256 of the unpacked file. Raises DataError."""
    array, sha256 = read_idx(path, 1)
    return as_labels(str(path), array, classes), sha256


def read_idx(path: Path, dimensions: int) -> IdxFile:
    """The uint8 array in `path`, gzipped or not, which must have so many dimensions.

    Memory is bounded by what the header promises, and that by MAX_BYTES and by what the file can hold at all.

    Raises:
        DataError: anything about the file is not as the format says.
    """
    with _unpacked(path) as (stream, capacity):
        header, sizes = _read_header(path, stream, dimensions)
        expected = math.prod(sizes)
        promise = f"its header promises {describe_shape(sizes)} = {expected:,} bytes of data"
        if expected == 0:
            raise DataError(f"{path}: {promise}, so it is empty; copy or download it again")
        if expected > MAX_BYTES:
            raise DataError(f"{path}: {promise}, more than the {MAX_BYTES:,} that minidl reads; the file is damaged")
        if expected + len(header) > capacity:
            raise DataError(f"{path}: truncated: {promise} and the file is too short; copy or download it again")
        payload = stream.read(expected + 1)
    if len(payload) < expected:
        raise DataError(f"{path}: truncated: {promise} and {len(payload):,} follow; copy or download it again")
    if len(payload) > expected:
        raise DataError(f"{path}: {promise} and more follow; expected the file to end there: it is damaged")
    digest = hashlib.sha256(header)
    digest.update(payload)
    return IdxFile(np.frombuffer(payload, np.uint8).reshape(sizes), digest.hexdigest())


def read_sizes(path: Path, dimensions: int) -> tuple[int, ...]:
    """The array's shape as the header has it; the data are not read. Raises DataError."""
    with _unpacked(path) as (stream, _):
        return _read_header(path, stream, dimensions)[1]


@contextmanager
def _unpacked(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A stream of the unpacked bytes, and an upper limit of how many there can be."""
    with opened(path) as stream:
        packed = stream.read(2) == GZIP_MAGIC
        size = stream.seek(0, 2)
        stream.seek(0)
        if not packed:
            yield stream, size
            return
        try:
            with gzip.GzipFile(fileobj=stream) as unzipped:
                yield unzipped, size * DEFLATE_LIMIT  # type: ignore[misc]  # GzipFile reads like any binary stream
        except EOFError:
            raise DataError(f"{path}: truncated: the gzip stream ends early; copy or download it again") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: the gzip stream is damaged ({error}); copy or download it again") from None


def _read_header(path: Path, stream: BinaryIO, dimensions: int) -> tuple[bytes, tuple[int, ...]]:
    """The header's bytes and the sizes in it."""
    magic = stream.read(4)
    wanted = bytes((0, 0, UINT8, dimensions))
    if magic != wanted:
        found = magic.hex(" ") or "nothing"
        raise DataError(f"{path}: {_what_is_wrong(magic, dimensions)}: expected {wanted.hex(' ')}, found {found}")
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(f"{path}: truncated inside the header; copy or download it again")
    return magic + sizes, tuple(np.frombuffer(sizes, ">u4").tolist())


def _what_is_wrong(magic: bytes, dimensions: int) -> str:
    contents = {1: "labels", 3: "images"}
    if len(magic) < 4 or magic[:2] != b"\0\0":
        return "not an IDX file, wrong magic number"
    if magic[2] != UINT8:
        return "an IDX file whose elements are not uint8"
    if magic[3] in contents:
        return f"an IDX file of {contents[magic[3]]}, not of {contents[dimensions]}"
    return f"an IDX file of {magic[3]} dimensions, not {dimensions}"
