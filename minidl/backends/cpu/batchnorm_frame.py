"""Frames of batch normalization on the CPU: what a call works on, as batchnorm_vectors.py reads it.

What follows from the shape alone is worked out once and kept.
"""

import ctypes
import functools
import os
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from minidl.backends.cpu.batchnorm_loops import CHUNK
from minidl.backends.cpu.batchnorm_stage import ARRAYS, FRAME, SLOTS, WORK
from minidl.backends.cpu.compile import compiled
from minidl.backends.cpu.machine_code import I64, caller
from minidl.backends.cpu.passes import PASSES, WIDE, pass_table, repeats

AROUND = 1 << 21  # bytes; a result of fewer is kept in the cache, where whoever reads it finds it
SCATTERED, SCATTERED_AFTER = 1 << 21, 1 << 24  # bytes; so many are not in the cache before the sums, or after them
FETCHED = 1 << 19  # bytes that a chunk may have to be fetched into the cache as a whole
PIECE = 1 << 15  # numbers; a piece of work for a thread
(X, DY, C, G, Y, GAMMA, BETA, SHIFT, DELTA, VAR, INV_STD, DGAMMA, DBETA, MEAN_G, SLOPE, FOUND, PARAMETERS) = range(
    ARRAYS
)
EPS = SLOTS.index("eps")
SPARE, SPARES = DGAMMA, 4  # dgamma and dbeta, where nobody asks for them, mean_g and slope


class Plan(NamedTuple):
    """Of a shape.

    Attributes:
        frame: What does not depend on where the arrays are; in place of addresses of memory for intermediate results,
            how many bytes from the beginning of that they are.
        scratch: How many numbers the intermediate results are.
        ones, zeros: For channels that have no scale or offset.
        pieces: Of work, at most.
    """

    frame: np.ndarray
    scratch: int
    ones: np.ndarray
    zeros: np.ndarray
    pieces: int


def _yield_address() -> int:
    """Of the system's function that lets another thread run, 0 where there is none of that name."""
    if os.name != "posix":
        return 0
    found = getattr(ctypes.CDLL(None), "sched_yield", None)
    return 0 if found is None else int(ctypes.cast(found, ctypes.c_void_p).value or 0)


@functools.lru_cache(256)
def plan(size: int, channels: int, eps: float, passes: tuple[int, int, int | None]) -> Plan:
    """Of `size` numbers of so many channels, by these passes: of sums, and then either, the last around the caches."""
    addresses = [0 if which is None else int(pass_table()[which]) for which in passes]
    reads = len(PASSES[passes[0]].reads)
    rows, width = size // channels, channels * repeats(channels)
    chunks, row = -(-rows // CHUNK), -(-channels // 16) * 16  # rows begin where a cache line does
    piece = channels * max(16, PIECE // channels // 16 * 16)
    parameters = -(-3 * chunks * channels // 16) * 16
    spare = parameters + -(-6 * width // 16) * 16
    names = "rows", "channels", "width", "chunk", "chunks", "count", "piece", "parameters", "chunks_together"
    values = rows, channels, width, CHUNK, chunks, size, piece, 4 * parameters, max(1, PIECE // channels // CHUNK)
    numbers = dict(zip(names, values, strict=True)) | dict(zip(("sum", "apply", "around"), addresses, strict=True))
    numbers |= {SLOTS[SPARE + i]: 4 * (spare + i * row) for i in range(SPARES)}
    numbers["give_way"] = _yield_address()
    if 4 * size < AROUND or width % 16:
        numbers["around"] = 0
    wide = width > WIDE and 4 * CHUNK * channels * reads <= FETCHED
    numbers["scattered"] = int(wide and 4 * size * reads >= SCATTERED)
    numbers["scattered_after"] = int(wide and 4 * size * reads >= SCATTERED_AFTER)
    frame = np.zeros(FRAME, np.int64)
    for name, number in numbers.items():
        frame[SLOTS.index(name)] = number
    frame.view(np.float64)[EPS] = eps
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    pieces = -(-chunks // numbers["chunks_together"])
    return Plan(frame, spare + SPARES * row, ones, zeros, pieces)


@intrinsic
def _address(typing: Any, array: Any) -> Any:
    """Of the first element of a contiguous array."""
    if array.layout != "C":
        raise TypingError(f"an array of layout {array.layout} is not contiguous")

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, b, args[0]).data
        return b.ptrtoint(data, I64)

    return types.intp(array), generate


@intrinsic
def _call_work(typing: Any, address: Any, first: Any, last: Any, frame: Any) -> Any:
    """Call a function `work`."""
    n = types.intp
    return types.void(n, n, n, n), caller(WORK)


@compiled
def work(first: int, last: int, address: int, frame: np.ndarray) -> None:
    """Go through what `frame` says."""
    _call_work(address, first, last, _address(frame))


@compiled
def place(frame, x, dy, c, g, y, gamma, beta, shift, delta, var, inv_std, dgamma, dbeta, scratch):
    """Put the arrays' addresses into a frame; of those that are `scratch` itself, their place in it."""
    here = _address(scratch)
    frame[X], frame[DY], frame[C], frame[G], frame[Y] = _address(x), _address(dy), _address(c), _address(g), _address(y)
    frame[GAMMA], frame[BETA], frame[SHIFT], frame[DELTA] = (
        _address(gamma),
        _address(beta),
        _address(shift),
        _address(delta),
    )
    frame[VAR], frame[INV_STD] = _address(var), _address(inv_std)
    frame[DGAMMA] = here + frame[DGAMMA] if _address(dgamma) == here else _address(dgamma)
    frame[DBETA] = here + frame[DBETA] if _address(dbeta) == here else _address(dbeta)
    for slot in (MEAN_G, SLOPE, FOUND, PARAMETERS):
        frame[slot] += here
