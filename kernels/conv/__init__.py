"""Convolution in two dimensions: forward and its three gradients."""

from kernels.conv.reference import (
    bias_backward_reference,
    conv2d_backward_input_reference,
    conv2d_backward_weight_reference,
    conv2d_forward_reference,
)

__all__ = [
    "bias_backward_reference",
    "conv2d_backward_input_reference",
    "conv2d_backward_weight_reference",
    "conv2d_forward_reference",
]
