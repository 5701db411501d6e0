"""The reference as a device: every operation by its float64 definition in kernels/.

Slow, and right by inspection. A model moved here computes what it means; the other backends are held against it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

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
    linear,
    loss,
    metrics,
    noise,
    optimizer,
    pooling,
    rows,
    scale,
    softmax,
    steps,
)
from kernels.augmentation import draw_augmentation_reference
from kernels.images import gather_images_reference, gather_labels_reference
from minidl.backends.host import HostLossScale, HostMemory
from minidl.backends.protocol import BatchStatistics, GradientSums, Normalization, Pair, PendingGradient
from minidl.backends.registered import Registered


class ReferenceBackend(HostMemory, HostLossScale, Registered):
    """`Backend` in float64 NumPy."""

    name = "reference"
    key = (name,)
    dtype: np.dtype[Any] = np.dtype(np.float64)

    def describe(self) -> str:
        return "reference, NumPy float64"

    # Convolution and linear.

    def conv2d_forward(
        self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, y: np.ndarray, stride: Pair, padding: Pair
    ) -> None:
        y[...] = conv.conv2d_forward_reference(x, w, bias, stride, padding)

    def conv2d_backward_input(self, dy: np.ndarray, w: np.ndarray, dx: np.ndarray, stride: Pair, padding: Pair) -> None:
        dx[...] = conv.conv2d_backward_input_reference(dy, w, dx.shape, stride, padding)

    def conv2d_backward_weight(
        self, x: np.ndarray, dy: np.ndarray, dw: np.ndarray, stride: Pair, padding: Pair
    ) -> None:
        dw[...] = conv.conv2d_backward_weight_reference(x, dy, dw.shape, stride, padding)

    def bias_backward(self, dy: np.ndarray, db: np.ndarray) -> None:
        db[...] = conv.bias_backward_reference(dy)

    def fuses_normalization(self, c_in: int, c_out: int) -> bool:
        """True, so that what a chain means is what is computed here."""
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
        y[...] = conv.conv2d_normalized_forward_reference(x, before, w, stride, padding)
        if out is not None:
            _assign(out, conv.conv2d_normalized_statistics_reference(y, eps))

    def conv2d_normalized_backward_weight(
        self,
        x: np.ndarray,
        before: Normalization | None,
        dy: PendingGradient,
        dw: np.ndarray,
        stride: Pair,
        padding: Pair,
    ) -> None:
        dw[...] = conv.conv2d_normalized_backward_weight_reference(x, before, dy, dw.shape, stride, padding)

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
        given = dy, w, dx.shape, stride, padding, x, before
        dx[...], found = conv.conv2d_normalized_backward_input_reference(*given)
        if sums is not None and found is not None:
            _assign_wanted(sums, found)

    def linear_forward(self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, y: np.ndarray) -> None:
        y[...] = linear.linear_forward_reference(x, w, bias)

    def linear_backward_input(self, dy: np.ndarray, w: np.ndarray, dx: np.ndarray) -> None:
        dx[...] = linear.linear_backward_input_reference(dy, w)

    def linear_backward_weight(self, x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
        dw[...] = linear.linear_backward_weight_reference(x, dy)

    # Batch normalization.

    def batchnorm_statistics(self, x: np.ndarray, eps: float, out: BatchStatistics) -> None:
        _assign(out, batchnorm.batchnorm_statistics_reference(x, eps))

    def batchnorm_running_statistics(self, mean: np.ndarray, var: np.ndarray, eps: float, out: BatchStatistics) -> None:
        _assign(out, batchnorm.batchnorm_running_statistics_reference(mean, var, eps))

    def batchnorm_update_running(
        self,
        batch: BatchStatistics,
        rows: int,
        factor: float | np.ndarray,
        running_mean: np.ndarray,
        running_var: np.ndarray,
    ) -> None:
        after = batchnorm.batchnorm_update_running_reference(batch, rows, factor, running_mean, running_var)
        _assign((running_mean, running_var), after)

    def cumulative_weight(self, count: np.ndarray, part: int, parts: int, weight: np.ndarray) -> None:
        weight[...] = batchnorm.cumulative_weight_reference(int(count), part, parts)

    def batchnorm_apply(
        self,
        x: np.ndarray,
        statistics: BatchStatistics,
        gamma: np.ndarray | None,
        beta: np.ndarray | None,
        y: np.ndarray,
        relu: bool,
    ) -> None:
        y[...] = batchnorm.batchnorm_apply_reference(x, statistics, gamma, beta, relu)

    def batchnorm_backward(
        self,
        x: np.ndarray,
        dy: np.ndarray,
        statistics: BatchStatistics,
        gamma: np.ndarray | None,
        beta: np.ndarray | None,
        dx: np.ndarray,
        dgamma: np.ndarray | None,
        dbeta: np.ndarray | None,
        training: bool,
        relu: bool,
    ) -> None:
        gradients = batchnorm.batchnorm_backward_reference(x, dy, statistics, gamma, beta, training, relu)
        _assign_wanted((dx, dgamma, dbeta), gradients)

    def batchnorm_forward(
        self,
        x: np.ndarray,
        gamma: np.ndarray | None,
        beta: np.ndarray | None,
        eps: float,
        out: BatchStatistics,
        y: np.ndarray,
        relu: bool,
        residual: np.ndarray | None = None,
    ) -> None:
        statistics, y[...] = batchnorm.batchnorm_forward_reference(x, gamma, beta, eps, relu, residual)
        _assign(out, statistics)

    def batchnorm_add_relu_apply(
        self,
        x: np.ndarray,
        residual: np.ndarray,
        statistics: BatchStatistics,
        gamma: np.ndarray | None,
        beta: np.ndarray | None,
        y: np.ndarray,
    ) -> None:
        y[...] = batchnorm.batchnorm_add_relu_apply_reference(x, residual, statistics, gamma, beta)

    def batchnorm_add_relu_backward(
        self,
        x: np.ndarray,
        y: np.ndarray,
        dy: np.ndarray,
        statistics: BatchStatistics,
        gamma: np.ndarray | None,
        dx: np.ndarray,
        dresidual: np.ndarray,
        dgamma: np.ndarray | None,
        dbeta: np.ndarray | None,
        training: bool,
    ) -> None:
        gradients = batchnorm.batchnorm_add_relu_backward_reference(x, y, dy, statistics, gamma, training)
        _assign_wanted((dx, dresidual, dgamma, dbeta), gradients)

    def batchnorm_gradient_sums(
        self, x: np.ndarray, dy: np.ndarray, normalization: Normalization, sums: GradientSums
    ) -> None:
        _assign_wanted(sums, batchnorm.batchnorm_gradient_sums_reference(x, dy, normalization))

    def batchnorm_add_relu_gradient_sums(
        self,
        x: np.ndarray,
        y: np.ndarray,
        dy: np.ndarray,
        statistics: BatchStatistics,
        dresidual: np.ndarray,
        sums: GradientSums,
    ) -> None:
        dresidual[...], found = batchnorm.batchnorm_add_relu_gradient_sums_reference(x, y, dy, statistics)
        _assign_wanted(sums, found)

    def batchnorm_pending_gradient(self, dy: PendingGradient, dx: np.ndarray) -> None:
        dx[...] = batchnorm.batchnorm_pending_gradient_reference(dy)

    # Group, layer and instance normalization.

    def group_norm_statistics(self, x: np.ndarray, groups: int, eps: float, out: BatchStatistics) -> None:
        _assign(out, group_norm.group_norm_statistics_reference(x, groups, eps))

    def group_norm_apply(
        self,
        x: np.ndarray,
        statistics: BatchStatistics,
        groups: int,
        gamma: np.ndarray | None,
        beta: np.ndarray | None,
        y: np.ndarray,
    ) -> None:
        y[...] = group_norm.group_norm_apply_reference(x, statistics, groups, gamma, beta)

    def group_norm_backward(
        self,
        x: np.ndarray,
        dy: np.ndarray,
        statistics: BatchStatistics,
        groups: int,
        gamma: np.ndarray | None,
        dx: np.ndarray,
        dgamma: np.ndarray | None,
        dbeta: np.ndarray | None,
    ) -> None:
        gradients = group_norm.group_norm_backward_reference(x, dy, statistics, groups, gamma)
        _assign_wanted((dx, dgamma, dbeta), gradients)

    # Elementwise.

    def relu_forward(self, x: np.ndarray, y: np.ndarray) -> None:
        y[...] = activation.relu_forward_reference(x)

    def relu_backward(self, dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
        dx[...] = activation.relu_backward_reference(dy, y)

    def add(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        out[...] = elementwise.add_reference(a, b)

    def scale_forward(self, x: np.ndarray, factor: np.ndarray, y: np.ndarray) -> None:
        y[...] = scale.scale_forward_reference(x, factor)

    def scale_backward(
        self, x: np.ndarray, dy: np.ndarray, factor: np.ndarray, dx: np.ndarray, dfactor: np.ndarray
    ) -> None:
        _assign((dx, dfactor), scale.scale_backward_reference(x, dy, factor))

    def concat(self, parts: Sequence[np.ndarray], out: np.ndarray) -> None:
        out[...] = channels.concat_reference(parts)

    def split(self, whole: np.ndarray, parts: Sequence[np.ndarray]) -> None:
        _assign(parts, channels.split_reference(whole, [part.shape[-1] for part in parts]))

    def channels_first(self, x: np.ndarray, y: np.ndarray) -> None:
        y[...] = channel_order.channels_first_reference(x)

    def channels_last(self, x: np.ndarray, y: np.ndarray) -> None:
        y[...] = channel_order.channels_last_reference(x, y.shape)

    def dropout(self, x: np.ndarray, y: np.ndarray, p: float, seed: int, stream: int, call: np.ndarray) -> None:
        y[...] = dropout.dropout_reference(x, p, seed, stream, int(call))

    def noise_forward(
        self,
        x: np.ndarray,
        y: np.ndarray,
        offset: float,
        scale: float,
        jitter: float,
        seed: int,
        stream: int,
        call: np.ndarray,
    ) -> None:
        y[...] = noise.noise_forward_reference(x, offset, scale, jitter, seed, stream, int(call))

    def noise_backward(
        self, dy: np.ndarray, dx: np.ndarray, scale: float, jitter: float, seed: int, stream: int, call: np.ndarray
    ) -> None:
        dx[...] = noise.noise_backward_reference(dy, scale, jitter, seed, stream, int(call))

    def draw_augmentation(
        self,
        index: np.ndarray,
        shifts: np.ndarray,
        flips: np.ndarray,
        centres: np.ndarray,
        image_size: Pair,
        crop_padding: int,
        flip: bool,
        seed: int,
        epoch: np.ndarray,
    ) -> None:
        drawn = draw_augmentation_reference(index, image_size, crop_padding, flip, seed, int(epoch))
        _assign((shifts, flips, centres), drawn)

    def gather_images(
        self,
        images: np.ndarray,
        index: np.ndarray,
        shifts: np.ndarray,
        flips: np.ndarray,
        centres: np.ndarray,
        mean: np.ndarray,
        std: np.ndarray,
        out: np.ndarray,
        cutout: int,
    ) -> None:
        out[...] = gather_images_reference(images, index, shifts, flips, centres, mean, std, cutout)

    def gather_labels(self, labels: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
        out[...] = gather_labels_reference(labels, index)

    # Pooling.

    def max_pool2d_forward(
        self,
        x: np.ndarray,
        y: np.ndarray,
        index: np.ndarray,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair = (1, 1),
        ceil_mode: bool = False,
    ) -> None:
        window = kernel, stride, padding, dilation, ceil_mode
        _assign((y, index), pooling.max_pool2d_forward_reference(x, *window))

    def max_pool2d_backward(
        self,
        dy: np.ndarray,
        index: np.ndarray,
        dx: np.ndarray,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair = (1, 1),
        ceil_mode: bool = False,
    ) -> None:
        window = kernel, stride, padding, dilation, ceil_mode
        dx[...] = pooling.max_pool2d_backward_reference(dy, index, dx.shape, *window)

    def fuses_pooling(self) -> bool:
        """True, as chains are."""
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
        window = kernel, stride, padding, dilation, ceil_mode
        _assign((y, index), pooling.max_pool2d_normalized_forward_reference(x, before, *window))

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
        window = kernel, stride, padding, dilation, ceil_mode
        given = dy, index, dx.shape, *window, x, before
        dx[...], found = pooling.max_pool2d_normalized_backward_reference(*given)
        _assign_wanted(sums, found)

    def avg_pool2d_forward(
        self,
        x: np.ndarray,
        y: np.ndarray,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        count_include_pad: bool,
        ceil_mode: bool = False,
    ) -> None:
        options = kernel, stride, padding, count_include_pad, ceil_mode
        y[...] = pooling.avg_pool2d_forward_reference(x, *options)

    def avg_pool2d_backward(
        self,
        dy: np.ndarray,
        dx: np.ndarray,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        count_include_pad: bool,
        ceil_mode: bool = False,
    ) -> None:
        options = kernel, stride, padding, count_include_pad, ceil_mode
        dx[...] = pooling.avg_pool2d_backward_reference(dy, dx.shape, *options)

    def global_avg_pool2d_forward(self, x: np.ndarray, y: np.ndarray) -> None:
        y[...] = pooling.global_avg_pool2d_forward_reference(x)

    def global_avg_pool2d_backward(self, dy: np.ndarray, dx: np.ndarray) -> None:
        dx[...] = pooling.global_avg_pool2d_backward_reference(dy, dx.shape)

    # Softmax.

    def softmax_forward(self, x: np.ndarray, y: np.ndarray) -> None:
        y[...] = softmax.softmax_forward_reference(x)

    def softmax_backward(self, dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
        dx[...] = softmax.softmax_backward_reference(dy, y)

    def log_softmax_forward(self, x: np.ndarray, y: np.ndarray) -> None:
        y[...] = softmax.log_softmax_forward_reference(x)

    def log_softmax_backward(self, dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
        dx[...] = softmax.log_softmax_backward_reference(dy, y)

    # Loss, metrics, optimizers.

    def cross_entropy(
        self,
        logits: np.ndarray,
        targets: np.ndarray,
        loss: np.ndarray,
        dlogits: np.ndarray,
        label_smoothing: float,
        ignore_index: int,
        reduction: str,
        weight: np.ndarray | None = None,
    ) -> None:
        _assign((loss, dlogits), _cross_entropy(logits, targets, label_smoothing, ignore_index, reduction, weight))

    def scale_rows(self, x: np.ndarray, factors: np.ndarray, y: np.ndarray) -> None:
        y[...] = rows.scale_rows_reference(x, factors)

    def append_result(
        self,
        logits: np.ndarray,
        targets: np.ndarray,
        loss: np.ndarray,
        count: np.ndarray,
        losses: np.ndarray,
        corrects: np.ndarray,
    ) -> None:
        metrics.append_result_reference(logits, targets, loss, count, losses, corrects)

    def all_finite(self, x: np.ndarray) -> bool:
        return metrics.all_finite_reference(x)

    def sgd(
        self,
        values: Sequence[np.ndarray],
        grads: Sequence[np.ndarray],
        velocities: Sequence[np.ndarray],
        numbers: np.ndarray,
        rows: Sequence[int],
        nesterov: bool,
    ) -> None:
        for i, (value, grad) in enumerate(zip(values, grads, strict=True)):
            velocity = velocities[i] if velocities else None
            lr, momentum, decay = numbers[rows[i]]
            after = optimizer.sgd_reference(value, grad, velocity, lr, momentum, decay, nesterov)
            _assign((value,) if velocity is None else (value, velocity), after[: 1 if velocity is None else 2])

    def adam(
        self,
        values: Sequence[np.ndarray],
        grads: Sequence[np.ndarray],
        first_moments: Sequence[np.ndarray],
        second_moments: Sequence[np.ndarray],
        numbers: np.ndarray,
        rows: Sequence[int],
    ) -> None:
        for value, grad, first, second, row in zip(values, grads, first_moments, second_moments, rows, strict=True):
            after = optimizer.adam_by_numbers_reference(value, grad, first, second, numbers[row])
            _assign((value, first, second), after)

    def moving_average(self, averages: Sequence[np.ndarray], values: Sequence[np.ndarray], weight: np.ndarray) -> None:
        for average, value in zip(averages, values, strict=True):
            average[...] = averaging.moving_average_reference(average, value, weight)

    def begin_step(
        self,
        order: np.ndarray,
        plan: np.ndarray,
        step: np.ndarray,
        size: int,
        index: np.ndarray,
        numbers: np.ndarray,
    ) -> None:
        steps.begin_step_reference(order, plan, step, size, index, numbers)

    def count_call(self, count: np.ndarray, call: np.ndarray) -> None:
        steps.count_call_reference(count, call)

    def append_number(self, value: np.ndarray, count: np.ndarray, log: np.ndarray) -> None:
        steps.append_number_reference(value, count, log)

    def global_norm(self, arrays: Sequence[np.ndarray], norm: np.ndarray) -> None:
        norm[...] = gradient_norm.global_norm_reference(arrays)

    def clip_by_norm(self, arrays: Sequence[np.ndarray], norm: np.ndarray, max_norm: float) -> None:
        for array in arrays:
            array[...] = gradient_norm.clip_by_norm_reference(array, norm, max_norm)


_cross_entropy = loss.cross_entropy_reference


def _assign(targets: Sequence[np.ndarray], values: Sequence[Any]) -> None:
    for target, value in zip(targets, values, strict=True):
        target[...] = value


def _assign_wanted(targets: Sequence[np.ndarray | None], values: Sequence[Any]) -> None:
    for target, value in zip(targets, values, strict=True):
        if target is not None:
            target[...] = value
