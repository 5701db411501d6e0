"""Convolution in two dimensions: forward and its three gradients."""

from kernels.columns import bias_backward
from kernels.conv.host import conv2d_backward_input, conv2d_backward_weight, conv2d_forward
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
]
