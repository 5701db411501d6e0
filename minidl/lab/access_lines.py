"""The launches by which kernels that claim to be fast are counted; `minidl.lab.access_counts` says what must hold.

To add a kernel, add a line: the name of its factory, the shape for the reader, a call of its host function with a
runner and, if more than its cost is moved, how much and why. Shapes are as small as show how the kernel is meant to
run: some whole tiles. A call that launches several kernels serves a line of each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kernels import (
    activation,
    channels,
    columns,
    conv,
    dropout,
    elementwise,
    gradient_norm,
    linear,
    metrics,
    noise,
    optimizer,
    pooling,
    scale,
    softmax,
)
from kernels import batchnorm as bn
from kernels import group_norm as gn
from kernels.batch_statistics import BatchStatistics
from kernels.chip import HOPPER
from kernels.run_emulated import EmulatorRunner

Array = Any
Call = Callable[[EmulatorRunner], Any]
SLACK = 0.05  # for what is small beside the arrays: partial sums, parameters, tables


class Line(NamedTuple):
    """A launch that stands for a kernel."""

    kernel: str  # name of its factory
    shape: str  # of what it works on
    call: Call
    limit: float = 1 + SLACK  # bytes moved over those of the cost
    why: str = ""  # the limit is more than that


def ones(*shape: int, dtype: Any = np.float32) -> Array:
    """An array; what is counted depends on no number in it."""
    return np.ones(shape, dtype)


def statistics(*shape: int) -> BatchStatistics:
    """Of channels, or of samples and groups."""
    return BatchStatistics(*(ones(*shape) for _ in range(4)))


# Elementwise, moves and sums.

SIZE = 16384
CALL = np.zeros((), np.uint32)  # of dropout and noise


def _relu(run: EmulatorRunner) -> None:
    activation.relu_forward(run, ones(SIZE), ones(SIZE))
    activation.relu_backward(run, ones(SIZE), ones(SIZE), ones(SIZE))


def _scale(run: EmulatorRunner) -> None:
    scale.scale_forward(run, ones(SIZE), ones(), ones(SIZE))
    scale.scale_backward(run, ones(SIZE), ones(SIZE), ones(), ones(SIZE), ones())


def _channels_first(h: int, w: int, c: int) -> Call:
    return lambda run: channels.channels_first(run, ones(4, h, w, c), ones(4, c * h * w))


def _channels_last(h: int, w: int, c: int) -> Call:
    return lambda run: channels.channels_last(run, ones(4, c * h * w), ones(4, h, w, c))


def _softmax(run: EmulatorRunner) -> None:
    softmax.softmax_forward(run, ones(64, 512), ones(64, 512))
    softmax.softmax_backward(run, ones(64, 512), ones(64, 512), ones(64, 512))


MOVES = (
    Line("relu_forward_vector", "16384", _relu),
    Line("relu_backward_vector", "16384", _relu),
    Line("add_vector", "16384", lambda run: elementwise.add(run, ones(SIZE), ones(SIZE), ones(SIZE))),
    Line("scale_forward_vector", "16384", _scale),
    Line("scale_backward_vector", "16384", _scale),
    Line("dropout_vector", "16384", lambda run: dropout.dropout(run, ones(SIZE), ones(SIZE), 0.5, 0, 0, CALL)),
    Line(
        "noise_vector",
        "256x64",
        lambda run: noise.noise_forward(run, ones(256, 64), ones(256, 64), 0.1, 1.1, 0.1, 0, 0, CALL),
        1.6,
        "the noise of a pixel's channels is read for each pixel",
    ),
    Line("count_not_finite_vector", "65536", lambda run: metrics.all_finite(run, ones(65536))),
    Line(
        "sum_squares_vector",
        "2x65536",
        lambda run: gradient_norm.global_norm(run, [ones(65536)] * 2, ones()),
        1.1,
        "a block reads in a table which part of which array it has",
    ),
    Line(
        "update_tensors_vector",
        "2x16384, momentum",
        lambda run: optimizer.sgd(run, *([ones(SIZE), ones(SIZE)] for _ in range(3)), ones(3), False),
    ),
    Line(
        "copy_columns_vector",
        "512x32 and 512x64 into 512x96",
        lambda run: channels.concat(run, [ones(512, 32), ones(512, 64)], ones(512, 96)),
    ),
    Line("transpose_tiled", "4x16x16x64", _channels_first(16, 16, 64)),
    Line("transpose_tiled", "4x32x32x3", _channels_first(32, 32, 3)),
    Line("transpose_tiled", "4x3x32x32", _channels_last(32, 32, 3)),
    Line("sum_columns_of_chunks", "8192x64", lambda run: columns.sum_columns(run, ones(8192, 64), ones(64))),
    Line("sum_columns_of_chunks", "8192x8", lambda run: columns.sum_columns(run, ones(8192, 8), ones(8))),
    Line("softmax_forward_rows", "64x512", _softmax),
    Line("softmax_backward_rows", "64x512", _softmax),
)


# Pooling.

OVERLAP = "windows overlap: what they share is read once for each"
SHARED_DY = "a pixel's dy, and the maximum's place, is read once for each pixel of its window"


def _pool(kernel: int, stride: int, padding: int) -> Call:
    """Of the maximum and of the average, forward and backward, over 4x16x16x32."""
    side = (16 + 2 * padding - kernel) // stride + 1
    window = (kernel, kernel), (stride, stride), (padding, padding)

    def call(run: EmulatorRunner) -> None:
        x, y, place = ones(4, 16, 16, 32), ones(4, side, side, 32), ones(4, side, side, 32, dtype=np.int32)
        pooling.max_pool2d_forward(run, x, y, place, *window)
        pooling.max_pool2d_backward(run, y, place, ones(*x.shape), *window)
        pooling.avg_pool2d_forward(run, x, y, *window, True)
        pooling.avg_pool2d_backward(run, y, ones(*x.shape), *window, True)

    return call


def _global_pool(run: EmulatorRunner) -> None:
    pooling.global_avg_pool2d_forward(run, ones(4, 8, 8, 64), ones(4, 64))
    pooling.global_avg_pool2d_backward(run, ones(4, 64), ones(4, 8, 8, 64))


HALVING, OVERLAPPING = _pool(2, 2, 0), _pool(3, 2, 1)
POOLING = (
    Line("max_pool2d_forward_vector", "4x16x16x32, 2x2", HALVING),
    Line("max_pool2d_forward_vector", "4x16x16x32, 3x3, stride 2", OVERLAPPING, 1.8, OVERLAP),
    Line("max_pool2d_backward_vector", "4x16x16x32, 2x2", HALVING, 1.4, SHARED_DY),
    Line("max_pool2d_backward_vector", "4x16x16x32, 3x3, stride 2", OVERLAPPING, 4.2, SHARED_DY),
    Line("avg_pool2d_forward_vector", "4x16x16x32, 2x2", HALVING),
    Line("avg_pool2d_forward_vector", "4x16x16x32, 3x3, stride 2", OVERLAPPING, 2.0, OVERLAP),
    Line("avg_pool2d_backward_vector", "4x16x16x32, 2x2", HALVING, 1.3, SHARED_DY),
    Line("avg_pool2d_backward_vector", "4x16x16x32, 3x3, stride 2", OVERLAPPING, 2.7, SHARED_DY),
    Line("global_avg_pool2d_forward_shared", "4x8x8x64", _global_pool),
    Line("global_avg_pool2d_backward_vector", "4x8x8x64", _global_pool, 1.5, SHARED_DY),
)


# Normalization. Where the host function would give a thread the few rows that so small an array has for it, the kernel
# gets as many as it has in a large one.

BATCH, ROWS, SPAN, GROUPS = (16, 16, 16, 64), 4096, 256, 4
PARAMETERS = "a thread reads what belongs to its channels, for 16 rows or more"
FEW_ROWS = "a thread reads what belongs to its channels, here for as few as 4 rows"


def _apply(run: EmulatorRunner) -> None:
    x, c, known = ones(*BATCH), ones(64), statistics(64)
    bn.batchnorm_apply(run, x, known, c, c, ones(*BATCH), True, technique="vector")
    bn.batchnorm_add_relu_apply(run, x, x, known, c, c, ones(*BATCH), technique="vector")


def _batchnorm_backward(run: EmulatorRunner) -> None:
    x, c = ones(*BATCH), ones(64)
    gradients = ones(*BATCH), ones(64), ones(64)
    bn.batchnorm_backward(run, x, x, statistics(64), c, c, *gradients, True, True, technique="vector")


def _residual_backward(run: EmulatorRunner) -> None:
    x, gradients = ones(*BATCH), [ones(*BATCH), ones(*BATCH), ones(64), ones(64)]
    bn.batchnorm_add_relu_backward(run, x, x, x, statistics(64), ones(64), *gradients, True, technique="vector")


def _statistics(run: EmulatorRunner) -> None:
    bn.batchnorm_statistics(run, ones(*BATCH), 1e-5, statistics(64), technique="vector")


def _persistent(run: EmulatorRunner) -> None:
    run.chip = HOPPER._replace(multiprocessors=16)
    x, c, known = ones(*BATCH), ones(64), statistics(64)
    bn.batchnorm_forward(run, x, c, c, 1e-5, known, ones(*BATCH), True, technique="persistent")
    gradients = ones(*BATCH), ones(64), ones(64)
    bn.batchnorm_backward(run, x, x, known, c, c, *gradients, True, True, technique="persistent")


def _group_norm(shape: tuple[int, ...], groups: int) -> Call:
    """Statistics, forward and backward."""

    def call(run: EmulatorRunner) -> None:
        x, c, known = ones(*shape), ones(shape[-1]), statistics(shape[0], groups)
        gn.group_norm_statistics(run, x, groups, 1e-5, known)
        gn.group_norm_apply(run, x, known, groups, c, c, ones(*shape))
        gradients = ones(*shape), ones(shape[-1]), ones(shape[-1])
        gn.group_norm_backward(run, x, x, known, groups, c, *gradients)

    return call


IMAGES, SAMPLES = _group_norm((8, 16, 16, 64), 8), _group_norm((64, 256), 1)
LONG = _group_norm((16, 1024), 1)
NORMALIZATION = (
    Line("batchnorm_sum_shifted_vector", "16x16x16x64", _statistics),
    Line("batchnorm_apply_vector", "16x16x16x64", _apply, 1.35, FEW_ROWS),
    Line("batchnorm_add_relu_apply_vector", "16x16x16x64", _apply, 1.35, FEW_ROWS),
    Line("batchnorm_sum_gradients_vector", "16x16x16x64", _batchnorm_backward, 1.35, FEW_ROWS),
    Line("batchnorm_backward_vector", "16x16x16x64", _batchnorm_backward, 1.35, FEW_ROWS),
    Line("batchnorm_mask_and_sum_gradients_vector", "16x16x16x64", _residual_backward, 1.1, FEW_ROWS),
    Line("batchnorm_forward_persistent_vector", "16x16x16x64, 16 multiprocessors", _persistent),
    Line("batchnorm_backward_persistent_vector", "16x16x16x64, 16 multiprocessors", _persistent),
    Line("group_norm_sum_shifted_vector", "8x16x16x64, 8 groups", IMAGES),
    Line("group_norm_apply_vector", "8x16x16x64, 8 groups", IMAGES, 1.2, FEW_ROWS),
    Line("group_norm_sum_gradients_vector", "8x16x16x64, 8 groups", IMAGES),
    Line("group_norm_backward_vector", "8x16x16x64, 8 groups", IMAGES, 1.1, FEW_ROWS),
    Line("group_norm_statistics_of_groups_vector", "16x1024, 1 group", LONG),
    Line("group_norm_backward_of_groups_vector", "64x256, 1 group", SAMPLES, 1.2, "and gamma for each sample"),
    Line("group_norm_backward_of_groups_vector", "16x1024, 1 group", LONG, 2.4, "a long group is read twice"),
)


# Products. What a tile of the result needs of a factor is read for that tile; no line says more than how often.

TILES = "each factor is read once for every tile that needs it"
HALO = "lines of x around a tile are read again, and the weights for each tile"
TECHNIQUES = "implicit_gemm", "tensor_core"


def _convolution(
    x: tuple[int, ...], kernel: int, c_out: int, stride: int = 1, padding: int = 1, technique: str | None = None
) -> Call:
    """Forward and the gradient of the weights; that of the input where the technique has it."""
    ho, wo = ((size + 2 * padding - kernel) // stride + 1 for size in x[1:3])

    def call(run: EmulatorRunner) -> None:
        image, w, y = ones(*x), ones(kernel, kernel, x[3], c_out), ones(x[0], ho, wo, c_out)
        window = (stride, stride), (padding, padding)
        conv.conv2d_forward(run, image, w, None, y, *window, technique=technique)
        conv.conv2d_backward_weight(run, image, y, w, *window, technique=technique)
        if technique in TECHNIQUES:
            conv.conv2d_backward_input(run, y, w, image, *window, technique=technique)

    return call


def _linear(technique: str) -> Call:
    arrays = ones(128, 256), ones(128, 256), ones(128), ones(128, 128)
    return lambda run: linear.linear_forward(run, *arrays, technique=technique)


MNIST, CIFAR = (4, 28, 28, 1), (1, 32, 32, 3)
FIRST_LAYERS = (
    ("4x28x28x1, 3x3 to 32", _convolution(MNIST, 3, 32), 1.1),
    ("1x32x32x3, 3x3 to 16", _convolution(CIFAR, 3, 16), 1.1),
    ("1x32x32x3, 5x5 to 64, stride 2", _convolution(CIFAR, 5, 64, 2, 2), 1.5),
)
PRODUCTS = (
    *(
        Line(f"conv2d_{direction}_vector_first_layer", shape, call, limit, HALO)
        for shape, call, limit in FIRST_LAYERS
        for direction in ("forward", "backward_weight")
    ),
    *(
        Line(f"conv2d_{direction}_{technique}", "1x8x8x16, 3x3 to 64", call, 3.5, TILES)
        for technique in TECHNIQUES
        for call in (_convolution((1, 8, 8, 16), 3, 64, technique=technique),)
        for direction in ("forward", "backward_weight", "backward_input")
    ),
    Line("matmul_tiled", "128x256 times 256x128", _linear("tiled"), 2.0, TILES),
    Line("matmul_tensor_core", "128x256 times 256x128", _linear("tensor_core"), 2.0, TILES),
)

LINES = (*MOVES, *POOLING, *NORMALIZATION, *PRODUCTS)
