"""Machine code of the CPU kernels on disk, between runs: Numba's cache, made sure of.

Numba tells stale code by the file of the function alone, though code from other files is inlined into it; and what it
finds it takes for sound, so a damaged file ends in a traceback, or in LLVM's abort. Here the stamp covers all that the
machine code follows from, files carry a checksum, and a cache that cannot be used is as good as none.
"""

import contextlib
import functools
import hashlib
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

from kernels.fingerprint import UncacheableError, fingerprint

Key = tuple[Any, ...]  # Numba's: signature, processor, bytecode


class Cache(FunctionCache):  # type: ignore[misc]
    """What Numba asks for machine code, and gives it to."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Raises RuntimeError where no folder can be written to."""
        super().__init__(function)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, function)

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The compiled function, or None."""
        try:
            return super().load_overload(signature, target)
        except Exception:  # whatever is wrong with what lies there, compiling anew mends it
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Keep it, if that can be done."""
        with contextlib.suppress(OSError):
            super().save_overload(signature, compiled)


class _Files(IndexDataCacheFile):  # type: ignore[misc]
    """The files of one function: an index of what was compiled for which signature, and a file for each.

    Each begins with a checksum of what it is for and what it contains: an index with the function's stamp, machine code
    with its key as well. So neither a damaged file nor one that another process has just replaced is ever taken.
    """

    def __init__(self, folder: str, base: str, function: Callable[..., Any]) -> None:
        super().__init__(folder, base, None)
        self._function = function

    @functools.cached_property
    def stamp(self) -> str | None:
        """Of all that the machine code follows from; taken at the first call, when all of that exists."""
        try:
            return fingerprint(self._function, numba.__version__, llvmlite.__version__)
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
        checksum, data = content[:32], content[32:]
        return data if checksum == self._checksum(data, key) else None

    def _write(self, path: str, data: bytes, *key: Key) -> None:
        with self._open_for_write(path) as file:
            file.write(self._checksum(data, key) + data)

    def _checksum(self, data: bytes, key: tuple[Key, ...]) -> bytes:
        return hashlib.sha256(repr((self.stamp, key)).encode() + data).digest()
