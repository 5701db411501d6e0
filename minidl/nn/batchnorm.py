"""Batch normalization layers (Ioffe and Szegedy 2015, arXiv:1502.03167), with PyTorch's semantics.

momentum is the weight of the new value in the running statistics; normalization uses the biased variance, the running
variance the unbiased one; eps is inside the square root.
"""

import contextlib
import math
from collections.abc import Mapping

import numpy as np

from minidl.backends import Array, Backend, BatchStatistics
from minidl.nn.arguments import is_count, real_number, whole_number
from minidl.nn.module import Module, Parameter


class BatchNorm(Module):
    """What BatchNorm1d and BatchNorm2d share; they differ in the shapes they take.

    In training each channel is normalized by the mean and variance of the batch; in evaluation by the running
    estimates, or by the batch's where none are tracked. Backward follows whichever forward used.

    Args:
        num_features: Channels.
        eps: Added to the variance, inside the square root.
        momentum: Weight of the batch in the running statistics; None for the cumulative mean over all batches.
        affine: Whether there are a scale `weight` (gamma) and an offset `bias` (beta) for each channel.
        track_running_stats: Whether running statistics are kept.
        device: Where it computes; the CPU unless given.
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
        self.num_batches_tracked = 0
        if track_running_stats:
            self.register_buffer("running_mean", self.backend.array(np.zeros(num_features)))
            self.register_buffer("running_var", self.backend.array(np.ones(num_features)))

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
        rows = x.size // self.num_features
        y = self.backend.empty(x.shape)
        make = self.backend.empty if rows > 0 else self.backend.zeros  # of an empty batch there are none
        statistics = BatchStatistics(*(make((self.num_features,)) for _ in range(4)))
        of_batch = self.training or not self.track_running_stats
        if of_batch and rows == 1:
            when = "training" if self.training else "evaluation without running statistics"
            raise ValueError(
                f"{type(self).__name__}: {when} needs more than one value for each channel, got an input of shape "
                f"{tuple(x.shape)}; use a larger batch, or eval() to normalize by running statistics"
            )
        if self.training and self.track_running_stats:
            self.num_batches_tracked += 1
        if of_batch and rows > 0:
            self.backend.batchnorm_statistics(x, self.eps, statistics)
            if self.training and self.track_running_stats:
                factor = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
                self.backend.batchnorm_update_running(statistics, rows, factor, self.running_mean, self.running_var)
        elif not of_batch:
            self.backend.batchnorm_running_statistics(self.running_mean, self.running_var, self.eps, statistics)
        if rows > 0:
            self.backend.batchnorm_apply(x, statistics, *self._affine(), y, relu)
        self.keep(x, statistics, of_batch, relu)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        x, statistics, of_batch, relu = self.kept()
        dy = self.accept_gradient(dy, x.shape)
        dx = self.backend.empty(x.shape)
        with contextlib.ExitStack() as gradients:
            dgamma = dbeta = None
            if self.weight is not None and self.bias is not None:
                dgamma = gradients.enter_context(self.weight.gradient())
                dbeta = gradients.enter_context(self.bias.gradient())
            self.backend.batchnorm_backward(
                x, dy, statistics, *self._affine(), dx, dgamma, dbeta, training=of_batch, relu=relu
            )
        return dx

    def _affine(self) -> tuple[Array | None, Array | None]:
        if self.weight is None or self.bias is None:
            return None, None
        return self.weight.value, self.bias.value

    # num_batches_tracked is a number on the host, but part of the state, as PyTorch's 0-d int64.

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
