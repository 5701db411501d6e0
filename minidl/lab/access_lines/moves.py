"""Lines of elementwise operations, moves, sums, the loss and softmax."""

import numpy as np

from kernels import (
    activation,
    channel_order,
    channels,
    columns,
    dropout,
    elementwise,
    gradient_norm,
    loss,
    metrics,
    noise,
    optimizer,
    scale,
    softmax,
)
from kernels.run_emulated import EmulatorRunner
from kernels.storage import BFLOAT16, FLOAT16, Storage
from minidl.lab.access_lines.line import Call, Line, ones

SIZE = 16384
CALL = np.zeros((), np.uint32)  # of dropout and noise


def _relu(run: EmulatorRunner) -> None:
    activation.relu_forward(run, ones(SIZE), ones(SIZE))
    activation.relu_backward(run, ones(SIZE), ones(SIZE), ones(SIZE))


def _scale(run: EmulatorRunner) -> None:
    scale.scale_forward(run, ones(SIZE), ones(), ones(SIZE))
    scale.scale_backward(run, ones(SIZE), ones(SIZE), ones(), ones(SIZE), ones())


def _stored(storage: Storage) -> Call:
    """All of these, of activations in 16 bits."""

    def call(run: EmulatorRunner) -> None:
        x, y = ones(SIZE, dtype=storage.dtype), ones(SIZE, dtype=storage.dtype)
        activation.relu_forward(run, x, y)
        activation.relu_backward(run, x, x, y)
        elementwise.add(run, x, x, y)
        dropout.dropout(run, x, y, 0.5, 0, 0, CALL)
        scale.scale_forward(run, x, ones(), y)
        scale.scale_backward(run, x, x, ones(), y, ones())
        parts = ones(512, 32, dtype=storage.dtype), ones(512, 64, dtype=storage.dtype)
        channels.concat(run, parts, ones(512, 96, dtype=storage.dtype))
        metrics.all_finite(run, x)

    return call


def _flatten(run: EmulatorRunner) -> None:
    """From 16 bits to float32, and back."""
    image = ones(4, 16, 16, 64, dtype=BFLOAT16.dtype)
    channel_order.channels_first(run, image, ones(4, 64 * 256))
    channel_order.channels_last(run, ones(4, 64 * 256), image)


def _channels_first(h: int, w: int, c: int) -> Call:
    return lambda run: channel_order.channels_first(run, ones(4, h, w, c), ones(4, c * h * w))


def _channels_last(h: int, w: int, c: int) -> Call:
    return lambda run: channel_order.channels_last(run, ones(4, c * h * w), ones(4, h, w, c))


def _loss(run: EmulatorRunner) -> None:
    targets = np.zeros(256, np.int64)
    loss.cross_entropy(run, ones(256, 10), targets, ones(), ones(256, 10), 0.1, -100, "mean", technique="fused")


def _softmax(run: EmulatorRunner) -> None:
    softmax.softmax_forward(run, ones(64, 512), ones(64, 512))
    softmax.softmax_backward(run, ones(64, 512), ones(64, 512), ones(64, 512))


STORED = (
    *((f"{name}_vector", "16384") for name in ("relu_forward", "relu_backward", "add", "dropout")),
    *((f"{name}_vector", "16384") for name in ("scale_forward", "scale_backward")),
    ("copy_columns_vector", "512x32 and 512x64 into 512x96"),
    ("count_not_finite_vector", "16384"),
)
LINES = (
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
        lambda run: optimizer.sgd(run, *([ones(SIZE), ones(SIZE)] for _ in range(3)), ones(2, 3), [0, 1], False),
    ),
    Line(
        "copy_columns_vector",
        "512x32 and 512x64 into 512x96",
        lambda run: channels.concat(run, [ones(512, 32), ones(512, 64)], ones(512, 96)),
    ),
    *(
        Line(name, f"{shape}, {storage}", call)
        for storage, call in ((BFLOAT16, _stored(BFLOAT16)), (FLOAT16, _stored(FLOAT16)))
        for name, shape in STORED
    ),
    Line("transpose_tiled", "4x16x16x64, bfloat16 to float32, and back", _flatten),
    Line("transpose_tiled", "4x16x16x64", _channels_first(16, 16, 64)),
    Line("transpose_tiled", "4x32x32x3", _channels_first(32, 32, 3)),
    Line("transpose_tiled", "4x3x32x32", _channels_last(32, 32, 3)),
    Line("sum_columns_of_chunks", "8192x64", lambda run: columns.sum_columns(run, ones(8192, 64), ones(64))),
    Line("sum_columns_of_chunks", "8192x8", lambda run: columns.sum_columns(run, ones(8192, 8), ones(8))),
    Line("cross_entropy_fused", "256x10", _loss, 1.3, "each block looks at all targets"),
    Line("softmax_forward_rows", "64x512", _softmax),
    Line("softmax_backward_rows", "64x512", _softmax),
)
