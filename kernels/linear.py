"""Linear layer: y = x @ w.T + bias.

    dx = dy @ w
    dw = dy.T @ x
    db = the sum of dy's rows (`bias_backward_reference` of kernels/conv)

Shapes   x, dx (n, c_in); w, dw (c_out, c_in), PyTorch's layout; bias (c_out,) or None; y, dy (n, c_out).
Work     2 * n * c_in * c_out floating-point operations each.
Edges    NaN and infinity follow the sums: a row of x with a NaN makes its row of y NaN. No rows: y and dx are empty,
         dw = 0.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
