"""Max pooling of what a normalization makes of its input: the definition in NumPy.

At the end of a chain of convolutions and normalizations pooling reads the last convolution's output x as that left it.
With a the activation that `before` makes of x, and max the pooling of kernels/pooling/reference.py:

    y, index = max(a)
    g        = the input gradient of max at (dy, index), where before's ReLU passed; 0 elsewhere
    sums     = of g and x: what backward of `before` finds in its first pass

Shapes   x, g (n, h, w, c); y, dy, index (n, ho, wo, c); before's arrays and the sums (c,).
Edges    Those of max pooling, whose padding is none of a, and of batch normalization (kernels/batchnorm/reference.py).
         Behind a ReLU many elements of a window are 0: the first of them wins, and its gradient is 0 all the same. A
         NaN passes ReLU. No images: y and g are empty and the sums 0.
Source   The composition of kernels/pooling/reference.py and kernels/batchnorm/reference.py.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.activation import relu_backward_reference
from kernels.batch_statistics import GradientSums, Normalization
from kernels.batchnorm.reference import batchnorm_apply_reference, batchnorm_gradient_sums_reference
from kernels.pooling.reference import Shape4, max_pool2d_backward_reference, max_pool2d_forward_reference
from kernels.window import Pair

Array = NDArray[Any]


def max_pool2d_normalized_forward_reference(
    x: Array,
    before: Normalization,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Array, NDArray[np.int32]]:
    """(y, index)."""
    return max_pool2d_forward_reference(_activation(x, before), kernel, stride, padding, dilation, ceil_mode)


def max_pool2d_normalized_backward_reference(
    dy: Array,
    index: NDArray[np.int32],
    dx_shape: Shape4,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool,
    x: Array,
    before: Normalization,
) -> tuple[Array, GradientSums]:
    """(g, sums); g has shape `dx_shape`, that of x."""
    g = max_pool2d_backward_reference(dy, index, dx_shape, kernel, stride, padding, dilation, ceil_mode)
    if before.relu:
        g = relu_backward_reference(g, _activation(x, before))
    return g, batchnorm_gradient_sums_reference(x, g, before._replace(relu=False))


def _activation(x: Array, before: Normalization) -> Array:
    return batchnorm_apply_reference(x, before.statistics, before.gamma, before.beta, before.relu)
