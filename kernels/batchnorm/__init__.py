"""Batch normalization: statistics of a batch, their use, the gradients and the running estimates.

In the order to read them: reference.py (the definition), split.py (which thread has which rows and channels), held.py,
merging.py, statistics.py, partial_statistics.py, apply.py, running.py; backward: adding.py, gradient_sums.py,
masked_sums.py, partial_gradients.py, input_gradient.py, passes.py, backward.py; then what does the same in one launch
where a batch fits on the chip: residency.py, persistent.py, forward.py, resident_gradients.py, persistent_backward.py,
persistent_residual.py.
"""

from kernels.batch_statistics import BatchStatistics
from kernels.batchnorm.apply import batchnorm_add_relu_apply, batchnorm_apply
from kernels.batchnorm.backward import batchnorm_add_relu_backward, batchnorm_backward
from kernels.batchnorm.forward import batchnorm_forward
from kernels.batchnorm.partial_gradients import merge_gradient_sums
from kernels.batchnorm.partial_statistics import merge_statistics
from kernels.batchnorm.passes import (
    batchnorm_add_relu_gradient_sums,
    batchnorm_gradient_sums,
    batchnorm_pending_gradient,
)
from kernels.batchnorm.reference import (
    batchnorm_add_relu_apply_reference,
    batchnorm_add_relu_backward_reference,
    batchnorm_add_relu_gradient_sums_reference,
    batchnorm_apply_reference,
    batchnorm_backward_reference,
    batchnorm_forward_reference,
    batchnorm_gradient_sums_reference,
    batchnorm_pending_gradient_reference,
    batchnorm_running_statistics_reference,
    batchnorm_statistics_reference,
    batchnorm_update_running_reference,
    cumulative_weight_reference,
)
from kernels.batchnorm.running import batchnorm_running_statistics, batchnorm_update_running, cumulative_weight
from kernels.batchnorm.statistics import batchnorm_statistics

__all__ = [
    "BatchStatistics",
    "batchnorm_add_relu_apply",
    "batchnorm_add_relu_apply_reference",
    "batchnorm_add_relu_backward",
    "batchnorm_add_relu_backward_reference",
    "batchnorm_add_relu_gradient_sums",
    "batchnorm_add_relu_gradient_sums_reference",
    "batchnorm_apply",
    "batchnorm_apply_reference",
    "batchnorm_backward",
    "batchnorm_backward_reference",
    "batchnorm_forward",
    "batchnorm_forward_reference",
    "batchnorm_gradient_sums",
    "batchnorm_gradient_sums_reference",
    "batchnorm_pending_gradient",
    "batchnorm_pending_gradient_reference",
    "batchnorm_running_statistics",
    "batchnorm_running_statistics_reference",
    "batchnorm_statistics",
    "batchnorm_statistics_reference",
    "batchnorm_update_running",
    "batchnorm_update_running_reference",
    "cumulative_weight",
    "cumulative_weight_reference",
    "merge_gradient_sums",
    "merge_statistics",
]
