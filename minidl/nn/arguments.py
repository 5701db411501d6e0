"""Checks of what layers are made with: the message names layer, argument and value."""

import operator
from numbers import Real
from typing import Any

import numpy as np

from minidl.backends import Pair


def whole_number(layer: object, name: str, value: Any) -> int:
    """`value` as an int. Raises TypeError unless it is a whole number by its type: 2.0 is none."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{type(layer).__name__}: {name} must be a whole number, got {value!r}") from None


def whole_pair(layer: object, name: str, value: Any) -> Pair:
    """One whole number for height and width, or a tuple or list of both, as a pair. Raises TypeError."""
    try:
        height, width = value if isinstance(value, tuple | list) else (value, value)
        return operator.index(height), operator.index(width)
    except (TypeError, ValueError):
        raise TypeError(f"{type(layer).__name__}: {name} must be one or two whole numbers, got {value!r}") from None


def real_number(layer: object, name: str, value: Any) -> Any:
    """`value` as it is. Raises TypeError unless it is a real number by its type (NaN and infinity are)."""
    if not isinstance(value, Real):
        raise TypeError(f"{type(layer).__name__}: {name} must be a number, got {value!r}")
    return value


def is_count(value: Any) -> bool:
    """Whether a number in a saved state, whatever its dtype, is a whole one of at least 0."""
    number = np.asarray(value)
    return number.shape == () and number.dtype.kind in "biuf" and bool(0 <= number < 2**63 and number == number // 1)
