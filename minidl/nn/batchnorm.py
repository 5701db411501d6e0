"""Batch normalization layers (Ioffe and Szegedy 2015, arXiv:1502.03167), with PyTorch's semantics.

momentum is the weight of the new value in the running statistics; normalization uses the biased variance, the running
variance the unbiased one; eps is inside the square root.
"""

import math
from collections.abc import Sequence

from minidl.backends import Array, BatchStatistics, GradientSums, Normalization, PendingGradient
from minidl.nn.batchnorm_state import BatchNormState
from minidl.nn.batchnorm_state import Part as Part
from minidl.nn.pending import PendingActivation


class BatchNorm(BatchNormState):
    """What BatchNorm1d and BatchNorm2d share; they differ in the shapes they take.

    In training each channel is normalized by the mean and variance of the batch; in evaluation, and where they are
    frozen, by the running estimates, or by the batch's where none are tracked. Backward follows whichever forward used.

    Args:
        num_features: Channels.
        eps: Added to the variance, inside the square root.
        momentum: Weight of the batch in the running statistics; None for the cumulative mean over all batches.
        affine: Whether there are a scale `weight` (gamma) and an offset `bias` (beta) for each channel.
        track_running_stats: Whether running statistics are kept.
        device: Where it computes; the CPU unless given.

    Attributes:
        statistics_frozen: See `freeze_statistics`.
        observer: While it is set, each forward pass normalizes by the batch, leaves the running statistics alone and
            shows the observer the batch's parts and the rows of each (see `minidl.nn.statistics`).
    """

    forms: tuple[str, ...]  # the accepted shapes, in the notation of Module.accept

    def forward(self, x: Array) -> Array:
        """Normalize x; the output has its shape.

        Raises:
            ShapeError: x has another number of axes or channels.
            ValueError: The batch normalizes and has one value for each channel, so that there is no variance. (An
                empty batch is no error: its output is empty and it leaves the running statistics alone.)
        """
        return self.normalize(x, relu=False)

    def normalize(self, x: Array, relu: bool) -> Array:
        """Forward, with ReLU on the way out where `relu`; `backward` then goes back through both."""
        x = self.accept(x, *self.forms, c=self.num_features)
        y = self.backend.empty(x.shape, x.dtype)
        parts, of_batch = self._compute(x, y, relu)
        self.keep(x, parts, of_batch, relu)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        x, parts, of_batch, relu = self.kept()
        return self._back(x, parts, of_batch, relu, self.accept_gradient(dy, x.shape))

    def _back(self, x: Array, parts: Sequence[Part], of_batch: bool, relu: bool, dy: Array) -> Array:
        """Backward, given what forward kept."""
        dx = self.backend.empty(x.shape, x.dtype)
        for images, statistics in parts:
            with self._affine_gradients() as gradients:
                given = x[images], dy[images], statistics, *self._affine(), dx[images], *gradients
                self.backend.batchnorm_backward(*given, training=of_batch, relu=relu)
        return dx

    def normalize_add_relu(self, x: Array, residual: Array) -> Array:
        """The end of a residual block, max(forward(x) + residual, 0); `residual` has the shape of x."""
        x = self.accept(x, *self.forms, c=self.num_features)
        y = self.backend.empty(x.shape, x.dtype)
        parts, of_batch = self._compute(x, y, True, residual)
        self.keep(x, parts, of_batch, y)
        return y

    def backward_add_relu(self, dy: Array) -> tuple[Array, Array]:
        """Back through `normalize_add_relu`: the gradients of x and of the residual."""
        x, parts, of_batch, y = self.kept()
        dy = self.accept_gradient(dy, x.shape)
        dx, dresidual = self.backend.empty(x.shape, x.dtype), self.backend.empty(x.shape, x.dtype)
        gamma, _ = self._affine()
        for images, statistics in parts:
            with self._affine_gradients() as gradients:
                given = x[images], y[images], dy[images], statistics, gamma, dx[images], dresidual[images], *gradients
                self.backend.batchnorm_add_relu_backward(*given, training=of_batch)
        return dx, dresidual

    def _split(self, x: Array) -> list[slice]:
        """The images of a batch that are normalized together: here, all."""
        del x
        return [slice(None)]

    def _compute(self, x: Array, y: Array, relu: bool, residual: Array | None = None) -> tuple[list[Part], bool]:
        """Normalize x into y; what by, and whether that is the batch's own. The running statistics are updated."""
        of_batch = self.uses_batch_statistics
        split = self._split(x) if of_batch and self.observer is None else [slice(None)]
        rows = x.size // self.num_features // len(split)
        if of_batch and rows == 1:
            raise ValueError(self._too_few(x))
        make = self.backend.empty if rows > 0 else self.backend.zeros  # of an empty batch there are none
        shape = (self.num_features,)
        parts = [Part(images, BatchStatistics(*(make(shape) for _ in range(4)))) for images in split]
        tracks = of_batch and self._tracks
        before = self._count_batch() if tracks else None
        if not of_batch:
            statistics = parts[0].statistics
            self.backend.batchnorm_running_statistics(self.running_mean, self.running_var, self.eps, statistics)
            if x.size and residual is None:
                self.backend.batchnorm_apply(x, statistics, *self._affine(), y, relu)
            elif x.size:
                self.backend.batchnorm_add_relu_apply(x, residual, statistics, *self._affine(), y)
        elif rows > 0:
            for images, statistics in parts:
                other = None if residual is None else residual[images]
                given = x[images], *self._affine(), self.eps, statistics, y[images]
                self.backend.batchnorm_forward(*given, relu, other)
            if self.observer is not None:
                self.observer(parts, rows)
            elif tracks:
                self._update_running(parts, rows, before)
        return parts, of_batch

    def _too_few(self, x: Array) -> str:
        """What is said of a batch with one value for each channel."""
        when, remedy = "training", "use a larger batch, or eval() to normalize by running statistics"
        if self.observer is not None:
            when, remedy = "re-estimating statistics", "use larger batches"
        elif not self.training:
            when = "evaluation without running statistics"
        return (
            f"{type(self).__name__}: {when} needs more than one value for each channel, got an input of shape "
            f"{tuple(x.shape)}; {remedy}"
        )

    # A training pass in parts, for steps that find statistics or sums, or normalize, on the way of something else
    # (`minidl.nn.normalized_convolution`).

    def goes_in_parts(self, x_shape: tuple[int, ...]) -> bool:
        """Whether such steps may do forward of an x of that shape: by its own statistics, which nobody watches."""
        return self.uses_batch_statistics and self.observer is None and math.prod(x_shape[:-1]) > 1

    def empty_statistics(self) -> BatchStatistics:
        """Where statistics are to be written."""
        return BatchStatistics(*(self.backend.empty((self.num_features,)) for _ in range(4)))

    def find_statistics(self, x: Array) -> BatchStatistics:
        """Those of x, where nobody has found them."""
        statistics = self.empty_statistics()
        self.backend.batchnorm_statistics(x, self.eps, statistics)
        return statistics

    def normalization(self, statistics: BatchStatistics, relu: bool) -> Normalization:
        """By these statistics, with ReLU at its end or not."""
        return Normalization(statistics, *self._affine(), relu)

    def take_statistics(self, pending: PendingActivation, y: Array = None) -> None:
        """Forward but for writing its output; `y` is that where `backward_add_relu` is to follow."""
        x, (statistics, _, _, relu), _ = pending
        parts = [Part(slice(None), statistics)]
        if self._tracks:
            self._update_running(parts, x.size // self.num_features, self._count_batch())
        self.keep(x, parts, True, relu if y is None else y)

    def write(self, x: Array, normalization: Normalization) -> Array:
        """The activation that is pending."""
        statistics, gamma, beta, relu = normalization
        y = self.backend.empty(x.shape, x.dtype)
        self.backend.batchnorm_apply(x, statistics, gamma, beta, y, relu)
        return y

    def write_add_relu(self, pending: PendingActivation, residual: Array) -> Array:
        """The end of a residual block; see `normalize_add_relu`."""
        x, (statistics, gamma, beta, _), _ = pending
        y = self.backend.empty(x.shape, x.dtype)
        self.take_statistics(pending, y)
        self.backend.batchnorm_add_relu_apply(x, residual, statistics, gamma, beta, y)
        return y

    def empty_sums(self) -> GradientSums:
        """Where the sums of backward are to be written."""
        dgamma, dbeta = (
            self.backend.empty((self.num_features,)) if parameter is not None and parameter.trainable else None
            for parameter in (self.weight, self.bias)
        )
        return GradientSums(dgamma, dbeta, *(self.backend.empty((self.num_features,)) for _ in range(2)))

    def take_gradient(self, dy: Array | PendingGradient) -> PendingGradient:
        """Back through `take_statistics` but for writing the gradient of x; of `dy`, or of what was made of it."""
        if not isinstance(dy, PendingGradient):
            x, parts, _, relu = self.kept()
            dy = self.accept_gradient(dy, x.shape)
            normalization, sums = self.normalization(parts[0].statistics, relu), self.empty_sums()
            self.backend.batchnorm_gradient_sums(x, dy, normalization, sums)
            dy = PendingGradient(dy, x, normalization, sums)
        self._kept = None
        for parameter, gradient in ((self.weight, dy.sums.dgamma), (self.bias, dy.sums.dbeta)):
            if parameter is not None and gradient is not None:
                parameter.take_gradient(gradient)
        return dy

    def split_gradient(self, dy: Array) -> tuple[PendingGradient, Array]:
        """Back through `write_add_relu`: the gradients of x, to be taken yet, and of the residual."""
        x, parts, _, y = self.kept()
        dy = self.accept_gradient(dy, x.shape)
        dresidual, sums, statistics = self.backend.empty(x.shape, x.dtype), self.empty_sums(), parts[0].statistics
        self.backend.batchnorm_add_relu_gradient_sums(x, y, dy, statistics, dresidual, sums)
        return PendingGradient(dresidual, x, self.normalization(statistics, relu=False), sums), dresidual

    def write_gradient(self, dy: PendingGradient) -> Array:
        """The gradient of x that is pending."""
        dx = self.backend.empty(dy.x.shape, dy.x.dtype)
        self.backend.batchnorm_pending_gradient(dy, dx)
        return dx


class BatchNorm1d(BatchNorm):
    """Batch normalization of (n, c), or of (n, length, c) with channels last."""

    forms = ("n c", "n l c")


class BatchNorm2d(BatchNorm):
    """Batch normalization of (n, h, w, c) over n, h and w."""

    forms = ("n h w c",)
