"""Algorithms that are right for ordinary numbers and wrong for hostile ones must leave the error budget."""

from typing import Any

import numpy as np
import pytest

from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from minidl.backends.cpu import CpuBackend, batchnorm_loops
from minidl.lab.operations import Row, cases, check_operation

Array = np.ndarray


def failures(backend: CpuBackend, operation: str, *prefixes: str) -> list[Row]:
    """Of the cases that start with one of `prefixes`, or of all."""
    chosen = [case for case in cases(operation, backend) if not prefixes or case.startswith(prefixes)]
    assert chosen
    return [row for case in chosen for row in check_operation(backend, operation, case) if not row.passed]


def store(out: BatchStatistics, mean: Any, var: Any, eps: float) -> None:
    """Statistics with a single float32 mean."""
    out.shift[:], out.delta[:], out.var[:] = mean, 0, var
    out.inv_std[:] = 1 / np.sqrt(out.var.astype(np.float64) + eps)


class SingleMean(CpuBackend):
    """Two passes in float64, but the mean is handed on as one float32 number (as PyTorch does)."""

    def batchnorm_statistics(self, x: Array, eps: float, out: BatchStatistics) -> None:
        rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
        store(out, rows.mean(axis=0), rows.var(axis=0), eps)


class NaiveVariance(CpuBackend):
    """E[x²] - E[x]², with float64 sums of float32 squares."""

    def batchnorm_statistics(self, x: Array, eps: float, out: BatchStatistics) -> None:
        super().batchnorm_statistics(x, eps, out)
        rows = x.reshape(-1, x.shape[-1])
        square = (rows * rows).mean(axis=0, dtype=np.float64)
        out.var[:] = np.maximum(square - rows.mean(axis=0, dtype=np.float64) ** 2, 0)


class NoShift(NaiveVariance):
    """The same, said to be shifted sums with the shift 0: that must not widen the bounds to what 0 would need."""

    def batchnorm_statistics(self, x: Array, eps: float, out: BatchStatistics) -> None:
        super().batchnorm_statistics(x, eps, out)
        out.delta[:], out.shift[:] = out.shift + out.delta, 0


class Welford(CpuBackend):
    """Welford's update in float32."""

    def batchnorm_statistics(self, x: Array, eps: float, out: BatchStatistics) -> None:
        rows = x.reshape(-1, x.shape[-1])
        mean, moment = np.zeros(x.shape[-1], np.float32), np.zeros(x.shape[-1], np.float32)
        for n, row in enumerate(rows, 1):
            delta = row - mean
            mean += delta / np.float32(n)
            moment += delta * (row - mean)
        store(out, mean, moment / np.float32(len(rows)), eps)


class FirstElementShift(CpuBackend):
    """Shifted sums, but the shift is always the first element."""

    def batchnorm_statistics(self, x: Array, eps: float, out: BatchStatistics) -> None:
        rows = x.reshape(-1, x.shape[-1])
        shifted = rows - rows[0]
        mean = shifted.mean(axis=0)
        store(out, rows[0], (shifted * shifted).mean(axis=0) - mean * mean, eps)
        out.delta[:] = mean


class MedianShift(CpuBackend):
    """Shifted sums about the median of the first, the middle and the last element, squares added up in float64."""

    def batchnorm_statistics(self, x: Array, eps: float, out: BatchStatistics) -> None:
        rows = x.reshape(-1, x.shape[-1])
        shift = np.median(rows[[0, len(rows) // 2, -1]], axis=0)
        shifted = rows - shift
        mean = shifted.mean(axis=0, dtype=np.float64)
        store(out, shift, (shifted * shifted).mean(axis=0, dtype=np.float64) - mean * mean, eps)
        out.delta[:] = mean


class FoldedApply(CpuBackend):
    """y = a x + b: the mean and its multiple cancel."""

    def batchnorm_apply(
        self, x: Array, statistics: BatchStatistics, gamma: Any, beta: Any, y: Array, relu: bool
    ) -> None:
        a = statistics.inv_std if gamma is None else statistics.inv_std * gamma
        b = (0 if beta is None else beta) - (statistics.shift + statistics.delta) * a
        y[...] = x * a + b
        if relu:
            y[y <= 0] = 0

    def batchnorm_add_relu_apply(
        self, x: Array, residual: Array, statistics: BatchStatistics, gamma: Any, beta: Any, y: Array
    ) -> None:
        self.batchnorm_apply(x, statistics, gamma, beta, y, relu=False)
        y += residual
        y[y <= 0] = 0


HOSTILE = "mean-1e4-std-1e-2/"


@pytest.mark.parametrize(
    ("wrong", "output", "case"),
    [
        (SingleMean, "mean", HOSTILE),
        (NaiveVariance, "var", HOSTILE),
        (NaiveVariance, "var", "mean-1e4-std-1/"),
        (NaiveVariance, "var", "constant/"),
        (NoShift, "shift", HOSTILE),
        (NoShift, "var", HOSTILE),
        (Welford, "mean", HOSTILE),
        (Welford, "var", HOSTILE),
        (Welford, "var", "mean-1e6-std-1/"),
        (FirstElementShift, "shift", "outlier-first/"),
    ],
)
def test_wrong_statistics_leave_the_budget(wrong: type[CpuBackend], output: str, case: str) -> None:
    """On hostile numbers alone: with ordinary ones these algorithms are as good as any."""
    found = [row for row in failures(wrong(1), "batchnorm_statistics", case) if row.output == output]
    assert len(found) >= 3
    assert all(row.ratio > 2 for row in found)
    ordinary = [row for row in failures(wrong(1), "batchnorm_statistics", "ordinary/7x5") if row.output == output]
    assert not ordinary


def test_no_element_is_a_safe_shift() -> None:
    """Not even the median of three: with two outliers in many rows it is hundreds of standard deviations off."""
    found = failures(MedianShift(1), "batchnorm_statistics", "two-outliers/")
    shifts = {row.case: row.ratio for row in found if row.output == "shift"}
    assert len(shifts) == 5
    assert shifts["two-outliers/1048577x1"] > 100


def test_a_single_float32_mean_spoils_y_by_thousands_of_bounds() -> None:
    found = [row for row in failures(SingleMean(1), "batchnorm_layer", HOSTILE) if row.output == "y"]
    assert found
    assert all(row.ratio > 100 and row.error > 1e-3 for row in found)
    assert max(row.ratio for row in found) > 1000


def test_a_folded_apply_leaves_the_budget() -> None:
    assert len(failures(FoldedApply(1), "batchnorm_apply", HOSTILE, "mean-1e6-std-1")) == 16
    found = {row.case for row in failures(FoldedApply(1), "batchnorm_add_relu_apply", HOSTILE, "mean-1e6-std-1")}
    assert len(found) == 8


# Chunks of rows are added up in float64 on the CPU. Below, in float32, one after another.


def one_accumulator(partial: Array) -> Array:
    return np.add.accumulate(partial, axis=0, dtype=np.float32)[-1]


def finish_statistics(x: Array, starts: Array, eps: float, found: Array, *out: Array) -> None:
    rows, (sums, squares, shifts) = len(x), found
    counts = np.diff(starts).astype(np.float32)[:, None]
    mean = one_accumulator(counts * shifts + sums) / np.float32(rows)
    distance = shifts - mean
    moment = one_accumulator(squares + distance * (2 * sums + counts * distance))
    store(BatchStatistics(*out), mean, moment / np.float32(rows), eps)


def finish_gradients(
    rows: int, inv_std: Array, found: Array, dgamma: Array, dbeta: Array, mean_g: Array, slope: Array
) -> None:
    sums, products = found[:2]
    dbeta[:] = one_accumulator(sums)
    dgamma[:] = one_accumulator(products) * inv_std
    mean_g[:] = dbeta / np.float32(rows)
    slope[:] = dgamma / np.float32(rows) * inv_std


class BiasInOneAccumulator(CpuBackend):
    def bias_backward(self, dy: Array, db: Array) -> None:
        rows = dy.reshape(-1, dy.shape[-1])
        db[:] = one_accumulator(np.add.reduceat(rows, range(0, len(rows), batchnorm_loops.CHUNK), axis=0))


class InSteps(CpuBackend):
    """Backward by its parts, which add up chunks in batchnorm_loops."""

    def batchnorm_backward(
        self, x: Array, dy: Array, statistics: Any, gamma: Array, beta: Array, dx: Array, dgamma: Array, dbeta: Array,
        training: bool, relu: bool,
    ) -> None:  # fmt: skip
        if not training:
            super().batchnorm_backward(x, dy, statistics, gamma, beta, dx, dgamma, dbeta, training, relu)
            return
        normalization = Normalization(statistics, gamma, beta, relu)
        channels = x.shape[-1:]
        sums = GradientSums(dgamma, dbeta, self.empty(channels), self.empty(channels))
        self.batchnorm_gradient_sums(x, dy, normalization, sums)
        self.batchnorm_pending_gradient(PendingGradient(dy, x, normalization, sums), dx)


def test_chunks_added_up_in_one_float32_accumulator_leave_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchnorm_loops, "finish_statistics", finish_statistics)
    monkeypatch.setattr(batchnorm_loops, "finish_gradients", finish_gradients)
    found = failures(CpuBackend(1), "batchnorm_statistics", "whole/")
    assert {row.output for row in found} == {"var", "inv_std"}
    assert {row.output for row in failures(InSteps(1), "batchnorm_backward", "whole/")} >= {"dgamma", "dbeta"}
    assert {row.output for row in failures(CpuBackend(1), "batchnorm_add_relu_backward", "whole/")} >= {
        "dgamma",
        "dbeta",
    }
    (row,) = failures(BiasInOneAccumulator(1), "bias_backward", "whole/")
    assert row.ratio > 2
    # With few rows it is no worse than float64.
    assert not failures(InSteps(1), "batchnorm_backward", "ordinary/257x17")
    assert not failures(BiasInOneAccumulator(1), "bias_backward", "ordinary/129x17")
