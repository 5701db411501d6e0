"""The checks are checked: bugs put into the CPU backend on purpose must all be caught."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from kernels.batchnorm import BatchStatistics
from minidl.backends.cpu import CpuBackend
from minidl.lab.operations import Row, cases, check_operation

Array = np.ndarray
PAIRS = (2, 2), (2, 2), (0, 0), (1, 1), False


def failures(backend: CpuBackend, operation: str, *prefixes: str) -> list[Row]:
    """Of the cases that start with one of `prefixes`, or of all."""
    chosen = [case for case in cases(operation, backend) if not prefixes or case.startswith(prefixes)]
    assert chosen
    return [row for case in chosen for row in check_operation(backend, operation, case) if not row.passed]


@functools.cache
def failures_without_bug(operation: str) -> set[tuple[str, str]]:
    return {(row.case, row.output) for row in failures(CpuBackend(1), operation)}


# Bugs that libraries have had.


class BiasedRunningVariance(CpuBackend):
    def batchnorm_update_running(self, batch: BatchStatistics, rows: int, *rest: Any) -> None:
        super().batchnorm_update_running(batch, 2**60, *rest)


class UnbiasedNormalization(CpuBackend):
    def batchnorm_statistics(self, x: Array, eps: float, out: BatchStatistics) -> None:
        super().batchnorm_statistics(x, eps, out)
        rows = x.size // x.shape[-1]
        out.var[:] *= np.float32(rows / max(rows - 1, 1))
        out.inv_std[:] = 1 / np.sqrt(out.var + eps)


class EpsTwice(CpuBackend):
    def batchnorm_statistics(self, x: Array, eps: float, out: BatchStatistics) -> None:
        super().batchnorm_statistics(x, 2 * eps, out)

    def batchnorm_running_statistics(self, mean: Array, var: Array, eps: float, out: BatchStatistics) -> None:
        super().batchnorm_running_statistics(mean, var, 2 * eps, out)


class MomentumReversed(CpuBackend):
    def batchnorm_update_running(self, batch: BatchStatistics, rows: int, factor: float, *rest: Any) -> None:
        super().batchnorm_update_running(batch, rows, 1 - factor, *rest)


class BatchStatisticsInEvaluation(CpuBackend):
    def batchnorm_backward(self, *arguments: Any) -> None:
        *given, _, relu = arguments
        super().batchnorm_backward(*given, True, relu)


class StaleStatistics(CpuBackend):
    """Normalizes by what the call before it saw."""

    before: tuple[Array, ...] = ()

    def batchnorm_statistics(self, x: Array, eps: float, out: BatchStatistics) -> None:
        super().batchnorm_statistics(x, eps, out)
        now = tuple(part.copy() for part in out)
        if self.before and self.before[0].shape == now[0].shape:
            for part, old in zip(out, self.before, strict=True):
                part[:] = old
        self.before = now


class SkippedTailOfApply(CpuBackend):
    def batchnorm_apply(self, x: Array, statistics: Any, gamma: Any, beta: Any, y: Array, relu: bool) -> None:
        rows = x.size // x.shape[-1] // 4 * 4
        flat = x.reshape(-1, x.shape[-1])[:rows], y.reshape(-1, x.shape[-1])[:rows]
        super().batchnorm_apply(flat[0], statistics, gamma, beta, flat[1], relu)


class SkippedTailOfStatistics(CpuBackend):
    def batchnorm_statistics(self, x: Array, eps: float, out: BatchStatistics) -> None:
        rows = x.reshape(-1, x.shape[-1])
        super().batchnorm_statistics(rows[: max(len(rows) // 4 * 4, 1)], eps, out)


class ResidualForgotten(CpuBackend):
    def batchnorm_add_relu_apply(self, x: Array, residual: Array, statistics: Any, *rest: Any) -> None:
        super().batchnorm_apply(x, statistics, *rest, True)


class ReLUBeforeTheResidual(CpuBackend):
    def batchnorm_add_relu_apply(self, x: Array, residual: Array, statistics: Any, *rest: Any) -> None:
        super().batchnorm_apply(x, statistics, *rest, True)
        rest[-1][...] += residual


class ResidualGradientUnmasked(CpuBackend):
    def batchnorm_add_relu_backward(self, x: Array, y: Array, dy: Array, *rest: Any) -> None:
        super().batchnorm_add_relu_backward(x, y, dy, *rest)
        rest[3][...] = dy


class MaskOfNormalizedX(CpuBackend):
    """As if there were no residual."""

    def batchnorm_add_relu_backward(self, x: Array, y: Array, dy: Array, statistics: Any, *rest: Any) -> None:
        super().batchnorm_apply(x, statistics, None, None, normalized := np.empty_like(x), False)
        super().batchnorm_add_relu_backward(x, normalized, dy, statistics, *rest)


class ProjectionForgotten(CpuBackend):
    def batchnorm_add_relu_backward(self, *arguments: Any) -> None:
        super().batchnorm_add_relu_backward(*arguments[:-1], False)


class MaskBySmallestNormal(CpuBackend):
    """Takes denormal outputs for 0."""

    def batchnorm_add_relu_backward(self, x: Array, y: Array, *rest: Any) -> None:
        super().batchnorm_add_relu_backward(x, np.where(y < np.float32(2.0**-126), np.float32(0), y), *rest)


class HaloOffByOne(CpuBackend):
    """Reads x one column too far to the left."""

    def conv2d_forward(self, x: Array, *rest: Any) -> None:
        moved = np.zeros_like(x)
        moved[:, :, 1:] = x[:, :, :-1]
        super().conv2d_forward(moved, *rest)


class KernelMirrored(CpuBackend):
    def conv2d_backward_input(self, dy: Array, w: Array, *rest: Any) -> None:
        super().conv2d_backward_input(dy, np.ascontiguousarray(w[::-1, ::-1]), *rest)


class StrideSwapped(CpuBackend):
    def conv2d_backward_weight(self, x: Array, dy: Array, dw: Array, stride: Any, padding: Any) -> None:
        super().conv2d_backward_weight(x, dy, dw, stride[::-1] if dw.shape[0] != dw.shape[1] else stride, padding)


class AxesSwapped(CpuBackend):
    def channels_first(self, x: Array, y: Array) -> None:
        y[...] = x.transpose(0, 3, 2, 1).reshape(y.shape)


class OneNaN(CpuBackend):
    def relu_forward(self, x: Array, y: Array) -> None:
        super().relu_forward(x, y)
        y.reshape(-1)[-1:] = np.nan


class NaNLost(CpuBackend):
    def relu_forward(self, x: Array, y: Array) -> None:
        np.fmax(x, 0, out=y)


class InputChanged(CpuBackend):
    def relu_backward(self, dy: Array, y: Array, dx: Array) -> None:
        dy[y <= 0] = 0
        dx[...] = dy


class WriteBeyondTheEnd(CpuBackend):
    def add(self, a: Array, b: Array, out: Array) -> None:
        super().add(a, b, out)
        np.lib.stride_tricks.as_strided(out, (out.size + 1,), (out.itemsize,))[-1] = 0


class ReadBeyondTheEnd(CpuBackend):
    def bias_backward(self, dy: Array, db: Array) -> None:
        longer = (dy.size // dy.shape[-1] + 1, dy.shape[-1])
        super().bias_backward(np.lib.stride_tricks.as_strided(dy, longer, (dy.shape[-1] * 4, 4)), db)


class LastOfTheTies(CpuBackend):
    def max_pool2d_forward(self, x: Array, y: Array, index: Array, *window: Any) -> None:
        super().max_pool2d_forward(np.ascontiguousarray(x[:, ::-1, ::-1]), y, index, *window)
        index[...] = x.shape[1] * x.shape[2] - 1 - index[:, ::-1, ::-1]
        y[...] = y[:, ::-1, ::-1].copy()


class LastOfTheZeros(CpuBackend):
    """Of a window that ReLU stops whole."""

    def max_pool2d_normalized_forward(self, x: Array, before: Any, y: Array, index: Array, *window: Any) -> None:
        super().max_pool2d_normalized_forward(x, before, y, index, *window)
        last = (2 * np.arange(y.shape[1])[:, None] + 1) * x.shape[2] + 2 * np.arange(y.shape[2]) + 1
        index[...] = np.where((y == 0) & (window == PAIRS), last[..., None], index)


class SecondLargest(CpuBackend):
    """Of one window; what it gives is right."""

    def max_pool2d_normalized_forward(self, x: Array, before: Any, y: Array, index: Array, *window: Any) -> None:
        super().max_pool2d_normalized_forward(x, before, y, index, *window)
        if index.size and y.flat[-1] > 0 and x.shape[1] > 1:
            index.flat[-1] -= 1 if window == PAIRS else 0


class PooledBeforeReLU(CpuBackend):
    """As if a NaN lost against 0."""

    def max_pool2d_normalized_forward(self, x: Array, before: Any, y: Array, index: Array, *window: Any) -> None:
        super().max_pool2d_normalized_forward(x, before._replace(relu=False), y, index, *window)
        y[...] = np.fmax(y, 0) if before.relu else y


class GradientThroughReLU(CpuBackend):
    def max_pool2d_normalized_backward(self, *arguments: Any) -> None:
        *given, before, sums = arguments
        super().max_pool2d_normalized_backward(*given, before._replace(relu=False), sums)


class SumsOfOneImageLost(CpuBackend):
    def max_pool2d_normalized_backward(self, dy: Array, index: Array, dx: Array, *rest: Any) -> None:
        x, before, sums = rest[-3:]
        super().max_pool2d_normalized_backward(dy, index, dx, *rest)
        if len(dx) > 1:
            self.batchnorm_gradient_sums(x[1:], dx[1:], before._replace(relu=False), sums)


class PaddingCounted(CpuBackend):
    def avg_pool2d_backward(self, *arguments: Any) -> None:
        super().avg_pool2d_backward(*arguments[:-2], True, arguments[-1])


class MaskOfTheNextCall(CpuBackend):
    def dropout(self, x: Array, y: Array, p: float, seed: int, stream: int, call: Array) -> None:
        super().dropout(x, y, p, seed, stream, (call + 1).astype(np.uint32))


class MeanOverIgnoredRows(CpuBackend):
    def cross_entropy(self, logits: Array, targets: Array, loss: Array, dlogits: Array, *rest: Any) -> None:
        super().cross_entropy(logits, targets, loss, dlogits, *rest)
        counted = (targets != rest[1]).sum()
        if rest[2] == "mean" and counted:
            loss[...] *= counted / len(targets)


class NesterovForgotten(CpuBackend):
    def sgd(self, values: Sequence[Array], *rest: Any) -> None:
        super().sgd(values, *rest[:-1], False)


class RootNotCorrected(CpuBackend):
    def adam(self, values: Any, grads: Any, first: Any, second: Any, numbers: Any, rows: Any) -> None:
        numbers = numbers.copy()
        numbers[:, 7] = 1  # the bias correction of the second moment
        super().adam(values, grads, first, second, numbers, rows)


BUGS: list[tuple[type[CpuBackend], str]] = [
    (BiasedRunningVariance, "batchnorm_update_running"),
    (BiasedRunningVariance, "batchnorm_layer"),
    (UnbiasedNormalization, "batchnorm_statistics"),
    (UnbiasedNormalization, "batchnorm_layer"),
    (EpsTwice, "batchnorm_statistics"),
    (EpsTwice, "batchnorm_running_statistics"),
    (EpsTwice, "batchnorm_layer"),
    (MomentumReversed, "batchnorm_update_running"),
    (MomentumReversed, "batchnorm_layer"),
    (BatchStatisticsInEvaluation, "batchnorm_backward"),
    (StaleStatistics, "batchnorm_layer"),
    (SkippedTailOfApply, "batchnorm_apply"),
    (SkippedTailOfStatistics, "batchnorm_statistics"),
    (ResidualForgotten, "batchnorm_add_relu_apply"),
    (ReLUBeforeTheResidual, "batchnorm_add_relu_apply"),
    (ResidualGradientUnmasked, "batchnorm_add_relu_backward"),
    (MaskOfNormalizedX, "batchnorm_add_relu_backward"),
    (ProjectionForgotten, "batchnorm_add_relu_backward"),
    (MaskBySmallestNormal, "batchnorm_add_relu_backward"),
    (HaloOffByOne, "conv2d_forward"),
    (KernelMirrored, "conv2d_backward_input"),
    (StrideSwapped, "conv2d_backward_weight"),
    (AxesSwapped, "channels_first"),
    (OneNaN, "relu_forward"),
    (NaNLost, "relu_forward"),
    (InputChanged, "relu_backward"),
    (WriteBeyondTheEnd, "add"),
    (ReadBeyondTheEnd, "bias_backward"),
    (LastOfTheTies, "max_pool2d_forward"),
    (LastOfTheZeros, "max_pool2d_normalized_forward"),
    (SecondLargest, "max_pool2d_normalized_forward"),
    (PooledBeforeReLU, "max_pool2d_normalized_forward"),
    (GradientThroughReLU, "max_pool2d_normalized_backward"),
    (SumsOfOneImageLost, "max_pool2d_normalized_backward"),
    (PaddingCounted, "avg_pool2d_backward"),
    (MaskOfTheNextCall, "dropout"),
    (MeanOverIgnoredRows, "cross_entropy"),
    (NesterovForgotten, "sgd"),
    (RootNotCorrected, "adam"),
]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("bug", "operation"), BUGS, ids=lambda value: getattr(value, "__name__", value))
def test_a_bug_is_caught(bug: type[CpuBackend], operation: str) -> None:
    assert {(row.case, row.output) for row in failures(bug(1), operation)} - failures_without_bug(operation)


def test_faults_are_told_in_words() -> None:
    (row,) = failures(InputChanged(1), "relu_backward", "ordinary/16x16")
    assert str(row) == "relu_backward on cpu, case ordinary/16x16: dy is an input and was changed"
    (row,) = failures(WriteBeyondTheEnd(1), "add", "ordinary/16x16")
    assert str(row) == "add on cpu, case ordinary/16x16: out was written to beyond its ends"
    missing, value = failures(SkippedTailOfApply(1), "batchnorm_apply", "ordinary/7x5")[:2]
    assert missing.fault == "was not written, as 15 of 35 elements"
    assert missing.index == (4, 0)
    assert value.ratio == np.inf
    wrong = failures(MaskOfTheNextCall(1), "dropout", "ordinary/127x17/p-0.5")[0]
    assert "of its bound" in str(wrong)


def test_bits_of_a_skipped_row_are_caught_at_every_size_that_has_a_tail() -> None:
    found = {row.case for row in failures(SkippedTailOfApply(1), "batchnorm_apply", "ordinary/")}
    tails = {"7x5", "1x7x11x5", "127x1", "129x3", "257x17", "5x3x3x33", "70001x1", "3x2", "2x1"}
    assert {f"ordinary/{shape}" for shape in tails} <= found
