"""Machine code of the CPU kernels on disk, between runs: Numba's cache, made sure of, and what lies beside it.

Numba tells stale code by the file of the function alone, though code from other files is inlined into it; and what it
finds it takes for sound, so a damaged file ends in a traceback, or in LLVM's abort. Here the stamp covers all that the
machine code follows from, files carry a checksum, and a cache that cannot be used is as good as none.
"""

import contextlib
import functools
import hashlib
import itertools
import pickle
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

from kernels.fingerprint import UncacheableError, fingerprint
from minidl.backends.compilation import COMPILATION

Key = tuple[Any, ...]  # Numba's: signature, processor, bytecode


class Cache(FunctionCache):  # type: ignore[misc]
    """What Numba asks for machine code, and gives it to."""

    def __init__(self, function: Callable[..., Any], **options: object) -> None:
        """`options` are those that it is compiled with. Raises RuntimeError where no folder can be written to."""
        super().__init__(function)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, function, options)

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The compiled function, or None."""
        try:
            return super().load_overload(signature, target)
        except Exception:  # whatever is wrong with what lies there, compiling anew mends it
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep it, if that can be done."""
        try:
            super().save_overload(signature, compiled)
        except OSError as error:
            COMPILATION.problem = f"{self.cache_path}: {error.strerror or error}"


class Kept(NamedTuple):
    """Where machine code is kept.

    Attributes:
        folder: NUMBA_CACHE_DIR, else beside the source, else the user's cache folder; the first that can be written
            to. None where none can: each process compiles for itself then.
        problem: What is wrong with it, or None.
        remedy: What to do about that.
    """

    folder: str | None
    problem: str | None = None
    remedy: str = ""


def kept() -> Kept:
    """Where machine code of the CPU kernels is kept from now on."""
    try:
        folder = Cache(kept).cache_path
    except RuntimeError:
        remedy = "set NUMBA_CACHE_DIR to a folder that can be written to"
        return Kept(None, "no folder can be written to: each start compiles anew, some seconds", remedy)
    wanted = numba.config.CACHE_DIR
    if wanted and not Path(folder).is_relative_to(wanted):
        remedy = "set NUMBA_CACHE_DIR to a folder that can be written to, or unset it"
        return Kept(folder, f"{folder}, as NUMBA_CACHE_DIR ({wanted}) cannot be written to", remedy)
    return Kept(folder)


def through_disk(name: str, stamp: str, make: Callable[[], bytes]) -> bytes:
    """What `make` gives: that of an earlier process, if it left it under this name and stamp; else kept for later ones.

    Without a folder that can be written to it is made each time.
    """
    folder = kept().folder
    if folder is None:
        return make()
    path = Path(folder) / name
    try:
        found = _unsealed(path.read_bytes(), stamp)
    except OSError:
        found = None
    if found is not None:
        return found
    made = make()
    temporary = path.with_name(f"{name}.tmp.{secrets.token_hex(8)}")  # replaced in one step: nobody reads a part of it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(_sealed(made, stamp))
        temporary.replace(path)
    except OSError as error:
        COMPILATION.problem = f"{folder}: {error.strerror or error}"
        with contextlib.suppress(OSError):
            temporary.unlink()
    return made


def _sealed(data: bytes, *facts: object) -> bytes:
    """The data behind a checksum of them and of what they are for."""
    return hashlib.sha256(repr(facts).encode() + data).digest() + data


def _unsealed(content: bytes, *facts: object) -> bytes | None:
    """The data; None where they are damaged or for something else."""
    data = content[32:]
    return data if content == _sealed(data, *facts) else None


class _Files(IndexDataCacheFile):  # type: ignore[misc]
    """The files of one function: an index of what was compiled for which signature, and a file for each.

    Each begins with a checksum of what it is for and what it contains: an index with the function's stamp, machine code
    with its key as well. So neither a damaged file nor one that another process has just replaced is ever taken.
    """

    def __init__(self, folder: str, base: str, function: Callable[..., Any], options: dict[str, object]) -> None:
        super().__init__(folder, base, None)
        self._function, self._options = function, options

    @functools.cached_property
    def stamp(self) -> str | None:
        """Of all that the machine code follows from; taken at the first call, when all of that exists."""
        try:
            return fingerprint(self._function, self._options, numba.__version__, llvmlite.__version__)
        except UncacheableError:
            return None

    def load(self, key: Key) -> Any:
        """What was saved under the key, or None."""
        name = self._load_index().get(key)
        data = self._read(self._data_path(name), key) if name else None
        return None if data is None else pickle.loads(data)

    def save(self, key: Key, data: Any) -> None:
        """Raises OSError."""
        if self.stamp is None:
            COMPILATION.problem = f"{self._function.__qualname__}: it cannot be told when it changes"
            return
        index = self._load_index()
        if key not in index:
            names = map(self._data_name, itertools.count(1))
            index[key] = next(name for name in names if name not in index.values())
            self._save_index(index)
        self._write(self._data_path(index[key]), self._dump(data), key)

    def _load_index(self) -> dict[Key, str]:
        data = self._read(self._index_path)
        return {} if data is None else pickle.loads(data)

    def _save_index(self, index: dict[Key, str]) -> None:
        self._write(self._index_path, self._dump(index))

    def _read(self, path: str, *key: Key) -> bytes | None:
        """What a file contains; None if that is damaged, stale or not there."""
        if self.stamp is None:
            return None
        try:
            content = Path(path).read_bytes()
        except OSError:
            return None
        return _unsealed(content, self.stamp, key)

    def _write(self, path: str, data: bytes, *key: Key) -> None:
        with self._open_for_write(path) as file:
            file.write(_sealed(data, self.stamp, key))
