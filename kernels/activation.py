"""ReLU: y = max(x, 0); backward dx = dy where y > 0, else 0.

Shapes   x, y, dy, dx: equal shapes, any number of axes.
Edges    NaN passes through forward, and where y is NaN backward passes dy; the slope at 0 is 0 (PyTorch's rules).
Source   V. Nair, G. Hinton, "Rectified linear units improve restricted Boltzmann machines", ICML 2010.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def relu_forward_reference(x: Array) -> Array:
    """y: x where it is positive or NaN, else 0."""
    return np.where((x > 0) | np.isnan(x), x, 0)


def relu_backward_reference(dy: Array, y: Array) -> Array:
    """dx: 0 where forward's output y <= 0, else dy."""
    return np.where(y <= 0, 0, dy)
