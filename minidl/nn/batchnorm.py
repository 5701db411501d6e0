"""Batch normalization layers (Ioffe and Szegedy 2015, arXiv:1502.03167), with PyTorch's semantics.

momentum is the weight of the new value in the running statistics; normalization uses the biased variance, the running
variance the unbiased one; eps is inside the square root.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np

from minidl.backends import Array, Backend, BatchStatistics
from minidl.nn.arguments import is_count, real_number, whole_number
from minidl.nn.counts import Count
from minidl.nn.module import Module, Parameter


class Part(NamedTuple):
    """Images of a batch that are normalized together, and what by."""

    images: slice
    statistics: BatchStatistics


class BatchNorm(Module):
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

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        device: str | Backend | None = None,
    ) -> None:
        super().__init__(device)
        if whole_number(self, "num_features", num_features) < 1:
            raise ValueError(f"{type(self).__name__}: num_features must be at least 1, got {num_features}")
        if not 0 < real_number(self, "eps", eps) < math.inf:
            raise ValueError(f"{type(self).__name__}: eps must be greater than 0, got {eps}")
        if momentum is not None and not 0 <= real_number(self, "momentum", momentum) <= 1:
            raise ValueError(f"{type(self).__name__}: momentum must be from 0 to 1, or None, got {momentum}")
        self.num_features, self.eps, self.momentum = int(num_features), eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight: Parameter | None = None
        self.bias: Parameter | None = None
        if affine:
            self.weight = Parameter(self.backend, np.ones(num_features), decay=False)
            self.bias = Parameter(self.backend, np.zeros(num_features), decay=False)
        self.running_mean: Array = None
        self.running_var: Array = None
        self._batches = Count()
        self.statistics_frozen = False
        self.observer: Callable[[Sequence[Part], int], None] | None = None
        if track_running_stats:
            self.register_buffer("running_mean", self.backend.array(np.zeros(num_features)))
            self.register_buffer("running_var", self.backend.array(np.ones(num_features)))

    @property
    def num_batches_tracked(self) -> int:
        """How many batches the running statistics have seen."""
        return self._batches.value

    @num_batches_tracked.setter
    def num_batches_tracked(self, batches: int) -> None:
        self._batches.value = batches

    def forward(self, x: Array) -> Array:
        """Normalize x; the output has its shape.

        Raises:
            ShapeError: x has another number of axes or channels.
            ValueError: The batch normalizes and has one value for each channel, so that there is no variance. (An
                empty batch is no error: its output is empty and it leaves the running statistics alone.)
        """
        return self.normalize(x, relu=False)

    def freeze_statistics(self, frozen: bool = True) -> Self:
        """In training too, normalize by the running estimates and leave them and num_batches_tracked as they are.

        What evaluation does, but `train()` and `eval()` do not undo it. (In PyTorch `requires_grad = False` freezes no
        statistics; there it takes `eval()` on the layer, again after each `train()` of the model. Keras' `trainable =
        False` freezes both.) It is no part of `state_dict`: freeze again after making a model anew.

        Raises:
            ValueError: There are no running statistics.
        """
        if frozen and not self.track_running_stats:
            raise ValueError(
                f"{type(self).__name__}: there are no running statistics to freeze; make it with "
                "track_running_stats=True"
            )
        self.statistics_frozen = bool(frozen)
        return self

    def freeze_affine(self, frozen: bool = True) -> Self:
        """Leave gamma and beta, if there are any, as they are: see `Parameter.trainable`. The statistics go on."""
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.trainable = not frozen
        return self

    def normalize(self, x: Array, relu: bool) -> Array:
        """Forward, with ReLU on the way out where `relu`; `backward` then goes back through both."""
        x = self.accept(x, *self.forms, c=self.num_features)
        y = self.backend.empty(x.shape)
        parts, of_batch = self._compute(x, y, relu)
        self.keep(x, parts, of_batch, relu)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        x, parts, of_batch, relu = self.kept()
        return self._back(x, parts, of_batch, relu, self.accept_gradient(dy, x.shape))

    def _back(self, x: Array, parts: Sequence[Part], of_batch: bool, relu: bool, dy: Array) -> Array:
        """Backward, given what forward kept."""
        dx = self.backend.empty(x.shape)
        for images, statistics in parts:
            with self._affine_gradients() as gradients:
                given = x[images], dy[images], statistics, *self._affine(), dx[images], *gradients
                self.backend.batchnorm_backward(*given, training=of_batch, relu=relu)
        return dx

    def normalize_add_relu(self, x: Array, residual: Array) -> Array:
        """The end of a residual block, max(forward(x) + residual, 0); `residual` has the shape of x."""
        x = self.accept(x, *self.forms, c=self.num_features)
        y = self.backend.empty(x.shape)
        parts, of_batch = self._compute(x, y, True, residual)
        self.keep(x, parts, of_batch, y)
        return y

    def backward_add_relu(self, dy: Array) -> tuple[Array, Array]:
        """Back through `normalize_add_relu`: the gradients of x and of the residual."""
        x, parts, of_batch, y = self.kept()
        dy = self.accept_gradient(dy, x.shape)
        dx, dresidual = self.backend.empty(x.shape), self.backend.empty(x.shape)
        gamma, _ = self._affine()
        for images, statistics in parts:
            with self._affine_gradients() as gradients:
                given = x[images], y[images], dy[images], statistics, gamma, dx[images], dresidual[images], *gradients
                self.backend.batchnorm_add_relu_backward(*given, training=of_batch)
        return dx, dresidual

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether a forward pass normalizes by the statistics of its batch, not by the running ones."""
        if not self.track_running_stats or self.observer is not None:
            return True
        return self.training and not self.statistics_frozen

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
        tracks = of_batch and self.training and self.track_running_stats and self.observer is None
        before = None
        if tracks and self.momentum is None:
            before = self._batches.draw(self.backend)
        elif tracks:
            self.num_batches_tracked += 1
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

    def _update_running(self, parts: Sequence[Part], rows: int, before: Array | None) -> None:
        """Move the running estimates by one factor towards the mean of the parts' means and unbiased variances.

        One part at a time: with n of them and the factor f, part i by f / (n - (n - i) f), so that each ends up with
        the weight f / n and what was there before with 1 - f. Of the cumulative mean, f is 1 / (`before` + 1), which
        the device works out from the number of batches before this one.
        """
        n = len(parts)
        for i, (_, statistics) in enumerate(parts, start=1):
            if self.momentum is None:
                weight: float | Array = self.backend.empty(())
                self.backend.cumulative_weight(before, i, n, weight)
            else:
                weight = self.momentum / (n - (n - i) * self.momentum)
            self.backend.batchnorm_update_running(statistics, rows, weight, self.running_mean, self.running_var)

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

    @contextlib.contextmanager
    def _affine_gradients(self) -> Iterator[tuple[Array | None, Array | None]]:
        """Where backward writes dgamma and dbeta; None for what does not exist or is frozen."""
        with contextlib.ExitStack() as stack:
            dgamma, dbeta = (
                stack.enter_context(parameter.gradient()) if parameter is not None and parameter.trainable else None
                for parameter in (self.weight, self.bias)
            )
            yield dgamma, dbeta

    def _affine(self) -> tuple[Array | None, Array | None]:
        if self.weight is None or self.bias is None:
            return None, None
        return self.weight.value, self.bias.value

    # num_batches_tracked is part of the state, as PyTorch's 0-d int64.

    def own_state(self) -> dict[str, np.ndarray]:
        """See `Module.own_state`."""
        state = super().own_state()
        if self.track_running_stats:
            state["num_batches_tracked"] = np.array(self.num_batches_tracked, np.int64)
        return state

    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Module.own_shapes`."""
        shapes = super().own_shapes()
        if self.track_running_stats:
            shapes["num_batches_tracked"] = ()
        return shapes

    def own_faults(self, state: Mapping[str, np.ndarray]) -> list[str]:
        """See `Module.own_faults`."""
        batches = state.get("num_batches_tracked", 0)
        return [] if is_count(batches) else [f"num_batches_tracked is {batches}, expected a whole number of at least 0"]

    def load_own_state(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Module.load_own_state`."""
        super().load_own_state(state)
        if "num_batches_tracked" in state:
            self.num_batches_tracked = int(state["num_batches_tracked"])

    def extra_repr(self) -> str:
        """The arguments, as PyTorch prints them."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(BatchNorm):
    """Batch normalization of (n, c), or of (n, length, c) with channels last."""

    forms = ("n c", "n l c")


class BatchNorm2d(BatchNorm):
    """Batch normalization of (n, h, w, c) over n, h and w."""

    forms = ("n h w c",)
