"""Atomic updates: lanes one after the other, in ascending order."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[Any]


def update(data: Vector, operation: str, index: Vector, values: Sequence[Vector]) -> Vector:
    """Apply an operation to data[index] for each lane in turn; lanes with one index see each other's results.

    Args:
        data: Flat; written in place.
        operation: "add", "sub", "max", "min", "exch", "cas" (values: expected, new), "and", "or", "xor", "inc", "dec".
        index: One a lane, in bounds.
        values: Operands, one vector each.

    Returns:
        What each lane found.
    """
    combine = _OPERATIONS[operation]
    values = [value if value.dtype == data.dtype else value.astype(data.dtype) for value in values]
    if len(index) == 1 or len(np.unique(index)) == len(index):
        old = data.take(index)
        data[index] = combine(old, *values)
        return old
    # the k-th lane of those with the same index comes in round k
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    start = np.maximum.accumulate(np.where(first, np.arange(len(index)), 0))
    round_of = np.empty(len(index), np.int64)
    round_of[order] = np.arange(len(index)) - start
    by_round = np.argsort(round_of, kind="stable")
    ends = np.cumsum(np.bincount(round_of))
    old = np.empty(len(index), data.dtype)
    for lanes in np.split(by_round, ends[:-1]):
        at = index[lanes]
        found = data.take(at)
        old[lanes] = found
        data[at] = combine(found, *(value[lanes] for value in values))
    return old


def _unless_nan(function: Any) -> Any:
    """As Numba's loops of compare-and-swap do it: a NaN, on either side, is never replaced nor put in place."""

    def combine(old: Vector, value: Vector) -> Vector:
        if old.dtype.kind != "f":
            return function(old, value)
        return np.where(np.isnan(value) | np.isnan(old), old, function(old, value))

    return combine


_OPERATIONS: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "max": _unless_nan(np.maximum),
    "min": _unless_nan(np.minimum),
    "nanmax": np.fmax,
    "nanmin": np.fmin,
    "exch": lambda _, value: value,
    "cas": lambda old, expected, new: np.where(old == expected, new, old),
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "inc": lambda old, limit: np.where(old >= limit, 0, old + np.ones_like(old)),
    "dec": lambda old, limit: np.where((old == 0) | (old > limit), limit, old - np.ones_like(old)),
}  # fmt: skip
