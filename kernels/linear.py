"""Linear layer: y = x @ w.T + bias.

    dx = dy @ w
    dw = dy.T @ x
    db = the sum of dy's rows (`bias_backward_reference` of kernels/conv)

Shapes   x, dx (n, c_in); w, dw (c_out, c_in), PyTorch's layout; bias (c_out,) or None; y, dy (n, c_out).
Work     2 * n * c_in * c_out floating-point operations each.
Traffic  each reads its two factors and writes its result once, by the definition (kernels/matmul/tiled.py).
Edges    NaN and infinity follow the sums: a row of x with a NaN makes its row of y NaN. No rows: y and dx are empty,
         dw = 0.

All three are one kernel, the matrix product of kernels/matmul/tiled.py with one factor transposed or none. It takes all
sizes at run time, so every linear layer of a network runs the same few specialisations. With precision "tf32", or
technique "tensor_core", it is computed on tensor cores (kernels/matmul/tensor_core.py), if the factors' lines are
multiples of 4. Layers of at most 16 outputs have kernels of their own, exact in any precision: technique "skinny"
(kernels/matmul/skinny.py), if c_in is a multiple of 4. Those move x once, which takes tensor cores no less time.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.errors import ShapeError
from kernels.launch import Array as DeviceArray
from kernels.launch import Runner, techniques
from kernels.matmul import product
from kernels.matmul import skinny_launch as skinny

Array = NDArray[Any]


@np.errstate(invalid="ignore", over="ignore")
def linear_forward_reference(x: Array, w: Array, bias: Array | None) -> Array:
    """The output y (n, c_out)."""
    y = x @ w.T
    return y if bias is None else y + bias


@np.errstate(invalid="ignore", over="ignore")
def linear_backward_input_reference(dy: Array, w: Array) -> Array:
    """The gradient dx (n, c_in)."""
    return dy @ w


@np.errstate(invalid="ignore", over="ignore")
def linear_backward_weight_reference(x: Array, dy: Array) -> Array:
    """The gradient dw (c_out, c_in)."""
    return dy.T @ x


@techniques("plain", "tiled", "skinny", "tensor_core")
def linear_forward(
    run: Runner,
    x: DeviceArray,
    w: DeviceArray,
    bias: DeviceArray | None,
    y: DeviceArray,
    *,
    technique: str | None = None,
    precision: str = "fp32",
) -> None:
    """Launch on `run`. Raises ShapeError unless the shapes are those above; TechniqueError."""
    _check("linear_forward", x=x, w=w, y=y)
    if bias is not None and tuple(bias.shape) != (w.shape[0],):
        raise ShapeError(f"linear_forward: bias has shape {tuple(bias.shape)}, expected {(w.shape[0],)}")
    few = skinny.option(w.shape[0], w.shape[1], x=x, w=w), lambda: skinny.forward(run, x, w, bias, y)
    product(run, x, w, bias, y, False, True, technique, precision, "linear_forward", ("x", "w", "y"), few)


@techniques("plain", "tiled", "skinny", "tensor_core")
def linear_backward_input(
    run: Runner,
    dy: DeviceArray,
    w: DeviceArray,
    dx: DeviceArray,
    *,
    technique: str | None = None,
    precision: str = "fp32",
) -> None:
    """Launch on `run`. Raises ShapeError unless the shapes are those above; TechniqueError."""
    _check("linear_backward_input", dx=dx, w=w, dy=dy)
    few = skinny.option(w.shape[0], w.shape[1], w=w, dx=dx), lambda: skinny.backward_input(run, dy, w, dx)
    product(run, dy, w, None, dx, False, False, technique, precision, "linear_backward_input", ("dy", "w", "dx"), few)


@techniques("plain", "tiled", "skinny", "tensor_core")
def linear_backward_weight(
    run: Runner,
    x: DeviceArray,
    dy: DeviceArray,
    dw: DeviceArray,
    *,
    technique: str | None = None,
    precision: str = "fp32",
) -> None:
    """Launch on `run`. Raises ShapeError unless the shapes are those above; TechniqueError."""
    _check("linear_backward_weight", x=x, dw=dw, dy=dy)
    few = skinny.option(dw.shape[0], dw.shape[1], x=x, dw=dw), lambda: skinny.backward_weight(run, x, dy, dw)
    product(run, dy, x, None, dw, True, False, technique, precision, "linear_backward_weight", ("dy", "x", "dw"), few)


def _check(operation: str, **arrays: DeviceArray) -> None:
    """Raise ShapeError unless input (n, c_in), weights (c_out, c_in) and output (n, c_out), by name, fit each other."""
    (x_name, x), (w_name, w), (y_name, y) = ((name, tuple(array.shape)) for name, array in arrays.items())
    if len(x) != 2:
        raise ShapeError(f"{operation}: {x_name} has shape {x}, expected (n, c_in)")
    if len(w) != 2 or w[1] != x[1]:
        raise ShapeError(f"{operation}: {w_name} has shape {w}, expected (c_out, {x[1]}) as {x_name} is {x}")
    if y != (x[0], w[0]):
        raise ShapeError(f"{operation}: {y_name} has shape {y}, expected {(x[0], w[0])} for {x_name} {x}, {w_name} {w}")
