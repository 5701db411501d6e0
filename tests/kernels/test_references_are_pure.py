"""What holds for every reference: it computes in the dtype of its input, writes to no input and returns new arrays."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from kernels import (
    activation,
    averaging,
    batchnorm,
    channel_order,
    channels,
    conv,
    dropout,
    elementwise,
    gradient_norm,
    group_norm,
    images,
    linear,
    loss,
    metrics,
    noise,
    optimizer,
    pooling,
    rows,
    scale,
    softmax,
)
from kernels.batch_statistics import GradientSums, Normalization, PendingGradient


def calls(real: Callable[..., np.ndarray]) -> dict[str, Callable[[], Any]]:
    """Every reference with ordinary arguments; `real(*shape)` makes a read-only array of positive numbers."""
    image, kernel = real(2, 5, 5, 3), real(3, 3, 3, 4)
    out, vector = real(2, 5, 5, 4), real(3)
    one, none = (1, 1), (0, 0)
    var = real(3)
    statistics = batchnorm.BatchStatistics(real(3), real(3), var, real(3))
    normalization = Normalization(statistics, vector, vector, relu=True)
    of_outputs = Normalization(batchnorm.BatchStatistics(*(real(4) for _ in range(4))), real(4), real(4), relu=True)
    pending = PendingGradient(out, real(2, 5, 5, 4), of_outputs, GradientSums(*(real(4) for _ in range(4))))
    of_groups = batchnorm.BatchStatistics(*(real(2, 3) for _ in range(4)))
    places = np.zeros((2, 2, 2, 3), np.int32)
    targets = np.array([0, 2, -100, 1, 1])
    pool = ((2, 2), (2, 2), none)
    raw = np.zeros((4, 5, 5, 3), np.uint8)
    index, shifts, flips = np.array([0, 3]), np.zeros((2, 2), np.int32), np.zeros(2, bool)
    for array in (places, targets, raw, index, shifts, flips):
        array.flags.writeable = False
    return {
        "conv2d_forward": lambda: conv.conv2d_forward_reference(image, kernel, real(4), one, one),
        "conv2d_forward without bias": lambda: conv.conv2d_forward_reference(image, kernel, None, one, one),
        "conv2d_backward_input": lambda: conv.conv2d_backward_input_reference(out, kernel, image.shape, one, one),
        "conv2d_backward_weight": lambda: conv.conv2d_backward_weight_reference(image, out, kernel.shape, one, one),
        "conv2d_normalized_forward": lambda: conv.conv2d_normalized_forward_reference(
            image, normalization, kernel, one, one
        ),
        "conv2d_normalized_statistics": lambda: conv.conv2d_normalized_statistics_reference(image, 1e-5),
        "conv2d_normalized_backward_weight": lambda: conv.conv2d_normalized_backward_weight_reference(
            image, normalization, pending, kernel.shape, one, one
        ),
        "conv2d_normalized_backward_input": lambda: conv.conv2d_normalized_backward_input_reference(
            pending, kernel, image.shape, one, one, image, normalization
        ),
        "bias_backward": lambda: conv.bias_backward_reference(out),
        "linear_forward": lambda: linear.linear_forward_reference(real(2, 3), real(4, 3), real(4)),
        "linear_backward_input": lambda: linear.linear_backward_input_reference(real(2, 4), real(4, 3)),
        "linear_backward_weight": lambda: linear.linear_backward_weight_reference(real(2, 3), real(2, 4)),
        "batchnorm_statistics": lambda: batchnorm.batchnorm_statistics_reference(image, 1e-5),
        "batchnorm_running_statistics": lambda: batchnorm.batchnorm_running_statistics_reference(vector, var, 1e-5),
        "batchnorm_update_running": lambda: batchnorm.batchnorm_update_running_reference(
            statistics, 50, 0.1, vector, var
        ),
        "batchnorm_apply": lambda: batchnorm.batchnorm_apply_reference(image, statistics, vector, vector, True),
        "batchnorm_backward": lambda: batchnorm.batchnorm_backward_reference(
            image, image, statistics, vector, vector, True, True
        ),
        "batchnorm_backward in evaluation": lambda: batchnorm.batchnorm_backward_reference(
            image, image, statistics, vector, vector, False, False
        ),
        "batchnorm_forward": lambda: batchnorm.batchnorm_forward_reference(image, vector, vector, 1e-5, True, image),
        "batchnorm_add_relu_apply": lambda: batchnorm.batchnorm_add_relu_apply_reference(
            image, image, statistics, vector, vector
        ),
        "batchnorm_add_relu_backward": lambda: batchnorm.batchnorm_add_relu_backward_reference(
            image, image, image, statistics, vector, True
        ),
        "batchnorm_gradient_sums": lambda: batchnorm.batchnorm_gradient_sums_reference(image, image, normalization),
        "batchnorm_add_relu_gradient_sums": lambda: batchnorm.batchnorm_add_relu_gradient_sums_reference(
            image, image, image, statistics
        ),
        "batchnorm_pending_gradient": lambda: batchnorm.batchnorm_pending_gradient_reference(
            PendingGradient(image, image, normalization, GradientSums(*[vector] * 4))
        ),
        "group_norm_statistics": lambda: group_norm.group_norm_statistics_reference(image, 3, 1e-5),
        "group_norm_apply": lambda: group_norm.group_norm_apply_reference(image, of_groups, 3, vector, vector),
        "group_norm_apply without affine": lambda: group_norm.group_norm_apply_reference(
            image, of_groups, 3, None, None
        ),
        "group_norm_backward": lambda: group_norm.group_norm_backward_reference(image, image, of_groups, 3, vector),
        "relu_forward": lambda: activation.relu_forward_reference(image),
        "relu_backward": lambda: activation.relu_backward_reference(image, image),
        "add": lambda: elementwise.add_reference(image, image),
        "concat": lambda: channels.concat_reference([image, out]),
        "concat of one": lambda: channels.concat_reference([image]),
        "split": lambda: channels.split_reference(image, [1, 2]),
        "split into one": lambda: channels.split_reference(image, [3]),
        "channels_first": lambda: channel_order.channels_first_reference(image),
        "channels_first of one channel": lambda: channel_order.channels_first_reference(real(2, 3, 3, 1)),
        "channels_last": lambda: channel_order.channels_last_reference(real(2, 6), (2, 1, 2, 3)),
        "channels_last of one place": lambda: channel_order.channels_last_reference(real(2, 3), (2, 1, 1, 3)),
        "dropout": lambda: dropout.dropout_reference(image, 0.3, 0, 0, 0),
        "dropout of nothing": lambda: dropout.dropout_reference(image, 0.0, 0, 0, 0),
        "dropout of all": lambda: dropout.dropout_reference(image, 1.0, 0, 0, 0),
        "noise_forward": lambda: noise.noise_forward_reference(image, 0.5, 1.25, 0.1, 0, 0, 0),
        "noise_backward": lambda: noise.noise_backward_reference(image, 1.25, 0.1, 0, 0, 0),
        "gather_images": lambda: images.gather_images_reference(raw, index, shifts, flips, shifts, vector, var, 3),
        "max_pool2d_forward": lambda: pooling.max_pool2d_forward_reference(image, *pool)[0],
        "max_pool2d_backward": lambda: pooling.max_pool2d_backward_reference(
            real(2, 2, 2, 3), places, image.shape, *pool
        ),
        "max_pool2d_normalized_forward": lambda: pooling.max_pool2d_normalized_forward_reference(
            image, normalization, *pool
        )[0],
        "max_pool2d_normalized_backward": lambda: pooling.max_pool2d_normalized_backward_reference(
            real(2, 2, 2, 3), places, image.shape, *pool, one, False, image, normalization
        ),
        "avg_pool2d_forward": lambda: pooling.avg_pool2d_forward_reference(image, *pool, False),
        "avg_pool2d_backward": lambda: pooling.avg_pool2d_backward_reference(
            real(2, 2, 2, 3), image.shape, *pool, False
        ),
        "avg_pool2d_forward of one element": lambda: pooling.avg_pool2d_forward_reference(image, one, one, none, True),
        "global_avg_pool2d_forward": lambda: pooling.global_avg_pool2d_forward_reference(image),
        "global_avg_pool2d_backward": lambda: pooling.global_avg_pool2d_backward_reference(real(2, 3), image.shape),
        "cross_entropy": lambda: loss.cross_entropy_reference(real(5, 3), targets, 0.1, -100, "mean"),
        "cross_entropy sum": lambda: loss.cross_entropy_reference(real(5, 3), targets, 0.0, -100, "sum"),
        "cross_entropy rows": lambda: loss.cross_entropy_reference(real(5, 3), targets, 0.0, -100, "none", real(3)),
        "cross_entropy weights": lambda: loss.cross_entropy_reference(real(5, 3), targets, 0.1, -100, "mean", real(3)),
        "scale_rows": lambda: rows.scale_rows_reference(real(5, 3), real(5)),
        "softmax_forward": lambda: softmax.softmax_forward_reference(image),
        "softmax_backward": lambda: softmax.softmax_backward_reference(image, image),
        "log_softmax_forward": lambda: softmax.log_softmax_forward_reference(image),
        "log_softmax_backward": lambda: softmax.log_softmax_backward_reference(image, image),
        "sgd": lambda: optimizer.sgd_reference(vector, vector, None, 0.1, 0.0, 0.1, False)[0],
        "sgd with momentum": lambda: optimizer.sgd_reference(vector, vector, vector, 0.1, 0.9, 0.1, True),
        "adam": lambda: optimizer.adam_reference(vector, vector, vector, var, 3, 0.1, 0.9, 0.99, 1e-8, 0.1, False),
        "adam_by_numbers": lambda: optimizer.adam_by_numbers_reference(vector, vector, vector, var, np.ones(9)),
        "adam decoupled": lambda: optimizer.adam_reference(
            vector, vector, vector, var, 3, 0.1, 0.9, 0.99, 1e-8, 0.1, True
        ),
        "moving_average": lambda: averaging.moving_average_reference(vector, var, 0.1),
        "global_norm": lambda: gradient_norm.global_norm_reference([vector, image]),
        "global_norm of one number": lambda: gradient_norm.global_norm_reference([real()]),
        "clip_by_norm": lambda: gradient_norm.clip_by_norm_reference(vector, real(), 0.1),
        "clip_by_norm of one number": lambda: gradient_norm.clip_by_norm_reference(real(), real(), 9.0),
        "scale_forward": lambda: scale.scale_forward_reference(image, real()),
        "scale_forward of one number": lambda: scale.scale_forward_reference(real(), real()),
        "scale_backward": lambda: scale.scale_backward_reference(image, image, real()),
    }


OPERATIONS = list(calls(lambda *shape: np.ones(shape)))


def arrays(result: Any) -> Iterator[np.ndarray]:
    if isinstance(result, tuple | list):
        for part in result:
            yield from arrays(part)
    else:
        yield np.asarray(result)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_keeps_the_dtype_and_its_inputs(dtype, operation: str) -> None:
    given: list[np.ndarray] = []

    def real(*shape: int) -> np.ndarray:
        array = np.random.default_rng(len(given)).uniform(0.5, 1.5, shape).astype(dtype)
        array.flags.writeable = False  # a reference that writes to it raises
        given.append(array)
        return array

    results = list(arrays(calls(real)[operation]()))
    assert results
    for result in results:
        assert result.dtype == dtype
        assert not any(np.shares_memory(result, array) for array in given)


def test_every_reference_is_listed() -> None:
    modules = (
        activation, averaging, batchnorm, channel_order, channels, conv, dropout, elementwise, gradient_norm,
        group_norm, images, linear, loss, metrics, noise, optimizer, pooling, rows, scale, softmax,
    )  # fmt: skip
    names = {
        name
        for module in modules
        for name, what in vars(module).items()
        if name.endswith("_reference") and inspect.isfunction(what)
    }
    listed = {f"{operation.split()[0]}_reference" for operation in OPERATIONS}
    others = (
        "count_correct",
        "append_result",
        "cumulative_weight",
        "all_finite",
        "gather_labels",
        "dropout_keep",
        "uniform",
    )
    other_dtypes = {f"{name}_reference" for name in others}
    assert names - other_dtypes == listed
