"""Convolution in a chain of normalizations on the CPU: composed of its parts; what lies between them is written out."""

import numpy as np

from kernels.batch_statistics import BatchStatistics, GradientSums, Normalization, PendingGradient
from minidl.backends.cpu.batchnorm import BatchNormOps
from minidl.backends.cpu.convolution import ConvolutionOps
from minidl.backends.cpu.elementwise import ElementwiseOps
from minidl.backends.protocol import Pair


class NormalizedConvolutionOps(BatchNormOps, ConvolutionOps, ElementwiseOps):
    """This part of the CPU backend; see `Backend` for the operations."""

    def fuses_normalization(self, c_in: int, c_out: int) -> bool:
        del c_in, c_out
        return False

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
        self.conv2d_forward(self._activation(x, before), w, None, y, stride, padding)
        if out is not None:
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
        self.conv2d_backward_weight(self._activation(x, before), self._written(dy), dw, stride, padding)

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
        self.conv2d_backward_input(self._written(dy), w, dx, stride, padding)
        if x is None or before is None or sums is None:
            return
        if before.relu:
            self.relu_backward(dx, self._activation(x, before), dx)
        self.batchnorm_gradient_sums(x, dx, before._replace(relu=False), sums)

    def _activation(self, x: np.ndarray, before: Normalization | None) -> np.ndarray:
        if before is None:
            return x
        activation = self.empty(x.shape)
        self.batchnorm_apply(x, before.statistics, before.gamma, before.beta, activation, before.relu)
        return activation

    def _written(self, dy: PendingGradient) -> np.ndarray:
        written = self.empty(dy.x.shape)
        self.batchnorm_pending_gradient(dy, written)
        return written
