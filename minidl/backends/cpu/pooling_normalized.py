"""Max pooling at the end of a chain of normalizations on the CPU: the activation is worked out where windows read it.

Where windows overlap, backward is the two passes that there are anyway.
"""

import numpy as np

from kernels.batch_statistics import GradientSums, Normalization
from minidl.backends.cpu.batchnorm import GRAIN_ELEMENTS, BatchNormOps, parameters_of
from minidl.backends.cpu.batchnorm_loops import CHUNK
from minidl.backends.cpu.compile import compiled
from minidl.backends.cpu.passes import MASK_AND_SUM, SUM_GRADIENTS
from minidl.backends.cpu.pooling import PoolingOps, are_apart
from minidl.backends.cpu.pooling_vectors import (
    GRADIENT,
    GRADIENT_RELU,
    GRADIENT_TWOS,
    GRADIENT_TWOS_RELU,
    LINE,
    LINE_2X2,
    LINE_2X2_RELU,
    LINE_RELU,
    call_gradient,
    call_maximum,
    line_table,
)
from minidl.backends.protocol import Pair


@compiled
def _max_lines(first, last, functions, x, parameters, width, y, index, h, w, c, ho, wo, kh, kw, sh, sw, ph, pw, dh, dw):
    """Lines first to last of y, of all images; flat arrays. `functions`: for windows of any size, and of 2x2.

    Of a line, windows that padding cuts off on the left, those that are whole, and those cut off on the right.
    """
    whole = max(0, min(wo, (w + pw - dw * (kw - 1) - 1) // sw + 1))
    begin = min(-(-pw // sw), whole)
    for line in range(first, last):
        n, i = line // ho, line % ho
        top, bottom = i * sh - ph, min(i * sh - ph + dh * (kh - 1) + 1, h)
        top = top % dh if top < 0 else top  # the first tap that is no padding
        rows = (bottom - top + dh - 1) // dh
        j = 0
        while j < wo:
            windows = whole - begin if j == begin and begin < whole else 1
            left, right = j * sw - pw, min(j * sw - pw + dw * (kw - 1) + 1, w)
            left = left % dw if left < 0 else left
            columns = (right - left + dw - 1) // dw
            function = functions[1] if rows == 2 and columns == 2 else functions[0]
            place, target = top * w + left, (line * wo + j) * c
            source = (n * h * w + place) * c
            steps = dh * w * c, dw * c, sw * c, place, dh * w, dw, sw, width
            call_maximum(
                function, windows, c, rows, columns, *steps, x, source, parameters, 0, y, target, index, target
            )
            j += windows


def _gradient_lines(first, last, sums, *given):
    """Chunks first to last of dx, whose windows do not overlap, and of `sums` (2, chunks, c)."""
    _write_gradient_lines(first, last, sums, np.empty((2, sums.shape[2]), np.float32), *given)


@compiled
def _write_gradient_lines(
    first, last, sums, both, functions, dy, index, x, parameters, width, dx, h, w, c, ho, wo, kh, kw, sh, sw, lines,
    across,
):  # fmt: skip
    """Those chunks; `both` (2, c) has the sums of one, other arrays are flat.

    A chunk is so many `lines` of an image, or `across` windows of a single one.
    """
    parts = max(1, -(-wo // across))
    groups = -(-h // lines)
    function = functions[1] if kw == 2 and sw == 2 else functions[0]
    for k in range(first, last):
        n, group, part = k // (groups * parts), k // parts % groups, k % parts
        for i in range(c):
            both[0, i] = both[1, i] = np.float32(0)
        j = part * across
        for row in range(group * lines, min((group + 1) * lines, h)):
            i = row // sh
            left, windows = j * sw, min(across, wo - j)
            right = w if part == parts - 1 else (j + across) * sw
            rest = right - (left + (windows - 1) * sw + kw)
            if i >= ho or row % sh >= kh:
                windows, rest = 0, right - left
            place, source = row * w + left, ((n * ho + min(i, ho - 1)) * wo + j) * c
            here = (n * h * w + place) * c
            arrays = dy, source, index, source, x, here, parameters, 0, dx, here, both, 0
            call_gradient(function, windows, c, kw, sw, rest, place, width, *arrays)
        for i in range(c):
            sums[0, k, i], sums[1, k, i] = both[0, i], both[1, i]


class NormalizedPoolingOps(BatchNormOps, PoolingOps):
    """This part of the CPU backend; see `Backend` for the operations."""

    def fuses_pooling(self) -> bool:
        return True

    def max_pool2d_normalized_forward(
        self,
        x: np.ndarray,
        before: Normalization,
        y: np.ndarray,
        index: np.ndarray,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair = (1, 1),
        ceil_mode: bool = False,
    ) -> None:
        del ceil_mode  # y's shape says how many windows there are
        functions = line_table()[[LINE_RELU, LINE_2X2_RELU] if before.relu else [LINE, LINE_2X2]]
        parameters = parameters_of(before)
        n, ho, wo, c = y.shape
        line = max(1, x.size // max(1, n * ho))  # numbers that one of y is made of
        arrays = x.reshape(-1), parameters.reshape(-1), parameters.shape[1], y.reshape(-1), _as_numbers(index)
        sizes = x.shape[1], x.shape[2], c, ho, wo
        self.workers.run(
            *(_max_lines, n * ho, max(1, GRAIN_ELEMENTS // line), functions, *arrays, *sizes),
            *(*kernel, *stride, *padding, *dilation),
        )

    def max_pool2d_normalized_backward(
        self,
        dy: np.ndarray,
        index: np.ndarray,
        dx: np.ndarray,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        ceil_mode: bool,
        x: np.ndarray,
        before: Normalization,
        sums: GradientSums,
    ) -> None:
        if not are_apart(dy.shape, dx.shape, kernel, stride, padding, dilation):
            self.max_pool2d_backward(dy, index, dx, kernel, stride, padding, dilation, ceil_mode)
            self.sum_gradients(MASK_AND_SUM if before.relu else SUM_GRADIENTS, x, dx, dx, before, dx, sums)
            return
        functions = line_table()[[GRADIENT_RELU, GRADIENT_TWOS_RELU] if before.relu else [GRADIENT, GRADIENT_TWOS]]
        parameters = parameters_of(before)
        (n, h, w, c), (ho, wo) = dx.shape, dy.shape[1:3]
        lines, across = max(1, CHUNK // w), max(1, CHUNK // stride[1])
        grain = max(1, GRAIN_ELEMENTS // (CHUNK * max(1, c)))
        chunks = n * -(-h // lines) * max(1, -(-wo // across))
        found = self.empty((2, chunks, c))
        arrays = dy.reshape(-1), _as_numbers(index), x.reshape(-1), parameters.reshape(-1), parameters.shape[1]
        self.workers.run(
            *(_gradient_lines, chunks, grain, found, functions, *arrays, dx.reshape(-1)),
            *(h, w, c, ho, wo, *kernel, *stride, lines, across),
        )
        self.finish_gradients(n * h * w, before.statistics.inv_std, found, sums)


def _as_numbers(index: np.ndarray) -> np.ndarray:
    """The same memory, flat, as float32: what a kernel only stores and loads."""
    return index.reshape(-1).view(np.float32)
