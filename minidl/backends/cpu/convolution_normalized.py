"""Convolution in a chain of normalizations on the CPU: activations and gradients are worked out as tiles are copied.

Sums for the normalizations are taken of each tile of a result while it is in the cache.
"""

import numpy as np

from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from minidl.backends.cpu import batchnorm_loops
from minidl.backends.cpu.batchnorm import BatchNormOps, parameters_of
from minidl.backends.cpu.convolution import ConvolutionOps
from minidl.backends.cpu.convolution_factors import NO_SUMS, NOTHING, After, Source, as_it_is, is_finite
from minidl.backends.cpu.convolution_plan import Plan, forward_plan, input_gradient_plan
from minidl.backends.cpu.elementwise import ElementwiseOps
from minidl.backends.cpu.passes import (
    GRADIENT,
    GRADIENT_RELU,
    MASK_AND_SUM,
    NORMALIZE,
    NORMALIZE_RELU,
    SUM_GRADIENTS,
    SUM_SHIFTED,
    repeats,
)
from minidl.backends.protocol import Pair


class NormalizedConvolutionOps(BatchNormOps, ConvolutionOps, ElementwiseOps):
    """This part of the CPU backend; see `Backend` for the operations."""

    def fuses_normalization(self, c_in: int, c_out: int) -> bool:
        del c_in, c_out
        return True

    def conv2d_normalized_forward(
        self,
        x: np.ndarray,
        before: Normalization | None,
        w: np.ndarray,
        y: np.ndarray,
        stride: Pair,
        padding: Pair,
        eps: float,
        out: BatchStatistics | None,
    ) -> None:
        plan = forward_plan(x.shape, w.shape[:2], y.shape, stride, padding)
        by = self._technique("conv2d_normalized_forward", plan, w.shape[:2], stride)
        sums_too = out is not None and plan.splits == 1
        after = self._after(plan, SUM_SHIFTED) if sums_too else NO_SUMS
        self._multiply_windows(by, plan, _activation(x, before), w, False, is_finite(w), None, y, after)
        if out is None:
            return
        if sums_too:
            batchnorm_loops.finish_statistics(y.reshape(-1, y.shape[3]), after.starts, eps, after.sums, *out)
        else:
            self.batchnorm_statistics(y, eps, out)

    def conv2d_normalized_backward_weight(
        self,
        x: np.ndarray,
        before: Normalization | None,
        dy: PendingGradient,
        dw: np.ndarray,
        stride: Pair,
        padding: Pair,
    ) -> None:
        operation = "conv2d_normalized_backward_weight"
        self._multiply_gradients(operation, _activation(x, before), _gradient(dy), dw, stride, padding)

    def conv2d_normalized_backward_input(
        self,
        dy: PendingGradient,
        w: np.ndarray,
        dx: np.ndarray,
        stride: Pair,
        padding: Pair,
        x: np.ndarray | None,
        before: Normalization | None,
        sums: GradientSums | None,
    ) -> None:
        plan = input_gradient_plan(dy.x.shape, w.shape[:2], dx.shape, stride, padding)
        by = self._technique("conv2d_normalized_backward_input", plan, w.shape[:2], stride)
        gathered = self._gathers(by, w)
        which = MASK_AND_SUM if before is not None and before.relu else SUM_GRADIENTS
        sums_too = sums is not None and gathered and plan.splits == 1
        after = self._after(plan, which, x, before) if sums_too else NO_SUMS
        if gathered:
            self._multiply_windows(by, plan, _gradient(dy), w, True, True, None, dx, after)
        else:
            written = self.empty(dy.x.shape)
            self.batchnorm_pending_gradient(dy, written)
            self.scatter_gradient(written, w, dx, stride, padding)
        if x is None or before is None or sums is None:
            return
        if sums_too:
            self.finish_gradients(dx.size // dx.shape[3], before.statistics.inv_std, after.sums, sums)
            return
        self.sum_gradients(which, x, dx, dx, before, dx, sums)

    def _after(self, plan: Plan, what: int, x: np.ndarray | None = None, before: Normalization | None = None) -> After:
        starts, firsts = plan.chunks
        channels = plan.target[3]
        sums = self.empty((3, len(starts) - 1, channels))
        if x is None or before is None:
            return After(what, NOTHING, NOTHING, channels * repeats(channels), starts, firsts, sums)
        parameters = parameters_of(before)
        return After(what, x.reshape(-1), parameters.reshape(-1), parameters.shape[1], starts, firsts, sums)


def _activation(x: np.ndarray, before: Normalization | None) -> Source:
    if before is None:
        return as_it_is(x)
    return Source(NORMALIZE_RELU if before.relu else NORMALIZE, x, NOTHING, parameters_of(before))


def _gradient(dy: PendingGradient) -> Source:
    how = GRADIENT_RELU if dy.normalization.relu else GRADIENT
    return Source(how, dy.x, dy.dy, parameters_of(dy.normalization, dy.sums))
