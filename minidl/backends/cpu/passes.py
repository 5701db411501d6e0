"""The passes over memory of normalization on the CPU, as expressions; see vectors.py for what becomes of them.

With centred = (x - shift) - delta: an activation is centred * scale + beta, and its positive part behind a ReLU;
g is the gradient of the normalization's output, which behind a ReLU is that of the activation, masked.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from minidl.backends.cpu.machine_code import built, caller, once
from minidl.backends.cpu.vectors import SIGNATURE, Numbers, Pass, Value, define

SHIFT, DELTA, SCALE, BETA, MEAN_G, SLOPE = range(6)  # rows of parameters
WIDE = 128  # numbers that belong to channels are repeated to at least so many


def _centred(at: Numbers) -> Value:
    return (at.a - at.parameters(SHIFT)) - at.parameters(DELTA)


def _normalized(at: Numbers) -> Value:
    """Forward's value; backward repeats it to see the sign that ReLU saw, so both round alike."""
    return _centred(at) * at.parameters(SCALE) + at.parameters(BETA)


def _activation(at: Numbers) -> Value:
    y = _normalized(at)
    return y.where_positive(y)


def _masked(at: Numbers) -> Value:
    return _normalized(at).where_positive(at.b)


def _added(at: Numbers) -> Value:
    y = _normalized(at) + at.b
    return y.where_positive(y)


def _gradient(at: Numbers, g: Value) -> Value:
    """Scale * (g - mean(g) - x̂ * mean(g * x̂)), with x̂ = centred * inv_std."""
    return at.parameters(SCALE) * ((g - at.parameters(MEAN_G)) - _centred(at) * at.parameters(SLOPE))


def _products(at: Numbers, g: Value) -> tuple[Value, Value]:
    return g, g * _centred(at)


def _squares(at: Numbers) -> tuple[Value, Value]:
    d = at.a - at.parameters(SHIFT)
    return d, d * d


def _elementwise(name: str, reads: str, expression: Callable[[Numbers], Value], around: bool = False) -> Pass:
    return Pass(name, reads, lambda at: (expression(at), ()), around=around)


PASSES = (
    _elementwise("copy", "a", lambda at: at.a),
    _elementwise("normalize", "a", _normalized),
    _elementwise("normalize_relu", "a", _activation),
    _elementwise("gradient", "ab", lambda at: _gradient(at, at.b)),
    _elementwise("gradient_relu", "ab", lambda at: _gradient(at, _masked(at))),
    _elementwise("normalize_add_relu", "ab", _added),
    _elementwise("scale", "a", lambda at: at.parameters(SCALE) * at.a),
    _elementwise("mask_and_scale", "ab", lambda at: at.parameters(SCALE) * _masked(at)),
    Pass("sum_shifted", "a", lambda at: (None, _squares(at)), sums=True),
    Pass("sum_gradients", "ab", lambda at: (None, _products(at, at.b)), sums=True),
    Pass("sum_gradients_relu", "ab", lambda at: (None, _products(at, _masked(at))), sums=True),
    Pass("mask_and_sum_gradients", "ab", lambda at: (g := _masked(at), _products(at, g)), sums=True),
    Pass(
        "mask_by_output_and_sum_gradients",
        "abc",
        lambda at: (g := at.c.where_positive(at.b), _products(at, g)),
        sums=True,
    ),
    _elementwise("normalize_around", "a", _normalized, True),
    _elementwise("normalize_relu_around", "a", _activation, True),
    _elementwise("gradient_around", "ab", lambda at: _gradient(at, at.b), True),
    _elementwise("gradient_relu_around", "ab", lambda at: _gradient(at, _masked(at)), True),
)
NAMES = tuple(made.name for made in PASSES)
(
    COPY,
    NORMALIZE,
    NORMALIZE_RELU,
    GRADIENT,
    GRADIENT_RELU,
    NORMALIZE_ADD_RELU,
    SCALED,
    MASK_AND_SCALE,
    SUM_SHIFTED,
    SUM_GRADIENTS,
    SUM_GRADIENTS_RELU,
    MASK_AND_SUM,
    MASK_BY_OUTPUT_AND_SUM,
    NORMALIZE_AROUND,
    NORMALIZE_RELU_AROUND,
    GRADIENT_AROUND,
    GRADIENT_RELU_AROUND,
) = range(len(PASSES))

_PROTOTYPE = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 6)


@built(NAMES)
def _addresses() -> ir.Module:
    module = ir.Module("minidl.passes")
    for made in PASSES:
        define(module, made)
    return module


@once
def _built() -> tuple[np.ndarray, list[Any]]:
    """The table, and the same for Python."""
    return np.array(_addresses(), np.int64), [_PROTOTYPE(address) for address in _addresses()]


def pass_table() -> np.ndarray:
    """Addresses of the passes, by their numbers; built at the first call."""
    return _built()[0]


def repeats(channels: int) -> int:
    """How often what belongs to channels is repeated."""
    return max(1, WIDE // max(1, channels))


def run_pass(first: int, last: int, which: int, width: int, parameters: int, *places: int) -> None:
    """Numbers first to last of flat arrays, by their addresses: a, b, c and y. Releases the GIL."""
    a, b, c, y = (place + 4 * first for place in places)
    _built()[1][which](last - first, width, a, b, c, parameters, y, 0)


@intrinsic
def call_pass(
    typing: Any,
    address: Any,
    count: Any,
    width: Any,
    a: Any,
    a_start: Any,
    b: Any,
    b_start: Any,
    c: Any,
    c_start: Any,
    parameters: Any,
    parameters_start: Any,
    y: Any,
    y_start: Any,
    z: Any,
    z_start: Any,
) -> Any:
    """Call a pass of the table from a kernel; arrays are contiguous float32, each with the element to begin with."""
    n = types.intp
    return types.void(n, n, n, a, n, b, n, c, n, parameters, n, y, n, z, n), caller(SIGNATURE)
