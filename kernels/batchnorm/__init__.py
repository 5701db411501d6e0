"""Batch normalization: statistics of a batch, their use, the gradients and the running estimates."""

from kernels.batchnorm.reference import (
    BatchStatistics,
    batchnorm_apply_reference,
    batchnorm_backward_reference,
    batchnorm_running_statistics_reference,
    batchnorm_statistics_reference,
    batchnorm_update_running_reference,
)

__all__ = [
    "BatchStatistics",
    "batchnorm_apply_reference",
    "batchnorm_backward_reference",
    "batchnorm_running_statistics_reference",
    "batchnorm_statistics_reference",
    "batchnorm_update_running_reference",
]
