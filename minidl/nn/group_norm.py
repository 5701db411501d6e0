"""Group, instance and layer normalization, with PyTorch's semantics; arrays are channels last.

Each sample is normalized by itself, in training and evaluation alike: there are no running statistics. Normalization
uses the biased variance; eps is inside the square root. Sources: Wu and He 2018, arXiv:1803.08494; Ulyanov et al. 2016,
arXiv:1607.08022; Ba et al. 2016, arXiv:1607.06450.
"""

import contextlib
import math
from collections.abc import Sequence

import numpy as np

from kernels.errors import ShapeError
from minidl.backends import Array, Backend, BatchStatistics
from minidl.nn.arguments import real_number, whole_number
from minidl.nn.module import Module, Parameter


class SampleNorm(Module):
    """What the three share: a subclass says what of a sample is normalized together."""

    def __init__(self, eps: float, device: str | Backend | None) -> None:
        super().__init__(device)
        if not 0 < real_number(self, "eps", eps) < math.inf:
            raise ValueError(f"{type(self).__name__}: eps must be greater than 0, got {eps}")
        self.eps = eps
        self.weight: Parameter | None = None
        self.bias: Parameter | None = None

    def _add_affine(self, shape: tuple[int, ...], scaled: bool, offset: bool) -> None:
        """Ones for the scale and zeros for the offset, where there are to be any."""
        axes = (2, 0, 1) if len(shape) == 3 else None  # PyTorch has (c, h, w)
        if scaled:
            self.weight = Parameter(self.backend, np.ones(shape), decay=False, axes=axes)
        if scaled and offset:
            self.bias = Parameter(self.backend, np.zeros(shape), decay=False, axes=axes)

    def _normalize(self, x: Array, view: tuple[int, ...], groups: int) -> Array:
        """Forward of x, which the operation takes as `view`, (n, ..., c)."""
        y = self.backend.empty(x.shape, x.dtype)
        make = self.backend.empty if x.size else self.backend.zeros  # of nothing there are none
        statistics = BatchStatistics(*(make((view[0], groups)) for _ in range(4)))
        if x.size:
            self.backend.group_norm_statistics(x.reshape(view), groups, self.eps, statistics)
            gamma, beta = _flat(self.weight), _flat(self.bias)
            self.backend.group_norm_apply(x.reshape(view), statistics, groups, gamma, beta, y.reshape(view))
        self.keep(x, view, groups, statistics)
        return y

    def backward(self, dy: Array) -> Array:
        """See `Module.backward`."""
        x, view, groups, statistics = self.kept()
        dy = self.accept_gradient(dy, x.shape)
        dx = self.backend.empty(x.shape, x.dtype)
        with contextlib.ExitStack() as gradients:
            wanted = [
                None if parameter is None or not parameter.trainable else gradients.enter_context(parameter.gradient())
                for parameter in (self.weight, self.bias)
            ]
            flat = (None if array is None else array.reshape(-1) for array in wanted)
            arrays = x.reshape(view), dy.reshape(view), statistics, groups, _flat(self.weight), dx.reshape(view)
            self.backend.group_norm_backward(*arrays, *flat)
        return dx


class GroupNorm(SampleNorm):
    """Group normalization of (n, c), (n, length, c) or (n, h, w, c).

    In each sample, num_channels / num_groups neighbouring channels are normalized together over all positions: with one
    group the whole sample, with a group for each channel each channel by itself.

    Args:
        num_groups: Groups; a divisor of num_channels.
        num_channels: Channels.
        eps: Added to the variance, inside the square root.
        affine: Whether there are a scale `weight` and an offset `bias` for each channel.
        bias: Whether there is an offset beside the scale.
        device: Where it computes; the CPU unless given.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        device: str | Backend | None = None,
    ) -> None:
        super().__init__(eps, device)
        for name, number in (("num_groups", num_groups), ("num_channels", num_channels)):
            if whole_number(self, name, number) < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 1, got {number}")
        if num_channels % num_groups:
            raise ValueError(
                f"{type(self).__name__}: num_groups {num_groups} does not divide num_channels {num_channels}; "
                f"the nearest that {_nearest_divisors(num_groups, num_channels)}"
            )
        self.num_groups, self.num_channels, self.affine = int(num_groups), int(num_channels), affine
        self._add_affine((self.num_channels,), affine, bias)

    def forward(self, x: Array) -> Array:
        """Normalize x; the output has its shape.

        Raises:
            ShapeError: x has another number of axes or channels.
            ValueError: The whole batch has one value for each group, so that there is no variance: PyTorch's rule.
                (Groups of one value in a larger batch give the bias, as in PyTorch; nothing in gives nothing out.)
        """
        x = self.accept(x, "n c", "n l c", "n h w c", c=self.num_channels)
        if x.size == self.num_groups:
            raise ValueError(
                f"{type(self).__name__}: more than one value for each group is needed, got an input of shape "
                f"{tuple(x.shape)} with {self.num_groups} groups; use fewer groups"
            )
        return self._normalize(x, tuple(x.shape), self.num_groups)

    def extra_repr(self) -> str:
        """The arguments, as PyTorch prints them."""
        offset = self.bias is not None
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, bias={offset}"


class InstanceNorm(SampleNorm):
    """What InstanceNorm1d and InstanceNorm2d share; they differ in the shapes they take.

    Each channel of each sample is normalized by itself, over its positions. What follows num_features and eps is given
    by name, since PyTorch has `momentum` before `affine`.

    Args:
        num_features: Channels.
        eps: Added to the variance, inside the square root.
        affine: Whether there are a scale `weight` and an offset `bias` for each channel.
        track_running_stats: Must be False, as it is in PyTorch unless asked for.
        device: Where it computes; the CPU unless given.
    """

    form: str  # the accepted shape, in the notation of Module.accept

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        affine: bool = False,
        track_running_stats: bool = False,
        device: str | Backend | None = None,
    ) -> None:
        super().__init__(eps, device)
        if whole_number(self, "num_features", num_features) < 1:
            raise ValueError(f"{type(self).__name__}: num_features must be at least 1, got {num_features}")
        if track_running_stats:
            raise ValueError(
                f"{type(self).__name__}: track_running_stats=True is not supported; each sample is normalized by its "
                "own statistics, in evaluation too; leave it False, or use BatchNorm for running statistics"
            )
        self.num_features, self.affine = int(num_features), affine
        self._add_affine((self.num_features,), affine, True)

    def forward(self, x: Array) -> Array:
        """Normalize x; the output has its shape.

        Raises:
            ShapeError: x has another number of axes or channels.
            ValueError: There is one position in a sample, so that a channel has no variance: PyTorch's rule, which
                holds in evaluation too. (Nothing in gives nothing out.)
        """
        x = self.accept(x, self.form, c=self.num_features)
        if math.prod(x.shape[1:-1]) == 1:
            raise ValueError(
                f"{type(self).__name__}: more than one position in a sample is needed, got an input of shape "
                f"{tuple(x.shape)}; use GroupNorm or LayerNorm"
            )
        return self._normalize(x, tuple(x.shape), self.num_features)

    def extra_repr(self) -> str:
        """The arguments, as PyTorch prints them."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}, track_running_stats=False"


class InstanceNorm1d(InstanceNorm):
    """Instance normalization of (n, length, c)."""

    form = "n l c"


class InstanceNorm2d(InstanceNorm):
    """Instance normalization of (n, h, w, c)."""

    form = "n h w c"


class LayerNorm(SampleNorm):
    """Layer normalization over the last axes, which are `normalized_shape`; every index of those before is a sample.

    A number means the channels: each row of a matrix, or each pixel of an image, by itself. PyTorch's LayerNorm(c) does
    that to arrays with channels last; of an image (n, c, h, w) it would take rows of pixels together. A tuple (h, w, c)
    means the whole image, as (c, h, w) does in PyTorch; `state_dict` has weight and bias in that order of axes. With
    any other number of axes they are as they are here.

    Args:
        normalized_shape: The lengths of the last axes of the input, or that of the last.
        eps: Added to the variance, inside the square root.
        elementwise_affine: Whether there is a scale `weight` for each element of normalized_shape.
        bias: Whether there is an offset `bias` beside it.
        device: Where it computes; the CPU unless given.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        device: str | Backend | None = None,
    ) -> None:
        super().__init__(eps, device)
        lengths = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
        self.normalized_shape = tuple(whole_number(self, "each of normalized_shape", length) for length in lengths)
        if not self.normalized_shape or min(self.normalized_shape) < 1:
            raise ValueError(
                f"{type(self).__name__}: normalized_shape must have one length or more, of at least 1 each, got "
                f"{normalized_shape}"
            )
        self.elementwise_affine = elementwise_affine
        self._add_affine(self.normalized_shape, elementwise_affine, bias)

    def forward(self, x: Array) -> Array:
        """Normalize x; the output has its shape.

        A sample of one element gives the bias, as in PyTorch.

        Raises:
            ShapeError: The last axes of x are not normalized_shape.
        """
        x = self.backend.accept(x, f"{type(self).__name__}: the input")
        before = x.ndim - len(self.normalized_shape)
        if before < 0 or tuple(x.shape[before:]) != self.normalized_shape:
            wanted = ", ".join(map(str, self.normalized_shape))
            raise ShapeError(f"{type(self).__name__}: the input has shape {tuple(x.shape)}, expected (..., {wanted})")
        return self._normalize(x, (math.prod(x.shape[:before]), math.prod(self.normalized_shape)), 1)

    def extra_repr(self) -> str:
        """The arguments, as PyTorch prints them."""
        offset = self.bias is not None
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, bias={offset}"


def _flat(parameter: Parameter | None) -> Array | None:
    """Its value as (c,)."""
    return None if parameter is None else parameter.value.reshape(-1)


def _nearest_divisors(number: int, of: int) -> str:
    """Words for the divisors of `of` on both sides of `number`, which is none."""
    divisors = [d for d in range(1, of + 1) if of % d == 0]
    below, above = max(d for d in divisors if d < number), min((d for d in divisors if d > number), default=None)
    return f"does is {below}" if above is None else f"do are {below} and {above}"
