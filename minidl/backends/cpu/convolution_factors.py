"""What a convolution on the CPU multiplies, and what it does with a tile of the result while that is in the cache."""

from typing import NamedTuple

import numpy as np

from minidl.backends.cpu.convolution_windows import NO_PASS
from minidl.backends.cpu.passes import COPY

NOTHING = np.empty(0, np.float32)
NO_PARAMETERS = np.empty((6, 1 << 12), np.float32)  # of passes that read none, but go by their width


class Source(NamedTuple):
    """Where the numbers of a factor come from: `how` of the passes, the arrays it reads, and `parameters`."""

    how: int
    x: np.ndarray
    dy: np.ndarray
    parameters: np.ndarray


class After(NamedTuple):
    """What `multiply_windows` does after a tile, from `after` to `sums`."""

    what: int
    before: np.ndarray
    of_before: np.ndarray
    width: int
    starts: np.ndarray
    firsts: np.ndarray
    sums: np.ndarray


NO_CHUNKS = np.empty(0, np.int64)
NO_SUMS = After(NO_PASS, NOTHING, NOTHING, 0, NO_CHUNKS, NO_CHUNKS, np.empty((3, 0, 0), np.float32))


def as_it_is(x: np.ndarray) -> Source:
    """An array that holds the numbers themselves."""
    return Source(COPY, x, NOTHING, NO_PARAMETERS)


def is_finite(w: np.ndarray) -> bool:
    """All of it."""
    return not w.size or bool(np.isfinite(w.min()) and np.isfinite(w.max()))  # both of a NaN are NaN
