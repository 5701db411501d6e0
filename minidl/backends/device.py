"""The kernels of kernels/ as a backend: each operation is its host function, given the runner that runs it."""

import inspect
from collections.abc import Callable, Sequence
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
    loss_scale,
    metrics,
    noise,
    optimizer,
    pooling,
    scale,
    softmax,
    steps,
)
from kernels.augmentation import draw_augmentation
from kernels.images import gather_images, gather_labels
from kernels.launch import Graph, Runner
from kernels.loss import cross_entropy
from kernels.rows import scale_rows
from kernels.storage import BFLOAT16, FLOAT16, FLOAT32, STORAGES
from minidl.backends.protocol import Array, BatchStatistics, GradientSums, Normalization, Pair, PendingGradient
from minidl.backends.registered import Registered
from minidl.backends.techniques import Techniques

NARROW = {"bf16": BFLOAT16, "fp16": FLOAT16}  # by precision, how images' activations are stored


class DeviceBackend(Registered, Techniques):
    """The operations of `Backend`; a subclass has the memory, and the runner for arrays in it.

    Attributes:
        run: Runs kernels.
        precision: Of convolutions and linear layers whose technique is not asked for by name: "fp32", or "tf32" to
            take tensor cores where the shapes suit them. With "bf16" and "fp16" layers store images' activations so,
            and linear layers are as with "tf32".
        checks_targets: Whether the loss waits to see that each target is a class. A CUDA graph cannot wait; without the
            check, a target that is none makes the loss NaN.
        asked_for: The technique that `use` was told to take, by operation.
    """

    captures = True
    storages = STORAGES  # of images' activations; the operations go by their arrays' dtypes

    name: str
    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, run: Runner, precision: str = "fp32") -> None:
        self.run = run
        self.precision = precision
        self.key = self.name, None, precision
        self.checks_targets = True
        self.asked_for: dict[str, str] = {}

    def techniques(self, operation: str) -> tuple[str, ...]:
        """The techniques that an operation has; none where there is no choice."""
        host: Callable[..., Any] | None = _HOSTS.get(operation)
        return getattr(host, "techniques", ())

    def _launch(self, host: Callable[..., Any], *args: Any, **options: Any) -> Any:
        technique = self.asked_for.get(host.__name__)
        if technique is not None:
            options["technique"] = technique
        return host(self.run, *args, **options)

    @property
    def activations(self) -> np.dtype[Any]:
        """See `Backend`."""
        return NARROW[self.precision].dtype if self.precision in NARROW else self.dtype

    @property
    def _of_vectors(self) -> str:
        """The precision of linear layers, whose arrays are float32."""
        return "tf32" if self.precision in NARROW else self.precision

    @property
    def capturing(self) -> bool:
        """Whether `capture` records right now."""
        return self.run.capturing

    def capture(self, function: Callable[[], Any], warm_up: int = 1) -> Graph:
        """See `Backend`."""
        checks = self.checks_targets

        def recorded() -> None:
            self.checks_targets = checks and not self.capturing
            try:
                function()
            finally:
                self.checks_targets = checks

        return self.run.capture(recorded, warm_up)

    # Convolution and linear.

    def conv2d_forward(self, x: Array, w: Array, bias: Array | None, y: Array, stride: Pair, padding: Pair) -> None:
        self._launch(conv.conv2d_forward, x, w, bias, y, stride, padding, precision=self.precision)

    def conv2d_backward_input(self, dy: Array, w: Array, dx: Array, stride: Pair, padding: Pair) -> None:
        self._launch(conv.conv2d_backward_input, dy, w, dx, stride, padding, precision=self.precision)

    def conv2d_backward_weight(self, x: Array, dy: Array, dw: Array, stride: Pair, padding: Pair) -> None:
        self._launch(conv.conv2d_backward_weight, x, dy, dw, stride, padding, precision=self.precision)

    def bias_backward(self, dy: Array, db: Array) -> None:
        self._launch(conv.bias_backward, dy, db)

    def fuses_normalization(self, c_in: int, c_out: int) -> bool:
        chunk = NARROW.get(self.precision, FLOAT32).wide
        return self.precision != "fp32" and c_in % chunk == 0 and c_out % chunk == 0

    def conv2d_normalized_forward(
        self,
        x: Array,
        before: Normalization | None,
        w: Array,
        y: Array,
        stride: Pair,
        padding: Pair,
        eps: float,
        out: BatchStatistics | None,
    ) -> None:
        given = x, before, w, y, stride, padding, eps, out
        self._launch(conv.conv2d_normalized_forward, *given, precision=self.precision)

    def conv2d_normalized_backward_weight(
        self, x: Array, before: Normalization | None, dy: PendingGradient, dw: Array, stride: Pair, padding: Pair
    ) -> None:
        given = x, before, dy, dw, stride, padding
        self._launch(conv.conv2d_normalized_backward_weight, *given, precision=self.precision)

    def conv2d_normalized_backward_input(
        self,
        dy: PendingGradient,
        w: Array,
        dx: Array,
        stride: Pair,
        padding: Pair,
        x: Array | None,
        before: Normalization | None,
        sums: GradientSums | None,
    ) -> None:
        given = dy, w, dx, stride, padding, x, before, sums
        self._launch(conv.conv2d_normalized_backward_input, *given, precision=self.precision)

    def linear_forward(self, x: Array, w: Array, bias: Array | None, y: Array) -> None:
        self._launch(linear.linear_forward, x, w, bias, y, precision=self._of_vectors)

    def linear_backward_input(self, dy: Array, w: Array, dx: Array) -> None:
        self._launch(linear.linear_backward_input, dy, w, dx, precision=self._of_vectors)

    def linear_backward_weight(self, x: Array, dy: Array, dw: Array) -> None:
        self._launch(linear.linear_backward_weight, x, dy, dw, precision=self._of_vectors)

    # Batch normalization.

    def batchnorm_statistics(self, x: Array, eps: float, out: BatchStatistics) -> None:
        self._launch(batchnorm.batchnorm_statistics, x, eps, out)

    def batchnorm_running_statistics(self, mean: Array, var: Array, eps: float, out: BatchStatistics) -> None:
        self._launch(batchnorm.batchnorm_running_statistics, mean, var, eps, out)

    def batchnorm_update_running(
        self, batch: BatchStatistics, rows: int, factor: float | Array, running_mean: Array, running_var: Array
    ) -> None:
        self._launch(batchnorm.batchnorm_update_running, batch, rows, factor, running_mean, running_var)

    def cumulative_weight(self, count: Array, part: int, parts: int, weight: Array) -> None:
        self._launch(batchnorm.cumulative_weight, count, part, parts, weight)

    def batchnorm_apply(
        self, x: Array, statistics: BatchStatistics, gamma: Array | None, beta: Array | None, y: Array, relu: bool
    ) -> None:
        self._launch(batchnorm.batchnorm_apply, x, statistics, gamma, beta, y, relu)

    def batchnorm_backward(
        self,
        x: Array,
        dy: Array,
        statistics: BatchStatistics,
        gamma: Array | None,
        beta: Array | None,
        dx: Array,
        dgamma: Array | None,
        dbeta: Array | None,
        training: bool,
        relu: bool,
    ) -> None:
        parameters = gamma, beta, dx, dgamma, dbeta
        self._launch(batchnorm.batchnorm_backward, x, dy, statistics, *parameters, training, relu)

    def batchnorm_forward(
        self,
        x: Array,
        gamma: Array | None,
        beta: Array | None,
        eps: float,
        out: BatchStatistics,
        y: Array,
        relu: bool,
        residual: Array | None = None,
    ) -> None:
        self._launch(batchnorm.batchnorm_forward, x, gamma, beta, eps, out, y, relu, residual)

    def batchnorm_add_relu_apply(
        self, x: Array, residual: Array, statistics: BatchStatistics, gamma: Array | None, beta: Array | None, y: Array
    ) -> None:
        self._launch(batchnorm.batchnorm_add_relu_apply, x, residual, statistics, gamma, beta, y)

    def batchnorm_add_relu_backward(
        self,
        x: Array,
        y: Array,
        dy: Array,
        statistics: BatchStatistics,
        gamma: Array | None,
        dx: Array,
        dresidual: Array,
        dgamma: Array | None,
        dbeta: Array | None,
        training: bool,
    ) -> None:
        gradients = dx, dresidual, dgamma, dbeta
        self._launch(batchnorm.batchnorm_add_relu_backward, x, y, dy, statistics, gamma, *gradients, training)

    def batchnorm_gradient_sums(self, x: Array, dy: Array, normalization: Normalization, sums: GradientSums) -> None:
        self._launch(batchnorm.batchnorm_gradient_sums, x, dy, normalization, sums)

    def batchnorm_add_relu_gradient_sums(
        self, x: Array, y: Array, dy: Array, statistics: BatchStatistics, dresidual: Array, sums: GradientSums
    ) -> None:
        self._launch(batchnorm.batchnorm_add_relu_gradient_sums, x, y, dy, statistics, dresidual, sums)

    def batchnorm_pending_gradient(self, dy: PendingGradient, dx: Array) -> None:
        self._launch(batchnorm.batchnorm_pending_gradient, dy, dx)

    # Group, layer and instance normalization.

    def group_norm_statistics(self, x: Array, groups: int, eps: float, out: BatchStatistics) -> None:
        self._launch(group_norm.group_norm_statistics, x, groups, eps, out)

    def group_norm_apply(
        self, x: Array, statistics: BatchStatistics, groups: int, gamma: Array | None, beta: Array | None, y: Array
    ) -> None:
        self._launch(group_norm.group_norm_apply, x, statistics, groups, gamma, beta, y)

    def group_norm_backward(
        self,
        x: Array,
        dy: Array,
        statistics: BatchStatistics,
        groups: int,
        gamma: Array | None,
        dx: Array,
        dgamma: Array | None,
        dbeta: Array | None,
    ) -> None:
        self._launch(group_norm.group_norm_backward, x, dy, statistics, groups, gamma, dx, dgamma, dbeta)

    # Elementwise.

    def relu_forward(self, x: Array, y: Array) -> None:
        self._launch(activation.relu_forward, x, y)

    def relu_backward(self, dy: Array, y: Array, dx: Array) -> None:
        self._launch(activation.relu_backward, dy, y, dx)

    def add(self, a: Array, b: Array, out: Array) -> None:
        self._launch(elementwise.add, a, b, out)

    def scale_forward(self, x: Array, factor: Array, y: Array) -> None:
        self._launch(scale.scale_forward, x, factor, y)

    def scale_backward(self, x: Array, dy: Array, factor: Array, dx: Array, dfactor: Array) -> None:
        self._launch(scale.scale_backward, x, dy, factor, dx, dfactor)

    def concat(self, parts: Sequence[Array], out: Array) -> None:
        self._launch(channels.concat, parts, out)

    def split(self, whole: Array, parts: Sequence[Array]) -> None:
        self._launch(channels.split, whole, parts)

    def channels_first(self, x: Array, y: Array) -> None:
        self._launch(channel_order.channels_first, x, y)

    def channels_last(self, x: Array, y: Array) -> None:
        self._launch(channel_order.channels_last, x, y)

    def dropout(self, x: Array, y: Array, p: float, seed: int, stream: int, call: Array) -> None:
        self._launch(dropout.dropout, x, y, p, seed, stream, call)

    def noise_forward(
        self,
        x: Array,
        y: Array,
        offset: float,
        scale: float,
        jitter: float,
        seed: int,
        stream: int,
        call: Array,
    ) -> None:
        self._launch(noise.noise_forward, x, y, offset, scale, jitter, seed, stream, call)

    def noise_backward(
        self, dy: Array, dx: Array, scale: float, jitter: float, seed: int, stream: int, call: Array
    ) -> None:
        self._launch(noise.noise_backward, dy, dx, scale, jitter, seed, stream, call)

    # Pooling.

    def max_pool2d_forward(
        self,
        x: Array,
        y: Array,
        index: Array,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair = (1, 1),
        ceil_mode: bool = False,
    ) -> None:
        window = kernel, stride, padding, dilation, ceil_mode
        self._launch(pooling.max_pool2d_forward, x, y, index, *window)

    def max_pool2d_backward(
        self,
        dy: Array,
        index: Array,
        dx: Array,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair = (1, 1),
        ceil_mode: bool = False,
    ) -> None:
        window = kernel, stride, padding, dilation, ceil_mode
        self._launch(pooling.max_pool2d_backward, dy, index, dx, *window)

    def fuses_pooling(self) -> bool:
        return False  # they are composed of their parts

    def max_pool2d_normalized_forward(
        self,
        x: Array,
        before: Normalization,
        y: Array,
        index: Array,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair = (1, 1),
        ceil_mode: bool = False,
    ) -> None:
        window = kernel, stride, padding, dilation, ceil_mode
        self._launch(pooling.max_pool2d_normalized_forward, x, before, y, index, *window)

    def max_pool2d_normalized_backward(
        self,
        dy: Array,
        index: Array,
        dx: Array,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        ceil_mode: bool,
        x: Array,
        before: Normalization,
        sums: GradientSums,
    ) -> None:
        window = kernel, stride, padding, dilation, ceil_mode
        self._launch(pooling.max_pool2d_normalized_backward, dy, index, dx, *window, x, before, sums)

    def avg_pool2d_forward(
        self,
        x: Array,
        y: Array,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        count_include_pad: bool,
        ceil_mode: bool = False,
    ) -> None:
        options = kernel, stride, padding, count_include_pad, ceil_mode
        self._launch(pooling.avg_pool2d_forward, x, y, *options)

    def avg_pool2d_backward(
        self,
        dy: Array,
        dx: Array,
        kernel: Pair,
        stride: Pair,
        padding: Pair,
        count_include_pad: bool,
        ceil_mode: bool = False,
    ) -> None:
        options = kernel, stride, padding, count_include_pad, ceil_mode
        self._launch(pooling.avg_pool2d_backward, dy, dx, *options)

    def global_avg_pool2d_forward(self, x: Array, y: Array) -> None:
        self._launch(pooling.global_avg_pool2d_forward, x, y)

    def global_avg_pool2d_backward(self, dy: Array, dx: Array) -> None:
        self._launch(pooling.global_avg_pool2d_backward, dy, dx)

    # Softmax.

    def softmax_forward(self, x: Array, y: Array) -> None:
        self._launch(softmax.softmax_forward, x, y)

    def softmax_backward(self, dy: Array, y: Array, dx: Array) -> None:
        self._launch(softmax.softmax_backward, dy, y, dx)

    def log_softmax_forward(self, x: Array, y: Array) -> None:
        self._launch(softmax.log_softmax_forward, x, y)

    def log_softmax_backward(self, dy: Array, y: Array, dx: Array) -> None:
        self._launch(softmax.log_softmax_backward, dy, y, dx)

    # Loss and metrics.

    def cross_entropy(
        self,
        logits: Array,
        targets: Array,
        loss: Array,
        dlogits: Array,
        label_smoothing: float,
        ignore_index: int,
        reduction: str,
        weight: Array | None = None,
    ) -> None:
        arrays, options = (logits, targets, loss, dlogits), (label_smoothing, ignore_index, reduction, weight)
        self._launch(cross_entropy, *arrays, *options, check=self.checks_targets)

    def scale_rows(self, x: Array, factors: Array, y: Array) -> None:
        self._launch(scale_rows, x, factors, y)

    def append_result(
        self, logits: Array, targets: Array, loss: Array, count: Array, losses: Array, corrects: Array
    ) -> None:
        self._launch(metrics.append_result, logits, targets, loss, count, losses, corrects)

    def all_finite(self, x: Array) -> bool:
        return bool(self._launch(metrics.all_finite, x))

    # Optimizers.

    def sgd(
        self,
        values: Sequence[Array],
        grads: Sequence[Array],
        velocities: Sequence[Array],
        numbers: Array,
        rows: Sequence[int],
        nesterov: bool,
    ) -> None:
        self._launch(optimizer.sgd, values, grads, velocities, numbers, rows, nesterov)

    def adam(
        self,
        values: Sequence[Array],
        grads: Sequence[Array],
        first_moments: Sequence[Array],
        second_moments: Sequence[Array],
        numbers: Array,
        rows: Sequence[int],
    ) -> None:
        self._launch(optimizer.adam, values, grads, first_moments, second_moments, numbers, rows)

    def moving_average(self, averages: Sequence[Array], values: Sequence[Array], weight: Array) -> None:
        self._launch(averaging.moving_average, averages, values, weight)

    # What changes from step to step.

    def begin_step(self, order: Array, plan: Array, step: Array, size: int, index: Array, numbers: Array) -> None:
        self._launch(steps.begin_step, order, plan, step, size, index, numbers)

    def count_call(self, count: Array, call: Array) -> None:
        self._launch(steps.count_call, count, call)

    def append_number(self, value: Array, count: Array, log: Array) -> None:
        self._launch(steps.append_number, value, count, log)

    def global_norm(self, arrays: Sequence[Array], norm: Array) -> None:
        self._launch(gradient_norm.global_norm, arrays, norm)

    def clip_by_norm(self, arrays: Sequence[Array], norm: Array, max_norm: float) -> None:
        self._launch(gradient_norm.clip_by_norm, arrays, norm, max_norm)

    # Loss scaling.

    def settle_loss_scale(
        self, norm: Array, state: Array, factor: Array, numbers: Array, still: Array, interval: int
    ) -> None:
        self._launch(loss_scale.settle_loss_scale, norm, state, factor, numbers, still, interval)

    def unscale(self, arrays: Sequence[Array], factor: Array) -> None:
        self._launch(loss_scale.unscale, arrays, factor)

    # Images.

    def draw_augmentation(
        self,
        index: Array,
        shifts: Array,
        flips: Array,
        centres: Array,
        image_size: Pair,
        crop_padding: int,
        flip: bool,
        seed: int,
        epoch: Array,
    ) -> None:
        numbers = image_size, crop_padding, flip, seed, epoch
        self._launch(draw_augmentation, index, shifts, flips, centres, *numbers)

    def gather_images(
        self,
        images: Array,
        index: Array,
        shifts: Array,
        flips: Array,
        centres: Array,
        mean: Array,
        std: Array,
        out: Array,
        cutout: int,
    ) -> None:
        self._launch(gather_images, images, index, shifts, flips, centres, mean, std, out, cutout)

    def gather_labels(self, labels: Array, index: Array, out: Array) -> None:
        self._launch(gather_labels, labels, index, out)


_MODULES = (
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
    loss_scale,
    metrics,
    noise,
    optimizer,
    pooling,
    scale,
    softmax,
    steps,
)
_ONE_BY_ONE: list[Callable[..., Any]] = [
    cross_entropy,
    draw_augmentation,
    gather_images,
    gather_labels,
    scale_rows,
]
# By the name of the operation, which is the host function's own.
_HOSTS: dict[str, Callable[..., Any]] = {
    **{host.__name__: host for host in _ONE_BY_ONE},
    **{
        name: vars(module)[name]
        for module in _MODULES
        for name in vars(DeviceBackend)
        if inspect.isfunction(vars(module).get(name))  # what kernels call is none
    },
}
