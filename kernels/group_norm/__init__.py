"""Group normalization, and with it layer and instance normalization: statistics, their use and the gradients.

In the order to read them: reference.py (the definition), layout.py (which thread has what), statistics.py, apply.py,
gradient_sums.py, backward.py, and statistics_of_groups.py and backward_of_groups.py,
the way that layer normalization takes.
"""

from kernels.batch_statistics import BatchStatistics
from kernels.group_norm.apply import group_norm_apply
from kernels.group_norm.backward import group_norm_backward
from kernels.group_norm.reference import (
    group_norm_apply_reference,
    group_norm_backward_reference,
    group_norm_statistics_reference,
)
from kernels.group_norm.statistics import group_norm_statistics

__all__ = [
    "BatchStatistics",
    "group_norm_apply",
    "group_norm_apply_reference",
    "group_norm_backward",
    "group_norm_backward_reference",
    "group_norm_statistics",
    "group_norm_statistics_reference",
]
