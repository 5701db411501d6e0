"""Checkpoints: named arrays and a JSON document in one safetensors file, written whole or not at all.

File        safetensors. Its `__metadata__` holds one string, `checkpoint`, a JSON document {"format", "version",
            "metadata", "sha256": {tensor: hash}, "document_sha256"}. A tensor's hash covers its dtype, shape and bytes,
            the last one the document itself, so that no bit of a file can change unseen (safetensors has no checksum).
            Equal contents give equal bytes.
Writing     to a temporary file beside the target, synced to the disk, read back and verified, then renamed over the
            target. A process or a machine that dies at any point leaves the old file or the new one.
Reading     verifies every hash. Nothing is ever unpickled.
"""

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import safetensors
import safetensors.numpy

from minidl.errors import CheckpointError
from minidl.training.atomic import sync_folder, temporary_file

FORMAT = "minidl"
VERSION = 1
LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"

_DTYPES = {np.dtype(t) for t in ("bool", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")}
_MAX_HEADER = 100_000_000  # bytes; the limit that safetensors itself sets


@dataclass(frozen=True)
class Checkpoint:
    """What a file held: arrays (C-contiguous, writable, shapes and dtypes as saved) and the metadata."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]


class _RejectedError(Exception):
    """Why a file is not a good checkpoint, without the file's name."""


def save(path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write a checkpoint at `path`, making its folder where there is none; an older file there is replaced.

    Args:
        path: The file. Two processes must not save to one path at the same time.
        tensors: Arrays of any shape and strides; bool, integers of 8 to 64 bits, float16, float32 or float64.
        metadata: What JSON can hold, with text as keys. Floats return bit for bit, NaN and infinities too; a tuple
            returns as a list.

    Raises:
        CheckpointError: The file cannot be written. An older file at `path` is left as it was.
        TypeError: A tensor or a piece of metadata is of a kind that the file cannot hold.
    """
    _store(Path(path), _encode(tensors, metadata))


def save_last(folder: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write `last.safetensors` in `folder`, and keep the one before it as `previous.safetensors`.

    At every instant one of the two is good: the new file is complete and verified before the old one is moved, and a
    damaged `last` never takes the place of a good `previous`. Arguments and errors are those of `save`.
    """
    folder = Path(folder)
    _store(folder / LAST, _encode(tensors, metadata), previous=folder / PREVIOUS)


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint and verify all of it.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it is not a checkpoint that this version reads.
    """
    try:
        return _read(Path(path))
    except _RejectedError as reason:
        raise CheckpointError(f"{path}: {reason}") from None


def load_latest(folder: str | Path) -> tuple[Checkpoint, str | None]:
    """Read `last.safetensors` in `folder` or, where that is damaged or missing, `previous.safetensors`.

    Returns:
        The checkpoint, and None or one line for the user that says why the older file was taken.

    Raises:
        CheckpointError: Neither file is good.
    """
    last, previous = Path(folder) / LAST, Path(folder) / PREVIOUS
    try:
        return _read(last), None
    except _RejectedError as error:
        fault = error
    try:
        return _read(previous), f"{last}: {fault}; continuing from {PREVIOUS}, the checkpoint before it"
    except _RejectedError as error:
        raise CheckpointError(f"{folder}: no good checkpoint ({LAST}: {fault}; {PREVIOUS}: {error})") from None


# Writing


def _store(path: Path, data: bytes, previous: Path | None = None) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_file(path, data) as temporary:
            _read(temporary)
            if previous is not None and _is_good(path):
                path.replace(previous)
            temporary.replace(path)
        sync_folder(path.parent)
    except _RejectedError as reason:
        raise CheckpointError(f"{path}: what was written does not read back ({reason}); nothing was replaced") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        raise CheckpointError(f"{path}: cannot be written: {_reason(error)}") from error


def _is_good(path: Path) -> bool:
    try:
        _read(path)
    except _RejectedError:
        return False
    return True


def _encode(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> bytes:
    arrays = {name: plain_array(name, array) for name, array in tensors.items()}
    _require_text_keys(metadata)
    document = json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "metadata": metadata,
            "sha256": {name: _hash(array) for name, array in arrays.items()},
        }
    )
    return safetensors.numpy.save(arrays, {"checkpoint": _sealed(document)})


def plain_array(name: str, array: np.ndarray) -> np.ndarray:
    """The array in C order and little-endian. safetensors 0.8.0 writes wrong bytes for any other strides, unasked."""
    if not isinstance(name, str) or name in ("", "__metadata__"):
        raise TypeError(f"a tensor's name must be non-empty text other than __metadata__, not {name!r}")
    if not isinstance(array, np.ndarray | np.generic):
        raise TypeError(f"tensor {name} must be a NumPy array, not {type(array).__name__}")
    dtype = array.dtype.newbyteorder("<")
    if dtype.newbyteorder("=") not in _DTYPES:
        raise TypeError(f"tensor {name} has dtype {array.dtype}, which a checkpoint cannot hold")
    # Not np.ascontiguousarray: it turns a 0-d array into shape (1,).
    plain = np.asarray(array, dtype=dtype, order="C")
    if not plain.flags.c_contiguous or plain.shape != array.shape:
        raise TypeError(f"tensor {name} cannot be brought into C order")
    return plain


def _require_text_keys(value: Any) -> None:
    """JSON would turn the key 1 into "1" without a word."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"metadata has the key {key!r}; keys must be text")
            _require_text_keys(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _require_text_keys(inner)


def _hash(array: np.ndarray) -> str:
    """SHA-256 of dtype, shape and bytes; `array` is C-contiguous."""
    digest = hashlib.sha256(f"{array.dtype.newbyteorder('<').str} {array.shape}\n".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _sealed(document: str) -> str:
    """A JSON object with its own hash as one more, last entry."""
    return f'{document[:-1]}, "document_sha256": "{hashlib.sha256(document.encode()).hexdigest()}"}}'


def _is_sealed(text: str) -> bool:
    return text.isascii() and text == _sealed(text[: -len(_sealed("{}")) + 1] + "}")


# Reading


def _read(path: Path) -> Checkpoint:
    """Raises _RejectedError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise _RejectedError("is a folder, not a checkpoint" if path.is_dir() else "is not a regular file")
        with path.open("rb") as file:
            header = _read_header(file, path.stat().st_size)
            document = _read_document(header)  # before a large foreign file is read whole
            file.seek(0)
            data = file.read()
    except FileNotFoundError:
        raise _RejectedError("no such file") from None
    except (OSError, ValueError) as error:
        raise _RejectedError(f"cannot be read: {_reason(error)}") from None
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:  # KeyError: a dtype that NumPy does not have
        raise _RejectedError(f"is damaged: {error}") from None
    hashes = document["sha256"]
    if tensors.keys() != hashes.keys():
        names = sorted(tensors.keys() ^ hashes.keys())
        raise _RejectedError(f"is damaged: tensors and hashes do not match ({', '.join(map(repr, names[:3]))})")
    for name, array in tensors.items():
        if _hash(array) != hashes[name]:
            raise _RejectedError(f"is damaged: the bytes of tensor {name!r} do not match their SHA-256")
    return Checkpoint({name: _writable(tensors[name]) for name in hashes}, document["metadata"])


def _read_header(file: BinaryIO, size: int) -> dict[str, Any]:
    """The JSON header of a safetensors file of `size` bytes."""
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if start[8:] != b"{" or length > _MAX_HEADER:
        pickled = start.startswith((b"PK\x03\x04", b"\x80"))
        kind = " (a PyTorch or pickle file? those are never opened)" if pickled else ""
        raise _RejectedError(f"is not a safetensors file{kind}" if size else "is empty")
    if 8 + length > size:
        raise _RejectedError(f"is damaged: truncated to {size} bytes, its header alone has {8 + length}")
    header = _parse(b"{" + file.read(length - 1))
    try:
        end = 8 + length + max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
        if end > size:
            raise _RejectedError(f"is damaged: truncated to {size} of {end} bytes")
    except (TypeError, LookupError):
        raise _RejectedError("is damaged: its header is not one of safetensors") from None
    return header


def _read_document(header: dict[str, Any]) -> dict[str, Any]:
    """The document in the header; its `metadata` and `sha256` are dicts."""
    strings = header.get("__metadata__")
    text = strings.get("checkpoint") if isinstance(strings, dict) else None
    if not isinstance(text, str):
        raise _RejectedError("is a safetensors file but not a minidl checkpoint")
    if not _is_sealed(text):
        raise _RejectedError("is damaged: its metadata do not match their SHA-256")
    document = _parse(text.encode())
    if document.get("format") != FORMAT:
        raise _RejectedError("is a safetensors file but not a minidl checkpoint")
    if document.get("version") != VERSION:
        raise _RejectedError(
            f"has checkpoint format version {document.get('version')}; this minidl reads version {VERSION}"
        )
    if not isinstance(document.get("metadata"), dict) or not isinstance(document.get("sha256"), dict):
        raise _RejectedError("is damaged: its document lacks metadata or hashes")
    return document


def _parse(data: bytes) -> dict[str, Any]:
    """JSON in which no key occurs twice (safetensors takes the last of equals, so a tensor could hide another)."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise _RejectedError("is damaged: its header has a key twice")
        return result

    def damaged(reason: object) -> NoReturn:
        raise _RejectedError(f"is damaged: its header is not JSON ({reason})") from None

    try:
        value = json.loads(data, object_pairs_hook=pairs)
    except UnicodeDecodeError:
        damaged("not UTF-8")
    except (ValueError, RecursionError) as error:
        damaged(error)
    if not isinstance(value, dict):
        damaged("not an object")
    return value


def _writable(array: np.ndarray) -> np.ndarray:
    return array if array.flags.writeable else array.copy()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
