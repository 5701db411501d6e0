"""Convolution of what a normalization makes of its input: the definition in NumPy.

In a chain of convolutions, normalizations and ReLUs each convolution reads the output x of the one before it as that
left it ("raw"), and normalizes it on the way in. With a the activation that `before` makes of x (x itself where there
is no `before`), conv the convolution of kernels/conv/reference.py, without a bias, and dy a pending gradient:

    y    = conv(a, w)                and of each channel of y its statistics, for the normalization behind
    dw   = the weight gradient of conv at (a, dx of dy)
    g    = the input gradient of conv at (dx of dy), where before's ReLU passed; 0 elsewhere
    sums = of g and x: what backward of `before` finds in its first pass

The padding's zeros are of a and of dx, which are what is convolved: they are not normalized.

Shapes   x, a, g (n, h, w, c_in); y, and the arrays of a pending gradient, (n, ho, wo, c_out); w, dw (kh, kw, c_in,
         c_out); before's arrays and the sums (c_in,).
Edges    Those of the three products and of batch normalization (kernels/batchnorm/reference.py). No images: y and g are
         empty, dw = 0; statistics need at least one row.
Source   The composition of kernels/conv/reference.py and kernels/batchnorm/reference.py; normalization in the load and
         its sums in the epilogue: W. Jung et al., "Restructuring Batch Normalization to Accelerate CNN Training", 2018,
         arXiv:1807.01702.
"""

from typing import Any

from numpy.typing import NDArray

from kernels import batchnorm
from kernels.activation import relu_backward_reference
from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from kernels.conv.reference import (
    Shape4,
    conv2d_backward_input_reference,
    conv2d_backward_weight_reference,
    conv2d_forward_reference,
)
from kernels.window import Pair

Array = NDArray[Any]


def activation_reference(x: Array, before: Normalization | None) -> Array:
    """What `before` makes of x; x where there is none."""
    if before is None:
        return x
    return batchnorm.batchnorm_apply_reference(x, before.statistics, before.gamma, before.beta, before.relu)


def conv2d_normalized_forward_reference(
    x: Array, before: Normalization | None, w: Array, stride: Pair, padding: Pair
) -> Array:
    """The output y (n, ho, wo, c_out), not normalized."""
    return conv2d_forward_reference(activation_reference(x, before), w, None, stride, padding)


def conv2d_normalized_statistics_reference(y: Array, eps: float) -> BatchStatistics:
    """Those that forward gives beside y, which has at least one row."""
    return batchnorm.batchnorm_statistics_reference(y, eps)


def conv2d_normalized_backward_weight_reference(
    x: Array, before: Normalization | None, dy: PendingGradient, dw_shape: Shape4, stride: Pair, padding: Pair
) -> Array:
    """The gradient dw, of shape `dw_shape`."""
    given = batchnorm.batchnorm_pending_gradient_reference(dy)
    return conv2d_backward_weight_reference(activation_reference(x, before), given, dw_shape, stride, padding)


def conv2d_normalized_backward_input_reference(
    dy: PendingGradient,
    w: Array,
    dx_shape: Shape4,
    stride: Pair,
    padding: Pair,
    x: Array | None,
    before: Normalization | None,
) -> tuple[Array, GradientSums | None]:
    """(g, sums); without `before` (dx, None). x is given where `before` is."""
    given = batchnorm.batchnorm_pending_gradient_reference(dy)
    dx = conv2d_backward_input_reference(given, w, dx_shape, stride, padding)
    if x is None or before is None:
        return dx, None
    if before.relu:
        dx = relu_backward_reference(dx, activation_reference(x, before))
    return dx, batchnorm.batchnorm_gradient_sums_reference(x, dx, before._replace(relu=False))
