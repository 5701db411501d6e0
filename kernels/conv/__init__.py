"""Convolution in two dimensions: forward and its three gradients; and of what a normalization makes of its input."""

from kernels.columns import bias_backward
from kernels.conv.host import conv2d_backward_input, conv2d_backward_weight, conv2d_forward
from kernels.conv.normalized import (
    conv2d_normalized_backward_input,
    conv2d_normalized_backward_weight,
    conv2d_normalized_forward,
)
from kernels.conv.normalized_reference import (
    conv2d_normalized_backward_input_reference,
    conv2d_normalized_backward_weight_reference,
    conv2d_normalized_forward_reference,
    conv2d_normalized_statistics_reference,
)
from kernels.conv.reference import (
    bias_backward_reference,
    conv2d_backward_input_reference,
    conv2d_backward_weight_reference,
    conv2d_forward_reference,
)

__all__ = [
    "bias_backward",
    "bias_backward_reference",
    "conv2d_backward_input",
    "conv2d_backward_input_reference",
    "conv2d_backward_weight",
    "conv2d_backward_weight_reference",
    "conv2d_forward",
    "conv2d_forward_reference",
    "conv2d_normalized_backward_input",
    "conv2d_normalized_backward_input_reference",
    "conv2d_normalized_backward_weight",
    "conv2d_normalized_backward_weight_reference",
    "conv2d_normalized_forward",
    "conv2d_normalized_forward_reference",
    "conv2d_normalized_statistics_reference",
]
