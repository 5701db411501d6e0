"""Pooling: the maximum or the average of a sliding window, the average of a whole image, and their gradients."""

from kernels.pooling.average import avg_pool2d_backward, avg_pool2d_forward
from kernels.pooling.global_average import global_avg_pool2d_backward, global_avg_pool2d_forward
from kernels.pooling.maximum import max_pool2d_backward, max_pool2d_forward
from kernels.pooling.normalized import max_pool2d_normalized_backward, max_pool2d_normalized_forward
from kernels.pooling.normalized_reference import (
    max_pool2d_normalized_backward_reference,
    max_pool2d_normalized_forward_reference,
)
from kernels.pooling.reference import (
    avg_pool2d_backward_reference,
    avg_pool2d_forward_reference,
    global_avg_pool2d_backward_reference,
    global_avg_pool2d_forward_reference,
    max_pool2d_backward_reference,
    max_pool2d_forward_reference,
)

__all__ = [
    "avg_pool2d_backward",
    "avg_pool2d_backward_reference",
    "avg_pool2d_forward",
    "avg_pool2d_forward_reference",
    "global_avg_pool2d_backward",
    "global_avg_pool2d_backward_reference",
    "global_avg_pool2d_forward",
    "global_avg_pool2d_forward_reference",
    "max_pool2d_backward",
    "max_pool2d_backward_reference",
    "max_pool2d_forward",
    "max_pool2d_forward_reference",
    "max_pool2d_normalized_backward",
    "max_pool2d_normalized_backward_reference",
    "max_pool2d_normalized_forward",
    "max_pool2d_normalized_forward_reference",
]
