"""A line of the table of counts, and the arrays that its call works on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kernels.batch_statistics import BatchStatistics
from kernels.run_emulated import EmulatorRunner

Array = Any
Call = Callable[[EmulatorRunner], Any]
SLACK = 0.05  # for what is small beside the arrays: partial sums, parameters, tables


class Line(NamedTuple):
    """A launch that stands for a kernel."""

    kernel: str  # name of its factory
    shape: str  # of what it works on
    call: Call
    limit: float = 1 + SLACK  # bytes moved over those of the cost
    why: str = ""  # the limit is more than that


def ones(*shape: int, dtype: Any = np.float32) -> Array:
    """An array; what is counted depends on no number in it."""
    return np.ones(shape, dtype)


def statistics(*shape: int) -> BatchStatistics:
    """Of channels, or of samples and groups."""
    return BatchStatistics(*(ones(*shape) for _ in range(4)))
