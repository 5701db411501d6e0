"""npz: a zip archive of NumPy arrays, the way to train on images of one's own.

Arrays that minidl looks for; others in the file are ignored:

    train_images, test_images   (n, h, w) or (n, h, w, c) uint8, all of one size
    train_labels, test_labels   (n,) integers, 0 to classes - 1
    class_names                 (classes,) text, optional; without it the names are "0", "1", ... up to the last label

Written by `numpy.savez_compressed(path, train_images=..., ...)`. Sizes are checked in the archive's directory and in
each array's header before memory is taken, and pickled objects are never loaded.
"""

import hashlib
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from minidl.data.dataset import Dataset
from minidl.data.files import MAX_BYTES, opened
from minidl.errors import DataError

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
MAX_RATIO = 200  # an archive that expands more is taken for a zip bomb; real images expand two to twenty times
SMALL = 64 * 2**20  # bytes; below this any ratio is harmless
MAX_CLASSES = 10_000  # a label beyond is a mistake rather than a class


def read_npz(path: Path) -> Dataset:
    """The data set in `path`, named after it.

    Raises:
        DataError: the file is damaged, not an npz, oversized, or an array is missing or not as declared above.
    """
    arrays = read_arrays(path, ARRAYS, optional=("class_names",))
    if "class_names" in arrays:
        class_names = _class_names(f"{path}: class_names", arrays["class_names"])
    else:
        class_names = [str(number) for number in range(_count_classes(path, arrays))]
    return Dataset.from_arrays(
        path.stem,
        arrays["train_images"],
        arrays["train_labels"],
        arrays["test_images"],
        arrays["test_labels"],
        class_names,
        str(path),
    )


def read_arrays(path: Path, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """The named arrays of an npz file, of boolean, number or text type.

    Raises:
        DataError: see `read_npz`.
    """
    with opened(path) as stream:
        _check_opening(path, stream.read(6))
        try:
            with zipfile.ZipFile(stream) as archive:
                members = _directory(path, archive)
                missing = [name for name in required if name not in members]
                if missing:
                    raise DataError(
                        f"{path}: array {', '.join(missing)} is missing; expected {', '.join(required)}, "
                        f"found {_shown(members)}"
                    )
                wanted = [*required, *(name for name in optional if name in members)]
                return {name: _read_member(path, archive, name, members[name]) for name in wanted}
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
            reason = str(error) or "it ends early"
            raise DataError(f"{path}: the archive is truncated or damaged ({reason}); copy or write it again") from None
        except RuntimeError as error:  # a feature of zip that Python does not know
            raise DataError(f"{path}: cannot be unpacked ({error}); write it with numpy.savez_compressed") from None


def sha256(path: Path) -> str:
    """SHA-256 of the whole file, in hexadecimal."""
    with opened(path) as stream:
        digest = hashlib.sha256()
        while block := stream.read(2**20):
            digest.update(block)
        return digest.hexdigest()


def _check_opening(path: Path, opening: bytes) -> None:
    """Name the common mistakes, where NumPy would speak of pickles."""
    if opening == npy.MAGIC_PREFIX:
        raise DataError(f"{path}: a single array (npy), expected an npz with {', '.join(ARRAYS)}: use numpy.savez")
    if opening[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
        raise DataError(f"{path}: not an npz file: expected a zip archive, found bytes {opening[:4].hex(' ')}")


def _directory(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's arrays by name, once their sizes are known to be bearable."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if not info.filename.endswith(".npy"):
            continue
        name = info.filename.removesuffix(".npy")
        if info.flag_bits & 1:
            raise DataError(f"{path}: {_shown([name])} is encrypted; write it with numpy.savez_compressed")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"{path}: {_shown([name])} is compressed by method {info.compress_type}, expected 0 or 8 "
                "(stored or deflated); write it with numpy.savez_compressed"
            )
        if name in members:
            raise DataError(f"{path}: holds array {name!r} twice; write it again with numpy.savez_compressed")
        members[name] = info
    unpacked = sum(info.file_size for info in archive.infolist())
    packed = path.stat().st_size
    if unpacked > MAX_BYTES or (unpacked > SMALL and unpacked > MAX_RATIO * packed):
        raise DataError(
            f"{path}: {packed:,} bytes would unpack to {unpacked:,}; refused, as minidl reads at most {MAX_BYTES:,} "
            f"bytes and {MAX_RATIO} times the file's size"
        )
    return members


def _shown(names: Iterable[str]) -> str:
    """The first names of an archive, fit to stand in one line whatever is in them."""
    shown = [name if name.isprintable() and len(name) < 40 else ascii(name[:40]) for name in sorted(names)]
    return ", ".join(shown[:8] + ["..."] * (len(shown) > 8)) or "none"


def _read_member(path: Path, archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> NDArray[Any]:
    """One array: its header is read and believed only where it agrees with the archive's directory."""
    where = f"{path}: {name}"
    with archive.open(info) as stream:
        shape, columns_first, dtype = _read_npy_header(where, stream)  # type: ignore[arg-type]  # any binary stream
        if dtype.hasobject:
            raise DataError(f"{where} holds Python objects, which are never unpickled; expected an array of numbers")
        if dtype.kind not in "biufU" or dtype.subdtype is not None:
            raise DataError(f"{where} has dtype {dtype}, expected numbers or text")
        if len(shape) > 4:
            raise DataError(
                f"{where} has {len(shape)} dimensions, expected at most 4 (images, height, width, channels)"
            )
        expected = math.prod(shape) * dtype.itemsize
        left = info.file_size - stream.tell()
        if expected != left or min(shape, default=0) < 0:
            raise DataError(
                f"{where}: shape {shape} of {dtype} takes {expected:,} bytes and {left:,} follow its header"
            )
        raw = stream.read(expected)  # to the member's end, where zipfile compares its CRC
        if len(raw) != expected:
            raise DataError(f"{where} is truncated; copy or write the file again")
    if dtype.itemsize == 0:
        raise DataError(f"{where} has dtype {dtype}, which holds nothing")
    shape = tuple(int(size) for size in shape)  # a header may say True for 1
    array = np.frombuffer(raw, dtype)
    return array.reshape(shape[::-1]).T if columns_first else array.reshape(shape)


def _read_npy_header(where: str, stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether in Fortran order, dtype)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy only warns of headers that it has to mend
            version = npy.read_magic(stream)
            if version == (1, 0):
                return npy.read_array_header_1_0(stream)
            if version == (2, 0):
                return npy.read_array_header_2_0(stream)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise  # the archive's fault
    except Exception:  # the header is Python source, and NumPy passes on whatever its tokenizer and parser raise
        raise DataError(f"{where}: its npy header is damaged; write it again with numpy.savez_compressed") from None
    raise DataError(f"{where}: npy format {version[0]}.{version[1]}, expected 1.0 or 2.0")


def _class_names(where: str, names: NDArray[Any]) -> list[str]:
    """Names fit to be printed on one line each."""
    if names.dtype.kind != "U" or names.ndim != 1 or len(names) == 0:
        raise DataError(f"{where} has dtype {names.dtype} and shape {names.shape}, expected text, one name a class")
    codes = np.frombuffer(names.tobytes(), np.dtype(np.uint32).newbyteorder(names.dtype.byteorder))
    if codes.size == 0 or codes.max() > 0x10FFFF:
        raise DataError(f"{where} holds what is not text")
    texts = [str(name) for name in names]
    for number, text in enumerate(texts):
        if not text or not text.isprintable():
            raise DataError(f"{where}: name {number} is {text!r}, expected printable text")
    return texts


def _count_classes(path: Path, arrays: dict[str, NDArray[Any]]) -> int:
    """One more than the highest label; what is not an integer array is left to Dataset.from_arrays to refuse."""
    highest = 0
    for name in ("train_labels", "test_labels"):
        labels = arrays[name]
        if labels.dtype.kind in "ui" and labels.size:
            highest = max(highest, int(labels.max()))
    if highest >= MAX_CLASSES:
        raise DataError(
            f"{path}: a label is {highest:,}; expected labels from 0 up, below {MAX_CLASSES:,} "
            "(number the classes 0, 1, 2, ...)"
        )
    return highest + 1
