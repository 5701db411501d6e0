"""Functions of numbers that a kernel may call: Python's `math`, and what `libdevice` has twins of."""

import math
from typing import Any

import numpy as np
from numba.cuda import libdevice

from kernels.emulator import libdevice as twins

FUNCTIONS: dict[Any, Any] = dict(twins.FUNCTIONS)

# what CUDA's library calls by another name than Python's
_NAMES = {"fabs": "fabs", "gamma": "tgamma", "lgamma": "lgamma"}
_SAME = (
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "ceil", "copysign", "cos", "cosh", "erf", "erfc",
    "exp", "expm1", "fabs", "floor", "fmod", "gamma", "hypot", "lgamma", "log", "log10", "log1p", "log2", "pow",
    "sin", "sinh", "sqrt", "tan", "tanh", "trunc",
)  # fmt: skip


def _by_type(single: Any, double: Any) -> Any:
    def function(*arguments: Any) -> Any:
        return (single if arguments[0].dtype == np.float32 else double)(*arguments)

    return function


for _name in _SAME:
    _real = _NAMES.get(_name, _name)
    _single, _double = (twins.FUNCTIONS.get(getattr(libdevice, _real + end, None)) for end in ("f", ""))
    if hasattr(math, _name) and _single is not None and _double is not None:
        FUNCTIONS.setdefault(getattr(math, _name), _by_type(_single, _double))
