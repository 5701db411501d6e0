"""How often a convolution with batch normalization and ReLU passes its arrays; docs/kernels.md gives these figures."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernels import batchnorm, conv
from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from kernels.launch import Kernel
from kernels.run_dry import DryRunner

IMAGES, CHANNELS = (128, 32, 32, 64), 64
WINDOW = (1, 1), (1, 1)


class Adding(DryRunner):
    """Runs nothing, and adds up the bytes that kernels say they move."""

    moved = 0

    def __call__(self, kernel: Kernel, *values: Any) -> None:
        super().__call__(kernel, *values)
        cost = kernel.cost(values)
        self.moved += cost.reads + cost.writes


def passes(function: Callable[[Adding], None]) -> float:
    run = Adding()
    function(run)
    return run.moved / (4 * np.prod(IMAGES))


def images() -> np.ndarray:
    return np.empty(IMAGES, np.float32)


def of_channels(count: int) -> list[np.ndarray]:
    return [np.empty(CHANNELS, np.float32) for _ in range(count)]


def test_arrays_pass_as_often_as_the_docs_say() -> None:
    x, y, dy, dx, weights = images(), images(), images(), images(), np.empty((3, 3, CHANNELS, CHANNELS), np.float32)
    statistics, (gamma, beta), sums = BatchStatistics(*of_channels(4)), of_channels(2), GradientSums(*of_channels(4))
    normalization = Normalization(statistics, gamma, beta, relu=True)
    pending = PendingGradient(dy, y, normalization, sums)
    tf32 = {"precision": "tf32"}

    def forward(run: Adding) -> None:
        conv.conv2d_forward(run, x, weights, None, y, *WINDOW, **tf32)
        batchnorm.batchnorm_forward(run, y, gamma, beta, 1e-5, statistics, images(), True)

    def backward(run: Adding) -> None:
        batchnorm.batchnorm_backward(run, y, dy, statistics, gamma, beta, dx, *of_channels(2), True, True)
        conv.conv2d_backward_weight(run, x, dx, weights, *WINDOW, **tf32)
        conv.conv2d_backward_input(run, dx, weights, images(), *WINDOW, **tf32)

    def fused_forward(run: Adding) -> None:
        conv.conv2d_normalized_forward(run, x, normalization, weights, y, *WINDOW, 1e-5, statistics, **tf32)

    def fused_backward(run: Adding) -> None:
        conv.conv2d_normalized_backward_weight(run, x, normalization, pending, weights, *WINDOW, **tf32)
        given = pending, weights, dx, *WINDOW, x, normalization, sums
        conv.conv2d_normalized_backward_input(run, *given, **tf32)

    assert passes(forward) == pytest.approx(5.0, abs=0.05)
    assert passes(fused_forward) == pytest.approx(2.1, abs=0.05)
    assert passes(backward) == pytest.approx(9.5, abs=0.05)
    assert passes(fused_backward) == pytest.approx(7.5, abs=0.05)
